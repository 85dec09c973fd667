"""The real Traefik, if TRAEFIK_BIN names its binary, on what `spiffe-sidecar traefik` prints.

The files are used as they were printed; what a person has in a static configuration besides is
added at its end.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.core.traefik.version import NEWEST

TRAEFIK = os.environ.get("TRAEFIK_BIN", "")
needs_traefik = pytest.mark.skipif(not TRAEFIK, reason="TRAEFIK_BIN names no binary of Traefik")
DOMAIN = "models.example.org"
# Its own log is what tells of a configuration that it does not take.
_MORE = """
log:
  level: INFO
  noColor: true
global:
  checkNewVersion: false
  sendAnonymousUsage: false
"""


@cache
def version() -> str:
    """Which Traefik it is; one that was built from a checkout is the newest that we know."""
    done = subprocess.run([TRAEFIK, "version"], capture_output=True, text=True, check=True)
    found = re.search(r"^Version: +v?([0-9]\S+)$", done.stdout, re.MULTILINE)
    return found[1] if found else ".".join(map(str, NEWEST))


def printed(config: Path, *arguments: str) -> str:
    """What the command prints, warnings aside."""
    done = CliRunner().invoke(main, ["traefik", "--config", str(config), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


class Traefik:
    """One Traefik; a context manager. `port` is where it serves HTTPS for its domain."""

    def __init__(self, static: Path, port: int, **account: Any) -> None:
        """`account` is what `Popen` needs to know for another one than ours."""
        self.log: list[str] = []
        self.port = port
        self._changed = threading.Condition()
        text = static.read_text()
        assert "\nproviders:\n" in text
        # It collects changes for two seconds otherwise, and a test would wait for each of them.
        quick = "\nproviders:\n  providersThrottleDuration: 50ms\n"
        static.write_text(text.replace("\nproviders:\n", quick) + _MORE)
        proxies = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
        self._process = subprocess.Popen(
            [TRAEFIK, f"--configFile={static}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={name: text for name, text in os.environ.items() if name.upper() not in proxies},
            **account,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Traefik:
        return self

    def __exit__(self, *_fault: object) -> None:
        self._process.kill()  # it would take its time, and has nothing to save
        self._process.wait()
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()
        print("".join(self.log))  # of a test that fails, pytest shows it

    def client(self) -> httpx.Client:
        """A client that takes whatever certificate Traefik has for the domain."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url, host = f"https://127.0.0.1:{self.port}", {"Host": DOMAIN}
        return httpx.Client(base_url=url, headers=host, verify=context, timeout=30, trust_env=False)

    def until_it_routes(self) -> None:
        """Wait until it has its router; what is behind it may say whatever it likes."""
        deadline = time.monotonic() + 30
        with self.client() as client:
            while not self._routes(client):
                assert self._process.poll() is None, "".join(self.log)
                assert time.monotonic() < deadline, "".join(self.log)
                time.sleep(0.05)  # it cannot tell us when it does

    def wait_for(self, *words: str, seconds: float = 30) -> str:
        """Wait for a line of its log with all these words in it."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._find(words), seconds)
        assert found, f"no line with {words} in:\n{''.join(self.log)}"
        return found

    def complaints(self) -> list[str]:
        """Warnings and errors of its log so far, but for what it says to everybody at its start."""
        with self._changed:
            bad = [line for line in self.log if {"WRN", "ERR", "FTL"} & set(line.split()[:3])]
        return [line for line in bad if "can reject some encoded characters" not in line]

    def _routes(self, client: httpx.Client) -> bool:
        try:
            # No path of ours: what it answers is Traefik's 404 or something else.
            return client.get("/is-there-a-route").text != "404 page not found\n"
        except httpx.TransportError:
            return False

    def _find(self, words: tuple[str, ...]) -> str:
        fitting = (line for line in self.log if all(word in line for word in words))
        return next(fitting, "")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.log.append(line)
                self._changed.notify_all()
