"""Other processes of this host: what one is, and a signal to the very one that was looked at.

`LinuxProcesses` holds on to the process by a descriptor before it looks, so that its number
cannot become another's before the signal is sent. `PsProcesses` is for systems without such
descriptors (macOS): there, a moment is left between the look and the signal.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

# Linux keeps 15 bytes of a name; macOS 16, of a process whose path we may not see.
_CUT = (15, 16)
_PS_SECONDS = 10.0
# A Python that was built with older headers does not have it.
_PIDFD_OPEN: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
_ETIME = re.compile(
    r"\s*(?:(?:(?P<days>\d+)-)?(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)"
    r"\s+(?P<state>\S+)\s+(?P<command>.*\S)\s*",
    re.ASCII | re.DOTALL,
)
# A process that has ended and waits for its parent to take note.
_ENDED = ("Z", "X")


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """What the system tells of a process."""

    name: str
    started: float  # seconds since 1970

    def is_named(self, name: str) -> bool:
        """Tell whether this is its name, of which the system may have kept the beginning only."""
        kept = os.fsencode(self.name)
        return self.name == name or (len(kept) in _CUT and os.fsencode(name).startswith(kept))


Check = Callable[[RunningProcess], None]


class Processes(Protocol):
    """The processes of this host."""

    async def send(self, pid: int, number: signal.Signals, check: Check) -> None:
        """Send a signal to the process unless `check` raises; raise `OSError` as `kill` does."""


class LinuxProcesses:
    """By /proc and process descriptors."""

    def __init__(self, pidfd_open: Callable[[int], int] | None = _PIDFD_OPEN) -> None:
        self._pidfd_open = pidfd_open

    async def send(self, pid: int, number: signal.Signals, check: Check) -> None:
        """Send a signal to the process that `check` has seen."""
        handle = self._hold(pid)
        try:
            check(self.look(pid))
            if handle is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        finally:
            if handle is not None:
                os.close(handle)

    def _hold(self, pid: int) -> int | None:
        """Open the process, if we can: a kernel before 5.3 and some sandboxes refuse it."""
        if self._pidfd_open is None:
            return None
        try:
            return self._pidfd_open(pid)
        except OSError as exc:
            if exc.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            return None

    def look(self, pid: int) -> RunningProcess:
        """Read what /proc tells."""
        try:
            line = Path(f"/proc/{pid}/stat").read_bytes()
        except FileNotFoundError as exc:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from exc
        # "123 (name) S 1 ...": a name may hold spaces and parentheses, what follows it may not.
        name, _, rest = line.partition(b"(")[2].rpartition(b")")
        fields = rest.split()
        if fields[0].decode() in _ENDED:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        # By the clock that counts from boot, to a hundredth of a second: `btime` of /proc/stat
        # has whole seconds only, and containers make up their own.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return RunningProcess(os.fsdecode(name), time.time() - age)


class PsProcesses:
    """By `ps`, which every system has."""

    async def send(self, pid: int, number: signal.Signals, check: Check) -> None:
        """Send a signal right after `check` has seen the process."""
        check(await self.look(pid))
        os.kill(pid, number)

    async def look(self, pid: int) -> RunningProcess:
        """Ask `ps`, each column by itself: a list of them is read differently by each system."""
        columns = ("-o", "etime=", "-o", "stat=", "-o", "comm=")
        with trio.move_on_after(_PS_SECONDS) as patience:
            answer = await trio.run_process(
                ["/bin/ps", "-ww", *columns, "-p", str(pid)],
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
                env={"LC_ALL": "C"},
            )
        if patience.cancelled_caught:
            raise TimeoutError(errno.ETIMEDOUT, "ps does not answer")
        line = os.fsdecode(answer.stdout)
        if not line.strip():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return _from_ps(line, time.time())


def _from_ps(line: str, now: float) -> RunningProcess:
    """Read `[[days-]hours:]minutes:seconds state command`."""
    match = _ETIME.fullmatch(line)
    if not match:
        raise OSError(errno.EBADMSG, f"ps says {line[:100]!r}")
    if match["state"].startswith(_ENDED):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    days, hours, minutes, seconds = (
        int(match[key] or 0) for key in ("days", "hours", "minutes", "seconds")
    )
    age = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    # macOS gives the path of the program.
    return RunningProcess(match["command"].rpartition("/")[2], now - age)


def processes_of_this_system() -> Processes:
    """Choose by the system."""
    return LinuxProcesses() if sys.platform == "linux" else PsProcesses()
