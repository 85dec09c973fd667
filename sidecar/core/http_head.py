"""Bytes of a head -> `RequestHead` or `ResponseHead`, or a verdict; never a repair.

Gets the bytes up to and including the empty line. llhttp parses; around it stand rules of our
own, because two parsers that read one message differently are how a request is smuggled: one
spelling of each thing that says where a message ends or what it is for, everything else is
refused. What the standard lets a server ignore (an offer to upgrade, a missing Host in HTTP/1.0)
is ignored. Opens, forwards and decides nothing.
Specification: RFC 9112 (HTTP/1.1) 2.2 (Message Parsing), 3 (Request Line), 5 (Field Syntax),
6 (Message Body); RFC 9110 (HTTP Semantics) 7.2 (Host), 7.8 (Upgrade), 10.1.1 (Expect).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from sidecar.core.errors import BackendError, HttpError

Headers = tuple[tuple[bytes, bytes], ...]

# The end of a head, or a line feed without its carriage return, whichever comes first.
_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.([01])")
_OTHER_VERSION = re.compile(rb"[!-~]+ [!-~]+ HTTP/(?!1\.[01])[0-9](?:\.[0-9])?")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
FIELD_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")
_AUTHORITY = re.compile(rb"(?:[0-9A-Za-z._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(/[^#]*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,14}")
# As many as nobody sends; thousands of empty ones would take milliseconds to read and write.
MAX_FIELDS = 200
_NO_BODY = {204, 304}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_NO_OPTIONS: frozenset[bytes] = frozenset()
# The target of OPTIONS that asks for the server as a whole (RFC 9112 3.2.4).
ASTERISK = "*"
# Fields of which a second one would make two readings of one message.
_ONCE = frozenset({b"content-length", b"transfer-encoding", b"host", b"expect"})


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One request as it was understood; `headers` have names in lower case, in their order."""

    method: str
    path: str  # as received, without the query; "*" is for OPTIONS alone
    query: str  # with its "?", or empty
    minor: int  # HTTP/1.minor
    host: bytes  # empty if HTTP/1.0 named none
    headers: Headers
    length: int | None  # of the body in bytes; None means chunked
    wants_continue: bool
    wants_close: bool

    @property
    def has_body(self) -> bool:
        """Tell whether a body follows."""
        return self.length != 0

    @property
    def is_repeatable(self) -> bool:
        """Tell whether sending it twice does what sending it once does (RFC 9110 9.2.1, Safe)."""
        return self.method in _SAFE and not self.has_body

    @property
    def wants_websocket(self) -> bool:
        """Tell whether the peer offers WebSocket; of no other offer is an answer expected."""
        # RFC 9110 7.8: an Upgrade in HTTP/1.0 must be ignored.
        return self.minor == 1 and any(
            protocol.partition(b"/")[0].strip(b" \t").lower() == b"websocket"
            for value in self.values(b"upgrade")
            for protocol in value.split(b",")
        )

    def get(self, name: bytes) -> bytes | None:
        """Give the first value of a field."""
        return next((value for field, value in self.headers if field == name), None)

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a field, in their order."""
        return [value for field, value in self.headers if field == name]


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """One answer of the backend as it was understood."""

    status: int
    reason: bytes
    headers: Headers
    length: int | None  # of the body in bytes; None means chunked or until the end
    is_chunked: bool
    wants_close: bool

    @property
    def is_interim(self) -> bool:
        """Tell whether the final answer is still to come (RFC 9110 15.2)."""
        return self.status < 200


def head_end(data: bytearray, start: int, maximum: int) -> int | None:
    """Give where the head ends, None if it goes on; raise `HttpError` on what can be none.

    `start` is how much was looked at before. The verdict depends on the bytes alone and not on
    how they were cut into pieces.
    """
    match = _END.search(data, max(0, start - 3))
    end = match.end() if match else len(data)
    if end > maximum or (match is None and end == maximum):
        raise HttpError(
            431, "head_too_large", f"the request's head has over {maximum} bytes; send less"
        )
    if match is None:
        return None
    if len(match[0]) == 1:
        raise _bad("a line of the head ends without a carriage return")
    return end


def parse_request(head: bytes) -> RequestHead:
    """Read a request's head, or raise `HttpError` with what is wrong with it."""
    line, fields = _lines(head)
    if len(fields) > MAX_FIELDS:
        raise HttpError(431, "head_too_large", f"the request's head has over {MAX_FIELDS} headers")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if _OTHER_VERSION.fullmatch(line):
            raise HttpError(505, "http_version", "expected HTTP/1.1")
        raise _bad("the request line is not METHOD TARGET HTTP/1.1")
    if not all(map(FIELD_LINE.fullmatch, fields)):
        raise _bad("a header line is not NAME: VALUE")
    parser = _Collector()
    try:
        llhttp = httptools.HttpRequestParser(parser)
        llhttp.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer, which a server may ignore; the head has been read whole
    except httptools.HttpParserError as exc:
        raise _bad(f"not HTTP/1.1: {str(exc)[:100]}") from exc
    if not parser.complete or parser.url != match[2]:
        raise _bad("the head is not one request")
    return _request(llhttp.get_method(), match[2], int(match[3]), tuple(parser.headers))


def _request(method: bytes, target: bytes, minor: int, headers: Headers) -> RequestHead:
    values = dict(headers)
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            raise _bad(f"two {name.decode()} headers")
    if method in (b"CONNECT", b"TRACE"):
        raise _bad("CONNECT and TRACE are not served here")
    host, origin_form = _addressed(method, target, values.get(b"host"), minor)
    expect = values.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise HttpError(417, "expectation", "the only Expect that is known is 100-continue")
    path, mark, query = origin_form.partition(b"?")
    length = _request_length(values, minor)
    return RequestHead(
        method=method.decode(),
        path=path.decode(),
        query=(mark + query).decode(),
        minor=minor,
        host=host,
        headers=headers,
        length=length,
        wants_continue=bool(expect) and minor == 1 and length != 0,
        wants_close=minor == 0 or b"close" in connection_options(headers),
    )


def _addressed(method: bytes, target: bytes, host: bytes | None, minor: int) -> tuple[bytes, bytes]:
    """Return host, and path with query; an absolute form must name the host that Host names.

    HTTP/1.0 knows no Host (RFC 9112 3.2: it is required of HTTP/1.1 alone).
    """
    if b"#" in target:
        raise _bad("a fragment in the request target")
    absolute = None if target.startswith(b"/") else _ABSOLUTE.fullmatch(target)
    if host is None and minor == 0:
        host = absolute[1] if absolute else None
    elif host is None:
        raise _bad("expected one Host header with a name or address")
    if host is not None and not _AUTHORITY.fullmatch(host):
        raise _bad("expected one Host header with a name or address")
    if target.startswith(b"/") or (method == b"OPTIONS" and target == ASTERISK.encode()):
        return host or b"", target
    if absolute is None or host is None:
        raise _bad("the request target is not a path")
    if absolute[1].lower() != host.lower():
        raise HttpError(421, "misdirected", "the request target names another host than Host")
    # RFC 9112 3.2.4: an absolute form without a path asks OPTIONS of the server as a whole.
    return host, absolute[2] or (ASTERISK.encode() if method == b"OPTIONS" else b"/")


def _request_length(values: dict[bytes, bytes], minor: int) -> int | None:
    length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
    if coding is None:
        return _length(length, _bad)
    if length is not None:
        raise _bad("both Content-Length and Transfer-Encoding")
    if minor == 0:
        raise _bad("Transfer-Encoding in HTTP/1.0")
    if coding.lower() != b"chunked":
        raise HttpError(501, "transfer_coding", "the only transfer coding that is known is chunked")
    return None


def parse_response(head: bytes, *, to_head_request: bool) -> ResponseHead:
    """Read the head of the backend's answer, or raise `BackendError`."""
    line, fields = _lines(head)
    match = _STATUS_LINE.fullmatch(line)
    if match is None or not all(map(FIELD_LINE.fullmatch, fields)):
        raise _unreadable("its head is not HTTP/1.1")
    head = _with_one_length(line, fields)
    parser = _Collector()
    try:
        llhttp = httptools.HttpResponseParser(parser)
        llhttp.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
        raise _unreadable(str(exc)[:100] or "an upgrade") from exc
    if not parser.complete:
        raise _unreadable("its head is not one answer")
    headers = tuple(parser.headers)
    status = int(match[2])
    if status == 101:
        raise _unreadable("an upgrade that nobody asked for")
    values = dict(headers)
    length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise _unreadable("its Transfer-Encoding is not chunked")
    announced = _length(length, _unreadable)
    return ResponseHead(
        status=status,
        reason=match[3] or b"",
        headers=headers,
        length=_response_length(status, length is None, announced, to_head_request),
        is_chunked=coding is not None,
        wants_close=match[1] == b"0" or b"close" in connection_options(headers),
    )


def _with_one_length(line: bytes, fields: list[bytes]) -> bytes:
    """Return the head of an answer with its length given once, or raise `BackendError`.

    One length that is repeated has one reading (RFC 9112 6.3, 5.); of two ways to give it, an
    intermediary ought to make an error (6.3, 3.).
    """
    lengths = [one for one in fields if one.lower().startswith(b"content-length:")]
    codings = [one for one in fields if one.lower().startswith(b"transfer-encoding:")]
    if len(codings) > 1:
        raise _unreadable("two Transfer-Encoding headers")
    if lengths and codings:
        raise _unreadable("both Content-Length and Transfer-Encoding")
    values = b",".join(one.partition(b":")[2] for one in lengths).split(b",")
    different = {value.strip(b" \t") for value in values}
    if len(values) > 1:
        if len(different) > 1:
            raise _unreadable("two lengths in Content-Length")
        fields = [one for one in fields if one not in lengths]
        fields.append(b"content-length: " + different.pop())
    return b"\r\n".join((line, *fields, b"", b""))


def _response_length(status: int, absent: bool, announced: int, to_head: bool) -> int | None:
    if to_head or status in _NO_BODY or status < 200:
        return 0
    return None if absent else announced


def connection_options(headers: Headers) -> frozenset[bytes]:
    """Give what the Connection headers name, in lower case (RFC 9110 7.6.1)."""
    values = b",".join([value for name, value in headers if name == b"connection"])
    if not values:
        return _NO_OPTIONS
    return frozenset(option.strip(b" \t").lower() for option in values.split(b","))


class _Collector:
    """What llhttp calls back with."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def _lines(head: bytes) -> tuple[bytes, list[bytes]]:
    first, *fields = head[:-4].split(b"\r\n")
    return first, fields


def _length(text: bytes | None, error: Callable[[str], Exception]) -> int:
    if text is None:
        return 0
    if not _LENGTH.fullmatch(text):
        raise error("Content-Length is not a number of bytes")
    return int(text)


def _bad(reason: str) -> HttpError:
    return HttpError(400, "bad_request", reason)


def _unreadable(reason: str) -> BackendError:
    return BackendError(f"the backend's answer cannot be read: {reason}")
