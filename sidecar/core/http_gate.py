"""One connection's HTTP/1.1: bytes of both sides in; bytes for the other side and verdicts out.

    receive(bytes of the peer)      until `request` is there: one head, and nothing for the backend
    admit(head for the backend)     after the decision: what the backend may have so far
    receive, answer                 the body one way, the answer the other way, as they come
    next_request                    what came behind the body becomes the next request

A request that is refused is never admitted, and `skip` drops its body. Each request on a
connection goes through this from the start: nothing of one decision is left for the next one.
Verdicts are `HttpError` (the peer's) and `BackendError` (the backend's). Does no IO, decides no
policy and keeps no time.
Specification: RFC 9112 (HTTP/1.1) 6 (Message Body), 9.3 (Persistence), 9.6 (Tear-down).
"""

from __future__ import annotations

import re
from http import HTTPStatus

from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_body import (
    BodyError,
    BodyReader,
    BodyUntilEnd,
    Buffer,
    ChunkedBody,
    FixedBody,
    chunk,
    last_chunk,
)
from sidecar.core.http_head import (
    RequestHead,
    ResponseHead,
    head_end,
    parse_request,
    parse_response,
)
from sidecar.core.http_headers import Extras, head_for_peer

# What of empty lines before a request is ignored (RFC 9112 2.2): old clients send one behind a
# body, some pools send one now and then so that the connection is not idle.
_MAX_EMPTY_BYTES = 1024
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
# What a peer may send ahead while its request is still being answered.
_MAX_AHEAD_BYTES = 65536
_MAX_RESPONSE_HEAD_BYTES = 256 * 1024
# Interim answers (1xx) to one request.
_MAX_INTERIM = 100
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpGate:
    """The state of one peer's connection."""

    __slots__ = (
        "_admitted",
        "_ahead",
        "_answer_body",
        "_answer_head",
        "_backend_keeps",
        "_body",
        "_body_bytes",
        "_closes",
        "_empty_bytes",
        "_extras",
        "_interim",
        "_is_kept",
        "_max_body_bytes",
        "_max_head_bytes",
        "_request_id",
        "_scanned",
        "request",
        "response",
    )

    def __init__(self, max_head_bytes: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._ahead = bytearray()  # bytes of the peer that nobody has taken yet
        self._reset()

    def _reset(self) -> None:
        self.request: RequestHead | None = None
        self.response: ResponseHead | None = None  # the final one, once it was begun
        self._backend_keeps = False
        self._scanned = self._empty_bytes = 0
        self._admitted = False
        self._body: BodyReader | None = None
        self._body_bytes = self._max_body_bytes = 0
        self._answer_head = bytearray()
        self._interim = 0
        self._answer_body: BodyReader | None = None
        self._request_id, self._extras, self._closes = "", Extras(), False
        self._is_kept = False

    # The peer's side.

    def has_request(self) -> bool:
        """Tell whether a whole head is there."""
        return self.request is not None

    @property
    def is_idle(self) -> bool:
        """Tell whether no byte of a request is there; empty lines are none."""
        return self.request is None and bytes(self._ahead[:2]) in (b"", b"\r")

    @property
    def sends_nothing_else(self) -> bool:
        """Tell whether more empty lines came than are ignored, and no request behind them."""
        return self.is_idle and self._empty_bytes > _MAX_EMPTY_BYTES

    @property
    def wants_bytes(self) -> bool:
        """Tell whether there is room for more bytes of the peer."""
        if self.request is None or (self._admitted and not self.request_is_complete):
            return True
        return len(self._ahead) < _MAX_AHEAD_BYTES

    @property
    def request_is_complete(self) -> bool:
        """Tell whether the whole body has been taken."""
        return self._body is not None and self._body.complete

    @property
    def body_bytes(self) -> int:
        """Return how many bytes of the body have been taken, without their framing."""
        return self._body_bytes

    @property
    def takes_chunks(self) -> bool:
        """Tell whether what the peer sends is framed in chunks, each of which costs time."""
        return isinstance(self._body, ChunkedBody)

    def receive(self, data: Buffer) -> Buffer:
        """Take bytes of the peer, give those for the backend; raise `HttpError`."""
        if self._admitted and not self.request_is_complete:
            return self._take_body(memoryview(data))
        self._ahead += data
        if self.request is None:
            self._look_for_head()
        return b""

    def _look_for_head(self) -> None:
        self._skip_empty_lines()
        end = head_end(self._ahead, self._scanned, self._max_head_bytes)
        if end is None:
            self._scanned = len(self._ahead)
            return
        head = bytes(self._ahead[:end])
        del self._ahead[:end]
        self.request = parse_request(head)
        length = self.request.length
        self._body = ChunkedBody() if length is None else FixedBody(length)

    def _skip_empty_lines(self) -> None:
        if empty := _EMPTY_LINES.match(self._ahead):
            self._empty_bytes += empty.end()
            self._scanned = 0
            del self._ahead[: empty.end()]
        if self._empty_bytes > _MAX_EMPTY_BYTES and not self.is_idle:
            raise HttpError(400, "bad_request", "too many empty lines before the request")

    def limit_body(self, max_body_bytes: int) -> None:
        """Set how long a body may be; raise `HttpError` if one is announced to be longer."""
        assert self.request is not None
        self._max_body_bytes = max_body_bytes
        self._check_length(self.request.length or 0)

    def admit(
        self, head: bytes, request_id: str, extras: Extras, *, closes: bool, is_kept: bool = False
    ) -> bytes:
        """Let the request go on: give its head and what is there of its body.

        `closes` makes its answer the last one of this connection. `is_kept`: the backend's
        connection was used before.
        """
        assert self.request is not None
        self._is_kept = is_kept
        self._request_id, self._extras = request_id, extras
        self._closes = closes or self.request.wants_close
        self._admitted = True
        return head + self._take_ahead()

    def close_after_answer(self) -> None:
        """Make the answer that is to come the last one of this connection."""
        self._closes = True

    def skip(self) -> None:
        """Drop what is there of the body of a request that was not admitted."""
        try:
            self._take_ahead()
        except HttpError:
            return  # it has no end that could be found, so it is never complete

    def _take_ahead(self) -> bytes:
        if self.request_is_complete:
            return b""
        ahead, self._ahead = self._ahead, bytearray()
        return bytes(self._take_body(memoryview(ahead)))

    def _take_body(self, data: memoryview) -> Buffer:
        assert self._body is not None
        try:
            payload, taken = self._body.feed(data)
        except BodyError as exc:
            raise HttpError(400, "bad_request", str(exc)) from exc
        if taken < len(data):
            self._ahead += data[taken:]
        if not self._admitted:
            return b""
        self._body_bytes += len(payload)
        self._check_length(self._body_bytes)
        if isinstance(self._body, FixedBody):
            return payload
        return bytes(chunk(payload)) + last_chunk() if self._body.complete else chunk(payload)

    def _check_length(self, length: int) -> None:
        if length > self._max_body_bytes:
            raise HttpError(
                413,
                "body_too_large",
                f"the request's body has over {self._max_body_bytes} bytes, which is the most that "
                "is taken here",
            )

    # The backend's side.

    @property
    def response_is_complete(self) -> bool:
        """Tell whether the whole answer has been given."""
        return self._answer_body is not None and self._answer_body.complete

    @property
    def answer_has_begun(self) -> bool:
        """Tell whether any byte of the final answer has come."""
        return self._answer_body is not None or bool(self._answer_head)

    @property
    def keeps_connection(self) -> bool:
        """Tell whether another request may follow this one."""
        return self.request_is_complete and self.response_is_complete and not self._closes

    @property
    def backend_is_reusable(self) -> bool:
        """Tell whether the backend is ready for another request on the same connection."""
        return self._backend_keeps and self.request_is_complete and self.response_is_complete

    def answer(self, data: Buffer) -> Buffer:
        """Take bytes of the backend, give those for the peer; raise `BackendError`."""
        if self._answer_body is None:
            return self._take_answer_head(data)
        return self._take_answer_body(memoryview(data))

    def _take_answer_head(self, data: Buffer) -> bytes:
        assert self.request is not None
        given = b""
        scanned = len(self._answer_head)
        self._answer_head += data
        while self._answer_body is None:
            try:
                end = head_end(self._answer_head, scanned, _MAX_RESPONSE_HEAD_BYTES)
            except HttpError as exc:
                reason = "the backend's answer cannot be read: its head"
                raise BackendError(f"{reason} is too large or no HTTP/1.1") from exc
            if end is None:
                return given
            given += self._begin_answer(bytes(self._answer_head[:end]))
            # Not before: a head that cannot be read is the beginning of an answer, too.
            del self._answer_head[:end]
            scanned = 0
        rest, self._answer_head = self._answer_head, bytearray()
        try:
            return given + bytes(self._take_answer_body(memoryview(rest)))
        except BackendError:
            self.response = None  # nothing of it was given
            raise

    def _begin_answer(self, head: bytes) -> bytes:
        assert self.request is not None
        response = parse_response(head, to_head_request=self.request.method == "HEAD")
        if response.is_interim:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise BackendError("the backend's answer cannot be read: only interim ones come")
            # 100 was answered by us, and HTTP/1.0 knows no interim answers.
            if response.status == 100 or self.request.minor == 0:
                return b""
            return head_for_peer(response, self.request, "", Extras(), closes=False)
        if self._is_kept and response.status == HTTPStatus.REQUEST_TIMEOUT and response.wants_close:
            # Said to the connection, while the request was on its way (RFC 9110 15.5.9).
            self._answer_head.clear()
            raise BackendError("the backend closed the connection without an answer (408)")
        self.response = response
        self._answer_body = _answer_body(response)
        has_end = not isinstance(self._answer_body, BodyUntilEnd)
        self._backend_keeps = has_end and not response.wants_close
        self._closes = self._closes or not self.request_is_complete
        return head_for_peer(
            response, self.request, self._request_id, self._extras, closes=self._closes
        )

    def _take_answer_body(self, data: memoryview) -> Buffer:
        assert self._answer_body is not None
        assert self.request is not None
        if self._answer_body.complete:
            # Nobody asked for this: the backend cannot be trusted to answer in turn.
            self._backend_keeps = self._backend_keeps and not data
            return b""
        try:
            payload, taken = self._answer_body.feed(data)
        except BodyError as exc:
            raise BackendError(f"the backend's answer cannot be read: {exc}") from exc
        if taken < len(data):
            self._backend_keeps = False
        return self._framed(payload)

    def _framed(self, payload: Buffer) -> Buffer:
        assert self._answer_body is not None
        assert self.request is not None
        if isinstance(self._answer_body, FixedBody) or self.request.minor == 0:
            return payload
        if self._answer_body.complete:
            return bytes(chunk(payload)) + last_chunk()
        return chunk(payload)

    def backend_ended(self) -> Buffer:
        """Hear that the backend has closed; give what ends the answer, or raise `BackendError`."""
        self._backend_keeps = False
        if self._answer_body is None:
            raise BackendError("the backend closed the connection without an answer")
        if self._answer_body.complete:
            return b""
        if not self._answer_body.end():
            raise BackendError("the backend closed the connection in the middle of its answer")
        return self._framed(b"")

    def next_request(self) -> None:
        """Begin anew with what the peer has sent ahead; raise `HttpError` as `receive`."""
        self._reset()
        if self._ahead:
            self._look_for_head()


def _answer_body(response: ResponseHead) -> BodyReader:
    if response.length is not None:
        return FixedBody(response.length)
    return ChunkedBody(is_trusted=True) if response.is_chunked else BodyUntilEnd()
