"""The disk: stage one generation of certificate files, prove it, publish it.

    directory/
      svid.pem -> current/svid.pem            stable paths for programs that know no generations
      svid_key.pem -> current/svid_key.pem
      svid_bundle.pem -> current/svid_bundle.pem
      current -> generation-<n>               one rename of this link publishes a generation
      generation-<n>/                         written whole, synced, then never changed

Gets a `FilePlan`, raises `CertFilesError`; whatever fails, the published generation stays. Two
files can never be opened in one step, so a reader that must not see a key of one generation with
a certificate of the next opens `current` once and both files below it. Earlier generations
are kept for such readers. Blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan, PlannedFile

CURRENT = "current"
DIRECTORY_MODE = 0o755
STAGING_MODE = 0o700
# A late reader has this long to open the files of a generation that it found current, besides
# the previous generation, which stays until there is a newer one.
LATE_READER_SECONDS = 10.0

_GENERATION = re.compile(r"generation-([0-9]{1,9})")
_NEW_LINK = ".new-link"


class CertFiles:
    """The certificate files below one directory; one caller at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def publish(self, plan: FilePlan) -> str | None:
        """Make `plan` the current generation; give its name, or None if it already is."""
        try:
            self._prepare()
            current = self._current()
            self._remove_others(current)
            if current is not None and self._holds(current, plan):
                self._link_names(plan)
                return None
            return self._publish(plan, retired=current)
        except OSError as exc:
            path = exc.filename or str(self._directory)
            raise CertFilesError(
                f"certificate files not written: {path}: {exc.strerror or exc}",
                "the generation published before stays; is the disk full, who owns the folder?",
            ) from exc

    def _publish(self, plan: FilePlan, retired: str | None) -> str:
        """Stage, prove and publish; whatever fails leaves nothing of it behind."""
        name = self._stage(plan)
        try:
            self._replace_link(CURRENT, name)
        except BaseException:
            if self._current() != name:  # a failed sync comes after the rename
                shutil.rmtree(self._directory / name, ignore_errors=True)
            raise
        if retired is not None and (self._directory / retired).exists():
            # From now on its age counts for late readers.
            os.utime(self._directory / retired)
        self._link_names(plan)
        self._remove_others(name)
        return name

    def _prepare(self) -> None:
        """Make the directory, and refuse one in which somebody else could replace our files."""
        for folder in reversed([self._directory, *self._directory.parents]):
            if not folder.exists():
                folder.mkdir(mode=DIRECTORY_MODE)
        status = self._directory.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            raise CertFilesError(
                f"{self._directory} belongs to uid {status.st_uid} with mode {mode:04o}, "
                f"expected a folder of uid {os.geteuid()} that others cannot write to",
                f"chown and chmod go-w {self._directory}",
            )

    def _current(self) -> str | None:
        """Give the name of the published generation."""
        try:
            name = os.readlink(self._directory / CURRENT)
        except FileNotFoundError:
            return None
        return name if _GENERATION.fullmatch(name) else None

    def _holds(self, generation: str, plan: FilePlan) -> bool:
        """Tell whether a generation is exactly what is planned, modes included."""
        return all(
            _is_as_planned(self._directory / generation / file.name, file) for file in plan.files
        )

    def _stage(self, plan: FilePlan) -> str:
        """Write a new generation whole and prove it; nothing points to it yet."""
        name = self._next_name()
        folder = self._directory / name
        folder.mkdir(mode=STAGING_MODE)
        try:
            for file in plan.files:
                _write(folder / file.name, file)
            folder.chmod(_generation_mode(plan))
            _sync(folder)
            _prove_pair(folder / plan.certificate, folder / plan.private_key)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return name

    def _next_name(self) -> str:
        """Give a name after all that are there."""
        return f"generation-{max((number for number, _ in self._generations()), default=0) + 1}"

    def _generations(self) -> list[tuple[int, str]]:
        matches = map(_GENERATION.fullmatch, os.listdir(self._directory))
        return sorted((int(match[1]), match[0]) for match in matches if match)

    def _link_names(self, plan: FilePlan) -> None:
        """Keep the plain paths; a regular file of an earlier helper gives way to a link."""
        for file in plan.files:
            target = f"{CURRENT}/{file.name}"
            path = self._directory / file.name
            if not (path.is_symlink() and os.readlink(path) == target):
                self._replace_link(file.name, target)

    def _replace_link(self, name: str, target: str) -> None:
        """Point the link `name` to `target` in one step, and make it last."""
        new = self._directory / _NEW_LINK
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.rename(self._directory / name)
        _sync(self._directory)

    def _remove_others(self, current: str | None) -> None:
        """Remove what a crash left behind, and generations that no reader still looks for.

        What cannot be removed is no reason not to publish; the next publication tries again.
        """
        names = [name for _, name in self._generations()]
        at = names.index(current) if current in names else -1
        oldest = time.time() - LATE_READER_SECONDS
        # After the current one: staged by a process that did not live to publish it.
        gone = names[at + 1 :]
        gone += [
            name
            for name in names[: max(at - 1, 0)]
            if (self._directory / name).lstat().st_mtime < oldest
        ]
        for name in gone:
            shutil.rmtree(self._directory / name, ignore_errors=True)


def _generation_mode(plan: FilePlan) -> int:
    """Let those look into a generation who may read one of its files; the key has its own mode."""
    readable = 0
    for file in plan.files:
        readable |= file.mode & 0o044
    return STAGING_MODE | readable | readable >> 2


def _write(path: Path, file: PlannedFile) -> None:
    """Write one file; it has its final mode before it has content, whatever the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    with open(handle, "wb") as stream:
        os.fchmod(handle, file.mode)
        stream.write(file.content)
        stream.flush()
        sync_to_disk(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_to_disk(handle)
    finally:
        os.close(handle)


def sync_to_disk(
    handle: int, names: object = fcntl, fsync: Callable[[int], None] = os.fsync
) -> None:
    """Make writes last: macOS leaves them in the drive's cache unless asked by F_FULLFSYNC."""
    full = getattr(names, "F_FULLFSYNC", None)
    if full is None:
        fsync(handle)
        return
    try:
        fcntl.fcntl(handle, full)
    except OSError:
        fsync(handle)  # a file system without it, such as a network mount


def _prove_pair(certificate: Path, private_key: Path) -> None:
    """Load what was written, as its readers will."""
    try:
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        key = load_pem_private_key(private_key.read_bytes(), None)
        matches = key.public_key() == leaf.public_key()
    except ValueError as exc:
        raise CertFilesError(f"{certificate.parent}: what was written cannot be read back") from exc
    if not matches:
        raise CertFilesError(f"{certificate.parent}: key and certificate do not belong together")


def _is_as_planned(path: Path, file: PlannedFile) -> bool:
    try:
        same_mode = stat.S_IMODE(path.lstat().st_mode) == file.mode
        return same_mode and path.read_bytes() == file.content
    except OSError:
        return False
