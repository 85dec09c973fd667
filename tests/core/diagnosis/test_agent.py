from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sidecar.core.diagnosis.agent import NAMES, AgentFacts, Attestation, Token, judge_agent
from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.host_facts import Kind, PathStat, Process, ServiceState
from sidecar.core.diagnosis.issued import Answer, Said
from tests.core.diagnosis.good import AGENT, NOW, ROOT, SERVICE, place, troubles, verdict_of, way

SOCKET = "/opt/spire/sockets/agent.sock"
FAIL, WARN, SKIPPED = Verdict.FAIL, Verdict.WARN, Verdict.SKIPPED


def changed(**changes: Any) -> AgentFacts:
    return replace(AGENT, **changes)


def conf(**changes: Any) -> AgentFacts:
    return changed(conf=replace(AGENT.conf, **changes))


def test_a_good_agent_is_content() -> None:
    assert troubles(judge_agent(AGENT)) == {}
    assert [one.name for one in judge_agent(AGENT)] == list(NAMES)


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(
            changed(way=(*way(SOCKET)[:-2], PathStat("/opt/spire/sockets", Kind.ABSENT))),
            "agent.socket",
            FAIL,
            id="its folder is not there",
        ),
        pytest.param(changed(way=way(SOCKET)), "agent.socket", FAIL, id="it is a file"),
        pytest.param(
            changed(way=way(SOCKET, Kind.SOCKET, 0o755)), "agent.access", FAIL, id="not for others"
        ),
        pytest.param(
            changed(
                way=(place("/"), place("/opt", mode=0o700), *way(SOCKET, Kind.SOCKET, 0o777)[2:])
            ),
            "agent.access",
            FAIL,
            id="a folder that cannot be passed",
        ),
        pytest.param(
            changed(
                way=(place("/"), place("/opt", mode=0o777), *way(SOCKET, Kind.SOCKET, 0o777)[2:])
            ),
            "agent.guarded",
            FAIL,
            id="everybody writes to a folder on the way",
        ),
        pytest.param(
            changed(
                way=(place("/"), place("/opt", uid=1000), *way(SOCKET, Kind.SOCKET, 0o777)[2:])
            ),
            "agent.guarded",
            FAIL,
            id="somebody else owns a folder on the way",
        ),
        pytest.param(
            changed(refusal="Connection refused", process=Unknown("x")),
            "agent.listening",
            FAIL,
            id="a socket that nobody serves any more",
        ),
        pytest.param(
            changed(process=Process(5, SERVICE.uid, "spire-agent")),
            "agent.process",
            WARN,
            id="the agent runs as the service user",
        ),
        pytest.param(
            changed(answer=Answer(Said.UNREADABLE, "UNIMPLEMENTED")),
            "agent.workload_api",
            FAIL,
            id="the admin socket",
        ),
        pytest.param(
            changed(answer=Answer(Said.LOST, "no answer within 3 s")),
            "agent.workload_api",
            FAIL,
            id="a program that never answers",
        ),
        pytest.param(
            changed(answer=Answer(Said.DENIED, "no identity issued")),
            "agent.registration",
            FAIL,
            id="no entry",
        ),
        pytest.param(
            conf(trust_domain="other.org"), "agent.configuration", FAIL, id="trust domain"
        ),
        pytest.param(conf(socket_path="/run/x.sock"), "agent.configuration", WARN, id="its socket"),
        pytest.param(conf(bootstrap=""), "agent.configuration", FAIL, id="no trust bundle"),
        pytest.param(
            conf(bootstrap="insecure_bootstrap", insecure=True),
            "agent.configuration",
            WARN,
            id="insecure bootstrap",
        ),
        pytest.param(
            changed(attestation=Attestation(NOW - timedelta(hours=2), Token.SPENT)),
            "agent.attestation",
            FAIL,
            id="it slept for longer than its own SVID lives",
        ),
        pytest.param(
            changed(attestation=Attestation(None, Token.SPENT)),
            "agent.attestation",
            FAIL,
            id="its data is lost and its token is spent",
        ),
        pytest.param(
            changed(attestation=Attestation(None, Token.ABSENT)),
            "agent.attestation",
            FAIL,
            id="it has never had a token",
        ),
        pytest.param(
            changed(service=ServiceState("a", installed=True, running=False, ended="status 1")),
            "agent.service",
            FAIL,
            id="its service has failed",
        ),
        pytest.param(
            changed(service=ServiceState("a", installed=True, running=True, enabled=False)),
            "agent.service",
            WARN,
            id="it does not start with the host",
        ),
    ],
)
def test_each_fault_has_one_name(facts: AgentFacts, name: str, verdict: Verdict) -> None:
    assert troubles(judge_agent(facts)) == {name: verdict}


def test_denial_names_uid_selector_and_command() -> None:
    facts = changed(answer=Answer(Said.DENIED, "no identity issued"))
    (found,) = [one for one in judge_agent(facts) if one.name == "agent.registration"]
    assert "unix:uid:451" in found.seen
    assert "register-workload --uid 451" in found.remedy


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        pytest.param(
            changed(asked_as=replace(ROOT, uid=1000), answer=Answer(Said.DENIED, "none")),
            "agent.registration",
            id="another account's denial says nothing",
        ),
        pytest.param(
            changed(asked_as=replace(ROOT, uid=1000)),
            "agent.registration",
            id="another account's identity says nothing",
        ),
        pytest.param(
            changed(way=(place("/"), PathStat("/opt/spire", Kind.HIDDEN))),
            "agent.socket",
            id="this account may not look",
        ),
        pytest.param(changed(answer=Unknown("late")), "agent.workload_api", id="not answered"),
        pytest.param(changed(conf=Unknown("absent")), "agent.configuration", id="no agent.conf"),
        pytest.param(changed(conf=Unknown("absent")), "agent.attestation", id="nor its data"),
        pytest.param(conf(join_token=False), "agent.attestation", id="attested by another way"),
        pytest.param(changed(attestation=Unknown("x")), "agent.attestation", id="not for us"),
        pytest.param(
            changed(service=ServiceState("a", installed=False)),
            "agent.service",
            id="started by something else",
        ),
        pytest.param(changed(way=()), "agent.access", id="an agent by TCP"),
    ],
)
def test_what_is_not_known_is_never_called_good(facts: AgentFacts, name: str) -> None:
    assert verdict_of(judge_agent(facts), name) is SKIPPED


def test_sticky_folder_keeps_others_out() -> None:
    good = way(SOCKET, Kind.SOCKET, 0o777)
    facts = changed(way=(place("/"), place("/tmp", mode=0o1777), *good[2:]))
    assert troubles(judge_agent(facts)) == {}


def test_an_agent_that_has_just_joined_has_a_token_and_no_svid_yet() -> None:
    facts = changed(attestation=Attestation(None, Token.THERE))
    assert troubles(judge_agent(facts)) == {}
    refused = replace(facts, refusal="Connection refused", process=Unknown("x"))
    assert troubles(judge_agent(refused))["agent.attestation"] is FAIL


def test_an_agent_that_runs_without_a_socket_is_not_told_to_start() -> None:
    gone = (*way(SOCKET)[:-1], PathStat(SOCKET, Kind.ABSENT))
    (found,) = [one for one in judge_agent(changed(way=gone)) if one.name == "agent.socket"]
    assert "journalctl" in found.remedy
    assert "--generate-token" in found.remedy
    assert "systemctl enable" not in found.remedy
