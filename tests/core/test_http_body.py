"""Bodies: the payload of any framing that is right, at once; an error for any that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.http_body import (
    BodyError,
    BodyReader,
    BodyUntilEnd,
    ChunkedBody,
    FixedBody,
    chunk,
    last_chunk,
)

bounded = settings(max_examples=300, deadline=None, derandomize=True, database=None)
MOST_TRAILER = 8192


def feed(body: BodyReader, data: bytes, piece: int = 1 << 20) -> tuple[bytes, int]:
    """Feed in pieces until the body takes no more; give its payload, and how much it took."""
    payload, at = b"", 0
    while at < len(data) and not body.complete:
        given, taken = body.feed(memoryview(data)[at : at + piece])
        payload += given
        at += taken
        assert taken == min(piece, len(data) - at + taken) or body.complete
    return payload, at


# A body of a given length.


@pytest.mark.parametrize(
    ("length", "data", "payload", "complete"),
    [
        pytest.param(0, b"", b"", True, id="none"),
        pytest.param(5, b"", b"", False, id="nothing yet"),
        pytest.param(5, b"hell", b"hell", False, id="one byte short"),
        pytest.param(5, b"hello", b"hello", True, id="whole"),
        pytest.param(5, b"helloGET /", b"hello", True, id="more behind it"),
        pytest.param(4, b"0\r\n\r\n", b"0\r\n\r", True, id="no chunks are looked for"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 100])
def test_fixed_body_takes_its_length_and_no_byte_more(
    length: int, data: bytes, payload: bytes, complete: bool, piece: int
) -> None:
    body = FixedBody(length)
    assert feed(body, data, piece) == (payload, len(payload))
    assert body.complete is complete
    assert body.end() is complete


def test_fixed_body_takes_nothing_once_it_is_complete() -> None:
    body = FixedBody(2)
    feed(body, b"ab")
    given, taken = body.feed(memoryview(b"cd"))
    assert (bytes(given), taken) == (b"", 0)


def test_body_until_the_end_takes_everything_until_the_end() -> None:
    body = BodyUntilEnd()
    assert feed(body, b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 3)[0].endswith(b"OK\r\n\r\n")
    assert not body.complete
    assert body.end()
    assert body.complete


# Chunks.


@pytest.mark.parametrize(
    ("data", "payload", "behind"),
    [
        pytest.param(b"0\r\n\r\n", b"", b"", id="empty"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", id="one chunk"),
        pytest.param(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc", b"", id="two chunks"),
        pytest.param(b"2\r\nab\r\n0\r\n\r\nGET / H", b"ab", b"GET / H", id="more behind it"),
        pytest.param(b"0\r\n\r\n\r\n", b"", b"\r\n", id="an empty line behind it"),
        pytest.param(b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b"", id="line ends as data"),
        pytest.param(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", b"", id="a last chunk as data"),
        pytest.param(b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", b"", id="upper case"),
        pytest.param(b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", b"", id="lower case"),
        pytest.param(b"00000002\r\nab\r\n00\r\n\r\n", b"ab", b"", id="zeros in front"),
        pytest.param(b"1\r\na\r\n00000000\r\n\r\n", b"a", b"", id="eight zeros"),
        pytest.param(b"1\r\na\r\n0\r\nX: y\r\n\r\n", b"a", b"", id="trailer"),
        pytest.param(b"0\r\nX:\r\ny:  z\t\xe4\r\n\r\nG", b"", b"G", id="two trailers"),
        pytest.param(b"2 \r\nab\r\n0\r\n\r\n", b"ab", b"", id="space behind the size"),
        pytest.param(b"2\t \r\nab\r\n0 \r\n\r\nG", b"ab", b"G", id="white space behind both"),
        pytest.param(b"2;a=b\r\nab\r\n0\r\n\r\n", b"ab", b"", id="extension"),
        pytest.param(b"2 ; a = b\r\nab\r\n0\r\n\r\n", b"ab", b"", id="spaced extension"),
        pytest.param(b"2;\r\nab\r\n0;a;b=c\r\n\r\nG", b"ab", b"G", id="extension of the last"),
        pytest.param(b'2;a="x;\\"0";b=\xe4\r\nab\r\n0\r\n\r\n', b"ab", b"", id="quoted extension"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_chunks_are_taken_up_to_the_last_one(
    data: bytes, payload: bytes, behind: bytes, piece: int
) -> None:
    body = ChunkedBody()
    assert feed(body, data, piece) == (payload, len(data) - len(behind))
    assert body.complete
    assert body.end()


BROKEN = [
    pytest.param(b"\r\n", id="empty line for a size"),
    pytest.param(b"\n", id="line feed for a size"),
    pytest.param(b" 5\r\nhello\r\n", id="space before the size"),
    pytest.param(b"+5\r\nhello\r\n", id="plus"),
    pytest.param(b"-5\r\nhello\r\n", id="minus"),
    pytest.param(b"0x5\r\nhello\r\n", id="0x"),
    pytest.param(b"5_0\r\n", id="underscore"),
    pytest.param(b"g\r\n", id="no digit"),
    pytest.param(b"5h\r\nhello\r\n", id="letter behind the size"),
    pytest.param(b"000000005\r\nhello\r\n", id="nine digits"),
    pytest.param(b"100000000\r\n", id="4 GiB"),
    pytest.param(b"FFFFFFFFFFFFFFFF1\r\n", id="over 64 bits"),
    pytest.param(b"5 5\r\nhello\r\n", id="space inside of the size"),
    pytest.param(b"5 a=b\r\nhello\r\n", id="extension without a semicolon"),
    pytest.param(b"; a=b\r\nhello\r\n", id="extension without a size"),
    pytest.param(b"5;a\nhello\r\n", id="extension ends with a line feed"),
    pytest.param(b"5;a\rb\r\nhello\r\n", id="carriage return in an extension"),
    pytest.param(b"5;a\x00b\r\nhello\r\n", id="NUL in an extension"),
    pytest.param(b'5;a="b\r\nhello\r\n', id="quote that is not closed in its line"),
    pytest.param(b'5;a="b\\"\r\nhello\r\n', id="quote that is closed by an escaped one"),
    pytest.param(b"5;" + b"a" * 4096 + b"\r\nhello\r\n", id="extension of 4 KiB"),
    pytest.param(b"5" + b" " * 4096 + b"\r\nhello\r\n", id="padding of 4 KiB"),
    pytest.param(b"5\nhello\r\n", id="size ends with a line feed"),
    pytest.param(b"5\rhello\r\n", id="size ends with a carriage return"),
    pytest.param(b"5\r\r\nhello\r\n", id="two carriage returns"),
    pytest.param(b"5\x00\r\nhello\r\n", id="NUL"),
    pytest.param(b"5\r\nhelloX\r\n", id="data longer than its size"),
    pytest.param(b"5\r\nhello\n", id="data ends with a line feed"),
    pytest.param(b"5\r\nhello\rX", id="data ends with a carriage return"),
    pytest.param(b"5\r\nhell\r\n0\r\n\r\n", id="data shorter than its size"),
    pytest.param(b"5\r\nhello0\r\n\r\n", id="no line end behind the data"),
    pytest.param(b"1\r\na\r\n\r\n0\r\n\r\n", id="empty line between chunks"),
    pytest.param(b"1\r\na\r\nxyz\r\n", id="second size is none"),
    pytest.param(b"0\n\r\n", id="last chunk with a line feed"),
    pytest.param(b"0\r\n\n", id="line feed ends it"),
    pytest.param(b"0\r\nX: y\n\r\n", id="trailer with a line feed"),
    pytest.param(b"0\r\nX: y\r\n\n", id="line feed behind the trailer"),
    pytest.param(b"0\r\nX\r\n\r\n", id="trailer without a colon"),
    pytest.param(b"0\r\n: y\r\n\r\n", id="trailer without a name"),
    pytest.param(b"0\r\nX : y\r\n\r\n", id="trailer with a space before the colon"),
    pytest.param(b"0\r\nX: y\r\n z\r\n\r\n", id="folded trailer"),
    pytest.param(b"0\r\nX: \x00\r\n\r\n", id="trailer with a NUL"),
    pytest.param(b"0\r\nX: a\rb\r\n\r\n", id="trailer with a carriage return"),
    pytest.param(b"0\r\nGET / HTTP/1.1\r\n\r\n", id="a request for a trailer"),
]


@pytest.mark.parametrize("data", BROKEN)
@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_chunk_with_two_readings_is_an_error(data: bytes, piece: int) -> None:
    body = ChunkedBody()
    with pytest.raises(BodyError):
        feed(body, data, piece)
    assert not body.complete


@pytest.mark.parametrize("data", BROKEN)
def test_error_comes_with_the_same_byte_however_it_is_fed(data: bytes) -> None:
    """That is the first byte that no right body could have there, and the last one looked at."""

    def fails(piece: int, count: int) -> bool:
        try:
            feed(ChunkedBody(), data[:count], piece)
        except BodyError:
            return True
        return False

    counts = [count for count in range(len(data) + 1) if count < 64 or count > len(data) - 16]
    assert [fails(1, count) for count in counts] == [fails(1000, count) for count in counts]


@pytest.mark.parametrize("data", BROKEN)
@pytest.mark.parametrize("piece", [1, 1000])
def test_broken_body_never_becomes_complete(data: bytes, piece: int) -> None:
    body = ChunkedBody()
    with pytest.raises(BodyError):
        feed(body, data, piece)
    for more in (b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"\n0\r\n\r\n", b"X: y\r\n\r\n"):
        with pytest.raises(BodyError):
            body.feed(memoryview(more))
        assert not body.complete
        assert not body.end()


def test_body_that_stops_before_its_last_byte_is_not_whole() -> None:
    whole = b"3\r\nabc\r\n1\r\nd\r\n0\r\nX: y\r\n\r\n"
    for count in range(len(whole)):
        body = ChunkedBody()
        payload, _ = feed(body, whole[:count])
        assert not body.end()
        assert b"abcd".startswith(payload)


def test_payload_is_given_as_soon_as_it_is_there() -> None:
    body = ChunkedBody()
    assert feed(body, b"5\r\nhe") == (b"he", 5)
    assert feed(body, b"l") == (b"l", 1)
    assert feed(body, b"lo\r\n1\r\n!") == (b"lo!", 8)


@pytest.mark.parametrize("piece", [1, 100, 100_000])
def test_trailer_may_have_8_kib_and_no_more(piece: int) -> None:
    field = b"X: " + b"y" * 1019 + b"\r\n"
    assert len(field) * 8 == MOST_TRAILER
    fits = b"0\r\n" + field * 7 + b"X: " + b"y" * 1017 + b"\r\n\r\n"
    assert feed(ChunkedBody(), fits, piece) == (b"", len(fits))
    with pytest.raises(BodyError):
        feed(ChunkedBody(), b"0\r\n" + field * 8 + b"X", piece)


@pytest.mark.parametrize("start", [b"", b"0\r\n"], ids=["size", "trailer"])
def test_line_without_an_end_is_not_kept_for_ever(start: bytes) -> None:
    body = ChunkedBody()
    body.feed(memoryview(start))
    with pytest.raises(BodyError):
        body.feed(memoryview(b"5;" + b"5" * MOST_TRAILER))


@pytest.mark.parametrize("piece", [7, 1000, 64 * 1024, 1 << 20])
@pytest.mark.parametrize(
    ("data", "fits"),
    [
        pytest.param(b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", True, id="20000 bytes, one each"),
        pytest.param(b"4\r\nabcd\r\n" * 60_000 + b"0\r\n\r\n", True, id="four bytes each"),
        pytest.param(b"1\r\na\r\n" * 60_000 + b"0\r\n\r\n", False, id="60000 bytes, one each"),
        pytest.param(b"00000001\r\na\r\n" * 20_000 + b"0\r\n\r\n", False, id="zeros in front"),
        pytest.param(
            (b"1;" + b"a" * 4000 + b"\r\nb\r\n") * 20 + b"0\r\n\r\n", False, id="extensions"
        ),
        pytest.param(
            b"1\r\na\r\n" * 25_000 + b"f000\r\n" + b"x" * 0xF000 + b"\r\n0\r\n\r\n",
            False,
            id="what comes later does not pay for it",
        ),
    ],
)
def test_framing_may_not_be_most_of_a_body(data: bytes, fits: bool, piece: int) -> None:
    body = ChunkedBody()
    if fits:
        feed(body, data, piece)
        assert body.complete
    else:
        with pytest.raises(BodyError):
            feed(body, data, piece)
        assert not body.complete


def test_trusted_side_may_flush_every_byte() -> None:
    body = ChunkedBody(is_trusted=True)
    assert feed(body, b"00000001\r\na\r\n" * 60_000 + b"0\r\n\r\n")[0] == b"a" * 60_000
    assert body.complete
    for broken in (b"1;a\n", b"1\na", b"1\r\nab", b"1;" + b"a" * 4096 + b"\r\n"):
        with pytest.raises(BodyError):
            ChunkedBody(is_trusted=True).feed(memoryview(broken))


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A payload, and one of its many spellings."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    written = b""
    for one in chunks:
        size = draw(
            st.sampled_from([b"%x", b"%X", b"%08x", b"%x  ", b"%x;a", b'%x ;a="\t"'])
        ) % len(one)
        written += size + b"\r\n" + one + b"\r\n"
    trailer = draw(st.sampled_from([b"", b"x-a: b\r\n", b"A:\r\nB: c\r\n"]))
    return b"".join(chunks), written + b"0\r\n" + trailer + b"\r\n"


@bounded
@given(chunked_bodies(), st.binary(max_size=20), st.integers(1, 50))
def test_every_spelling_gives_its_payload(
    body: tuple[bytes, bytes], behind: bytes, piece: int
) -> None:
    payload, written = body
    assert feed(ChunkedBody(), written + behind, piece) == (payload, len(written))


@bounded
@given(
    st.lists(st.sampled_from([*b'0123aF\r\n;: x"\\']), max_size=30).map(bytes), st.integers(1, 9)
)
def test_any_bytes_come_to_the_same_verdict_however_they_are_fed(data: bytes, piece: int) -> None:
    def verdict(piece: int) -> tuple[bytes, int, bool] | None:
        body = ChunkedBody()
        try:
            return *feed(body, data, piece), body.complete
        except BodyError:
            return None

    assert verdict(piece) == verdict(len(data) + 1) == verdict(1)


# What we write.


@pytest.mark.parametrize(
    ("payload", "written"),
    [
        pytest.param(b"", b"", id="nothing is no chunk: an empty one would be the last"),
        pytest.param(b"a", b"1\r\na\r\n", id="one byte"),
        pytest.param(b"x" * 255, b"ff\r\n" + b"x" * 255 + b"\r\n", id="hexadecimal"),
    ],
)
def test_payload_is_written_as_one_chunk(payload: bytes, written: bytes) -> None:
    assert bytes(chunk(payload)) == bytes(chunk(memoryview(payload))) == written


@bounded
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_what_is_written_is_read_again(payloads: list[bytes]) -> None:
    written = b"".join(bytes(chunk(one)) for one in payloads) + last_chunk()
    assert feed(ChunkedBody(), written) == (b"".join(payloads), len(written))
