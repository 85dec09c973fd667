"""Processes beside the one that publishes: publishers, readers, a watcher of modes and owners.

`python -m tests.adapters.file_processes ROLE DIRECTORY OPTIONS`, options in JSON. A reader or
watcher looks in a tight loop, and tells what it saw so far for each line of its standard input. The
publisher forks a child for each line, because a fresh interpreter would take longer than all that
is tested. `as_user` does one thing as another account.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import select
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates

from sidecar.adapters.cert_files import CertFiles
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan, PlannedFile
from sidecar.core.svid import X509Svid
from tests.ca import Authority
from tests.plans import LAYOUTS, plan

ME = "tests.adapters.file_processes"
JWT = "vault.jwt"
# What is not in place yet.
NEW_FILE = ".new-file"
Saw = Counter[str]


def _start(role: str, directory: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", ME, role, str(directory), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


class Observer:
    """The handle of a reader or watcher; `saw` is as of the last time that it was asked."""

    def __init__(self, role: str, directory: Path, **options: Any) -> None:
        self.saw: Saw = Counter()
        self._process = _start(role, directory, **options)
        self._stdin, self._stdout = _pipes(self._process)
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


class MortalPublisher:
    """Publishers that can be killed: each is a process of its own and publishes without pause."""

    def __init__(self, directory: Path, layout: str = "spiffe-helper") -> None:
        self._process = _start("publish", directory, layout=layout)
        self._stdin, self._stdout = _pipes(self._process)

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


def as_user(user: str | None, action: str, directory: Path, **options: Any) -> dict[str, Any]:
    """Do one thing in a process of its own, as another account if one is named."""
    process = _start(action, directory, user=user, **options)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    answer = json.loads(output)
    assert isinstance(answer, dict)
    return answer


@contextmanager
def holding(user: str | None, directory: Path) -> Iterator[None]:
    """Have another process lock a directory all the while, as another account if one is named."""
    process = _start("hold", directory, user=user)
    assert _pipes(process)[1].readline() == "held\n"
    try:
        yield
    finally:
        process.communicate(timeout=20)


def plans(count: int, layout: str = "spiffe-helper") -> list[FilePlan]:
    """Plans that differ, of a trust domain with an intermediate, and a federated one beside it."""
    authority, partner = Authority("example.org"), Authority("partner.example")
    middle = authority.intermediate()
    found = []
    for _ in range(count):
        issued = middle.sign(authority.leaf(), middle)
        svid = X509Svid(authority.svid().spiffe_id, issued.chain, issued.key)
        found.append(plan(authority, partner, svid=svid, **LAYOUTS[layout]))
    return found


def token(number: int, mode: int = 0o640) -> PlannedFile:
    """A JWT-SVID, as far as a disk is concerned: it is whole if it ends as it begins."""
    mark = b"%06d" % (number % 1_000_000)
    return PlannedFile(JWT, mode, mark + b"." * 4096 + mark)


def token_is_whole(content: bytes) -> bool:
    return len(content) == 4108 and content[:6] == content[-6:]


def pair_matches(certificate: bytes, key: bytes) -> bool:
    """Tell whether both are whole and belong together."""
    try:
        leaf = load_pem_x509_certificate(certificate)
        return load_pem_private_key(key, None).public_key() == leaf.public_key()
    except ValueError:
        return False


def generation(directory: Path) -> dict[str, bytes]:
    """Open `current` once, and every file below it: what a careful reader does."""
    folder = os.open(directory / "current", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {name: _read(name, folder) for name in os.listdir(folder)}
    finally:
        os.close(folder)


def generation_is_whole(directory: Path, names: dict[str, str]) -> bool:
    """Tell whether all of the current generation can be read and belongs together."""
    files = generation(directory)
    key = files[names["private_key"]]
    pairs = [files[names[one]] for one in ("certificate", "combined") if one in names]
    bundles = [pem for pem in files.values() if b"PRIVATE" not in pem]
    return all(pair_matches(pem, key) for pem in pairs) and all(map(_is_whole, bundles))


def _read(name: str, folder: int) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as stream:
        return stream.read()


def _is_whole(pem: bytes) -> bool:
    try:
        return bool(load_pem_x509_certificates(pem)) and pem.endswith(b"-----\n")
    except ValueError:
        return False


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
        elif key != "private_key":
            saw["whole" if _is_whole(content) else "torn"] += 1


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


def _publish(directory: Path, options: dict[str, Any]) -> None:
    some = plans(5, options["layout"])
    # Not by iterating: that reads ahead, and the children share what was read.
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            os.write(1, b"%d\n" % os.getpid())
            _publish_for_ever(CertFiles(directory), some)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _publish_for_ever(files: CertFiles, some: list[FilePlan]) -> None:
    number = 0
    while True:
        files.publish(some[number % len(some)])
        files.replace(token(number))
        number += 1


def _once(act: Callable[..., dict[str, Any]], directory: Path, options: dict[str, Any]) -> None:
    """Do one thing as the account that is named; all that it needs is loaded before."""
    _become(options.pop("user"))
    print(json.dumps(act(directory, **options)), flush=True)


def _become(user: str | None) -> None:
    if user is not None:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def _hold(directory: Path, options: dict[str, Any]) -> None:
    _become(options["user"])
    handle = os.open(directory, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()


def _publish_once(
    directory: Path, owner: str | None = None, group: str | None = None
) -> dict[str, Any]:
    files, (planned,) = CertFiles(directory, owner, group), plans(1)
    try:
        return {"name": files.publish(planned)}
    except CertFilesError as exc:
        return {"message": exc.message, "hint": exc.hint}


def _read_once(directory: Path, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = len((directory / name).read_bytes())
        except OSError as exc:
            found[name] = errno.errorcode[exc.errno or 0]
    return found


ROLES: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "read": partial(_look, _read_current),
    "read-plain": partial(_look, _read_plain),
    "watch": partial(_look, _watch),
    "publish": _publish,
    "hold": _hold,
    "publish-once": partial(_once, _publish_once),
    "read-once": partial(_once, _read_once),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
