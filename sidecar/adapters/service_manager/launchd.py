"""launchd: the sockets of a plist, by name. It hears no notices.

`launch_activate_socket(3)` is the one way to them, a function of the system's library and of no
Python module. One name may stand for several sockets: one for IPv4, one for IPv6.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import Any, Protocol, cast

from sidecar.adapters.service_manager.listening import Handed, take_over
from sidecar.core.errors import ListenError

# In the cache of the loader; there may be no such file.
_LIBRARY = "/usr/lib/libSystem.B.dylib"
_REASONS = {
    errno.ESRCH: (
        "launchd has not started this process",
        "`launchctl bootstrap` loads the plist; by hand, give [listener] an address",
    ),
    errno.ENOENT: (
        "the plist has no socket of that name",
        "Sockets in the plist needs a key with just that name",
    ),
    errno.EALREADY: (
        "this process has taken it already",
        "launchd hands a socket over once: name it in one place",
    ),
}


class Library(Protocol):
    """What we need of the system's library."""

    # An error number comes back, 0 is fine; the array is the caller's to free.
    def launch_activate_socket(self, name: bytes, descriptors: Any, count: Any, /) -> int:
        """Give the array and its length through the pointers."""

    def free(self, memory: Any, /) -> None:
        """Free the array."""


def load(path: str = _LIBRARY) -> Library:
    """Load the library, or raise `ListenError`."""
    try:
        library = ctypes.CDLL(path)
    except OSError as exc:
        raise ListenError("no sockets from launchd: it is a part of macOS", str(exc)) from exc
    library.launch_activate_socket.argtypes = [
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.POINTER(ctypes.c_int)),
        ctypes.POINTER(ctypes.c_size_t),
    ]
    library.launch_activate_socket.restype = ctypes.c_int
    library.free.argtypes = [ctypes.c_void_p]
    library.free.restype = None
    return cast(Library, library)


def sockets(name: str, library: Library | None = None) -> list[socket.socket]:
    """Take the sockets that the plist calls `name`, or raise `ListenError`."""
    where = f"socket {name[:64]!r} from launchd"
    if not name or "\0" in name:
        raise ListenError(f"{where}: no name that a plist could have", "expected launchd:NAME")
    descriptors = _activate(name, where, library or load())
    if not descriptors:
        raise ListenError(f"{where}: it is none at all", "is an address of it on this host?")
    return take_over([Handed(number, f"{where} ({number})") for number in descriptors])


def _activate(name: str, where: str, library: Library) -> list[int]:
    array, count = ctypes.POINTER(ctypes.c_int)(), ctypes.c_size_t()
    error = library.launch_activate_socket(
        os.fsencode(name), ctypes.pointer(array), ctypes.pointer(count)
    )
    if error:
        reason, hint = _REASONS.get(error, (os.strerror(error), None))
        raise ListenError(f"{where}: {reason}", hint)
    try:
        return array[: count.value] if array else []
    finally:
        library.free(array)
