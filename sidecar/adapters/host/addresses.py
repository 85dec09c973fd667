"""The IP addresses of this host itself. Linux: /proc/net; macOS: ifconfig."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from sidecar.adapters.host.command import Run
from sidecar.core.diagnosis.finding import Unknown

Ip = IPv4Address | IPv6Address
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_INET = re.compile(r"^\s+inet6? ([0-9a-fA-F.:]+)", re.MULTILINE)


async def own_addresses(run: Run, platform: str = sys.platform) -> frozenset[Ip] | Unknown:
    """Give every address that packets can be sent to to reach this host, loopback included."""
    if platform == "linux":
        return _linux_addresses()
    output = await run("ifconfig", "-a")
    return output if isinstance(output, Unknown) else frozenset(ifconfig_addresses(output.text))


def ifconfig_addresses(text: str) -> Iterator[Ip]:
    """Read the lines `inet 192.168.1.5 netmask ...` and `inet6 fe80::1%lo0 prefixlen ...`."""
    for match in _INET.finditer(text):
        yield ip_address(match[1])


def _linux_addresses() -> frozenset[Ip] | Unknown:
    found: set[Ip] = set()
    try:
        found.update(fib_addresses(Path("/proc/net/fib_trie").read_text()))
        table = Path("/proc/net/if_inet6")
        if table.exists():
            found.update(inet6_addresses(table.read_text()))
    except OSError as exc:
        return Unknown(f"/proc/net cannot be read: {exc.strerror}")
    return frozenset(found)


def fib_addresses(text: str) -> Iterator[Ip]:
    """Read the local entries of the routing trie."""
    for match in _LOCAL.finditer(text):
        yield ip_address(match[1])


def inet6_addresses(text: str) -> Iterator[Ip]:
    """Read /proc/net/if_inet6: an address in hexadecimal at the beginning of each line."""
    for line in text.splitlines():
        yield ip_address(bytes.fromhex(line.split()[0]))
