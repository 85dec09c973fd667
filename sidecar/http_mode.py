"""Story: one peer's HTTP connection, each request decided on its own.

    core.http_gate   bytes -> one request
    core.policy      peer, method and path -> decision, by the policy of this moment
    core.limits      rate and slots of this peer under that rule
    backend          connects, only now
    relay            moves the request and its answer through the gate -> traffic
    http_mode        writes one log line, and begins anew

A request that is not admitted is told why in the dialect of its path. What was decided for one
request is never used for the next one: policy, identity and the peer's own SVID may have changed.
"""

from __future__ import annotations

import math
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from sidecar.adapters import backend
from sidecar.adapters.backend_health import BackendHealth
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.listener import Slots
from sidecar.adapters.policy_file import CurrentPolicy
from sidecar.adapters.relay import PeerLeftError, Relay, SilenceError, Traffic
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, TlsStream
from sidecar.core.config import Config
from sidecar.core.errors import BackendError, HttpError, PeerError
from sidecar.core.http_answers import HEALTH_PATH, Answer, Answerer, usable_request_id
from sidecar.core.http_gate import CONTINUE, HttpGate
from sidecar.core.http_head import RequestHead
from sidecar.core.http_headers import Forwarding, client_certificate, head_for_backend
from sidecar.core.limits import RequestSlots, Ticket, TokenBuckets
from sidecar.core.policy import RequestDecision, Rule
from sidecar.core.refusal import Refusal

log = structlog.get_logger()

# Read at a time while a head is looked for; bodies go through the relay's own buffer.
_BUFFER = memoryview(bytearray(64 * 1024))
# A connection to the backend is used again within this time only: some model servers close theirs
# after 5 s of idleness, and a request that meets the closing is lost.
_REUSE_SECONDS = 1.0
# The body of a refused request is read to its end when it is short, so that the connection can
# go on; for what is longer, closing is cheaper.
_MAX_SKIPPED_BYTES = 64 * 1024
_SKIP_SECONDS = 1.0


class RefusedError(Exception):
    """This request is not served; `closes` ends the connection after the answer."""

    def __init__(self, refusal: Refusal, reason: str = "", *, closes: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.reason = reason or refusal.message  # for the log, which may say more than the peer
        self.closes = closes


@dataclass(slots=True)
class RequestLine:
    """What the log says of one request."""

    started: float
    request_id: str
    method: str = ""
    path: str = ""
    rule: str | None = None
    decision: str = "refused"
    status: int = 0
    reason: str | None = None
    traffic: Traffic = field(default_factory=Traffic)


class HttpMode:
    """What all connections of mode `http` share."""

    def __init__(
        self,
        config: Config,
        current: CurrentIdentity,
        policy: CurrentPolicy,
        slots: Slots,
        relay: Relay,
    ) -> None:
        self.current, self.policy, self.relay = current, policy, relay
        self.connections = slots
        self.backend, self.timeouts, self.limits = config.backend, config.timeouts, config.limits
        cors = config.cors.cors() if config.cors else None
        self.answerer = Answerer(cors, config.response_headers)
        self.drop_origin = cors is not None
        address = config.backend.address
        self.authority = "localhost" if address.ip is None else str(address)
        keeps = config.backend.host == "keep"
        self.host = None if keeps else config.backend.host or self.authority
        self.health = BackendHealth(
            address, self.host or self.authority, config.backend.health_path
        )
        self.buckets = TokenBuckets()
        self.slots = RequestSlots(self.limits.concurrent_requests, self.limits.queued_requests)
        self.waiting: dict[Ticket, trio.Event] = {}

    async def serve(self, peer: TlsStream, address: str) -> bool:
        """Serve the peer's requests; tell whether the connection ended without our last word."""
        connection = _Connection(self, peer, address)
        with self.connections.connection() as free:
            if free:
                return await connection.serve()
        log.warning("peer refused", **connection.who, reason="too many connections")
        return False

    @asynccontextmanager
    async def slot(self, peer: str, rule: Rule) -> AsyncIterator[None]:
        """Hold one of the slots for requests, after a short wait if it must be."""
        ticket = self.slots.enter((peer, rule.name), rule.limits.concurrent_requests)
        if ticket is None:
            raise RefusedError(_busy(self.limits.queue_seconds))
        try:
            if not ticket.running:
                await self._wait(ticket)
            yield
        finally:
            self.waiting.pop(ticket, None)
            for next_one in self.slots.leave(ticket):
                if next_one in self.waiting:
                    self.waiting[next_one].set()

    async def _wait(self, ticket: Ticket) -> None:
        self.waiting[ticket] = trio.Event()
        with trio.move_on_after(self.limits.queue_seconds):
            await self.waiting[ticket].wait()
        if not ticket.running:
            raise RefusedError(_busy(self.limits.queue_seconds))


class _Connection:
    """One peer's connection."""

    def __init__(self, mode: HttpMode, peer: TlsStream, address: str) -> None:
        self.mode, self.peer, self.address = mode, peer, address
        self.who = {"address": address, "peer": str(peer.peer), "serial": peer.serial}
        self.identity = mode.current.identity  # of the handshake, or newer: proven by it
        self.gate = HttpGate(mode.limits.max_head_bytes)
        self.backend: socket.socket | None = None
        self.backend_used_at = 0.0
        self.requests = 0

    async def serve(self) -> bool:
        """Serve one request after the other; False when the peer is to read a last word."""
        started = trio.current_time()
        try:
            return await self._serve()
        finally:
            self.drop_backend()
            seconds = round(trio.current_time() - started, 3)
            log.info("connection closed", **self.who, requests=self.requests, seconds=seconds)

    async def _serve(self) -> bool:
        try:
            while await self._next_head():
                self.requests += 1
                if not await self._one_request():
                    return False
                self.gate.next_request()
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
        if self.gate.is_idle and not await self._first_byte():
            return False
        with trio.move_on_after(self.mode.timeouts.request_head):
            while not self.gate.has_request:
                await trio.lowlevel.wait_readable(self.peer.sock)
                self._read()
            return True
        seconds = self.mode.timeouts.request_head
        raise HttpError(408, "request_timeout", f"no complete head within {seconds:g} s")

    async def _first_byte(self) -> bool:
        """Wait for the beginning of a request, and give the backend back while none comes."""
        with trio.move_on_after(_REUSE_SECONDS) as soon:
            await trio.lowlevel.wait_readable(self.peer.sock)
        if soon.cancelled_caught:
            self.drop_backend()
            with trio.move_on_after(self.mode.timeouts.idle) as idle:
                await trio.lowlevel.wait_readable(self.peer.sock)
            return not idle.cancelled_caught
        return True

    def _read(self) -> None:
        """Take what the peer has sent; raise `PeerLeftError` at its end."""
        try:
            count, ended = self.peer.drain(_BUFFER)
        except BlockingIOError:
            return
        except (EOFError, ConnectionError) as exc:
            raise PeerLeftError(str(exc)) from exc
        self.gate.receive(_BUFFER[:count])
        if ended:
            raise PeerLeftError("closed")

    # One request.

    async def _one_request(self) -> bool:
        """Answer one request and log it; False when the connection ends with it."""
        request = self.gate.request
        assert request is not None
        request_id = usable_request_id(request) or secrets.token_hex(16)
        line = RequestLine(trio.current_time(), request_id, request.method, request.path)
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
            return await self._refuse(request, RefusedError(self._silence(), closes=True), line)
        except PeerLeftError:
            line.reason = "the peer left before it had its answer"
            raise
        finally:
            self._log(line)

    async def _answer(self, request: RequestHead, line: RequestLine) -> bool:
        identity = self._checked_identity()
        own = self.mode.answerer.preflight(request)
        if own is None and request.path == HEALTH_PATH and request.method in ("GET", "HEAD"):
            line.decision = "allowed"
            own = self.mode.answerer.health(await self.mode.health.reason_against())
        if own is not None:
            return await self._give(request, own, line, closes=False)
        decision = self._decide(request, line)
        assert decision.rule is not None
        async with self.mode.slot(str(self.peer.peer), decision.rule):
            await self._exchange(request, decision.rule, identity, line)
        return self.gate.keeps_connection

    def _checked_identity(self) -> ServerIdentity:
        """Check what may have changed since the handshake, or raise `RefusedError`."""
        clocks = read_clocks()
        identity = self.mode.current.serving(clocks)
        if identity is None:
            text = "this model server has no valid identity at the moment; try again later"
            raise RefusedError(Refusal(503, "no_identity", text, 5), closes=True)
        if clocks.wall >= self.peer.not_after:
            text = "your X.509-SVID has expired; connect again with a new one"
            raise RefusedError(Refusal(403, "svid_expired", text), closes=True)
        if identity is not self.identity:
            try:
                self.peer.prove_again(identity, clocks.wall)
            except PeerError as exc:
                text = "your X.509-SVID is no longer trusted here; connect again with a new one"
                log.warning("peer no longer trusted", **self.who, reason=exc.message)
                raise RefusedError(Refusal(403, "svid_not_trusted", text), closes=True) from exc
        admitted = self.mode.policy.policy.decide(self.peer.peer)
        if not admitted.allowed:
            text = f"{self.peer.peer} is not admitted by the policy of this model server"
            raise RefusedError(
                Refusal(403, "peer_not_admitted", text), admitted.reason, closes=True
            )
        return identity

    def _decide(self, request: RequestHead, line: RequestLine) -> RequestDecision:
        """Decide by policy, body size and rate, or raise `RefusedError`."""
        decision = self.mode.policy.policy.decide_request(
            self.peer.peer, request.method, request.path
        )
        line.rule = decision.rule.name if decision.rule else None
        if not decision.allowed or decision.rule is None:
            text = f"{request.method} {request.path[:200]} is not allowed for {self.peer.peer}"
            raise RefusedError(Refusal(403, "endpoint_not_allowed", text), decision.reason)
        if decision.endpoint is not None:
            line.path = decision.endpoint.text.partition(" ")[2] or request.path
        limits = decision.rule.limits
        if limits.max_body_bytes is not None:
            self.gate.limit_body(min(limits.max_body_bytes, self.mode.limits.max_body_bytes))
        else:
            self.gate.limit_body(self.mode.limits.max_body_bytes)
        if limits.requests_per_second is not None:
            rate = limits.requests_per_second
            burst = limits.burst or max(1, math.ceil(rate))
            key = (str(self.peer.peer), decision.rule.name)
            wait = self.mode.buckets.take(key, rate, burst, trio.current_time())
            if wait:
                raise RefusedError(_too_fast(rate, burst, wait))
        line.decision = "allowed"
        return decision

    async def _exchange(
        self, request: RequestHead, rule: Rule, identity: ServerIdentity, line: RequestLine
    ) -> None:
        """Let the request through, and its answer back."""
        target = await self._backend()
        head = head_for_backend(request, self._forwarding(request, rule, identity, line))
        extras = self.mode.answerer.extras(request)
        rotated = identity is not self.identity
        to_backend = self.gate.admit(head, line.request_id, extras, closes=rotated)
        waits = request.wants_continue and not self.gate.request_is_complete
        begin = to_backend, CONTINUE if waits else b""
        try:
            await self.mode.relay.exchange(self.peer, target, self.gate, begin, line.traffic)
        finally:
            if self.gate.response is not None:
                line.status = self.gate.response.status
            if not self.gate.backend_is_reusable:
                self.drop_backend()
            self.backend_used_at = trio.current_time()

    def _forwarding(
        self, request: RequestHead, rule: Rule, identity: ServerIdentity, line: RequestLine
    ) -> Forwarding:
        me, them = str(identity.svid.spiffe_id), str(self.peer.peer)
        return Forwarding(
            host=self.mode.host or request.host.decode(),
            peer=them,
            client_certificate=client_certificate(me, self.peer.fingerprint, them),
            remote_ip=self.address.rpartition(":")[0].strip("[]"),
            request_id=line.request_id,
            trusted_proxy=rule.trusted_proxy,
            drop_origin=self.mode.drop_origin,
        )

    # The backend.

    async def _backend(self) -> socket.socket:
        """Give a connection to the backend: the last request's if it is fresh, or a new one."""
        if self.backend is not None and not self._is_fresh(self.backend):
            self.drop_backend()
        if self.backend is None:
            try:
                self.backend = await backend.connect(
                    self.mode.backend.address, self.mode.timeouts.backend_connect
                )
            except BackendError as exc:
                log.warning("backend unreachable", **self.who, reason=exc.message, hint=exc.hint)
                raise
        return self.backend

    def _is_fresh(self, sock: socket.socket) -> bool:
        if trio.current_time() - self.backend_used_at > _REUSE_SECONDS:
            return False
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True  # open, and silent as it should be
        except OSError:
            return False
        return False

    def drop_backend(self) -> None:
        """Close the connection to the backend."""
        if self.backend is not None:
            self.backend.close()
            self.backend = None

    # Answers of our own.

    async def _refuse(self, request: RequestHead, refused: RefusedError, line: RequestLine) -> bool:
        """Say why, if nothing of an answer is on its way; False when the connection ends."""
        line.reason = line.reason or refused.reason
        if self.gate.response is not None:
            # Its head is out: the peer must see an answer that was cut, and no second one.
            raise PeerLeftError("cut")
        closes = refused.closes or not await self._skip_body(request)
        answer = self.mode.answerer.refusal(refused.refusal, request, line.request_id)
        return await self._give(request, answer, line, closes=closes)

    async def _skip_body(self, request: RequestHead) -> bool:
        """Read the rest of a short body; False when it is long, or does not come."""
        self.gate.skip()
        too_long = request.length is None or request.length > _MAX_SKIPPED_BYTES
        if self.gate.request_is_complete or too_long or request.wants_continue:
            return self.gate.request_is_complete
        with trio.move_on_after(_SKIP_SECONDS):
            while not self.gate.request_is_complete:
                await trio.lowlevel.wait_readable(self.peer.sock)
                self._read()
                self.gate.skip()
        return self.gate.request_is_complete

    async def _give(
        self, request: RequestHead, answer: Answer, line: RequestLine, *, closes: bool
    ) -> bool:
        """Send an answer of our own; False when the connection ends with it."""
        line.status = answer.status
        closes = closes or request.wants_close or not await self._skip_body(request)
        data = answer.encoded(line.request_id, without_body=request.method == "HEAD", closes=closes)
        await self._send(data)
        line.traffic.sent += len(data)
        return not closes

    async def _refuse_form(self, exc: HttpError) -> None:
        """Answer what could not be read as a request; nothing after it can be trusted."""
        request_id = secrets.token_hex(16)
        refusal = Refusal(exc.status, exc.code, exc.message)
        answer = self.mode.answerer.refusal(refusal, None, request_id)
        log.warning(
            "request", **self.who, decision="refused", status=exc.status, reason=exc.message
        )
        await self._send(answer.encoded(request_id, without_body=False, closes=True))

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        with trio.move_on_after(self.mode.timeouts.between_bytes):
            try:
                while left:
                    left = left[self.peer.send(left) :]
                    if left:
                        await trio.lowlevel.wait_writable(self.peer.sock)
            except ConnectionError as exc:
                raise PeerLeftError(str(exc)) from exc
            return
        raise PeerLeftError("it does not read")

    def _silence(self) -> Refusal:
        seconds = self.mode.timeouts.between_bytes
        if not self.gate.request_is_complete:
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


def _busy(seconds: float) -> Refusal:
    text = f"the model server is busy: no place for this request within {seconds:g} s"
    return Refusal(503, "busy", text, max(1, math.ceil(seconds)))


def _too_fast(rate: float, burst: int, wait: float) -> Refusal:
    text = f"too many requests: {rate:g} a second are allowed, and {burst} at once"
    return Refusal(429, "rate_limited", text, max(1, math.ceil(wait)))


def _bad_gateway() -> Refusal:
    text = "the model server cannot be reached or broke off; is it running?"
    return Refusal(502, "backend_unreachable", text)
