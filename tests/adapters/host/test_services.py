"""Services: what systemctl and launchctl print, recorded, of every state that matters."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any

import pytest

from sidecar.adapters.host.command import Output
from sidecar.adapters.host.services import LaunchdFolders, is_disabled, service, systemd_state
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import ServiceState
from tests.adapters.host.answers import Recorded

UNIT, LABEL = "spiffe-sidecar.service", "org.spiffe-sidecar.sidecar"
NOWHERE = LaunchdFolders(Path("/nowhere"), ())
RUNNING = f"""\
system/{LABEL} = {{
\tactive count = 1
\tpath = /Library/LaunchDaemons/{LABEL}.plist
\ttype = LaunchDaemon
\tstate = running

\tprogram = /opt/spiffe-sidecar/venv/bin/spiffe-sidecar
\targuments = {{
\t\t/opt/spiffe-sidecar/venv/bin/spiffe-sidecar
\t\trun
\t}}

\tdefault environment = {{
\t\tPATH => /usr/bin:/bin:/usr/sbin:/sbin
\t}}

\tdomain = system
\tusername = _spiffe-sidecar
\tgroup = _spiffe-sidecar
\tminimum runtime = 10
\texit timeout = 5
\truns = 1
\tpid = 893
\timmediate reason = speculative
\tforks = 3
\tlast exit code = (never exited)

\tsockets = {{
\t\t"Listener" = {{
\t\t\tpid = 1
\t\t\tstate = active
\t\t}}
\t}}

\tproperties = keepalive | runatload | inferred program
}}
"""
ENDED = RUNNING.replace("state = running", "state = spawn scheduled").replace("\tpid = 893\n", "")
NOT_THERE = Output(
    113, "", f'Bad request.\nCould not find service "{LABEL}" in domain for system\n'
)


def shown(**changes: str) -> Output:
    values = {
        "LoadState": "loaded",
        "UnitFileState": "enabled",
        "ActiveState": "active",
        "Result": "success",
        "ExecMainStatus": "0",
        "MainPID": "893",
        "User": "spiffe-sidecar",
        "FragmentPath": f"/etc/systemd/system/{UNIT}",
        "LimitNOFILE": "16384",
    }
    return Output(0, "".join(f"{key}={value}\n" for key, value in (values | changes).items()))


def state(output: Output) -> ServiceState:
    found = systemd_state(UNIT, output)
    assert isinstance(found, ServiceState)
    return found


def test_a_unit_that_runs() -> None:
    assert state(shown()) == ServiceState(
        UNIT,
        installed=True,
        enabled=True,
        running=True,
        pid=893,
        user="spiffe-sidecar",
        path=f"/etc/systemd/system/{UNIT}",
        descriptors=16384,
    )


@pytest.mark.parametrize(
    ("word", "enabled"),
    [
        pytest.param("enabled", True, id="enabled"),
        pytest.param("generated", True, id="quadlet"),
        pytest.param("disabled", False, id="disabled"),
        pytest.param("masked", False, id="masked"),
        pytest.param("static", None, id="static"),
        pytest.param("", None, id="not said"),
    ],
)
def test_enabled(word: str, enabled: bool | None) -> None:
    assert state(shown(UnitFileState=word)).enabled is enabled


def test_a_unit_that_failed_says_how() -> None:
    found = state(shown(ActiveState="failed", Result="exit-code", ExecMainStatus="78", MainPID="0"))
    assert (found.running, found.pid, found.ended) == (False, 0, "exit-code, status 78")


def test_a_unit_that_is_started_again_and_again_does_not_run() -> None:
    found = state(
        shown(
            ActiveState="activating",
            SubState="auto-restart",
            NRestarts="7",
            Result="exit-code",
            ExecMainStatus="1",
            MainPID="0",
        )
    )
    assert found.running is False
    assert found.ended == "exit-code, status 1, started again 7 times"
    assert state(shown(ActiveState="activating", SubState="start")).running is True


def test_a_unit_that_is_none() -> None:
    assert not state(Output(0, "LoadState=not-found\nActiveState=inactive\n")).installed


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(Output(1, "", "System has not been booted with systemd"), id="no systemd"),
        pytest.param(Output(0, ""), id="says nothing"),
        pytest.param(Unknown("there is no systemctl on this host"), id="not installed"),
    ],
)
def test_without_systemd_nothing_is_known(output: Output | Unknown) -> None:
    assert isinstance(systemd_state(UNIT, output), Unknown)


async def test_a_socket_that_is_enabled_starts_its_service() -> None:
    service_off = shown(UnitFileState="disabled", ActiveState="inactive", MainPID="0")
    names = f"systemctl show --property={_properties()}"
    recorded = Recorded({f"{names} {UNIT}": service_off, f"{names} spiffe-sidecar.socket": shown()})
    found = await service(UNIT, NOWHERE, recorded, "linux")
    assert isinstance(found, ServiceState)
    assert (found.enabled, found.running) == (True, True)
    recorded = Recorded({f"{names} {UNIT}": service_off})
    found = await service(UNIT, NOWHERE, recorded, "linux")
    assert isinstance(found, ServiceState)
    assert found.enabled is False


def _properties() -> str:
    from sidecar.adapters.host.services import _PROPERTIES

    return ",".join(_PROPERTIES)


# launchd.


def folders(tmp_path: Path, *, daemon: bool = False, agent: bool = False) -> LaunchdFolders:
    plist: dict[str, Any] = {
        "Label": LABEL,
        "UserName": "_spiffe-sidecar",
        "HardResourceLimits": {"NumberOfFiles": 16384},
    }
    for name, wanted in (("daemons", daemon), ("agents", agent)):
        (tmp_path / name).mkdir()
        if wanted:
            (tmp_path / name / f"{LABEL}.plist").write_bytes(plistlib.dumps(plist))
    return LaunchdFolders(tmp_path / "daemons", (tmp_path / "agents",))


async def on_a_mac(
    where: LaunchdFolders, printed: Output | str, disabled: str = ""
) -> ServiceState | Unknown:
    recorded = Recorded(
        {f"launchctl print system/{LABEL}": printed, "launchctl print-disabled system": disabled}
    )
    return await service(LABEL, where, recorded, "darwin")


async def test_a_launch_daemon_that_runs(tmp_path: Path) -> None:
    found = await on_a_mac(folders(tmp_path, daemon=True), RUNNING)
    assert found == ServiceState(
        LABEL,
        installed=True,
        enabled=True,
        running=True,
        pid=893,
        user="_spiffe-sidecar",
        path=f"/Library/LaunchDaemons/{LABEL}.plist",
        descriptors=16384,
    )


@pytest.mark.parametrize(
    ("line", "ended"),
    [
        pytest.param("last exit code = 78: EX_CONFIG", "last exit code 78: EX_CONFIG", id="code"),
        pytest.param("last exit code = 1", "last exit code 1", id="plain code"),
        pytest.param("last terminating signal = Killed: 9", "ended by Killed: 9", id="signal"),
        pytest.param("last exit code = (never exited)", "", id="never"),
    ],
)
async def test_a_launch_daemon_that_ended(tmp_path: Path, line: str, ended: str) -> None:
    printed = ENDED.replace("last exit code = (never exited)", line)
    found = await on_a_mac(folders(tmp_path, daemon=True), printed)
    assert isinstance(found, ServiceState)
    assert (found.running, found.pid, found.ended) == (False, 0, ended)


async def test_a_launch_daemon_that_is_not_loaded(tmp_path: Path) -> None:
    found = await on_a_mac(folders(tmp_path, daemon=True), NOT_THERE)
    assert isinstance(found, ServiceState)
    assert (found.installed, found.enabled, found.running) == (True, True, False)
    assert found.ended == "it is not loaded"
    assert found.user == "_spiffe-sidecar"


async def test_a_launch_daemon_that_is_none(tmp_path: Path) -> None:
    found = await on_a_mac(folders(tmp_path), NOT_THERE)
    assert isinstance(found, ServiceState)
    assert not found.installed


async def test_a_launch_agent_is_told_from_a_daemon(tmp_path: Path) -> None:
    found = await on_a_mac(folders(tmp_path, agent=True), NOT_THERE)
    assert isinstance(found, ServiceState)
    assert (found.installed, found.only_when_logged_in) == (True, True)


async def test_a_launch_daemon_that_is_disabled(tmp_path: Path) -> None:
    where = folders(tmp_path, daemon=True)
    disabled = f'disabled services = {{\n\t"{LABEL}" => disabled\n}}\n'
    found = await on_a_mac(where, RUNNING, disabled)
    assert isinstance(found, ServiceState)
    assert found.enabled is False


@pytest.mark.parametrize(
    ("text", "disabled"),
    [
        pytest.param(f'"{LABEL}" => disabled', True, id="since macOS 13"),
        pytest.param(f'"{LABEL}" => true', True, id="before"),
        pytest.param(f'"{LABEL}" => enabled', False, id="enabled"),
        pytest.param(f'"{LABEL}" => false', False, id="enabled, before"),
        pytest.param(f'"{LABEL}.other" => disabled', False, id="another label"),
        pytest.param("", False, id="not named"),
    ],
)
def test_print_disabled(text: str, disabled: bool) -> None:
    assert is_disabled(LABEL, text) is disabled


async def test_a_launchctl_that_refuses_says_nothing(tmp_path: Path) -> None:
    refused = Output(1, "", "Could not print service: 1: Operation not permitted")
    assert isinstance(await on_a_mac(folders(tmp_path, daemon=True), refused), Unknown)
