"""The end of all connections: those that only wait close at once, the others after their answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Drain:
    """Whether the end has begun, and who waits for a request that need not come any more."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: set[trio.CancelScope] = set()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wait inside of this; it is left when the end begins."""
        with trio.CancelScope() as scope:
            if self.begun:
                scope.cancel()
            self._idle.add(scope)
            try:
                yield
            finally:
                self._idle.discard(scope)

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for scope in list(self._idle):
            scope.cancel()
