"""Socket addresses as values: `ip:port`, `[ip]:port`, `unix:/path`, and the Workload API's forms.

Gets text, gives `Address` or `WorkloadEndpoint`, or raises `ValueError` with what was expected.
Names are never resolved: whether an address is loopback is decided on the address itself, and
a resolver could change its mind after the decision.
Specification: SPIFFE Workload Endpoint 4 (Locating the Endpoint).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote_to_bytes

# Workload Endpoint 4 (Locating the Endpoint): asked after the configuration, before the default.
ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"

# What systemd takes as FileDescriptorName=, and the name of a socket in a plist.
_MANAGED = re.compile(r"systemd(?::[ -9;-~]{1,255})?|launchd:[A-Za-z0-9._-]+")
_PORT = re.compile(r"[0-9]{1,5}")
_PATH = re.compile(r"/[^\x00-\x1f\x7f]*")  # the system would cut a path at a NUL
_UNIX_URL = re.compile(r"unix:(?://)?(/(?!/)[^?#\x00-\x20\x7f]*)")
_TCP_URL = re.compile(r"tcp://([0-9a-fA-F.:\[\]]+)")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address (`ip` and `port`), or a Unix socket (`path`) when `ip` is None."""

    ip: IPv4Address | IPv6Address | None
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `127.0.0.1:11434`, `[::1]:11434` or `unix:/absolute/path`."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not _PATH.fullmatch(path) or path.startswith("//"):
                raise ValueError("expected unix:/absolute/path")
            return cls(None, 0, path)
        host, _, port = text.rpartition(":")
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise ValueError("expected ip:port, [ip]:port or unix:/absolute/path")
        return cls(_ip(host), int(port))

    @property
    def family(self) -> str:
        """Give the name of the address family, a member of `socket.AddressFamily`."""
        if self.ip is None:
            return "AF_UNIX"
        return "AF_INET" if self.ip.version == 4 else "AF_INET6"

    @property
    def sockaddr(self) -> str | tuple[str, int]:
        """Give the address as the socket calls take it."""
        return self.path if self.ip is None else (str(self.ip), self.port)

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this host can be behind the address."""
        if self.ip is None:
            return True
        mapped = self.ip.ipv4_mapped if isinstance(self.ip, IPv6Address) else None
        return (mapped or self.ip).is_loopback

    def __str__(self) -> str:
        if self.ip is None:
            return f"unix:{self.path}"
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Inherited(Address):
    """Where a service manager listens for us, by the name in its socket unit or plist.

    "systemd:NAME" or "launchd:NAME"; "systemd": all sockets that no other table names.
    """

    manager: str = ""

    def __str__(self) -> str:
        return self.manager


class ListenAddress(Address):
    """Where we listen: an address to bind, or sockets of the service manager."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `ip:port`, `[ip]:port`, `unix:/path`, `systemd`, `systemd:NAME`, `launchd:NAME`."""
        if _MANAGED.fullmatch(text):
            return Inherited(None, manager=text)
        try:
            return Address.parse(text)
        except ValueError as exc:
            raise ValueError(f'{exc}; or "systemd:NAME" or "launchd:NAME"') from exc


@dataclass(frozen=True, slots=True)
class WorkloadEndpoint:
    """Where the agent serves the Workload API."""

    address: Address

    @classmethod
    def parse(cls, text: str) -> WorkloadEndpoint:
        """Read `unix:/absolute/path`, `unix:///absolute/path` or `tcp://ip:port`."""
        if match := _UNIX_URL.fullmatch(text):
            path = unquote_to_bytes(match[1]).decode("utf-8", "surrogateescape")
            if _PATH.fullmatch(path) and path.isprintable():
                return cls(Address(None, 0, path))
        elif (match := _TCP_URL.fullmatch(text)) and not text.endswith(":0"):
            return cls(Address.parse(match[1]))
        raise ValueError("expected unix:/absolute/path or tcp://ip:port")

    def __str__(self) -> str:
        return str(self.address) if self.address.ip is None else f"tcp://{self.address}"


def is_for_both_families(address: Address, all_of_them: Iterable[Address]) -> bool:
    """Tell whether a socket takes IPv4 as well: `[::]`, unless IPv4 is asked for on its port."""
    if not isinstance(address.ip, IPv6Address):
        return False
    if address.ip.ipv4_mapped is not None:
        return True
    apart = address.port and any(
        one.port == address.port for one in all_of_them if one.family == "AF_INET"
    )
    return address.ip.is_unspecified and not apart


def address_text(name: str | bytes | tuple[str, int] | tuple[str, int, int, int]) -> str:
    """Return `ip:port`, `[ip]:port` or `unix:/path` of a socket name.

    An IPv4 address that a socket for both families has mapped (`::ffff:192.0.2.1`) is shown as it
    is.
    """
    if isinstance(name, str | bytes):
        return f"unix:{name if isinstance(name, str) else name.decode(errors='replace')}"
    ip, _, scope = name[0].partition("%")
    parsed = ip_address(ip)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    shown = f"{mapped or parsed}%{scope}" if scope else str(mapped or parsed)
    return f"[{shown}]:{name[1]}" if ":" in shown else f"{shown}:{name[1]}"


def _ip(host: str) -> IPv4Address | IPv6Address:
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ip_address(host[1:-1] if bracketed else host)
    except ValueError as exc:
        raise ValueError(
            f"expected an IP address instead of {host[:64]!r}; names are not resolved, "
            "so write 127.0.0.1 for localhost"
        ) from exc
    if bracketed != (ip.version == 6):
        raise ValueError("expected brackets around an IPv6 address, and only there")
    return ip
