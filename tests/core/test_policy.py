"""Policy: deny by default, deny beats allow, and no pattern reaches further than it reads."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.policy import Decision, PeerPattern, Policy, Rule
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


def rule(name: str, *texts: str) -> Rule:
    return Rule(name, tuple(map(PeerPattern.parse, texts)))


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
