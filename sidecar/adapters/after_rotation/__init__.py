"""What is done when new files are in place: a signal, a command, a touch.

Gets one action and does it once; gives a `Done` or raises `HookError`. Knows no retries and no
rotation. Whatever is waited for has a deadline, and what blocks does so in a thread that is left
behind when it hangs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sidecar.adapters.after_rotation.command import run_command
from sidecar.adapters.after_rotation.disk import on_disk
from sidecar.adapters.after_rotation.done import Done
from sidecar.adapters.after_rotation.orphans import CHILDREN
from sidecar.adapters.after_rotation.pid_file import send_signal
from sidecar.adapters.after_rotation.touch import touch
from sidecar.core.after_rotation import Action, CommandAction, SignalAction

__all__ = ["CHILDREN", "Done", "perform"]


async def perform(action: Action, environment: Mapping[str, str], directory: Path | str) -> Done:
    """Do one action; `environment` is added to a command's, relative paths begin in `directory`."""
    folder = Path(directory)
    if isinstance(action, SignalAction):
        return await send_signal(action, folder)
    if isinstance(action, CommandAction):
        return await run_command(action, environment, folder)
    path = folder / action.path
    return await on_disk(partial(touch, path), str(path))
