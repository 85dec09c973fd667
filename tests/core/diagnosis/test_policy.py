from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.host_facts import Kind, PathStat
from sidecar.core.diagnosis.policy import InForce, PolicyFacts, judge_policy
from sidecar.core.policy import Policy
from sidecar.core.policy_file import parse_policy
from sidecar.core.policy_lint import PolicyWarning
from tests.core.diagnosis.good import POLICY, SERVICE, place, troubles, verdict_of, way

CONFIG = "/etc/spiffe-sidecar/sidecar.toml"
FAIL, WARN = Verdict.FAIL, Verdict.WARN


def changed(**changes: Any) -> PolicyFacts:
    return replace(POLICY, **changes)


def config(mode: int, uid: int = 0) -> PolicyFacts:
    return changed(ways=(way(CONFIG, Kind.FILE, mode, uid),))


def policy(allow: str, deny: str = "") -> Policy:
    text = f'[[allow]]\nname = "a"\npeers = ["{allow}"]\nendpoints = ["preset:ollama"]\n'
    if deny:
        text += f'[[deny]]\nname = "d"\npeers = ["{deny}"]\n'
    return parse_policy(text, "policy.toml", "http")


def test_good_files_are_content() -> None:
    assert troubles(judge_policy(POLICY)) == {}


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(
            changed(problems=("sidecar.toml: [listner]: found the unknown key",), policy=None),
            "policy.configuration",
            FAIL,
            id="a mistake in the configuration",
        ),
        pytest.param(config(0o600), "policy.readable", FAIL, id="for root alone"),
        pytest.param(
            changed(ways=((place("/"), place("/etc", mode=0o700), *way(CONFIG)[2:]),)),
            "policy.readable",
            FAIL,
            id="below a folder that cannot be passed",
        ),
        pytest.param(config(0o666), "policy.guarded", FAIL, id="everybody may write"),
        pytest.param(config(0o664, 1000), "policy.guarded", FAIL, id="a group may write"),
        pytest.param(config(0o644, SERVICE.uid), "policy.guarded", WARN, id="its own file"),
        pytest.param(
            changed(
                ways=((*way(CONFIG)[:-2], place("/etc/spiffe-sidecar", uid=451), way(CONFIG)[-1]),)
            ),
            "policy.guarded",
            WARN,
            id="its own folder",
        ),
        pytest.param(
            changed(policy=policy("spiffe://exampel.org/workload/traefik")),
            "policy.admits",
            FAIL,
            id="a trust domain with a typo",
        ),
        pytest.param(
            changed(
                policy=policy(
                    "spiffe://example.org/workload/traefik", "spiffe://example.org/workload/traefik"
                )
            ),
            "policy.admits",
            FAIL,
            id="the only peer is denied",
        ),
        pytest.param(
            changed(policy=policy("spiffe://example.org/workload/a", "spiffe://example.org/**")),
            "policy.admits",
            FAIL,
            id="everybody is denied",
        ),
        pytest.param(
            changed(warnings=(PolicyWarning("a", "it never decides", "remove it"),)),
            "policy.lint",
            WARN,
            id="lint",
        ),
        pytest.param(
            changed(in_force=InForce(problems=("policy.toml: bad",))),
            "policy.in_force",
            FAIL,
            id="a newer file is refused",
        ),
        pytest.param(
            changed(in_force=InForce(needs_restart=("[listener] address",))),
            "policy.in_force",
            WARN,
            id="needs a restart",
        ),
        pytest.param(
            changed(in_force=InForce(differs=("policy.toml",))),
            "policy.in_force",
            WARN,
            id="another file than the one that is in force",
        ),
    ],
)
def test_each_fault_has_one_name(facts: PolicyFacts, name: str, verdict: Verdict) -> None:
    assert troubles(judge_policy(facts)) == {name: verdict}


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(config(0o640, 0), id="another group's"),
        pytest.param(changed(ways=((place("/"), PathStat("/etc", Kind.HIDDEN)),)), id="hidden"),
    ],
)
def test_a_file_that_cannot_be_looked_at_is_not_called_good(facts: PolicyFacts) -> None:
    assert verdict_of(judge_policy(facts), "policy.readable") is not Verdict.OK


def test_the_installers_modes_are_good() -> None:
    """0640, root's, and of the service user's group, in a folder of root's."""
    files = [
        PathStat(f"/etc/spiffe-sidecar/{name}", Kind.FILE, 0o640, 0, SERVICE.gid)
        for name in ("sidecar.toml", "policy.toml")
    ]
    folders = (place("/"), place("/etc"), place("/etc/spiffe-sidecar"))
    facts = changed(ways=tuple((*folders, file) for file in files))
    assert troubles(judge_policy(facts)) == {}


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(changed(trust_domains=frozenset()), id="no bundles are known"),
        pytest.param(changed(policy=policy("spiffe://example.org/workload/*")), id="a pattern"),
        pytest.param(
            changed(
                policy=policy("spiffe://example.org/workload/*", "spiffe://example.org/workload/a")
            ),
            id="one of them is denied",
        ),
    ],
)
def test_a_policy_that_may_admit_somebody_is_content(facts: PolicyFacts) -> None:
    assert troubles(judge_policy(facts)) == {}


def test_helper_mode_has_no_policy() -> None:
    found = list(judge_policy(changed(policy=None, helper=True, in_force=Unknown("away"))))
    for name in ("policy.admits", "policy.lint", "policy.in_force"):
        assert verdict_of(found, name) is Verdict.SKIPPED
