"""Whoever asks a daemon how it is: over its admin listener, a Unix socket in its folder."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A guard against hanging; nothing is measured by it.
GUARD_SECONDS = 30.0
_PAUSE_SECONDS = 0.01
NAME = "admin.sock"


def admin_table(folder: Path) -> str:
    """The table that opens the admin listener."""
    return f'\n[admin]\naddress = "unix:{folder / NAME}"\n'


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=GUARD_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(GUARD_SECONDS)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Health:
    """What `/readyz` says: the names of all reasons and warnings, and its words."""

    status: int
    ready: bool
    reasons: frozenset[str]
    warnings: frozenset[str]
    texts: dict[str, str]


class AdminVisitor:
    """Asks the daemon of one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def get(self, page: str) -> tuple[int, bytes]:
        """Ask for a page; gives status and body."""
        connection = _Connection(self._path)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """Everything."""
        code, body = self.get("/status")
        assert code == 200
        read = json.loads(body)
        assert isinstance(read, dict)
        return read

    def health(self) -> Health:
        """Whether it is ready, and what is wrong."""
        code, body = self.get("/readyz")
        read = json.loads(body)
        both = [*read["reasons"], *read["warnings"]]
        return Health(
            code,
            read["ready"],
            frozenset(one["name"] for one in read["reasons"]),
            frozenset(one["name"] for one in read["warnings"]),
            {one["name"]: one["text"] for one in both},
        )

    def until(self, fits: Callable[[Health], bool]) -> Health:
        """Ask until the answer fits."""
        deadline = time.monotonic() + GUARD_SECONDS
        while not fits(health := self.health()):
            assert time.monotonic() < deadline, health
            time.sleep(_PAUSE_SECONDS)
        return health

    def until_it_is_there(self) -> None:
        """Knock until the listener is open."""
        deadline = time.monotonic() + GUARD_SECONDS
        while True:
            try:
                assert self.get("/livez")[0] == 200
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "nobody listens"
                time.sleep(_PAUSE_SECONDS)
            else:
                return
