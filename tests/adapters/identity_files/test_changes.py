"""What counts as a change, how it is heard of where the system says nothing, and the end of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import reading
from sidecar.adapters.identity_files.source import SETTLE_SECONDS
from sidecar.core.errors import WatchError
from sidecar.core.identity_event import IdentityEvent, Lost, Unreadable, Updated
from tests.adapters.deadlines import until, within
from tests.adapters.identity_files.sources import (
    A_MOMENT,
    FAST,
    HEARD,
    MOVED,
    NEVER,
    OFTEN,
    Asked,
    Deaf,
    Dying,
    Impossible,
    Noisy,
    Open,
    descriptors,
    newest,
    serial_of,
)
from tests.ca import Authority
from tests.held_clock import pass_time
from tests.identity_writers import (
    BUNDLE,
    NAMES,
    Contents,
    Writer,
    rename_over,
    write_in_place,
)
from tests.log_lines import Line

# What is no change, or hardly one.


@within(MOVED)
async def test_files_that_stay_as_they_are_say_nothing(
    asked: Callable[[], Asked], mock_clock: MockClock, writer: Writer, authority: Authority
) -> None:
    writer.put(Contents.new(authority))
    asking = asked()
    await pass_time(5 * SETTLE_SECONDS)
    for path in writer.paths.all():
        path.read_bytes()
    await pass_time(5 * SETTLE_SECONDS)
    assert len(asking.events) == 1


@within(30)
async def test_word_of_changes_that_are_none_says_nothing(
    writer: Writer, opened: Open, authority: Authority, nursery: trio.Nursery
) -> None:
    contents, following = Contents.new(authority), Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths, Noisy)
    await newest(files, contents.serial)
    events: list[IdentityEvent] = []

    async def ask() -> None:
        events.append(await files.next_event())

    nursery.start_soon(ask)
    for _ in range(50):
        await trio.to_thread.run_sync(int)  # as long as as many looks take
    assert events == []
    writer.put(following)
    await until(lambda: bool(events), "the change")
    serial_of(events[0])


@HEARD
@within(30)
async def test_files_that_are_only_touched_say_the_same_or_nothing(
    writer: Writer, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    contents, following = Contents.new(authority), Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths, watch, poll_seconds)
    same = await newest(files, contents.serial)
    for path in writer.paths.all():
        path.touch()
    writer.put(following)
    event = await files.next_event()
    while isinstance(event, Updated) and serial_of(event) == contents.serial:
        assert event.update.svids == same.svids
        event = await files.next_event()
    assert serial_of(event) == following.serial


def _of_the_same_length(contents: Contents, authority: Authority) -> Contents:
    """Another identity whose files have as many bytes; a signature's length is a matter of luck."""
    while True:
        other = Contents.new(authority)
        if all(len(other.of(name)) == len(contents.of(name)) for name in NAMES):
            return other


@pytest.mark.usefixtures("fine_times")
@HEARD
@within(60)
async def test_content_of_the_same_length_and_time_is_seen(
    writer: Writer, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    """As `cp -p`, `rsync --inplace --times` or the layers of an image leave it."""
    contents = Contents.new(authority)
    following = _of_the_same_length(contents, authority)
    writer.put(contents)
    for path in writer.paths.all():
        os.utime(path, (0, 0))
    files = opened(writer.paths, watch, poll_seconds)
    await newest(files, contents.serial)
    for name in NAMES:
        write_in_place(writer.place / name, following.of(name))
        os.utime(writer.place / name, (0, 0))
    await newest(files, following.serial)


@HEARD
@within(60 * FAST)
async def test_second_change_within_one_unit_of_the_file_systems_clock_is_seen(
    fast_clock: MockClock,
    writer: Writer,
    opened: Open,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    watch: Any,
    poll_seconds: float,
) -> None:
    """HFS+ and many network mounts note times by the second: both changes look the same."""
    monkeypatch.setattr(reading, "_signature", lambda path: (str(path), path.stat().st_size))
    contents = Contents.new(authority)
    following = _of_the_same_length(contents, authority)
    writer.put(contents)
    files = opened(writer.paths, watch, poll_seconds)
    await newest(files, contents.serial)
    for name in NAMES:
        write_in_place(writer.place / name, following.of(name))
    await newest(files, following.serial)


@within(30)
async def test_the_same_is_told_again_when_it_is_asked_for(
    writer: Writer, opened: Open, authority: Authority
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths)
    await newest(files, contents.serial)
    for seconds in (0.05, 0.0):
        assert serial_of(await files.next_event(seconds)) == contents.serial


@within(60 * FAST)
async def test_identity_that_is_not_valid_yet_is_looked_at_again(
    fast_clock: MockClock, writer: Writer, opened: Open, authority: Authority
) -> None:
    """The clock of who issues it may be ahead of ours; nothing changes on the disk any more."""
    contents = Contents.new(authority, not_before=timedelta(seconds=3))
    writer.put(contents)
    files = opened(writer.paths, Deaf, NEVER)
    event = await files.next_event()
    assert isinstance(event, Unreadable)
    assert "not valid before" in event.reason
    assert serial_of(await files.next_event()) == contents.serial


@within(MOVED)
async def test_asking_again_does_not_come_early(
    writer: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    mock_clock: MockClock,
) -> None:
    writer.put(Contents.new(authority))
    files = opened(writer.paths, Deaf, OFTEN)
    await files.next_event()
    events: list[IdentityEvent] = []

    async def ask() -> None:
        events.append(await files.next_event(30))

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(29)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert events == []
    mock_clock.jump(2)
    await until(lambda: bool(events), "the answer")
    serial_of(events[0])


# Without word of changes.


@pytest.mark.parametrize("watch", [Impossible, Dying])
@within(30)
async def test_without_a_watch_changes_are_seen_all_the_same(
    writer: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    lines: list[Line],
    watch: Any,
) -> None:
    files = opened(writer.paths, watch, OFTEN)
    for _ in range(3):
        contents = Contents.new(authority)
        writer.put(contents)
        await newest(files, contents.serial)
    # A change that has to be waited for: by then it was said that only looking is left.
    contents, events = Contents.new(authority), list[IdentityEvent]()

    async def ask() -> None:
        events.append(await files.next_event())

    nursery.start_soon(ask)
    await until(lambda: bool(lines), "the warning")
    writer.put(contents)
    await until(lambda: bool(events), "the change")
    serial_of(events[0])
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("identity files not watched", "warning")
    assert "cannot watch" in line["reason"]
    assert line["looked_at_seconds"] == OFTEN


@within(MOVED)
async def test_watch_that_stays_impossible_is_told_once(
    writer: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    mock_clock: MockClock,
    lines: list[Line],
) -> None:
    writer.put(Contents.new(authority))
    asking = Asked(opened(writer.paths, Impossible, OFTEN), nursery)
    for _ in range(5):
        await pass_time(600, 60)
        contents = Contents.new(authority)
        writer.put(contents)
        await pass_time(A_MOMENT)
        assert serial_of(asking.events[-1]) == contents.serial
    assert [line["event"] for line in lines] == ["identity files not watched"]


@within(MOVED)
async def test_watch_that_was_impossible_is_tried_again(
    writer: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    mock_clock: MockClock,
    lines: list[Line],
) -> None:
    """Too many files were open for a moment: that is no reason to be slow for ever."""
    tried: list[Path] = []

    class SoonPossible(Deaf):
        def __enter__(self) -> Deaf:
            tried.append(writer.place)
            if len(tried) == 1:
                raise WatchError("cannot watch for changes: too many open files")
            return self

    writer.put(Contents.new(authority))
    asking = Asked(opened(writer.paths, SoonPossible, OFTEN), nursery)
    for _ in range(5):
        await pass_time(600, 60)
        writer.put(Contents.new(authority))
        await pass_time(A_MOMENT)
    assert len(asking.events) == 6
    assert len(tried) == 2
    assert len(lines) == 1


@within(30 * FAST)
async def test_folders_of_which_one_cannot_be_watched_are_seen_all_the_same(
    fast_clock: MockClock, writer: Writer, opened: Open, authority: Authority, tmp_path: Path
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    away = tmp_path / "another"
    paths = replace(writer.paths, bundle=away / BUNDLE)
    files = opened(paths, FileChanges, OFTEN)
    assert isinstance(await files.next_event(), Lost)
    away.mkdir()
    rename_over(away / BUNDLE, contents.of(BUNDLE))
    await newest(files, contents.serial)


# Beginning and ending.


@within(30)
async def test_closing_twice_is_closing(writer: Writer, opened: Open, authority: Authority) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths)
    files.close()
    await newest(files, contents.serial)
    files.close()
    files.close()


@within(30)
async def test_what_changed_while_it_was_closed_is_seen(
    writer: Writer, opened: Open, authority: Authority
) -> None:
    files = opened(writer.paths)
    for _ in range(3):
        contents = Contents.new(authority)
        writer.put(contents)
        await newest(files, contents.serial)
        files.close()


@within(30)
async def test_closing_lets_go_of_the_watch(
    writer: Writer, opened: Open, authority: Authority
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    before = descriptors()
    for _ in range(5):
        files = opened(writer.paths)
        await newest(files, contents.serial)
        files.close()
    await until(lambda: descriptors() <= before, "the end of the watches")
