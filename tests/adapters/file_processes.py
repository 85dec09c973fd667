"""Processes beside the one that publishes: another publisher, readers, a watcher of modes.

`python -m tests.adapters.file_processes ROLE DIRECTORY`. A reader or watcher looks in a tight
loop until its standard input ends, then prints what it saw as JSON. The publisher forks a child
for each line, because a fresh interpreter would take longer than all that is tested.
"""

from __future__ import annotations

import json
import os
import select
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from sidecar.adapters.cert_files import CertFiles
from sidecar.core.file_plan import FileModes, FileNames, FilePlan, file_plan
from tests.ca import Authority

ME = "tests.adapters.file_processes"


class Observer:
    """The handle of a reader or watcher; `saw` is filled at the end."""

    def __init__(self, role: str, directory: Path) -> None:
        self.saw: dict[str, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", ME, role, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "looking\n"

    def stop(self) -> None:
        output, _ = self._process.communicate(timeout=20)
        self.saw = json.loads(output)


@contextmanager
def observing(role: str, directory: Path) -> Iterator[Observer]:
    """Have another process look at the directory all the while."""
    observer = Observer(role, directory)
    try:
        yield observer
    finally:
        observer.stop()


class MortalPublisher:
    """Publishers that can be killed: each is a process of its own and publishes without pause."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", ME, "publish", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout

    def start(self) -> int:
        """Start one; give its process number once it runs."""
        self._stdin.write("\n")
        self._stdin.flush()
        return int(self._stdout.readline())

    def wait(self) -> int:
        """Wait until the last one has died; give the signal that killed it."""
        return int(self._stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=20)


def plans(count: int) -> list[FilePlan]:
    """Plans that differ, of one trust domain."""
    authority = Authority("example.org")
    return [
        file_plan(authority.svid(), authority.bundle, FileNames(), FileModes())
        for _ in range(count)
    ]


def pair_matches(certificate: bytes, key: bytes) -> bool:
    """Tell whether both are whole and belong together."""
    try:
        leaf = load_pem_x509_certificate(certificate)
        return load_pem_private_key(key, None).public_key() == leaf.public_key()
    except ValueError:
        return False


def read_generation(directory: Path) -> tuple[bytes, bytes]:
    """Open `current` once, and both files below it: what a careful reader does."""
    folder = os.open(directory / "current", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _read("svid.pem", folder), _read("svid_key.pem", folder)
    finally:
        os.close(folder)


def _read(name: str, folder: int) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as stream:
        return stream.read()


def _read_current(directory: Path, saw: Counter[str]) -> None:
    try:
        certificate, key = read_generation(directory)
    except OSError:
        saw["unreadable"] += 1
        return
    saw["match" if pair_matches(certificate, key) else "mismatch"] += 1


def _read_plain(directory: Path, saw: Counter[str]) -> None:
    try:
        certificate = (directory / "svid.pem").read_bytes()
        key = (directory / "svid_key.pem").read_bytes()
    except OSError:
        saw["unreadable"] += 1
        return
    saw["match" if pair_matches(certificate, key) else "mismatch"] += 1


def _watch_keys(directory: Path, saw: Counter[str]) -> None:
    """Look at the key of every generation, and closely at the one that is being staged."""
    names = [name for name in os.listdir(directory) if name.startswith("generation-")]
    newest = max(int(name.removeprefix("generation-")) for name in names)
    names += [f"generation-{newest}", f"generation-{newest + 1}"] * 50
    for name in names:
        try:
            status = os.stat(directory / name / "svid_key.pem")
        except FileNotFoundError:
            continue
        saw["keys"] += 1
        saw["empty"] += status.st_size == 0
        saw["wide"] += bool(stat.S_IMODE(status.st_mode) & 0o077)


def _look(look: Callable[[Path, Counter[str]], None], directory: Path) -> None:
    saw: Counter[str] = Counter()
    print("looking", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        look(directory, saw)
    print(json.dumps(saw))


def _publish(directory: Path) -> None:
    files, some = CertFiles(directory), plans(5)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.write(1, b"%d\n" % os.getpid())
            number = 0
            while True:
                files.publish(some[number % len(some)])
                number += 1
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


ROLES = {
    "read": lambda directory: _look(_read_current, directory),
    "read-plain": lambda directory: _look(_read_plain, directory),
    "watch": lambda directory: _look(_watch_keys, directory),
    "publish": _publish,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]))
