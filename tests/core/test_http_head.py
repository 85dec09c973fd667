"""Heads: one spelling of each thing is read, and everything else is refused with its reason."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_head import (
    RequestHead,
    ResponseHead,
    connection_options,
    head_end,
    parse_request,
    parse_response,
)

bounded = settings(max_examples=300, deadline=None, derandomize=True, database=None)
HOST = b"Host: models.example.org"
GET = b"GET /v1/models HTTP/1.1"


def head(line: bytes, *fields: bytes) -> bytes:
    """A head of these lines."""
    return b"\r\n".join((line, *fields, b"", b""))


def request(*fields: bytes, line: bytes = b"POST /v1/chat HTTP/1.1") -> RequestHead:
    """A request with a Host."""
    return parse_request(head(line, HOST, *fields))


def response(
    *fields: bytes, line: bytes = b"HTTP/1.1 200 OK", to_head: bool = False
) -> ResponseHead:
    """An answer."""
    return parse_response(head(line, *fields), to_head_request=to_head)


# Where a head ends.


@pytest.mark.parametrize(
    ("data", "end"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"GET / HTTP/1.1", None, id="half a line"),
        pytest.param(b"GET / HTTP/1.1\r\n", None, id="one line"),
        pytest.param(b"a\r\nb\r\n\r", None, id="all but the last byte"),
        pytest.param(b"a\r\r\n", None, id="stray carriage return"),
        pytest.param(b"a\r\nb\r\n\r\n", 8, id="whole"),
        pytest.param(b"a\r\n\r\nGET /", 5, id="more behind it"),
        pytest.param(b"\r\n\r\n", 4, id="empty line in front"),
        pytest.param(b"a\r\n\r\n\n", 5, id="line feed behind it"),
        pytest.param(b"x" * 16 + b"\r\n\r\n", 20, id="as long as it may be"),
    ],
)
def test_head_ends_with_the_first_empty_line(data: bytes, end: int | None) -> None:
    assert head_end(bytearray(data), 0, 20) == end


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"\n", 400, id="line feed first"),
        pytest.param(b"a\n", 400, id="line feed"),
        pytest.param(b"a\n\n", 400, id="two line feeds"),
        pytest.param(b"a\r\nb\n\r\n", 400, id="in the middle"),
        pytest.param(b"a\r\n\nb", 400, id="empty line without carriage return"),
        pytest.param(b"a\r\n\rb\n", 400, id="behind a carriage return and a letter"),
        pytest.param(b"x" * 19 + b"\n", 400, id="line feed as the last byte that may be"),
        pytest.param(b"x" * 20, 431, id="full, and no end"),
        pytest.param(b"x" * 17 + b"\r\n\r\n", 431, id="one byte too long"),
        pytest.param(b"x" * 20 + b"\n", 431, id="line feed behind the limit"),
        pytest.param(b"x" * 1000 + b"\r\n\r\n", 431, id="far too long"),
    ],
)
def test_what_can_be_no_head_is_refused_before_its_end(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        head_end(bytearray(data), 0, 20)
    assert caught.value.status == status
    assert caught.value.code == ("bad_request" if status == 400 else "head_too_large")


def verdict(pieces: list[bytes]) -> tuple[int | None, int | None]:
    """Feed pieces as the gate does; give the end, or the status of the refusal."""
    held, scanned = bytearray(), 0
    for piece in pieces:
        held += piece
        try:
            end = head_end(held, scanned, 24)
        except HttpError as exc:
            return None, exc.status
        if end is not None:
            return end, None
        scanned = len(held)
    return None, None


PIECES = st.lists(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n"])).map(b"".join), max_size=12
)


@bounded
@given(PIECES)
def test_end_depends_on_the_bytes_and_not_on_the_pieces(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    single = [whole[at : at + 1] for at in range(len(whole))]
    assert verdict(pieces) == verdict([whole]) == verdict(single)


# Requests that are read.


def test_request_is_what_it_says() -> None:
    lines = (b"pOsT: 1", b"X-Empty:", b"Content-Length:\t 5 \t", b"X-Empty: \xe4\t.")
    found = parse_request(head(b"POST /v1/chat?a=b?c HTTP/1.1", b"HOST: a.b:1", *lines))
    assert found == RequestHead(
        method="POST",
        path="/v1/chat",
        query="?a=b?c",
        minor=1,
        host=b"a.b:1",
        headers=(
            (b"host", b"a.b:1"),
            (b"post", b"1"),
            (b"x-empty", b""),
            (b"content-length", b"5"),
            (b"x-empty", b"\xe4\t."),
        ),
        length=5,
        wants_continue=False,
        wants_close=False,
    )
    assert found.has_body
    assert found.get(b"x-empty") == b""
    assert found.get(b"x-absent") is None


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        pytest.param(b"/", "/", "", id="root"),
        pytest.param(b"/a/b", "/a/b", "", id="path"),
        pytest.param(b"/a?", "/a", "?", id="empty query"),
        pytest.param(b"/a?b=/c?d", "/a", "?b=/c?d", id="query"),
        pytest.param(b"/%2e%2E/a", "/%2e%2E/a", "", id="escapes are kept for the policy to judge"),
        pytest.param(b"//a/../b", "//a/../b", "", id="dots are kept for the policy to judge"),
        pytest.param(b'/"<>\\^`{|}', '/"<>\\^`{|}', "", id="any visible sign"),
        pytest.param(b"http://models.example.org/a?b", "/a", "?b", id="absolute"),
        pytest.param(b"http://models.example.org", "/", "", id="absolute without a path"),
        pytest.param(b"HTTPS://MODELS.example.org/a", "/a", "", id="absolute, other case"),
        pytest.param(b"http://models.example.org//a", "//a", "", id="absolute, two slashes"),
    ],
)
def test_target_is_path_and_query(target: bytes, path: str, query: str) -> None:
    found = request(line=b"GET " + target + b" HTTP/1.1")
    assert (found.path, found.query) == (path, query)


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:6701",
        b"127.0.0.1",
        b"[::1]:6701",
        b"Models.Example.ORG",
        b"a_b-c.d",
    ],
)
def test_host_is_a_name_or_an_address(host: bytes) -> None:
    assert parse_request(head(GET, b"Host: " + host)).host == host


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        pytest.param((), 0, id="none"),
        pytest.param((b"Content-Length: 0",), 0, id="no byte"),
        pytest.param((b"Content-Length: 5",), 5, id="five"),
        pytest.param((b"content-LENGTH:5",), 5, id="case of the name"),
        pytest.param((b"Content-Length: 999999999999999",), 10**15 - 1, id="fifteen digits"),
        pytest.param((b"Transfer-Encoding: chunked",), None, id="chunked"),
        pytest.param((b"Transfer-Encoding:\tCHUNKED ",), None, id="chunked, other case"),
        pytest.param((b"Transfer_Encoding: chunked",), 0, id="a name that only looks like it"),
        pytest.param((b"Content_Length: 7", b"Content-Length: 5"), 5, id="two that look alike"),
    ],
)
def test_length_is_given_once_or_is_none(fields: tuple[bytes, ...], length: int | None) -> None:
    assert request(*fields).length == length


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        pytest.param((b"Expect: 100-continue", b"Content-Length: 1"), True, id="body"),
        pytest.param((b"Expect: 100-Continue", b"Transfer-Encoding: chunked"), True, id="chunked"),
        pytest.param((b"Expect: 100-continue",), False, id="no body to wait with"),
        pytest.param((b"Expect: 100-continue", b"Content-Length: 0"), False, id="empty body"),
        pytest.param((b"Expect:", b"Content-Length: 1"), False, id="expects nothing"),
        pytest.param((b"Content-Length: 1",), False, id="no field"),
    ],
)
def test_peer_waits_with_its_body_when_it_says_so(fields: tuple[bytes, ...], waits: bool) -> None:
    assert request(*fields).wants_continue is waits
    one = request(*(field for field in fields if b"chunked" not in field), line=b"POST / HTTP/1.0")
    assert not one.wants_continue


@pytest.mark.parametrize(
    ("line", "fields", "closes"),
    [
        pytest.param(GET, (), False, id="as 1.1 says"),
        pytest.param(GET, (b"Connection: keep-alive",), False, id="keep-alive"),
        pytest.param(GET, (b"X-Connection: close",), False, id="another field"),
        pytest.param(GET, (b"Connection: closed",), False, id="another option"),
        pytest.param(GET, (b"Connection: close",), True, id="close"),
        pytest.param(GET, (b"Connection: Close",), True, id="case"),
        pytest.param(GET, (b"Connection: x,\tclose ,y",), True, id="in a list"),
        pytest.param(GET, (b"Connection: x", b"Connection: close"), True, id="second field"),
        pytest.param(b"GET / HTTP/1.0", (), True, id="as 1.0 says"),
        pytest.param(b"GET / HTTP/1.0", (b"Connection: keep-alive",), True, id="1.0 keeps nothing"),
    ],
)
def test_connection_closes_when_the_peer_says_so(
    line: bytes, fields: tuple[bytes, ...], closes: bool
) -> None:
    assert request(*fields, line=line).wants_close is closes


UPGRADE = b"Connection: Upgrade, HTTP2-Settings"
SETTINGS = b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"


@pytest.mark.parametrize(
    "offer", [b"h2c", b"TLS/1.2", b"TLS/1.3, h2c", b"HTTP/2.0", b"IRC/6.9", b"x", b""]
)
@pytest.mark.parametrize("connection", [b"Connection: keep-alive", UPGRADE, b"Connection: close"])
@pytest.mark.parametrize(
    ("framing", "length"),
    [
        pytest.param((), 0, id="no body"),
        pytest.param((b"Content-Length: 2",), 2, id="length"),
        pytest.param((b"Transfer-Encoding: chunked",), None, id="chunked"),
    ],
)
def test_upgrade_is_an_offer_and_changes_nothing(
    offer: bytes, connection: bytes, framing: tuple[bytes, ...], length: int | None
) -> None:
    for method in (b"GET", b"POST", b"OPTIONS"):
        line = method + b" /v1/chat HTTP/1.1"
        found = request(connection, b"Upgrade: " + offer, SETTINGS, *framing, line=line)
        assert (found.path, found.length) == ("/v1/chat", length)
        assert not found.wants_websocket


@pytest.mark.parametrize(
    ("line", "value", "wants"),
    [
        pytest.param(GET, b"websocket", True, id="as RFC 6455 says"),
        pytest.param(GET, b"WebSocket", True, id="case"),
        pytest.param(GET, b"h2c, websocket", True, id="one of two offers"),
        pytest.param(GET, b"WebSocket/13 ,h2c", True, id="with a version"),
        pytest.param(GET, b"websocket2, x-websocket, h2c/websocket", False, id="like it"),
        pytest.param(b"GET / HTTP/1.0", b"websocket", False, id="1.0 knows no upgrade"),
    ],
)
def test_websocket_is_known(line: bytes, value: bytes, wants: bool) -> None:
    found = request(b"Connection: Upgrade", b"Upgrade: " + value, line=line)
    assert found.wants_websocket is wants


@pytest.mark.parametrize(
    ("raw", "host", "path"),
    [
        pytest.param(b"GET /health HTTP/1.0\r\n\r\n", b"", "/health", id="no header at all"),
        pytest.param(b"OPTIONS / HTTP/1.0\r\nX: y\r\n\r\n", b"", "/", id="HAProxy's check"),
        pytest.param(b"GET http://a:1/b HTTP/1.0\r\n\r\n", b"a:1", "/b", id="absolute form"),
        pytest.param(b"OPTIONS * HTTP/1.0\r\n\r\n", b"", "*", id="the server as a whole"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"a", "*", id="and in 1.1"),
        pytest.param(
            b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"a", "*", id="as a proxy writes it"
        ),
    ],
)
def test_host_is_not_required_of_1_0_and_options_may_ask_for_all(
    raw: bytes, host: bytes, path: str
) -> None:
    found = parse_request(raw)
    assert (found.host, found.path, found.query) == (host, path, "")


# Requests that are refused.


@pytest.mark.parametrize(
    ("line", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"GET", 400, id="method alone"),
        pytest.param(b"GET /", 400, id="HTTP 0.9"),
        pytest.param(b"GET / ", 400, id="HTTP 0.9 with a space"),
        pytest.param(b"GET / HTTP", 400, id="no version"),
        pytest.param(b"GET / HTTP/1", 505, id="half a version"),
        pytest.param(b"GET / HTTP/1.2", 505, id="HTTP 1.2"),
        pytest.param(b"GET / HTTP/2.0", 505, id="HTTP 2"),
        pytest.param(b"GET / HTTP/3", 505, id="HTTP 3"),
        pytest.param(b"GET / HTTP/0.9", 505, id="HTTP 0.9 by name"),
        pytest.param(b"PRI * HTTP/2.0", 505, id="HTTP 2 preface"),
        pytest.param(b"GET / HTTP/1.10", 400, id="two digits"),
        pytest.param(b"GET / HTTP/11.1", 400, id="two digits in front"),
        pytest.param(b"GET / HTTP/1.1 ", 400, id="space behind"),
        pytest.param(b" GET / HTTP/1.1", 400, id="space in front"),
        pytest.param(b"GET  / HTTP/1.1", 400, id="two spaces"),
        pytest.param(b"GET /  HTTP/1.1", 400, id="two spaces before the version"),
        pytest.param(b"GET\t/ HTTP/1.1", 400, id="tab"),
        pytest.param(b"GET\x0b/ HTTP/1.1", 400, id="vertical tab"),
        pytest.param(b"GET / http/1.1", 400, id="version in lower case"),
        pytest.param(b"GET / HTTPS/1.1", 400, id="another protocol"),
        pytest.param(b"GET / RTSP/1.0", 400, id="RTSP"),
        pytest.param(b"get / HTTP/1.1", 400, id="method in lower case"),
        pytest.param(b"Get / HTTP/1.1", 400, id="method in mixed case"),
        pytest.param(b"M-SEARCH / HTTP/1.1", 400, id="method with a sign"),
        pytest.param(b"GOT / HTTP/1.1", 400, id="no such method"),
        pytest.param(b"GETGETGETGETGETGETGET / HTTP/1.1", 400, id="method of 21 letters"),
        pytest.param(b"\x16\x03\x01\x00\xa5\x01", 400, id="TLS"),
        pytest.param(b"CONNECT models.example.org:443 HTTP/1.1", 400, id="CONNECT"),
        pytest.param(b"CONNECT / HTTP/1.1", 400, id="CONNECT to a path"),
        pytest.param(b"TRACE / HTTP/1.1", 400, id="TRACE"),
        pytest.param(b"GET * HTTP/1.1", 400, id="the server as a whole, and not OPTIONS"),
        pytest.param(b"OPTIONS ** HTTP/1.1", 400, id="two asterisks"),
        pytest.param(b"OPTIONS *?a HTTP/1.1", 400, id="asterisk with a query"),
        pytest.param(b"GET models.example.org HTTP/1.1", 400, id="authority form"),
        pytest.param(b"GET a HTTP/1.1", 400, id="relative"),
        pytest.param(b"GET ?a HTTP/1.1", 400, id="query alone"),
        pytest.param(b"GET /a#b HTTP/1.1", 400, id="fragment"),
        pytest.param(b"GET /a?b#c HTTP/1.1", 400, id="fragment behind the query"),
        pytest.param(b"GET /a b HTTP/1.1", 400, id="space in the path"),
        pytest.param(b"GET /a\x00b HTTP/1.1", 400, id="NUL in the path"),
        pytest.param(b"GET /a\x7fb HTTP/1.1", 400, id="DEL in the path"),
        pytest.param(b"GET /a\tb HTTP/1.1", 400, id="tab in the path"),
        pytest.param(b"GET /a\rb HTTP/1.1", 400, id="carriage return in the path"),
        pytest.param("GET /ä HTTP/1.1".encode(), 400, id="letters that are no ASCII"),
        pytest.param(b"GET ftp://models.example.org/ HTTP/1.1", 400, id="another scheme"),
        pytest.param(b"GET http:/models.example.org/ HTTP/1.1", 400, id="one slash"),
        pytest.param(b"GET http:///a HTTP/1.1", 400, id="absolute, no host"),
        pytest.param(b"GET http://models.example.org?a HTTP/1.1", 400, id="absolute, query alone"),
        pytest.param(b"GET http://models.example.org/a#b HTTP/1.1", 400, id="absolute, fragment"),
        pytest.param(b"GET http://evil.example.org/ HTTP/1.1", 421, id="absolute, another host"),
        pytest.param(b"GET http://models.example.org:80/ HTTP/1.1", 421, id="absolute, a port"),
        pytest.param(b"GET http://u@models.example.org/ HTTP/1.1", 421, id="absolute, a user"),
        pytest.param(b"GET http://models.example.org./ HTTP/1.1", 421, id="absolute, last dot"),
    ],
)
def test_request_line_has_one_spelling(line: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        request(line=line)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param((b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400, id="both"),
        pytest.param((b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400, id="both, turned"),
        pytest.param((b"Content-Length: 0", b"Transfer-Encoding: chunked"), 400, id="both, none"),
        pytest.param((b"Content-Length: 5", b"Content-Length: 5"), 400, id="length twice"),
        pytest.param((b"Content-Length: 5", b"content-length: 6"), 400, id="two lengths"),
        pytest.param((b"Content-Length: 5, 5",), 400, id="list of lengths"),
        pytest.param((b"Content-Length:",), 400, id="empty length"),
        pytest.param((b"Content-Length: +5",), 400, id="plus"),
        pytest.param((b"Content-Length: -5",), 400, id="minus"),
        pytest.param((b"Content-Length: 05",), 400, id="leading zero"),
        pytest.param((b"Content-Length: 00",), 400, id="two zeros"),
        pytest.param((b"Content-Length: 0x5",), 400, id="hexadecimal"),
        pytest.param((b"Content-Length: 5.0",), 400, id="fraction"),
        pytest.param((b"Content-Length: 1e3",), 400, id="exponent"),
        pytest.param((b"Content-Length: 1_0",), 400, id="underscore"),
        pytest.param((b"Content-Length: 5 6",), 400, id="two numbers"),
        pytest.param((b"Content-Length: 5;",), 400, id="semicolon"),
        pytest.param((b"Content-Length: 1000000000000000",), 400, id="sixteen digits"),
        pytest.param((b"Content-Length: 18446744073709551621",), 400, id="over 64 bits"),
        pytest.param((b"Content-Length: \xd9\xa5",), 400, id="digit of another script"),
        pytest.param((b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"), 400, id="twice"),
        pytest.param((b"Transfer-Encoding : chunked",), 400, id="space before the colon"),
        pytest.param((b"Transfer-Encoding\t: chunked",), 400, id="tab before the colon"),
        pytest.param((b"Transfer-Encoding: chunked\rX: y",), 400, id="carriage return alone"),
        pytest.param((b"X: a", b" Transfer-Encoding: chunked"), 400, id="folded line"),
        pytest.param((b"X: a", b"\tb"), 400, id="folded with a tab"),
        pytest.param((b" X: a",), 400, id="folded first line"),
        pytest.param((b"X",), 400, id="no colon"),
        pytest.param((b": a",), 400, id="no name"),
        pytest.param((b"X Y: a",), 400, id="space in the name"),
        pytest.param((b"X\x00: a",), 400, id="NUL in the name"),
        pytest.param((b"X\xe4: a",), 400, id="name that is no ASCII"),
        pytest.param((b"X(Y): a",), 400, id="brackets in the name"),
        pytest.param((b"X: a\x00b",), 400, id="NUL in the value"),
        pytest.param((b"X: a\x7f",), 400, id="DEL in the value"),
        pytest.param((b"X: a\x1b[2J",), 400, id="escape in the value"),
        pytest.param((b"X: a\x0cb",), 400, id="form feed in the value"),
        pytest.param((HOST,), 400, id="the same Host twice"),
        pytest.param((b"Host: other",), 400, id="two Hosts"),
        pytest.param((b"Expect: 200-ok",), 417, id="expects something else"),
        pytest.param((b"Expect: 100-continue, x",), 417, id="expects two things"),
        pytest.param((b"Expect: 100-continue", b"Expect: 100-continue"), 400, id="Expect twice"),
    ],
)
def test_field_with_two_readings_is_refused(fields: tuple[bytes, ...], status: int) -> None:
    with pytest.raises(HttpError) as caught:
        request(*fields)
    assert caught.value.status == status


# llhttp refuses some as no HTTP, what is left is refused as not known.
@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"Transfer-Encoding:", id="empty coding"),
        pytest.param(b"Transfer-Encoding: gzip", id="gzip"),
        pytest.param(b"Transfer-Encoding: gzip, chunked", id="gzip, then chunked"),
        pytest.param(b"Transfer-Encoding: chunked, gzip", id="chunked, then gzip"),
        pytest.param(b"Transfer-Encoding: chunked, chunked", id="chunked twice"),
        pytest.param(b"Transfer-Encoding: identity", id="identity"),
        pytest.param(b"Transfer-Encoding: xchunked", id="longer word"),
        pytest.param(b"Transfer-Encoding: chunked;q=1", id="parameter"),
        pytest.param(b"Transfer-Encoding: chunked,", id="comma behind"),
        pytest.param(b"Transfer-Encoding: ,chunked", id="comma in front"),
        pytest.param(b'Transfer-Encoding: "chunked"', id="quoted"),
        pytest.param(b"Transfer-Encoding: \x0bchunked", id="vertical tab"),
    ],
)
def test_transfer_coding_other_than_chunked_is_refused(field: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        request(field)
    assert caught.value.status in (400, 501)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param((), id="no Host"),
        pytest.param((b"Host:",), id="empty"),
        pytest.param((b"Host: a b",), id="space"),
        pytest.param((b"Host: a, b",), id="list"),
        pytest.param((b"Host: a/b",), id="path"),
        pytest.param((b"Host: http://a",), id="URL"),
        pytest.param((b"Host: u@a",), id="user"),
        pytest.param((b"Host: a:b",), id="port in letters"),
        pytest.param((b"Host: a:",), id="empty port"),
        pytest.param((b"Host: a:123456",), id="port of six digits"),
        pytest.param((b"Host: ::1",), id="address without brackets"),
        pytest.param((b"Host: [::1",), id="half a bracket"),
        pytest.param((b"Host: [::1]x",), id="letter behind the bracket"),
        pytest.param((b"Host: a?b",), id="query"),
        pytest.param((b'Host: "a"',), id="quotes"),
        pytest.param((b"Host: \xe4",), id="no ASCII"),
        pytest.param((b"Host: %61",), id="escape"),
        pytest.param((b"X-Host: a",), id="another field"),
        pytest.param((b"Host : a",), id="space before the colon"),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_request_without_one_plain_host_is_refused(
    fields: tuple[bytes, ...], version: bytes
) -> None:
    if version == b"1.0" and fields in ((), (b"X-Host: a",)):
        assert parse_request(head(b"GET / HTTP/1.0", *fields)).host == b""
        return
    with pytest.raises(HttpError) as caught:
        parse_request(head(b"GET / HTTP/" + version, *fields))
    assert caught.value.status == 400


def test_request_may_have_200_fields() -> None:
    many = [b"X-%d:" % number for number in range(199)]
    assert len(request(*many).headers) == 200
    with pytest.raises(HttpError) as caught:
        request(*many, b"X:")
    assert (caught.value.status, caught.value.code) == (431, "head_too_large")


def test_chunked_in_1_0_is_refused() -> None:
    with pytest.raises(HttpError, match=r"1\.0"):
        request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0")


@bounded
@given(
    st.lists(st.sampled_from([*b"GET / HTTP/1.1:ab\t\x00\xff\r\n", *b"Hh"]), max_size=60).map(bytes)
)
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (parse_request, lambda raw: parse_response(raw, to_head_request=False)):
        with suppress(HttpError, BackendError):
            read(data + b"\r\n\r\n")


@bounded
@given(
    st.lists(
        st.tuples(st.sampled_from([b"X-A", b"x-b", b"X_A"]), st.binary(max_size=8)), max_size=9
    )
)
def test_each_field_is_read_as_it_stands_or_the_head_is_refused(
    fields: list[tuple[bytes, bytes]],
) -> None:
    raw = head(GET, HOST, *(name + b": " + value for name, value in fields))
    try:
        found = parse_request(raw)
    except HttpError:
        assert any(set(value) & {*range(9), *range(10, 32), 127} for _, value in fields)
    else:
        expected = tuple((name.lower(), value.strip(b" \t")) for name, value in fields)
        assert found.headers[1:] == expected


# Answers of the backend.


def test_answer_is_what_it_says() -> None:
    assert response(b"X-A: b", b"Content-Length: 3", line=b"HTTP/1.1 404 Not \xe4 found") == (
        ResponseHead(
            status=404,
            reason=b"Not \xe4 found",
            headers=((b"x-a", b"b"), (b"content-length", b"3")),
            length=3,
            is_chunked=False,
            wants_close=False,
        )
    )


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        pytest.param(b"HTTP/1.1 200 OK", 200, b"OK", id="as usual"),
        pytest.param(b"HTTP/1.1 200 ", 200, b"", id="no reason"),
        pytest.param(b"HTTP/1.1 200", 200, b"", id="no space either"),
        pytest.param(b"HTTP/1.0 599 x y", 599, b"x y", id="1.0"),
    ],
)
def test_status_line_is_read(line: bytes, status: int, reason: bytes) -> None:
    found = response(line=line)
    assert (found.status, found.reason) == (status, reason)


@pytest.mark.parametrize(
    ("line", "fields", "to_head", "length", "is_chunked"),
    [
        pytest.param(200, (b"Content-Length: 7",), False, 7, False, id="length"),
        pytest.param(200, (b"Transfer-Encoding: chunked",), False, None, True, id="chunked"),
        pytest.param(200, (), False, None, False, id="until the end"),
        pytest.param(200, (b"Content-Length: 7",), True, 0, False, id="HEAD, length"),
        pytest.param(200, (), True, 0, False, id="HEAD, until the end"),
        pytest.param(200, (b"Transfer-Encoding: chunked",), True, 0, True, id="HEAD, chunked"),
        pytest.param(204, (), False, 0, False, id="204"),
        pytest.param(204, (b"Content-Length: 7",), False, 0, False, id="204 with a length"),
        pytest.param(304, (b"Content-Length: 7",), False, 0, False, id="304 with a length"),
        pytest.param(304, (), False, 0, False, id="304"),
        pytest.param(205, (b"Content-Length: 0",), False, 0, False, id="205"),
        pytest.param(103, (), False, 0, False, id="103"),
    ],
)
def test_length_of_an_answer_depends_on_the_question(
    line: int, fields: tuple[bytes, ...], to_head: bool, length: int | None, is_chunked: bool
) -> None:
    found = response(*fields, line=b"HTTP/1.1 %d X" % line, to_head=to_head)
    assert (found.length, found.is_chunked) == (length, is_chunked)


@pytest.mark.parametrize(
    "fields", [(b"Content-Length: 5", b"X: y", b"content-length: 5"), (b"Content-Length: 5 ,\t5",)]
)
def test_one_length_of_an_answer_that_is_repeated_is_that_length(fields: tuple[bytes, ...]) -> None:
    found = response(*fields)
    assert found.length == 5
    assert [value for name, value in found.headers if name == b"content-length"] == [b"5"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), "both Content-Length and"),
        ((b"Transfer-Encoding: chunked",) * 2, "two Transfer-Encoding"),
        ((b"Content-Length: 5", b"Content-Length: 6"), "two lengths in Content-Length"),
        ((b"Transfer-Encoding: gzip, chunked",), "is not chunked"),
    ],
)
def test_odd_framing_of_an_answer_is_named(fields: tuple[bytes, ...], named: str) -> None:
    with pytest.raises(BackendError, match=named):
        response(*fields)


@pytest.mark.parametrize(
    ("line", "fields", "closes"),
    [
        pytest.param(b"HTTP/1.1 200 OK", (), False, id="as 1.1 says"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Connection: keep-alive",), False, id="keep-alive"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Connection: Close",), True, id="close"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Connection: a", b"Connection: b, close"), True, id="2"),
        pytest.param(b"HTTP/1.0 200 OK", (b"Connection: keep-alive",), True, id="1.0"),
    ],
)
def test_backend_closes_when_it_says_so(
    line: bytes, fields: tuple[bytes, ...], closes: bool
) -> None:
    assert response(*fields, line=line).wants_close is closes


@pytest.mark.parametrize(
    ("status", "interim"), [(100, True), (199, True), (200, False), (600, False)]
)
def test_final_answers_begin_at_200(status: int, interim: bool) -> None:
    assert response(line=b"HTTP/1.1 %d X" % status).is_interim is interim


def test_upgrade_that_is_only_offered_is_no_upgrade() -> None:
    offered = (b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: 0")
    assert response(*offered, line=b"HTTP/1.1 426 X").status == 426


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        pytest.param(b"", (), id="empty"),
        pytest.param(b"ICY 200 OK", (), id="ICY"),
        pytest.param(b"HTTP/0.9 200 OK", (), id="HTTP 0.9"),
        pytest.param(b"HTTP/1.2 200 OK", (), id="HTTP 1.2"),
        pytest.param(b"HTTP/2 200", (), id="HTTP 2"),
        pytest.param(b"http/1.1 200 OK", (), id="lower case"),
        pytest.param(b"HTTP/1.1  200 OK", (), id="two spaces"),
        pytest.param(b"HTTP/1.1 20 OK", (), id="two digits"),
        pytest.param(b"HTTP/1.1 2000 OK", (), id="four digits"),
        pytest.param(b"HTTP/1.1 099 OK", (), id="below 100"),
        pytest.param(b"HTTP/1.1 200OK", (), id="no space"),
        pytest.param(b"HTTP/1.1 200 O\x00K", (), id="NUL in the reason"),
        pytest.param(b"HTTP/1.1 200 O\rK", (), id="carriage return in the reason"),
        pytest.param(b" HTTP/1.1 200 OK", (), id="space in front"),
        pytest.param(b"GET / HTTP/1.1", (HOST,), id="a request"),
        pytest.param(b"HTTP/1.1 101 X", (b"Upgrade: x", b"Connection: Upgrade"), id="upgrade"),
        pytest.param(b"HTTP/1.1 101 X", (), id="101 alone"),
        pytest.param(b"HTTP/1.1 200 OK", (b"X: a", b" b"), id="folded line"),
        pytest.param(b"HTTP/1.1 200 OK", (b"X : a",), id="space before the colon"),
        pytest.param(b"HTTP/1.1 200 OK", (b"X",), id="no colon"),
        pytest.param(b"HTTP/1.1 200 OK", (b"X: \x00",), id="NUL in a value"),
        pytest.param(b"HTTP/1.1 200 OK", (b"X: a\rY: b",), id="carriage return alone"),
        pytest.param(b"HTTP/1.1 200 OK", (b"X\xe4: b",), id="name that is no ASCII"),
        pytest.param(
            b"HTTP/1.1 200 OK", (b"Content-Length: 5", b"Transfer-Encoding: chunked"), id="both"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK", (b"Content-Length: 5", b"Content-Length: 6"), id="two lengths"
        ),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length: 5, 6",), id="list of two lengths"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length: 5,",), id="list with nothing"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length: 05, 05",), id="list of no lengths"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length: +5",), id="plus"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length:",), id="empty length"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length: x",), id="word for a length"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Content-Length: 1" + b"0" * 20,), id="huge length"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Transfer-Encoding: gzip",), id="gzip"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Transfer-Encoding: gzip, chunked",), id="two codings"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Transfer-Encoding: chunked",) * 2, id="chunked twice"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Transfer-Encoding: identity",), id="identity"),
        pytest.param(b"HTTP/1.1 200 OK", (b"Transfer-Encoding:",), id="empty coding"),
        pytest.param(b"HTTP/1.1 204 X", (b"Content-Length: x",), id="204, word for a length"),
    ],
)
@pytest.mark.parametrize("to_head", [False, True])
def test_answer_with_two_readings_is_refused(
    line: bytes, fields: tuple[bytes, ...], to_head: bool
) -> None:
    with pytest.raises(BackendError):
        response(*fields, line=line, to_head=to_head)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        pytest.param((), set(), id="no field"),
        pytest.param((b"close",), {b"close"}, id="one"),
        pytest.param((b"Keep-Alive,X-A",), {b"keep-alive", b"x-a"}, id="list"),
        pytest.param((b" a ,\tB", b"c"), {b"a", b"b", b"c"}, id="two fields"),
        pytest.param((b",,",), set(), id="commas"),
    ],
)
def test_connection_options_are_all_that_is_named(
    values: tuple[bytes, ...], options: set[bytes]
) -> None:
    headers = tuple((b"connection", value) for value in values)
    assert connection_options(((b"x", b"y"), *headers)) - {b""} == options
