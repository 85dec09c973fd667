"""Several calls at the same time, each with a result of its own type."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Pending(Generic[T]):
    """The result of a call that was begun in a nursery."""

    def __init__(self, nursery: trio.Nursery, call: Awaitable[T]) -> None:
        self._values: list[T] = []
        self._done = trio.Event()
        nursery.start_soon(self._finish, call)

    async def _finish(self, call: Awaitable[T]) -> None:
        self._values.append(await call)
        self._done.set()

    async def wait(self) -> T:
        """Wait for the result."""
        await self._done.wait()
        return self._values[0]

    @property
    def value(self) -> T:
        """Give the result; for after the nursery's end."""
        return self._values[0]
