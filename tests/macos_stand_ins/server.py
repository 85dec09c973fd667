"""Hears the calls of one Mac's programs, over TCP on loopback: bash can speak that by itself.

A program sends its name and arguments, each ended by NUL, and one more NUL; the answer is what it
is to do, as shell.
"""

from __future__ import annotations

import shlex
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.macos_stand_ins import directory, files, host, programs, services
from tests.macos_stand_ins.state import EndError, InsteadError, State

COMMANDS: dict[str, Callable[[State, list[str]], str]] = {
    "launchctl": services.launchctl,
    "plutil": services.plutil,
    "dscl": directory.dscl,
    "chown": files.chown,
    "stat": files.stat,
    "mv": files.mv,
    "readlink": files.readlink,
    "file": files.file,
    "codesign": files.codesign,
    "xattr": files.xattr,
    "sw_vers": host.sw_vers,
    "uname": host.uname,
    "id": host.identity,
    "sysctl": host.sysctl,
    "pmset": host.pmset,
    "socketfilterfw": host.socketfilterfw,
    "lsof": host.lsof,
    "sleep": host.sleep,
    "spire-agent": programs.spire_agent,
}
PYTHON = "python"
_ASK = """#!/bin/bash
{first}exec 3<>"/dev/tcp/127.0.0.1/$MAC_PORT"
printf '%s\\0' {name} "$@" '' >&3
IFS= read -r -d '' answer <&3
exec 3>&-
eval "$answer"
"""
# What Python is given to run needs the standard library and nothing else.
_RUN_CODE = f"""[ "$1 $2" != "-I -c" ] || exec '{sys.executable}' -S "$@"
"""


def write_program(path: Path, name: str) -> None:
    """Make a program that asks the server of the Mac on which it runs ($MAC_PORT)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_ASK.format(name=name, first=_RUN_CODE if name == PYTHON else ""))
    path.chmod(0o755)


class Server:
    """The programs of one Mac; `calls` are all that there were."""

    def __init__(self, state: State, launcher: Path) -> None:
        self.state = state
        self.commands = dict(COMMANDS)
        self.calls: list[list[str]] = []
        # Cut the power before the call that begins with these words, when so many have been.
        self.cut: tuple[list[str], int] | None = None
        self.cuts = 0
        self.off: Callable[[], None] = lambda: None
        self._launcher = launcher
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            with caller, caller.makefile("rb") as stream:
                words: list[str] = []
                asked = b""
                while not asked.endswith(b"\0\0") and (more := stream.read1()):
                    asked += more
                words = asked.decode().split("\0")[:-2]
                if words and not self._is_cut(words):
                    caller.sendall(self._answer(words).encode())

    def _is_cut(self, words: list[str]) -> bool:
        if self.cut is None or words[: len(self.cut[0])] != self.cut[0]:
            return False
        begin, skip = self.cut
        self.cut = (begin, skip - 1) if skip else None
        if not skip:
            self.cuts += 1
            self.off()
        return not skip

    def _answer(self, words: list[str]) -> str:
        self.calls.append(words)
        name, arguments = words[0], words[1:]
        try:
            if name == PYTHON:
                out = programs.python(self.state, arguments, self._launcher)
            else:
                out = self.commands[name](self.state, arguments)
        except InsteadError as exc:
            return "exec " + shlex.join(exc.program)
        except EndError as exc:
            error = shlex.quote(exc.error + "\n" if exc.error else "")
            out = shlex.quote(exc.out)
            return f"printf %s {out}; printf %s {error} >&2; exit {exc.status}"
        return f"printf %s {shlex.quote(out)}; exit 0"
