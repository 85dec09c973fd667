from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.host import HostFacts, judge_host
from sidecar.core.diagnosis.host_facts import Kind, NetworkTime, PathStat, Power, ServiceState
from tests.core.diagnosis.good import (
    HOST,
    ROOT,
    SERVICE,
    SERVICE_STATE,
    place,
    troubles,
    verdict_of,
    way,
)

FAIL, WARN = Verdict.FAIL, Verdict.WARN
PYTHON = "/opt/spiffe-sidecar/venv/bin/python"


def changed(**changes: Any) -> HostFacts:
    return replace(HOST, **changes)


def service(**changes: Any) -> HostFacts:
    return changed(service=replace(SERVICE_STATE, **changes))


def test_a_good_host_is_content() -> None:
    assert troubles(judge_host(HOST)) == {}


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(changed(python=(3, 10, 2)), "host.python", FAIL, id="an old Python"),
        pytest.param(changed(openssl_major=1), "host.python", FAIL, id="an old OpenSSL"),
        pytest.param(changed(account=ROOT), "host.service_user", FAIL, id="root"),
        pytest.param(
            changed(account=ROOT, known_by=""), "host.service_user", WARN, id="nobody knows who"
        ),
        pytest.param(
            changed(account=replace(SERVICE, shell="/bin/zsh")),
            "host.service_user",
            WARN,
            id="a person's account",
        ),
        pytest.param(
            changed(program=((place("/"), place("/root", mode=0o700), place("/root/venv")),)),
            "host.installation",
            FAIL,
            id="in a home that it cannot pass",
        ),
        pytest.param(
            changed(program=(way("/home/ada/venv/bin/python", mode=0o755),)),
            "host.installation",
            WARN,
            id="in somebody's home",
        ),
        pytest.param(
            changed(program=(way(PYTHON, mode=0o777),)),
            "host.installation",
            WARN,
            id="everybody may change the program",
        ),
        pytest.param(
            changed(program=(way(PYTHON, mode=0o755, uid=SERVICE.uid),)),
            "host.installation",
            WARN,
            id="the service user may change the program",
        ),
        pytest.param(
            changed(service=ServiceState("x", installed=False)), "host.service", WARN, id="none"
        ),
        pytest.param(service(only_when_logged_in=True), "host.service", WARN, id="a LaunchAgent"),
        pytest.param(service(enabled=False), "host.enabled", FAIL, id="not enabled"),
        pytest.param(
            replace(service(running=False, ended="status 78"), daemon_pid=0),
            "host.active",
            FAIL,
            id="it has failed",
        ),
        pytest.param(service(running=False), "host.active", WARN, id="started by hand instead"),
        pytest.param(service(pid=99), "host.active", WARN, id="another one answers"),
        pytest.param(changed(daemon_uid=1000), "host.active", FAIL, id="a stranger answers"),
        pytest.param(changed(descriptors=1024), "host.descriptors", WARN, id="descriptors"),
        pytest.param(changed(sandbox=False), "host.sandbox", WARN, id="switched off"),
        pytest.param(changed(landlock=0), "host.sandbox", WARN, id="no Landlock"),
        pytest.param(changed(landlock=3), "host.sandbox", WARN, id="an old Landlock"),
        pytest.param(
            changed(power=Power(sleeps=True, how="sleep after 10 min")),
            "host.sleep",
            WARN,
            id="sleep",
        ),
        pytest.param(
            changed(network_time=NetworkTime(synchronised=False, how="off")),
            "host.clock",
            WARN,
            id="clock",
        ),
    ],
)
def test_each_fault_has_one_name(facts: HostFacts, name: str, verdict: Verdict) -> None:
    assert troubles(judge_host(facts)) == {name: verdict}


def test_a_host_that_sleeps_is_worse_with_a_join_token() -> None:
    asleep = Power(sleeps=True, how="sleep after 10 min")
    seen = [
        next(one.seen for one in judge_host(facts) if one.name == "host.sleep")
        for facts in (changed(power=asleep), changed(power=asleep, join_token=False))
    ]
    assert ["join token" in text for text in seen] == [True, False]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        pytest.param(changed(service=Unknown("no systemd")), "host.enabled", id="no manager"),
        pytest.param(service(enabled=None), "host.enabled", id="a static unit"),
        pytest.param(changed(descriptors=Unknown("x")), "host.descriptors", id="not running"),
        pytest.param(changed(connections=0), "host.descriptors", id="helper mode"),
        pytest.param(changed(landlock=Unknown("macOS")), "host.sandbox", id="macOS"),
        pytest.param(changed(power=Unknown("x")), "host.sleep", id="pmset"),
        pytest.param(changed(network_time=Unknown("x")), "host.clock", id="systemsetup"),
        pytest.param(
            changed(program=((place("/"), PathStat("/opt", Kind.HIDDEN)),)),
            "host.installation",
            id="hidden",
        ),
    ],
)
def test_what_is_not_known_is_skipped(facts: HostFacts, name: str) -> None:
    assert verdict_of(judge_host(facts), name) is Verdict.SKIPPED
