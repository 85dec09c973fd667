from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sidecar.core.diagnosis.agent import judge_agent
from sidecar.core.diagnosis.backend import judge_backend
from sidecar.core.diagnosis.catalogue import CAUSES, CHECKS, GROUPS, only_causes
from sidecar.core.diagnosis.files import judge_files
from sidecar.core.diagnosis.finding import Finding, Verdict, fail, ok, skipped, warn
from sidecar.core.diagnosis.host import judge_host
from sidecar.core.diagnosis.identity import judge_identity
from sidecar.core.diagnosis.listener import judge_listener
from sidecar.core.diagnosis.policy import judge_policy
from tests.core.diagnosis import good


def all_findings() -> list[Finding]:
    return [
        *judge_agent(good.AGENT),
        *judge_identity(good.IDENTITY),
        *judge_files(good.FILES),
        *judge_policy(good.POLICY),
        *judge_listener(good.LISTENER),
        *judge_backend(good.BACKEND),
        *judge_host(good.HOST),
    ]


def test_each_check_of_the_catalogue_is_made_once_and_no_other() -> None:
    assert sorted(one.name for one in all_findings()) == sorted(CHECKS)


def test_a_good_host_has_nothing_to_do() -> None:
    assert good.troubles(only_causes(all_findings())) == {}


def test_there_are_more_than_thirty_in_seven_groups() -> None:
    assert len(CHECKS) >= 30
    assert GROUPS == ("agent", "identity", "files", "policy", "listener", "backend", "host")
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in CHECKS)


def test_causes_are_checks_and_no_check_explains_itself() -> None:
    for name, causes in CAUSES.items():
        assert {name, *causes} <= CHECKS.keys()
        assert name not in causes


def test_causes_do_not_run_in_circles() -> None:
    def reach(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"{name} explains itself by {sorted(seen)}"
        for cause in CAUSES.get(name, ()):
            reach(cause, seen | {name})

    for name in CAUSES:
        reach(name, frozenset())


@pytest.mark.parametrize(
    "effect",
    [
        pytest.param(fail("identity.chain", "not proven", "x"), id="a failure"),
        pytest.param(warn("identity.rotation", "late", "x"), id="a warning"),
    ],
)
def test_what_follows_from_a_failure_is_skipped_and_says_so(effect: Finding) -> None:
    causes = [fail(name, "because", "x") for name in ("identity.bundle", "identity.lifetime")]
    found = {one.name: one for one in only_causes([effect, *causes])}
    assert found[effect.name].verdict is Verdict.SKIPPED
    assert "follows from" in found[effect.name].seen
    assert effect.seen in found[effect.name].seen


@pytest.mark.parametrize(
    "cause",
    [
        pytest.param(warn("identity.bundle", "ends soon", "x"), id="a warning"),
        pytest.param(skipped("identity.bundle", "not known"), id="skipped"),
        pytest.param(ok("identity.bundle", "fine"), id="content"),
        pytest.param(fail("agent.socket", "absent", "x"), id="a failure of another kind"),
    ],
)
def test_nothing_but_its_cause_explains_a_failure(cause: Finding) -> None:
    effect = fail("identity.chain", "not proven", "x")
    assert effect in only_causes([effect, cause])


def test_what_is_good_stays_good_whatever_else_fails() -> None:
    effect = ok("identity.chain", "proven")
    assert effect in only_causes([effect, fail("identity.bundle", "expired", "x")])


def test_findings_come_in_the_catalogues_order() -> None:
    names = [one.name for one in only_causes(reversed(all_findings()))]
    assert names == list(CHECKS)


def test_a_denied_identity_is_told_once() -> None:
    """The daemon is not ready, files grow old, nobody gets in: one cause."""
    findings = {one.name: one for one in all_findings()}
    denied = fail("agent.registration", "no identity issued", "register-workload")
    for one in (
        denied,
        fail("listener.ready", "denied", "x"),
        fail("files.current", "expired", "x"),
        fail("listener.handshake", "refused", "x"),
    ):
        findings[one.name] = replace(findings[one.name], verdict=one.verdict, remedy=one.remedy)
    assert set(good.troubles(only_causes(findings.values()))) == {"agent.registration"}


def test_an_agent_that_lost_its_identity_is_told_by_that() -> None:
    findings = [
        fail("agent.attestation", "expired", "a new token"),
        fail("agent.service", "status 1", "start it"),
        fail("agent.socket", "absent", "start it"),
        fail("agent.registration", "no identity issued", "register it"),
    ]
    assert set(good.troubles(only_causes(findings))) == {"agent.attestation"}


def test_an_agent_whose_service_failed_is_told_by_its_service() -> None:
    findings = [
        fail("agent.service", "status 1", "start it"),
        fail("agent.socket", "absent", "start it"),
        fail("agent.listening", "refused", "start it"),
        fail("listener.ready", "agent lost", "start it"),
    ]
    assert set(good.troubles(only_causes(findings))) == {"agent.service"}
