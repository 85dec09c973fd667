"""The group "policy": the two files, who may read and change them, and what they amount to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.core.diagnosis.finding import Finding, Unknown, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import Account, Way
from sidecar.core.diagnosis.permission import (
    READ,
    WRITE,
    absent,
    hidden,
    may,
    obstacle,
    octal,
    open_to_others,
)
from sidecar.core.policy import PeerPattern, Policy
from sidecar.core.policy_lint import PolicyWarning


@dataclass(frozen=True, slots=True)
class InForce:
    """What the running daemon says of the files: problems of a newer one, what needs a restart."""

    problems: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()  # files that say something else than it tells


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What is known of the files; `policy` is None in helper mode or if it cannot be used.

    `trust_domains` are those whose peers can be proven, empty if that is not known.
    """

    config: str
    problems: tuple[str, ...]
    ways: tuple[Way, ...]
    account: Account
    policy: Policy | None
    helper: bool
    warnings: tuple[PolicyWarning, ...]
    trust_domains: frozenset[str]
    in_force: InForce | Unknown
    reload: str  # the command that makes the daemon read them
    restart: str


def judge_policy(facts: PolicyFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    yield _configuration(facts)
    yield _readable(facts)
    yield _guarded(facts)
    yield _admits(facts)
    yield _lint(facts)
    yield _in_force(facts)


def _configuration(facts: PolicyFacts) -> Finding:
    name = "policy.configuration"
    if facts.problems:
        remedy = f"correct them, then: spiffe-sidecar check --config {facts.config}"
        return fail(name, "\n".join(facts.problems), remedy)
    return ok(name, f"{facts.config} can be used")


def _readable(facts: PolicyFacts) -> Finding:
    name = "policy.readable"
    for way in facts.ways:
        unseen = hidden(way)
        if unseen is not None:
            remedy = "run doctor with sudo"
            return skipped(name, f"this account may not look at {unseen.path}", remedy)
        if absent(way) is not None:
            continue  # a problem of the configuration already
        blocked = obstacle(facts.account, way, READ)
        if blocked is not None:
            is_end = blocked == way[-1]
            doing = "read" if is_end else "pass"
            group = f"sudo chgrp {_group(facts.account)} {blocked.path}"
            remedy = f"{group} && sudo chmod g+{'r' if is_end else 'x'} {blocked.path}"
            return fail(name, f"{facts.account} may not {doing} {blocked}", remedy)
    return ok(name, f"{facts.account} may read {_names(facts)}")


def _group(account: Account) -> str:
    return account.group or str(account.gid)


def _names(facts: PolicyFacts) -> str:
    return " and ".join(way[-1].path for way in facts.ways)


def _guarded(facts: PolicyFacts) -> Finding:
    """The service user must not be able to admit more peers than it was told to."""
    name, own = "policy.guarded", facts.account
    for way in facts.ways:
        if hidden(way) is not None:
            return skipped(name, "this account may not look at them", "run doctor with sudo")
        if absent(way) is not None:
            continue
        # Whoever owns the file may be the operator; the folders above are judged by their modes.
        open_one = open_to_others(way, {place.uid for place in way})
        if open_one is not None:
            seen = f"{open_one} lets others change who is admitted"
            return fail(name, seen, f"sudo chmod {octal(open_one.mode & ~0o022)} {open_one.path}")
        for place in way[-2:]:
            if own.uid != 0 and (place.uid == own.uid or may(own, place, WRITE)):
                seen = f"{own} itself may change {place}: who takes it over admits whom it likes"
                group = _group(own)
                remedy = f"sudo chown root:{group} {place.path} && sudo chmod g-w {place.path}"
                return warn(name, seen, remedy)
    return ok(name, f"only root and their owner can change {_names(facts)}")


def _admits(facts: PolicyFacts) -> Finding:
    name = "policy.admits"
    if facts.policy is None:
        return skipped(name, _no_policy(facts))
    peers = [(rule.name, peer) for rule in facts.policy.allow for peer in rule.peers]
    known = facts.trust_domains
    usable = [
        f"{peer} (rule {rule!r})"
        for rule, peer in peers
        if not _denied(facts.policy, peer) and (not known or str(peer.trust_domain) in known)
    ]
    if usable:
        return ok(name, ", ".join(usable))
    seen = "no peer that it allows can get in: " + ", ".join(str(peer) for _, peer in peers)
    if known:
        seen += f"; trust bundles are there of {', '.join(sorted(known))}"
    remedy = "write Traefik's SPIFFE ID into peers of an [[allow]] rule"
    if any(_denied(facts.policy, peer) for _, peer in peers):
        remedy = "narrow the [[deny]] rules: deny beats allow"
    return fail(name, seen, remedy)


def _denied(policy: Policy, peer: PeerPattern) -> bool:
    """Tell whether deny rules name all that a pattern names; of one with stars, only its text."""
    return any(
        pattern.text == peer.text
        or (pattern.trust_domain == peer.trust_domain and pattern.segments == ("**",))
        for rule in policy.deny
        for pattern in rule.peers
    )


def _lint(facts: PolicyFacts) -> Finding:
    name = "policy.lint"
    if facts.policy is None:
        return skipped(name, _no_policy(facts))
    if facts.warnings:
        seen = "\n".join(f"rule {one.rule!r}: {one.text}" for one in facts.warnings)
        return warn(name, seen, "\n".join(dict.fromkeys(one.hint for one in facts.warnings)))
    rules = f"{len(facts.policy.allow)} allow, {len(facts.policy.deny)} deny"
    return ok(name, f"{rules}, nothing odd")


def _no_policy(facts: PolicyFacts) -> str:
    if facts.helper:
        return "a configuration without [listener] has no policy"
    return "the configuration cannot be used"


def _in_force(facts: PolicyFacts) -> Finding:
    name, state = "policy.in_force", facts.in_force
    if isinstance(state, Unknown):
        return skipped(name, state)
    if state.problems:
        seen = f"the old one is in force: {'; '.join(state.problems)}"
        return fail(name, seen, f"correct the file, then: {facts.reload}")
    if state.differs:
        seen = f"{', '.join(state.differs)} says something else than what is in force"
        return warn(name, seen, facts.reload)
    if state.needs_restart:
        seen = f"not in force before a restart: {', '.join(state.needs_restart)}"
        return warn(name, seen, facts.restart)
    return ok(name, "the daemon uses these files as they are")
