"""Policy: deny by default, deny beats allow, and no pattern reaches further than it reads.

Requests: the first rule that names both peer and endpoint, and no mixture of two rules.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sidecar.core.endpoint import Endpoint, RequestPath
from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.policy import (
    Decision,
    PeerPattern,
    Policy,
    RequestDecision,
    Rule,
    RuleLimits,
)
from sidecar.core.spiffe_id import SpiffeId

segments = st.text("abB9._-", min_size=1, max_size=4).filter(lambda text: text not in (".", ".."))
pattern_segments = st.text("ab.*", min_size=1, max_size=4).filter(
    lambda text: "**" not in text and text not in (".", "..")
)
peers = st.builds(
    lambda domain, path: SpiffeId.parse("/".join([f"spiffe://{domain}", *path])),
    st.sampled_from(["e.org", "x.e.org", "e.org.x", "other.org"]),
    st.lists(segments, max_size=4),
)
patterns = st.builds(
    lambda path, rest: PeerPattern.parse("/".join(["spiffe://e.org", *path, *rest])),
    st.lists(pattern_segments, max_size=3),
    st.sampled_from([["**"], ["*"], ["a"]]),
)
bounded = settings(max_examples=300, deadline=None, derandomize=True, database=None)


endpoints = st.sampled_from(
    ["*", "GET /", "GET /a", "POST /a", "HEAD /a", "GET /a/b", "GET /{x}", "GET /a/{x...}"]
).map(Endpoint.parse)
rules = st.lists(
    st.tuples(st.lists(patterns, max_size=2), st.lists(endpoints, max_size=3)), max_size=3
).map(
    lambda tables: tuple(
        Rule(f"r{number}", tuple(names), tuple(reach))
        for number, (names, reach) in enumerate(tables)
    )
)
methods = st.sampled_from(["GET", "HEAD", "POST", "DELETE", "TRACE"])
paths = st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/b", "/a%2Fb", "/%61", "/a/", "/A"])
bad_paths = st.sampled_from(["", "a", "//", "/a//b", "/..", "/a/%2e%2e", "/%252e", "/a?b", "/a%"])


def rule(name: str, *texts: str) -> Rule:
    return Rule(name, tuple(map(PeerPattern.parse, texts)))


def reach(name: str, peer: str, *texts: str, **more: Any) -> Rule:
    """A rule with endpoints for one peer or pattern."""
    return Rule(name, (PeerPattern.parse(peer),), tuple(map(Endpoint.parse, texts)), **more)


def matches(pattern: str, peer: str) -> bool:
    return PeerPattern.parse(pattern).matches(SpiffeId.parse(peer))


@pytest.mark.parametrize(
    ("pattern", "peer"),
    [
        pytest.param("spiffe://e.org/a/b", "spiffe://e.org/a/b", id="exact"),
        pytest.param("spiffe://e.org/*", "spiffe://e.org/a", id="star for a segment"),
        pytest.param("spiffe://e.org/*", "spiffe://e.org/a.b_c-d", id="star for any letters"),
        pytest.param("spiffe://e.org/old-*", "spiffe://e.org/old-7", id="star behind"),
        pytest.param("spiffe://e.org/old-*", "spiffe://e.org/old-", id="star for nothing"),
        pytest.param("spiffe://e.org/*-old", "spiffe://e.org/7-old", id="star in front"),
        pytest.param("spiffe://e.org/a*b*c", "spiffe://e.org/a1b2c", id="two stars"),
        pytest.param("spiffe://e.org/a*b", "spiffe://e.org/abab", id="star is greedy enough"),
        pytest.param("spiffe://e.org/*/b/*", "spiffe://e.org/a/b/c", id="stars in segments"),
        pytest.param("spiffe://e.org/**", "spiffe://e.org/a", id="rest of one"),
        pytest.param("spiffe://e.org/**", "spiffe://e.org/a/b/c", id="rest of three"),
        pytest.param("spiffe://e.org/a/**", "spiffe://e.org/a/b", id="rest below a segment"),
        pytest.param("spiffe://e.org/*/**", "spiffe://e.org/a/b/c", id="star, then rest"),
    ],
)
def test_pattern_names_the_peer(pattern: str, peer: str) -> None:
    assert matches(pattern, peer)


@pytest.mark.parametrize(
    ("pattern", "peer"),
    [
        pytest.param("spiffe://e.org/a", "spiffe://e.org/A", id="other case"),
        pytest.param("spiffe://e.org/a", "spiffe://e.org/ab", id="longer segment"),
        pytest.param("spiffe://e.org/ab", "spiffe://e.org/a", id="shorter segment"),
        pytest.param("spiffe://e.org/a", "spiffe://e.org/a/b", id="deeper"),
        pytest.param("spiffe://e.org/a/b", "spiffe://e.org/a", id="less deep"),
        pytest.param("spiffe://e.org/a.c", "spiffe://e.org/abc", id="dot is a dot"),
        pytest.param("spiffe://e.org/a", "spiffe://f.org/a", id="other trust domain"),
        pytest.param("spiffe://e.org/a", "spiffe://e.org.evil.org/a", id="domain as a prefix"),
        pytest.param("spiffe://e.org/a", "spiffe://evil-e.org/a", id="domain as a suffix"),
        pytest.param("spiffe://e.org/a", "spiffe://exorg/a", id="dot of the domain is a dot"),
        pytest.param("spiffe://e.org/*", "spiffe://e.org/a/b", id="star crosses no slash"),
        pytest.param("spiffe://e.org/a*c", "spiffe://e.org/a/c", id="star inside crosses none"),
        pytest.param("spiffe://e.org/*/b", "spiffe://e.org/b", id="star for no segment"),
        pytest.param("spiffe://e.org/*", "spiffe://e.org", id="star for the trust domain itself"),
        pytest.param("spiffe://e.org/old-*", "spiffe://e.org/new-old-1", id="star is anchored"),
        pytest.param("spiffe://e.org/*-old", "spiffe://e.org/1-old-new", id="at both ends"),
        pytest.param("spiffe://e.org/old-*", "spiffe://e.org/OLD-1", id="star and case"),
        pytest.param("spiffe://e.org/**", "spiffe://e.org", id="rest needs a segment"),
        pytest.param("spiffe://e.org/a/**", "spiffe://e.org/a", id="rest below needs one too"),
        pytest.param("spiffe://e.org/a/**", "spiffe://e.org/ab/c", id="rest after whole segments"),
        pytest.param("spiffe://e.org/a/**", "spiffe://e.org/b/a/c", id="rest from the beginning"),
        pytest.param("spiffe://e.org/**", "spiffe://f.org/a", id="rest in another trust domain"),
    ],
)
def test_pattern_does_not_name_the_peer(pattern: str, peer: str) -> None:
    assert not matches(pattern, peer)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("*", id="star alone"),
        pytest.param("**", id="rest alone"),
        pytest.param("e.org/a", id="no scheme"),
        pytest.param("https://e.org/*", id="another scheme"),
        pytest.param("*://e.org/a", id="star as a scheme"),
        pytest.param("spiffe://*", id="star as the trust domain"),
        pytest.param("spiffe://*/a", id="star as the trust domain, with a path"),
        pytest.param("spiffe://**", id="rest as the trust domain"),
        pytest.param("spiffe://*.org/a", id="star in the trust domain"),
        pytest.param("spiffe://e.org*/a", id="star behind the trust domain"),
        pytest.param("spiffe://E.org/a", id="upper case trust domain"),
        pytest.param("spiffe:///a", id="no trust domain"),
        pytest.param("spiffe://e.org", id="no path"),
        pytest.param("spiffe://e.org/", id="empty path"),
        pytest.param("spiffe://e.org/a/", id="trailing slash"),
        pytest.param("spiffe://e.org/*/", id="trailing slash after a star"),
        pytest.param("spiffe://e.org/**/", id="trailing slash after the rest"),
        pytest.param("spiffe://e.org//a", id="empty segment"),
        pytest.param("spiffe://e.org/.", id="dot"),
        pytest.param("spiffe://e.org/../a", id="dot dot"),
        pytest.param("spiffe://e.org/**/a", id="rest in the middle"),
        pytest.param("spiffe://e.org/a**", id="rest inside a segment"),
        pytest.param("spiffe://e.org/**a", id="rest in front of a segment"),
        pytest.param("spiffe://e.org/***", id="three stars"),
        pytest.param("spiffe://e.org/a?", id="question mark"),
        pytest.param("spiffe://e.org/[ab]", id="character class"),
        pytest.param("spiffe://e.org/[!a]*", id="negated character class"),
        pytest.param("spiffe://e.org/{a,b}", id="alternatives"),
        pytest.param("spiffe://e.org/.+", id="regular expression"),
        pytest.param("spiffe://e.org/(a|b)", id="group"),
        pytest.param("spiffe://e.org/a\\*", id="escape"),
        pytest.param("spiffe://e.org/%2A", id="percent-encoding"),
        pytest.param("spiffe://e.org/a\n", id="trailing newline"),
        pytest.param("spiffe://e.org/*\n", id="trailing newline after a star"),
        pytest.param("spiffe://e.org/a ", id="trailing space"),
        pytest.param("spiffe://e.org:80/a", id="port"),
        pytest.param(f"spiffe://e.org/{'a' * 2100}", id="exact and longer than an ID can be"),
    ],
)
def test_bad_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeIdError):
        PeerPattern.parse(text)


TRAEFIK = SpiffeId.parse("spiffe://e.org/workload/traefik")


def test_empty_policy_denies_everyone() -> None:
    assert not Policy(()).decide(TRAEFIK).allowed


def test_peer_that_no_rule_names_is_denied() -> None:
    decision = Policy((rule("other", "spiffe://e.org/workload/other"),)).decide(TRAEFIK)
    assert decision == Decision(False, None, "no allow rule names this peer")


def test_rule_without_peers_names_nobody() -> None:
    assert not Policy((Rule("empty", ()),)).decide(TRAEFIK).allowed


def test_allowed_peer_gets_the_name_of_the_first_rule_that_names_it() -> None:
    policy = Policy(
        (
            rule("elsewhere", "spiffe://f.org/**"),
            rule("workloads", "spiffe://e.org/no", "spiffe://e.org/workload/*"),
            rule("traefik", "spiffe://e.org/workload/traefik"),
        )
    )
    decision = policy.decide(TRAEFIK)
    assert decision == Decision(True, "workloads", "allowed by rule 'workloads'")


@pytest.mark.parametrize(
    "denied",
    [
        pytest.param("spiffe://e.org/workload/traefik", id="exact"),
        pytest.param("spiffe://e.org/workload/t*", id="star"),
        pytest.param("spiffe://e.org/**", id="rest"),
    ],
)
def test_deny_beats_allow_however_it_is_written(denied: str) -> None:
    allow = rule("traefik", "spiffe://e.org/workload/traefik")
    decision = Policy((allow,), (rule("retired", denied),)).decide(TRAEFIK)
    assert decision == Decision(False, "retired", "denied by rule 'retired'")


def test_deny_of_another_peer_changes_nothing() -> None:
    allow = rule("all", "spiffe://e.org/**")
    policy = Policy((allow,), (rule("retired", "spiffe://e.org/workload/traefik2"),))
    assert policy.decide(TRAEFIK).allowed


def test_deny_rule_alone_allows_nobody() -> None:
    policy = Policy((), (rule("retired", "spiffe://e.org/old"),))
    assert not policy.decide(TRAEFIK).allowed


def test_decision_of_one_peer_is_never_given_to_another() -> None:
    policy = Policy((rule("traefik", str(TRAEFIK)),))
    answers = [policy.decide(SpiffeId.parse(f"{TRAEFIK}{n}")).allowed for n in range(1500)]
    assert policy.decide(TRAEFIK).allowed
    assert not any(answers)


@given(peers)
@bounded
def test_exact_pattern_names_its_id_and_no_other(peer: SpiffeId) -> None:
    assume(peer.path)
    pattern = PeerPattern.parse(str(peer))
    assert pattern.matches(peer)
    assert not pattern.matches(SpiffeId(peer.trust_domain, peer.path + "/x"))
    assert not pattern.matches(SpiffeId(peer.trust_domain, peer.path + "x"))


@given(patterns, st.lists(segments, min_size=1, max_size=5))
@bounded
def test_star_never_crosses_a_slash(pattern: PeerPattern, path: list[str]) -> None:
    peer = SpiffeId.parse("/".join(["spiffe://e.org", *path]))
    if pattern.matches(peer):
        wanted = len(pattern.segments)
        assert len(path) >= wanted if pattern.segments[-1] == "**" else len(path) == wanted


@given(patterns, peers)
@bounded
def test_allow_rule_never_reaches_into_another_trust_domain(
    pattern: PeerPattern, peer: SpiffeId
) -> None:
    decision = Policy((Rule("r", (pattern,)),)).decide(peer)
    assert not decision.allowed or peer.trust_domain.name == "e.org"


@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), peers)
@bounded
def test_nobody_is_allowed_whom_a_deny_rule_names(
    allow: list[PeerPattern], deny: list[PeerPattern], peer: SpiffeId
) -> None:
    decision = Policy((Rule("a", tuple(allow)),), (Rule("d", tuple(deny)),)).decide(peer)
    named = any(pattern.matches(peer) for pattern in deny)
    assert decision.allowed == (any(p.matches(peer) for p in allow) and not named)


# Requests.

ME = str(TRAEFIK)


def test_empty_policy_denies_every_request() -> None:
    decision = Policy(()).decide_request(TRAEFIK, "GET", "/")
    assert decision == RequestDecision(False, None, None, "no allow rule names this peer")


@pytest.mark.parametrize(
    ("method", "path", "endpoint"),
    [
        pytest.param("GET", "/api/tags", "GET /api/tags", id="literal"),
        pytest.param("HEAD", "/api/tags", "GET /api/tags", id="HEAD where GET is"),
        pytest.param("GET", "/api/%74ags", "GET /api/tags", id="letter encoded"),
        pytest.param("GET", "/v1/models/a/b", "GET /v1/models/{model...}", id="rest"),
        pytest.param("GET", "/v1/models/a%2Fb", "GET /v1/models/{model...}", id="encoded slash"),
        pytest.param("POST", "/api/chat", "POST /api/chat", id="POST"),
    ],
)
def test_request_that_a_rule_names_is_allowed_with_rule_and_endpoint(
    method: str, path: str, endpoint: str
) -> None:
    only = reach("traefik", ME, "GET /api/tags", "GET /v1/models/{model...}", "POST /api/chat")
    decision = Policy((only,)).decide_request(TRAEFIK, method, path)
    reason = "allowed by rule 'traefik'"
    assert decision == RequestDecision(True, only, Endpoint.parse(endpoint), reason)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "/api/tags", id="other method"),
        pytest.param("OPTIONS", "/api/tags", id="OPTIONS"),
        pytest.param("get", "/api/tags", id="method in small letters"),
        pytest.param("TRACE", "/api/tags", id="TRACE"),
        pytest.param("*", "/api/tags", id="star as a method"),
        pytest.param("", "/api/tags", id="no method"),
        pytest.param("GET", "/", id="root"),
        pytest.param("GET", "/api", id="less deep"),
        pytest.param("GET", "/api/tags/", id="slash at the end"),
        pytest.param("GET", "/api/tags/x", id="deeper"),
        pytest.param("GET", "/API/tags", id="other case"),
        pytest.param("GET", "/api%2Ftags", id="encoded slash"),
        pytest.param("POST", "/api/pull", id="other endpoint"),
        pytest.param("HEAD", "/api/chat", id="HEAD where POST is"),
        pytest.param("GET", "/health", id="health, which is not decided here"),
    ],
)
def test_request_that_no_rule_names_is_denied(method: str, path: str) -> None:
    policy = Policy((reach("traefik", ME, "GET /api/tags", "POST /api/chat"),))
    decision = policy.decide_request(TRAEFIK, method, path)
    reason = "no rule for this peer names this endpoint"
    assert decision == RequestDecision(False, None, None, reason)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("", id="empty"),
        pytest.param("*", id="asterisk form"),
        pytest.param("api/tags", id="no slash"),
        pytest.param("//api/tags", id="two slashes"),
        pytest.param("/api/./tags", id="dot"),
        pytest.param("/api/../tags", id="two dots"),
        pytest.param("/api/%2e%2e/tags", id="encoded dots"),
        pytest.param("/api/%252e/tags", id="encoded twice"),
        pytest.param("/api%5ctags", id="backslash"),
        pytest.param("/api/tags?x", id="query"),
        pytest.param("/api/tags%00", id="NUL"),
    ],
)
def test_path_that_cannot_be_read_is_denied_whatever_is_allowed(path: str) -> None:
    policy = Policy((reach("all", "spiffe://e.org/**", "*", "GET /{all...}"),))
    decision = policy.decide_request(TRAEFIK, "GET", path)
    assert (decision.allowed, decision.rule, decision.endpoint) == (False, None, None)
    assert "expected" in decision.reason


def test_rule_without_endpoints_admits_the_peer_and_allows_it_nothing() -> None:
    policy = Policy((rule("traefik", ME),))
    assert policy.decide(TRAEFIK).allowed
    for path in ("/", "/health", "/api/tags"):
        assert not policy.decide_request(TRAEFIK, "GET", path).allowed


def test_first_rule_that_names_peer_and_endpoint_decides() -> None:
    first = reach("first", ME, "GET /a")
    second = reach("second", "spiffe://e.org/**", "GET /b", "GET /a")
    third = reach("third", ME, "*")
    policy = Policy((reach("elsewhere", "spiffe://f.org/**", "*"), first, second, third))
    assert policy.decide_request(TRAEFIK, "GET", "/a").rule is first
    assert policy.decide_request(TRAEFIK, "GET", "/b").rule is second
    assert policy.decide_request(TRAEFIK, "GET", "/c").rule is third
    assert policy.decide(TRAEFIK).rule == "first"


def test_limits_are_those_of_the_rule_that_decides() -> None:
    narrow = reach("narrow", ME, "POST /a", limits=RuleLimits(concurrent_requests=1))
    wide = reach("wide", ME, "*", limits=RuleLimits(concurrent_requests=9))
    for order, most in (((narrow, wide), 1), ((wide, narrow), 9)):
        decided = Policy(order).decide_request(TRAEFIK, "POST", "/a").rule
        assert decided is not None
        assert decided.limits.concurrent_requests == most


def test_endpoints_of_one_peers_rule_are_not_lent_to_another() -> None:
    other = SpiffeId.parse("spiffe://e.org/workload/other")
    policy = Policy((reach("a", ME, "POST /a"), reach("b", str(other), "GET /b")))
    assert policy.decide_request(TRAEFIK, "POST", "/a").allowed
    assert policy.decide_request(other, "GET", "/b").allowed
    assert not policy.decide_request(other, "POST", "/a").allowed
    assert not policy.decide_request(TRAEFIK, "GET", "/b").allowed


def test_first_of_a_rules_endpoints_that_names_the_request_is_told() -> None:
    policy = Policy((reach("traefik", ME, "GET /{any}", "GET /a", "*"),))
    endpoint = policy.decide_request(TRAEFIK, "GET", "/a").endpoint
    assert endpoint == Endpoint.parse("GET /{any}")


def test_denied_peer_is_denied_every_request_by_the_rule_that_names_it() -> None:
    policy = Policy((reach("all", "spiffe://e.org/**", "*"),), (rule("retired", ME),))
    for path in ("/", "/a", "//"):
        decision = policy.decide_request(TRAEFIK, "GET", path)
        assert decision == RequestDecision(False, None, None, "denied by rule 'retired'")


def test_decision_of_one_request_is_never_given_to_another() -> None:
    policy = Policy((reach("traefik", ME, "GET /a"),))
    for number in range(1500):
        stranger = SpiffeId.parse(f"{ME}{number}")
        assert not policy.decide_request(stranger, "GET", "/a").allowed
        assert not policy.decide_request(TRAEFIK, "GET", f"/a{number}").allowed
    assert policy.decide_request(TRAEFIK, "GET", "/a").allowed


@pytest.mark.parametrize(
    ("rate", "burst", "wanted"),
    [
        pytest.param(10.0, None, 10, id="the requests of one second"),
        pytest.param(2.5, None, 3, id="rounded up"),
        pytest.param(0.1, None, 1, id="and one at least"),
        pytest.param(1_000_000.0, None, 1_000_000, id="the highest rate"),
        pytest.param(10.0, 3, 3, id="as written, below the rate"),
        pytest.param(0.5, 20, 20, id="as written, above the rate"),
        pytest.param(None, None, None, id="no rate, no burst"),
    ],
)
def test_burst_is_as_written_or_that_of_a_second(
    rate: float | None, burst: int | None, wanted: int | None
) -> None:
    assert RuleLimits(requests_per_second=rate, burst=burst).burst == wanted


@given(rules, st.lists(patterns, max_size=2), peers, methods, st.one_of(paths, bad_paths))
@bounded
def test_request_is_allowed_by_the_first_rule_that_alone_would_allow_it(
    allow: tuple[Rule, ...], deny: list[PeerPattern], peer: SpiffeId, method: str, path: str
) -> None:
    policy = Policy(allow, (Rule("denied", tuple(deny)),))
    decision = policy.decide_request(peer, method, path)
    alone = [one for one in allow if Policy((one,)).decide_request(peer, method, path).allowed]
    denied = any(pattern.matches(peer) for pattern in deny)
    assert decision.rule == (alone[0] if alone and not denied else None)
    assert decision.allowed == (decision.rule is not None) == (decision.endpoint is not None)


@given(rules, peers, methods, paths)
@bounded
def test_allowed_request_is_named_by_rule_and_endpoint_of_its_decision(
    allow: tuple[Rule, ...], peer: SpiffeId, method: str, path: str
) -> None:
    policy = Policy(allow)
    decision = policy.decide_request(peer, method, path)
    named = [
        (one, endpoint)
        for one in allow
        if any(pattern.matches(peer) for pattern in one.peers)
        for endpoint in one.endpoints
        if endpoint.matches(method, RequestPath.parse(path))
    ]
    assert (decision.rule, decision.endpoint) == (named[0] if named else (None, None))
    assert policy.decide(peer).allowed or not decision.allowed


@given(rules, peers, methods, bad_paths)
@bounded
def test_nobody_is_allowed_a_path_that_cannot_be_read(
    allow: tuple[Rule, ...], peer: SpiffeId, method: str, path: str
) -> None:
    assert not Policy(allow).decide_request(peer, method, path).allowed
