"""Deadlines against hanging, and waiting for a condition; nothing here measures time."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")


def within(
    seconds: float,
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, Awaitable[None]]]:
    """Fail an async test that is not done after so many seconds."""

    def decorate(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
        @functools.wraps(test)
        async def bounded(*args: P.args, **kwargs: P.kwargs) -> None:
            with trio.fail_after(seconds):
                await test(*args, **kwargs)

        return bounded

    return decorate


async def until(condition: Callable[[], bool], what: str = "", seconds: float = 20) -> None:
    """Wait for what has no event to wait for: a file, a process, a thread.

    Looked at with the real clock: a test may hold trio's.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await trio.to_thread.run_sync(time.sleep, 0.005)
