"""Children that are not ours: what a command leaves running becomes ours when we are process 1.

In a container without an init, an orphan that ends stays a zombie until process 1 takes note of it,
and in time there are no process numbers left. A command of ours must not be taken note of here: its
exit status would be lost to who waits for it. So commands are registered, and while one is
being started, when its number is not known yet, nothing is reaped. All of this is in trio's thread.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio


class Children:
    """The children of this process that somebody waits for."""

    def __init__(self) -> None:
        self._starting = 0
        self._awaited: set[int] = set()
        self._news = trio.Event()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Reap nothing meanwhile; register the child with `add` before the end."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._news.set()

    def add(self, pid: int) -> None:
        """Leave a child to who waits for it."""
        self._awaited.add(pid)

    def forget(self, pid: int) -> None:
        """Whoever waited for it has its status, or does not wait any more."""
        self._awaited.discard(pid)
        self._news.set()

    async def reap_orphans(self) -> None:
        """Take note of each other child that ends, for ever."""
        with trio.open_signal_receiver(signal.SIGCHLD) as ended:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, ended)
                while True:
                    self._news = trio.Event()
                    self._reap()
                    await self._news.wait()

    async def _tell(self, ended: AsyncIterator[int]) -> None:
        async for _ in ended:
            self._news.set()

    def _reap(self) -> None:
        while not self._starting:
            try:
                # Only looked at: whether it is ours to reap shows by its number.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # One that is awaited hides those behind it until it is forgotten, in a moment.
            if found is None or found.si_pid in self._awaited:
                return
            os.waitpid(found.si_pid, os.WNOHANG)


CHILDREN = Children()
