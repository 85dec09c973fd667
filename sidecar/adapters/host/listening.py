"""The TCP sockets that listen on this host, and the processes that have them.

Linux: /proc/net, and the descriptors in /proc, which only root sees of others. macOS: lsof, with
the same limits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from sidecar.adapters.host.command import Output, Run
from sidecar.adapters.host.processes import process_of
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import ListeningSocket, Process

_LISTEN = "0A"


async def listening_sockets(
    run: Run, platform: str = sys.platform
) -> tuple[ListeningSocket, ...] | Unknown:
    """Give all of them."""
    if platform == "linux":
        return await _linux_sockets(run)
    output = await run("lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fpcutn")
    if isinstance(output, Unknown):
        return output
    # It exits with 1 when it has nothing to show.
    return tuple(lsof_sockets(output))


def lsof_sockets(output: Output) -> Iterator[ListeningSocket]:
    """Read lsof's fields, one a line: p(id), c(ommand), u(id), and n(ame) of each socket."""
    process = Process(0)
    family = 4
    for line in output.text.splitlines():
        kind, value = line[:1], line[1:]
        if kind == "p":
            process = Process(int(value)) if value.isdigit() else Process(0)
        elif kind == "c":
            process = replace(process, name=value)
        elif kind == "u":
            process = replace(process, uid=int(value) if value.isdigit() else None)
        elif kind == "f":
            family = 4
        elif kind == "t":
            family = 6 if value == "IPv6" else 4
        elif kind == "n":
            host, _, port = value.rpartition(":")
            ip = _lsof_ip(host, family)
            if ip is not None and port.isdigit():
                yield ListeningSocket(ip, int(port), process)


def _lsof_ip(host: str, family: int) -> IPv4Address | IPv6Address | None:
    if host == "*":
        return IPv6Address("::") if family == 6 else IPv4Address("0.0.0.0")  # noqa: S104
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


async def _linux_sockets(run: Run) -> tuple[ListeningSocket, ...] | Unknown:
    try:
        found = _proc_net()
    except OSError as exc:
        return Unknown(f"/proc/net cannot be read: {exc.strerror}")
    pids = _pids_of({inode for _, inode in found})
    return tuple(
        [
            replace(socket, process=await process_of(pids[inode], run, "linux"))
            if inode in pids
            else socket
            for socket, inode in found
        ]
    )


def _proc_net() -> list[tuple[ListeningSocket, str]]:
    found: list[tuple[ListeningSocket, str]] = []
    for name in ("tcp", "tcp6"):
        table = Path("/proc/net", name)
        if table.exists():  # a kernel without IPv6 has the one only
            found += proc_sockets(table.read_text())
    return found


def proc_sockets(table: str) -> Iterator[tuple[ListeningSocket, str]]:
    """Read /proc/net/tcp or tcp6: the sockets that listen, each with its inode."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            address, _, port = fields[1].partition(":")
            yield ListeningSocket(_proc_ip(address), int(port, 16)), fields[9]


def _proc_ip(text: str) -> IPv4Address | IPv6Address:
    """Read an address of /proc/net: words of four bytes, each in the order of the processor."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return ip_address(b"".join(words))


def _pids_of(inodes: set[str]) -> dict[str, int]:
    """Find the processes that have these sockets open, as far as this account may look."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, int] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            handles = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for handle in handles:
            try:
                inode = wanted.get(os.readlink(f"/proc/{pid}/fd/{handle}"))
            except OSError:
                continue
            if inode is not None:
                found.setdefault(inode, int(pid))
    return found
