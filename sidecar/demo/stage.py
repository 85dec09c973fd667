"""What the demonstration is played on: agent, model server, files, and the real daemon.

Starts the daemon as a child process from a configuration file, as a service manager would, and
reads its log. Everything lives below one temporary folder and ends with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio

from sidecar.core.address import ENDPOINT_VARIABLE
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.svid import X509Svid
from sidecar.demo.agent import Answer, EmbeddedAgent, x509_svid_response
from sidecar.demo.authority import Authority
from sidecar.demo.model_server import ModelServer

TRUST_DOMAIN = "demo.local"
OWN_ID = SpiffeId.parse(f"spiffe://{TRUST_DOMAIN}/model-server")
TRAEFIK_ID = SpiffeId.parse(f"spiffe://{TRUST_DOMAIN}/traefik")
STRANGER_ID = SpiffeId.parse(f"spiffe://{TRUST_DOMAIN}/stranger")
# curl and openssl compare host names; with this one in the SVID they can be used as they are.
DNS_NAME = f"model-server.{TRUST_DOMAIN}"

SVID_SECONDS = 8
SECONDS_PER_TOKEN = 0.04

ENDPOINTS = ("POST /v1/chat/completions", "GET /api/version")
_POLICY = """\
[[allow]]
name = "traefik"
peers = ["{peer}"]
endpoints = [{endpoints}]
"""
_CONFIG = """\
[workload_api]
socket = "unix:{folder}/agent.sock"
spiffe_id = "{own_id}"

[listener]
address = "127.0.0.1:0"

[backend]
address = "127.0.0.1:{backend_port}"
mode = "http"

[policy]
file = "policy.toml"

[cert_files]
directory = "certs"

[connections]
drain_seconds = 1

[log]
format = "json"
"""


class DaemonLog:
    """The daemon's log lines; `wait_for` gives the first that fits after the last one given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.ended = False
        self._grown = trio.Event()

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Take the lines of the daemon's standard error until it ends."""
        rest = b""
        async for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if line.startswith(b"{"):
                    self.lines.append(json.loads(line))
            self._wake()
        self.ended = True
        self._wake()

    async def wait_for(self, event: str, after: int = 0, **fields: object) -> dict[str, Any]:
        """Wait for a line; raise if the daemon ends, or says nothing of the kind in 10 s."""
        with trio.fail_after(10):
            while True:
                for line in self.lines[after:]:
                    if line["event"] == event and fields.items() <= line.items():
                        return line
                if self.ended:
                    raise RuntimeError(f"the daemon ended before {event!r}: {self.lines[-3:]}")
                await self._grown.wait()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = trio.Event()


@dataclass(slots=True)
class Stage:
    """All parts, running."""

    folder: Path
    authority: Authority
    agent: EmbeddedAgent
    model_server: ModelServer
    backend_url: str
    log: DaemonLog = field(default_factory=DaemonLog)
    url: str = ""
    issued: list[X509Svid] = field(default_factory=list)

    def rotate(self) -> X509Svid:
        """Let the agent issue the sidecar's next SVID."""
        svid = self.authority.issue(OWN_ID, timedelta(seconds=SVID_SECONDS), [DNS_NAME])
        self.agent.set_answer(Answer(x509_svid_response([svid], [self.authority.bundle])))
        self.issued.append(svid)
        return svid

    def write_policy(self, endpoints: tuple[str, ...] = ENDPOINTS) -> None:
        """Write the policy that admits traefik to `endpoints`, as an editor would: whole."""
        quoted = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
        new = self.folder / "policy.toml.new"
        new.write_text(_POLICY.format(peer=TRAEFIK_ID, endpoints=quoted))
        new.replace(self.folder / "policy.toml")


@asynccontextmanager
async def set_up(folder: Path) -> AsyncIterator[Stage]:
    """Start every part, the daemon last; stop them in reverse."""
    agent = EmbeddedAgent(folder / "agent.sock")
    model_server = ModelServer(SECONDS_PER_TOKEN)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, model_server.serve, 0, host="127.0.0.1")
        )
        port = listeners[0].socket.getsockname()[1]
        stage = Stage(
            folder, Authority(TRUST_DOMAIN), agent, model_server, f"http://127.0.0.1:{port}"
        )
        text = _CONFIG.format(folder=folder, own_id=OWN_ID, backend_port=port)
        (folder / "sidecar.toml").write_text(text)
        stage.write_policy()
        agent.start()
        try:
            stage.rotate()
            daemon = await nursery.start(partial(_run_daemon, stage))
            try:
                yield stage
            finally:
                daemon.terminate()
        finally:
            nursery.cancel_scope.cancel()
            agent.stop()


async def _run_daemon(
    stage: Stage, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    command = [sys.executable, "-m", "sidecar", "run", "--config", f"{stage.folder}/sidecar.toml"]
    environment = {name: os.environ[name] for name in os.environ if name != ENDPOINT_VARIABLE}
    process = await trio.lowlevel.open_process(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    assert process.stderr is not None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.log.read, process.stderr)
            ready = await stage.log.wait_for("ready")
            stage.url = f"https://{ready['listening'][0]}"
            task_status.started(process)
            await process.wait()
    finally:
        with trio.move_on_after(5, shield=True) as patience:
            process.terminate()
            await process.wait()
        if patience.cancelled_caught:
            process.kill()
