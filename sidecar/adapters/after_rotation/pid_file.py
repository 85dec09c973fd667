"""Sends a signal to the process whose number is in a file.

The number may be out of date and another program's by now, so it is believed only if the process
has the name that the configuration says, or else did not start after the file was written. The
file is read each time.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sidecar.adapters.after_rotation.disk import on_disk
from sidecar.adapters.after_rotation.done import Done
from sidecar.adapters.after_rotation.processes import (
    Processes,
    RunningProcess,
    processes_of_this_system,
)
from sidecar.core.after_rotation import SignalAction
from sidecar.core.errors import HookError
from sidecar.reading import regular_file

# A program writes its file some time after its start; clocks and `ps` are a second off.
SLACK_SECONDS = 2.0
# One number in the first line, and whatever white space a program pads it with.
_MAX_BYTES = 64
_NUMBER = re.compile(rb"\s*([1-9][0-9]{0,9})\s*")
# What a message may show. By mistake it may be the path of a key or token.
_HARMLESS = re.compile(rb"[-+0-9\s]{1,24}")
_MAX_PID = 2**31 - 1
_STALE = "has the program ended, or does it write its number to another file?"


@dataclass(frozen=True, slots=True)
class PidFile:
    """What a pid file says, and when that was written."""

    path: Path
    pid: int
    written: float


async def send_signal(
    action: SignalAction, directory: Path, processes: Processes | None = None
) -> Done:
    """Send the signal to the process if it is the one that was meant, or raise `HookError`."""
    path = directory / action.pid_file
    file = await on_disk(partial(read_pid_file, path, named=bool(action.process)), str(path))
    number = signal.Signals[action.signal]
    check = partial(_check, file=file, name=action.process)
    try:
        await (processes or processes_of_this_system()).send(file.pid, number, check)
    except ProcessLookupError as exc:
        raise HookError(f"{file.path}: there is no process {file.pid}", _STALE) from exc
    except PermissionError as exc:
        message = f"{file.path}: uid {os.geteuid()} may not signal process {file.pid}"
        hint = "run the sidecar as the program's user, or let a command reload the program"
        raise HookError(message, hint) from exc
    except OSError as exc:
        message = f"{file.path}: process {file.pid} cannot be signalled: {exc.strerror or exc}"
        raise HookError(message, "`command` can reload a program without its number") from exc
    return Done(f"{action.signal} sent to {file.pid}")


def read_pid_file(path: Path, *, named: bool = False) -> PidFile:
    """Read a pid file that holds one number, of a process that may be signalled. Blocks.

    `named`: the configuration says which process it has to be. Then it may be process 1, which in
    another container's namespace is the program itself.
    """
    try:
        with regular_file(path) as (handle, status):
            content = os.read(handle, _MAX_BYTES + 1)
    except FileNotFoundError as exc:
        hint = "is the program running, and is this where it writes its number?"
        raise HookError(f"{path}: no such file", hint) from exc
    except OSError as exc:
        hint = f"expected a file with one number that uid {os.geteuid()} can read"
        raise HookError(f"{path}: {exc.strerror}", hint) from exc
    return PidFile(path, _pid(content, path, named), status.st_mtime)


def _pid(content: bytes, path: Path, named: bool) -> int:
    """Give the number; a negative one or 0 would be a whole group of processes."""
    # PostgreSQL writes more lines below. A number that was cut off would be another process's.
    line, newline, _ = content.lstrip().partition(b"\n")
    whole = newline or len(content) <= _MAX_BYTES
    match = _NUMBER.fullmatch(line)
    if not match or not whole or int(match[1]) > _MAX_PID:
        shown = _HARMLESS.fullmatch(content)
        found = repr(content.decode()) if shown else "something else" if content else "nothing"
        raise HookError(f"{path}: found {found}, expected the number of one process", _STALE)
    pid = int(match[1])
    never = {os.getpid(), os.getppid()} | (set() if named else {1})
    if pid in never:
        whose = {1: "that of init", os.getpid(): "our own"}.get(pid, "that of our parent")
        raise HookError(f"{path}: process {pid} is never signalled: it is {whose}", _STALE)
    return pid


def _check(found: RunningProcess, file: PidFile, name: str | None) -> None:
    """Refuse a process that is not the one that was meant."""
    if name is not None:
        if not found.is_named(name):
            raise HookError(
                f"{file.path}: process {file.pid} is {found.name!r}, expected {name!r}", _STALE
            )
    elif found.started > file.written + SLACK_SECONDS:
        late = round(found.started - file.written)
        raise HookError(
            f"{file.path}: process {file.pid} ({found.name!r}) started {late} s after the file was "
            "written, so it is not the one that wrote it",
            f"if it is the right one, say so: process = {found.name!r}",
        )
