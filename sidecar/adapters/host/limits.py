"""Limits of this host: file descriptors of a process, and the first port without privileges."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sidecar.adapters.host.command import Output, Run
from sidecar.core.diagnosis.finding import Unknown

_PRIVILEGED = 1024
# What macOS calls unlimited is this for a process (OPEN_MAX of <sys/syslimits.h>).
_OPEN_MAX = 10240
_MAX_FILES = re.compile(r"^Max open files +(\S+) +(\S+)", re.MULTILINE)


async def descriptors(pid: int, run: Run, platform: str = sys.platform) -> int | Unknown:
    """Give how many files a process may open; on macOS, how many any process may ask for."""
    if platform != "linux":
        output = await run("launchctl", "limit", "maxfiles")
        return output if isinstance(output, Unknown) else mac_descriptors(output)
    return _linux_limits(pid)


def _linux_limits(pid: int) -> int | Unknown:
    try:
        return linux_descriptors(Path("/proc", str(pid), "limits").read_text())
    except OSError as exc:
        return Unknown(f"/proc/{pid}/limits: {exc.strerror}", "run doctor with sudo")


def linux_descriptors(text: str) -> int | Unknown:
    """Read the soft limit from /proc/PID/limits: a daemon raises its own as far as it may."""
    match = _MAX_FILES.search(text)
    if match is None:
        return Unknown("/proc says nothing of open files")
    return sys.maxsize if match[1] == "unlimited" else int(match[1])


def mac_descriptors(output: Output) -> int | Unknown:
    """Read `maxfiles    256            unlimited`; what counts is the second, the hard limit."""
    words = output.text.split()
    if len(words) != 3 or words[0] != "maxfiles":
        return Unknown("launchctl limit says nothing of open files")
    return _OPEN_MAX if words[2] == "unlimited" else int(words[2])


def first_free_port(platform: str = sys.platform) -> int:
    """Give the first port that needs no privilege."""
    if platform == "linux":
        try:
            return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        except (OSError, ValueError):
            return _PRIVILEGED
    return _PRIVILEGED
