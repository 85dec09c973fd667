"""The bytes of a body, taken from one framing and put into another.

A reader takes bytes as they come and gives the payload in them, and knows where the body ends; a
writer frames payload for the other side. So a chunked body is written anew, chunk for chunk, and
what one side might read differently never reaches it. Nothing is held back: what came is given.
Extensions of chunks, white space behind their sizes and trailers are read and dropped, up to a
bound; a line of them that ends in two ways is an error.
Specification: RFC 9112 (HTTP/1.1) 6 (Message Body), 7.1 (Chunked Transfer Coding); RFC 9110 6.5.1
(Limitations on Use of Trailers).
"""

from __future__ import annotations

import re
from typing import Protocol

from sidecar.core.http_head import FIELD_LINE

Buffer = bytes | memoryview

# Eight digits are 4 GiB less one: no chunk is larger, and no reader's integer overflows.
_SIZE = rb"([0-9a-fA-F]{1,8})[\t ]*"
# An extension is whatever stands behind a semicolon, but a quote that is opened is closed in the
# same line: a reader that takes a quoted line end for text would see another body.
_QUOTED = rb"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"
_EXTENSION = rb"(?:[\t !#-~\x80-\xff]++|\"%b\")*+" % _QUOTED
_SIZE_LINE = re.compile(rb"%b(?:;%b)?\r\n" % (_SIZE, _EXTENSION))
# What can still become such a line.
_SIZE_BEGIN = re.compile(rb"%b(?:\r|;%b(?:\r|\"%b\\?)?)?" % (_SIZE, _EXTENSION, _QUOTED))
_MAX_SIZE_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 8192
# Framing that nobody honest needs: a million chunks of a byte cost their reader seconds.
_MAX_FRAMING_BYTES = 65536
_MAX_FRAMING_SHARE = 2
_LAST_CHUNK = b"0\r\n\r\n"
_NO_SIZE = "a chunk's size is not 1 to 8 hexadecimal digits, with or without an extension"


class BodyError(ValueError):
    """A body that breaks its framing; the text says how."""


class BodyReader(Protocol):
    """Takes a body's bytes."""

    complete: bool

    def feed(self, data: memoryview) -> tuple[Buffer, int]:
        """Give the payload of `data`, and how many of its bytes belong to the body."""

    def end(self) -> bool:
        """Hear that nothing more comes; tell whether the body is whole."""


class FixedBody:
    """A body of a given length."""

    __slots__ = ("_left", "complete")

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = length == 0

    def feed(self, data: memoryview) -> tuple[Buffer, int]:
        """Give what belongs to the body, as it is."""
        taken = min(len(data), self._left)
        self._left -= taken
        self.complete = self._left == 0
        return data[:taken], taken

    def end(self) -> bool:
        """Tell whether all of it came."""
        return self.complete


class BodyUntilEnd:
    """An answer that ends when the backend closes (RFC 9112 6.3)."""

    __slots__ = ("complete",)

    def __init__(self) -> None:
        self.complete = False

    def feed(self, data: memoryview) -> tuple[Buffer, int]:
        """Give everything."""
        return data, len(data)

    def end(self) -> bool:
        """Take the end for the end: there is nothing else to know it by."""
        self.complete = True
        return True


class ChunkedBody:
    """A chunked body: sizes, data, the last chunk, and trailers that are dropped.

    Once broken it stays broken. `is_trusted` is for the backend's, which may flush every byte.
    """

    __slots__ = (
        "_framing",
        "_in_trailer",
        "_is_broken",
        "_is_trusted",
        "_left",
        "_line",
        "_payload",
        "_trailer_bytes",
        "complete",
    )

    def __init__(self, *, is_trusted: bool = False) -> None:
        self._is_trusted = is_trusted
        self._is_broken = False
        self._left = 0  # of the chunk's data and the CRLF behind it; 0 means a line comes
        self._line = bytearray()
        self._in_trailer = False
        self._trailer_bytes = 0
        self._framing = self._payload = 0
        self.complete = False

    def feed(self, data: memoryview) -> tuple[Buffer, int]:
        """Give the data of the chunks in `data`, or raise `BodyError`."""
        if self._is_broken:
            raise BodyError("the chunked body is broken")
        try:
            return self._feed(data)
        except BodyError:
            self._is_broken = True
            raise

    def _feed(self, data: memoryview) -> tuple[Buffer, int]:
        pieces: list[memoryview] = []
        at = 0
        while at < len(data) and not self.complete:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
            elif self._left:
                self._end_of_data(data[at])
                at += 1
            elif not self._line and not self._in_trailer and (whole := _SIZE_LINE.match(data, at)):
                self._take_size(whole)
                at = whole.end()
            else:
                at += self._take_line(data[at:])
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), at

    def end(self) -> bool:
        """Tell whether the last chunk came."""
        return self.complete

    def _end_of_data(self, byte: int) -> None:
        if byte != b"\n\r"[self._left - 1]:
            raise BodyError("a chunk is longer than its size")
        self._left -= 1

    def _take_line(self, data: memoryview) -> int:
        """Take a line up to its end, or what is there of it."""
        most = _MAX_TRAILER_BYTES if self._in_trailer else _MAX_SIZE_LINE_BYTES
        begun = bytes(data[: most + 2])
        end = begun.find(b"\n") + 1
        taken = begun[:end] if end else begun
        self._line += taken
        self._check_line(self._line[:-1] if end else self._line)
        if end:
            line, self._line = bytes(self._line), bytearray()
            self._end_of_line(line)
        return len(taken)

    def _check_line(self, begun: bytearray) -> None:
        """Refuse a line that can only become a wrong one, without waiting for its end."""
        if self._in_trailer:
            if self._trailer_bytes + len(begun) > _MAX_TRAILER_BYTES:
                raise BodyError("the trailer is too large")
        elif len(begun) > _MAX_SIZE_LINE_BYTES:
            raise BodyError("the extension of a chunk is too large")
        elif begun and not _SIZE_BEGIN.fullmatch(begun):
            raise BodyError(_NO_SIZE)

    def _take_size(self, line: re.Match[bytes]) -> None:
        size, length = int(line[1], 16), line.end() - line.start()
        if length - 1 > _MAX_SIZE_LINE_BYTES:
            raise BodyError("the extension of a chunk is too large")
        self._framing += length + 2  # its line, and the end of its data
        most = _MAX_FRAMING_BYTES + _MAX_FRAMING_SHARE * self._payload
        if self._framing > most and not self._is_trusted:
            raise BodyError("the chunks are too small for the body's size")
        self._payload += size
        self._left = size + 2 if size else 0
        self._in_trailer = size == 0

    def _end_of_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise BodyError("a line of the chunked body ends without a carriage return")
        text = line[:-2]
        if not self._in_trailer:
            whole = _SIZE_LINE.fullmatch(line)
            if whole is None:
                raise BodyError(_NO_SIZE)
            self._take_size(whole)
        elif not text:
            self.complete = True
        elif FIELD_LINE.fullmatch(text):
            self._trailer_bytes += len(line)
        else:
            raise BodyError("a trailer line is not NAME: VALUE")


def chunk(payload: Buffer) -> Buffer:
    """Frame payload as one chunk; nothing as nothing, because an empty chunk is the last one."""
    return b"".join((b"%x\r\n" % len(payload), payload, b"\r\n")) if payload else b""


def last_chunk() -> bytes:
    """Give the end of a chunked body."""
    return _LAST_CHUNK
