"""What becomes of one peer or one request, and why, for a person to read.

Gets policy, configuration and a question; gives an `Explanation`: the verdict, near misses, and
every rule in the order in which it is tried. The verdict is that of `Policy.decide` and
`Policy.decide_request`; what stands around them at run time (the form of a request, `GET /health`,
the limits) is asked of the code that runs then. The daemon decides without any of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sidecar.core.config import Config
from sidecar.core.endpoint import BadPathError, RequestPath
from sidecar.core.errors import HttpError
from sidecar.core.http_answers import HEALTH_PATH
from sidecar.core.http_head import ASTERISK, parse_request
from sidecar.core.near_miss import FAR, Miss, endpoint_miss, peer_miss
from sidecar.core.policy import PeerPattern, Policy, RequestDecision, Rule
from sidecar.core.spiffe_id import SpiffeId

Kind = Literal["deny", "allow"]
Outcome = Literal["decides", "other peers", "other endpoints", "beaten", "not reached"]
_MOST_NEAR_MISSES = 5


@dataclass(frozen=True, slots=True)
class Request:
    """A method and a path as they are sent, without a query."""

    method: str
    path: str

    def __str__(self) -> str:
        text = f"{self.method} {self.path}"
        return text if text.isprintable() else repr(text)


@dataclass(frozen=True, slots=True)
class Considered:
    """One rule and its part in the verdict."""

    kind: Kind
    rule: str
    outcome: Outcome
    why: str

    def __str__(self) -> str:
        return f"{self.kind:<5} {self.rule!r}: {self.why}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict in one line, and what it rests on."""

    allowed: bool
    verdict: str
    details: tuple[str, ...]
    near_misses: tuple[str, ...] = ()
    considered: tuple[Considered, ...] = ()

    def lines(self) -> list[str]:
        """Give it as text."""
        lines = [self.verdict, *(f"  {line}" for line in self.details)]
        if self.near_misses:
            lines += ["near misses:", *(f"  {line}" for line in self.near_misses)]
        if self.considered:
            lines += ["rules, in the order they are tried:"]
        return lines + [f"  {one}" for one in self.considered]


def explain_peer(policy: Policy, peer: SpiffeId, config: Config) -> Explanation:
    """Explain whether `peer` is admitted at all, and in mode `http` what it may ask for."""
    decision = policy.decide(peer)
    considered = tuple(_considered(policy, peer, None))
    if not decision.allowed:
        verdict = f"REFUSED: {peer}: {decision.reason}"
        return Explanation(False, verdict, (), _near_peers(policy, peer), considered)
    verdict = f"ALLOWED by rule {decision.rule!r}: {peer} is admitted"
    if config.backend.mode == "stream":
        details = ['mode "stream": nobody looks into the bytes, so it may send any request']
        return Explanation(True, verdict, tuple(details), (), considered)
    details = [f"GET {HEALTH_PATH}, which the sidecar answers itself"]
    for rule in policy.allow:
        if rule.matches(peer) and rule.endpoints:
            details.append(f"by rule {rule.name!r}, {limits_in_words(rule, config)}:")
            details += [f"  {endpoint}" for endpoint in rule.endpoints]
    return Explanation(True, verdict, tuple(details), (), considered)


def explain_request(
    policy: Policy, peer: SpiffeId, request: Request, config: Config
) -> Explanation:
    """Explain what becomes of one request of `peer` in mode `http`."""
    details = [f"peer      {peer}"]
    malformed = _malformed(request)
    if malformed is not None:
        verdict = f"REFUSED: {request}: {malformed}; no rule is asked"
        return Explanation(False, verdict, tuple(details), _repairs(policy, peer, request))
    admitted = policy.decide(peer)
    is_health = request.path == HEALTH_PATH and request.method in ("GET", "HEAD")
    if admitted.allowed and (is_health or request.path == ASTERISK):
        verdict = f"ALLOWED by rule {admitted.rule!r}: {request}"
        details.append("endpoint  the sidecar's own, for every peer that is admitted; no limits")
        return Explanation(
            True, verdict, tuple(details), (), tuple(_considered(policy, peer, None))
        )
    decision = policy.decide_request(peer, request.method, request.path)
    details += _details(decision, peer, request, config)
    considered = tuple(_considered(policy, peer, request))
    if decision.allowed and decision.rule is not None:
        verdict = f"ALLOWED by rule {decision.rule.name!r}: {request}"
        return Explanation(True, verdict, tuple(details), (), considered)
    near = _near_peers(policy, peer)
    if admitted.allowed:
        near = _repairs(policy, peer, request) or _near_endpoints(policy, peer, request)
    verdict = f"REFUSED: {request}: {decision.reason}"
    return Explanation(False, verdict, tuple(details), near, considered)


def limits_in_words(rule: Rule, config: Config) -> str:
    """Give the limits that hold for each peer of `rule`."""
    own, of_all = rule.limits, config.limits
    words = ["no rate"]
    if own.requests_per_second is not None:
        words = [f"{own.requests_per_second:g} requests a second and {own.burst} at once"]
    running, connections = of_all.of_one_peer, config.connections.of_one_peer
    if own.concurrent_requests is not None:
        running = min(running, own.concurrent_requests)
    words.append(f"{running} running at a time")
    if own.connections is not None:
        words.append(f"{min(connections, own.connections)} connections")
    body = of_all.max_body_bytes
    if own.max_body_bytes is not None:
        body = min(body, own.max_body_bytes)
    words.append(f"bodies of at most {body} bytes")
    return ", ".join(words)


def _details(
    decision: RequestDecision, peer: SpiffeId, request: Request, config: Config
) -> Iterator[str]:
    if decision.rule is not None:
        yield f"named by  {_naming(decision.rule, peer)}"
        yield f"endpoint  {decision.endpoint}"
        yield f"limits    {limits_in_words(decision.rule, config)}"
        if decision.rule.pass_headers:
            yield f"passes    {', '.join(sorted(decision.rule.pass_headers))}"
    if request.method == "OPTIONS" and config.cors is not None:
        yield (
            "browsers  a preflight (with Access-Control-Request-Method) is answered by the "
            "sidecar itself, from [cors]"
        )
    if decision.allowed and config.cors is None:
        yield (
            "browsers  the model server judges a page of another origin (Ollama: 403); [cors] is "
            "for such pages"
        )


def _malformed(request: Request) -> str | None:
    """Give why no rule is asked, in the words of the parser that meets the request."""
    if request.method != request.method.upper():
        return "a method is written in upper case"
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    try:
        parse_request(head.encode("utf-8", "surrogateescape"))
    except HttpError as exc:
        return exc.message
    return None


def _considered(policy: Policy, peer: SpiffeId, request: Request | None) -> Iterator[Considered]:
    """Give each rule's part: what it says by itself, and what those before it make of that."""
    decider: tuple[Kind, Rule] | None = None
    rules: list[tuple[Kind, Rule]] = [("deny", rule) for rule in policy.deny]
    rules += [("allow", rule) for rule in policy.allow]
    for kind, rule in rules:
        outcome, why = _alone(kind, rule, peer, request)
        if decider is None:
            decider = (kind, rule) if outcome == "decides" else None
        elif decider[0] == "deny" == kind or decider[0] == "allow":
            outcome, why = "not reached", "not reached"
        elif outcome == "decides":
            outcome, why = "beaten", f"would allow it, but deny {decider[1].name!r} beats it"
        yield Considered(kind, rule.name, outcome, why)


def _alone(kind: Kind, rule: Rule, peer: SpiffeId, request: Request | None) -> tuple[Outcome, str]:
    """Give what a rule says when there is no other."""
    pattern = _naming(rule, peer)
    if pattern is None:
        own = "allows this request, but to" if _allows(rule, request) else "names"
        miss, nearest = _nearest(rule, peer)
        text = f"{own} other peers; nearest {nearest}: {miss.text}" if nearest else "has no peers"
        return "other peers", text
    if kind == "deny" or request is None or _allows(rule, request):
        return "decides", f"decides; {pattern} names the peer"
    if not rule.endpoints:
        return "other endpoints", "names the peer, but it has no endpoints"
    own = f"none of its {len(rule.endpoints)} endpoints names the request"
    return "other endpoints", f"names the peer, but {own}"


def _allows(rule: Rule, request: Request | None) -> bool:
    if request is None:
        return False
    try:
        path = RequestPath.parse(request.path)
    except BadPathError:
        return False
    return any(endpoint.matches(request.method, path) for endpoint in rule.endpoints)


def _naming(rule: Rule, peer: SpiffeId) -> PeerPattern | None:
    return next((pattern for pattern in rule.peers if pattern.matches(peer)), None)


def _nearest(rule: Rule, peer: SpiffeId) -> tuple[Miss, PeerPattern | None]:
    misses = [(miss, pattern) for pattern in rule.peers if (miss := peer_miss(pattern, peer))]
    return min(misses, key=lambda one: one[0].distance, default=(Miss(FAR, ""), None))


def _near_peers(policy: Policy, peer: SpiffeId) -> tuple[str, ...]:
    """Give the patterns that nearly name a peer whom no rule names."""
    if policy.decide(peer).rule is not None:
        return ()
    found = [(rule, *_nearest(rule, peer)) for rule in policy.allow]
    return _nearest_first(
        (miss, f"allow {rule.name!r} has {pattern}: {miss.text}") for rule, miss, pattern in found
    )


def _near_endpoints(policy: Policy, peer: SpiffeId, request: Request) -> tuple[str, ...]:
    """Give the endpoints that nearly name a request, of rules that name the peer."""
    try:
        path = RequestPath.parse(request.path)
    except BadPathError:
        return ()
    return _nearest_first(
        (miss, f"allow {rule.name!r} has {endpoint}: {miss.text}")
        for rule in policy.allow
        if rule.matches(peer)
        for endpoint in rule.endpoints
        if (miss := endpoint_miss(endpoint, request.method, path))
    )


def _nearest_first(misses: Iterator[tuple[Miss, str]]) -> tuple[str, ...]:
    """Give the near ones; beside a likely mistake, none that is much less likely."""
    near = sorted(((one.distance, text) for one, text in misses if one.is_near), key=lambda x: x[0])
    return tuple(text for far, text in near[:_MOST_NEAR_MISSES] if far <= near[0][0] + 1)


def _repairs(policy: Policy, peer: SpiffeId, request: Request) -> tuple[str, ...]:
    """Give the request that was probably meant, if the policy allows that one."""
    meant = Request(request.method.upper(), re.sub("//+", "/", request.path))
    decision = policy.decide_request(peer, meant.method, meant.path)
    if meant == request or decision.rule is None:
        return ()
    return (f"allow {decision.rule.name!r} allows {meant}",)
