"""The policy of the moment, and word of a file that changes on disk.

`CurrentPolicy` holds the policy in force; readers take it once per decision. `FileChanges` tells
that a file may have changed, by the system's own means (inotify, FSEvents, kqueue), never what is
in it. Folders are watched and not the file: editors and configuration tools put a new file, or a
new link to one, in the old one's place, of which a watch on the old one would never hear.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
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
from sidecar.core.policy import Policy

# A file that is written in several steps is read when the last one is done, or after a while.
_QUIET_SECONDS = 0.05
_PATIENCE_SECONDS = 1.0
# As many links as the systems follow.
_MAX_LINKS = 32
# What readers do, ourselves included.
_READS = (FileOpenedEvent, FileClosedNoWriteEvent)
# A folder is modified whenever anything in it is.
_IGNORED = (*_READS, DirModifiedEvent)


@dataclass(slots=True)
class CurrentPolicy:
    """The policy in force: one writer, many readers."""

    policy: Policy

    def replace(self, policy: Policy) -> None:
        """Put another one in force, for the next decision."""
        self.policy = policy


class FileChanges(FileSystemEventHandler):
    """Watches one file while it is open as a context manager; made inside of trio."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._paths: frozenset[str] = frozenset()
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()
        self._observer = Observer()

    def __enter__(self) -> FileChanges:
        try:
            self._watch()
            self._observer.start()
        except OSError as exc:
            self._observer.unschedule_all()  # some may have begun
            self._observer.stop()
            raise WatchError(f"cannot watch for changes: {exc.strerror or exc}") from exc
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Its threads are daemons and hold nothing: an end need not wait for them.
        self._observer.stop()

    def _watch(self) -> None:
        """Watch every folder that something on the way to the file lies in, anew."""
        places = _places(self._path)
        # FSEvents tells real paths, inotify those that were asked for.
        self._paths = frozenset(
            os.path.join(one, name)
            for folder, name in places
            for one in (folder, os.path.realpath(folder))
        )
        self._observer.unschedule_all()
        for folder in {folder for folder, _ in places}:
            # One that is not there yet comes with a change of the folder above it.
            with suppress(FileNotFoundError, NotADirectoryError):
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
        await self._changed.wait()
        with trio.move_on_after(_PATIENCE_SECONDS):
            while self._changed.is_set():
                self._changed = trio.Event()
                await trio.sleep(_QUIET_SECONDS)
        # Links may lead elsewhere now, and a watch ends with the folder that it was on. Before the
        # file is read: what changes later is seen by the new watches.
        try:
            await trio.to_thread.run_sync(self._watch)
        except OSError as exc:
            raise WatchError(f"cannot watch for changes: {exc.strerror or exc}") from exc


def _places(path: Path) -> set[tuple[str, str]]:
    """Give the folder and name of each link on the way to a file, of the file and its folder."""
    places = set()
    for _ in range(_MAX_LINKS):
        link = next((one for one in [*reversed(path.parents), path] if one.is_symlink()), None)
        if link is None:
            break
        places.add((str(link.parent), link.name))
        target = link.parent / os.readlink(link)
        path = Path(os.path.normpath(target / path.relative_to(link)))
    places.add((str(path.parent), path.name))
    places.add((str(path.parent.parent), path.parent.name))
    return places
