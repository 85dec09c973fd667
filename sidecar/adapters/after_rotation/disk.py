"""Calls of hooks that block on a file, with the deadline of every disk and an error of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sidecar import disk
from sidecar.core.errors import HookError

T = TypeVar("T")


async def on_disk(call: Callable[[], T], file: str) -> T:
    """Give what a call gives, or raise `HookError` if that takes too long."""
    try:
        return await disk.on_disk(call, file)
    except TimeoutError as exc:
        hint = "does it lie on a mount that hangs?"
        raise HookError(f"{file}: {exc.strerror}", hint) from exc
