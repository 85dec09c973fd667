"""Whether the backend is reached on another address of this host than the one that we use."""

from __future__ import annotations

from ipaddress import IPv6Address

import trio

from sidecar.adapters.host.addresses import Ip
from sidecar.core.address import Address, Inherited
from sidecar.core.config import Config
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import ListeningSocket
from sidecar.operations.doctor.agent import knock
from sidecar.operations.doctor.subject import Subject


async def exposed(subject: Subject, config: Config) -> tuple[str, ...] | Unknown:
    """Give every other address on which somebody answers at the backend's port.

    By the sockets that listen, and by connecting to each address of this host: neither sees all.
    What our own listener holds is not the backend.
    """
    address = config.backend.address
    if address.ip is None or not address.is_loopback:
        return ()
    if isinstance(subject.own_ips, Unknown):
        return subject.own_ips
    sockets = () if isinstance(subject.sockets, Unknown) else subject.sockets
    others = [one for one in sockets if one.port == address.port and not one.ip.is_loopback]
    found = {
        one.where: f"{one.where} ({one.process})" if one.process else one.where
        for one in others
        if not _is_ours(one.ip, one, subject, config)
    }
    if not found:
        for ip in await _answering(subject.own_ips, address.port):
            if not _is_ours(ip, None, subject, config):
                found[str(ip)] = str(Address(ip, address.port))
    return tuple(found.values())


def _is_ours(ip: Ip, socket: ListeningSocket | None, subject: Subject, config: Config) -> bool:
    if socket is not None and socket.process is not None:
        return subject.daemon.pid == socket.process.pid
    port = config.backend.address.port
    return any(
        one.ip is not None and one.port == port and (one.ip == ip or one.ip.is_unspecified)
        for one in config.listener.address
        if not isinstance(one, Inherited)
    )


async def _answering(own: frozenset[Ip], port: int) -> list[Ip]:
    """Connect to each address of this host at the same time."""
    found: list[Ip] = []

    async def look(ip: Ip) -> None:
        if not await knock(Address(ip, port)):
            found.append(ip)

    async with trio.open_nursery() as nursery:
        for ip in own:
            # A link-local address is one only together with its interface.
            link_local = isinstance(ip, IPv6Address) and ip.is_link_local
            if not (ip.is_loopback or ip.is_unspecified or link_local):
                nursery.start_soon(look, ip)
    return sorted(found, key=str)
