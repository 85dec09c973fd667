"""Runs one program of the system and gives what it prints, within a deadline.

Only for programs that show something: nothing here changes the host. No shell, no input, the
plain locale, and the folders of system programs whatever the caller's PATH is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from sidecar.core.diagnosis.finding import Unknown

_SECONDS = 2.5
_SYSTEM_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class Output:
    """How a program ended and what it said."""

    status: int
    text: str = ""
    error: str = ""


Run = Callable[..., Awaitable[Output | Unknown]]


async def run(*argv: str) -> Output | Unknown:
    """Run a program to its end, or say why there is none: absent, or too slow."""
    program = shutil.which(argv[0], path=_path())
    if program is None:
        return Unknown(f"there is no {argv[0]} on this host")
    environment = {**os.environ, "PATH": _path(), "LC_ALL": "C", "LANG": "C"}
    try:
        with trio.move_on_after(_SECONDS):
            ended = await trio.run_process(
                [program, *argv[1:]],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment,
                cwd="/",
                start_new_session=True,
                deliver_cancel=_kill,
            )
            text, error = (one.decode("utf-8", "replace") for one in (ended.stdout, ended.stderr))
            return Output(ended.returncode, text, error)
    except OSError as exc:
        return Unknown(f"{argv[0]} cannot be started: {exc.strerror}")
    return Unknown(f"{argv[0]} did not end within {_SECONDS:g} s")


def _path() -> str:
    own = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*own, *(one for one in _SYSTEM_FOLDERS if one not in own)])


async def _kill(process: trio.Process) -> None:
    process.kill()
