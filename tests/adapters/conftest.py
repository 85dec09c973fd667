"""Fixtures of the adapters' tests: what was opened is closed, whatever became of the test."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.tls import ServerIdentity, server_identity
from tests.ca import Authority


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes at the end of a test what was entered into it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def identity(authority: Authority, foreign: Authority) -> ServerIdentity:
    """Our identity, with the bundle of a federated trust domain beside our own."""
    bundles = {one.trust_domain: one.bundle for one in (authority, foreign)}
    return server_identity(authority.svid(), bundles, "1.3")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where certificate files are written; not there yet."""
    return tmp_path / "certs"


@pytest.fixture
def open_files(closing: ExitStack) -> Callable[..., CertFiles]:
    """Opens certificate files, and lets go of their directory at the end."""

    def open_at(directory: Path, **keys: Any) -> CertFiles:
        files = CertFiles(directory, **keys)
        closing.callback(files.close)
        return files

    return open_at


@pytest.fixture
def files(directory: Path, open_files: Callable[..., CertFiles]) -> CertFiles:
    """The certificate files of one test."""
    return open_files(directory)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts can look into, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def fast_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, if this system has one: what is written there need not be waited for.

    So a process beside us meets far more publications in the same time.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path / "certs"
        return
    with tempfile.TemporaryDirectory(prefix="sc-", dir=memory) as name:
        yield Path(name) / "certs"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask; that of before comes back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def mount(closing: ExitStack) -> Callable[..., Callable[[], object]]:
    """Mounts something, with the arguments of `mount`; gives what unmounts it before the end."""

    def mount_at(place: Path, *arguments: str) -> Callable[[], object]:
        command = ["mount", *arguments, str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no command mount")
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.strip()}")
        unmounting = closing.enter_context(ExitStack())
        unmounting.callback(subprocess.run, ["umount", "-l", str(place)], check=True)
        return unmounting.close

    return mount_at


@pytest.fixture
def small_disk(tmp_path: Path, mount: Callable[..., object]) -> Callable[[str], Path]:
    """A file system of its own with little room; `options` as `mount` takes them."""

    def mount_disk(options: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        mount(place, "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs")
        return place

    return mount_disk
