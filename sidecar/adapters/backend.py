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
_HINT = "is the model server running, and does it listen there?"


async def connect(address: Address, seconds: float) -> socket.socket:
    """Connect within `seconds`, or raise `BackendError`."""
    sock, code = begin(address)
    if code:
        await finish(sock, code, address, seconds)
    return sock


def begin(address: Address) -> tuple[socket.socket, int]:
    """Return a socket and the code of its connect: 0 when there is nothing to wait for.

    So it mostly is on loopback, and waiting costs more than the connection.
    """
    try:
        sock = socket.socket(socket.AddressFamily[address.family], socket.SOCK_STREAM)
    except OSError as exc:
        raise BackendError(f"no socket to reach backend {address} with: {exc.strerror}") from exc
    try:
        sock.setblocking(False)
        if address.ip is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(address.sockaddr)
    except OSError as exc:
        sock.close()
        raise _unreachable(address, exc) from exc
    return sock, 0 if code == errno.EINPROGRESS and _is_connected(sock) else code


def _is_connected(sock: socket.socket) -> bool:
    # TCP on loopback says "in progress", and has finished when the call returns.
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def finish(sock: socket.socket, code: int, address: Address, seconds: float) -> None:
    """Wait for what `begin` began, or close the socket and raise `BackendError`."""
    try:
        with trio.fail_after(seconds):
            await _connected(sock, code, address.sockaddr)
    except trio.TooSlowError:
        sock.close()
        raise BackendError(
            f"backend {address} did not answer within {seconds:g} s", _HINT
        ) from None
    except OSError as exc:
        sock.close()
        raise _unreachable(address, exc) from exc
    except BaseException:
        sock.close()
        raise


def _unreachable(address: Address, exc: OSError) -> BackendError:
    reason = exc.strerror or str(exc)
    return BackendError(f"backend {address} cannot be reached: {reason}", _HINT)


async def _connected(sock: socket.socket, code: int, where: str | tuple[str, int]) -> None:
    while code == errno.EAGAIN:
        # Linux says so for a Unix socket whose backlog is full, and offers no way to wait.
        await trio.sleep(_BACKLOG_FULL_SECONDS)
        code = sock.connect_ex(where)
    if code in (errno.EINPROGRESS, errno.EINTR):
        await trio.lowlevel.wait_writable(sock)
        code = _outcome(sock)
    if code:
        raise OSError(code, os.strerror(code))


def _outcome(sock: socket.socket) -> int:
    """Return 0, or the error that connecting has met; what the backend has sent stays unread.

    Not by SO_ERROR: a backend that sent something and reset the connection was reached, and asking
    for that error would also take it away from who reads.
    """
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return 0
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0
