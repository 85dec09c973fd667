"""Pooling clients go through rotations without losing a request, and meet the newest SVID at once.

Figures of 32 clients and 100 rotations: `FULL=1 pytest -s` on this file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.ca import Authority
from tests.conftest import TRAEFIK
from tests.fake_agent import AgentProcess
from tests.pooled_clients import Asked, PooledClients, Request
from tests.scenarios.conftest import Launch
from tests.scenarios.memory import resident_mib
from tests.scenarios.peer import free_port, until_it_listens

FULL = bool(os.environ.get("FULL"))
CLIENTS, ROTATIONS, EVERY_SECONDS = (32, 100, 1.0) if FULL else (8, 10, 0.5)
# How long a new SVID may take to be the one that is served with. What is promised.
ALLOWANCE_SECONDS = 1.0


@contextmanager
def model_server() -> Iterator[str]:
    """A model server in a process of its own; gives where it listens."""
    port = free_port()
    command = [sys.executable, "-m", "tests.pooled_clients", "model", str(port)]
    with subprocess.Popen(command) as process:
        try:
            until_it_listens(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture
def backend_address() -> Iterator[str]:
    with model_server() as address:
        yield address


def test_no_request_fails_and_everybody_is_on_the_newest_svid_after_one(
    launch: Launch,
    agent: AgentProcess,
    authority: Authority,
    folder: Path,
    backend_address: str,
) -> None:
    first = authority.svid()
    agent.send(first, authority.bundle)
    issued = [(time.time(), first.serial)]
    policy = 'endpoints = ["POST /v1/{rest...}"]\n'
    daemon = launch(backend_address=backend_address, mode="http", policy=policy)
    url = "https://{}:{}".format(*daemon.address)
    pem = authority.sign(authority.leaf(TRAEFIK)).write(folder, "pooled")
    trusted = folder / "authority.pem"
    trusted.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    with PooledClients(url, folder, pem, trusted, CLIENTS) as clients:
        before, pace, begun = resident_mib(daemon.process.pid), threading.Event(), time.monotonic()
        for number in range(ROTATIONS):
            pace.wait(max(0.0, begun + (number + 1) * EVERY_SECONDS - time.monotonic()))
            svid = authority.svid()
            issued.append((time.time(), svid.serial))
            agent.send(svid, authority.bundle)
            daemon.wait_for("identity rotated", serial=svid.serial)
        pace.wait(2 * ALLOWANCE_SECONDS)
        seconds, after = time.monotonic() - begun, resident_mib(daemon.process.pid)
    asked = clients.asked()
    assert not asked.failed, f"{len(asked.failed)} failed, the first: {asked.failed[0]}"
    behind = [_behind(one, issued) for one in asked.requests]
    print(
        f"\n{CLIENTS} pooling clients, {ROTATIONS} rotations in {seconds:.0f} s: "
        f"{len(asked.requests)} requests, {len(asked.failed)} failed, on "
        f"{len(_by_connection(asked))} connections; {sum(late > 0 for late in behind)} were "
        f"begun on an SVID that was no longer the newest, the latest {max(behind) * 1000:.0f} ms "
        f"behind; slowest answer {max(one.seconds for one in asked.requests) * 1000:.0f} ms; "
        f"resident memory of the daemon {before:.0f} -> {after:.0f} MiB"
    )
    assert len({one.client for one in asked.requests}) == CLIENTS
    for requests in _by_connection(asked).values():
        late = [one for one in requests if _behind(one, issued) > ALLOWANCE_SECONDS]
        assert len(late) <= 1, "it was not told to dial again, or did not"
    for client in range(CLIENTS):
        last = max((one for one in asked.requests if one.client == client), key=_begun)
        assert last.serial == issued[-1][1]
    assert not [line for line in daemon.log if line["level"] in ("error", "warning")]


def _begun(request: Request) -> float:
    return request.begun


def _by_connection(asked: Asked) -> dict[tuple[int, str], list[Request]]:
    by_connection = defaultdict(list)
    for one in asked.requests:
        by_connection[one.port, one.serial].append(one)
    return by_connection


def _behind(request: Request, issued: list[tuple[float, str]]) -> float:
    """For how long the SVID of its connection had been superseded when a request began."""
    at = [serial for _, serial in issued].index(request.serial)
    return max(0.0, request.begun - issued[at + 1][0]) if at + 1 < len(issued) else 0.0
