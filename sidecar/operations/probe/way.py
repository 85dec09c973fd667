"""The way to the peer: its name, one of its addresses, the handshake in which it is judged.

Gives what the next step needs, or raises `FaultError` with the hop and the remedy.
"""

from __future__ import annotations

import socket

import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.probing import (
    ConnectError,
    Place,
    UnknownNameError,
    connect,
    own_end,
    plain_words,
    resolve,
)
from sidecar.adapters.tls import ServerIdentity
from sidecar.adapters.tls.client import ClientHandshakeError, Shaken, client_handshake
from sidecar.core.probe import faults
from sidecar.core.probe.faults import ConnectEnd, HandshakeEnd
from sidecar.core.probe.peer import not_trusted, peer_certificate
from sidecar.core.probe.report import Connection, Fault, FaultError
from sidecar.operations.probe.record import Record
from sidecar.operations.probe.words import said_of_handshake, said_of_presented

# A server that has not begun with TLS is asked what it is, and not waited for long.
_PLAIN_SECONDS = 3.0


async def places(record: Record) -> list[Place]:
    """Look the name up; an address needs no phase of its own."""
    target = record.request.target
    if not target.is_name:
        return await _resolved(record)
    with record.phase("name") as says:
        found = await _resolved(record)
        says.append(f"{target.host} is {', '.join(str(one.sockaddr[0]) for one in found)}")
    return found


async def _resolved(record: Record) -> list[Place]:
    target, seconds = record.request.target, record.request.connect_seconds
    try:
        with trio.fail_after(seconds):
            return await resolve(target.host, target.port)
    except trio.TooSlowError:
        reason = f"no answer from the resolver within {seconds:g} s"
        raise FaultError(faults.not_resolved(target.host, reason)) from None
    except UnknownNameError as exc:
        raise FaultError(faults.not_resolved(target.host, str(exc))) from exc


async def connected(record: Record, found: list[Place]) -> tuple[socket.socket, Place]:
    """Try one address after the other, in the resolver's order."""
    attempts: list[str] = []
    end = ConnectEnd.OTHER
    with record.phase("connect") as says:
        for place in found:
            try:
                sock = await connect(place, record.request.connect_seconds)
            except ConnectError as exc:
                end = exc.end
                attempts.append(f"{place}: {exc.reason}")
                says.append(attempts[-1])
            else:
                own = own_end(sock)
                says.append(f"{place}, from {own}")
                record.know(connection=Connection(str(place), own, tuple(attempts)))
                return sock, place
        raise FaultError(faults.not_connected(record.request.target, end, attempts))


async def shaken(
    record: Record, sock: socket.socket, place: Place, identity: ServerIdentity
) -> Shaken:
    """Make the handshake."""
    target = record.request.target
    with record.phase("handshake") as says:
        try:
            done = await client_handshake(
                sock,
                identity,
                server_name=target.host if target.is_name else "",
                speaks_http=not target.is_handshake_only,
                seconds=record.request.connect_seconds,
            )
        except ClientHandshakeError as exc:
            if exc.leaf is not None:
                presented = peer_certificate(exc.leaf)
                record.know(peer=presented)
                says.extend(said_of_presented(presented, read_clocks().wall))
            raise FaultError(await _fault(exc, record, place, identity)) from exc
        says.extend(said_of_handshake(done.agreed))
        record.know(handshake=done.agreed, peer=peer_certificate(done.leaf))
    return done


async def _fault(
    exc: ClientHandshakeError, record: Record, place: Place, identity: ServerIdentity
) -> Fault:
    target, own = record.request.target, identity.svid.spiffe_id
    if exc.end is HandshakeEnd.NOT_TRUSTED:
        now = read_clocks().wall
        return not_trusted(record.report.peer, exc.message, exc.result, own.trust_domain, now)
    if exc.end is HandshakeEnd.OWN_SVID:
        return faults.own_svid_refused(own, exc.message)
    if exc.end is HandshakeEnd.ALERT:
        return faults.handshake_alert(target, exc.message)
    if exc.end is HandshakeEnd.PROTOCOL:
        return faults.handshake_failed(target, exc.message)
    # Whatever it is, it has not begun with TLS: ask what it is.
    return await _not_begun(exc, record, place)


async def _not_begun(exc: ClientHandshakeError, record: Record, place: Place) -> Fault:
    target = record.request.target
    seconds = min(record.request.connect_seconds, _PLAIN_SECONDS)
    said = await plain_words(place, target.authority, seconds)
    if faults.speaks_http(exc.said) or faults.serves_http(said):
        return faults.plain_http(target, said or exc.said, on_loopback=place.is_loopback)
    if exc.end is HandshakeEnd.NOT_TLS:
        return faults.not_tls(target, exc.said)
    if exc.end is HandshakeEnd.SILENT:
        return faults.handshake_silent(target, record.request.connect_seconds)
    return faults.handshake_closed(target, exc.message)
