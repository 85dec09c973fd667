"""Services as their manager sees them. Linux: systemctl show; macOS: launchctl print, the plist.

Only asks. A unit that systemd does not know is a `ServiceState` that is not installed; a host
without a manager that answers is `Unknown`.
"""

from __future__ import annotations

import plistlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.adapters.host.command import Output, Run
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import ServiceState
from sidecar.reading import MAX_TEXT_BYTES, read_bytes

_PROPERTIES = (
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "SubState",
    "NRestarts",
    "Result",
    "ExecMainStatus",
    "MainPID",
    "User",
    "FragmentPath",
    "LimitNOFILE",
)
_ENABLED = {"enabled", "enabled-runtime", "generated", "indirect", "alias", "linked"}
_DISABLED = {"disabled", "masked", "masked-runtime", "bad"}
_NOT_LOADED = 113  # of launchctl: Could not find service
_TOP_LEVEL = re.compile(r"^(?:\t| {2,4})([a-z][a-z ]*[a-z]) = (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LaunchdFolders:
    """Where property lists are put: of daemons, and of agents that run for a user."""

    daemons: Path
    agents: tuple[Path, ...]


async def service(
    name: str, folders: LaunchdFolders, run: Run, platform: str = sys.platform
) -> ServiceState | Unknown:
    """Give the state of a service, by the name of its unit or its label."""
    if platform == "linux":
        return await _systemd(name, run)
    return await _launchd(name, folders, run)


async def _systemd(name: str, run: Run) -> ServiceState | Unknown:
    output = await run("systemctl", "show", f"--property={','.join(_PROPERTIES)}", name)
    state = systemd_state(name, output)
    if isinstance(state, Unknown) or state.enabled is not False:
        return state
    # The service need not be enabled itself where its socket is.
    socket = name.removesuffix(".service") + ".socket"
    output = await run("systemctl", "show", f"--property={','.join(_PROPERTIES)}", socket)
    of_socket = systemd_state(socket, output)
    if isinstance(of_socket, ServiceState) and of_socket.enabled:
        return _enabled_by_socket(state, of_socket)
    return state


def _again(values: Mapping[str, str]) -> str:
    restarts = values.get("NRestarts", "0")
    return f", started again {restarts} times" if restarts not in ("", "0") else ""


def _enabled_by_socket(state: ServiceState, socket: ServiceState) -> ServiceState:
    return ServiceState(
        state.name,
        installed=state.installed,
        enabled=True,
        running=state.running or socket.running,
        pid=state.pid,
        user=state.user,
        path=state.path,
        descriptors=state.descriptors,
    )


def systemd_state(name: str, output: Output | Unknown) -> ServiceState | Unknown:
    """Read `KEY=value` lines of systemctl show."""
    if isinstance(output, Unknown):
        return output
    values = dict(line.partition("=")[::2] for line in output.text.splitlines())
    if output.status or "LoadState" not in values:
        reason = (output.error.strip().splitlines() or ["no answer"])[0]
        return Unknown(f"systemd does not answer: {reason}")
    if values["LoadState"] == "not-found":
        return ServiceState(name, installed=False)
    enabled = values.get("UnitFileState", "")
    active = values.get("ActiveState", "")
    result, status = values.get("Result", ""), values.get("ExecMainStatus", "0")
    # Between two attempts it is "activating", for as long as it keeps failing.
    waits = active == "activating" and values.get("SubState") == "auto-restart"
    failed = (waits or active == "failed") and result not in ("", "success")
    return ServiceState(
        name,
        installed=True,
        enabled=True if enabled in _ENABLED else False if enabled in _DISABLED else None,
        running=active in ("active", "reloading", "activating") and not waits,
        pid=_number(values.get("MainPID", "")) or 0,
        user=values.get("User", ""),
        path=values.get("FragmentPath", ""),
        ended=f"{result}, status {status}{_again(values)}" if failed else "",
        descriptors=_number(values.get("LimitNOFILE", "")),
    )


async def _launchd(label: str, folders: LaunchdFolders, run: Run) -> ServiceState | Unknown:
    plist = folders.daemons / f"{label}.plist"
    agents = [folder / plist.name for folder in folders.agents if (folder / plist.name).exists()]
    printed = await run("launchctl", "print", f"system/{label}")
    disabled = await run("launchctl", "print-disabled", "system")
    if isinstance(printed, Unknown):
        return printed
    found = [plist] if plist.exists() else agents
    return launchd_state(label, found, printed, disabled, only_agent=found == agents != [])


def launchd_state(
    label: str,
    plists: Sequence[Path],
    printed: Output,
    disabled: Output | Unknown,
    *,
    only_agent: bool = False,
) -> ServiceState | Unknown:
    """Read launchctl print, launchctl print-disabled, and the property list."""
    if printed.status not in (0, _NOT_LOADED):
        said = (printed.error or printed.text).strip().splitlines() or ["no answer"]
        return Unknown(f"launchctl does not answer: {said[0]}", "run doctor with sudo")
    # What stands in a nested block is of an endpoint or of a coalition, and not of the service.
    values: dict[str, str] = {}
    for key, value in _TOP_LEVEL.findall(printed.text):
        values.setdefault(key, value.strip())
    loaded = printed.status == 0
    plist = _plist(plists[0]) if plists else {}
    limits = plist.get("HardResourceLimits") or plist.get("SoftResourceLimits") or {}
    off = isinstance(disabled, Output) and is_disabled(label, disabled.text)
    running = values.get("state") == "running"
    return ServiceState(
        label,
        installed=bool(plists) or loaded,
        enabled=not off and (bool(plists) or loaded),
        running=running,
        pid=_number(values.get("pid", "")) or 0,
        user=values.get("username", str(plist.get("UserName", ""))),
        path=values.get("path", str(plists[0]) if plists else ""),
        ended="" if running else _ended(values, loaded=loaded),
        descriptors=limits.get("NumberOfFiles") if isinstance(limits, dict) else None,
        only_when_logged_in=only_agent or values.get("type") == "LaunchAgent",
    )


def is_disabled(label: str, text: str) -> bool:
    """Read launchctl print-disabled; before macOS 13 it says true and false."""
    match = re.search(rf'"{re.escape(label)}" => (\w+)', text)
    return match is not None and match[1] in ("disabled", "true")


def _ended(values: Mapping[str, str], *, loaded: bool) -> str:
    if not loaded:
        return "it is not loaded"
    if signal := values.get("last terminating signal"):
        return f"ended by {signal}"
    code = values.get("last exit code", "")
    return f"last exit code {code}" if code and code != "(never exited)" else ""


def _plist(path: Path) -> dict[str, Any]:
    try:
        found = plistlib.loads(read_bytes(path, MAX_TEXT_BYTES))
    except (OSError, plistlib.InvalidFileException, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
