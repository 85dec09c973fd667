"""Generations of certificate files: stage one, prove it, publish it; single files beside them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sidecar.adapters.cert_files.directory import HeldDirectory
from sidecar.adapters.cert_files.file import Owner, is_as_planned, sync_folder, write_file
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan, PlannedFile
from sidecar.disk import on_disk
from sidecar.reading import read_bytes

T = TypeVar("T")

CURRENT = "current"
STAGING_MODE = 0o700
# A late reader has this long to open the files of a generation that it found current, besides
# the previous generation, which stays until there is a newer one.
LATE_READER_SECONDS = 10.0

_GENERATION = re.compile(r"generation-([0-9]{1,9})")
# What is not in place yet; a crash leaves it behind.
_NEW_LINK, _NEW_FILE = ".new-link", ".new-file"


class CertFiles:
    """The certificate files below one directory; blocks on the disk."""

    def __init__(
        self,
        directory: Path,
        owner: str | None = None,
        group: str | None = None,
        unsafe_shared: bool = False,
    ) -> None:
        self._directory = directory
        self._held = HeldDirectory(directory, owner, group, unsafe_shared)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Return what a call on this directory returns, or raise `CertFilesError`, in ten seconds.

        A call that takes longer goes on in its thread; the next one waits for it. So there is one
        thread at most, and what an abandoned call published is found by the one after it.
        """
        try:
            return await on_disk(call, str(self._directory))
        except TimeoutError as exc:
            raise CertFilesError(
                f"certificate files not written: {self._directory}: {exc.strerror}",
                "does it lie on a mount that hangs? What was published before stays",
            ) from exc

    def close(self) -> None:
        """Let others write there."""
        self._held.close()

    def make(self) -> None:
        """Make the directory, and hold it; raises `CertFilesError`."""
        with self._held.held():
            pass

    def publish(self, plan: FilePlan) -> str | None:
        """Make `plan` the current generation; give its name, or None if it already is."""
        with self._held.held() as owner:
            self._held.warn_if_shared()
            current = self.current()
            self._remove_others(current)
            if current is not None and self._holds(current, plan, owner):
                self._link_names(plan)
                return None
            return self._publish(plan, owner, retired=current)

    def replace(self, file: PlannedFile) -> bool:
        """Put one file that belongs to no pair in place; tell whether it was another one."""
        with self._held.held() as owner:
            path, new = self._directory / file.name, self._directory / _NEW_FILE
            if is_as_planned(path, file, owner):
                return False
            new.unlink(missing_ok=True)
            try:
                write_file(new, file, owner)
                new.rename(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
            sync_folder(self._directory)
            return True

    def _publish(self, plan: FilePlan, owner: Owner, retired: str | None) -> str:
        """Stage, prove and publish; whatever fails leaves nothing of it behind."""
        name = self._stage(plan, owner)
        try:
            self._replace_link(CURRENT, name)
        except BaseException:
            if self.current() != name:  # a failed sync comes after the rename
                shutil.rmtree(self._directory / name, ignore_errors=True)
            raise
        if retired is not None and (self._directory / retired).exists():
            # From now on its age counts for late readers.
            os.utime(self._directory / retired)
        self._link_names(plan)
        self._remove_others(name)
        return name

    def current(self) -> str | None:
        """Give the name of the published generation."""
        try:
            name = os.readlink(self._directory / CURRENT)
        except OSError:
            return None
        return name if _GENERATION.fullmatch(name) else None

    def _holds(self, generation: str, plan: FilePlan, owner: Owner) -> bool:
        """Tell whether a generation is exactly what is planned, modes and owner included."""
        folder = self._directory / generation
        try:
            names, mode = os.listdir(folder), stat.S_IMODE(folder.stat().st_mode)
        except OSError:
            return False
        return (
            sorted(names) == sorted(file.name for file in plan.files)
            and mode == _generation_mode(plan, owner)
            and all(is_as_planned(folder / file.name, file, owner) for file in plan.files)
        )

    def _stage(self, plan: FilePlan, owner: Owner) -> str:
        """Write a new generation whole and prove it; nothing points to it yet."""
        name = self._next_name()
        folder = self._directory / name
        folder.mkdir(mode=STAGING_MODE)
        try:
            for file in plan.files:
                write_file(folder / file.name, file, owner)
            folder.chmod(_generation_mode(plan, owner))
            sync_folder(folder)
            _prove_pair(folder, plan)
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
        names = {file.name for file in plan.files}
        for entry in os.scandir(self._directory):
            ours = entry.is_symlink() and os.readlink(entry.path) == f"{CURRENT}/{entry.name}"
            if ours and entry.name not in names:
                os.unlink(entry.path)  # of a layout or a federated trust domain that is gone

    def _replace_link(self, name: str, target: str) -> None:
        """Point the link `name` to `target` in one step, and make it last."""
        new = self._directory / _NEW_LINK
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.rename(self._directory / name)
        sync_folder(self._directory)

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
        for name in (_NEW_LINK, _NEW_FILE):
            with suppress(OSError):
                (self._directory / name).unlink()

    def remove(self, name: str) -> bool:
        """Remove one file that `replace` has written; tell whether it was there."""
        with self._held.held():
            path = self._directory / name
            if not path.exists() or path.is_symlink():  # a link belongs to a generation
                return False
            path.unlink()
            sync_folder(self._directory)
            return True


def _generation_mode(plan: FilePlan, owner: Owner) -> int:
    """Let those look into a generation who may read one of its files; the key has its own mode.

    The generation itself stays ours: whoever owns the files can read, but not replace them.
    """
    readable = 0
    for file in plan.files:
        readable |= file.mode & 0o044
    entered = 0o011 if owner != Owner() else 0
    return STAGING_MODE | readable | readable >> 2 | entered


def _prove_pair(folder: Path, plan: FilePlan) -> None:
    """Load what was written, as its readers will."""
    sizes = {file.name: len(file.content) for file in plan.files}
    certificate, key = (
        read_bytes(folder / name, sizes[name]) for name in (plan.certificate, plan.private_key)
    )
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        matches = load_pem_private_key(key, None).public_key() == leaf.public_key()
    except ValueError as exc:
        raise CertFilesError(f"{folder}: what was written cannot be read back") from exc
    if not matches:
        raise CertFilesError(f"{folder}: key and certificate do not belong together")
