"""Sockets that we listen on: TCP, dual-stack where that is meant, and Unix sockets.

Gets addresses, gives bound sockets; whoever binds hands over an `ExitStack` that closes them and
removes their files. Binding comes first and listening later: a port that is in use shows at start.
The files of Unix sockets stay where the sandbox lets nothing be removed.
A Unix socket is for our own account. One that no process listens on any more is taken over; what is
no socket, or is still another process's, is left alone.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from sidecar.core.address import Address, address_text, is_for_both_families
from sidecar.core.errors import ListenError

_BACKLOG = 1024
_PROBE_SECONDS = 1.0
_FOR_US_ALONE = 0o177  # as a umask


def bind(addresses: Sequence[Address], closing: ExitStack) -> list[socket.socket]:
    """Bind every address, or raise `ListenError` and bind none."""
    with ExitStack() as bound:
        sockets = [_bind(address, addresses, bound) for address in addresses]
        closing.push(bound.pop_all())
    return sockets


def listen(sockets: Sequence[socket.socket]) -> list[str]:
    """Begin to listen; give the addresses, with the port that the kernel chose for port 0.

    A socket for both families has two: `[::]:6701` and `0.0.0.0:6701`.
    """
    addresses = []
    for sock in sockets:
        shown = address_text(sock.getsockname())
        try:
            sock.listen(_BACKLOG)
        except OSError as exc:
            raise _listen_error(shown, exc) from exc
        addresses.append(shown)
        if _is_for_both_families(sock):
            addresses.append(f"0.0.0.0:{sock.getsockname()[1]}")
    return addresses


@contextmanager
def bind_admin(address: Address) -> Iterator[socket.socket]:
    """Listen on an address of this host alone, or raise `ListenError`; ends with the context."""
    if not address.is_loopback:
        # The configuration refuses it as well. Whoever reaches this may read all of it, so there
        # must be no way from another host.
        raise ListenError(f"cannot listen on {address}: neither a loopback address nor unix:/path")
    with ExitStack() as closing:
        (sock,) = bind([address], closing)
        listen([sock])
        yield sock


def require_local(sock: socket.socket, table: str) -> None:
    """Refuse a socket of the service manager that other hosts can reach."""
    if sock.family != socket.AF_UNIX and not ip_address(sock.getsockname()[0]).is_loopback:
        hint = "ListenStream=127.0.0.1:6703 or a Unix socket: it tells who our peers are"
        where = address_text(sock.getsockname())
        raise ListenError(f"{table} is not served on {where}: no loopback address", hint)


def _bind(address: Address, all_of_them: Sequence[Address], closing: ExitStack) -> socket.socket:
    family = socket.AddressFamily[address.family]
    sock = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        if family == socket.AF_UNIX:
            _bind_path(sock, address, closing)
            return sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Systems differ in the default, so it is always set.
            alone = not is_for_both_families(address, all_of_them)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        sock.bind(address.sockaddr)
    except OSError as exc:
        raise _listen_error(str(address), exc) from exc
    return sock


def _is_for_both_families(sock: socket.socket) -> bool:
    return (
        sock.family == socket.AF_INET6
        and ip_address(sock.getsockname()[0]).is_unspecified
        and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )


def _bind_path(sock: socket.socket, address: Address, closing: ExitStack) -> None:
    path = Path(address.path)
    _make_room(address, path)
    # Set before the socket is there, so that it is never open to others. The umask is the whole
    # process's: for this moment it makes other files stricter, and none laxer.
    before = os.umask(_FOR_US_ALONE)
    try:
        sock.bind(address.path)
    finally:
        os.umask(before)
    closing.callback(_remove, path, path.lstat().st_ino)


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


def _listen_error(address: str, exc: OSError) -> ListenError:
    hints = {
        errno.EADDRINUSE: "another process has the port; another sidecar, or the model server?",
        errno.EADDRNOTAVAIL: "no interface of this host has the address",
        errno.EACCES: "a port below 1024 needs privileges; use 6701, or socket activation",
        errno.EAFNOSUPPORT: "this host has no IPv6: give 0.0.0.0 instead of [::]",
    }
    hint = hints.get(exc.errno or 0)
    if address.startswith("unix:"):
        folder = Path(address.removeprefix("unix:")).parent
        hint = None if folder.is_dir() else f"there is no folder {folder}"
    return ListenError(f"cannot listen on {address}: {exc.strerror or exc}", hint)
