"""Processes that write certificate files, or do one thing with them as another account.

`python -m tests.adapters.file_processes ROLE DIRECTORY OPTIONS`, options in JSON. The publisher
forks a child for each line of its standard input, because a fresh interpreter would take longer
than all that is tested.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import structlog
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates

from sidecar.adapters.cert_files import CertFiles
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan
from tests.plans import plans, token

ME = "tests.adapters.file_processes"


def start(module: str, role: str, directory: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, role, str(directory), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


class MortalPublisher:
    """Publishers that can be killed: each is a process of its own and publishes without pause."""

    def __init__(self, directory: Path, layout: str = "spiffe-helper") -> None:
        self._process = start(ME, "publish", directory, layout=layout)
        self._stdin, self._stdout = pipes(self._process)

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
    process = start(ME, action, directory, user=user, **options)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    answer = json.loads(output)
    assert isinstance(answer, dict)
    return answer


@contextmanager
def holding(user: str | None, directory: Path) -> Iterator[None]:
    """Have another process lock a directory all the while, as another account if one is named."""
    process = start(ME, "hold", directory, user=user)
    assert pipes(process)[1].readline() == "held\n"
    try:
        yield
    finally:
        process.communicate(timeout=20)


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
    return all(pair_matches(pem, key) for pem in pairs) and all(map(is_whole, files.values()))


def _read(name: str, folder: int) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as stream:
        return stream.read()


def is_whole(pem: bytes) -> bool:
    """Tell whether this is a key or certificates, to the last byte."""
    try:
        load = partial(load_pem_private_key, password=None)
        read = load(pem) if b"PRIVATE" in pem else load_pem_x509_certificates(pem)
        return bool(read) and pem.endswith(b"-----\n")
    except ValueError:
        return False


# What the processes do.


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
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    _become(options.pop("user"))
    print(json.dumps(act(directory, **options)), flush=True)


def _become(user: str | None) -> None:
    if user is not None:
        # Once before as ourselves: what is imported late may lie where the other may not look.
        with tempfile.TemporaryDirectory() as folder:
            CertFiles(Path(folder) / "certs").publish(plans(1)[0])
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
    "publish": _publish,
    "hold": _hold,
    "publish-once": partial(_once, _publish_once),
    "read-once": partial(_once, _read_once),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
