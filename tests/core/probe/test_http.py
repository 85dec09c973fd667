"""The bytes of a probe's request, and what is made of the bytes of an answer."""

from __future__ import annotations

import pytest

from sidecar.core.probe.http import AnswerError, AnswerReader, request_bytes, shown_text
from sidecar.core.probe.report import ProbeRequest
from sidecar.core.probe.target import ProbeTarget

TARGET = ProbeTarget.parse("https://host:6701/a?b=c")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def head_and_body(request: ProbeRequest) -> tuple[list[str], bytes]:
    head, _, body = request_bytes(request, "id-1").partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), body


def read(*pieces: bytes, method: str = "GET") -> tuple[AnswerReader, bytes]:
    """Feed pieces, one a second."""
    reader = AnswerReader(method, "id-1")
    return reader, b"".join([reader.feed(piece, at) for at, piece in enumerate(pieces)])


# The request.


def test_get_asks_for_path_and_query_and_closes() -> None:
    lines, body = head_and_body(ProbeRequest(TARGET))
    assert lines[0] == "GET /a?b=c HTTP/1.1"
    assert {"Host: host:6701", "X-Request-Id: id-1", "Connection: close"} <= set(lines)
    assert not [line for line in lines if line.startswith("Content-")]
    assert body == b""


def test_body_has_its_length_and_its_kind() -> None:
    lines, body = head_and_body(ProbeRequest(TARGET, method="POST", body=b'{"a": 1}'))
    assert {"Content-Length: 8", "Content-Type: application/json"} <= set(lines)
    assert body == b'{"a": 1}'


@pytest.mark.parametrize("body", [b"\x00\xff", b"{", b'"\xff"', b"[" * 100_000])
def test_what_is_no_json_is_not_called_json(body: bytes) -> None:
    lines, _ = head_and_body(ProbeRequest(TARGET, method="POST", body=body))
    assert "Content-Type: application/octet-stream" in lines


def test_post_without_a_body_says_that_it_has_none() -> None:
    lines, _ = head_and_body(ProbeRequest(TARGET, method="POST"))
    assert "Content-Length: 0" in lines


def test_headers_of_the_operator_replace_ours_whatever_their_case() -> None:
    given = (("host", "models.example"), ("content-type", "text/x"), ("X-Two", "1"), ("X-Two", "2"))
    lines, _ = head_and_body(ProbeRequest(TARGET, method="POST", headers=given, body=b"{}"))
    names = [line.partition(":")[0].lower() for line in lines[1:]]
    assert names.count("host") == names.count("content-type") == 1
    assert names.count("x-two") == 2
    assert "host: models.example" in lines


# The answer.


@pytest.mark.parametrize(
    ("pieces", "payload"),
    [
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"], b"abc", id="a length"),
        pytest.param([b"HTTP/1.1 204 No\r\n\r\n"], b"", id="a status without a body"),
        pytest.param([CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n"], b"abc", id="chunks"),
        pytest.param([CHUNKED + b"1\r\na\r\n0\r\nX: y\r\n\r\n"], b"a", id="a trailer"),
        pytest.param(
            [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"],
            b"a",
            id="an interim answer before it",
        ),
        pytest.param(
            [b"HT", b"TP/1.1 200 OK\r", b"\nContent-Le", b"ngth: 2\r\n\r", b"\na", b"b"],
            b"ab",
            id="cut anywhere",
        ),
    ],
)
def test_whole_answer_is_read(pieces: list[bytes], payload: bytes) -> None:
    reader, read_payload = read(*pieces)
    answer = reader.answer()
    assert answer is not None
    assert (read_payload, reader.complete, answer.size) == (payload, True, len(payload))


def test_answer_to_head_has_no_body_whatever_its_length() -> None:
    reader, _ = read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", method="HEAD")
    assert reader.complete


def test_answer_without_a_length_is_whole_at_the_end_only() -> None:
    reader, payload = read(b"HTTP/1.1 200 OK\r\n\r\n", b"ab", b"cd")
    assert payload == b"abcd"
    assert not reader.complete
    assert reader.end()


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param([], id="no byte"),
        pytest.param([b"HTTP/1.1 20"], id="part of a head"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"], id="part of a length"),
        pytest.param([CHUNKED, b"3\r\nabc\r\n"], id="chunks without the last one"),
    ],
)
def test_end_before_the_end_is_none(begun: list[bytes]) -> None:
    reader, _ = read(*begun)
    assert not reader.end()
    assert reader.has_begun is bool(begun)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9\r\n", id="another protocol"),
        pytest.param(b"\x00\x00\x12\x04\x00", id="HTTP/2"),
        pytest.param(b"HTTP/2 200\r\n\r\n", id="another version"),
        pytest.param(b"HTTP/1.1 200 OK\nX: y\n\n", id="bare line feeds"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="a length that is none"),
        pytest.param(b"HTTP/1.1 101 Up\r\n\r\n", id="an upgrade"),
        pytest.param(b"HTTP/1.1 100 C\r\n\r\n" * 101, id="interim answers without end"),
        pytest.param(CHUNKED + b"zz\r\n", id="a chunk's size that is none"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 60_000, id="a head without end"),
    ],
)
def test_what_is_no_answer_is_told(data: bytes) -> None:
    with pytest.raises(AnswerError) as caught:
        read(data)
    assert "request" not in str(caught.value)


def test_pace_is_measured_by_arrival() -> None:
    reader = AnswerReader("GET", "id-1")
    reader.feed(CHUNKED, 10.0)
    for at in (11.0, 11.5, 13.0):
        reader.feed(b"1\r\na\r\n", at)
    reader.feed(b"0\r\n\r\n", 20.0)
    answer = reader.answer()
    assert answer is not None
    assert (answer.pieces, answer.spread_seconds, answer.longest_gap_seconds) == (3, 2.0, 1.5)


def test_our_request_id_is_known_again() -> None:
    for value, is_echoed in (("id-1", True), ("other", False), ("0f" * 16, True)):
        head = f"HTTP/1.1 200 OK\r\nX-Request-Id: {value}\r\nContent-Length: 0\r\n\r\n"
        reader, _ = read(head.encode())
        answer = reader.answer()
        assert answer is not None
        assert (answer.request_id, answer.is_echoed) == (value, is_echoed)


def test_nothing_of_an_answer_reaches_a_terminal_as_it_is() -> None:
    evil = b"\x9b31m"
    reader, _ = read(
        b"HTTP/1.1 404 Not"
        + evil
        + b"\r\nContent-Type: a"
        + evil
        + b"\r\nX-Request-Id: b"
        + evil
        # A length that is not reached: all that is told is told before the end, too.
        + b"\r\nContent-Length: 99\r\n\r\n\x1b[2Jgone\r\n\x07"
        + "\u202e".encode()
    )
    answer = reader.answer()
    assert answer is not None
    texts = (answer.reason, answer.content_type, answer.request_id, answer.text)
    assert all(text and text.isprintable() for text in texts)


def test_body_is_shown_of_a_refusal_only() -> None:
    reader, _ = read(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
    answer = reader.answer()
    assert answer is not None
    assert answer.text == ""


def test_long_text_is_cut() -> None:
    assert shown_text(b"a\n\n b" * 1000).startswith("a ba ba b")
    assert len(shown_text(b"x" * 5000)) < 400
