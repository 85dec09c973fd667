"""Fixtures of the scenarios: daemons that must end well, and the peer that policy admits."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

Launch = Callable[..., Daemon]


@pytest.fixture
def traefik(authority: Authority, folder: Path) -> ssl.SSLContext:
    """What the peer presents that `policy.toml` admits."""
    return client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder)


@pytest.fixture
def launch(folder: Path, agent: AgentProcess, backend: EchoBackend) -> Iterator[Launch]:
    """Start a daemon: `workload_api` is TOML in that table, `policy` TOML after the allow rule,
    `port` where it listens; the rest as `write_config` takes it.

    Whatever a scenario does to a daemon, it ends without a traceback.
    """
    daemons: list[Daemon] = []

    def start(
        *,
        backend_address: str = "",
        policy: str = "",
        workload_api: str = "",
        port: int = 0,
        log_format: str = "json",
        **options: object,
    ) -> Daemon:
        config = write_config(folder, agent.path, backend_address or backend.address, **options)  # type: ignore[arg-type]
        with (folder / "policy.toml").open("a") as file:
            file.write(policy)
        text = config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}")
        text = text.replace("[listener]", f"{workload_api}\n[listener]")
        config.write_text(text.replace('format = "json"', f'format = "{log_format}"'))
        daemons.append(Daemon(config))
        return daemons[-1]

    yield start
    died = [daemon for daemon in daemons if daemon.process.returncode is None]
    died = [daemon for daemon in died if daemon.process.poll() is not None]
    for daemon in daemons:
        if daemon.process.returncode is None:
            daemon.stop()
        assert "Traceback" not in "".join(daemon.raw)
    assert not died
