"""Calls that block on a file, which may lie on a mount that hangs.

Each runs in a thread that is left behind when it does not return in time, or when nobody waits
for it any more. One thread for each file at most: further calls wait for the first one, so that
retries do not fill the process with threads that hang.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import trio

from sidecar.core.errors import HookError

T = TypeVar("T")
PATIENCE_SECONDS = 10.0


@cache  # of as many files as the configuration names
def _turn(_file: str) -> trio.CapacityLimiter:
    return trio.CapacityLimiter(1)


async def on_disk(call: Callable[[], T], file: str) -> T:
    """Give what a call gives, or raise `HookError` if that takes too long."""
    with trio.move_on_after(PATIENCE_SECONDS):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=_turn(file))
    raise HookError(
        f"{file}: the disk did not answer within {PATIENCE_SECONDS:g} s",
        "does it lie on a mount that hangs?",
    )
