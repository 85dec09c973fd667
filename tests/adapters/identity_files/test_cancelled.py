"""However far a source has come when its caller is cancelled, the next call has the change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files.source import SETTLE_SECONDS
from sidecar.core.identity_event import IdentityEvent, Lost, Unreadable
from tests.adapters.deadlines import until, within
from tests.adapters.identity_files.sources import (
    HEARD,
    MOVED,
    OFTEN,
    Asked,
    Deaf,
    Open,
    empty_key,
    newest,
    no_key,
    other_key,
    serial_of,
)
from tests.ca import Authority
from tests.held_clock import STEP, pass_time
from tests.identity_writers import Contents, Writer

POINTS = 60


@HEARD
@within(60)
async def test_change_is_not_lost_when_the_wait_for_it_is_cancelled_anywhere(
    writer: Writer, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    """However far the source has come when it is cancelled, the next call has the change."""
    some = [Contents.new(authority) for _ in range(3)]
    writer.put(some[0])
    files = opened(writer.paths, watch, poll_seconds)
    await newest(files, some[0].serial)
    told = some[0].serial
    for point in range(POINTS):
        contents = some[point % len(some)]
        async with trio.open_nursery() as nursery:
            events: list[IdentityEvent] = []

            async def ask(events: list[IdentityEvent] = events) -> None:
                events.append(await files.next_event())

            if point % 2:
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
            writer.put(contents)
            if not point % 2:
                nursery.start_soon(ask)
            for _ in range(point):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        if events:
            told = serial_of(events[0])
        if told != contents.serial:
            await newest(files, contents.serial)
            told = contents.serial


@pytest.mark.parametrize("spoil", [other_key, empty_key, no_key])
@pytest.mark.parametrize("after", [0.0, 0.3, 1.0, SETTLE_SECONDS - 2 * STEP])
@within(MOVED)
async def test_wrong_pair_is_told_also_when_the_wait_was_cancelled_before_it_settled(
    writer: Writer,
    opened: Open,
    authority: Authority,
    mock_clock: MockClock,
    spoil: Callable[[Writer], None],
    after: float,
) -> None:
    writer.put(Contents.new(authority))
    files = opened(writer.paths, Deaf, OFTEN)
    serial_of(await files.next_event())
    spoil(writer)
    async with trio.open_nursery() as nursery:
        asking = Asked(files, nursery)
        await pass_time(after)
        nursery.cancel_scope.cancel()
    assert asking.events == []
    async with trio.open_nursery() as nursery:
        asking = Asked(files, nursery)
        await pass_time(2 * SETTLE_SECONDS)
        nursery.cancel_scope.cancel()
    (event,) = asking.events
    assert isinstance(event, Unreadable | Lost)


@within(30)
async def test_watch_follows_a_new_folder_also_when_the_wait_was_cancelled(
    writer: Writer, authority: Authority
) -> None:
    """Word of a change that a cancelled wait has heard is not lost with it."""
    folder = writer.place
    writer.put(Contents.new(authority))
    with FileChanges(*writer.paths.all(), quiet_seconds=0.2) as changes:
        folder.rename(folder.with_name("old"))
        folder.mkdir()
        with trio.move_on_after(0.1) as impatient:
            await changes.wait()
        assert impatient.cancelled_caught
        await changes.wait()
        writer.put(Contents.new(authority))
        await changes.wait()


@within(30)
async def test_watch_that_was_abandoned_is_closed_when_it_begins_after_all(
    writer: Writer, opened: Open, authority: Authority
) -> None:
    """Its folder lay on a disk that hung; nobody waits for it any more."""
    began, go_on, exited = threading.Event(), threading.Event(), threading.Event()

    class Slow(Deaf):
        def __enter__(self) -> Slow:
            began.set()
            assert go_on.wait(20)
            return self

        def __exit__(self, *_: object) -> None:
            exited.set()

    writer.put(Contents.new(authority))
    files = opened(writer.paths, Slow, OFTEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(files.next_event)
        await until(began.is_set, "the beginning")
        nursery.cancel_scope.cancel()
    assert not exited.is_set()
    go_on.set()
    await until(exited.is_set, "the end of the watch")
