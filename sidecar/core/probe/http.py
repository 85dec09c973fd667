"""One HTTP/1.1 request and its answer, as bytes: what is sent, and what came of it, with its pace.

Gets a `ProbeRequest` and gives the bytes to send; takes the bytes of the answer as they come, with
the time of their coming, and gives the body's payload. Not part of `http_gate`, which stands
between two others and frames anew; here is one end. Raises `AnswerError` for what is no answer.
Specification: RFC 9112 (HTTP/1.1) 3 (Request Line), 6 (Message Body).
"""

from __future__ import annotations

import re

import msgspec

from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_body import (
    BodyError,
    BodyReader,
    BodyUntilEnd,
    Buffer,
    ChunkedBody,
    FixedBody,
)
from sidecar.core.http_head import ResponseHead, head_end, parse_response
from sidecar.core.probe.report import Answer, ProbeRequest
from sidecar.core.status import printable

_MAX_HEAD_BYTES = 256 * 1024
_MAX_INTERIM = 100
# Of a body so much is kept, to read a refusal in it.
_MOST_KEPT = 16384
_MOST_SHOWN = 300
_BEGIN = b"HTTP/1."
_MADE_ID = re.compile(r"[0-9a-f]{32}")
NO_JSON = object()
_AGENT = ("User-Agent", "spiffe-sidecar-probe")


class AnswerError(Exception):
    """Bytes that are no HTTP/1.1 answer; the text says why."""


def request_bytes(request: ProbeRequest, request_id: str) -> bytes:
    """Write the request; what it sets itself a header of the operator's may replace."""
    target = request.target
    own = [("Host", target.authority), _AGENT, ("Accept", "*/*"), ("X-Request-Id", request_id)]
    if request.body:
        own.append(("Content-Type", _content_type(request.body)))
    given = {name.lower() for name, _ in request.headers}
    headers = [one for one in own if one[0].lower() not in given] + list(request.headers)
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(request.body))))
    headers.append(("Connection", "close"))
    lines = [f"{request.method} {target.path} HTTP/1.1", *(f"{one}: {two}" for one, two in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + request.body


def _content_type(body: bytes) -> str:
    return "application/octet-stream" if json_value(body) is NO_JSON else "application/json"


def json_value(data: bytes) -> object:
    """Read JSON of whoever wrote it, or give `NO_JSON`."""
    try:
        value: object = msgspec.json.decode(data)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, nested without end
        return NO_JSON
    return value


class AnswerReader:
    """Takes the bytes of one answer."""

    def __init__(self, method: str, request_id: str) -> None:
        self._method, self._request_id = method, request_id
        self._ahead = bytearray()
        self._scanned = self._interim = 0
        self._body: BodyReader | None = None
        self._kept = bytearray()
        self._size = self._pieces = 0
        self._first_at = self._last_at = self._longest_gap = 0.0
        self.head: ResponseHead | None = None

    @property
    def has_begun(self) -> bool:
        """Tell whether any byte came."""
        return self.head is not None or bool(self._ahead) or self._interim > 0

    @property
    def complete(self) -> bool:
        """Tell whether the whole answer is there."""
        return self._body is not None and self._body.complete

    def feed(self, data: Buffer, at: float) -> bytes:
        """Take what came at one moment, give the payload in it; raise `AnswerError`."""
        if self._body is None:
            self._ahead += data
            body = self._look_for_head()
            if body is None:
                return b""
            self._body, data, self._ahead = body, bytes(self._ahead), bytearray()
        try:
            piece, _ = self._body.feed(memoryview(data))
        except BodyError as exc:
            raise AnswerError(str(exc)) from exc
        payload = bytes(piece)
        if payload:
            self._note(payload, at)
        return payload

    def end(self) -> bool:
        """Hear that nothing more comes; tell whether the answer is whole."""
        return self._body is not None and self._body.end()

    def answer(self) -> Answer | None:
        """Give what is known of the answer; None before its head came."""
        if self.head is None:
            return None
        request_id = self._text(b"x-request-id") or self._text(b"request-id")
        return Answer(
            status=self.head.status,
            reason=printable(self.head.reason.decode("latin-1"))[:100],
            request_id=request_id,
            # A sidecar replaces the ID of a peer that is no trusted proxy by one of its own.
            is_echoed=request_id == self._request_id or _MADE_ID.fullmatch(request_id) is not None,
            content_type=self._text(b"content-type"),
            size=self._size,
            pieces=self._pieces,
            spread_seconds=self._last_at - self._first_at,
            longest_gap_seconds=self._longest_gap,
            complete=self.complete,
            text=shown_text(self.body_start) if self.head.status >= 400 else "",
        )

    @property
    def body_start(self) -> bytes:
        """Give the start of the body."""
        return bytes(self._kept)

    def _text(self, name: bytes) -> str:
        head = self.head
        value = (
            next((value for field, value in head.headers if field == name), b"") if head else b""
        )
        return printable(value.decode("latin-1"))[:200]

    def _note(self, payload: bytes, at: float) -> None:
        if self._pieces:
            self._longest_gap = max(self._longest_gap, at - self._last_at)
        else:
            self._first_at = at
        self._last_at = at
        self._pieces += 1
        self._size += len(payload)
        self._kept += payload[: max(0, _MOST_KEPT - len(self._kept))]

    def _look_for_head(self) -> BodyReader | None:
        """Take heads until the final one is there, and give what reads its body."""
        begin = bytes(self._ahead[: len(_BEGIN)])
        if not _BEGIN.startswith(begin):
            raise AnswerError(f"it begins with {bytes(self._ahead[:40])!r}")
        try:
            while (end := head_end(self._ahead, self._scanned, _MAX_HEAD_BYTES)) is not None:
                head = parse_response(
                    bytes(self._ahead[:end]), to_head_request=self._method == "HEAD"
                )
                del self._ahead[:end]
                self._scanned = 0
                if not head.is_interim:
                    self.head = head
                    return _body_reader(head)
                self._note_interim()
            self._scanned = len(self._ahead)
        except (HttpError, BackendError) as exc:
            raise AnswerError(_as_answer(exc.message)) from exc
        return None

    def _note_interim(self) -> None:
        self._interim += 1
        if self._interim > _MAX_INTERIM:
            raise AnswerError("interim answers without end")


def _body_reader(head: ResponseHead) -> BodyReader:
    if head.length is not None:
        return FixedBody(head.length)
    return ChunkedBody(is_trusted=True) if head.is_chunked else BodyUntilEnd()


def shown_text(body: bytes) -> str:
    """Give the start of a body in one printable line."""
    text = re.sub(r"\s+", " ", body[: 4 * _MOST_SHOWN].decode("utf-8", "replace")).strip()
    cut = text[:_MOST_SHOWN] + ("..." if len(text) > _MOST_SHOWN else "")
    return printable(cut)


def _as_answer(message: str) -> str:
    """Say of an answer what is said of requests and of the backend's answers elsewhere."""
    message = message.removeprefix("the backend's answer cannot be read: ")
    return message.replace("the request's head", "its head")
