"""Files that something else writes, as a source of identities like the agent.

Gives one `IdentityEvent` for each `await next_event()`, never raises for what stands on the disk.
A writer that replaces one file after the other leaves a pair that does not match for a moment:
only what is still wrong after that moment is told. Beside word of changes, which is handed in,
the files are looked at every `poll_seconds`, because a network mount tells nothing.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio

from sidecar.adapters.identity_files.reading import (
    IdentityPaths,
    Signature,
    newest_change,
    read_identity,
    signature,
)
from sidecar.core.errors import AgentProtocolError, IdentityFilesError, WatchError
from sidecar.core.identity_event import IdentityEvent, Lost, Unreadable, Updated
from sidecar.core.identity_pem import raw_update
from sidecar.core.identity_update import identity_update
from sidecar.disk import entered, on_disk

log = structlog.get_logger()

# A writer is done with all of its files in this time, or something is wrong.
SETTLE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
# What is read while it is written is read again: there is no need to wait for the writer's end.
_QUIET_SECONDS = 0.01
# File systems note times by up to two seconds: of two changes within one unit, only one shows.
_UNIT_SECONDS = 2.1
_WATCH_AGAIN_SECONDS = 60.0
# What was refused is looked at again: only time may have been what was wrong with it.
_REFUSED_SECONDS = 30.0


class Changes(Protocol):
    """Word of a change of files, while it is open."""

    async def wait(self) -> None:
        """Wait for a change, or raise `WatchError`."""


class Watch(Protocol):
    """What begins to watch files; entering it may raise `WatchError`."""

    def __call__(self, *files: Path, quiet_seconds: float) -> AbstractContextManager[Changes]:
        """Give it, not begun; a change is told when it has been quiet for so long."""


class IdentityFiles:
    """The files at `paths`. One task calls `next_event`; `close` ends the watch."""

    name = "identity files"

    def __init__(self, paths: IdentityPaths, poll_seconds: float, watch: Watch) -> None:
        self._paths = paths
        self._place = str(paths.certificate)
        self._poll_seconds = poll_seconds
        self._watch = watch
        self._open = ExitStack()
        self._changes: Changes | None = None
        self._watch_at = float("-inf")
        self._says_not_watched = True
        self._told: _Look | None = None
        self._final_at: float | None = None  # the same times may hide another content until then

    def accepted(self) -> None:
        """Nothing is owed to a disk."""

    def close(self) -> None:
        """End the watch."""
        self._open.close()
        self._changes = None

    async def next_event(self, ask_again_seconds: float = float("inf")) -> IdentityEvent:
        """Wait until the files say something new.

        After so many seconds a good identity is told once more; what is wrong is told once.
        """
        while True:
            await self._begin()  # before the files are looked at: what changes later is heard
            with trio.move_on_after(ask_again_seconds):
                await self._news()
            look = await self._settled()
            again = self._told is not None and look.is_as_bad_as(self._told)
            self._told = look
            age = time.time() - look.newest
            self._final_at = trio.current_time() + _UNIT_SECONDS if age < _UNIT_SECONDS else None
            if not again:
                return look.event

    async def _news(self) -> None:
        """Wait until something else stands there than what was told."""
        look_again = float("inf")
        if self._told is not None and not isinstance(self._told.event, Updated):
            look_again = trio.current_time() + _REFUSED_SECONDS
        while self._told is not None:
            if trio.current_time() >= look_again:
                return
            if await self._signature() != self._told.signature:
                return
            if self._final_at is not None and trio.current_time() >= self._final_at:
                self._final_at = None
                if (await self._look()).event != self._told.event:
                    return
            await self._change(look_again)

    async def _settled(self) -> _Look:
        """Read, and give a writer that is at it the time to finish."""
        look = await self._look()
        with trio.move_on_after(SETTLE_SECONDS):
            while not self._is_whole(look.event):
                await trio.sleep(_LOOK_SECONDS)
                look = await self._look()
        return look

    async def _look(self) -> _Look:
        """Read once; a disk that does not answer in time is a finding, too."""
        try:
            return await on_disk(partial(_look, self._paths), self._place)
        except TimeoutError as exc:
            return _Look(Lost(f"{self._place}: {exc.strerror}"), (), 0.0)

    async def _signature(self) -> Signature:
        try:
            return await on_disk(partial(signature, self._paths), self._place)
        except TimeoutError:
            return ()

    def _is_whole(self, event: IdentityEvent) -> bool:
        """Tell whether nothing is missing, or only what was missing before."""
        if not isinstance(event, Updated):
            return False
        before = self._told.event if self._told else None
        known = before.update.notes if isinstance(before, Updated) else ()
        return event.update.notes in ((), known)

    async def _change(self, look_again: float) -> None:
        """Wait for word of a change, no longer than until the next look."""
        soon = trio.current_time() + self._poll_seconds
        with trio.move_on_at(min(soon, self._final_at or soon, look_again)):
            if self._changes is None:
                await trio.sleep_forever()
            else:
                try:
                    await self._changes.wait()
                except WatchError as exc:
                    self._not_watched(exc)

    async def _begin(self) -> None:
        if self._changes is not None or trio.current_time() < self._watch_at:
            return
        changes = self._watch(*self._paths.all(), quiet_seconds=_QUIET_SECONDS)
        try:
            self._changes = await entered(changes, f"watch of {self._place}")
        except TimeoutError as exc:
            self._not_watched(WatchError(str(exc.strerror)))
        except WatchError as exc:
            self._not_watched(exc)
        else:
            self._open.push(changes)

    def _not_watched(self, exc: WatchError) -> None:
        if self._says_not_watched:
            seconds = self._poll_seconds
            log.warning("identity files not watched", reason=exc.message, looked_at_seconds=seconds)
        self._says_not_watched = False
        self._watch_at = trio.current_time() + _WATCH_AGAIN_SECONDS
        self.close()


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found, in which state of the files, and when that was made."""

    event: IdentityEvent
    signature: Signature
    newest: float

    def is_as_bad_as(self, told: _Look) -> bool:
        """Tell whether this is no news: a reason may hold the time at which it was found."""
        same = self.signature == told.signature and type(self.event) is type(told.event)
        return not isinstance(self.event, Updated) and (same or self.event == told.event)


def _look(paths: IdentityPaths) -> _Look:
    """Read once, and prove: a pair may match while its bundle is still to come. Blocks."""
    state, newest = signature(paths), newest_change(paths)
    event: IdentityEvent
    try:
        pem, state = read_identity(paths)
        raw = raw_update(pem)
        identity_update(raw, datetime.now(UTC))
        event = Updated(raw)
    except IdentityFilesError as exc:
        event = Lost(exc.message)
    except AgentProtocolError as exc:
        event = Unreadable(exc.message)
    except ValueError as exc:
        event = Unreadable(str(exc))
    return _Look(event, state, newest)


def look_once(paths: IdentityPaths) -> IdentityEvent:
    """Return what the files say at this moment. Blocks."""
    return _look(paths).event
