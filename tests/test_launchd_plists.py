"""The property lists of `launchd/`: every key and type is one of launchd.plist(5), and they fit us.

There is no launchd here, and it says nothing of a key that it does not know: a typo is a service
that is not kept alive.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.config import ConnectionsTable, parse_config
from sidecar.core.host_layout import AGENT_BINARY, AGENT_CONF, CONFIG, MACOS, VENV

LAUNCHD = Path(__file__).parent.parent / "launchd"
LISTS = sorted(LAUNCHD.rglob("*.plist"))
SIDECAR = LAUNCHD / f"{MACOS.sidecar_service}.plist"
AGENT = LAUNCHD / f"{MACOS.agent_service}.plist"
ROTATION = LAUNCHD / "org.spiffe-sidecar.log-rotation.plist"
ACTIVATED = LAUNCHD / "socket-activation" / SIDECAR.name
DAEMONS = [SIDECAR, AGENT, ACTIVATED]
AGENTS = [one for one in LISTS if one.parent.name == "agents"]
NEWSYSLOG = LAUNCHD / "newsyslog.conf"

_LIMITS = {
    "Core": int,
    "CPU": int,
    "Data": int,
    "FileSize": int,
    "MemoryLock": int,
    "NumberOfFiles": int,
    "NumberOfProcesses": int,
    "ResidentSetSize": int,
    "Stack": int,
}
_CALENDAR = dict.fromkeys(("Minute", "Hour", "Day", "Weekday", "Month"), int)
_SOCKET = {
    "SockType": {"stream", "dgram", "seqpacket"},
    "SockPassive": bool,
    "SockNodeName": str,
    "SockServiceName": str,
    "SockFamily": {"IPv4", "IPv6", "Unix", "IPv4v6"},
    "SockProtocol": {"TCP", "UDP"},
    "SockPathName": str,
    "SockPathMode": int,
    "SockPathOwner": int,
    "SockPathGroup": int,
    "SecureSocketWithKey": str,
    "MulticastGroup": str,
}
_KEEP_ALIVE = {
    "SuccessfulExit": bool,
    "Crashed": bool,
    "NetworkState": bool,
    "PathState": "names",
    "OtherJobEnabled": "names",
    "AfterInitialDemand": bool,
}
# launchd.plist(5) of macOS 14, but for keys that it calls deprecated, ignored or Apple's own.
KEYS: dict[str, Any] = {
    "Label": str,
    "Disabled": bool,
    "UserName": str,
    "GroupName": str,
    "LimitLoadToSessionType": str,
    "Program": str,
    "BundleProgram": str,
    "ProgramArguments": [str],
    "EnableGlobbing": bool,
    "EnablePressuredExit": bool,
    "EnableTransactions": bool,
    "KeepAlive": (bool, _KEEP_ALIVE),
    "RunAtLoad": bool,
    "RootDirectory": str,
    "WorkingDirectory": str,
    "EnvironmentVariables": "names",
    "Umask": int,
    "TimeOut": int,
    "ExitTimeOut": int,
    "ThrottleInterval": int,
    "InitGroups": bool,
    "WatchPaths": [str],
    "QueueDirectories": [str],
    "StartOnMount": bool,
    "StartInterval": int,
    "StartCalendarInterval": (_CALENDAR, [_CALENDAR]),
    "StandardInPath": str,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "Debug": bool,
    "WaitForDebugger": bool,
    "SoftResourceLimits": _LIMITS,
    "HardResourceLimits": _LIMITS,
    "Nice": int,
    "ProcessType": {"Background", "Standard", "Adaptive", "Interactive"},
    "AbandonProcessGroup": bool,
    "LowPriorityIO": bool,
    "LowPriorityBackgroundIO": bool,
    "MaterializeDatalessFiles": bool,
    "LaunchOnlyOnce": bool,
    "MachServices": dict,
    "Sockets": "sockets",
    "LaunchEvents": dict,
    "SessionCreate": bool,
    "LegacyTimers": bool,
    "AssociatedBundleIdentifiers": (str, [str]),
}


def faults(value: object, form: Any, where: str) -> list[str]:
    """What of a value is not as launchd.plist(5) has it."""
    if form == "names":
        form = dict.fromkeys(value, (str, bool)) if isinstance(value, dict) else dict
    if form == "sockets":
        form = dict.fromkeys(value, (_SOCKET, [_SOCKET])) if isinstance(value, dict) else dict
    if isinstance(form, tuple):
        found = [faults(value, one, where) for one in form]
        return [] if [] in found else found[-1]
    if isinstance(form, list) and isinstance(value, list):
        return [one for item in value for one in faults(item, form[0], where)]
    if isinstance(form, dict) and isinstance(value, dict):
        unknown = [f"{where}: unknown key {key}" for key in value.keys() - form.keys()]
        known = (faults(value[key], form[key], f"{where} {key}") for key in value.keys() & form)
        return unknown + [one for found in known for one in found]
    if isinstance(form, set):
        return [] if value in form else [f"{where}: {value!r} is none of {form}"]
    fits = isinstance(form, type) and type(value) is form  # True is no integer there
    return [] if fits else [f"{where}: {value!r} is no {form}"]


def read(path: Path) -> dict[str, Any]:
    return dict(plistlib.loads(path.read_bytes()))


def name_of(path: Path) -> str:
    return str(path.relative_to(LAUNCHD))


@pytest.mark.parametrize("path", LISTS, ids=name_of)
def test_every_key_and_type_is_one_of_launchd(path: Path) -> None:
    assert faults(read(path), KEYS, "") == []


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"KeepAlive": {"SuccesfulExit": False}}, id="a typo, nested"),
        pytest.param({"Keepalive": True}, id="a typo"),
        pytest.param({"ThrottleInterval": "30"}, id="text for a number"),
        pytest.param({"Umask": True}, id="a truth for a number"),
        pytest.param({"RunAtLoad": 1}, id="a number for a truth"),
        pytest.param({"ProgramArguments": "/bin/sh"}, id="text for a list"),
        pytest.param({"ProcessType": "interactive"}, id="lower case"),
        pytest.param({"Sockets": {"Listener": {"SockPort": "1"}}}, id="unknown key of a socket"),
        pytest.param({"Sockets": {"Listener": {"SockPassive": "yes"}}}, id="a socket's type"),
        pytest.param({"StartCalendarInterval": {"Minute": "35"}}, id="text for a minute"),
        pytest.param({"SoftResourceLimits": {"OpenFiles": 1}}, id="unknown limit"),
        pytest.param({"EnvironmentVariables": {"A": 1}}, id="a number in the environment"),
    ],
)
def test_what_launchd_would_pass_over_is_found(wrong: dict[str, Any]) -> None:
    assert faults(wrong, KEYS, "")


@pytest.mark.parametrize("path", LISTS, ids=name_of)
def test_list_is_read_by_another_reader_as_well(path: Path, tmp_path: Path) -> None:
    plistutil = shutil.which("plistutil")
    if plistutil is None:
        pytest.skip("no plistutil here (libplist-utils)")
    binary = tmp_path / "binary.plist"
    subprocess.run([plistutil, "-i", path, "-o", binary, "-f", "bin"], check=True, timeout=30)
    assert plistlib.loads(binary.read_bytes()) == read(path)


@pytest.mark.parametrize("path", LISTS, ids=name_of)
def test_file_is_named_by_its_label(path: Path) -> None:
    assert read(path)["Label"] == path.stem


@pytest.mark.parametrize("path", LISTS, ids=name_of)
def test_every_path_is_absolute(path: Path) -> None:
    found = read(path)
    paths = [found[key] for key in found if key.endswith(("Path", "Directory"))]
    assert paths
    assert all(one.startswith("/") for one in [*paths, found["ProgramArguments"][0]])
    # / is read-only on a Mac, and has none of these.
    assert not re.search(r"/(run|proc|srv|usr/lib/systemd)/", path.read_text())


def test_sidecar_runs_as_its_account_with_its_configuration() -> None:
    found = read(SIDECAR)
    assert found["UserName"] == found["GroupName"] == MACOS.service_user
    program = [f"{VENV}/bin/spiffe-sidecar", "run", "--config", CONFIG]
    assert found["ProgramArguments"] == program


def test_agent_runs_as_its_account_with_its_configuration() -> None:
    found = read(AGENT)
    assert found["UserName"] == found["GroupName"] == MACOS.agent_user
    assert found["ProgramArguments"][:4] == [AGENT_BINARY, "run", "-config", AGENT_CONF]


@pytest.mark.parametrize("path", [*DAEMONS, *AGENTS], ids=name_of)
def test_service_is_kept_alive_but_not_in_a_hurry(path: Path) -> None:
    found = read(path)
    assert found["RunAtLoad"] is True
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["ThrottleInterval"] >= 10
    assert found["ProcessType"] == "Interactive"


@pytest.mark.parametrize("path", [one for one in LISTS if one.stem == SIDECAR.stem], ids=name_of)
def test_sidecar_has_time_to_drain_and_descriptors(path: Path) -> None:
    found, connections = read(path), ConnectionsTable()
    assert found["ExitTimeOut"] > connections.drain_seconds
    assert found["SoftResourceLimits"]["NumberOfFiles"] > 2 * connections.maximum


@pytest.mark.parametrize("path", [*DAEMONS, *AGENTS], ids=name_of)
def test_what_is_made_is_not_for_others(path: Path) -> None:
    assert read(path)["Umask"] & 0o027 == 0o027


def test_list_with_sockets_is_the_other_one_with_sockets() -> None:
    activated = read(ACTIVATED)
    sockets = activated.pop("Sockets")
    assert activated == read(SIDECAR)
    (name,) = sockets
    text = f'[listener]\naddress = "launchd:{name}"\n[backend]\naddress = "127.0.0.1:1"\n'
    config = parse_config(text + '[policy]\nfile = "p"', "sidecar.toml")
    assert f"launchd:{name}" in str(config)
    assert f"launchd:{name}" in ACTIVATED.read_text().partition("<plist")[0]


@pytest.mark.parametrize("path", AGENTS, ids=name_of)
def test_launch_agent_has_no_account_of_its_own_and_asks_for_a_home(path: Path) -> None:
    found = read(path)
    assert "UserName" not in found
    assert found["ProgramArguments"][0].startswith("/Users/YOU/")
    daemon = SIDECAR if path.stem == SIDECAR.stem else AGENT
    same = ("KeepAlive", "ThrottleInterval", "ExitTimeOut", "SoftResourceLimits", "ProcessType")
    assert {key: found[key] for key in same} == {key: read(daemon)[key] for key in same}


@pytest.mark.parametrize(
    "limit", ["login", "FileVault", "Local Network", "every program", "gui/$(id -u)"]
)
def test_limits_of_the_launch_agent_are_told(limit: str) -> None:
    text = (LAUNCHD / "agents" / SIDECAR.name).read_text()
    assert limit in " ".join(text.partition("<plist")[0].split())


# Logs and their rotation.


def rotated() -> dict[str, list[str]]:
    lines = [line.split() for line in NEWSYSLOG.read_text().splitlines() if line[:1] == "/"]
    return {name: rest for name, *rest in lines}


def test_every_log_is_rotated_and_belongs_to_who_writes_it() -> None:
    lists = {SIDECAR: MACOS.service_user, AGENT: MACOS.agent_user}
    for path, user in lists.items():
        written = {read(path)["StandardErrorPath"], read(path)["StandardOutPath"]}
        written |= {one for one in read(path)["ProgramArguments"] if one.endswith(".log")}
        written |= {f"{MACOS.log_directory}/sidecar.log"} if path == SIDECAR else set()
        for log in written:
            assert log.startswith(f"{MACOS.log_directory}/")
            assert rotated()[log][:2] == [f"{user}:admin", "640"]
    assert all(name.startswith(f"{MACOS.log_directory}/") for name in rotated())


def test_rotation_writes_no_line_signals_nobody_and_compresses_what_is_reopened_at_once() -> None:
    for name, (_, _, count, size, when, flags) in rotated().items():
        assert int(count) > 0
        assert int(size) > 0
        assert when == "*"
        assert set(flags) == (set("BNZ") if name.endswith("/sidecar.log") else set("BN"))


def rotation_script(folder: Path) -> list[str]:
    """What the job runs, with its paths in a folder and a launchctl that leaves a note."""
    shell, option, script = read(ROTATION)["ProgramArguments"]
    note = folder / "signals"
    launchctl = folder / "launchctl"
    launchctl.write_text(f'#!/bin/sh\necho "$@" >>"{note}"\n')
    launchctl.chmod(0o755)
    script = script.replace("/bin/launchctl", str(launchctl))
    return [shell, option, script.replace(MACOS.log_directory, str(folder))]


@pytest.mark.parametrize(
    ("rotated_at", "written_at", "told"),
    [
        pytest.param(100, 200, False, id="the agent writes into the new file"),
        pytest.param(200, 100, True, id="the agent writes into the old file"),
        pytest.param(100, 100, False, id="nothing was written since"),
        pytest.param(None, 100, False, id="never rotated"),
    ],
)
def test_agent_is_told_of_a_rotation_when_it_has_missed_it(
    tmp_path: Path, rotated_at: int | None, written_at: int, told: bool
) -> None:
    log, old = tmp_path / "spire-agent.log", tmp_path / "spire-agent.log.0"
    for path, at in ((log, written_at), (old, rotated_at)):
        if at is not None:
            path.touch()
            os.utime(path, (at, at))
    done = subprocess.run(rotation_script(tmp_path), check=False, timeout=30)
    assert done.returncode == 0
    signals = tmp_path / "signals"
    wanted = f"kill SIGUSR2 system/{MACOS.agent_service}\n"
    assert (signals.read_text() if signals.exists() else "") == (wanted if told else "")


def test_rotation_job_comes_after_newsyslog_and_signals_the_agent_only() -> None:
    found = read(ROTATION)
    assert found["StartCalendarInterval"]["Minute"] > 30
    assert "RunAtLoad" not in found
    assert AGENT.stem in found["ProgramArguments"][-1]
