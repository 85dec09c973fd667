"""Single files that are a set: those that are no more part of it are removed.

The names of the set are kept in a hidden file beside it, so that a file whose reason vanished
while no process of ours was running is removed too, and no file but one that we wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sidecar.adapters.cert_files.generations import CertFiles
from sidecar.core.file_plan import PlannedFile
from sidecar.reading import read_bytes

_LIST_MODE = 0o600
_MAX_BYTES = 16 * 1024 * 1024  # as much as a message of the Workload API


@dataclass(frozen=True, slots=True)
class SetChange:
    """Names of the files that are new or other ones, and of those that are gone."""

    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class FileSet:
    """One set below the directory of `files`; `is_one` tells whether content may be of the set."""

    def __init__(
        self, files: CertFiles, directory: Path, listing: str, is_one: Callable[[bytes], bool]
    ) -> None:
        self._files = files
        self._directory = directory
        self._listing = listing
        self._is_one = is_one

    def replace(self, planned: Collection[PlannedFile]) -> SetChange:
        """Make the set what is planned; blocks on the disk and raises `CertFilesError`."""
        names, known = {str(file.name) for file in planned}, self._listed()
        # What is gone goes first: it may matter more, and needs no room on the disk.
        gone = [name for name in sorted(known - names) if self._remove(name)]
        # Listed before it is written, and until it is gone: a crash leaves nothing unlisted.
        self._list(names | known)
        written = [file.name for file in planned if self._files.replace(file)]
        self._list(names)
        return SetChange(tuple(written), tuple(gone))

    def _remove(self, name: str) -> bool:
        """Remove a file, unless its name has been given to something else meanwhile."""
        try:
            ours = self._is_one(read_bytes(self._directory / name, _MAX_BYTES))
        except OSError:
            return False
        return ours and self._files.remove(name)

    def _listed(self) -> set[str]:
        try:
            data = read_bytes(self._directory / self._listing, _MAX_BYTES)
            names = msgspec.json.decode(data, type=list[str])
        except (OSError, ValueError):
            return set()
        return {name for name in names if "/" not in name and not name.startswith(".")}

    def _list(self, names: Collection[str]) -> None:
        content = msgspec.json.encode(sorted(names))
        self._files.replace(PlannedFile(self._listing, _LIST_MODE, content))
