"""What is on the disk: published files, generations, modes, and everything that a write changes."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from sidecar.core.file_plan import FilePlan
from tests.adapters.file_processes import generation, generation_is_whole
from tests.plans import content


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def links(directory: Path) -> dict[str, bytes]:
    """What the plain paths of ours lead to."""
    return {
        entry.name: Path(entry.path).read_bytes()
        for entry in os.scandir(directory)
        if entry.is_symlink() and os.readlink(entry.path) == f"current/{entry.name}"
    }


def generations(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if name.startswith("generation-")}


def shown(directory: Path) -> set[str]:
    """All that is not hidden; a lock may be."""
    return {name for name in os.listdir(directory) if not name.startswith(".")}


def make_old(directory: Path, *names: str) -> None:
    """As if an hour had passed since these were written."""
    hour_ago = time.time() - 3600
    for name in names or generations(directory):
        os.utime(directory / name, (hour_ago, hour_ago))


def snapshot(directory: Path) -> dict[str, tuple[int, int, int, int]]:
    """Everything below the directory, with what any write to it would change."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
    return found


def assert_generation(directory: Path, plan: FilePlan) -> None:
    """What `current` leads to is the plan, whole, and nothing else."""
    same = generation(directory) == content(plan)
    assert same, "another generation than the one that was published"  # no keys on the screen
    assert generation_is_whole(directory, plan.names)


def assert_published(directory: Path, plan: FilePlan) -> None:
    """The same, and all plain paths lead there; no other link of ours does."""
    assert_generation(directory, plan)
    assert sorted(links(directory)) == sorted(content(plan))
    same = links(directory) == content(plan)
    assert same, "other files than those that were published"
