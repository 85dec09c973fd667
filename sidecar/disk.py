"""How disks are waited for beside the event loop: in threads, for ten seconds.

A thread is left behind when its disk does not answer, one for each file at most: retries wait for
it instead of adding to it. Apart from `reading`, which commands use without an event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from sidecar import reading

T = TypeVar("T")

TURNS: dict[str, trio.CapacityLimiter] = {}  # of as many files as the configuration names


async def on_disk(call: Callable[[], T], what: str) -> T:
    """Return what a call that blocks on a disk returns; `what` is the file or folder it is about.

    Raises `TimeoutError`, an `OSError`, if it does not return in time. The call then goes on in its
    thread, and the next one about the same file waits for that.
    """
    with trio.move_on_after(reading.PATIENCE_SECONDS):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=_turn(what))
    raise reading.no_answer(what)


async def read_text_on_disk(path: Path) -> str:
    """Return what `read_text` does, within the deadline and beside the event loop."""
    return await on_disk(partial(reading.read_text, path), str(path))


async def entered(manager: AbstractContextManager[T], what: str) -> T:
    """Enter a context manager that blocks on a disk, like `on_disk`; the caller exits it.

    One that is left behind, by the deadline or a cancellation, is exited when it gets that far.
    """
    lock, is_entered, is_left = threading.Lock(), False, False

    def enter() -> T:
        nonlocal is_entered
        value = manager.__enter__()
        with lock:
            is_entered = True
            exit_now = is_left
        if exit_now:
            manager.__exit__(None, None, None)
        return value

    try:
        return await on_disk(enter, what)
    except BaseException:
        with lock:
            is_left = True
            exit_now = is_entered
        if exit_now:
            manager.__exit__(None, None, None)
        raise


def _turn(what: str) -> trio.CapacityLimiter:
    return TURNS.setdefault(what, trio.CapacityLimiter(1))
