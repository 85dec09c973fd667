"""SPIFFE ID, method and path -> decision: deny by default, deny beats allow.

Gets the rules of `policy.toml` as values and gives a `Decision` about a peer or a
`RequestDecision` about one request, with the rule and a reason that a person can act on. A
pattern's trust domain is always literal, so no pattern ever reaches into another trust domain. No
regular expressions, and nothing is cached by path.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial

from sidecar.core.endpoint import BadPathError, Endpoint, RequestPath
from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.spiffe_id import MAX_ID_BYTES, SCHEME, SpiffeId, TrustDomain, check_segment

ANY_REST = "**"


@dataclass(frozen=True, slots=True)
class PeerPattern:
    """`spiffe://td/a/b` exactly, `*` within one segment, `**` for one or more last segments."""

    text: str
    trust_domain: TrustDomain
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> PeerPattern:
        """Read a pattern, or raise `InvalidSpiffeIdError`."""
        if len(text) > MAX_ID_BYTES:
            raise InvalidSpiffeIdError(text, f"over {MAX_ID_BYTES} bytes")
        if not text.startswith(SCHEME):
            raise InvalidSpiffeIdError(text, f"it does not start with {SCHEME}")
        domain, _, rest = text.removeprefix(SCHEME).partition("/")
        if "*" in domain:
            raise InvalidSpiffeIdError(text, "the trust domain of a pattern is literal")
        segments = tuple(rest.split("/"))
        for index, segment in enumerate(segments):
            _check_pattern_segment(text, segment, last=index == len(segments) - 1)
        return cls(text, TrustDomain.parse(SCHEME + domain), segments)

    def matches(self, peer: SpiffeId) -> bool:
        """Tell whether `peer` is one of those the pattern names."""
        if peer.trust_domain != self.trust_domain or not peer.path:
            return False
        segments = peer.path.removeprefix("/").split("/")
        patterns = self.segments
        if patterns[-1] == ANY_REST:
            patterns = patterns[:-1]
            if len(segments) <= len(patterns):
                return False
            segments = segments[: len(patterns)]
        # fnmatchcase knows `?` and `[`, which no segment of a parsed pattern holds.
        return len(segments) == len(patterns) and all(map(fnmatchcase, segments, patterns))

    def __str__(self) -> str:
        return self.text


def _check_pattern_segment(text: str, segment: str, *, last: bool) -> None:
    if ANY_REST in segment:
        if segment != ANY_REST or not last:
            raise InvalidSpiffeIdError(text, "'**' stands alone and as the last segment")
        return
    # With every star replaced by a letter, a pattern segment must be a valid segment.
    check_segment(text, segment.replace("*", "x"))


@dataclass(frozen=True, slots=True)
class RuleLimits:
    """What each peer of a rule may ask for; None: as much as the configuration lets everybody.

    A rate without a burst has the burst of one second, and of one request at least.
    """

    requests_per_second: float | None = None
    burst: int | None = None
    concurrent_requests: int | None = None
    max_body_bytes: int | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        if self.burst is None and self.requests_per_second is not None:
            object.__setattr__(self, "burst", max(1, int(-(-self.requests_per_second // 1))))


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[allow]]` or `[[deny]]` table of the policy file."""

    name: str
    peers: tuple[PeerPattern, ...]
    endpoints: tuple[Endpoint, ...] = ()
    limits: RuleLimits = RuleLimits()
    trusted_proxy: bool = False
    presets: tuple[str, ...] = ()  # the names of those whose endpoints are among `endpoints`
    pass_headers: frozenset[str] = frozenset()  # that steer a model server, as `plain_pattern`

    def matches(self, peer: SpiffeId) -> bool:
        """Tell whether any pattern of the rule names `peer`."""
        return any(pattern.matches(peer) for pattern in self.peers)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one peer; `rule` is None when no rule named it.

    `connections`: how many the peer may have, the least that a rule says that names it; None: no
    rule says so.
    """

    allowed: bool
    rule: str | None
    reason: str
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class RequestDecision:
    """The answer for one request; rule and endpoint are those that allow it."""

    allowed: bool
    rule: Rule | None
    endpoint: Endpoint | None
    reason: str


@dataclass(frozen=True, slots=True)
class _PeerAnswers:
    """All that the policy can say to one peer, in the order in which its rules were written."""

    admission: Decision
    refusal: RequestDecision
    by_method: dict[str, tuple[tuple[Endpoint, RequestDecision], ...]]
    is_trusted_proxy: bool


class Policy:
    """The rules of one policy file, never changed: a reload makes a new policy."""

    def __init__(self, allow: tuple[Rule, ...], deny: tuple[Rule, ...] = ()) -> None:
        self.allow = allow
        self.deny = deny
        # Peers are few and come back with every request; the bound is for the others. Paths are
        # for a peer to choose: a cache of them would be its to fill.
        # Not of a method: the cache and the policy would hold each other.
        self._answers = lru_cache(maxsize=1024)(partial(_answers_for, allow, deny))

    def decide(self, peer: SpiffeId) -> Decision:
        """Give the decision for `peer`: the first deny, else the first allow, else no."""
        return self._answers(peer).admission

    def decide_request(self, peer: SpiffeId, method: str, raw_path: str) -> RequestDecision:
        """Give the decision for one request: the first rule that names peer and endpoint."""
        answers = self._answers(peer)
        if not answers.admission.allowed:
            return answers.refusal
        try:
            path = RequestPath.parse(raw_path)
        except BadPathError as exc:
            return RequestDecision(False, None, None, str(exc))
        for endpoint, decision in answers.by_method.get(method, ()):
            if endpoint.matches_path(path):
                return decision
        return answers.refusal

    def is_trusted_proxy(self, peer: SpiffeId, method: str, raw_path: str) -> bool:
        """Tell whether the rule that allows a request trusts its peer to speak for others.

        Where none does, as of a request that is refused: whether any rule for the peer does.
        """
        rule = self.decide_request(peer, method, raw_path).rule
        return self._answers(peer).is_trusted_proxy if rule is None else rule.trusted_proxy


def _answers_for(allow: tuple[Rule, ...], deny: tuple[Rule, ...], peer: SpiffeId) -> _PeerAnswers:
    admission = _first_match(allow, deny, peer)
    by_method: dict[str, list[tuple[Endpoint, RequestDecision]]] = {}
    for rule in allow if admission.allowed else ():
        for endpoint in rule.endpoints if rule.matches(peer) else ():
            decision = RequestDecision(True, rule, endpoint, f"allowed by rule {rule.name!r}")
            for method in endpoint.methods():
                by_method.setdefault(method, []).append((endpoint, decision))
    reason = "no rule for this peer names this endpoint"
    refusal = RequestDecision(False, None, None, reason if admission.allowed else admission.reason)
    trusted = admission.allowed and any(rule.trusted_proxy for rule in allow if rule.matches(peer))
    decisions = {method: tuple(of_one) for method, of_one in by_method.items()}
    return _PeerAnswers(admission, refusal, decisions, trusted)


def _first_match(allow: tuple[Rule, ...], deny: tuple[Rule, ...], peer: SpiffeId) -> Decision:
    for rule in deny:
        if rule.matches(peer):
            return Decision(False, rule.name, f"denied by rule {rule.name!r}")
    naming = [rule for rule in allow if rule.matches(peer)]
    for rule in naming:
        said = [one.limits.connections for one in naming if one.limits.connections is not None]
        least = min(said, default=None)
        return Decision(True, rule.name, f"allowed by rule {rule.name!r}", least)
    return Decision(False, None, "no allow rule names this peer")
