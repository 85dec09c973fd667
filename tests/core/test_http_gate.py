"""The gate: whole conversations, however their bytes are cut, and h11 on both ends of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_body import Buffer
from sidecar.core.http_gate import HttpGate
from sidecar.core.http_headers import Extras
from tests.fuzz import gate as fuzz
from tests.fuzz import wire
from tests.fuzz.conversations import (
    ABC,
    BAD,
    CHUNKS,
    GET,
    GOOD,
    LONG,
    NEXT,
    OK,
    REFUSED,
    Conversation,
    ask,
    chunked,
    post,
)
from tests.fuzz.driver import Driver, Exchange, held_bytes
from tests.fuzz.invariants import check
from tests.fuzz.script import Script, Settings, Step

bounded = settings(max_examples=200, deadline=None, derandomize=True, database=None)
KIB = 1024
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
    check(driver)
    assert told(driver) == list(case.told)
    assert seen(driver) == list(case.seen)
    assert driver.state == case.state


@pytest.mark.parametrize("case", ALL)
def test_conversation_comes_to_its_end(case: Conversation) -> None:
    driver = fuzz.play(case.script)
    ends(case, driver)
    fuzz.check_with_h11(driver)
    assert len(driver.backends) == case.connections


@pytest.mark.parametrize("case", ALL)
def test_conversation_is_the_same_byte_by_byte(case: Conversation) -> None:
    driver = fuzz.play(case.script.byte_by_byte())
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


@pytest.mark.parametrize("size", [1, 17, 1 << 20])
def test_backend_may_give_100_interim_answers_and_no_more(size: int) -> None:
    interim = b"HTTP/1.1 102 X\r\n\r\n"
    gate = admitted(GET)
    assert b"".join(bytes(gate.answer(one)) for one in cut(interim * 100, [size])) == interim * 100
    assert bytes(gate.answer(OK)).endswith(b"ok")
    with pytest.raises(BackendError):
        list(map(admitted(GET).answer, cut(interim * 101, [size])))


def test_interim_answers_are_counted_for_each_request() -> None:
    gate = admitted(GET + NEXT)
    for _ in range(2):
        gate.answer(b"HTTP/1.1 100 X\r\n\r\n" * 60 + OK)
        gate.next_request()
        if gate.has_request():
            gate.admit(b"", "the-id", Extras(), closes=False)
    assert gate.is_idle


def test_tiny_chunks_of_a_peer_are_too_much_and_those_of_the_backend_are_not() -> None:
    tiny = b"1\r\na\r\n" * 30_000 + b"0\r\n\r\n"
    gate = admitted(chunked(b""))
    with pytest.raises(HttpError) as caught:
        gate.receive(tiny)
    assert caught.value.status == 400
    gate = admitted(GET)
    gate.answer(CHUNKS)
    gate.answer(tiny)
    assert gate.response_is_complete


def test_close_can_be_asked_for_until_the_answer_begins() -> None:
    gate = admitted(GET)
    gate.close_after_answer()
    assert b"connection: close" in bytes(gate.answer(OK))
    assert not gate.keeps_connection


def test_end_of_the_backend_behind_its_answer_is_no_fault() -> None:
    gate = admitted(GET)
    gate.answer(OK)
    assert bytes(gate.backend_ended()) == b""
    assert gate.keeps_connection
    assert not gate.backend_is_reusable


@pytest.mark.parametrize("size", [1, 10, 64])
def test_gate_keeps_nothing_of_the_buffer_it_is_fed_from(size: int) -> None:
    buffer = memoryview(bytearray(64))
    gate = HttpGate(16 * KIB)

    def fed(raw: bytes, take: Callable[[memoryview], Buffer]) -> bytes:
        out = b""
        for at in range(0, len(raw), size):
            piece = raw[at : at + size]
            buffer[: len(piece)] = piece
            out += bytes(take(buffer[: len(piece)]))
            buffer[:] = bytes(64)
        return out

    assert fed(chunked(b""), gate.receive) == b""
    gate.limit_body(100)
    given = bytes(gate.admit(b"", "the-id", Extras(), closes=False))
    given += fed(ABC + NEXT, gate.receive)
    asked = wire.read_request(chunked(given), 0)
    told = wire.read_answer(fed(CHUNKS + ABC, gate.answer), 0, to_head=False, strict=True)
    assert asked is not None
    assert told is not None
    assert (asked.body, asked.complete) == (told.body, told.complete) == (b"abc", True)
    gate.next_request()
    assert gate.request is not None
    assert gate.request.path == "/b"


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
    for _ in sent:
        driver.backend_sends(b"HTTP/1.1 204 X\r\n\r\n")
    check(driver)
    # Behind refused chunks that had not come yet the connection is closed.
    reached = sent[: len(driver.exchanges)]
    assert len(reached) == len(sent) or not (reached[-1].allowed or b"Length" in reached[-1].raw)
    expected = [(one.method, one.target, one.body) for one in reached if one.allowed]
    assert len(driver.backends) == bool(expected)
    assert [one for each in driver.backends for one in read_requests(bytes(each.sent))] == expected


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
    check(driver)
    expected = [(status, body) for status, body, _ in given]
    assert list(read_answers(bytes(driver.to_peer), len(given))) == expected
    assert len(driver.backends) == 1


# Empty lines before a request.


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_empty_lines_are_ignored_up_to_a_bound(piece: int) -> None:
    def fed(lines: int) -> HttpGate:
        gate = HttpGate(4096)
        raw = b"\r\n" * lines + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for at in range(0, len(raw), piece):
            gate.receive(raw[at : at + piece])
        return gate

    assert fed(512).has_request()
    with pytest.raises(HttpError, match="empty lines"):
        fed(513)


@pytest.mark.parametrize("piece", [1, 3, 65536])
def test_nothing_but_empty_lines_is_no_request_and_no_fault(piece: int) -> None:
    gate = HttpGate(4096)
    raw = b"\r\n" * 2000
    for at in range(0, len(raw), piece):
        gate.receive(raw[at : at + piece])
        assert gate.is_idle
    assert gate.sends_nothing_else
