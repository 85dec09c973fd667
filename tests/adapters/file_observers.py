"""Processes that look at certificate files all the while: readers, a watcher of modes and owners.

`python -m tests.adapters.file_observers ROLE DIRECTORY OPTIONS`, options in JSON. It looks in a
tight loop, and tells what it saw so far for each line of its standard input.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.adapters.file_processes import generation_is_whole, is_whole, pair_matches, pipes, start
from tests.plans import JWT, token_is_whole

ME = "tests.adapters.file_observers"
# What is not in place yet.
NEW_FILE = ".new-file"
Saw = Counter[str]


class Observer:
    """The handle of a reader or watcher; `saw` is as of the last time that it was asked."""

    def __init__(self, role: str, directory: Path, **options: Any) -> None:
        self.saw: Saw = Counter()
        self._process = start(ME, role, directory, **options)
        self._stdin, self._stdout = pipes(self._process)
        assert self._stdout.readline() == "looking\n"

    def ask(self) -> Saw:
        self._stdin.write("\n")
        self._stdin.flush()
        self.saw = Counter(json.loads(self._stdout.readline()))
        return self.saw

    def stop(self) -> None:
        """Look once more, and end."""
        try:
            self.ask()
        finally:
            self._process.communicate(timeout=20)


@contextmanager
def observing(role: str, directory: Path, **options: Any) -> Iterator[Observer]:
    """Have another process look at the directory all the while."""
    observer = Observer(role, directory, **options)
    try:
        yield observer
    finally:
        observer.stop()


def keep_on(step: Callable[[int], object], rounds: int, *seen: Callable[[], bool]) -> None:
    """Do `step` so many times, and on until all is seen that has to be; guarded against hanging."""
    end = time.monotonic() + 120
    number = 0
    while number < rounds or not all(one() for one in seen):
        for _ in range(20):
            step(number)
            number += 1
        assert time.monotonic() < end, f"not seen in {number} rounds"


# What the processes do.


def _read_current(directory: Path, names: dict[str, str], saw: Saw) -> None:
    try:
        saw["match" if generation_is_whole(directory, names) else "mismatch"] += 1
    except OSError:
        saw["unreadable"] += 1


def _read_plain(directory: Path, names: dict[str, str], saw: Saw) -> None:
    """Read each file by its plain path: two of them need not be a pair, but each is whole."""
    for key, name in names.items():
        try:
            content = (directory / name).read_bytes()
        except OSError:
            saw["unreadable"] += 1
            continue
        if key == "combined":
            saw["match" if pair_matches(content, content) else "mismatch"] += 1
        elif key == "jwt":
            saw["token" if token_is_whole(content) else "torn"] += 1
        else:
            saw["whole" if is_whole(content) else "torn"] += 1


def _watch(
    directory: Path, names: list[str], mode: int, uid: int, gid: int | None, saw: Saw
) -> None:
    """Look at the secrets of every generation, and closely at the one that is being staged."""
    folders = [name for name in os.listdir(directory) if name.startswith("generation-")]
    newest = max((int(name.removeprefix("generation-")) for name in folders), default=0)
    folders += [f"generation-{newest}", f"generation-{newest + 1}"] * 50
    for folder in folders:
        for name in names:
            _look_at(directory / folder / name, mode, uid, gid, saw)
        for name in (JWT, NEW_FILE):
            _look_at(directory / name, mode, uid, gid, saw)


def _look_at(path: Path, mode: int, uid: int, gid: int | None, saw: Saw) -> None:
    """Look twice at one file: what had content the first time is in its final state the second.

    Once would not do: the system reads the fields of a file one after the other.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    first, second = os.fstat(handle), os.fstat(handle)
    os.close(handle)
    seen = "tokens" if path.name in (JWT, NEW_FILE) else "keys"
    saw[seen] += 1
    saw[f"empty {seen}"] += first.st_size == 0
    for status in (first, second):
        given = status.st_uid == uid and gid in (None, status.st_gid)
        bits = stat.S_IMODE(status.st_mode)
        saw["wide"] += bool(bits & 0o077 & ~mode) or (bool(bits & 0o077) and not given)
        saw["strange owner"] += status.st_uid not in (uid, os.geteuid())
    done = stat.S_IMODE(second.st_mode) == mode and given
    saw["late"] += first.st_size > 0 and not done


def _look(look: Callable[..., None], directory: Path, options: dict[str, Any]) -> None:
    saw: Saw = Counter()
    print("looking", flush=True)
    while True:
        look(directory, **options, saw=saw)
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps(saw), flush=True)


LOOKS: dict[str, Callable[..., None]] = {
    "read": _read_current,
    "read-plain": _read_plain,
    "watch": _watch,
}

if __name__ == "__main__":
    _look(LOOKS[sys.argv[1]], Path(sys.argv[2]), json.loads(sys.argv[3]))
