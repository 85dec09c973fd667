"""Fixtures: one trust domain, one agent process, one echo backend, and daemons on demand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import limits
from tests.ca import Authority
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

TRAEFIK = "/workload/traefik"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's name has room for some hundred bytes only."""
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Our trust domain."""
    return Authority("example.org")


@pytest.fixture(scope="session")
def foreign() -> Authority:
    """Somebody else's trust domain."""
    return Authority("other.org")


@pytest.fixture
def agent(folder: Path, authority: Authority) -> Iterator[AgentProcess]:
    """An agent that has issued our SVID."""
    process = AgentProcess(folder / "agent.sock")
    process.send(authority.svid(), authority.bundle)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def backend() -> Iterator[EchoBackend]:
    """A model server that echoes."""
    server = EchoBackend()
    yield server
    server.close()


@pytest.fixture
def start_daemon(
    folder: Path, agent: AgentProcess, backend: EchoBackend
) -> Iterator[Callable[..., Daemon]]:
    """Start the daemon on agent and backend; keywords as `write_config`."""
    running: list[Daemon] = []

    def start(*, backend_address: str | None = None, **options: object) -> Daemon:
        address = backend_address or backend.address
        config = write_config(folder, agent.path, address, **options)  # type: ignore[arg-type]
        daemon = Daemon(config)
        running.append(daemon)
        return daemon

    yield start
    for daemon in running:
        daemon.stop()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(limits)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait most, so that no process is left alone with one at the end."""
    first = ("/runbook/", "/scenarios/")
    items.sort(key=lambda item: not any(folder in item.nodeid for folder in first))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the clients that the daemon was tried with, and their versions."""
    passed = terminalreporter.stats.get("passed", [])
    named = {said for report in passed for key, said in report.user_properties if key == "client"}
    if named:
        terminalreporter.write_line("clients: " + ", ".join(sorted(named)))
