"""`launchctl` for a machine that plays a Mac: the system domain, and processes that run.

`tests.macos_stand_ins` has all other programs of macOS, and a `launchctl` that only remembers what
would run.
"""

from __future__ import annotations

import plistlib
import signal
from pathlib import Path
from typing import Any

from tests.runbook.services import Definition, Services

Answer = tuple[int, str, str]
_OK: Answer = (0, "", "")
_ASKS = {"print", "print-disabled", "limit"}


class Launchd:
    """The services that are loaded, by label."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._loaded: dict[str, Path] = {}
        self._disabled: dict[str, str] = {}

    def launchctl(self, arguments: list[str], uid: int) -> Answer:
        """Answer one call."""
        if uid and arguments[0] not in _ASKS:
            return 1, "", "Operation not permitted\n"
        match arguments:
            case ["print", target]:
                return self._print(_label(target))
            case ["print-disabled", "system"]:
                rows = [f'\t\t"{one}" => {word}\n' for one, word in sorted(self._disabled.items())]
                return 0, "\tdisabled services = {\n" + "".join(rows) + "\t}\n", ""
            case ["limit", "maxfiles"]:
                return 0, "\tmaxfiles    256            unlimited      \n", ""
            case [("enable" | "disable") as word, target]:
                self._disabled[_label(target)] = f"{word}d"
                return _OK
            case ["bootstrap", "system", path]:
                return self._bootstrap(Path(path))
            case ["bootout", target]:
                return self._bootout(_label(target))
            case ["kickstart", target] if _label(target) in self._loaded:
                self._start(_label(target))
                return _OK
            case ["kill", name, target] if _label(target) in self._loaded:
                there = self._services[_label(target)].kill(signal.Signals[name])
                return _OK if there else (3, "", "No process to signal.\n")
            case _:
                return 64, "", f"the stand-in for launchctl does not know: {arguments}\n"

    def _print(self, label: str) -> Answer:
        if label not in self._loaded:
            text = f'Bad request.\nCould not find service "{label}" in domain for system\n'
            return 113, "", text
        service, path = self._services[label], self._loaded[label]
        lines = [
            f"system/{label} = {{",
            f"\tactive count = {int(bool(service.pid))}",
            f"\tpath = {path}",
            "\ttype = LaunchDaemon",
            f"\tstate = {'running' if service.pid else 'not running'}",
            "",
            f"\tusername = {plistlib.loads(path.read_bytes()).get('UserName', 'root')}",
            f"\tpid = {service.pid}" if service.pid else f"\tlast exit code = {service.status}",
            "}",
        ]
        return 0, "\n".join(lines) + "\n", ""

    def _bootstrap(self, path: Path) -> Answer:
        plist = plistlib.loads(path.read_bytes())
        label = plist["Label"]
        if label in self._loaded or self._disabled.get(label) == "disabled":
            return 5, "", "Bootstrap failed: 5: Input/output error\n"
        self._loaded[label] = path
        if plist.get("RunAtLoad"):
            self._start(label)
        return _OK

    def _start(self, label: str) -> None:
        plist = plistlib.loads(self._loaded[label].read_bytes())
        self._services[label].start(_definition(plist), wait=False)

    def _bootout(self, label: str) -> Answer:
        if label not in self._loaded:
            return 3, "", "Boot-out failed: 3: No such process\n"
        self._services[label].stop()
        del self._loaded[label]
        return _OK


def _definition(plist: dict[str, Any]) -> Definition:
    keep = plist.get("KeepAlive")
    return Definition(
        command=tuple(plist["ProgramArguments"]),
        log=Path(plist.get("StandardErrorPath", "/dev/null")),
        user=plist.get("UserName", ""),
        environment=plist.get("EnvironmentVariables", {}),
        again_on_failure=isinstance(keep, dict) and keep.get("SuccessfulExit") is False,
        again_after=float(plist.get("ThrottleInterval", 10)),
    )


def _label(target: str) -> str:
    return target.removeprefix("system/")
