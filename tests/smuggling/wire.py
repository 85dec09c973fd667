"""The strictest reading of what the backend received: one spelling of everything, or an error.

Not a parser that a server could use: the gate writes every head anew, so whatever is not written
the one way it writes is a byte of the peer that came through. h11, which forgives more, reads the
same bytes beside it, and both must find the same requests.
"""

from __future__ import annotations

import re

from tests.recording_backend import Seen

_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ((?:[!-~\x80-\xff][\t -~\x80-\xff]*)?)")
_SIZE = re.compile(rb"(0|[1-9a-f][0-9a-f]*)\r\n")
_LENGTH = re.compile(rb"0|[1-9][0-9]*")
_FRAMING = (b"content-length", b"transfer-encoding")
# What belongs to one connection, and must not go from one to the next.
_HOP_BY_HOP = {
    b"connection",
    b"http2-settings",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"upgrade",
}


class WireError(ValueError):
    """Bytes that the gate would not have written."""


def read_strictly(raw: bytes) -> list[Seen]:
    """Give the requests in `raw`; the last one may be incomplete, with a head that is whole."""
    requests = []
    while raw:
        head, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            raise WireError(f"half a head: {head[:200]!r}")
        seen = _read_head(head)
        raw = _read_body(seen, rest)
        requests.append(seen)
    return requests


def _read_head(head: bytes) -> Seen:
    line, *fields = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise WireError(f"request line {line[:200]!r}")
    headers = []
    for field in fields:
        parts = _FIELD.fullmatch(field)
        if parts is None:
            raise WireError(f"field {field[:200]!r}")
        headers.append((parts[1].lower(), parts[2]))
    _check_names([name for name, _ in headers])
    return Seen(match[1], match[2], headers)


def _check_names(names: list[bytes]) -> None:
    if names.count(b"host") != 1:
        raise WireError(f"{names.count(b'host')} Host fields")
    if sum(names.count(name) for name in _FRAMING) > 1:
        raise WireError("the length is given twice")
    for name in names:
        plain = name.replace(b"_", b"-")
        if plain in _HOP_BY_HOP or (plain in (*_FRAMING, b"host") and plain != name):
            raise WireError(f"a field {name!r}")


def _read_body(seen: Seen, raw: bytes) -> bytes:
    """Fill in the body, give what is behind it."""
    if codings := seen.values(b"transfer-encoding"):
        if codings != [b"chunked"]:
            raise WireError(f"coding {codings}")
        return _read_chunks(seen, raw)
    lengths = seen.values(b"content-length") or [b"0"]
    if not _LENGTH.fullmatch(lengths[0]):
        raise WireError(f"length {lengths[0][:200]!r}")
    length = int(lengths[0])
    seen.body += raw[:length]
    seen.complete = len(raw) >= length
    return raw[length:]


def _read_chunks(seen: Seen, raw: bytes) -> bytes:
    while match := _SIZE.match(raw):
        size, data = int(match[1], 16), raw[match.end() :]
        seen.body += data[:size]
        if len(data) < size + 2:
            return b""
        if data[size : size + 2] != b"\r\n":
            raise WireError(f"behind a chunk: {data[size : size + 20]!r}")
        raw = data[size + 2 :]
        if size == 0:
            seen.complete = True
            return raw
    if len(raw) > 10 or b"\n" in raw:
        raise WireError(f"size of a chunk: {raw[:200]!r}")
    return b""
