"""The socket of the admin listener: on loopback, or a Unix socket for our own account.

Gets an address, gives a socket that listens. A Unix socket that nobody listens on any more is
taken over; what is no socket, or is still another process's, is left alone. Ours is removed at
the end.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidecar.core.address import Address
from sidecar.core.errors import ListenError

_BACKLOG = 32
_PROBE_SECONDS = 1.0
_FOR_US_ALONE = 0o177  # as a umask


@contextmanager
def bind_admin(address: Address) -> Iterator[socket.socket]:
    """Listen on an address, or raise `ListenError`; ends with the context."""
    if not address.is_loopback:
        # The configuration refuses it as well. Whoever reaches this may read all of it, so there
        # must be no way from another host.
        raise ListenError(f"cannot listen on {address}: neither a loopback address nor unix:/path")
    path = Path(address.path) if address.ip is None else None
    with socket.socket(socket.AddressFamily[address.family], socket.SOCK_STREAM) as sock:
        try:
            _bind(sock, address, path)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            inode = path.lstat().st_ino if path else 0
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise ListenError(f"cannot listen on {address}: {reason}", _hint(path)) from exc
        try:
            yield sock
        finally:
            if path:
                _remove(path, inode)


def _bind(sock: socket.socket, address: Address, path: Path | None) -> None:
    if path is None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address.sockaddr)
        return
    _make_room(address, path)
    # Set before the socket is there, so that it is never open to others. The umask is the whole
    # process's: for this moment it makes other files stricter, and none laxer.
    before = os.umask(_FOR_US_ALONE)
    try:
        sock.bind(address.path)
    finally:
        os.umask(before)


def _make_room(address: Address, path: Path) -> None:
    """Remove a socket that a process before us has left behind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        hint = "remove it, or give another path"
        raise ListenError(f"cannot listen on {address}: something is there that is no socket", hint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return  # its owner has just removed it
    raise ListenError(f"cannot listen on {address}: another process does", "another sidecar?")


def _remove(path: Path, inode: int) -> None:
    """Remove our socket, unless a process after us has put its own there."""
    with suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _hint(path: Path | None) -> str | None:
    if path is None:
        return "does another process have the port? give another one in [admin] address"
    return None if path.parent.is_dir() else f"there is no folder {path.parent}"
