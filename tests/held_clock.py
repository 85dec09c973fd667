"""A clock that stands still until a test lets time pass, also where threads are at work.

trio's own helpers do not wait for threads; here time passes in steps, and after each one whoever
woke up has done what it was about to do.
"""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import MockClock

STEP = 0.05


async def pass_time(seconds: float, step: float = STEP) -> None:
    """Let time pass by the mock clock of this run."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    await rest()
    for _ in range(round(seconds / step)):
        clock.jump(step)
        await rest()


async def rest() -> None:
    """Wait until all sleep: no task can run, and no thread is at work for one."""
    threads = trio.to_thread.current_default_thread_limiter()
    while True:
        await trio.testing.wait_all_tasks_blocked(0.001)
        if threads.borrowed_tokens == 0:
            return
