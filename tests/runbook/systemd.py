"""`systemctl` and `journalctl` for the services of a machine: units of /etc/systemd/system.

Answers what is asked for here; a call that it does not know ends with status 64. It knows of a
unit what was in the file when it was loaded, as systemd does, until `daemon-reload`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import IO

from tests.runbook.services import PATH, Definition, Services

Answer = tuple[int, str, str]
UNITS = Path("/etc/systemd/system")
_WANTED = UNITS / "multi-user.target.wants"
_JOURNAL = Path("/var/log/journal")
_OK: Answer = (0, "", "")
_SHOWS = {"show", "is-enabled", "is-active", "get-default"}


class Systemd:
    """Units, and what is asked about them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._loaded: dict[str, str] = {}

    def systemctl(self, arguments: list[str], uid: int) -> Answer:
        """Answer one call."""
        flags = {
            word.partition("=")[0]: word.partition("=")[2] for word in arguments if word[0] == "-"
        }
        words = [word for word in arguments if word[0] != "-"]
        if "--property" in flags and not flags["--property"]:
            flags["--property"] = words.pop(1)
        command, *names = words
        if uid and command not in _SHOWS:
            return 1, "", f"Failed to {command} {names}: Interactive authentication required.\n"
        method = getattr(self, "_" + command.replace("-", "_"), None)
        if method is None or (len(names) > 1 and command != "reset-failed"):
            return 64, "", f"the stand-in for systemctl does not know: {shlex.join(arguments)}\n"
        answer: Answer = method(flags, *names)
        return answer

    def journalctl(self, arguments: list[str], uid: int) -> Answer:
        """Answer `journalctl --unit UNIT --lines N --no-pager`."""
        match arguments:
            case ["--unit", name, "--lines", count, "--no-pager"]:
                pass
            case _:
                return 64, "", f"the stand-in for journalctl does not know: {arguments}\n"
        if uid:
            # One's own messages are shown to everybody, the system's to groups adm and others.
            return (
                0,
                "-- No entries --\n",
                "Hint: You are currently not seeing messages from other users.\n",
            )
        lines = self._log(name).read_text().splitlines()[-int(count) :]
        return 0, "".join(f"Jan 01 00:00:00 host {line}\n" for line in lines), ""

    def _log(self, name: str) -> Path:
        return _JOURNAL / name

    def _load(self, name: str) -> str:
        if name not in self._loaded and (UNITS / name).exists():
            self._loaded[name] = (UNITS / name).read_text()
        return self._loaded.get(name, "")

    def _unit(self, name: str) -> dict[str, list[str]]:
        keys: dict[str, list[str]] = defaultdict(list)
        for line in self._load(name).replace("\\\n", " ").splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith(("#", ";")):
                keys[key.strip()].append(value.strip())
        return keys

    def _definition(self, name: str) -> Definition:
        unit = self._unit(name)
        last = {key: values[-1] for key, values in unit.items()}
        return Definition(
            command=tuple(shlex.split(last["ExecStart"])),
            log=self._log(name),
            user=last.get("User", ""),
            notifies=last["Type"] == "notify",
            again_on_failure=last.get("Restart") == "on-failure",
            again_after=float(last.get("RestartSec", "0.1s").removesuffix("s")),
            final=frozenset(map(int, last.get("RestartPreventExitStatus", "").split())),
        )

    def _show(self, flags: dict[str, str], name: str) -> Answer:
        service, unit = self._services[name], self._unit(name)
        stale = name in self._loaded and self._loaded[name] != _text(UNITS / name)
        values = {
            "LoadState": "loaded" if self._load(name) else "not-found",
            "NeedDaemonReload": "yes" if stale else "no",
            "UnitFileState": self._file_state(name),
            "ActiveState": service.state,
            "SubState": service.detail,
            "Result": service.result,
            "ExecMainStatus": str(max(service.status, 0)),
            "MainPID": str(service.pid),
            "NRestarts": str(service.restarts),
            "User": (unit["User"] or [""])[-1],
            "FragmentPath": str(UNITS / name) if self._load(name) else "",
            "LimitNOFILE": (unit["LimitNOFILE"] or ["524288"])[-1],
        }
        asked = flags["--property"].split(",")
        if unknown := set(asked) - set(values):
            return 64, "", f"the stand-in for systemctl does not know the properties {unknown}\n"
        plain = "--value" in flags
        return (
            0,
            "".join(f"{values[one] if plain else f'{one}={values[one]}'}\n" for one in asked),
            "",
        )

    def _file_state(self, name: str) -> str:
        if not (UNITS / name).exists():
            return ""
        return "enabled" if (_WANTED / name).is_symlink() else "disabled"

    def _is_enabled(self, flags: dict[str, str], name: str) -> Answer:
        state = self._file_state(name) or "not-found"
        return int(state != "enabled"), "" if "--quiet" in flags else f"{state}\n", ""

    def _is_active(self, flags: dict[str, str], name: str) -> Answer:
        state = self._services[name].state
        return 3 * (state != "active"), "" if "--quiet" in flags else f"{state}\n", ""

    def _get_default(self, _flags: dict[str, str]) -> Answer:
        return 0, "multi-user.target\n", ""

    def _daemon_reload(self, _flags: dict[str, str]) -> Answer:
        self._loaded.clear()
        return _OK

    def _enable(self, _flags: dict[str, str], name: str) -> Answer:
        if not (UNITS / name).exists():
            return 1, "", f"Failed to enable unit: Unit file {name} does not exist.\n"
        _WANTED.mkdir(exist_ok=True)
        (_WANTED / name).unlink(missing_ok=True)
        (_WANTED / name).symlink_to(UNITS / name)
        return _OK

    def _disable(self, flags: dict[str, str], name: str) -> Answer:
        (_WANTED / name).unlink(missing_ok=True)
        if _WANTED.is_dir() and not any(_WANTED.iterdir()):
            _WANTED.rmdir()
        return self._stop(flags, name) if "--now" in flags else _OK

    def _start(self, flags: dict[str, str], name: str) -> Answer:
        if not self._load(name):
            return 5, "", f"Failed to start {name}: Unit {name} not found.\n"
        is_up = self._services[name].start(self._definition(name), wait="--no-block" not in flags)
        return _OK if is_up else (1, "", f"Job for {name} failed.\n")

    def _stop(self, _flags: dict[str, str], name: str) -> Answer:
        self._services[name].stop()
        return _OK

    def _restart(self, flags: dict[str, str], name: str) -> Answer:
        self._stop(flags, name)
        return self._start(flags, name)

    def _reload(self, _flags: dict[str, str], name: str) -> Answer:
        unit, service = self._unit(name), self._services[name]
        for line in unit["ExecReload"]:
            command = shlex.split(line.replace("$MAINPID", str(service.pid)))
            user = unit["User"][-1]
            with self._log(name).open("ab") as log:
                start = partial(_start, command, user, log)
                if self._services.run(start):
                    return 1, "", f"Job for {name} failed.\n"
        return _OK

    def _kill(self, flags: dict[str, str], name: str) -> Answer:
        number = signal.Signals[flags.get("--signal") or "SIGTERM"]
        there = self._services[name].kill(number)
        return _OK if there else (1, "", f"Failed to kill unit {name}: No such process.\n")

    def _reset_failed(self, _flags: dict[str, str], *names: str) -> Answer:
        for name in names:
            self._services[name].forget_failure()
        return _OK


def _start(command: list[str], user: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        cwd="/",
        env={"PATH": PATH},
        user=user,
        group=user,
        extra_groups=[],
    )


def _text(path: Path) -> str:
    return path.read_text() if os.path.exists(path) else ""
