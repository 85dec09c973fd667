"""`doctor` on a healthy host, and on hosts with one fault each: it is named by its own check.

Each fault is made for real on one host that stays, and mended by the remedy that doctor gives,
where that is a command that can be run here. What is not mended fails the test after it, and the
last one asks for a host without any fault. With FULL=1 there are all faults, and that is asked
after each of them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.core.diagnosis.catalogue import CHECKS
from sidecar.core.diagnosis.finding import Verdict
from tests.ca import Authority
from tests.http_backend import Call
from tests.scenarios.doctor_host import IS_ROOT, Host, failed, free_port, lan_address, shown

FULL = os.environ.get("FULL") == "1"
HOUR = timedelta(hours=1)
OURS_UNIT, AGENT_UNIT = "spiffe-sidecar.service", "spire-agent.service"


@dataclass
class _Holder:
    """The host of the tests so far; one that was left broken is not used again."""

    authority: Authority
    host: Host | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self) -> Host:
        if self.host is None:
            self.folder = tempfile.TemporaryDirectory(prefix="sc-")
            try:
                self.host = Host(Path(self.folder.name), self.authority)
            finally:
                if self.host is None:
                    self.drop()
        return self.host

    def drop(self) -> None:
        if self.host is not None:
            self.host.close()
        if self.folder is not None:
            self.folder.cleanup()
        self.host = self.folder = None


@pytest.fixture(scope="module")
def holder(authority: Authority) -> Iterator[_Holder]:
    holder = _Holder(authority)
    yield holder
    holder.drop()


@pytest.fixture
def host(
    holder: _Holder, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Host]:
    host = holder.get()
    monkeypatch.setenv("PATH", host.environment()["PATH"])
    monkeypatch.setattr(sys, "executable", host.python)
    failures = request.session.testsfailed
    yield host
    if request.session.testsfailed > failures:
        holder.drop()


def in_process(host: Host, *arguments: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    result = CliRunner().invoke(main, ["doctor", "--config", str(host.config), *arguments])
    return result.exit_code, result.output


# A healthy host.


def test_a_healthy_host_has_no_fault(host: Host) -> None:
    ended = host.doctor("--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert [one["name"] for one in told["findings"]] == list(CHECKS)
    assert told["ok"] is True
    assert told["counts"]["fail"] == 0
    assert sum(told["counts"].values()) == len(CHECKS)


def test_what_can_be_known_of_a_healthy_host_is_known(host: Host) -> None:
    """As root nothing is hidden: what is skipped does not apply here."""
    findings = host.examine()
    skipped = {name for name, one in findings.items() if one.verdict is Verdict.SKIPPED}
    does_not_apply = {
        "agent.configuration",  # of another agent, or none
        "agent.attestation",
        "identity.files",
        "identity.federation",
        "backend.socket_mode",
        "backend.endpoints",
        "backend.streaming",
    }
    if IS_ROOT and sys.platform == "linux":
        assert skipped <= does_not_apply | {"host.clock"}, shown(findings)
    assert failed(findings) == set(), shown(findings)


def test_the_screen_has_groups_remedies_and_a_summary(host: Host) -> None:
    host.write_config(listen="100.64.77.1")
    try:
        code, output = in_process(host)
    finally:
        host.write_config()
    lines = output.splitlines()
    assert code == 1
    assert {"agent", "identity", "files", "policy", "listener", "backend", "host"} <= set(lines)
    at = next(at for at, line in enumerate(lines) if "FAIL  listener.address" in line)
    assert lines[at + 1].strip().startswith("do: ")
    assert "begin with listener.address" in lines[-1]


def test_only_shows_what_was_asked_for(host: Host) -> None:
    code, output = in_process(host, "--only", "backend", "--only", "agent.socket", "--verbose")
    checks = [line.split()[1] for line in output.splitlines() if line.startswith("  ok")]
    assert code == 0
    assert "agent.socket" in checks
    assert {name.partition(".")[0] for name in checks} == {"agent", "backend"}
    assert str(host.agent.path) in output


def _stream(call: Call) -> None:
    call.body()
    call.begin_stream()
    for word in ("one", "two", "three"):
        call.event(word)
        time.sleep(0.05)  # the pace of a model
    call.end_stream()
    call.close()


@pytest.mark.skipif(not FULL, reason="this one with FULL=1")
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        pytest.param(_stream, Verdict.OK, id="streamed"),
        pytest.param(lambda call: call.answer(200, b"{}"), Verdict.WARN, id="in one piece"),
        pytest.param(lambda call: call.answer(404), Verdict.SKIPPED, id="no such model"),
    ],
)
def test_a_model_that_is_named_gives_a_streamed_answer(
    host: Host, answer: Callable[[Call], None], verdict: Verdict
) -> None:
    host.backend.routes["/v1/chat/completions"] = answer
    findings = host.examine(model="tiny")
    del host.backend.routes["/v1/chat/completions"]
    found = findings["backend.streaming"]
    assert found.verdict is verdict, found
    if verdict is Verdict.OK:
        assert "from the backend" in found.seen
        assert "through the listener" in found.seen


# One fault each.


@dataclass(frozen=True)
class Fault:
    """How a fault is made, which check names it, and how it is mended.

    `mend` None: what doctor says is a command, and it is run.
    """

    name: str
    make: Callable[[Host], object]
    mend: Callable[[Host, object], object] | None = None
    needs_root: bool = False
    linux: bool = False
    quick: bool = False  # not with FULL=1 alone
    settled: Callable[[Host], bool] = lambda _host: True


def _start_agent(host: Host, _made: object = None) -> None:
    host.start_agent()
    host.write_unit(AGENT_UNIT)
    host.daemon.wait_for("state changed", state="ready")


def _send(host: Host, _made: object = None) -> None:
    """What the registration on the SPIRE server leads to, or a new SVID."""
    host.agent.send(host.svid, host.authority.bundle)


def _send_and_wait(host: Host, _made: object = None) -> None:
    _send(host)
    host.daemon.wait_for("state changed", state="ready")


def _deny(host: Host) -> None:
    host.agent.deny()
    host.daemon.wait_for("identity denied")


def _kill_agent(host: Host) -> None:
    host.agent.kill()
    host.daemon.wait_for("state changed", state="agent_lost")


def _stop_and_wait(host: Host) -> None:
    """An agent that no service manager knows of."""
    host.agent.stop()
    (host.units / AGENT_UNIT).unlink()
    host.daemon.wait_for("state changed", state="agent_lost")


def _issue(**changes: Any) -> Callable[[Host], object]:
    return lambda host: host.agent.send(host.authority.svid(**changes), host.authority.bundle)


def _issue_another_id(host: Host) -> None:
    host.agent.send(host.authority.svid("/workload/other"), host.authority.bundle)
    host.daemon.wait_for("identity denied")


def _issue_from_elsewhere(host: Host) -> None:
    host.agent.send(Authority("example.org").svid(), host.authority.bundle)


def _federate(host: Host, _made: object) -> None:
    partner = Authority("partner.example")
    host.agent.send(host.svid, host.authority.bundle, [partner.bundle])


def _policy(more: str) -> Callable[[Host], object]:
    return lambda host: host.write_policy(more)


def _restore_policy(host: Host, _made: object = None) -> None:
    host.write_policy()


def _config(**changes: str) -> Callable[[Host], object]:
    return lambda host: host.write_config(**changes)


def _restore_config(host: Host, _made: object = None) -> None:
    host.write_config()


def _chmod(name: str, mode: int) -> Callable[[Host], object]:
    return lambda host: (host.folder / name).chmod(mode)


def _unpublish(host: Host) -> None:
    (host.certs / "current").unlink()


def _stop_daemon(host: Host) -> None:
    host.daemon.stop()


def _start_daemon(host: Host, _made: object = None) -> None:
    host.start_daemon()


def _take_port(host: Host) -> socket.socket:
    host.daemon.stop()
    return socket.create_server(("0.0.0.0", host.port))


def _give_port(host: Host, made: object) -> None:
    assert isinstance(made, socket.socket)
    made.close()
    host.start_daemon()


def _unhealthy(host: Host) -> None:
    host.backend.routes["/api/version"] = lambda call: call.answer(500)


def _healthy(host: Host, _made: object) -> None:
    host.backend.routes.pop("/api/version", None)


def _refuse_names(host: Host) -> None:
    """As Ollama does on loopback, and `keep` sends it what the peer sent."""

    def answer(call: Call) -> None:
        known = call.values("host")[0].startswith("127.0.0.1")
        call.answer(200 if known else 403, b"{}")

    host.backend.routes["/api/version"] = answer
    host.write_config(host="keep")


def _rewrite_host(host: Host, made: object) -> None:
    _restore_config(host)
    _healthy(host, made)


def _expose(host: Host) -> socket.socket:
    port = int(host.backend.address.rpartition(":")[2])
    return socket.create_server((lan_address(), port))


def _close(_host: Host, made: object) -> None:
    assert isinstance(made, socket.socket)
    made.close()


def _run_as_root(host: Host) -> None:
    host.daemon.stop()
    os.chown(host.certs, 0, 0)
    host.start_daemon(as_root=True)


def _run_as_service_user(host: Host, _made: object) -> None:
    assert host.user is not None
    host.daemon.stop()
    for path in (host.certs, *host.certs.rglob("*")):
        os.chown(path, host.user, -1, follow_symlinks=False)
    host.start_daemon()


def _dead_backend(host: Host) -> None:
    host.write_config(backend=f"127.0.0.1:{free_port()}")


def _unit(name: str, enabled: str, active: str) -> Callable[[Host], object]:
    return lambda host: host.write_unit(name, enabled, active)


DENY_ALL = '[[deny]]\nname = "all"\npeers = ["spiffe://example.org/**"]\n'
PARTNER = (
    '[[allow]]\nname = "partner"\npeers = ["spiffe://partner.example/gateway"]\n'
    'endpoints = ["GET /api/version"]\n'
)
FAULTS = [
    Fault("agent.socket", _stop_and_wait, _start_agent),
    Fault("agent.access", _chmod("agent", 0o700), needs_root=True, quick=True),
    Fault("agent.guarded", _chmod("agent", 0o777), needs_root=True),
    Fault("agent.listening", _kill_agent, _start_agent),
    Fault("agent.registration", _deny, _send_and_wait, quick=True),
    Fault("identity.spiffe_id", _issue_another_id, _send_and_wait),
    Fault("identity.clock", _issue(not_before=HOUR, not_after=2 * HOUR), _send),
    Fault("identity.lifetime", _issue(not_before=-2 * HOUR, not_after=-HOUR), _send),
    Fault("identity.chain", _issue_from_elsewhere, _send, quick=True),
    Fault("identity.federation", _policy(PARTNER), _federate),
    Fault("files.guarded", _chmod("certs", 0o777), needs_root=True),
    Fault("files.writable", lambda host: os.chown(host.certs, 0, 0), needs_root=True),
    Fault("files.keys", lambda host: host.key.chmod(0o644), needs_root=True, quick=True),
    Fault(
        "files.published",
        _unpublish,
        needs_root=True,
        settled=lambda host: (host.certs / "current").exists(),
    ),
    Fault("files.hooks", lambda host: host.touched.unlink(), needs_root=True),
    Fault("policy.configuration", _config(more="[backendd]"), _restore_config, quick=True),
    Fault("policy.readable", _chmod("policy.toml", 0o600), needs_root=True),
    Fault("policy.guarded", _chmod("policy.toml", 0o666), needs_root=True),
    Fault("policy.admits", _policy(DENY_ALL), _restore_policy),
    Fault("listener.address", _config(listen="100.64.77.1"), _restore_config),
    Fault("listener.daemon", _stop_daemon, _start_daemon),
    Fault("listener.port", _take_port, _give_port, needs_root=True, quick=True),
    Fault("backend.listening", _dead_backend, _restore_config),
    Fault("backend.health", _unhealthy, _healthy),
    Fault("backend.host", _refuse_names, _rewrite_host),
    Fault("backend.loopback_only", _expose, _close, quick=True),
    Fault("agent.service", _unit(AGENT_UNIT, "enabled", "failed"), linux=True),
    Fault(
        "host.enabled",
        _unit("spiffe-sidecar.service", "disabled", "active"),
        linux=True,
        quick=True,
    ),
    Fault("host.service_user", _run_as_root, _run_as_service_user, needs_root=True),
]


@pytest.mark.parametrize("fault", [pytest.param(one, id=one.name) for one in FAULTS])
def test_each_fault_is_named_by_its_own_check(host: Host, fault: Fault) -> None:
    if not (fault.quick or FULL):
        pytest.skip("this one with FULL=1")
    if fault.needs_root and not IS_ROOT:
        pytest.skip("only root can make this fault, or mend it")
    if fault.linux and sys.platform != "linux":
        pytest.skip("the service manager is systemd")
    made = fault.make(host)
    findings = host.examine()
    assert failed(findings) == {fault.name}, shown(findings)
    remedy = findings[fault.name].remedy
    assert remedy
    if fault.mend is None:
        host.do(remedy)
    else:
        fault.mend(host, made)
    host.until(fault.settled)
    host.until_ready()
    if FULL:
        findings = host.examine()
        assert failed(findings) == set(), shown(findings)


def test_no_fault_is_left_after_all_remedies(host: Host) -> None:
    _restore_policy(host)
    findings = host.examine()
    assert failed(findings) == set(), shown(findings)


@pytest.mark.skipif(not FULL, reason="this one with FULL=1")
def test_an_agent_that_is_no_workload_api(host: Host, holder: _Holder) -> None:
    host.agent.fail(grpc.StatusCode.UNIMPLEMENTED)
    findings = host.examine()
    assert failed(findings) == {"agent.workload_api"}, shown(findings)
    holder.drop()  # the daemon asks such an agent again after minutes only
