"""Memory of another process, as `ps` tells it on Linux and macOS alike."""

from __future__ import annotations

import subprocess


def resident_mib(pid: int) -> float:
    """The resident memory of a process in MiB."""
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout) / 1024
