"""A file that changes is noticed, whoever changes it and however; the neighbours are not heard."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest
import trio
import trio.testing
from watchdog.events import FileSystemEvent

from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.file_changes import FileChanges
from sidecar.core.errors import WatchError
from sidecar.core.policy_file import parse_policy
from sidecar.core.spiffe_id import SpiffeId
from tests.adapters.deadlines import within


async def read_when_changed(changes: FileChanges, path: Path, text: str) -> None:
    """Wait for changes until the file reads as it should, as a reader does."""
    while True:
        await changes.wait()
        if path.exists() and path.read_text() == text:
            return


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A policy file in a folder of its own."""
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "policy.toml"
    path.write_text("first")
    return path


def write_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def write_in_steps(path: Path, text: str) -> None:
    with path.open("w") as file:
        for letter in text:
            file.write(letter)
            file.flush()


def append(path: Path, text: str) -> None:
    """What was there stays in front of it."""
    with path.open("r+") as file:
        file.truncate(0)
        file.write(text)


def rename_over(path: Path, text: str) -> None:
    new = path.with_name(".policy.toml.swp")
    new.write_text(text)
    new.rename(path)


def rename_from_elsewhere(path: Path, text: str) -> None:
    new = path.parent.parent / "new"
    new.write_text(text)
    new.rename(path)


def delete_and_write(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def rename_away_and_write(path: Path, text: str) -> None:
    path.rename(path.with_suffix(".bak"))
    path.write_text(text)


def replace_by_a_link(path: Path, text: str) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_text(text)
    path.unlink()
    path.symlink_to(target)


def replace_by_a_hard_link(path: Path, text: str) -> None:
    other = path.with_name("other")
    other.write_text(text)
    path.unlink()
    os.link(other, path)


WAYS = [
    write_in_place,
    write_in_steps,
    append,
    rename_over,
    rename_from_elsewhere,
    delete_and_write,
    rename_away_and_write,
    replace_by_a_link,
    replace_by_a_hard_link,
]


@pytest.mark.parametrize("change", WAYS)
@within(20)
async def test_change_is_noticed_and_the_next_one_too(
    path: Path, change: Callable[[Path, str], None]
) -> None:
    with FileChanges(path) as changes:
        change(path, "second")
        await read_when_changed(changes, path, "second")
        write_in_place(path, "third")
        await read_when_changed(changes, path, "third")
        rename_over(path, "fourth")
        await read_when_changed(changes, path, "fourth")


@within(20)
async def test_file_that_is_gone_and_comes_back_is_noticed_both_times(path: Path) -> None:
    with FileChanges(path) as changes:
        for text in ("second", "third"):
            path.unlink()
            await changes.wait()
            assert not path.exists()
            path.write_text(text)
            await read_when_changed(changes, path, text)


@within(20)
async def test_relative_path_is_watched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with FileChanges(Path("policy.toml")) as changes:
        rename_over(path, "second")
        await read_when_changed(changes, path, "second")


@within(20)
async def test_several_changes_in_a_row_are_one(path: Path) -> None:
    with FileChanges(path) as changes:
        for number in range(100):
            write_in_place(path, f"{number}")
        await changes.wait()
        assert path.read_text() == "99"


@within(20)
async def test_change_before_anybody_waits_is_not_lost(path: Path) -> None:
    with FileChanges(path) as changes:
        write_in_place(path, "second")
        # What tells of it has come by the time that a later change of another watch is there.
        with FileChanges(path) as later:
            write_in_place(path, "third")
            await later.wait()
        await changes.wait()


# Links.


def relink(link: Path, target: str) -> None:
    """Put a link in place of another one, as deployments do it."""
    new = link.with_name("new-link")
    new.symlink_to(target)
    new.rename(link)


def release(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "policy.toml").write_text(text)


@within(20)
async def test_change_behind_a_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "srv").mkdir()
    target = tmp_path / "srv/real.toml"
    target.write_text("first")
    path = tmp_path / "etc/policy.toml"
    path.symlink_to(target)
    with FileChanges(path) as changes:
        for change, text in ((write_in_place, "second"), (rename_over, "third")):
            change(target, text)
            await read_when_changed(changes, path, text)


@within(20)
async def test_change_behind_a_swapped_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("a", "b", "c"):
        release(tmp_path, name, name)
    path = tmp_path / "etc/policy.toml"
    path.symlink_to("../a/policy.toml")
    with FileChanges(path) as changes:
        for name in ("b", "c", "a"):
            relink(path, f"../{name}/policy.toml")
            await read_when_changed(changes, path, name)
            write_in_place(tmp_path / name / "policy.toml", name * 2)
            await read_when_changed(changes, path, name * 2)


@within(20)
async def test_second_swap_of_a_folders_link_is_noticed(tmp_path: Path) -> None:
    """`current` leads to the folder of a release, and the policy lies in it."""
    for name in ("a", "b", "c"):
        release(tmp_path, name, name)
    (tmp_path / "current").symlink_to("a")
    path = tmp_path / "current/policy.toml"
    with FileChanges(path) as changes:
        for name in ("b", "c", "a"):
            relink(tmp_path / "current", name)
            await read_when_changed(changes, path, name)
            write_in_place(tmp_path / name / "policy.toml", name * 2)
            await read_when_changed(changes, path, name * 2)


@within(20)
async def test_swap_as_kubernetes_makes_it_is_noticed_each_time(tmp_path: Path) -> None:
    for name in ("..1", "..2", "..3"):
        release(tmp_path, name, name)
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "policy.toml"
    path.symlink_to("..data/policy.toml")
    with FileChanges(path) as changes:
        for before, name in (("..1", "..2"), ("..2", "..3")):
            relink(tmp_path / "..data", name)
            shutil.rmtree(tmp_path / before)
            await read_when_changed(changes, path, name)


@within(20)
async def test_swap_in_the_middle_of_a_chain_of_links_is_noticed(tmp_path: Path) -> None:
    for name in ("etc", "links"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        release(tmp_path, name, name)
    path = tmp_path / "etc/policy.toml"
    path.symlink_to(tmp_path / "links/middle")
    (tmp_path / "links/middle").symlink_to("../a/policy.toml")
    with FileChanges(path) as changes:
        for name in ("b", "a"):
            relink(tmp_path / "links/middle", f"../{name}/policy.toml")
            await read_when_changed(changes, path, name)


@within(20)
async def test_link_that_leads_nowhere_for_a_while_is_noticed_when_it_leads_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    release(tmp_path, "a", "first")
    path = tmp_path / "etc/policy.toml"
    path.symlink_to("../a/policy.toml")
    with FileChanges(path) as changes:
        (tmp_path / "a/policy.toml").unlink()
        await changes.wait()
        (tmp_path / "a/policy.toml").write_text("second")
        await read_when_changed(changes, path, "second")


# Folders.


@within(20)
async def test_folder_that_is_replaced_is_noticed(path: Path) -> None:
    folder = path.parent
    with FileChanges(path) as changes:
        for number in range(3):
            folder.rename(folder.with_name(f"old{number}"))
            folder.mkdir()
            path.write_text(f"{number}")
            await read_when_changed(changes, path, f"{number}")
            write_in_place(path, "in place")
            await read_when_changed(changes, path, "in place")


@within(20)
async def test_folder_that_is_deleted_and_made_again_is_noticed(path: Path) -> None:
    with FileChanges(path) as changes:
        for number in range(2):
            shutil.rmtree(path.parent)
            await changes.wait()
            path.parent.mkdir()
            path.write_text(f"{number}")
            await read_when_changed(changes, path, f"{number}")


# What is no change.


@within(20)
async def test_reading_is_no_change(path: Path) -> None:
    with FileChanges(path) as changes:
        write_in_place(path, "second")
        await read_when_changed(changes, path, "second")
        for _ in range(3):
            path.read_text()
            path.stat()
            list(path.parent.iterdir())
        with trio.move_on_after(0.3) as quiet:
            await changes.wait()
        assert quiet.cancelled_caught


@within(20)
async def test_writing_to_a_neighbour_is_no_change(path: Path) -> None:
    with path.with_name("sidecar.log").open("a") as neighbour, FileChanges(path) as changes:
        for _ in range(10):
            neighbour.write("line\n")
            neighbour.flush()
        with trio.move_on_after(0.3) as quiet:
            await changes.wait()
        assert quiet.cancelled_caught


@pytest.mark.parametrize("name", ["sidecar.log", "policy.toml"])
@within(20)
async def test_busy_neighbour_does_not_hide_a_change(path: Path, name: str) -> None:
    """Nor does a file that is written again and again: what is in it at some moment is read."""

    async def scribble() -> None:
        while True:
            with path.with_name(name).open("a") as file:
                file.write("#\n")
            await trio.sleep(0.01)

    with FileChanges(path) as changes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scribble)
            rename_over(path, "second\n")
            while True:
                await changes.wait()
                if path.read_text().startswith("second\n"):
                    break
            nursery.cancel_scope.cancel()


# Beginning and ending.


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a watch takes no descriptor")
@within(20)
async def test_watch_that_cannot_begin_is_told(path: Path) -> None:
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(WatchError, match="limit reached"):
            FileChanges(path).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@within(20)
async def test_watches_leave_no_descriptor_behind(path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    with FileChanges(path) as changes:
        write_in_place(path, "second")
        await read_when_changed(changes, path, "second")
        before = descriptors()
        for number in range(10):
            write_in_place(path, f"{number}")
            await read_when_changed(changes, path, f"{number}")
        assert descriptors() == before


def test_change_after_the_end_of_trio_is_no_error(path: Path) -> None:
    heard: SimpleQueue[BaseException | None] = SimpleQueue()

    class Watched(FileChanges):
        """Tells what became of each event of the file in the observer's thread."""

        def on_any_event(self, event: FileSystemEvent) -> None:
            error = None
            try:
                super().on_any_event(event)
            except BaseException as exc:
                error = exc
            if str(path) in (event.src_path, event.dest_path):
                heard.put(error)

    async def watch() -> FileChanges:
        return Watched(path).__enter__()

    changes = trio.run(watch)
    try:
        rename_over(path, "second")
        assert heard.get(timeout=20) is None
    finally:
        changes.__exit__(None, None, None)


def test_policy_in_force_is_the_last_one_that_was_put_there() -> None:
    peer = SpiffeId.parse("spiffe://example.org/a")
    text = '[[allow]]\nname = "{0}"\npeers = ["spiffe://example.org/{0}"]\nendpoints = ["*"]\n'
    current = CurrentPolicy(parse_policy(text.format("a"), "policy.toml"))
    assert current.policy.decide(peer).allowed
    current.replace(parse_policy(text.format("b"), "policy.toml"))
    assert not current.policy.decide(peer).allowed
