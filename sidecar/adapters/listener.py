"""The listening sockets: accept, hand over.

Gets sockets that listen and a handler, and calls the handler with each accepted socket. Knows
neither TLS nor identity. They listen only when there is an identity: until then a peer is refused
by the kernel instead of being kept waiting.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Awaitable, Callable

import structlog
import trio

from sidecar.core.address import address_text

Handler = Callable[[socket.socket, str], Awaitable[None]]

log = structlog.get_logger()

_RETRY_SECONDS = 0.1
# A peer that vanished without a word (a laptop that sleeps) is found out after this long.
_KEEPALIVE_SECONDS = 60


async def accept_forever(
    sock: socket.socket,
    handler: Handler,
    connections: trio.Nursery,
    failed: Callable[[], None] = lambda: None,
) -> None:
    """Accept for ever; each connection is a task of `connections` and outlives this one.

    `failed` is called when the system refuses to accept.
    """
    while True:
        try:
            accepted, peer = sock.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        except OSError as exc:
            if exc.errno == errno.ECONNABORTED:  # a peer that left before it was accepted
                await trio.lowlevel.checkpoint()
                continue
            failed()
            log.error("cannot accept", reason=exc.strerror, retry_seconds=_RETRY_SECONDS)
            await trio.sleep(_RETRY_SECONDS)
            continue
        try:
            _tune(accepted)
            # A peer on a Unix socket has no name.
            address = address_text(sock.getsockname() if sock.family == socket.AF_UNIX else peer)
        except (OSError, TypeError):
            # The peer has left already: macOS then refuses options, and may name no address.
            accepted.close()
        else:
            connections.start_soon(handler, accepted, address)
        await trio.lowlevel.checkpoint()


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    option = keepalive_option(socket)
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, _KEEPALIVE_SECONDS)


def keepalive_option(names: object) -> int | None:
    """Give the option for the idle time before probes: Linux and macOS name it differently."""
    return getattr(names, "TCP_KEEPIDLE", None) or getattr(names, "TCP_KEEPALIVE", None)


def has_hung_up(sock: socket.socket) -> bool:
    """Tell whether the peer has ended or reset the connection, behind whatever is still unread."""
    poll = select.poll()
    # Linux tells an end apart by a flag of its own; macOS says POLLHUP, if it is asked for.
    poll.register(sock, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
    return bool(poll.poll(0))
