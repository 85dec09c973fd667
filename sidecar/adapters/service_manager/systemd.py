"""systemd: how it is told of our state, and the sockets of a socket unit. No library needed.

Both protocols are promised to stay: sd_notify(3) and sd_listen_fds(3). Notices are for
`Type=notify-reload`: a reload begins with the time, because systemd passes over what was sent
before it asked.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import MutableMapping

from sidecar.adapters.service_manager.listening import Handed, take_over
from sidecar.core.errors import ListenError

FIRST_DESCRIPTOR = 3
# systemd reads 4096 bytes and passes over a notice that is longer; a character takes up to four.
_MAX_STATUS_CHARACTERS = 512
_MAX_SOCKETS = 1024
_UNIT_HINT = "start the socket unit, which starts the service; or give [listener] an address"


class SystemdNotifier:
    """Sends notices; one that cannot be sent is lost, and the reason is given."""

    def __init__(self, address: str, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = address
        self._sockaddr = _sockaddr(address)
        # Held open: when all descriptors are in use, systemd must still hear that we are alive.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ready(self, status: str = "") -> str | None:
        """Tell that we serve, or that a reload is done."""
        return self._tell("READY=1", *_status(status))

    def reloading(self) -> str | None:
        """Tell that a reload begins."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str = "") -> str | None:
        """Tell that we drain or end."""
        return self._tell("STOPPING=1", *_status(status))

    def status(self, text: str) -> str | None:
        """Show a line in `systemctl status`; an empty one takes the last one away."""
        return self._tell(*(_status(text) or ["STATUS="]))

    def watchdog(self) -> str | None:
        """Tell that we are alive."""
        return self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Tell nothing more."""
        self._socket.close()

    def _tell(self, *assignments: str) -> str | None:
        if self._sockaddr is None:
            return f"NOTIFY_SOCKET is {self._address!r}, expected /path or @name"
        try:
            # By address each time: systemd that restarts itself makes its socket anew.
            self._socket.sendto("\n".join(assignments).encode(), self._sockaddr)
        except OSError as exc:
            full = exc.errno in (errno.EAGAIN, errno.ENOBUFS)
            reason = "systemd does not read its notices" if full else exc.strerror or exc
            return f"{self._address}: {reason}"
        return None


def notifier(environ: MutableMapping[str, str]) -> SystemdNotifier | None:
    """Take the variables of notices and watchdog; None if systemd does not ask for them."""
    seconds = _watchdog_seconds(environ)
    address = environ.pop("NOTIFY_SOCKET", "")
    return SystemdNotifier(address, seconds) if address else None


def _watchdog_seconds(environ: MutableMapping[str, str]) -> float | None:
    """Give half of the time that systemd waits for, as sd_watchdog_enabled(3) advises."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", None)
    if pid not in (None, str(os.getpid())) or not _is_number(microseconds):
        return None
    return int(microseconds) / 2_000_000 or None


def _sockaddr(address: str) -> bytes | None:
    """Give the name of the socket; None for a kind that we do not speak (vsock)."""
    if address.startswith("@"):
        return b"\0" + os.fsencode(address[1:])
    return os.fsencode(address) if address.startswith("/") else None


def _status(text: str) -> list[str]:
    """Give the assignment; a line break in the text must not begin another one."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return [f"STATUS={line[:_MAX_STATUS_CHARACTERS]}"] if line else []


def sockets(
    environ: MutableMapping[str, str], first: int = FIRST_DESCRIPTOR
) -> list[tuple[str, socket.socket]]:
    """Take the sockets of the socket unit, from descriptor `first` on; or raise `ListenError`.

    Each with its FileDescriptorName=.
    """
    count, pid = environ.pop("LISTEN_FDS", None), environ.pop("LISTEN_PID", None)
    names = environ.pop("LISTEN_FDNAMES", None)
    environ.pop("LISTEN_PIDFDID", None)
    if count is None:
        raise ListenError("no sockets from systemd: LISTEN_FDS is not set", _UNIT_HINT)
    if pid != str(os.getpid()):
        message = f"the sockets of systemd are for process {pid!r}, and we are {os.getpid()}"
        raise ListenError(message, "a script that starts the sidecar has to `exec` it")
    if not _is_number(count) or not 1 <= int(count) <= _MAX_SOCKETS:
        raise ListenError(f"LISTEN_FDS is {count!r}, expected a number of sockets", _UNIT_HINT)
    known = _names(int(count), names)
    taken = take_over(
        [
            Handed(number, f"socket {number} from systemd ({name[:64]!r})")
            for number, name in enumerate(known, first)
        ]
    )
    return list(zip(known, taken, strict=True))


def _names(count: int, names: str | None) -> list[str]:
    """Return the name of each: its FileDescriptorName= if there is one."""
    known = ["unnamed"] * count if names is None else names.split(":")
    if len(known) != count:
        message = f"LISTEN_FDNAMES is {names!r}, expected {count} names"
        raise ListenError(message, "did something change the environment on the way?")
    return known


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18
