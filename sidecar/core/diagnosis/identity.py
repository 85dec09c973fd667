"""The group "identity": what was issued to us, how long it lives, and whether it proves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sidecar.core.diagnosis.finding import Finding, Unknown, all_skipped, fail, ok, skipped, warn
from sidecar.core.diagnosis.issued import Answer, IssuedSvid, Said
from sidecar.core.identity_update import SvidChoice
from sidecar.core.svid import is_over

# Past this share of its life a renewal is late: SPIRE renews at half life.
_OVERDUE_SHARE = 0.75
_BUNDLE_SOON = timedelta(hours=1)

_NAMES = (
    "identity.spiffe_id",
    "identity.clock",
    "identity.lifetime",
    "identity.rotation",
    "identity.bundle",
    "identity.chain",
)


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """What is known of the identity; `federated` are other trust domains that the policy names.

    `renew` is what makes the source issue anew, and `set_clock` what sets the clock.
    """

    now: datetime
    choice: SvidChoice
    answer: Answer | Unknown
    from_files: bool
    federated: tuple[str, ...]
    renew: str
    register: str
    set_clock: str


def judge_identity(facts: IdentityFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    answer = facts.answer
    yield _files(facts)
    if isinstance(answer, Unknown):
        yield from all_skipped((*_NAMES, "identity.federation"), answer)
        return
    if answer.said is not Said.ISSUED:
        yield from all_skipped((*_NAMES, "identity.federation"), "no identity was issued")
        return
    chosen = _chosen(facts.choice, answer)
    yield _spiffe_id(facts, answer, chosen)
    if chosen is None:
        yield from all_skipped(_NAMES[1:4], "none of the SVIDs is ours")
    else:
        yield from _times(facts, chosen)
    yield _bundle(facts, answer, chosen or answer.svids[0])
    yield _chain(facts, chosen or answer.svids[0])
    yield _federation(facts, answer, chosen or answer.svids[0])


def _chosen(choice: SvidChoice, answer: Answer) -> IssuedSvid | None:
    wanted = str(choice.spiffe_id) if choice.spiffe_id else ""
    for svid in answer.svids:
        if wanted in ("", svid.spiffe_id) and choice.hint in ("", svid.hint):
            return svid
    return None


def _files(facts: IdentityFacts) -> Finding:
    name, answer = "identity.files", facts.answer
    if not facts.from_files:
        return skipped(name, "no [identity_files]: the identity comes from the agent")
    if isinstance(answer, Unknown):
        return skipped(name, answer)
    if answer.said is Said.ISSUED:
        return ok(name, "certificate, key and bundle were read")
    remedy = "let whatever writes them write all three anew, readable for the service user"
    return fail(name, answer.reason, remedy)


def _spiffe_id(facts: IdentityFacts, answer: Answer, chosen: IssuedSvid | None) -> Finding:
    name = "identity.spiffe_id"
    offered = ", ".join(
        one.spiffe_id + (f" (hint {one.hint!r})" if one.hint else "") for one in answer.svids
    )
    if chosen is None:
        seen = f"expected {facts.choice}, issued are {offered}"
        remedy = f"correct spiffe_id and hint in [workload_api], or register it: {facts.register}"
        return fail(name, seen, remedy)
    if len(answer.svids) > 1 and facts.choice == SvidChoice():
        seen = (
            f"{len(answer.svids)} SVIDs are issued ({offered}); without a choice the first is ours"
        )
        return warn(name, seen, f'[workload_api] spiffe_id = "{chosen.spiffe_id}"')
    return ok(name, f"{chosen.spiffe_id}, serial {chosen.serial}")


def _times(facts: IdentityFacts, svid: IssuedSvid) -> Iterator[Finding]:
    begin, end, now = svid.not_before, svid.not_after, facts.now
    if begin is None or end is None:
        yield from all_skipped(_NAMES[1:4], "the certificate cannot be read")
        return
    if begin > now:
        seen = f"the SVID is valid from {begin:%F %T}Z, and here it is {now:%F %T}Z"
        yield fail("identity.clock", seen, facts.set_clock)
    else:
        yield ok("identity.clock", f"here it is {now:%F %T}Z, issued {span(now - begin)} ago")
    if is_over(end, now):
        seen = f"the SVID expired {span(now - end)} ago, at {end:%F %T}Z"
        yield fail("identity.lifetime", seen, facts.renew)
    else:
        yield ok("identity.lifetime", f"{span(end - now)} left of {span(end - begin)}")
    if now > begin + _OVERDUE_SHARE * (end - begin):
        seen = f"{span(end - now)} left of {span(end - begin)}: renewal was due at half of it"
        yield warn("identity.rotation", seen, facts.renew)
    else:
        yield ok("identity.rotation", f"renewal due at {begin + (end - begin) / 2:%F %T}Z")


def _bundle(facts: IdentityFacts, answer: Answer, svid: IssuedSvid) -> Finding:
    name, domain = "identity.bundle", _domain(svid.spiffe_id)
    bundle = next((one for one in answer.bundles if one.trust_domain == domain), None)
    if bundle is None:
        seen = answer.reason or f"no trust bundle of {domain}"
        return fail(name, seen, facts.renew)
    if not bundle.valid:
        until = f", the last one until {bundle.until:%F %T}Z" if bundle.until else ""
        seen = f"none of {bundle.authorities} authorities of {domain} is valid now{until}"
        return fail(name, seen, facts.renew)
    if bundle.until is not None and bundle.until - facts.now < _BUNDLE_SOON:
        seen = f"the last authority of {domain} ends in {span(bundle.until - facts.now)}"
        return warn(name, seen, "is the SPIRE server running? it has to prepare the next authority")
    until = f" until {bundle.until:%F %T}Z" if bundle.until else ""
    return ok(name, f"{bundle.valid} of {bundle.authorities} authorities of {domain}{until}")


def _chain(facts: IdentityFacts, svid: IssuedSvid) -> Finding:
    if svid.fault:
        return fail("identity.chain", f"{svid.spiffe_id}: {svid.fault}", facts.renew)
    return ok("identity.chain", f"{svid.spiffe_id} is proven by its trust bundle")


def _federation(facts: IdentityFacts, answer: Answer, svid: IssuedSvid) -> Finding:
    name, own = "identity.federation", _domain(svid.spiffe_id)
    wanted = [domain for domain in facts.federated if domain != own]
    known = {bundle.trust_domain for bundle in answer.bundles if bundle.authorities}
    missing = [domain for domain in wanted if domain not in known]
    if not wanted:
        return skipped(name, "the policy names no other trust domain than ours")
    if missing:
        names = ", ".join(missing)
        seen = f"the policy names {names}, and no trust bundle of it came: its peers are refused"
        where = "in [identity_files] federated_bundles" if facts.from_files else _FEDERATE
        return fail(name, seen, f"{where}; or is it a typo in the policy? ours is {own}")
    return ok(name, f"trust bundles of {', '.join(wanted)}")


_FEDERATE = (
    "on the SPIRE server: spire-server bundle set, and the entry with -federatesWith "
    "spiffe://TRUST-DOMAIN"
)


def _domain(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]


def span(time: timedelta) -> str:
    """Give a length of time in its two largest units."""
    left = round(abs(time).total_seconds())
    words: list[str] = []
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, seconds)
        if number or (unit == "s" and not words):
            words.append(f"{number} {unit}")
    return " ".join(words[:2])
