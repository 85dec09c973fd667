"""The real daemon in a child process, from a real configuration file, and its JSON log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.redaction import assert_redacted


class Daemon:
    """One `spiffe-sidecar run`; `log` grows as it speaks, and never shows a secret."""

    def __init__(
        self, config: Path, *, python: str | None = None, module: str = "sidecar", **account: Any
    ) -> None:
        """`account` is what `Popen` needs to know for another one than ours."""
        self.log: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._changed = threading.Condition()
        self._seen = 0
        self.process = subprocess.Popen(
            [python or sys.executable, "-m", module, "run", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            # What a developer's shell exports must not decide a test.
            env={k: v for k, v in os.environ.items() if k != "SPIFFE_ENDPOINT_SOCKET"},
            **account,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, seconds: float = 15, **fields: Any) -> dict[str, Any]:
        """Wait for a log line after the last one found; raise with the log if none comes."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._find(event, fields), seconds)
            assert found, f"no {event!r} {fields} within {seconds} s in:\n" + "".join(self.raw)
            self._seen = self.log.index(found, self._seen) + 1
            return found

    def lines(self, event: str) -> list[dict[str, Any]]:
        """All lines of one event so far."""
        with self._changed:
            return [line for line in self.log if line["event"] == event]

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it does."""
        with self._changed:
            ready = self._changed.wait_for(
                lambda: next((line for line in self.log if line["event"] == "ready"), None), 15
            )
            assert ready, "not ready:\n" + "".join(self.raw)
        host, _, port = ready["listening"][0].rpartition(":")
        return host, int(port)

    def stop(self, seconds: float = 15) -> int:
        """SIGTERM twice (no drain), wait, give the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGINT)
        return self.wait(seconds)

    def wait(self, seconds: float = 15) -> int:
        """Wait for the end; give the exit status. All that it wrote is searched for secrets."""
        try:
            status = self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        assert_redacted(self.raw)
        return status

    def _find(self, event: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        for line in self.log[self._seen :]:
            if line["event"] == event and fields.items() <= line.items():
                return line
        return None

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.raw.append(line)
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                self._changed.notify_all()


def write_config(
    folder: Path,
    agent: Path,
    backend: str,
    *,
    peers: tuple[str, ...] = ("spiffe://example.org/workload/traefik",),
    more: str = "",
    listener: str = "",
    mode: str = "stream",
    refusals_per_second: float = 0,
) -> Path:
    """Write `sidecar.toml` and `policy.toml` for a test; `more` is TOML at the end."""
    names = ", ".join(f'"{peer}"' for peer in peers)
    (folder / "policy.toml").write_text(f'[[allow]]\nname = "clients"\npeers = [{names}]\n')
    config = folder / "sidecar.toml"
    config.write_text(
        f"""
[workload_api]
socket = "unix:{agent}"
[listener]
address = "127.0.0.1:0"
{listener}
[backend]
address = "{backend}"
mode = "{mode}"
[policy]
file = "policy.toml"
[log]
format = "json"
refusals_per_second = {refusals_per_second}
{more}
"""
    )
    return config
