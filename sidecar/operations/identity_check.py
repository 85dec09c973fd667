"""`check`, of [identity_files]: whether there is an identity to serve with, in these files, now.

`run` does not ask: what writes the files may be started after it, and `run` waits. Who runs `check`
wants to hear of a file that cannot be read or used before that.
"""

from __future__ import annotations

from pathlib import Path

from sidecar.adapters.identity_files import IdentityPaths, look_once
from sidecar.core.checked import Checked
from sidecar.core.identity_event import Updated
from sidecar.core.toml_tables import Problem, ProblemsError


def identity_warnings(checked: Checked) -> list[str]:
    """Return what is missing, or raise `ProblemsError` for what is there and cannot be used.

    Blocks.
    """
    table = checked.config.identity_files
    if table is None:
        return []
    paths = IdentityPaths.of(table, checked.directory)
    needed = (paths.certificate, paths.private_key, paths.bundle)
    absent = [path for path in needed if _is_absent(path)]
    if absent:
        return [f"[identity_files]: {path}: no such file yet; run waits for it" for path in absent]
    event = look_once(paths)
    if not isinstance(event, Updated):
        file, expected = Path(checked.file).name, "an identity that can be served with"
        raise ProblemsError([Problem(file, "[identity_files]", event.reason, expected)])
    return [f"[identity_files]: {note}" for note in event.update.notes]


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # the reading tells why
    return False
