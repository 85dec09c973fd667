"""Drives an `HttpGate` as the HTTP mode does, without sockets, trio or policy; keeps all it saw.

What would wait in a socket is a byte string here: the peer's while the gate wants none, the
backend's while nobody has asked. Decisions go by the path: `no` in it is refused, `down` finds no
backend, /health and preflights are answered by us, anything else is admitted; with `wait` in it
only after the backend's next step, as if there had been no slot before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.core.cors import Cors
from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_answers import HEALTH_PATH, Answer, Answerer, usable_request_id
from sidecar.core.http_gate import CONTINUE, HttpGate
from sidecar.core.http_head import RequestHead
from sidecar.core.http_headers import Extras, Forwarding, client_certificate, head_for_backend
from sidecar.core.refusal import Refusal
from tests.fuzz.script import Script, Settings

US, PEER = "spiffe://example.org/gate", "spiffe://example.org/app"
CLIENT_CERTIFICATE = client_certificate(US, "ab" * 32, PEER)
HOST, REMOTE_IP, REQUEST_ID = "127.0.0.1:11434", "192.0.2.7", "made-by-us"
CORS = Cors(allow_origins=("https://chat.example.org",), expose_headers=("X-Request-Id",))
RESPONSE_HEADERS = (("Strict-Transport-Security", "max-age=1"), ("Server", "gate"))
_MAX_SKIPPED_BYTES = 64 * 1024
_PIECE = 64 * 1024
_MAX_AHEAD_BYTES = 64 * 1024
_MAX_ANSWER_HEAD_BYTES = 256 * 1024
_MAX_LINE_BYTES = 8200


@dataclass(slots=True)
class Backend:
    """One connection to the backend."""

    sent: bytearray = field(default_factory=bytearray)  # to it
    exchanges: list[Exchange] = field(default_factory=list)
    is_dirty: bool = False  # something came, or it closed, while nothing was asked


@dataclass(slots=True)
class Exchange:
    """One request that had a head, and what became of it."""

    request: RequestHead
    request_id: str
    forwarding: Forwarding
    extras: Extras
    backend: Backend | None = None  # where it was admitted to
    continued: bool = False
    received: bytearray = field(default_factory=bytearray)  # of the backend's answer
    backend_ended: bool = False
    begun: bool = False  # the head of the backend's final answer went out
    own: Answer | None = None  # what was answered by us
    cut: bool = False
    peer_error: HttpError | None = None
    backend_error: BackendError | None = None
    reusable: bool = False
    keeps: bool = False


class Driver:
    """One peer's connection."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.gate = HttpGate(settings.max_head_bytes)
        extra = RESPONSE_HEADERS if settings.response_headers else ()
        self.answerer = Answerer(CORS if settings.cors else None, extra)
        self.exchanges: list[Exchange] = []
        self.backends: list[Backend] = []
        self.received = bytearray()  # what the gate took of the peer
        self.to_peer = bytearray()
        self.form_error: HttpError | None = None
        self.state = "head"  # wait, exchange, skip, closed
        self._backend: Backend | None = None
        self._waiting = bytearray()  # of the peer, not read yet
        self._own: Answer | None = None  # to be given when the body was skipped
        self._largest = 0

    def play(self, script: Script) -> Driver:
        """Go through all steps."""
        for step in script.steps:
            if step.letter == "L" or self.state == "closed":
                break
            if step.letter in "Pp":
                self.peer_sends(step.data, 1 if step.letter == "p" else _PIECE)
            elif step.letter in "Bb":
                self.backend_sends(step.data, 1 if step.letter == "b" else _PIECE)
            else:
                self.backend_closes()
        if script.settings.backend_closes_at_end:
            self.backend_closes()
        return self

    # The peer.

    def peer_sends(self, data: bytes, piece: int = _PIECE) -> None:
        """Send in pieces; what the gate has no room for waits."""
        for at in range(0, len(data), piece):
            self._waiting += data[at : at + piece]
            self._advance(piece)

    def _advance(self, piece: int = _PIECE) -> None:
        while self.state != "closed":
            if self.state == "head" and self.gate.has_request():
                self._decide()
            elif self._waiting and (self.state in ("head", "skip") or self.gate.wants_bytes):
                data = bytes(self._waiting[:piece])
                del self._waiting[:piece]
                self._take(data)
            else:
                return

    def _take(self, data: bytes) -> None:
        self.received += data
        self._largest = max(self._largest, len(data))
        try:
            given = bytes(self.gate.receive(data))
            if self.state == "exchange":
                assert self._backend is not None
                self._backend.sent += given
            elif self.state == "skip":
                assert self._admitted or not given
                self.gate.skip()
            else:
                assert not given
        except HttpError as exc:
            self._refuse(exc)
            return
        self._check_memory()
        if self.state == "skip" and self.gate.request_is_complete:
            self._give()

    def _refuse(self, exc: HttpError) -> None:
        """As `_one_request` and `_serve` do it, by where the error was met."""
        refusal = Refusal(exc.status, exc.code, exc.message)
        if self.state == "exchange":
            exchange = self.exchanges[-1]
            exchange.peer_error = exc
            self._drop_backend()
            if self.gate.response is not None:
                exchange.cut, self.state = True, "closed"
                return
            self._own = self.answerer.refusal(refusal, exchange.request, exchange.request_id)
            self._give(closes=True)
            return
        self.form_error = exc
        answer = self.answerer.refusal(refusal, None, REQUEST_ID)
        self.to_peer += answer.encoded(REQUEST_ID, without_body=False, closes=True)
        self.state = "closed"

    # One request.

    def _decide(self) -> None:
        request = self.gate.request
        assert request is not None
        usable = usable_request_id(request) if self.settings.trusted_proxy else None
        request_id = usable or REQUEST_ID
        forwarding, extras = self._forwarding(request, request_id), self.answerer.extras(request)
        exchange = Exchange(request, request_id, forwarding, extras)
        self.exchanges.append(exchange)
        if "wait" in request.path:
            self.state = "wait"
        else:
            self._go_on(exchange)

    def _go_on(self, exchange: Exchange) -> None:
        self._own = self._answer_of_ours(exchange.request, exchange.request_id)
        if self._own is not None:
            self._skip_and_give()
            return
        self.state = "exchange"
        try:
            self.gate.limit_body(self.settings.max_body_bytes)
            self._admit(exchange)
        except HttpError as exc:
            self._refuse(exc)

    def _admit(self, exchange: Exchange) -> None:
        backend = self._open()
        head = head_for_backend(exchange.request, exchange.forwarding)
        closes = self.settings.closes
        given = self.gate.admit(head, exchange.request_id, exchange.extras, closes=closes)
        backend.sent += given
        backend.exchanges.append(exchange)
        exchange.backend = backend
        if exchange.request.wants_continue and not self.gate.request_is_complete:
            exchange.continued = True
            self.to_peer += CONTINUE
        self._check_memory()

    @property
    def _admitted(self) -> bool:
        return self.exchanges[-1].backend is not None

    def _answer_of_ours(self, request: RequestHead, request_id: str) -> Answer | None:
        if request.path == HEALTH_PATH and request.method in ("GET", "HEAD"):
            return self.answerer.health(request, None)
        if (preflight := self.answerer.preflight(request)) is not None:
            return preflight
        if (options := self.answerer.server_options(request)) is not None:
            return options
        if "no" in request.path:
            refusal = Refusal(403, "endpoint_not_allowed", "no")
        elif "down" in request.path:
            refusal = Refusal(502, "backend_unreachable", "down")
        else:
            return None
        return self.answerer.refusal(refusal, request, request_id)

    def _forwarding(self, request: RequestHead, request_id: str) -> Forwarding:
        return Forwarding(
            host=(self.settings.keeps_host and request.host.decode()) or HOST,
            peer=PEER,
            client_certificate=CLIENT_CERTIFICATE,
            remote_ip=REMOTE_IP,
            request_id=request_id,
            trusted_proxy=self.settings.trusted_proxy,
            drop_origin=self.settings.drop_origin,
        )

    def _skip_and_give(self) -> None:
        self.state = "skip"
        request = self.exchanges[-1].request
        self.gate.skip()
        too_long = request.length is None or request.length > _MAX_SKIPPED_BYTES
        if self.gate.request_is_complete or too_long or request.wants_continue:
            self._give()

    def _give(self, *, closes: bool = False) -> None:
        exchange, answer = self.exchanges[-1], self._own
        assert answer is not None
        request = exchange.request
        closes = closes or self.settings.closes or request.wants_close
        closes = closes or not self.gate.request_is_complete
        without_body = request.method == "HEAD"
        self.to_peer += answer.encoded(
            exchange.request_id, without_body=without_body, closes=closes
        )
        exchange.own, self._own = answer, None
        exchange.keeps = not closes
        self._next(keeps=not closes)

    def _next(self, *, keeps: bool) -> None:
        self.state = "head" if keeps else "closed"
        if keeps:
            try:
                self.gate.next_request()
            except HttpError as exc:
                self._refuse(exc)

    # The backend.

    def _open(self) -> Backend:
        if self._backend is None or self._backend.is_dirty:
            self._backend = Backend()
            self.backends.append(self._backend)
        return self._backend

    def _drop_backend(self) -> None:
        self._backend = None

    def backend_sends(self, data: bytes, piece: int = _PIECE) -> None:
        """Answer in pieces; what is left when the answer is complete waits in the socket."""
        self._end_wait()
        backend, exchange = self._backend, self.exchanges[-1] if self.exchanges else None
        for at in range(0, len(data), piece):
            if backend is None or backend is not self._backend:
                return
            if self.state != "exchange" or exchange is not self.exchanges[-1]:
                backend.is_dirty = True
                return
            backend.is_dirty = at + piece < len(data)
            self._take_answer(data[at : at + piece])
            self._advance()

    def _end_wait(self) -> None:
        if self.state == "wait":
            self._go_on(self.exchanges[-1])
            self._advance()

    def _take_answer(self, data: bytes) -> None:
        exchange = self.exchanges[-1]
        exchange.received += data
        try:
            self.to_peer += self.gate.answer(data)
        except BackendError as exc:
            self._break(exc)
            return
        exchange.begun = self.gate.response is not None
        self._check_memory()
        if self.gate.response_is_complete:
            self._finish(exchange)

    def backend_closes(self) -> None:
        """Close the backend's connection."""
        self._end_wait()
        if self._backend is None:
            return
        self._backend.is_dirty = True
        if self.state != "exchange":
            return
        exchange = self.exchanges[-1]
        exchange.backend_ended = True
        try:
            self.to_peer += self.gate.backend_ended()
        except BackendError as exc:
            self._break(exc)
        else:
            self._finish(exchange)
        self._advance()

    def _break(self, exc: BackendError) -> None:
        exchange = self.exchanges[-1]
        exchange.backend_error = exc
        self._drop_backend()
        if self.gate.response is not None:
            exchange.cut, self.state = True, "closed"
            return
        refusal = Refusal(502, "backend_unreachable", "broke")
        self._own = self.answerer.refusal(refusal, exchange.request, exchange.request_id)
        self._skip_and_give()

    def _finish(self, exchange: Exchange) -> None:
        exchange.reusable = self.gate.backend_is_reusable
        exchange.keeps = self.gate.keeps_connection
        if not exchange.reusable:
            self._drop_backend()
        self._next(keeps=exchange.keeps)

    def _check_memory(self) -> None:
        """Hold the gate to what it may keep of bytes that nobody has taken yet."""
        answered = len(self.exchanges[-1].received) if self.exchanges else 0
        if len(self.received) + answered <= _MAX_AHEAD_BYTES:
            return
        most = self.settings.max_head_bytes + _MAX_AHEAD_BYTES + self._largest + _MAX_LINE_BYTES
        most += min(answered, _MAX_ANSWER_HEAD_BYTES + _PIECE)
        assert held_bytes(self.gate) <= most, (held_bytes(self.gate), most)


def held_bytes(holder: object) -> int:
    """Count the bytes in all buffers of an object and of the readers in it."""
    count = 0
    for name in getattr(holder, "__slots__", ()):
        value = getattr(holder, name, None)
        if isinstance(value, (bytes, bytearray, memoryview)):
            count += len(value)
        elif value is not None and type(value).__module__.endswith(".http_body"):
            count += held_bytes(value)
    return count
