"""Processes: who listens on a Unix socket, and what a process of a number is.

The kernel remembers who called listen(): SO_PEERCRED on Linux, LOCAL_PEERCRED and LOCAL_PEERPID
on macOS. Of a process only its name, its account and its command line are looked at.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

from sidecar.adapters.host.command import Output, Run
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Process

_SECONDS = 2.0
# <sys/un.h> of macOS; Python has no names for them.
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2
_XUCRED_BYTES = 76


def listener_of(path: str, platform: str = sys.platform) -> tuple[int, int] | Unknown:
    """Give pid and uid of who listens on a Unix socket. Blocks, but not for long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_SECONDS)
        try:
            sock.connect(path)
            if platform == "linux":
                pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, 17, 12))
                return pid, uid
            credentials = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
            return mac_peer(credentials, sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))
        except OSError as exc:
            return Unknown(f"nobody can be asked who listens: {exc.strerror or exc}")


def mac_peer(xucred: bytes, peer_pid: bytes) -> tuple[int, int]:
    """Read pid and uid from what macOS gives: `struct xucred` and a number."""
    (uid,) = struct.unpack_from("=I", xucred, 4)  # after its version
    (pid,) = struct.unpack("=i", peer_pid)
    return pid, uid


async def process_of(pid: int, run: Run, platform: str = sys.platform) -> Process:
    """Give a process; what cannot be found out of it stays empty."""
    if platform == "linux":
        return _linux_process(pid)
    output = await run("ps", "-o", "uid=,comm=", "-p", str(pid))
    return mac_process(pid, output)


def mac_process(pid: int, output: Output | Unknown) -> Process:
    """Read a line of ps: the account's number and the path of the program."""
    words = output.text.split(None, 1) if isinstance(output, Output) else []
    if len(words) != 2 or not words[0].isdigit():
        return Process(pid)
    return Process(pid, int(words[0]), words[1].strip().rpartition("/")[2])


def _linux_process(pid: int) -> Process:
    folder = Path("/proc", str(pid))
    try:
        status = (folder / "status").read_text(errors="replace")
    except OSError:
        return Process(pid)
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    uids = fields.get("Uid", "").split()
    uid = int(uids[1]) if len(uids) > 1 and uids[1].isdigit() else None
    return Process(pid, uid, fields.get("Name", "").strip())


async def is_sidecar(pid: int, run: Run, platform: str = sys.platform) -> bool:
    """Tell by its command line whether a process is a `run` of ours."""
    if platform == "linux":
        argv = _command_line(pid)
    else:
        output = await run("ps", "-o", "command=", "-p", str(pid))
        argv = output.text.split() if isinstance(output, Output) else []
    return "run" in argv and any(
        word == "sidecar" or word.rpartition("/")[2] == "spiffe-sidecar" for word in argv
    )


def _command_line(pid: int) -> list[str]:
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words]
