"""The model server: connect to it on loopback or over a Unix socket.

Gets an address and a deadline, gives a connected non-blocking socket or raises `BackendError`.
Never called before a decision allowed the peer.
"""

from __future__ import annotations

import errno
import os
import socket

import trio

from sidecar.core.address import Address
from sidecar.core.errors import BackendError

_BACKLOG_FULL_SECONDS = 0.01


async def connect(address: Address, seconds: float) -> socket.socket:
    """Connect within `seconds`, or raise `BackendError`."""
    hint = "is the model server running, and does it listen there?"
    try:
        sock = socket.socket(socket.AddressFamily[address.family], socket.SOCK_STREAM)
    except OSError as exc:
        raise BackendError(f"no socket to reach backend {address} with: {exc.strerror}") from exc
    try:
        sock.setblocking(False)
        with trio.fail_after(seconds):
            await _connect(sock, address.sockaddr)
        if address.ip is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except trio.TooSlowError:
        sock.close()
        raise BackendError(f"backend {address} did not answer within {seconds:g} s", hint) from None
    except OSError as exc:
        sock.close()
        reason = exc.strerror or str(exc)
        raise BackendError(f"backend {address} cannot be reached: {reason}", hint) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, where: str | tuple[str, int]) -> None:
    code = sock.connect_ex(where)
    while code == errno.EAGAIN:
        # Linux says so for a Unix socket whose backlog is full, and offers no way to wait.
        await trio.sleep(_BACKLOG_FULL_SECONDS)
        code = sock.connect_ex(where)
    if code in (errno.EINPROGRESS, errno.EINTR):
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
