"""`fetch` ends: whatever hangs (files on a dead mount, an agent that is silent, a disk) is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.adapters.identity_files import source
from sidecar.core.errors import FetchError
from sidecar.operations import fetch as operation
from sidecar.operations.check import check
from sidecar.operations.fetch import fetch
from tests.adapters.deadlines import within
from tests.fake_agent import AgentProcess


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What hangs waits for it; the threads end with the test."""
    event = threading.Event()
    yield event
    event.set()


def config(folder: Path, more: str) -> Path:
    path = folder / "sidecar.toml"
    path.write_text(f'{more}\n[cert_files]\ndirectory = "certs"\n')
    (folder / "certs").mkdir(mode=0o700)
    return path


@pytest.mark.parametrize("seconds", [0, 1])
@within(30)
async def test_identity_files_on_a_mount_that_hangs_are_waited_for_no_longer_than_asked(
    folder: Path, hang: threading.Event, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(operation, "STEP_SECONDS", 0.5)
    monkeypatch.setattr(source, "_look", lambda _: hang.wait())
    tables = '[identity_files]\ncertificate = "a"\nprivate_key = "b"\nbundle = "c"'
    with pytest.raises(FetchError, match=f"^no identity within {seconds or 0.5:g} s"):
        await fetch(check(config(folder, tables), {}), seconds, after_rotation=False)


@within(30)
async def test_agent_that_is_silent_is_waited_for_no_longer_than_asked(
    folder: Path, agent: AgentProcess
) -> None:
    agent.silence()
    checked = check(config(folder, f'[workload_api]\nsocket = "unix:{agent.path}"'), {})
    with pytest.raises(FetchError, match=r"^no identity within 1 s: no answer yet"):
        await fetch(checked, 1, after_rotation=False)


@within(30)
async def test_disk_that_hangs_ends_it(
    folder: Path, agent: AgentProcess, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "STEP_SECONDS", 3)
    monkeypatch.setattr(operation, "publish", lambda *_: hang.wait())
    checked = check(config(folder, f'[workload_api]\nsocket = "unix:{agent.path}"'), {})
    with pytest.raises(FetchError, match=r"^the files are not written after 3 s"):
        await fetch(checked, 0, after_rotation=False)
