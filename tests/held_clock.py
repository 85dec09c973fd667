"""A clock that stands still until a test lets time pass, also where threads are at work.

trio's own helpers do not wait for threads; here time passes in steps, and after each one whoever
woke up has done what it was about to do.
"""

from __future__ import annotations

import time

import trio
import trio.testing
from trio.testing import MockClock

from sidecar import disk

STEP = 0.05
_HELD_UP_SECONDS = 0.5
_held_up: set[str] = set()


async def pass_time(seconds: float, step: float = STEP) -> None:
    """Let time pass by the mock clock of this run."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    await rest()
    for _ in range(round(seconds / step)):
        clock.jump(step)
        await rest()


async def rest() -> None:
    """Wait until all sleep: no task can run, and no thread is at work for one.

    A thread that a test holds up, or an earlier one has left behind, is not waited for twice.
    """
    threads = trio.to_thread.current_default_thread_limiter()
    given_up = time.monotonic() + _HELD_UP_SECONDS
    while True:
        await trio.testing.wait_all_tasks_blocked(0.001)
        at_work = {what for what, turn in disk.TURNS.items() if turn.borrowed_tokens}
        _held_up.intersection_update(at_work)
        if time.monotonic() > given_up:
            _held_up.update(at_work)
        if not threads.borrowed_tokens and at_work <= _held_up:
            return
