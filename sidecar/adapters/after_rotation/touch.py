"""Sets the times of a file to now, for a program that watches it. Blocks."""

from __future__ import annotations

import os
from pathlib import Path

from sidecar.adapters.after_rotation.done import Done
from sidecar.core.errors import HookError


def touch(path: Path) -> Done:
    """Set both times of a file that exists."""
    try:
        os.utime(path)
    except FileNotFoundError as exc:
        hint = "a touch never makes a file: make it first, or correct the path"
        raise HookError(f"{path}: no such file", hint) from exc
    except PermissionError as exc:
        hint = f"uid {os.geteuid()} needs to own the file or to be allowed to write to it"
        raise HookError(f"{path}: {exc.strerror}", hint) from exc
    except OSError as exc:
        raise HookError(f"{path}: {exc.strerror}", "is this the file that was meant?") from exc
    return Done("touched")
