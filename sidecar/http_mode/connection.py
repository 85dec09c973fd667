"""One peer's connection: wait for a request, have it admitted, move it, log it, and again.

Each request comes to one of three ends: an answer of the backend that went through the relay, an
answer of our own, or a cut where an answer was begun and cannot be finished.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog
import trio

from sidecar.adapters.backend_health import BackendHealth
from sidecar.adapters.listener import has_hung_up
from sidecar.adapters.relay import PeerLeftError, Relay, SilenceError, Traffic
from sidecar.adapters.tls import ServerIdentity, TlsStream
from sidecar.core.config import Config
from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_answers import HEALTH_PATH, Answer, Answerer, usable_request_id
from sidecar.core.http_gate import CONTINUE, HttpGate
from sidecar.core.http_head import RequestHead
from sidecar.core.http_headers import Forwarding, client_certificate, head_for_backend
from sidecar.core.limits import Ticket
from sidecar.core.policy import Rule
from sidecar.core.refusal import Refusal
from sidecar.http_mode.admission import MAX_SHOWN_PATH, Admission, RefusedError
from sidecar.http_mode.backend_link import FRESH_SECONDS, BackendLink
from sidecar.http_mode.drain import Drain

log = structlog.get_logger()
T = TypeVar("T")

# Read at a time while a head is looked for; bodies go through the relay's own buffer.
_BUFFER = memoryview(bytearray(64 * 1024))
# The body of a refused request is read to its end when it is short, so that the connection can
# go on; for what is longer, closing is cheaper.
_MAX_SKIPPED_BYTES = 64 * 1024
_SKIP_SECONDS = 1.0
# How often it is looked whether a peer of whom no more is read is still there.
_HUNG_UP_SECONDS = 0.1


class Slots(Protocol):
    """Where a request waits for its turn."""

    def enter(self, peer: str, rule: Rule) -> Ticket:
        """Give a ticket that runs or waits; raise `RefusedError` without one."""

    async def wait(self, ticket: Ticket) -> None:
        """Wait until it runs; raise `RefusedError` if that takes too long."""

    def leave(self, ticket: Ticket) -> None:
        """Give it back, and let others run."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections share."""

    config: Config
    relay: Relay
    admission: Admission
    answerer: Answerer
    health: BackendHealth
    slots: Slots
    drain: Drain
    host: str | None  # what requests are addressed by; None: as the peer does


@dataclass(slots=True)
class RequestLine:
    """What the log says of one request."""

    started: float
    request_id: str
    method: str | None = None
    path: str | None = None
    rule: str | None = None
    decision: str = "refused"
    status: int = 0
    reason: str | None = None
    traffic: Traffic = field(default_factory=Traffic)


class HttpConnection:
    """One peer's connection."""

    def __init__(self, shared: Shared, peer: TlsStream, address: str) -> None:
        self._shared, self._peer, self._address = shared, peer, address
        self._timeouts = shared.config.timeouts
        self.who = {"address": address, "peer": str(peer.peer), "serial": peer.serial}
        self._gate = HttpGate(shared.config.limits.max_head_bytes)
        address_of_backend = shared.config.backend.address
        self._link = BackendLink(address_of_backend, self._timeouts.backend_connect)
        self._requests = 0
        self._idle_seconds = 0.0
        self._is_last = False  # of the answers on this connection

    async def serve(self, idle_seconds: float) -> bool:
        """Serve one request after the other; False when the peer is to read a last word."""
        self._idle_seconds = idle_seconds
        started = trio.current_time()
        try:
            return await self._serve()
        finally:
            self._link.drop()
            seconds = round(trio.current_time() - started, 3)
            log.info("connection closed", **self.who, requests=self._requests, seconds=seconds)

    async def _serve(self) -> bool:
        try:
            while await self._next_head():
                self._requests += 1
                if not await self._one_request():
                    return False
                self._gate.next_request()
        except HttpError as exc:
            try:
                await self._refuse_form(exc)
            except PeerLeftError:
                return True
        except PeerLeftError:
            return True
        return False

    # Reading a head.

    async def _next_head(self) -> bool:
        """Wait for a request; False when none comes any more."""
        if not self._gate.is_idle:
            # Sent ahead: whoever sends a thousand at once must not be served a thousand in a row.
            await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + self._idle_seconds
        while self._gate.is_idle:
            if not await self._first_byte(deadline):
                return False
            self._read()
        if self._gate.has_request():
            return True
        with trio.move_on_after(self._timeouts.request_head):
            while not self._gate.has_request():
                await trio.lowlevel.wait_readable(self._peer.sock)
                self._read()
            return True
        seconds = self._timeouts.request_head
        raise HttpError(408, "request_timeout", f"no complete head within {seconds:g} s")

    async def _first_byte(self, deadline: float) -> bool:
        """Wait for the beginning of a request, and give the backend back while none comes."""
        drain = self._shared.drain
        if self._link.is_open:
            soon = min(deadline, trio.current_time() + FRESH_SECONDS)
            if await drain.readable(self._peer.sock, soon):
                return True
            self._link.drop()
        return await drain.readable(self._peer.sock, deadline)

    def _read(self) -> None:
        """Take what the peer has sent; raise `PeerLeftError` at its end."""
        try:
            count, ended = self._peer.drain(_BUFFER)
        except BlockingIOError:
            return
        except (EOFError, ConnectionError) as exc:
            raise PeerLeftError(str(exc)) from exc
        self._gate.receive(_BUFFER[:count])
        if ended:
            raise PeerLeftError("closed")

    # One request.

    async def _one_request(self) -> bool:
        """Answer one request and log it; False when the connection ends with it."""
        request = self._gate.request
        assert request is not None
        request_id = usable_request_id(request) or secrets.token_hex(16)
        line = RequestLine(trio.current_time(), request_id, request.method, _shown(request))
        try:
            return await self._answer(request, line)
        except RefusedError as exc:
            return await self._refuse(request, exc, line)
        except HttpError as exc:
            refusal = Refusal(exc.status, exc.code, exc.message)
            return await self._refuse(request, RefusedError(refusal, closes=True), line)
        except BackendError as exc:
            line.reason = exc.message
            return await self._refuse(request, RefusedError(_bad_gateway()), line)
        except SilenceError as exc:
            line.reason = str(exc)
            refusal = self._silence(by_peer=exc.by_peer)
            return await self._refuse(request, RefusedError(refusal, closes=True), line)
        except PeerLeftError:
            line.reason = "the peer left before it had its answer"
            raise
        finally:
            self._log(line)

    async def _answer(self, request: RequestHead, line: RequestLine) -> bool:
        shared = self._shared
        identity = self._check_identity()
        own = await self._own_answer(request)
        if own is not None:
            line.decision = "allowed"
            return await self._give(request, own, line, closes=False)
        rule = self._decide(request, line)
        shared.admission.rate(self._peer, rule)
        ticket = shared.slots.enter(str(self._peer.peer), rule)
        try:
            if not ticket.running or not self._link.is_fresh:
                await self._wait_for_turn(ticket)
                # Much may have changed meanwhile; what counts is the moment when it goes on.
                identity, rule = self._check_identity(), self._decide(request, line)
            line.decision = "allowed"
            await self._exchange(request, self._forwarding(request, rule, identity, line), line)
        finally:
            shared.slots.leave(ticket)
        return self._gate.keeps_connection

    def _check_identity(self) -> ServerIdentity:
        """Check ours and the peer's, and whether this connection should end with this answer."""
        identity = self._shared.admission.identity(self._peer)
        # A pooling client should dial again, and meet the newest SVID.
        self._is_last = identity is not self._peer.identity or self._shared.drain.begun
        return identity

    def _decide(self, request: RequestHead, line: RequestLine) -> Rule:
        """Give the rule that lets the request through."""
        decision = self._shared.admission.request(self._peer, request)
        rule, endpoint = decision.rule, decision.endpoint
        assert rule is not None
        assert endpoint is not None
        line.rule, line.path = rule.name, endpoint.text.partition(" ")[2] or _shown(request)
        self._shared.admission.limit_body(rule, self._gate)
        return rule

    async def _wait_for_turn(self, ticket: Ticket) -> None:
        """Wait for a slot, and for the backend."""
        if not ticket.running:
            await self._unless_gone(lambda: self._shared.slots.wait(ticket))
        if not self._link.is_fresh:
            await self._unless_gone(self._link.open)

    async def _unless_gone(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step that waits for others; raise `PeerLeftError` as soon as nobody needs it."""
        ends: list[Exception] = []  # a nursery would wrap them
        results: list[T] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    while self._gate.wants_bytes:
                        await trio.lowlevel.wait_readable(self._peer.sock)
                        self._read()
                    while True:
                        if has_hung_up(self._peer.sock):
                            raise PeerLeftError("closed")
                        await trio.sleep(_HUNG_UP_SECONDS)
                except PeerLeftError as exc:
                    ends.append(exc)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                results.append(await step())
            except (BackendError, RefusedError) as exc:
                ends.append(exc)
            nursery.cancel_scope.cancel()
        if results:
            return results[0]
        raise ends[0]

    async def _own_answer(self, request: RequestHead) -> Answer | None:
        """Answer what is not for the backend: a browser's preflight, and our health."""
        answerer = self._shared.answerer
        if request.path == HEALTH_PATH and request.method in ("GET", "HEAD"):
            health = self._shared.health
            return answerer.health(request, await self._unless_gone(health.reason_against))
        return answerer.preflight(request)

    async def _exchange(
        self, request: RequestHead, forwarding: Forwarding, line: RequestLine
    ) -> None:
        """Let the request through, and its answer back."""
        head = head_for_backend(request, forwarding)
        extras = self._shared.answerer.extras(request)
        to_backend = self._gate.admit(head, line.request_id, extras, closes=self._is_last)
        waits = request.wants_continue and not self._gate.request_is_complete
        begin = to_backend, CONTINUE if waits else b""
        try:
            await self._shared.relay.exchange(
                self._peer, self._link.sock, self._gate, begin, line.traffic
            )
        finally:
            if self._gate.response is not None:
                line.status = self._gate.response.status
            if self._gate.backend_is_reusable and not line.traffic.undelivered:
                self._link.keep()
            else:
                self._link.drop()

    def _forwarding(
        self, request: RequestHead, rule: Rule, identity: ServerIdentity, line: RequestLine
    ) -> Forwarding:
        me, them = str(identity.svid.spiffe_id), str(self._peer.peer)
        return Forwarding(
            host=self._shared.host or request.host.decode(),
            peer=them,
            client_certificate=client_certificate(me, self._peer.fingerprint, them),
            remote_ip=self._address.rpartition(":")[0].strip("[]"),
            request_id=line.request_id,
            trusted_proxy=rule.trusted_proxy,
            drop_origin=self._shared.config.cors is not None,
        )

    # Answers of our own.

    async def _refuse(self, request: RequestHead, refused: RefusedError, line: RequestLine) -> bool:
        """Say why, if nothing of an answer is on its way; False when the connection ends."""
        line.reason = line.reason or refused.reason
        if self._gate.response is not None:
            # Its head is out: the peer must see an answer that was cut, and no second one.
            raise PeerLeftError("cut")
        closes = refused.closes or not await self._skip_body(request)
        answer = self._shared.answerer.refusal(refused.refusal, request, line.request_id)
        return await self._give(request, answer, line, closes=closes)

    async def _skip_body(self, request: RequestHead) -> bool:
        """Read the rest of a short body; False when it is long, or does not come."""
        self._gate.skip()
        too_long = request.length is None or request.length > _MAX_SKIPPED_BYTES
        if self._gate.request_is_complete or too_long or request.wants_continue:
            return self._gate.request_is_complete
        with trio.move_on_after(_SKIP_SECONDS):
            while not self._gate.request_is_complete:
                await trio.lowlevel.wait_readable(self._peer.sock)
                self._read()
                self._gate.skip()
        return self._gate.request_is_complete

    async def _give(
        self, request: RequestHead, answer: Answer, line: RequestLine, *, closes: bool
    ) -> bool:
        """Send an answer of our own; False when the connection ends with it."""
        closes = closes or self._is_last or request.wants_close
        closes = closes or not await self._skip_body(request)
        without_body = request.method == "HEAD"
        await self._send_answer(answer, line, without_body=without_body, closes=closes)
        return not closes

    async def _refuse_form(self, exc: HttpError) -> None:
        """Answer what could not be read as a request; nothing after it can be trusted."""
        line = RequestLine(trio.current_time(), secrets.token_hex(16), reason=exc.message)
        refusal = Refusal(exc.status, exc.code, exc.message)
        answer = self._shared.answerer.refusal(refusal, None, line.request_id)
        try:
            await self._send_answer(answer, line, without_body=False, closes=True)
        finally:
            self._log(line)

    async def _send_answer(
        self, answer: Answer, line: RequestLine, *, without_body: bool, closes: bool
    ) -> None:
        line.status = answer.status
        data = answer.encoded(line.request_id, without_body=without_body, closes=closes)
        await self._send(data)
        line.traffic.sent += len(data)

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        with trio.move_on_after(self._timeouts.between_bytes):
            try:
                while left:
                    left = left[self._peer.send(left) :]
                    if left:
                        await trio.lowlevel.wait_writable(self._peer.sock)
            except ConnectionError as exc:
                raise PeerLeftError(str(exc)) from exc
            return
        raise PeerLeftError("it does not read")

    def _silence(self, *, by_peer: bool) -> Refusal:
        seconds = self._timeouts.between_bytes
        if by_peer:
            text = f"the request's body did not come: no byte for {seconds:g} s"
            return Refusal(408, "request_timeout", text)
        text = f"the model server gave no answer for {seconds:g} s"
        return Refusal(504, "backend_silent", text)

    def _log(self, line: RequestLine) -> None:
        now, first = trio.current_time(), line.traffic.first_sent_at
        fine = line.decision == "allowed" and line.reason is None and line.status < 500
        say = log.info if fine else log.warning
        say(
            "request",
            **self.who,
            decision=line.decision,
            rule=line.rule,
            method=line.method,
            path=line.path,
            status=line.status,
            received=line.traffic.received,
            sent=line.traffic.sent,
            first_byte=round(first - line.started, 4) if first else None,
            seconds=round(now - line.started, 4),
            request_id=line.request_id,
            **({"reason": line.reason} if line.reason else {}),
        )


def _shown(request: RequestHead) -> str:
    """Give the path as the log and a refusal show it: not without end."""
    path = request.path
    return path if len(path) <= MAX_SHOWN_PATH else path[:MAX_SHOWN_PATH] + "..."


def _bad_gateway() -> Refusal:
    text = "the model server cannot be reached or broke off; is it running?"
    return Refusal(502, "backend_unreachable", text)
