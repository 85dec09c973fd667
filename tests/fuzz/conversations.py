"""Whole conversations through the gate: what both sides send, and all that may come of it.

Each must come to the same end however its bytes are cut into pieces. So where it is a matter of
arrival what goes on before a breach, head and body come in two steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuzz.script import Script, Settings, Step

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

    @property
    def script(self) -> Script:
        """Give it as the driver plays it."""
        return Script(self.settings, self.steps)


GOOD = [
    Conversation(
        "extension and padding of chunks",
        (peer(chunked(b'2;a="b"\r\nab\r\n1 \r\nc\r\n0;d\r\n\r\n')), answer(OK)),
        ("200 ok",),
        ("POST /c abc",),
    ),
    Conversation(
        "extension and padding of the backend's chunks",
        (peer(GET), answer(CHUNKS + b"2;a=b\r\nok\r\n0  \r\n\r\n")),
        ("200 ok",),
        ("GET /a",),
    ),
    Conversation(
        "offers of an upgrade",
        (peer(ask(b"GET /a", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings")), answer(OK)),
        ("200 ok",),
        ("GET /a",),
    ),
    Conversation("the server as a whole", (peer(ask(b"OPTIONS *")),), ("200 ours",), connections=0),
    Conversation(
        "empty line in front", (peer(b"\r\n" + GET), answer(OK)), ("200 ok",), ("GET /a",)
    ),
    Conversation(
        "empty line between two requests",
        (peer(GET), answer(OK), peer(b"\r\n" + NEXT), answer(OK)),
        ("200 ok", "200 ok"),
        ("GET /a", "GET /b"),
    ),
    Conversation(
        "empty line behind a body, and another request at once",
        (peer(post(b"hello") + b"\r\n" + NEXT), answer(OK), answer(OK)),
        ("200 ok", "200 ok"),
        ("POST /p hello", "GET /b"),
    ),
    Conversation(
        "one half of an empty line, then another",
        (peer(b"\r\n\r"), peer(b"\n\r\n" + GET), answer(OK)),
        ("200 ok",),
        ("GET /a",),
    ),
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
        "backend answers before the peer has gone on",
        (peer(post(b"hello", b"Expect: 100-continue")[:-5]), answer(OK), peer(b"hello")),
        ("100", "200 ok"),
        ("POST /p...",),
        "closed",
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
        "peer goes on while its request waits",
        (peer(post(b"hello", target=b"/wait")[:-2]), peer(b"lo" + NEXT), answer(OK), answer(OK)),
        ("200 ok", "200 ok"),
        ("POST /wait hello", "GET /b"),
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
    *(
        Conversation(
            f"extension of a chunk with {name}",
            (peer(chunked(b"")), peer(line + b"abc\r\n0\r\n\r\n" + NEXT)),
            ("400 ours",),
            (),
            "closed",
        )
        for name, line in (
            ("a bare line feed", b"3;a\n"),
            ("a bare carriage return", b"3;a\rb\r\n"),
            ("an open quote", b'3;a="b\r\n'),
        )
    ),
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
    Conversation(
        "line feeds", (peer(GET.replace(b"\r\n", b"\n")),), ("400 ours",), (), "closed", 0
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
        "refused after a wait",
        (peer(post(NEXT, target=b"/wait/no") + GET), answer(b""), answer(OK)),
        ("403 ours", "200 ok"),
        ("GET /a",),
    ),
    Conversation(
        "chunks too large, and they have come while they waited",
        (peer(chunked(ABC, target=b"/wait")), answer(b"")),
        ("413 ours",),
        (),
        "closed",
        1,
        Settings(max_body_bytes=2),
    ),
    Conversation(
        "peer leaves while its request waits",
        (peer(post(b"hello", target=b"/wait")), LEAVES, answer(OK)),
        (),
        (),
        "wait",
        0,
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
