"""May this request go on? Identity, peer, policy, body size and rate, all as of this moment.

Gives the rule that lets it through, or raises `RefusedError` with what the peer is told and what
the log says: the log may know more.
"""

from __future__ import annotations

import math

import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, TlsStream
from sidecar.core.config import LimitsTable
from sidecar.core.errors import PeerError
from sidecar.core.http_gate import HttpGate
from sidecar.core.http_head import RequestHead
from sidecar.core.limits import TokenBuckets
from sidecar.core.policy import RequestDecision, Rule
from sidecar.core.refusal import Refusal
from sidecar.core.svid import is_over

MAX_SHOWN_PATH = 200


class RefusedError(Exception):
    """This request is not served; `closes` ends the connection after the answer."""

    def __init__(self, refusal: Refusal, reason: str = "", *, closes: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.reason = reason or refusal.message
        self.closes = closes


class Admission:
    """What decides; shared by all connections."""

    def __init__(
        self, current: CurrentIdentity, policy: CurrentPolicy, limits: LimitsTable
    ) -> None:
        self._current, self._policy, self.limits = current, policy, limits
        self._buckets = TokenBuckets()

    def identity(self, peer: TlsStream) -> ServerIdentity:
        """Give what we serve with now, if it still proves the peer and policy still knows it."""
        clocks = read_clocks()
        identity = self._current.serving(clocks)
        if identity is None:
            text = "this model server has no valid identity at the moment; try again later"
            raise RefusedError(Refusal(503, "no_identity", text, 5), closes=True)
        if is_over(peer.not_after, clocks.wall):
            text = "your X.509-SVID has expired; connect again with a new one"
            raise RefusedError(Refusal(403, "svid_expired", text), closes=True)
        if identity is not peer.identity:
            try:
                peer.prove_again(identity, clocks.wall)
            except PeerError as exc:
                text = "your X.509-SVID is no longer trusted here; connect again with a new one"
                refusal = Refusal(403, "svid_not_trusted", text)
                raise RefusedError(refusal, exc.message, closes=True) from exc
        self._check_admitted(peer)
        return identity

    def _check_admitted(self, peer: TlsStream) -> None:
        admitted = self._policy.policy.decide(peer.peer)
        if not admitted.allowed:
            text = f"{peer.peer} is not admitted by the policy of this model server"
            refusal = Refusal(403, "peer_not_admitted", text)
            raise RefusedError(refusal, admitted.reason, closes=True)

    def request(self, peer: TlsStream, request: RequestHead) -> RequestDecision:
        """Decide by peer, method and path, of which the policy of this moment knows."""
        policy = self._policy.policy
        decision = policy.decide_request(peer.peer, request.method, request.path)
        if not decision.allowed:
            text = (
                f"{request.method} {request.path[:MAX_SHOWN_PATH]} is not allowed for {peer.peer}"
            )
            raise RefusedError(Refusal(403, "endpoint_not_allowed", text), decision.reason)
        return decision

    def allows(self, peer: TlsStream, request: RequestHead) -> bool:
        """Tell whether some rule allows the request."""
        policy = self._policy.policy
        return policy.decide_request(peer.peer, request.method, request.path).allowed

    def is_trusted_proxy(self, peer: TlsStream, request: RequestHead) -> bool:
        """Tell whether what the peer says of the request's way so far is believed."""
        policy = self._policy.policy
        return policy.is_trusted_proxy(peer.peer, request.method, request.path)

    def limit_body(self, rule: Rule, gate: HttpGate) -> None:
        """Hold the body to the smaller limit of rule and configuration; raises `HttpError`."""
        most, of_rule = self.limits.max_body_bytes, rule.limits.max_body_bytes
        gate.limit_body(most if of_rule is None else min(most, of_rule))

    def rate(self, peer: TlsStream, rule: Rule) -> None:
        """Take a token of the peer's under that rule."""
        rate = rule.limits.requests_per_second
        if rate is not None:
            burst = rule.limits.burst
            assert burst is not None
            key = (peer.peer, rule.name)
            wait = self._buckets.take(key, rate, burst, trio.current_time())
            if wait:
                text = f"too many requests: {rate:g} a second are allowed, and {burst} at once"
                refusal = Refusal(429, "rate_limited", text, max(1, math.ceil(wait)))
                raise RefusedError(refusal)
