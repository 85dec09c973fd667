"""A server that systemd's sockets are handed to: says who it is to everybody who says a line.

`python -m tests.adapters.activated_echo`. SIGTERM: what was accepted is answered, then it ends;
what was not waits in the socket for the next one.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from sidecar.adapters.service_manager import inherited


def _answer(sock: socket.socket) -> None:
    accepted, _ = sock.accept()
    with accepted:
        accepted.settimeout(20)
        said = accepted.recv(100)
        accepted.sendall(b"%d %s" % (os.getpid(), said))


def main() -> None:
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGTERM, lambda *_: None)
    sockets = inherited(["systemd"])["systemd"]
    by_number = {sock.fileno(): sock for sock in sockets}
    while True:
        readable, _, _ = select.select([woken, *by_number], [], [])
        if woken in readable:
            return
        for number in readable:
            _answer(by_number[number])


if __name__ == "__main__":
    main()
