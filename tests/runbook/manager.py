"""The service manager of a machine, in its first process: answers the calls of `systemctl`,
`journalctl` and `launchctl`, which are `call.py` there.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.runbook.call import SOCKET
from tests.runbook.launchd import Launchd
from tests.runbook.services import Services
from tests.runbook.systemd import Systemd


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for what."""

    uid: int
    program: str
    arguments: list[str]


class Manager:
    """Answers calls, each in a thread of its own."""

    def __init__(self) -> None:
        services = Services()
        systemd, launchd = Systemd(services), Launchd(services)
        self._programs: dict[str, Callable[[list[str], int], tuple[int, str, str]]] = {
            "systemctl": systemd.systemctl,
            "journalctl": systemd.journalctl,
            "launchctl": launchd.launchctl,
        }
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(SOCKET)
        os.chmod(SOCKET, 0o777)
        self._listener.listen(32)

    def serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        with connection, connection.makefile("rw") as stream:
            program, *arguments = json.loads(stream.readline())
            try:
                answer = self._programs[program](arguments, uid)
            except Exception:
                answer = (70, "", traceback.format_exc())
            stream.write(json.dumps(answer) + "\n")
