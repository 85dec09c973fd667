"""The policy of the moment, and word of a file that changes on disk.

`CurrentPolicy` holds the policy in force; readers take it once per decision. `FileChanges` tells
that a file may have changed, by the system's own means (inotify, FSEvents, kqueue), never what is
in it. The folder is watched and not the file: editors and configuration tools put a new file in
the old one's place, of which a watch on the old one would never hear.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import trio
from watchdog.events import (
    FileClosedNoWriteEvent,
    FileOpenedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from sidecar.core.errors import WatchError
from sidecar.core.policy import Policy

# A file that is written in several steps is read when the last one is done.
_QUIET_SECONDS = 0.05
# What readers do, ourselves included.
_READS = (FileOpenedEvent, FileClosedNoWriteEvent)


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
        self._folders = {path.parent.absolute(), path.resolve().parent}
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()
        self._observer = Observer()

    def __enter__(self) -> FileChanges:
        try:
            for folder in self._folders:
                self._observer.schedule(self, str(folder))
            self._observer.start()
        except OSError as exc:
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

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Hear, in the observer's thread, that something in a folder has changed."""
        if not isinstance(event, _READS):
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._note, idempotent=True)

    def _note(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        """Wait for a change, and until it has been quiet for a moment."""
        await self._changed.wait()
        while self._changed.is_set():
            self._changed = trio.Event()
            await trio.sleep(_QUIET_SECONDS)
