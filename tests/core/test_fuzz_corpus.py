"""The fuzz target over what was found with it, and under hypothesis; and that it would notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import gate, wire
from tests.fuzz.conversations import CHUNKS, GET, GOOD, OK, REFUSED, Conversation, chunked, post
from tests.fuzz.driver import Driver
from tests.fuzz.invariants import MARKER, check
from tests.fuzz.script import MARK, Script, Settings

bounded = settings(max_examples=400, deadline=None, derandomize=True, database=None)
CORPUS = sorted((Path(gate.__file__).parent / "corpus").iterdir())
DENIED = post(MARKER, b"X-A: " + MARKER, target=b"/no")


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name[:12])
def test_corpus_holds_no_surprise(file: Path) -> None:
    gate.run_thoroughly(file.read_bytes())


def test_corpus_is_small() -> None:
    assert 50 <= len(CORPUS) <= 150
    assert sum(file.stat().st_size for file in CORPUS) <= 200 * 1024


# Scripts of hypothesis: parts of messages, in any order and cut anywhere.

PARTS = [
    *(b"GET /a", b"POST /b", b"HEAD /no", b"POST /down", b"GET /health", b"OPTIONS /c", b"PUT "),
    *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404 X\r\n"),
    *(b"HTTP/1.1 103 \r\n\r\n", b"HTTP/1.1 204 \r\n", b"HTTP/1.1 304 \r\n", b"HTTP/1.1 101 \r\n"),
    *(b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n"),
    *(b"\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n", b"Upgrade: h2c\r\n", b"Connection: upgrade\r\n"),
    *(b"Origin: https://x\r\n", b"X_Session-Id: y\r\n", b"X-Request-Id: z\r\n", b'3 ;a="b"\r\n'),
    *(b"Connection: close\r\n", b"Connection: x-a\r\n", b"Expect: 100-continue\r\n", b"X_A: b\r\n"),
    *(b"X-Spiffe-Id: evil\r\n", b"x_forwarded_for: evil\r\n", b"Origin: null\r\n", b": ", b"\n"),
    *(b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nX-A: b\r\n\r\n", b";a\r\n", b"x7Refused"),
    *(GET, OK, CHUNKS, DENIED, post(b"hello"), chunked(b"3\r\nabc\r\n0\r\n\r\n")),
]
STEPS = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=3)), max_size=8).map(b"".join)
SCRIPTS = st.tuples(
    st.binary(min_size=2, max_size=2),
    st.lists(st.tuples(st.sampled_from(b"PpBbEPB"), STEPS), max_size=6),
).map(lambda parts: parts[0] + b"".join(MARK + bytes([kind]) + data for kind, data in parts[1]))


@bounded
@given(SCRIPTS)
def test_no_script_of_messages_holds_a_surprise(script: bytes) -> None:
    gate.run_thoroughly(script)


@bounded
@given(st.binary(max_size=300))
def test_no_bytes_hold_a_surprise(data: bytes) -> None:
    gate.run_thoroughly(data)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in (*GOOD, *REFUSED)])
@pytest.mark.parametrize("first", [0x01, 0x0E, 0x12, 0x40])
def test_no_setting_holds_a_surprise(case: Conversation, first: int) -> None:
    for second in range(4):
        check(gate.play(Script(Settings.parse(first, second), case.steps)))


# That it would notice.


def played() -> Driver:
    """A conversation that is right: one admitted request, one refused one, one more."""
    driver = Driver(Settings())
    driver.peer_sends(post(b"hello") + DENIED + GET)
    driver.backend_sends(OK)
    driver.backend_sends(OK)
    return driver


def test_what_is_right_is_let_pass() -> None:
    driver = played()
    assert [exchange.backend is not None for exchange in driver.exchanges] == [True, False, True]
    check(driver)
    gate.check_with_h11(driver)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"hello", b"hallo", id="another body"),
        pytest.param(b"hello", b"hell", id="shorter body"),
        pytest.param(b"hello", b"hello!", id="longer body"),
        pytest.param(b"POST /p", b"POST /q", id="another path"),
        pytest.param(b"POST /p", b"GET /p", id="another method"),
        pytest.param(b"GET /a HTTP/1.1", b"GET /a HTTP/1.0", id="another version"),
        pytest.param(b"host: 127", b"Host: 127", id="a name as the peer wrote it"),
        pytest.param(b"host: 127", b"host:127", id="a line as the peer wrote it"),
        pytest.param(b"x-spiffe-id: ", b"x-spiffe-id: x", id="another identity"),
        pytest.param(b"x-spiffe-id: ", b"x_spiffe_id: a\r\nx-spiffe-id: ", id="one more identity"),
        pytest.param(b"x-forwarded-client-cert: ", b"x: ", id="no certificate"),
        pytest.param(b"https", b"http", id="another protocol"),
        pytest.param(b"x-request-id", b"connection: close\r\nx-request-id", id="hop-by-hop"),
        pytest.param(b"content-length: 5", b"transfer-encoding: chunked", id="another framing"),
        pytest.param(b"GET /a", DENIED + b"GET /a", id="the refused request"),
        pytest.param(b"hello", b"hello" + MARKER, id="bytes of the refused one"),
    ],
)
def test_wrong_byte_at_the_backend_is_noticed(before: bytes, after: bytes) -> None:
    driver = played()
    sent = bytes(driver.backends[0].sent)
    assert before in sent
    driver.backends[0].sent[:] = sent.replace(before, after, 1)
    with pytest.raises(AssertionError):
        check(driver)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"ok", b"no", id="another body"),
        pytest.param(b"\r\n\r\nok", b"\r\n\r\nokok", id="a byte behind it"),
        pytest.param(b"200 OK", b"201 OK", id="another status"),
        pytest.param(b"403 Forbidden", b"200 OK", id="no refusal"),
        pytest.param(b"x-request-id: made-by-us\r\n", b"", id="no request ID"),
        pytest.param(b"content-length: 2", b"connection: close\r\ncontent-length: 2", id="close"),
        pytest.param(b"content-length: 2", b"content-length: 2\r\nx-a: b", id="one more field"),
        pytest.param(b"content-length: 2", b"Content-Length: 2", id="as the backend wrote it"),
    ],
)
def test_wrong_byte_at_the_peer_is_noticed(before: bytes, after: bytes) -> None:
    driver = played()
    told = bytes(driver.to_peer)
    assert before in told
    driver.to_peer[:] = told.replace(before, after, 1)
    with pytest.raises((AssertionError, ValueError)):
        check(driver)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n\r\n", id="name in capitals"),
        pytest.param(b"GET / HTTP/1.1\r\na:b\r\n\r\n", id="no space"),
        pytest.param(b"GET / HTTP/1.1\r\na: b \r\n\r\n", id="space behind"),
        pytest.param(b"GET / HTTP/1.1\r\na : b\r\n\r\n", id="space before the colon"),
        pytest.param(b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n", id="folded"),
        pytest.param(b"GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n", id="line feed"),
        pytest.param(b"GET /\x00 HTTP/1.1\r\na: b\r\n\r\n", id="NUL"),
    ],
)
def test_reader_takes_only_what_the_gate_writes(raw: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.read_request(raw, 0, strict=True)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"3;a\r\nabc\r\n0\r\n\r\n", id="extension"),
        pytest.param(b"03\r\nabc\r\n0\r\n\r\n", id="zero in front"),
        pytest.param(b"A\r\n0123456789\r\n0\r\n\r\n", id="capitals"),
        pytest.param(b"3\r\nabcd\r\n0\r\n\r\n", id="too long"),
        pytest.param(b"3\r\nabc\n0\r\n\r\n", id="line feed"),
        pytest.param(b"0\r\na: b\r\n\r\n", id="trailer"),
        pytest.param(b"\r\n", id="no size"),
    ],
)
def test_reader_takes_only_the_chunks_that_the_gate_writes(chunks: bytes) -> None:
    raw = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
    with pytest.raises(wire.WireError):
        wire.read_request(raw, 0, strict=True)


def test_every_input_is_a_script() -> None:
    assert Script.parse(b"").steps[0].data == b""
    assert [step.letter for step in Script.parse(b"\0\0a\xffBb\xff\xffzc\xffE").steps] == [*"PBPPE"]
