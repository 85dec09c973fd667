"""What writes the files of an identity: every way in which people and tools replace them.

A `Writer` keeps one identity in a folder and replaces it by another one, in its own way. As a
process, `python -m tests.identity_writers replace FOLDER COUNT SEED`, it does so by ways chosen at
random, prints the serial number of the last identity, and ends.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.identity_files import IdentityPaths
from sidecar.core.file_plan import file_plan
from sidecar.core.files_config import CertFilesTable
from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid
from sidecar.core.toml_tables import FilePath
from tests.ca import Authority

CERTIFICATE, KEY, BUNDLE = "tls.crt", "tls.key", "ca.crt"
NAMES = (CERTIFICATE, KEY, BUNDLE)


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


@dataclass(frozen=True)
class Contents:
    """What is in the files of one identity."""

    svid: X509Svid
    bundle: TrustBundle

    @classmethod
    def new(cls, authority: Authority, **changes: Any) -> Contents:
        """An identity of its own; `changes` as `Authority.svid` takes them."""
        return cls(authority.svid(**changes), authority.bundle)

    @property
    def serial(self) -> str:
        return self.svid.serial

    def of(self, name: str) -> bytes:
        """What is in the file of that name."""
        if name == CERTIFICATE:
            return pem(*self.svid.chain)
        if name == KEY:
            key = self.svid.private_key
            return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem(*self.bundle.authorities)


def paths_in(folder: Path, federated: dict[TrustDomain, Path] | None = None) -> IdentityPaths:
    """The paths of an identity in a folder."""
    return IdentityPaths(folder / CERTIFICATE, folder / KEY, folder / BUNDLE, federated or {})


# Ways to put one file in place.


def rename_over(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.rename(path)


def write_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_in_pieces(path: Path, content: bytes) -> None:
    """Two pieces, the second of which begins in the middle of the last PEM block."""
    with path.open("wb", buffering=0) as file:
        middle = (content.rindex(b"-----BEGIN") + len(content)) // 2
        file.write(content[:middle])
        os.fsync(file.fileno())
        file.write(content[middle:])


def unlink_and_write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def rename_away_and_write(path: Path, content: bytes) -> None:
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.bak"))
    path.write_bytes(content)


def relink(link: Path, target: str | Path) -> None:
    """Put a link in place of another one, or of a file."""
    new = link.with_name(f".{link.name}.new-link")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.rename(link)


def link_to_elsewhere(path: Path, content: bytes) -> None:
    """A link to a new file in another folder."""
    elsewhere = path.parent.parent / f"elsewhere-{path.parent.name}"
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / f"{path.name}-{time.monotonic_ns()}"
    target.write_bytes(content)
    relink(path, target)


def hard_link(path: Path, content: bytes) -> None:
    other = path.with_name(f".{path.name}.other")
    other.unlink(missing_ok=True)
    other.write_bytes(content)
    path.unlink(missing_ok=True)
    os.link(other, path)


PutFile = Callable[[Path, bytes], None]
WAYS: tuple[PutFile, ...] = (
    rename_over,
    write_in_place,
    write_in_pieces,
    unlink_and_write,
    rename_away_and_write,
    link_to_elsewhere,
    hard_link,
)


# Writers.


class Writer:
    """Keeps an identity below `folder`; `place` is where its readers look."""

    def __init__(self, folder: Path) -> None:
        self.place = folder

    def put(self, contents: Contents) -> None:
        """Put an identity in place of the one of before."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is held."""

    @property
    def paths(self) -> IdentityPaths:
        return paths_in(self.place)


class OneByOne(Writer):
    """One file after the other, in some order."""

    def __init__(self, folder: Path, way: PutFile, order: tuple[str, ...] = NAMES) -> None:
        super().__init__(folder)
        self._way, self._order = way, order

    def put(self, contents: Contents) -> None:
        self.place.mkdir(exist_ok=True)
        for name in self._order:
            self._way(self.place / name, contents.of(name))


class Kubernetes(Writer):
    """As the kubelet writes a volume: names lead through the link `..data`, which is switched."""

    def put(self, contents: Contents) -> None:
        self.place.mkdir(exist_ok=True)
        data = self.place / "..data"
        before = os.readlink(data) if data.is_symlink() else None
        fresh = self.place / f"..2026_11_21.{time.monotonic_ns()}"
        fresh.mkdir()
        for name in NAMES:
            (fresh / name).write_bytes(contents.of(name))
        relink(data, fresh.name)
        for name in NAMES:
            path = self.place / name
            if not path.is_symlink() or os.readlink(path) != f"..data/{name}":
                relink(path, f"..data/{name}")
        if before:
            shutil.rmtree(self.place / before)


class Generations(Writer):
    """Our own certificate files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files = CertFiles(folder)
        self._table = CertFilesTable(directory=FilePath(folder), layout="kubernetes")

    def put(self, contents: Contents) -> None:
        bundles = {contents.bundle.trust_domain: contents.bundle}
        self._files.publish(file_plan(contents.svid, bundles, self._table, datetime.now(UTC)))

    def close(self) -> None:
        self._files.close()


class SwitchedFolder(Writer):
    """A link to a folder for each identity; readers look through the link."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "current")
        self._folder = folder

    def put(self, contents: Contents) -> None:
        self._folder.mkdir(exist_ok=True)
        fresh = self._folder / f"release-{time.monotonic_ns()}"
        OneByOne(fresh, write_in_place).put(contents)
        relink(self.place, fresh.name)


class ReplacedFolder(Writer):
    """The whole folder makes way for another one."""

    def put(self, contents: Contents) -> None:
        fresh, old = self.place.with_name("fresh"), self.place.with_name("old")
        OneByOne(fresh, write_in_place).put(contents)
        with suppress(FileNotFoundError):
            self.place.rename(old)
        fresh.rename(self.place)
        shutil.rmtree(old, ignore_errors=True)


class Chain(Writer):
    """Links to links to files; the one in the middle is switched."""

    def put(self, contents: Contents) -> None:
        middle, files = self.place.with_name("middle"), self.place.with_name("files")
        for folder in (self.place, middle, files):
            folder.mkdir(exist_ok=True)
        for name in NAMES:
            target = files / f"{name}-{contents.serial}"
            target.write_bytes(contents.of(name))
            relink(middle / name, f"../files/{target.name}")
            if not (self.place / name).is_symlink():
                (self.place / name).symlink_to(middle / name)


class AnyWay(Writer):
    """Each time by another way."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        super().__init__(folder)
        self._chance = chance
        self._volume, self._generations = Kubernetes(folder), Generations(folder)

    def put(self, contents: Contents) -> None:
        order = self._chance.sample(NAMES, len(NAMES))
        one_by_one = (OneByOne(self.place, way, tuple(order)) for way in WAYS)
        self._chance.choice((*one_by_one, self._volume, self._generations)).put(contents)

    def close(self) -> None:
        self._generations.close()


# As a process.

CERTIFICATES = 40


def start(folder: Path, count: int, seed: int) -> subprocess.Popen[str]:
    """Have a process replace the identity in a folder so many times, at random."""
    return _start("replace", folder, count, seed)


@contextmanager
def flipping(path: Path) -> Iterator[None]:
    """Have a process make a link of a file and a file of the link, again and again."""
    process = _start("flip", path)
    assert process.stdout is not None
    assert process.stdout.readline() == "flipping\n"
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.identity_writers", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def some_contents(chance: random.Random) -> Iterator[Contents]:
    """Identities, the last of which nobody has seen before; bundles of two authorities."""
    authority, other = Authority("example.org"), Authority("example.org")
    both = TrustBundle(authority.trust_domain, (authority.certificate, other.certificate))
    some = [Contents(authority.svid(), both) for _ in range(CERTIFICATES)]
    while True:
        yield chance.choice(some)
        some[chance.randrange(CERTIFICATES)] = Contents(authority.svid(), both)


def _replace(folder: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    writer = AnyWay(folder, chance)
    contents = some_contents(chance)
    for _ in range(count):
        writer.put(next(contents))
        time.sleep(chance.choice((0, 0, 0.001, 0.01)))  # the pace of writers, at random
    authority = Authority("example.org")
    last = Contents.new(authority)
    writer.put(last)
    print(last.serial)


def _flip(path: Path) -> None:
    link, file = path.with_name("link"), path.with_name("file")
    content = path.read_bytes()
    target = path.with_name("target")
    target.write_bytes(content)
    print("flipping", flush=True)
    while True:
        link.symlink_to(target)
        link.rename(path)
        file.write_bytes(content)
        file.rename(path)
        time.sleep(0.001)  # time to read it


if __name__ == "__main__":
    role, place, *numbers = sys.argv[1:]
    if role == "flip":
        _flip(Path(place))
    _replace(Path(place), int(numbers[0]), int(numbers[1]))
