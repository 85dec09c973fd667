"""The gate: whole conversations, however their bytes are cut, and h11 on both ends of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_gate import HttpGate
from sidecar.core.http_headers import Extras
from tests.fuzz import gate as fuzz
from tests.fuzz import wire
from tests.fuzz.driver import Driver, Exchange, held_bytes
from tests.fuzz.script import Script, Settings, Step

bounded = settings(max_examples=200, deadline=None, derandomize=True, database=None)
KIB = 1024
HOST = b"Host: models.example.org"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
UNTIL_END = b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nhel"


def ask(line: bytes, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A request: `line` is its method and target."""
    return b"\r\n".join((line + b" HTTP/" + version, HOST, *fields, b"", body))


def post(body: bytes, *fields: bytes, target: bytes = b"/p") -> bytes:
    """A request with a body of a given length."""
    return ask(b"POST " + target, *fields, b"Content-Length: %d" % len(body), body=body)


def chunked(body: bytes, *fields: bytes, target: bytes = b"/c") -> bytes:
    """A request whose body are these chunks."""
    return ask(b"POST " + target, *fields, b"Transfer-Encoding: chunked", body=body)


GET, NEXT = ask(b"GET /a"), ask(b"GET /b")
BAD = ask(b"GET /bad", b"X : y")
ABC = b"3\r\nabc\r\n0\r\n\r\n"


def peer(data: bytes) -> Step:
    """The peer sends."""
    return Step("P", data)


def answer(data: bytes) -> Step:
    """The backend sends."""
    return Step("B", data)


CLOSES, LEAVES = Step("E"), Step("L")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What both sides do, and all that may come of it.

    `told` are the answers at the peer ("200 ok", "403 ours", "200 ..." for one that is not
    whole), `seen` the requests at the backend, and `state` is where it ends.
    """

    id: str
    steps: tuple[Step, ...]
    told: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    state: str = "head"
    connections: int = 1  # to the backend
    settings: Settings = field(default_factory=Settings)


def script(case: Conversation) -> Script:
    """Give it as the driver plays it."""
    return Script(case.settings, case.steps)


GOOD = [
    Conversation("one request", (peer(GET), answer(OK)), ("200 ok",), ("GET /a",)),
    Conversation(
        "kept alive",
        (peer(GET), answer(OK), peer(NEXT), answer(OK)),
        ("200 ok", "200 ok"),
        ("GET /a", "GET /b"),
    ),
    Conversation(
        "pipelined, answered in order",
        (peer(GET + post(b"hello") + NEXT), answer(OK), answer(CHUNKS + ABC), answer(OK)),
        ("200 ok", "200 abc", "200 ok"),
        ("GET /a", "POST /p hello", "GET /b"),
    ),
    Conversation(
        "pipelined, one refused between two",
        (peer(GET + ask(b"GET /no") + NEXT), answer(OK), answer(OK)),
        ("200 ok", "403 ours", "200 ok"),
        ("GET /a", "GET /b"),
    ),
    Conversation(
        "pipelined behind chunks",
        (peer(chunked(ABC) + NEXT), answer(OK), answer(OK)),
        ("200 ok", "200 ok"),
        ("POST /c abc", "GET /b"),
    ),
    Conversation(
        "sent ahead while the answer comes",
        (peer(GET), answer(LONG), peer(NEXT), answer(b"hello"), answer(OK)),
        ("200 hello", "200 ok"),
        ("GET /a", "GET /b"),
    ),
    Conversation(
        "body later",
        (peer(post(b"hello")[:-5]), peer(b"hello"), answer(OK)),
        ("200 ok",),
        ("POST /p hello",),
    ),
    Conversation("empty body", (peer(post(b"")), answer(OK)), ("200 ok",), ("POST /p",)),
    Conversation(
        "GET with a body",
        (peer(ask(b"GET /g", b"Content-Length: 1", body=b"x")), answer(OK)),
        ("200 ok",),
        ("GET /g x",),
    ),
    Conversation(
        "chunks of many spellings",
        (peer(chunked(b"0003\r\nabc\r\nA\r\n0123456789\r\n00\r\n\r\n")), answer(OK)),
        ("200 ok",),
        ("POST /c abc0123456789",),
    ),
    Conversation("no chunk", (peer(chunked(b"0\r\n\r\n")), answer(OK)), ("200 ok",), ("POST /c",)),
    Conversation(
        "trailers are dropped",
        (
            peer(chunked(b"1\r\na\r\n0\r\nX-Spiffe-Id: evil\r\n\r\n")),
            answer(CHUNKS + b"1\r\nb\r\n0\r\nSet-Cookie: c\r\n\r\n"),
        ),
        ("200 b",),
        ("POST /c a",),
    ),
    Conversation(
        "what looks like a request is a body",
        (peer(post(NEXT) + GET), answer(OK), answer(OK)),
        ("200 ok", "200 ok"),
        ("POST /p " + NEXT.decode(), "GET /a"),
    ),
    Conversation("chunked answer", (peer(GET), answer(CHUNKS + ABC)), ("200 abc",), ("GET /a",)),
    Conversation(
        "answer until the end",
        (peer(GET), answer(UNTIL_END), answer(b"lo"), CLOSES, peer(NEXT), answer(OK)),
        ("200 hello", "200 ok"),
        ("GET /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "empty answer until the end",
        (peer(GET), answer(b"HTTP/1.0 200 OK\r\n\r\n"), CLOSES),
        ("200",),
        ("GET /a",),
    ),
    Conversation(
        "backend of 1.0",
        (peer(GET + NEXT), answer(OK.replace(b"1.1", b"1.0")), answer(OK)),
        ("200 ok", "200 ok"),
        ("GET /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "backend that closes after its answer",
        (
            peer(GET),
            answer(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
            CLOSES,
            peer(NEXT),
            answer(OK),
        ),
        ("200 ok", "200 ok"),
        ("GET /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "HEAD",
        (peer(ask(b"HEAD /a") + NEXT), answer(LONG), answer(OK)),
        ("200", "200 ok"),
        ("HEAD /a", "GET /b"),
    ),
    Conversation(
        "HEAD, answered as if until the end",
        (peer(ask(b"HEAD /a") + NEXT), answer(b"HTTP/1.1 200 OK\r\n\r\n"), answer(OK)),
        ("200", "200 ok"),
        ("HEAD /a", "GET /b"),
    ),
    Conversation(
        "204 with a length",
        (peer(GET + NEXT), answer(b"HTTP/1.1 204 X\r\nContent-Length: 2\r\n\r\n"), answer(OK)),
        ("204", "200 ok"),
        ("GET /a", "GET /b"),
    ),
    Conversation(
        "304 with a length",
        (peer(GET + NEXT), answer(b"HTTP/1.1 304 X\r\nContent-Length: 2\r\n\r\n"), answer(OK)),
        ("304", "200 ok"),
        ("GET /a", "GET /b"),
    ),
    Conversation(
        "interim answers go on, but no 100",
        (
            peer(GET),
            answer(b"HTTP/1.1 100 X\r\nLink: x\r\n\r\n"),
            answer(b"HTTP/1.1 103 X\r\nLink: x\r\n\r\n"),
            answer(b"HTTP/1.1 102 X\r\nLink: x\r\n\r\n"),
            answer(OK),
        ),
        ("103", "102", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "interim and final answer at once",
        (peer(GET), answer(b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 100 X\r\n\r\n" + OK)),
        ("103", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "1.0 knows no interim answers",
        (peer(ask(b"GET /a", version=b"1.0")), answer(b"HTTP/1.1 103 X\r\n\r\n" + OK)),
        ("200 ok",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "1.0 knows no chunks",
        (peer(ask(b"GET /a", version=b"1.0")), answer(CHUNKS + ABC)),
        ("200 abc",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "1.0, until the end",
        (
            peer(ask(b"GET /a", b"Connection: keep-alive", version=b"1.0")),
            answer(UNTIL_END),
            CLOSES,
        ),
        ("200 hel",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "1.0 is the last one",
        (peer(ask(b"GET /a", version=b"1.0") + NEXT), answer(OK), answer(OK)),
        ("200 ok",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "peer wants to close",
        (peer(ask(b"GET /a", b"Connection: close") + NEXT), answer(OK), answer(OK)),
        ("200 ok",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "we want to close",
        (peer(GET + NEXT), answer(OK), answer(OK)),
        ("200 ok",),
        ("GET /a",),
        "closed",
        settings=Settings(closes=True),
    ),
    Conversation(
        "peer waits with its body until it is told to go on",
        (peer(post(b"hello", b"Expect: 100-continue")[:-5]), peer(b"hello"), answer(OK)),
        ("100", "200 ok"),
        ("POST /p hello",),
    ),
    Conversation(
        "peer waits with its chunks",
        (peer(chunked(b"", b"Expect: 100-continue")), peer(ABC), answer(OK)),
        ("100", "200 ok"),
        ("POST /c abc",),
    ),
    Conversation(
        "backend's 100 is not passed on as well",
        (
            peer(post(b"hello", b"Expect: 100-continue")[:-5]),
            answer(b"HTTP/1.1 100 Continue\r\n\r\n"),
            peer(b"hello"),
            answer(OK),
        ),
        ("100", "200 ok"),
        ("POST /p hello",),
    ),
    Conversation(
        "peer that waits is refused at once",
        (peer(post(b"hello", b"Expect: 100-continue", target=b"/no")[:-5]), peer(b"hello")),
        ("403 ours",),
        state="closed",
        connections=0,
    ),
    Conversation(
        "health",
        (peer(ask(b"GET /health") + ask(b"HEAD /health") + GET), answer(OK)),
        ("200 ours", "200 ours", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "health is asked for and not told",
        (peer(post(b"x", target=b"/health")), answer(OK)),
        ("200 ok",),
        ("POST /health x",),
    ),
    Conversation(
        "preflight",
        (
            peer(ask(b"OPTIONS /a", b"Access-Control-Request-Method: POST") + GET),
            answer(OK),
        ),
        ("204 ours", "200 ok"),
        ("GET /a",),
        settings=Settings(cors=True),
    ),
    Conversation(
        "backend is not there, and then it is",
        (peer(post(b"hello", target=b"/down") + GET), answer(OK)),
        ("502 ours", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "early answer, and the body goes on",
        (peer(post(b"hello")[:-2]), answer(LONG), peer(b"lo" + NEXT), answer(b"hello")),
        ("200 hello",),
        ("POST /p hello",),
        "closed",
    ),
]
REFUSED = [
    Conversation("half a head", (peer(GET[:-1]),), connections=0),
    Conversation("bad head", (peer(BAD + GET),), ("400 ours",), (), "closed", 0),
    Conversation(
        "bad head behind a good one",
        (peer(GET + BAD + NEXT), answer(OK), answer(OK)),
        ("200 ok", "400 ours"),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "bad head behind a refused one",
        (peer(ask(b"GET /no") + BAD),),
        ("403 ours", "400 ours"),
        (),
        "closed",
        0,
    ),
    Conversation("empty line in front", (peer(b"\r\n" + GET),), ("400 ours",), (), "closed", 0),
    Conversation(
        "line feeds", (peer(GET.replace(b"\r\n", b"\n")),), ("400 ours",), (), "closed", 0
    ),
    Conversation(
        "empty line between two requests",
        (peer(GET), answer(OK), peer(b"\r\n" + NEXT)),
        ("200 ok", "400 ours"),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "body longer than its length",
        (peer(post(b"hello") + b"!" + NEXT), answer(OK)),
        ("200 ok", "400 ours"),
        ("POST /p hello",),
        "closed",
    ),
    Conversation(
        "head too large", (peer(GET),), ("431 ours",), (), "closed", 0, Settings(max_head_bytes=40)
    ),
    Conversation(
        "second head too large",
        (peer(GET + ask(b"GET /" + b"b" * 40)), answer(OK)),
        ("200 ok", "431 ours"),
        ("GET /a",),
        "closed",
        settings=Settings(max_head_bytes=60),
    ),
    Conversation(
        "body announced too large",
        (peer(post(b"hello") + NEXT),),
        ("413 ours",),
        (),
        "closed",
        0,
        Settings(max_body_bytes=4),
    ),
    Conversation(
        "chunks too large",
        (peer(chunked(b"")), peer(b"3\r\nabc\r\n2\r\nde\r\n" + ABC)),
        ("413 ours",),
        (),
        "closed",
        1,
        Settings(max_body_bytes=4),
    ),
    Conversation(
        "chunks as large as they may be",
        (peer(chunked(b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n")), answer(OK)),
        ("200 ok",),
        ("POST /c abcd",),
        settings=Settings(max_body_bytes=4),
    ),
    Conversation(
        "broken chunk",
        (peer(chunked(b"")), peer(b"3\r\nabcX\r\n0\r\n\r\n" + NEXT)),
        ("400 ours",),
        (),
        "closed",
    ),
    Conversation(
        "extension of a chunk",
        (peer(chunked(b"")), peer(b"3;a=b\r\nabc\r\n0\r\n\r\n" + NEXT)),
        ("400 ours",),
        (),
        "closed",
    ),
    Conversation(
        "broken trailer",
        (peer(chunked(b"")), peer(b"0\r\nGET / HTTP/1.1\r\n\r\n" + NEXT)),
        ("400 ours",),
        (),
        "closed",
    ),
    Conversation(
        "chunk broken when the answer has begun",
        (peer(chunked(b"3\r\nabc\r\n")), answer(LONG + b"he"), peer(b"x\r\n"), answer(b"llo")),
        ("200 ...",),
        (),
        "closed",
    ),
    Conversation(
        "refused with its body",
        (peer(post(NEXT, target=b"/no") + GET), answer(OK)),
        ("403 ours", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "refused, and the body comes later",
        (peer(post(NEXT, target=b"/no")[: -len(NEXT)]), peer(NEXT + GET), answer(OK)),
        ("403 ours", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "refused, and the body does not come",
        (peer(post(NEXT, target=b"/no")[:-1]),),
        state="skip",
        connections=0,
    ),
    Conversation(
        "refused, and chunks are not waited for",
        (peer(chunked(b"", target=b"/no")), peer(ABC)),
        ("403 ours",),
        (),
        "closed",
        0,
    ),
    Conversation(
        "refused, and the body is too long to wait for",
        (peer(ask(b"POST /no", b"Content-Length: 65537")), peer(b"x" * 99)),
        ("403 ours",),
        (),
        "closed",
        0,
    ),
    Conversation(
        "refused HEAD",
        (peer(ask(b"HEAD /no") + NEXT), answer(OK)),
        ("403 ours", "200 ok"),
        ("GET /b",),
    ),
    Conversation(
        "refused, and wants to close",
        (peer(ask(b"GET /no", b"Connection: close") + NEXT),),
        ("403 ours",),
        (),
        "closed",
        0,
    ),
    Conversation(
        "peer leaves within a body",
        (peer(post(b"hello")[:-1]), LEAVES),
        (),
        ("POST /p hell...",),
        "exchange",
    ),
    Conversation("peer leaves before the answer", (peer(GET), LEAVES), (), ("GET /a",), "exchange"),
    Conversation(
        "peer leaves within the answer",
        (peer(GET), answer(LONG + b"he"), LEAVES),
        ("200 he...",),
        ("GET /a",),
        "exchange",
    ),
    Conversation(
        "early answer is the last one",
        (peer(post(b"hello")[:-2]), answer(OK), peer(b"lo" + NEXT)),
        ("200 ok",),
        ("POST /p hel...",),
        "closed",
    ),
    Conversation(
        "early answer to chunks",
        (peer(chunked(b"3\r\nabc\r\n")), answer(OK), peer(b"0\r\n\r\n")),
        ("200 ok",),
        ("POST /c abc...",),
        "closed",
    ),
    # What is wrong with the backend.
    Conversation(
        "backend closes without an answer",
        (peer(GET + NEXT), CLOSES, answer(OK)),
        ("502 ours", "200 ok"),
        ("GET /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "backend closes within its head",
        (peer(GET), answer(OK[:20]), CLOSES),
        ("502 ours",),
        ("GET /a",),
    ),
    Conversation(
        "backend closes after an interim answer",
        (peer(GET), answer(b"HTTP/1.1 103 X\r\n\r\n"), CLOSES),
        ("103", "502 ours"),
        ("GET /a",),
    ),
    Conversation(
        "backend closes within a body",
        (peer(GET + NEXT), answer(LONG + b"he"), CLOSES),
        ("200 ...",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "backend closes right behind its head",
        (peer(GET), answer(LONG), CLOSES),
        ("200 ...",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "backend closes within chunks",
        (peer(GET), answer(CHUNKS), answer(ABC[:4]), CLOSES),
        ("200 ...",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "backend closes between chunks",
        (peer(GET), answer(CHUNKS), answer(ABC[:8]), CLOSES),
        ("200 ...",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "backend closes before the last byte",
        (peer(GET), answer(CHUNKS), answer(ABC[:-1]), CLOSES),
        ("200 ...",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "backend breaks its chunks",
        (peer(GET), answer(CHUNKS), answer(b"3\r\nabcX"), answer(ABC)),
        ("200 ...",),
        ("GET /a",),
        "closed",
    ),
    Conversation(
        "backend speaks no HTTP",
        (peer(GET), answer(b"SSH-2.0-x\r\n\r\n")),
        ("502 ours",),
        ("GET /a",),
    ),
    Conversation(
        "backend ends lines with line feeds",
        (peer(GET), answer(b"HTTP/1.1 200 OK\n\nx")),
        ("502 ours",),
        ("GET /a",),
    ),
    Conversation(
        "backend upgrades",
        (peer(GET), answer(b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n")),
        ("502 ours",),
        ("GET /a",),
    ),
    Conversation(
        "backend gives two lengths",
        (peer(GET), answer(LONG[:-2] + b"Content-Length: 6\r\n\r\n")),
        ("502 ours",),
        ("GET /a",),
    ),
    Conversation(
        "backend says more than its answer",
        (peer(GET), answer(OK + OK), peer(NEXT), answer(OK)),
        ("200 ok", "200 ok"),
        ("GET /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "backend sends a body to HEAD",
        (peer(ask(b"HEAD /a")), answer(OK), peer(NEXT), answer(OK)),
        ("200", "200 ok"),
        ("HEAD /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "backend speaks unasked",
        (peer(GET), answer(OK), answer(OK), peer(NEXT), answer(LONG)),
        ("200 ok", "200 ..."),
        ("GET /a", "GET /b"),
        "exchange",
        2,
    ),
    Conversation(
        "backend closes while idle",
        (peer(GET), answer(OK), CLOSES, peer(NEXT), answer(OK)),
        ("200 ok", "200 ok"),
        ("GET /a", "GET /b"),
        connections=2,
    ),
    Conversation(
        "backend breaks before the body is there",
        (peer(post(b"hello")[:-2]), CLOSES, peer(b"lo" + GET), answer(OK)),
        ("502 ours", "200 ok"),
        ("POST /p hel...", "GET /a"),
        connections=2,
    ),
]
ALL = [pytest.param(case, id=case.id) for case in (*GOOD, *REFUSED)]


def told(driver: Driver) -> list[str]:
    """Give the answers at the peer."""
    raw, at, found = bytes(driver.to_peer), 0, []
    for exchange in driver.exchanges:
        while at < len(raw):
            message = _answer(driver, raw, at, exchange)
            status, at = wire.status_of(message), message.end
            # Whether a body was there when it was broken, so that nobody was told to go on,
            # and how much of an answer went out before it was cut, is a matter of arrival.
            if exchange.peer_error is None or status != 100:
                found.append(_shown(message, exchange, str(status)))
            if status >= 200:
                break
    return found + ([f"{driver.form_error.status} ours"] if driver.form_error else [])


def _answer(driver: Driver, raw: bytes, at: int, exchange: Exchange) -> wire.Message:
    ended = driver.state == "closed" and not exchange.cut
    to_head = exchange.request.method == "HEAD"
    message = wire.read_answer(raw, at, to_head=to_head, strict=True, ended=ended)
    assert message is not None
    return message


def _shown(message: wire.Message, exchange: Exchange, status: str) -> str:
    if exchange.own is not None and not status.startswith("1"):
        return f"{status} ours"
    body = "" if exchange.cut else message.body.decode()
    return f"{status} {body}".strip() + ("" if message.complete else " ..." if not body else "...")


def seen(driver: Driver) -> list[str]:
    """Give the requests at the backend; one whose body was broken is there at most in part."""
    found = []
    for backend in driver.backends:
        raw, at = bytes(backend.sent), 0
        for exchange in backend.exchanges:
            message = wire.read_request(raw, at, strict=True)
            assert message is not None
            at = message.end
            line = message.line.removesuffix(b" HTTP/1.1") + b" " + message.body
            if exchange.peer_error is None:
                found.append(line.decode().strip(" ") + ("" if message.complete else "..."))
            else:
                assert not message.complete
    return found


def ends(case: Conversation, driver: Driver) -> None:
    """Check all that came of it."""
    fuzz.check(driver)
    assert told(driver) == list(case.told)
    assert seen(driver) == list(case.seen)
    assert driver.state == case.state


@pytest.mark.parametrize("case", ALL)
def test_conversation_comes_to_its_end(case: Conversation) -> None:
    driver = fuzz.play(script(case))
    ends(case, driver)
    fuzz.check_with_h11(driver)
    assert len(driver.backends) == case.connections


@pytest.mark.parametrize("case", ALL)
def test_conversation_is_the_same_byte_by_byte(case: Conversation) -> None:
    driver = fuzz.play(script(case).byte_by_byte())
    ends(case, driver)
    fuzz.check_with_h11(driver)


@pytest.mark.parametrize("case", ALL)
def test_conversation_is_the_same_wherever_it_is_cut(case: Conversation) -> None:
    for at, step in enumerate(case.steps):
        for cut in range(1, len(step.data)):
            halves = Step(step.letter, step.data[:cut]), Step(step.letter, step.data[cut:])
            steps = (*case.steps[:at], *halves, *case.steps[at + 1 :])
            ends(case, fuzz.play(Script(case.settings, steps)))


def test_there_are_enough_conversations() -> None:
    ids = [case.id for case in (*GOOD, *REFUSED)]
    assert len(ids) == len(set(ids)) >= 60
    assert len(REFUSED) >= len(GOOD)


# The gate alone.


def gate_with(data: bytes = b"", max_head_bytes: int = 16 * KIB) -> HttpGate:
    """A gate that has received something."""
    gate = HttpGate(max_head_bytes)
    assert bytes(gate.receive(data)) == b""
    return gate


def admitted(data: bytes, max_body_bytes: int = 1 << 20, *, closes: bool = False) -> HttpGate:
    """A gate whose request was let through, with an empty head for the backend."""
    gate = gate_with(data)
    gate.limit_body(max_body_bytes)
    gate.admit(b"", "the-id", Extras(), closes=closes)
    return gate


def test_nothing_is_there_at_first() -> None:
    gate = gate_with()
    assert gate.is_idle
    assert gate.wants_bytes
    assert not gate.has_request()
    assert not gate.request_is_complete
    assert not gate.response_is_complete
    assert not gate.keeps_connection
    assert not gate.backend_is_reusable


def test_one_byte_ends_the_idleness() -> None:
    gate = gate_with(b"G")
    assert not gate.is_idle
    assert not gate.has_request()


@pytest.mark.parametrize("raw", [post(b"hello"), chunked(ABC), GET + NEXT, post(b"hel") + NEXT])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_no_byte_goes_on_before_the_request_is_admitted(raw: bytes, size: int) -> None:
    gate = HttpGate(16 * KIB)
    for at in range(0, len(raw), size):
        assert bytes(gate.receive(raw[at : at + size])) == b""
    gate.limit_body(100)
    given = gate.admit(b"HEAD", "the-id", Extras(), closes=False)
    assert given.startswith(b"HEAD")
    assert b"GET" not in given


def test_body_without_a_limit_set_is_too_long() -> None:
    gate = gate_with(post(b"h"))
    with pytest.raises(HttpError) as caught:
        gate.admit(b"", "the-id", Extras(), closes=False)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("raw", "most", "fits"),
    [
        pytest.param(post(b"hello"), 5, True, id="as long as it may be"),
        pytest.param(GET, 0, True, id="no body"),
        pytest.param(chunked(ABC), 0, True, id="chunks say it later"),
        pytest.param(post(b"hello"), 4, False, id="one byte more"),
        pytest.param(post(b"h"), 0, False, id="none allowed"),
        pytest.param(ask(b"POST /", b"Content-Length: 999999999999999"), 1 << 40, False, id="huge"),
    ],
)
def test_announced_length_is_held_against_the_limit(raw: bytes, most: int, fits: bool) -> None:
    gate = gate_with(raw)
    if fits:
        gate.limit_body(most)
    else:
        with pytest.raises(HttpError) as caught:
            gate.limit_body(most)
        assert (caught.value.status, caught.value.code) == (413, "body_too_large")


def test_payload_counts_against_the_limit_and_framing_does_not() -> None:
    gate = admitted(chunked(b""), 4)
    for byte in b"abcd":
        assert bytes(gate.receive(b"000001\r\n%c\r\n" % byte)) == b"1\r\n%c\r\n" % byte
    with pytest.raises(HttpError) as caught:
        gate.receive(b"1\r\ne\r\n")
    assert caught.value.status == 413


@pytest.mark.parametrize("raw", [post(b"hello"), chunked(ABC)])
def test_skipped_body_is_given_to_nobody(raw: bytes) -> None:
    gate = HttpGate(16 * KIB)
    for at in range(len(raw)):
        assert bytes(gate.receive(raw[at : at + 1])) == b""
        if gate.has_request():
            gate.skip()
    assert gate.request_is_complete
    gate.next_request()
    assert gate.is_idle


def test_skipping_leaves_what_is_behind_the_body() -> None:
    gate = gate_with(post(b"hello") + NEXT)
    gate.skip()
    gate.skip()
    gate.next_request()
    assert gate.request is not None
    assert gate.request.path == "/b"


@pytest.mark.parametrize("broken", [b"4\nabcd", b"1\r\naX", b"0\r\nX\r\n", b"x\r\n", b"0\n"])
def test_skipped_body_that_is_broken_has_no_end(broken: bytes) -> None:
    gate = gate_with(chunked(broken))
    gate.skip()
    for more in (b"\r\n0\r\n\r\n", b"0\r\n\r\n", GET):
        gate.receive(more)
        gate.skip()
        assert not gate.request_is_complete


def test_nothing_of_one_request_is_left_for_the_next() -> None:
    gate = gate_with(ask(b"HEAD /a", b"Connection: x", b"Content-Length: 1", body=b"x") + NEXT)
    gate.limit_body(1)
    gate.admit(b"", "first", Extras((("X-A", "b"),)), closes=True)
    gate.answer(LONG)
    assert gate.response_is_complete
    assert not gate.keeps_connection
    gate.next_request()
    assert gate.response is None
    assert not gate.request_is_complete or gate.has_request()
    assert not gate.backend_is_reusable
    gate.limit_body(0)
    assert gate.admit(b"", "second", Extras(), closes=False) == b""
    given = bytes(gate.answer(OK))
    assert b"first" not in given
    assert b"x-a" not in given
    assert b"connection" not in given
    assert given.endswith(b"ok")
    assert gate.keeps_connection


def test_what_is_sent_ahead_stops_at_64_kib_and_goes_on() -> None:
    gate = admitted(GET)
    gate.receive(NEXT)
    while gate.wants_bytes:
        gate.receive(b"x" * 16 * KIB)
    assert 64 * KIB <= held_bytes(gate) <= 81 * KIB
    gate.answer(OK)
    gate.next_request()
    assert gate.request is not None
    assert gate.request.path == "/b"


def test_body_is_not_kept() -> None:
    gate = admitted(ask(b"POST /", b"Content-Length: 1000000"))
    for _ in range(10):
        assert len(gate.receive(b"x" * 100_000)) == 100_000
        assert held_bytes(gate) < KIB
        assert gate.wants_bytes
    assert gate.request_is_complete


@pytest.mark.parametrize("max_head_bytes", [100, 64 * KIB])
@pytest.mark.parametrize("size", [1, 1000, 64 * KIB])
def test_head_without_an_end_is_not_kept_for_ever(max_head_bytes: int, size: int) -> None:
    gate = gate_with(b"GET / HTTP/1.1\r\nX: ", max_head_bytes)

    def send() -> None:
        for _ in range(0, max_head_bytes + size, size):
            gate.receive(b"x" * size)

    with pytest.raises(HttpError) as caught:
        send()
    assert caught.value.status == 431
    assert held_bytes(gate) <= max_head_bytes + size


@pytest.mark.parametrize("size", [1000, 64 * KIB])
def test_answer_without_an_end_of_its_head_is_not_kept_for_ever(size: int) -> None:
    gate = admitted(GET)
    gate.answer(b"HTTP/1.1 200 OK\r\nX: ")

    def send() -> None:
        for _ in range(0, 256 * KIB + size, size):
            assert bytes(gate.answer(b"x" * size)) == b""

    with pytest.raises(BackendError):
        send()
    assert held_bytes(gate) <= 257 * KIB + size
    assert gate.response is None


def test_refused_head_cannot_be_tried_again_with_what_is_behind_it() -> None:
    gate = HttpGate(16 * KIB)
    with pytest.raises(HttpError):
        gate.receive(BAD + GET)
    assert not gate.has_request()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(CHUNKS + b"x\r\n", id="chunk"),
        pytest.param(CHUNKS + ABC[:8] + b"1\r\naX", id="second chunk"),
        pytest.param(b"HTTP/1.1 103 X\r\n\r\n" + CHUNKS + b"\r\n", id="behind an interim answer"),
    ],
)
def test_answer_of_which_nothing_was_given_has_not_begun(raw: bytes) -> None:
    gate = admitted(GET)
    with pytest.raises(BackendError):
        gate.answer(raw)
    assert gate.response is None
    assert not gate.backend_is_reusable
    assert not gate.keeps_connection


def test_end_of_the_backend_behind_its_answer_is_no_fault() -> None:
    gate = admitted(GET)
    gate.answer(OK)
    assert bytes(gate.backend_ended()) == b""
    assert gate.keeps_connection
    assert not gate.backend_is_reusable


def test_bytes_behind_an_answer_go_nowhere() -> None:
    gate = admitted(GET)
    assert bytes(gate.answer(OK)).endswith(b"ok")
    assert gate.backend_is_reusable
    assert bytes(gate.answer(b"more")) == b""
    assert gate.keeps_connection
    assert not gate.backend_is_reusable


# h11 on both ends.

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD"])
TARGETS = st.text(st.sampled_from("ab/%2F?=&.~-"), max_size=12).map(
    lambda text: b"/t" + text.encode()
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"X-A", b"x_b", b"Accept", b"Cookie", b"X-Forwarded-For", b"X-Spiffe-Id"]),
        st.text(st.sampled_from("a ;,:\t=\xe4"), max_size=8).map(
            lambda text: text.encode("latin-1")
        ),
    ),
    max_size=5,
)
BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, as it is and as it is written."""

    method: bytes
    target: bytes
    body: bytes
    raw: bytes
    allowed: bool


def _framed(pieces: list[bytes], *, as_chunks: bool) -> tuple[bytes, bytes]:
    """Give the header that tells the body's end, and the body."""
    if as_chunks:
        written = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return b"Transfer-Encoding: chunked", written + b"0\r\n\r\n"
    body = b"".join(pieces)
    return b"Content-Length: %d" % len(body), body


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A request that is right."""
    method, target, pieces = draw(METHODS), draw(TARGETS), draw(BODIES)
    allowed = draw(st.booleans())
    target = target if allowed else b"/no" + target
    length, written = _framed(pieces, as_chunks=draw(st.booleans()))
    fields = [name + b":" + value for name, value in draw(FIELDS)]
    raw = ask(method + b" " + target, *fields, length, body=written)
    return Sent(method, target, b"".join(pieces), raw, allowed)


def read_requests(raw: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Read with h11 as a server, to the last byte; each request must be whole."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    if raw:  # nothing would be the end
        server.receive_data(raw)
    while (event := server.next_event()) is not h11.NEED_DATA:
        assert isinstance(event, h11.Request)
        assert dict(event.headers.raw_items())[b"x-spiffe-id"].startswith(b"spiffe://example.org/")
        body = b""
        while not isinstance(part := server.next_event(), h11.EndOfMessage):
            assert isinstance(part, h11.Data)
            body += part.data
        yield event.method, event.target, body
        server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        server.send(h11.EndOfMessage())
        server.start_next_cycle()


def cut(raw: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut into pieces of these sizes, again and again."""
    at, count = 0, 0
    while at < len(raw):
        yield raw[at : at + sizes[count % len(sizes)]]
        at += sizes[count % len(sizes)]
        count += 1


@bounded
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(1, 200), min_size=1))
def test_backend_gets_the_admitted_requests_and_nothing_else(
    sent: list[Sent], sizes: list[int]
) -> None:
    driver = Driver(Settings())
    for piece in cut(b"".join(one.raw for one in sent), sizes):
        driver.peer_sends(piece)
    allowed = [one for one in sent if one.allowed]
    for _ in allowed:
        driver.backend_sends(b"HTTP/1.1 204 X\r\n\r\n")
    fuzz.check(driver)
    if all(one.allowed or not one.body or b"chunked" not in one.raw for one in sent):
        raw = bytes(driver.backends[0].sent) if driver.backends else b""
        assert len(driver.backends) == bool(allowed)
        assert list(read_requests(raw)) == [(one.method, one.target, one.body) for one in allowed]
        assert driver.state == "head"


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, bytes, bytes]:
    """Status, body and bytes of an answer; with some interim ones before it."""
    status, pieces = draw(st.sampled_from([200, 206, 404, 500])), draw(BODIES)
    length, written = _framed(pieces, as_chunks=draw(st.booleans()))
    raw = b"HTTP/1.1 103 X\r\nLink: a\r\n\r\n" * draw(st.integers(0, 2))
    raw += b"HTTP/1.1 %d X\r\nX-A: b\r\n%b\r\n\r\n%b" % (status, length, written)
    return status, b"".join(pieces), raw


def read_answers(raw: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    """Read that many answers with h11 as a client, to the last byte."""
    for _ in range(count):
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(raw)
        status, body = 0, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
        yield status, body
        raw = client.trailing_data[0]
    assert raw == b""


@bounded
@given(st.lists(answers(), min_size=1, max_size=4), st.lists(st.integers(1, 200), min_size=1))
def test_peer_gets_the_answers_of_the_backend_and_nothing_else(
    given: list[tuple[int, bytes, bytes]], sizes: list[int]
) -> None:
    driver = Driver(Settings())
    driver.peer_sends(GET * len(given))
    for _, _, raw in given:
        for piece in cut(raw, sizes):
            driver.backend_sends(piece)
    fuzz.check(driver)
    expected = [(status, body) for status, body, _ in given]
    assert list(read_answers(bytes(driver.to_peer), len(given))) == expected
    assert len(driver.backends) == 1
