"""What stands in the place of a file and is none.

It is told, and neither hangs us nor fills memory or descriptors.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.adapters.identity_files.reading import MAX_BYTES, read_identity
from sidecar.core.errors import IdentityFilesError
from sidecar.core.identity_event import Lost
from tests.adapters.deadlines import within
from tests.adapters.identity_files.sources import (
    FAST,
    Open,
    descriptors,
    newest,
)
from tests.ca import Authority
from tests.identity_writers import (
    CERTIFICATE,
    KEY,
    Contents,
    Kubernetes,
    Writer,
    paths_in,
    pem,
    rename_over,
)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        name = Path(tempfile.mkdtemp(prefix="sc-")) / "s"
        sock.bind(str(name))
    name.rename(path)
    name.parent.rmdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_file_above(path: Path) -> None:
    path.symlink_to(path.parent / "file/below")
    (path.parent / "file").write_text("")


def huge(path: Path) -> None:
    """More than there is memory: a hole that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def a_byte_too_long(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def fails_when_read(path: Path) -> None:
    path.symlink_to("/proc/self/mem")
    if not path.exists():
        pytest.skip("no file here that fails when it is read")


NO_FILES = [
    a_folder,
    a_pipe,
    a_device,
    a_socket,
    a_loop,
    a_file_above,
    huge,
    a_byte_too_long,
    fails_when_read,
]


@pytest.mark.parametrize("put_odd", NO_FILES)
@pytest.mark.parametrize("name", [CERTIFICATE, KEY])
@within(30 * FAST)
async def test_what_is_no_file_is_told_and_a_file_in_its_place_is_seen(
    fast_clock: MockClock,
    writer: Writer,
    opened: Open,
    authority: Authority,
    put_odd: Callable[[Path], None],
    name: str,
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    path = writer.place / name
    path.unlink()
    put_odd(path)
    files = opened(writer.paths)
    event = await files.next_event()
    assert isinstance(event, Lost)
    assert event.reason.startswith(f"{path}: ")
    assert "None" not in event.reason
    if path.is_dir():
        path.rmdir()
    rename_over(path, contents.of(name))
    await newest(files, contents.serial)


@pytest.mark.parametrize("put_odd", NO_FILES)
@within(30 * FAST)
async def test_what_is_no_federated_file_costs_its_own_trust_domain(
    fast_clock: MockClock,
    writer: Writer,
    opened: Open,
    authority: Authority,
    put_odd: Callable[[Path], None],
) -> None:
    contents, foreign, path = Contents.new(authority), Authority("other.org"), writer.place / "odd"
    writer.put(contents)
    put_odd(path)
    files = opened(paths_in(writer.place, {foreign.trust_domain: path}))
    update = await newest(files, contents.serial)
    assert update.federated == {}
    (note,) = update.notes
    assert "other.org" in note
    assert str(path) in note
    if path.is_dir():
        path.rmdir()
    rename_over(path, pem(foreign.certificate))
    update = await newest(files, contents.serial)
    assert (list(update.federated), update.notes) == (["other.org"], ())


@pytest.mark.parametrize("put_odd", NO_FILES)
@within(30)
async def test_looking_at_what_is_no_file_leaves_no_descriptor_behind(
    writer: Writer, opened: Open, authority: Authority, put_odd: Callable[[Path], None]
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    (writer.place / KEY).unlink()
    put_odd(writer.place / KEY)
    await trio.to_thread.run_sync(int)  # trio keeps a thread, and maybe more, for the next one
    before = descriptors()
    for _ in range(10):
        with pytest.raises(IdentityFilesError):
            read_identity(writer.paths)
    assert descriptors() == before


@within(30)
async def test_changes_leave_no_descriptor_behind(
    opened: Open, authority: Authority, folder: Path
) -> None:
    writer = Kubernetes(folder)
    contents = [Contents.new(authority) for _ in range(12)]
    writer.put(contents[0])
    files = opened(writer.paths)
    before = 0
    for number, one in enumerate(contents):
        writer.put(one)
        await newest(files, one.serial)
        if number == 1:
            before = descriptors()
    assert descriptors() <= before
