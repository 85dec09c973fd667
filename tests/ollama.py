"""A real Ollama for the scenarios: its server in a folder of its own, without a model or a network.

`start` it, and always `stop` it. What reached it is told by its own access log.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

# [GIN] 2026/01/31 - 12:00:00 | 200 |      87.044µs |       127.0.0.1 | GET      "/api/version"
_LINE = re.compile(r'^\[GIN\] [^|]*\| +(\d+) \|[^|]*\|[^|]*\| ([A-Z]+) +"(.*)"$', re.MULTILINE)
_NOWHERE = "http://127.0.0.1:9"  # discard: nobody listens


class Arrived(NamedTuple):
    """One request as Ollama wrote it down, and the status that it answered."""

    method: str
    path: str  # decoded, with the query
    status: int


class Ollama:
    """`ollama serve` on a loopback port that stays the same when it is started again."""

    def __init__(self, binary: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = int(sock.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._binary, self._folder = binary, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "serve"],
                env=self._environment(),
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, f"Ollama ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"Ollama does not listen:\n{self.log()}"
            try:
                socket.create_connection(("127.0.0.1", self.port), 30).close()
            except ConnectionRefusedError:
                continue
            return

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def arrived(self) -> list[Arrived]:
        """Give all requests that it has answered; each is written down before its answer ends."""
        return [
            Arrived(method, path, int(status)) for status, method, path in _LINE.findall(self.log())
        ]

    def log(self) -> str:
        """Give what it wrote."""
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self._folder / "ollama.log"

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self._folder),  # it makes a key pair there
            "OLLAMA_MODELS": str(self._folder / "models"),
            "OLLAMA_HOST": self.address,
            # It asks ollama.com for recommended models unless it is told not to.
            "OLLAMA_NO_CLOUD": "1",
            "HTTP_PROXY": _NOWHERE,
            "HTTPS_PROXY": _NOWHERE,
        }
