"""A second reading of HTTP/1.1, kept apart from the product's: what the gate took and what it gave.

`read` goes through raw bytes with plain string methods where the gate has llhttp and patterns.
Not strict, it tells what a message says that the gate has accepted; strict, it takes only the one
spelling that the gate writes, so a byte of one side that came through to the other is an error.
A body that breaks its framing ends there and is called broken; a head that does is a `WireError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_NO_TEXT = frozenset([*range(9), *range(10, 32), 127])  # all controls but the tab
_WRITTEN = re.compile(
    rb"(?:[!#$%&'*+.^_`|~0-9a-z-]+: (?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?\r\n)*"
)
_WRITTEN_SIZE = re.compile(rb"0|[1-9a-f][0-9a-f]{0,7}")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_MAX_SIZE_LINE_BYTES = 4096
_MAX_SIZE_DIGITS = 8
_MAX_TRAILER_BYTES = 8192


class WireError(AssertionError):
    """Bytes that are no message, or not as the gate writes one."""


@dataclass(slots=True)
class Message:
    """One message, or what is there of it."""

    line: bytes
    headers: list[tuple[bytes, bytes]]  # names in lower case
    start: int
    end: int = 0  # where the next message begins, when this one is complete
    body: bytes = b""
    complete: bool = False
    broken: bool = False
    names: list[bytes] = field(default_factory=list)

    def values(self, name: bytes) -> list[bytes]:
        """Give all values of a field."""
        return [value for field, value in self.headers if field == name]

    def value(self, name: bytes) -> bytes | None:
        """Give the value of a field that may be there once."""
        if name not in self.names:
            return None
        if self.names.count(name) > 1:
            raise WireError(f"more than one {name!r}")
        return self.headers[self.names.index(name)][1]

    def options(self) -> set[bytes]:
        """Give what the Connection fields name."""
        if b"connection" not in self.names:
            return {b""}
        listed = b",".join(self.values(b"connection")).split(b",")
        return {option.strip(b" \t").lower() for option in listed}


def behind_empty_lines(raw: bytes, at: int) -> int:
    """Return where something else than an empty line begins."""
    while raw[at : at + 2] == b"\r\n":
        at += 2
    return at


def read_head(raw: bytes, start: int, *, strict: bool = False) -> Message | None:
    """Give the head that begins at `start`, None if its end is not there."""
    end = raw.find(b"\r\n\r\n", start)
    if end < 0:
        return None
    line, *fields = raw[start:end].split(b"\r\n")
    if strict:
        behind = raw[start + len(line) + 2 : end + 2]
        if not _WRITTEN.fullmatch(behind):
            raise WireError(f"not as the gate writes fields: {behind[:300]!r}")
    headers = [_field(field) for field in fields]
    if _NO_TEXT.intersection(line):
        raise WireError(f"a control character in {line[:200]!r}")
    return Message(line, headers, start, end + 4, names=[name for name, _ in headers])


def _field(text: bytes) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(b":")
    if not colon or not name or not _TOKEN.issuperset(name) or _NO_TEXT.intersection(value):
        raise WireError(f"no field: {text[:200]!r}")
    return name.lower(), value.strip(b" \t")


def read_request(raw: bytes, start: int, *, strict: bool = False) -> Message | None:
    """Give the request that begins at `start`, with what is there of its body."""
    message = read_head(raw, start, strict=strict)
    if message is None:
        return None
    if message.value(b"transfer-encoding") is not None:
        _read_chunks(message, raw, strict=strict)
    else:
        read_length(message, raw, int(message.value(b"content-length") or b"0"))
    return message


def read_answer(
    raw: bytes, start: int, *, to_head: bool, strict: bool = False, ended: bool = False
) -> Message | None:
    """Give the answer that begins at `start`; `ended`: nothing comes behind `raw`."""
    message = read_head(raw, start, strict=strict)
    if message is None:
        return None
    status = status_of(message)
    lengths = message.values(b"content-length")
    if not strict and lengths:  # one that is repeated is that one
        lengths = list({value.strip(b" \t") for value in b",".join(lengths).split(b",")})
    if len(lengths) > 1:
        raise WireError("two lengths")
    length = lengths[0] if lengths else None
    if to_head or status < 200 or status in (204, 304):
        message.complete = True
    elif message.value(b"transfer-encoding") is not None:
        _read_chunks(message, raw, strict=strict)
    elif length is not None:
        read_length(message, raw, int(length))
    else:
        message.body, message.end, message.complete = raw[message.end :], len(raw), ended
    return message


def status_of(message: Message) -> int:
    """Give the status of an answer."""
    version, _, rest = message.line.partition(b" ")
    digits = rest.partition(b" ")[0]
    if version not in (b"HTTP/1.0", b"HTTP/1.1") or len(digits) != 3 or not digits.isdigit():
        raise WireError(f"status line {message.line[:200]!r}")
    return int(digits)


def read_length(message: Message, raw: bytes, length: int) -> None:
    """Read a body of that length."""
    message.body = raw[message.end : message.end + length]
    message.complete = len(message.body) == length
    message.end += len(message.body)


def _read_chunks(message: Message, raw: bytes, *, strict: bool) -> None:
    """Read chunks up to the end, the last byte, or the first breach."""
    start = at = message.end
    pieces = []
    while True:
        line, behind = _line(raw, at)
        digits, message.broken = _size(line, whole=behind is not None)
        message.broken |= not _HEX.issuperset(digits) or len(digits) > _MAX_SIZE_DIGITS
        message.broken |= not digits and (bool(line) or behind is not None)
        if behind is None or message.broken:
            break
        if strict and not _WRITTEN_SIZE.fullmatch(line):
            raise WireError(f"not as the gate writes a size: {line!r}")
        size = int(digits, 16)
        if size == 0:
            _read_trailer(message, raw, behind, strict=strict)
            break
        pieces.append(raw[behind : behind + size])
        at = behind + size + 2
        if raw[behind + size : at] != b"\r\n"[: max(0, len(raw) - behind - size)]:
            message.broken = True
        if message.broken or at > len(raw):
            break
    message.body = b"".join(pieces)
    if not message.complete:
        message.end = len(raw)
    if strict and message.broken:
        raise WireError(f"chunks: {raw[start:][:200]!r}")


def _size(line: bytes, *, whole: bool) -> tuple[bytes, bool]:
    """Return the digits of a chunk's line, and whether what stands behind them is wrong."""
    text = line if whole else line.removesuffix(b"\r")
    held = len(line) + 1 if whole else len(line)  # with the carriage return
    size, semicolon, extension = text.partition(b";")
    wrong = held > _MAX_SIZE_LINE_BYTES or bool(_NO_TEXT.intersection(extension))
    digits = size.rstrip(b" \t")
    wrong |= not digits and bool(size or semicolon)
    is_quoted = is_escaped = False
    for byte in extension:
        if is_escaped:
            is_escaped = False
        elif byte == 0x22:
            is_quoted = not is_quoted
        else:
            is_escaped = is_quoted and byte == 0x5C
    # A line that ends, or has its carriage return, ends outside of quotes.
    return digits, wrong or (is_quoted and (whole or text != line))


def _line(raw: bytes, at: int) -> tuple[bytes, int | None]:
    """Give the line at `at` without its end, and where the next one begins, if it ends.

    A line feed without its carriage return stays in the line, which makes it a wrong one.
    """
    end = raw.find(b"\n", at)
    if end < 0:
        return raw[at:], None
    if end > at and raw[end - 1] == 0x0D:
        return raw[at : end - 1], end + 1
    return raw[at : end + 1], end + 1


def _read_trailer(message: Message, raw: bytes, at: int, *, strict: bool) -> None:
    start = at
    while True:
        line, behind = _line(raw, at)
        held = len(raw) if behind is None else behind - 1
        message.broken = held - start > _MAX_TRAILER_BYTES
        if strict and line.removesuffix(b"\r"):
            raise WireError(f"a trailer: {line[:200]!r}")
        if behind is None or message.broken:
            return
        if not line:
            message.complete, message.end = True, behind
            return
        try:
            _field(line)
        except WireError:
            message.broken = True
        if message.broken:
            return
        at = behind
