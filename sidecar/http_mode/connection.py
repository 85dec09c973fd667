"""One peer's connection: wait for a request, have it admitted, move it, log it, and again.

Each request comes to one of three ends: an answer of the backend that went through the relay, an
answer of our own, or a cut where an answer was begun and cannot be finished.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus
from typing import Protocol

import structlog
import trio

from sidecar.adapters.backend_health import BackendHealth
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.lifelines import Lifeline
from sidecar.adapters.lingering import Ending
from sidecar.adapters.relay import PeerCutError, PeerLeftError, Relay, SilenceError, Traffic
from sidecar.adapters.tls import ServerIdentity, TlsStream
from sidecar.core.config import Config
from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_answers import (
    Answer,
    Answerer,
    is_balancer_check,
    is_health_question,
    is_preflight,
    usable_request_id,
)
from sidecar.core.http_gate import CONTINUE, HttpGate
from sidecar.core.http_head import RequestHead
from sidecar.core.http_headers import (
    Forwarding,
    client_certificate,
    head_for_backend,
    passes_origin,
)
from sidecar.core.ledger import BACKEND_FAILURES, Ledger
from sidecar.core.limits import Ticket
from sidecar.core.peer_counts import PeerCounts
from sidecar.core.policy import Rule
from sidecar.core.refusal import Refusal
from sidecar.http_mode.admission import Admission, RefusedError
from sidecar.http_mode.backend_link import BackendLink
from sidecar.http_mode.drain import Drain
from sidecar.http_mode.failures import OUTCOME_OF_SILENCE, bad_gateway, late
from sidecar.http_mode.peer_end import PeerEnd
from sidecar.http_mode.request_line import RequestLine, shown_path

log = structlog.get_logger()

_NO_WEBSOCKET = "WebSocket is not served here; ask over HTTP, with a stream of events if need be"
_FOREIGN_ORIGIN = (
    "the model server answered 403 to a page of another origin; [cors] is for such pages"
)
_NO_CORS = "a browser's preflight, which [cors] would answer"


class Slots(Protocol):
    """Where a request waits for its turn."""

    def enter(self, peer: str, rule: Rule) -> Ticket:
        """Give a ticket that runs or waits; raise `RefusedError` without one."""

    async def wait(self, ticket: Ticket) -> None:
        """Wait until it runs; raise `RefusedError` if that takes too long."""

    def leave(self, ticket: Ticket) -> None:
        """Give it back, and let others run."""


@dataclass(slots=True)
class Shared:
    """What all connections of one configuration share; `is_old` when there is a newer one."""

    config: Config
    relay: Relay
    admission: Admission
    answerer: Answerer
    health: BackendHealth
    slots: Slots
    drain: Drain
    ledger: Ledger
    host: str  # what requests are addressed by
    keeps_host: bool  # if the peer names a host, they are addressed by that
    is_old: bool = False


class HttpConnection:
    """One peer's connection."""

    def __init__(self, shared: Shared, peer: TlsStream, address: str) -> None:
        self._shared, self._peer, self._address = shared, peer, address
        self._timeouts = shared.config.timeouts
        self.who = {"address": address, "peer": str(peer.peer), "serial": peer.serial}
        self._gate = HttpGate(shared.config.limits.max_head_bytes)
        self._end = PeerEnd(peer, self._gate, self._timeouts, shared.drain)
        address_of_backend = shared.config.backend.address
        self._link = BackendLink(address_of_backend, self._timeouts.backend_connect)
        self._requests = 0
        self._no_request: HttpError | None = None
        self._is_last = False  # of the answers on this connection
        self._lifeline: Lifeline | None = None
        self._counts: PeerCounts | None = None  # of strangers there are none

    @property
    def has_answered(self) -> bool:
        """Tell whether a request was answered, and so was counted."""
        return bool(self._requests)

    async def wait(self, seconds: float) -> bool:
        """Wait for the first request, or what is none but has to be answered."""
        try:
            return await self._end.next_head(seconds, self._link)
        except HttpError as exc:
            self._no_request = exc
            return True
        except PeerLeftError:
            return False

    def end(self) -> None:
        """Let no new request begin."""
        self._gate.close_after_answer()
        self._end.ended = True
        self._shared.drain.end(self._peer)

    async def serve(self, lifeline: Lifeline | None = None) -> Ending:
        """Serve one request after the other; truncated if the last answer is not whole."""
        self._lifeline = lifeline
        started = trio.current_time()
        self._shared.drain.gates.add(self._gate)
        ledger = self._shared.ledger
        if lifeline is not None:
            self._counts = ledger.connected(self._peer.peer, read_clocks().wall)
        try:
            return await self._serve()
        finally:
            if self._counts is not None:
                ledger.disconnected(self._counts, read_clocks().wall)
            self._shared.drain.gates.discard(self._gate)
            self._link.drop()
            if lifeline is not None:  # of a stranger the line of its request says all
                seconds = trio.current_time() - started
                ledger.connection_ended(seconds, self._ended)
                self._log_closed(round(seconds, 3))
            self._no_request = None  # raised here, it holds our frames, and they hold us

    def _log_closed(self, seconds: float) -> None:
        end = {"end": self._ended} if self._ended else {}
        log.info("connection closed", **self.who, requests=self._requests, seconds=seconds, **end)

    async def _serve(self) -> Ending:
        try:
            if self._no_request is not None:
                raise self._no_request
            while not self._ended and await self._next_head():
                self._requests += 1
                try:
                    goes_on = await self._one_request()
                except PeerLeftError:
                    return Ending.TRUNCATED
                # Of a stranger nobody keeps watch: what it asks is answered once.
                if not goes_on or self._lifeline is None:
                    break
                self._gate.next_request()
        except HttpError as exc:
            with suppress(PeerLeftError):
                await self._refuse_form(exc)
        except PeerLeftError:
            pass  # between two answers
        return Ending.COMPLETE

    @property
    def _ended(self) -> str:
        """Say why no new request may begin on this connection."""
        return self._lifeline.ended if self._lifeline else ""

    @property
    def _cut(self) -> str:
        was_cut = self._lifeline is not None and self._lifeline.was_cut
        return f"cut: {self._ended if was_cut else 'shutting down'}"

    async def _next_head(self) -> bool:
        return await self._end.next_head(self._timeouts.idle, self._link)

    async def _one_request(self) -> bool:
        """Answer one request and log it; False when the connection ends with it."""
        request = self._gate.request
        assert request is not None
        # Two peers must not bear one ID, here and in the model server's log.
        is_trusted = self._shared.admission.is_trusted_proxy(self._peer, request)
        request_id = (is_trusted and usable_request_id(request)) or secrets.token_hex(16)
        line = RequestLine(trio.current_time(), request_id, request.method, shown_path(request))
        self._shared.ledger.request_began(self._counts)
        try:
            return await self._answer(request, line)
        except RefusedError as exc:
            line.decision = "refused"
            return await self._refuse(request, exc, line)
        except HttpError as exc:
            refusal = Refusal(exc.status, exc.code, exc.message)
            return await self._refuse(request, RefusedError(refusal, closes=True), line)
        except BackendError as exc:
            line.reason, line.outcome = exc.message, "backend_failed"
            return await self._refuse(request, RefusedError(bad_gateway()), line)
        except SilenceError as exc:
            line.reason, line.outcome = str(exc), OUTCOME_OF_SILENCE[exc.waited]
            if line.outcome == "backend_failed":
                self._shared.ledger.backend_failed("silent")
            return await self._refuse(request, RefusedError(late(exc), closes=True), line)
        except PeerCutError as exc:
            line.reason, line.outcome = str(exc), "cut"
            raise
        except PeerLeftError:
            line.reason, line.outcome = "the peer left before it had its answer", "peer_left"
            raise
        except trio.Cancelled:
            line.reason, line.outcome = self._cut, "cut"
            raise
        finally:
            if not line.status and line.reason is None:
                # While it waited with others, in a nursery.
                line.reason, line.outcome = self._cut, "cut"
            line.write(self.who)
            self._shared.ledger.request_finished(self._counts, line.finished())

    async def _answer(self, request: RequestHead, line: RequestLine) -> bool:
        shared = self._shared
        identity = self._check_identity()
        own = await self._own_answer(request, line)
        if own is not None:
            line.decision, line.is_own, line.note = "allowed", True, own.note
            keeps = await self._give(request, own, line, closes=False)
            line.outcome = "answered"
            return keeps
        rule = self._decide(request, line)
        shared.admission.rate(self._peer, rule)
        ticket = shared.slots.enter(str(self._peer.peer), rule)
        line.decision = "allowed"
        try:
            if not ticket.running or not self._can_reuse_link(request):
                await self._wait_for_turn(request, ticket)
                # Much may have changed meanwhile; what counts is the moment when it goes on.
                identity, rule = self._check_identity(), self._decide(request, line)
            line.served = True
            if self._lifeline:
                self._lifeline.request = request.method, request.path
            await self._move(request, self._forwarding(request, rule, identity, line), line)
            line.outcome = "answered"
        finally:
            shared.slots.leave(ticket)
            if self._lifeline:
                self._lifeline.request = None
        return self._gate.keeps_connection

    def _check_identity(self) -> ServerIdentity:
        """Check ours and the peer's, and whether this connection should end with this answer."""
        identity = self._shared.admission.identity(self._peer)
        # A pooling client should dial again, and meet the newest SVID.
        is_old = identity is not self._peer.identity or self._shared.is_old
        ends = self._lifeline is None or bool(self._ended)
        self._is_last = is_old or self._shared.drain.begun or ends
        return identity

    def _decide(self, request: RequestHead, line: RequestLine) -> Rule:
        """Give the rule that lets the request through."""
        line.rule, line.path = None, shown_path(request)
        decision = self._shared.admission.request(self._peer, request)
        rule, endpoint = decision.rule, decision.endpoint
        assert rule is not None
        assert endpoint is not None
        line.rule, line.path = rule.name, endpoint.text.partition(" ")[2] or line.path
        self._shared.admission.limit_body(rule, self._gate)
        return rule

    def _can_reuse_link(self, request: RequestHead) -> bool:
        return request.is_repeatable and self._link.is_fresh

    async def _wait_for_turn(self, request: RequestHead, ticket: Ticket) -> None:
        """Wait for a slot, and for the backend."""
        if not ticket.running and self._counts is not None:
            with self._counts.queue():
                await self._end.unless_gone(lambda: self._shared.slots.wait(ticket))
        elif not ticket.running:
            await self._end.unless_gone(lambda: self._shared.slots.wait(ticket))
        if not self._can_reuse_link(request):
            await self._open_link()

    async def _open_link(self) -> None:
        try:
            if not self._link.begin():
                await self._end.unless_gone(self._link.finish)
        except BackendError:
            self._shared.health.used(well=False)
            self._shared.ledger.backend_failed("unreachable")
            raise

    async def _own_answer(self, request: RequestHead, line: RequestLine) -> Answer | None:
        """Answer what is not for the backend: a browser's preflight, our health, OPTIONS *."""
        answerer, admission = self._shared.answerer, self._shared.admission
        if request.wants_websocket:
            raise RefusedError(Refusal(501, "websocket_not_served", _NO_WEBSOCKET), closes=True)
        is_check = is_balancer_check(request) and not admission.allows(self._peer, request)
        if is_check or is_health_question(request):
            health = self._shared.health
            line.reason = await self._end.unless_gone(health.reason_against)
            return answerer.health(request, line.reason)
        return answerer.preflight(request) or answerer.server_options(request)

    async def _move(self, request: RequestHead, forwarding: Forwarding, line: RequestLine) -> None:
        """Exchange it; again on a new connection if the kept one ended instead of an answer."""
        is_kept = self._link.is_kept
        try:
            return await self._exchange(request, forwarding, line)
        except BackendError:
            if not is_kept or self._gate.answer_has_begun:
                self._shared.ledger.backend_failed("broke")
                raise
        line.traffic = Traffic()
        await self._open_link()
        identity, rule = self._check_identity(), self._decide(request, line)
        forwarding = self._forwarding(request, rule, identity, line)
        try:
            return await self._exchange(request, forwarding, line)
        except BackendError:
            self._shared.ledger.backend_failed("broke")
            raise

    async def _exchange(
        self, request: RequestHead, forwarding: Forwarding, line: RequestLine
    ) -> None:
        """Let the request through, and its answer back."""
        head = head_for_backend(request, forwarding)
        extras = self._shared.answerer.extras(request)
        to_backend = self._gate.admit(
            head, line.request_id, extras, closes=self._is_last, is_kept=self._link.is_kept
        )
        waits = request.wants_continue and not self._gate.request_is_complete
        begin = to_backend, CONTINUE if waits else b""
        try:
            await self._shared.relay.exchange(
                self._peer, self._link.sock, self._gate, begin, line.traffic
            )
        finally:
            if self._gate.response is not None:
                line.status = self._gate.response.status
                self._shared.health.used(well=True)
                if line.status == HTTPStatus.FORBIDDEN and passes_origin(request, forwarding):
                    line.note = _FOREIGN_ORIGIN
            if self._gate.backend_is_reusable and not line.traffic.undelivered:
                self._link.keep()
            else:
                self._link.drop()

    def _forwarding(
        self, request: RequestHead, rule: Rule, identity: ServerIdentity, line: RequestLine
    ) -> Forwarding:
        me, them = str(identity.svid.spiffe_id), str(self._peer.peer)
        return Forwarding(
            host=(self._shared.keeps_host and request.host.decode()) or self._shared.host,
            peer=them,
            client_certificate=client_certificate(me, self._peer.fingerprint, them),
            remote_ip=self._address.rpartition(":")[0].strip("[]"),
            request_id=line.request_id,
            trusted_proxy=rule.trusted_proxy,
            drop_origin=self._shared.config.cors is not None,
            pass_headers=rule.pass_headers,
        )

    # Answers of our own.

    async def _refuse(self, request: RequestHead, refused: RefusedError, line: RequestLine) -> bool:
        """Say why, if nothing of an answer is on its way; False when the connection ends."""
        line.reason = line.reason or refused.reason
        if is_preflight(request) and self._shared.config.cors is None:
            line.note = _NO_CORS
        self._count_refusal(refused.refusal, line.reason)
        if self._gate.response is not None:
            # Its head is out: the peer must see an answer that was cut, and no second one.
            raise PeerLeftError("cut")
        closes = refused.closes or not await self._end.skip_body(request)
        answer = self._shared.answerer.refusal(refused.refusal, request, line.request_id)
        return await self._give(request, answer, line, closes=closes)

    def _count_refusal(self, refusal: Refusal, reason: str) -> None:
        ledger = self._shared.ledger
        ledger.denied(refusal.code, self._counts)
        if refusal.code not in BACKEND_FAILURES:
            ledger.refused(read_clocks().wall, self._address, self._peer.peer, reason)

    async def _give(
        self, request: RequestHead, answer: Answer, line: RequestLine, *, closes: bool
    ) -> bool:
        """Send an answer of our own; False when the connection ends with it."""
        closes = closes or self._is_last or request.wants_close
        closes = closes or not await self._end.skip_body(request)
        without_body = request.method == "HEAD"
        await self._send_answer(answer, line, without_body=without_body, closes=closes)
        return not closes

    async def _refuse_form(self, exc: HttpError) -> None:
        """Answer what could not be read as a request; nothing after it can be trusted."""
        line = RequestLine(trio.current_time(), secrets.token_hex(16), reason=exc.message)
        refusal = Refusal(exc.status, exc.code, exc.message)
        self._count_refusal(refusal, exc.message)
        answer = self._shared.answerer.refusal(refusal, None, line.request_id)
        try:
            await self._send_answer(answer, line, without_body=False, closes=True)
        finally:
            line.write(self.who)
            self._shared.ledger.request_finished(None, line.finished())

    async def _send_answer(
        self, answer: Answer, line: RequestLine, *, without_body: bool, closes: bool
    ) -> None:
        line.status = answer.status
        date = format_datetime(read_clocks().wall, usegmt=True)
        data = answer.encoded(line.request_id, without_body=without_body, closes=closes, date=date)
        await self._end.send(data)
        line.traffic.sent += len(data)
