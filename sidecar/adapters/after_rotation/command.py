"""Runs a command to its end: without a shell, in a session of its own, its output kept short.

A command is done when its own process has ended. What it leaves running is left alone, but nobody
reads what that prints any more: its output should go elsewhere. A command that takes too long, or
that nobody waits for any more, is ended with all of its process group.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from sidecar.adapters.after_rotation.disk import on_disk
from sidecar.adapters.after_rotation.done import Done
from sidecar.adapters.after_rotation.orphans import CHILDREN
from sidecar.core.after_rotation import CommandAction
from sidecar.core.errors import HookError

MAX_OUTPUT_BYTES = 4096
# Between asking a group to end and ending it, and for the system to do so.
GRACE_SECONDS = 2.0
_REAP_SECONDS = 2.0
_CHUNK_BYTES = 65536
# More than a pipe holds; somebody who keeps on printing must not keep us.
_MAX_REST_CHUNKS = 16
_LINES_IN_REASON, _LENGTH_IN_REASON = 3, 300


class Tail:
    """The last bytes of what a command prints."""

    def __init__(self) -> None:
        self._kept = b""
        self._cut = False

    def add(self, data: bytes) -> None:
        """Keep the end of what there is."""
        self._cut = self._cut or len(self._kept) + len(data) > MAX_OUTPUT_BYTES
        self._kept = (self._kept + data[-MAX_OUTPUT_BYTES:])[-MAX_OUTPUT_BYTES:]

    def __str__(self) -> str:
        text = self._kept.decode("utf-8", "replace").strip()
        return f"...{text}" if self._cut else text

    def last_lines(self) -> str:
        """Give the last lines in one, short enough for a reason."""
        lines = [line.strip() for line in str(self).splitlines() if line.strip()]
        return " | ".join(lines[-_LINES_IN_REASON:])[-_LENGTH_IN_REASON:]


async def run_command(
    action: CommandAction, environment: Mapping[str, str], directory: Path
) -> Done:
    """Run the command in `directory`; raise `HookError` unless it exits with status 0 in time."""
    tail = Tail()
    with trio.move_on_after(action.timeout_seconds):
        status = await _run(action.argv, {**os.environ, **environment}, directory, tail)
        if status != 0:
            hint = f"try it by hand as uid {os.geteuid()}"
            raise HookError(_reason(_ending(status), tail), hint)
        return Done(_ending(status), str(tail))
    raise HookError(
        _reason(f"not done after {action.timeout_seconds:g} s, so it was ended", tail),
        "does it wait for something? timeout_seconds gives it more time",
    )


async def _run(
    argv: tuple[str, ...], environment: Mapping[str, str], directory: Path, tail: Tail
) -> int:
    """Give the exit status; whatever happens meanwhile, no process of the group stays."""
    # A mount that hangs is met here, where a thread can be left behind.
    find = partial(_executable, argv[0], directory, environment.get("PATH", os.defpath))
    executable = await on_disk(find, argv[0])
    process = await _start(argv, executable, environment, directory)
    stdout = process.stdout
    assert isinstance(stdout, trio.lowlevel.FdStream)
    try:
        return await _finish(process, stdout, tail)
    finally:
        if process.returncode is None:
            await _end(process, stdout, tail)
        stdout.close()
        CHILDREN.forget(process.pid)


def _executable(name: str, directory: Path, path: str) -> str:
    """Find the program as a shell would, but relative to `directory`. Blocks."""
    wanted = str(directory / name) if "/" in name else name
    found = shutil.which(wanted, path=path)
    if found is None:
        if shutil.which(wanted, mode=os.F_OK, path=path):
            raise HookError(f"command {name} is not executable", "chmod +x makes it so")
        where = "no such program" if "/" in name else f"no such program in PATH, which is {path}"
        raise HookError(f"command {name}: {where}", "write the full path of a program")
    with suppress(OSError), open(found, "rb") as program:
        program.read(1)  # a program that may be run and not read is none of our business
    return os.path.abspath(found)


async def _start(
    argv: tuple[str, ...], executable: str, environment: Mapping[str, str], directory: Path
) -> trio.Process:
    try:
        with CHILDREN.starting():
            process = await trio.lowlevel.open_process(
                argv,
                executable=executable,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            CHILDREN.add(process.pid)
            return process
    except OSError as exc:
        message = f"command {argv[0]} cannot be started: {exc.strerror}: {exc.filename}"
        hint = "a script needs a first line with #! and an interpreter that exists"
        raise HookError(message, hint) from exc


async def _finish(process: trio.Process, stdout: trio.lowlevel.FdStream, tail: Tail) -> int:
    """Read while the command runs, then what is left; others may keep its output open."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, stdout, tail)
        status = await process.wait()
        nursery.cancel_scope.cancel()
    with suppress(BlockingIOError):
        for _ in range(_MAX_REST_CHUNKS):
            tail.add(os.read(stdout.fileno(), _CHUNK_BYTES))
    return status


async def _read(stdout: trio.lowlevel.FdStream, tail: Tail) -> None:
    """Read until nobody has the other end open."""
    while data := await stdout.receive_some(_CHUNK_BYTES):
        tail.add(data)


async def _end(process: trio.Process, stdout: trio.lowlevel.FdStream, tail: Tail) -> None:
    """Ask the group to end, then end it; even when we are cancelled, and in bounded time."""
    with trio.CancelScope(shield=True):
        _signal_group(process, signal.SIGTERM)
        with trio.move_on_after(GRACE_SECONDS):
            # The output first: as long as the process itself is not waited for, its number, which
            # is the group's, cannot become another's.
            await _read(stdout, tail)
            await process.wait()
        _signal_group(process, signal.SIGKILL)
        with trio.move_on_after(_REAP_SECONDS):
            await process.wait()


def _signal_group(process: trio.Process, number: signal.Signals) -> None:
    # macOS says "not permitted" of a group in which all have ended.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"  # a real-time signal has no name


def _reason(what: str, tail: Tail) -> str:
    said = tail.last_lines()
    return f"{what}; it said: {said}" if said else what
