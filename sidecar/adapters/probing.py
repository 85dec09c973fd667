"""The network as a probe meets it: names looked up, one connection tried, plain words heard.

Gets a host or a socket address, gives addresses, a connected non-blocking socket, or a
`ConnectError` that says which way it failed. Each address is tried by itself and told by itself:
a person who looks for a fault wants to know of every one. Knows neither TLS nor identity.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from sidecar.core.address import Address
from sidecar.core.probe.faults import ConnectEnd
from sidecar.core.probe.target import where

_ENDS = {
    errno.ECONNREFUSED: ConnectEnd.REFUSED,
    errno.ENOENT: ConnectEnd.REFUSED,  # of a Unix socket
    errno.ETIMEDOUT: ConnectEnd.TIMEOUT,
    errno.ENETUNREACH: ConnectEnd.NO_ROUTE,
    errno.EHOSTUNREACH: ConnectEnd.NO_ROUTE,
    errno.ENETDOWN: ConnectEnd.NO_ROUTE,
    errno.EHOSTDOWN: ConnectEnd.NO_ROUTE,
    errno.EADDRNOTAVAIL: ConnectEnd.NO_ROUTE,  # IPv6 where there is none
    errno.EAFNOSUPPORT: ConnectEnd.NO_ROUTE,
    errno.EACCES: ConnectEnd.NOT_PERMITTED,
    errno.EPERM: ConnectEnd.NOT_PERMITTED,  # a firewall's rule on this host
    errno.ECONNRESET: ConnectEnd.RESET,
}
_PLAIN_BYTES = 4096


class UnknownNameError(Exception):
    """A name that has no address; the text is the resolver's."""


class ConnectError(Exception):
    """An attempt that failed."""

    def __init__(self, end: ConnectEnd, reason: str) -> None:
        super().__init__(reason)
        self.end = end
        self.reason = reason

    @classmethod
    def of(cls, exc: OSError) -> ConnectError:
        """Translate what the system says."""
        end = _ENDS.get(exc.errno or 0, ConnectEnd.OTHER)
        return cls(end, (exc.strerror or str(exc)).lower())


@dataclass(frozen=True, slots=True)
class Place:
    """One address of a host, as the socket calls take it."""

    family: int
    sockaddr: tuple[str | int | bytes, ...] | str

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this host is there."""
        if isinstance(self.sockaddr, str):
            return True
        return ip_address(str(self.sockaddr[0]).partition("%")[0]).is_loopback

    def __str__(self) -> str:
        if isinstance(self.sockaddr, str):
            return f"unix:{self.sockaddr}"
        return where(str(self.sockaddr[0]), int(self.sockaddr[1]))


async def resolve(host: str, port: int) -> list[Place]:
    """Give the addresses of a host in the resolver's order, or raise `UnknownNameError`."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise UnknownNameError(exc.strerror or str(exc)) from exc
    except (OSError, UnicodeError) as exc:
        raise UnknownNameError(str(exc)) from exc
    places = [Place(int(family), sockaddr) for family, _, _, _, sockaddr in found]
    return list(dict.fromkeys(places))


async def connect(place: Place, seconds: float) -> socket.socket:
    """Connect within `seconds`, or raise `ConnectError`."""
    try:
        sock = socket.socket(place.family, socket.SOCK_STREAM)
    except OSError as exc:
        raise ConnectError.of(exc) from exc
    try:
        sock.setblocking(False)
        with trio.fail_after(seconds):
            await _connect(sock, place.sockaddr)
        if place.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except trio.TooSlowError:
        sock.close()
        raise ConnectError(ConnectEnd.TIMEOUT, f"no answer within {seconds:g} s") from None
    except OSError as exc:
        sock.close()
        raise ConnectError.of(exc) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def knock(address: Address, seconds: float) -> ConnectError | None:
    """Tell why nobody takes a connection at an address; None if somebody does."""
    family = socket.AddressFamily[address.family]
    try:
        sock = await connect(Place(int(family), address.sockaddr), seconds)
    except ConnectError as exc:
        return exc
    sock.close()
    return None


async def plain_words(place: Place, authority: str, seconds: float) -> bytes:
    """Ask a server that speaks no TLS what it is, in plain HTTP and with nothing of ours in it."""
    said = bytearray()
    with trio.move_on_after(seconds), suppress(ConnectError, OSError):
        sock = await connect(place, seconds)
        with sock:
            asked = f"GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
            sock.send(asked.encode("ascii"))  # into a buffer that is empty
            while len(said) < _PLAIN_BYTES:
                await trio.lowlevel.wait_readable(sock)
                data = sock.recv(_PLAIN_BYTES)
                if not data:
                    break
                said += data
    return bytes(said)


def own_end(sock: socket.socket) -> str:
    """Give our address of a connection, as the log of the other side has it."""
    with suppress(OSError):
        name = sock.getsockname()
        return where(str(name[0]), int(name[1]))
    return ""


async def _connect(sock: socket.socket, sockaddr: tuple[str | int | bytes, ...] | str) -> None:
    code = sock.connect_ex(sockaddr)
    if code in (errno.EINPROGRESS, errno.EINTR):
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
