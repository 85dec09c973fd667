"""Word of files that change on disk.

`FileChanges` tells that a file may have changed, by the system's own means (inotify, FSEvents,
kqueue), never what is in it. Folders are watched and not the files: editors and configuration
tools put a new file, or a new link to one, in the old one's place, of which a watch on the old
one would never hear.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType

import trio
from watchdog.events import (
    DirModifiedEvent,
    FileClosedNoWriteEvent,
    FileOpenedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from sidecar.core.errors import WatchError
from sidecar.disk import entered, on_disk

# A file that is written in several steps is read when the last one is done, or after a while.
_QUIET_SECONDS = 0.05
_PATIENCE_SECONDS = 1.0
# As many links as the systems follow.
_MAX_LINKS = 32
# What readers do, ourselves included.
_READS = (FileOpenedEvent, FileClosedNoWriteEvent)
# A folder is modified whenever anything in it is.
_IGNORED = (*_READS, DirModifiedEvent)


class FileChanges(FileSystemEventHandler):
    """Watches files while it is open as a context manager; made inside of trio."""

    def __init__(self, *files: Path, quiet_seconds: float = _QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self._files = [file.absolute() for file in files]
        self._paths: frozenset[str] = frozenset()
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()
        self._observer = Observer()
        self._place = f"watch of {', '.join(map(str, self._files))}"
        self._busy = threading.Lock()  # held by the thread that changes the watches
        self._is_over = False
        self._is_stale = False  # word of a change came, and the watches are still the old ones

    def __enter__(self) -> FileChanges:
        try:
            with self._busy:
                self._observer.start()  # first: a folder that is gone fails its own watch only
                self._watch()
        except (OSError, RuntimeError) as exc:  # RuntimeError: no more threads
            self._observer.unschedule_all()  # some may have begun
            self._observer.stop()
            raise WatchError(f"cannot watch for changes: {_reason(exc)}") from exc
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        # Who changes the watches may hang on a disk, with the locks that this needs. It ends them
        # itself when it comes back.
        if self._busy.acquire(blocking=False):
            try:
                # Its threads are daemons and hold nothing: an end need not wait for them.
                self._observer.stop()
            finally:
                self._busy.release()

    def _watch_anew(self) -> None:
        with self._busy:
            self._watch()
        if self._is_over:
            self.__exit__(None, None, None)

    def _watch(self) -> None:
        """Watch every folder that something on the way to a file lies in, anew."""
        places = {place for file in self._files for place in places_of(file)}
        # FSEvents tells real paths, inotify those that were asked for.
        self._paths = frozenset(
            os.path.join(one, name) for folder, name in places for one in (folder, _real(folder))
        )
        self._observer.unschedule_all()
        for folder in {folder for folder, _ in places}:
            # One that is not there yet comes with a change of the folder above it.
            # One that may not be listed tells nothing; the others still do.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                self._observer.schedule(self, folder)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Hear, in the observer's thread, that something in a folder has changed."""
        paths = {os.fsdecode(path) for path in (event.src_path, event.dest_path)}
        if not isinstance(event, _IGNORED) and paths & self._paths:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._note, idempotent=True)

    def _note(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        """Wait for a change, and until it has been quiet for a moment; or raise `WatchError`."""
        if not self._is_stale:
            await self._changed.wait()
        self._is_stale = True
        with trio.move_on_after(_PATIENCE_SECONDS):
            while self._changed.is_set():
                self._changed = trio.Event()
                await trio.sleep(self._quiet_seconds)
        # Links may lead elsewhere now, and a watch ends with the folder that it was on. Before the
        # file is read: what changes later is seen by the new watches.
        try:
            await on_disk(self._watch_anew, self._place)
        except (OSError, RuntimeError) as exc:
            raise WatchError(f"cannot watch for changes: {_reason(exc)}") from exc
        self._is_stale = False


@asynccontextmanager
async def watched(file: Path) -> AsyncIterator[FileChanges]:
    """Watch a file; the watch begins in a thread, within the deadline of every disk."""
    changes = FileChanges(file)
    try:
        await entered(changes, f"watch of {file}")
    except TimeoutError as exc:
        raise WatchError(f"cannot watch for changes: {_reason(exc)}") from exc
    try:
        yield changes
    finally:
        changes.__exit__(None, None, None)


def places_of(path: Path) -> set[tuple[str, str]]:
    """Give the folder and name of each link on the way to a file, of the file and its folder."""
    places: set[tuple[str, str]] = set()
    here, ahead = Path(path.anchor), list(reversed(path.parts[1:]))
    links = 0
    while ahead:
        name = ahead.pop()
        if name == "..":
            here = here.parent  # there is no link in it any more
            continue
        target = _target(here / name) if links < _MAX_LINKS else None
        if target is not None:
            links += 1
            places.add((str(here), name))
            here = Path(target.anchor) if target.is_absolute() else here
            ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        else:
            here /= name
    places.add((str(here.parent), here.name))
    places.add((str(here.parent.parent), here.parent.name))
    return places


def _target(path: Path) -> Path | None:
    """Give what a link points to; None: it is none, or not any more."""
    try:
        return Path(os.readlink(path))
    except OSError:
        return None


def _real(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except OSError:  # a link on the way is being replaced
        return folder


def _reason(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)
