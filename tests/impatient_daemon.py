"""The real daemon, which waits for a disk for a second instead of ten, so that tests need not."""

from __future__ import annotations

import sys
from pathlib import Path

from sidecar import reading
from sidecar.cli import main


def interpreter(folder: Path) -> str:
    """Make what a `Daemon` is started with instead of Python; it leaves out `-m sidecar`."""
    program = folder / "impatient"
    program.write_text(
        f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -m tests.impatient_daemon "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


if __name__ == "__main__":
    reading.PATIENCE_SECONDS = 1.0
    main(prog_name="spiffe-sidecar")
