"""Files that are not there, or may not be read, are told; when they come they are seen."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from sidecar.adapters.file_changes import FileChanges
from sidecar.core.identity_event import Lost
from tests.adapters.deadlines import within
from tests.adapters.identity_files.sources import (
    FAST,
    HEARD,
    OFTEN,
    Deaf,
    Open,
    newest,
)
from tests.ca import Authority
from tests.identity_writers import (
    NAMES,
    Contents,
    Generations,
    Kubernetes,
    OneByOne,
    ReplacedFolder,
    SwitchedFolder,
    Writer,
    rename_over,
)

# What is not there.


@HEARD
@pytest.mark.parametrize("missing", [*NAMES, "all"])
@within(30 * FAST)
async def test_missing_files_are_told_and_seen_when_they_come(
    fast_clock: MockClock,
    writer: Writer,
    opened: Open,
    authority: Authority,
    missing: str,
    watch: Any,
    poll_seconds: float,
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    names = NAMES if missing == "all" else (missing,)
    for name in names:
        (writer.place / name).unlink()
    files = opened(writer.paths, watch, poll_seconds)
    event = await files.next_event()
    assert isinstance(event, Lost)
    assert str(writer.place / names[0]) in event.reason
    for name in names:
        rename_over(writer.place / name, contents.of(name))
    await newest(files, contents.serial)


@pytest.mark.parametrize(("watch", "poll_seconds"), [(FileChanges, OFTEN), (Deaf, OFTEN)])
@pytest.mark.parametrize("kind", [Kubernetes, Generations, SwitchedFolder, ReplacedFolder])
@within(30 * FAST)
async def test_missing_folder_is_told_and_its_files_seen_when_they_come(
    fast_clock: MockClock,
    place: Path,
    opened: Open,
    authority: Authority,
    kind: Callable[[Path], Writer],
    watch: Any,
    poll_seconds: float,
) -> None:
    """Two folders above it are missing as well: only looking can find what comes then."""
    writer = kind(place)
    files = opened(writer.paths, watch, poll_seconds)
    assert isinstance(await files.next_event(), Lost)
    place.parent.mkdir()
    for _ in range(2):
        contents = Contents.new(authority)
        writer.put(contents)
        await newest(files, contents.serial)
    writer.close()


@HEARD
@within(30 * FAST)
async def test_files_that_go_for_good_are_told_and_seen_when_they_come_back(
    fast_clock: MockClock,
    writer: Writer,
    opened: Open,
    authority: Authority,
    watch: Any,
    poll_seconds: float,
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths, watch, poll_seconds)
    await newest(files, contents.serial)
    away = writer.place.with_name("away")
    writer.place.rename(away)
    event = await files.next_event()
    assert isinstance(event, Lost)
    assert "No such file" in event.reason
    away.rename(writer.place)  # the very same files
    await newest(files, contents.serial)
    following = Contents.new(authority)
    writer.put(following)
    await newest(files, following.serial)


# What may not be read.


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Be an account that permissions hold for, and that owns the folder."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """A folder of an account for which permissions hold."""
    name = tempfile.mkdtemp(prefix="sc-")
    with nobody(Path(name)):
        folder = Path(name) / "identity"
        folder.mkdir()
        yield folder
        folder.chmod(0o700)
    shutil.rmtree(name)


@pytest.mark.usefixtures("fine_times")
@HEARD
@pytest.mark.parametrize("name", NAMES)
@within(30 * FAST)
async def test_file_that_may_not_be_read_is_told_and_seen_when_it_may(
    fast_clock: MockClock,
    own_folder: Path,
    opened: Open,
    authority: Authority,
    name: str,
    watch: Any,
    poll_seconds: float,
) -> None:
    writer, contents = OneByOne(own_folder, rename_over), Contents.new(authority)
    writer.put(contents)
    (own_folder / name).chmod(0)
    files = opened(writer.paths, watch, poll_seconds)
    event = await files.next_event()
    assert isinstance(event, Lost)
    assert str(own_folder / name) in event.reason
    assert "Permission denied" in event.reason
    (own_folder / name).chmod(0o600)
    await newest(files, contents.serial)
    # Taken away again: told or not, a new file in its place is seen.
    (own_folder / name).chmod(0)
    following = Contents.new(authority)
    writer.put(following)
    await newest(files, following.serial)


@HEARD
@within(30 * FAST)
async def test_folder_that_may_not_be_entered_is_told_and_its_files_seen_when_it_may(
    fast_clock: MockClock,
    own_folder: Path,
    opened: Open,
    authority: Authority,
    watch: Any,
    poll_seconds: float,
) -> None:
    writer, contents = OneByOne(own_folder, rename_over), Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths, watch, min(poll_seconds, OFTEN))
    await newest(files, contents.serial)
    own_folder.chmod(0)
    event = await files.next_event()
    assert isinstance(event, Lost)
    assert "Permission denied" in event.reason
    own_folder.chmod(0o700)
    await newest(files, contents.serial)
    following = Contents.new(authority)
    writer.put(following)
    await newest(files, following.serial)


@within(30)
async def test_folder_that_may_be_entered_but_not_listed_is_no_hindrance(
    own_folder: Path, opened: Open, authority: Authority
) -> None:
    writer = OneByOne(own_folder, rename_over)
    writer.put(Contents.new(authority))
    own_folder.chmod(0o311)
    files = opened(writer.paths, FileChanges, OFTEN)
    for _ in range(3):
        contents = Contents.new(authority)
        writer.put(contents)
        await newest(files, contents.serial)
