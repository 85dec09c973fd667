"""Policy -> warnings: what is legal and yet most likely not what was meant.

Gets a `Policy` and what is known around it, gives `PolicyWarning` values and decides nothing.
Only what is certain is said: a rule is called unreachable when each request that it could allow is
decided by other rules, never because it looks like it. Not part of `policy_file` because a policy
with warnings is served.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sidecar.core.config import Config
from sidecar.core.endpoint import ANY_ENDPOINT, Endpoint
from sidecar.core.policy import ANY_REST, PeerPattern, Policy, Rule
from sidecar.core.policy_file import Mode
from sidecar.core.presets import HEALTH_PATHS, PREFIX, SERVED_BY
from sidecar.core.spiffe_id import TrustDomain

_OUR_HEALTH = Endpoint.parse("GET /health")


@dataclass(frozen=True, slots=True)
class PolicyWarning:
    """One thing in one rule that somebody should look at."""

    rule: str
    text: str
    hint: str

    def __str__(self) -> str:
        return f"rule {self.rule!r}: {self.text}\n    hint: {self.hint}"


def policy_warnings(policy: Policy, config: Config) -> tuple[PolicyWarning, ...]:
    """Give the warnings of a policy beside the configuration that it is used with."""
    own = config.workload_api.spiffe_id
    return lint(
        policy,
        mode=config.backend.mode,
        health_path=config.backend.health_path,
        trust_domains=frozenset() if own is None else frozenset({own.trust_domain}),
    )


def lint(
    policy: Policy,
    *,
    mode: Mode = "http",
    health_path: str | None = None,
    trust_domains: frozenset[TrustDomain] = frozenset(),
) -> tuple[PolicyWarning, ...]:
    """Give the warnings of a policy, deny rules first, each kind in the order of its rules.

    `health_path` is the backend's, None if it is not known; `trust_domains` are those that we
    know of, none if we know of none.
    """
    warnings: list[PolicyWarning] = []
    for rule in policy.deny:
        warnings += _unknown_domains(rule, trust_domains)
    for at, rule in enumerate(policy.allow):
        warnings += _unreachable(rule, policy.allow[:at], policy.deny, mode)
        warnings += _wide(rule)
        warnings += _unknown_domains(rule, trust_domains)
        if mode == "http":
            warnings += _endpoints(rule)
            warnings += _other_product(rule, health_path)
            warnings += _proxy(rule)
    return tuple(warnings)


def _unreachable(
    rule: Rule, earlier: tuple[Rule, ...], deny: tuple[Rule, ...], mode: Mode
) -> Iterator[PolicyWarning]:
    left = [peer for peer in rule.peers if not _taken(peer, deny)]
    if not left:
        text = "it never decides: deny rules name all its peers"
        yield PolicyWarning(rule.name, text, "remove it, or narrow the deny rules")
        return
    # In mode "stream" the peer alone decides.
    endpoints: tuple[Endpoint | None, ...] = rule.endpoints if mode == "http" else (None,)
    others: list[str] = []
    for peer in left:
        for endpoint in endpoints:
            taker = next((one for one in earlier if _takes(one, peer, endpoint)), None)
            if taker is None:
                return
            others.append(taker.name)
    if others:
        names = ", ".join(map(repr, dict.fromkeys(others)))
        text = f"it never decides: rules before it allow all of it ({names})"
        yield PolicyWarning(rule.name, text, "the first rule decides: move it up, or remove it")


def _wide(rule: Rule) -> Iterator[PolicyWarning]:
    for peer in rule.peers:
        if peer.segments == (ANY_REST,):
            text = f"{peer} admits every workload of the trust domain, those still to come as well"
            hint = f"name them, or begin below a path: spiffe://{peer.trust_domain}/workload/**"
            yield PolicyWarning(rule.name, text, hint)


def _endpoints(rule: Rule) -> Iterator[PolicyWarning]:
    if not rule.endpoints:
        text = "it has no endpoints: its peers get an answer to GET /health and nothing else"
        hint = f'write endpoints = ["{PREFIX}ollama"] or other ones; "*" allows all'
        yield PolicyWarning(rule.name, text, hint)
    if any(endpoint.method == ANY_ENDPOINT for endpoint in rule.endpoints):
        text = "'*' allows every endpoint, those that delete models and those still to come"
        yield PolicyWarning(rule.name, text, "a preset and the few endpoints beside it are safer")
    if _OUR_HEALTH in rule.endpoints:
        text = "'GET /health' never reaches the backend: it is answered here, with its health in it"
        yield PolicyWarning(rule.name, text, "leave it out: every admitted peer may ask")


def _other_product(rule: Rule, health_path: str | None) -> Iterator[PolicyWarning]:
    path = (health_path or "").partition("?")[0]
    backend = HEALTH_PATHS.get(path, frozenset())
    for preset in rule.presets:
        if backend and not backend & SERVED_BY[preset]:
            text = (
                f"'{PREFIX}{preset}' is for {_listed(SERVED_BY[preset])}, but the backend's "
                f"health_path {path} is one of {_listed(backend)}"
            )
            its_path = next(one for one in HEALTH_PATHS if HEALTH_PATHS[one] & SERVED_BY[preset])
            hint = f'write [backend] health_path = "{its_path}", or another preset'
            yield PolicyWarning(rule.name, text, hint)


def _unknown_domains(rule: Rule, trust_domains: frozenset[TrustDomain]) -> Iterator[PolicyWarning]:
    named = dict.fromkeys(peer.trust_domain for peer in rule.peers)
    for domain in named if trust_domains else ():
        if domain not in trust_domains:
            text = f"{domain} is not our trust domain, {_listed(map(str, trust_domains))}"
            hint = "right where the two are federated; else no peer of it is ever seen: a slip?"
            yield PolicyWarning(rule.name, text, hint)


def _proxy(rule: Rule) -> Iterator[PolicyWarning]:
    wide = [str(peer) for peer in rule.peers if any("*" in one for one in peer.segments)]
    if rule.trusted_proxy and wide:
        text = f"trusted_proxy for {wide[0]}: whoever it names may say whom a request comes from"
        yield PolicyWarning(rule.name, text, "name the proxy itself, in a rule of its own")


def _takes(rule: Rule, peer: PeerPattern, endpoint: Endpoint | None) -> bool:
    """Tell whether `rule` decides each request of `peer` to `endpoint`; None: to whatever."""
    return _taken(peer, (rule,)) and (
        endpoint is None or any(covers_endpoint(one, endpoint) for one in rule.endpoints)
    )


def _taken(peer: PeerPattern, rules: tuple[Rule, ...]) -> bool:
    return any(covers_peer(pattern, peer) for rule in rules for pattern in rule.peers)


def covers_peer(wide: PeerPattern, narrow: PeerPattern) -> bool:
    """Tell whether it is certain that `wide` names whom `narrow` names."""
    if wide.trust_domain != narrow.trust_domain:
        return False
    ours, theirs = list(wide.segments), list(narrow.segments)
    if ours[-1] == ANY_REST:
        ours.pop()
        # What is left of theirs is one segment at least, and any number of them will do.
        if len(theirs) <= len(ours):
            return False
        theirs = theirs[: len(ours)]
    elif theirs[-1] == ANY_REST:
        return False
    return len(ours) == len(theirs) and all(map(_covers_segment, ours, theirs))


def _covers_segment(wide: str, narrow: str) -> bool:
    # Only a star takes a star, so what one of `narrow` stands for is inside of one of `wide`,
    # however long it is.
    return fnmatchcase(narrow, wide)


def covers_endpoint(wide: Endpoint, narrow: Endpoint) -> bool:
    """Tell whether it is certain that `wide` names each request that `narrow` names."""
    if wide == narrow:
        return True
    if wide.method == ANY_ENDPOINT:
        # A capture takes encoded slashes and dots, "*" does not.
        return not narrow.captures
    if narrow.method == ANY_ENDPOINT or not set(narrow.methods()) <= set(wide.methods()):
        return False
    return _covers_path(wide, narrow)


def _covers_path(wide: Endpoint, narrow: Endpoint) -> bool:
    ours, theirs = wide.segments, narrow.segments
    longer = len(theirs) > len(ours) or narrow.takes_rest
    if len(ours) > len(theirs) or (longer and not wide.takes_rest):
        return False
    if theirs[-1] == "" and ours[-1] != "":
        return False  # no capture takes the slash at the end
    return all(at in wide.captures or one == theirs[at] for at, one in enumerate(ours))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
