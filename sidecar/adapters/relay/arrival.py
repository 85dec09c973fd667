"""Whether what was sent to a socket has arrived, and the reset that says that something is missing.

A reset overtakes bytes that the other side's kernel does not have yet, so it must wait for them.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
from contextlib import suppress

_RESET = struct.pack("ii", 1, 0)
_SO_NWRITE = 0x1024  # macOS: bytes in the send buffer, which keeps them until they are acknowledged


def reset_on_close(sock: socket.socket) -> None:
    """Let closing send RST instead of FIN; what is not acknowledged by then is lost.

    A Unix socket has no reset: its other side sees an end.
    """
    with suppress(OSError):  # macOS refuses options on a connection that is gone
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def unacknowledged(sock: socket.socket, platform: str = sys.platform) -> int:
    """Return how many bytes we sent that the other side's kernel has not acknowledged.

    0 for a connection that is broken, and for a Unix socket, which has no way between two kernels.
    """
    if sock.family == socket.AF_UNIX or is_broken(sock):
        return 0
    try:
        if platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        # SIOCOUTQ has the number of TIOCOUTQ.
        answer = fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


def is_broken(sock: socket.socket) -> bool:
    """Tell whether nothing can be sent any more: the other side has reset the connection."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLERR and POLLHUP are always told
    return bool(poll.poll(0))
