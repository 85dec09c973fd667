"""The files of an identity that something else writes: read as they stand together.

Two files cannot be opened in one step, and whoever writes them may be at it: what is read counts
only if every file is, after the reading, still the one that it was before. Where the writer
switches a link (a Kubernetes volume's `..data`, our own `current`) such a reading is never a mix
of two generations. Blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.core.errors import IdentityFilesError
from sidecar.core.files_config import IdentityFilesTable
from sidecar.core.identity_pem import IdentityPem
from sidecar.core.spiffe_id import TrustDomain
from sidecar.reading import read_bytes

# Where a file is, by all links, and what tells that it is another one or has another content.
Signature = tuple[object, ...]

MAX_BYTES = 16 * 1024 * 1024  # as much as a message of the Workload API
_TRIES = 20


@dataclass(frozen=True, slots=True)
class IdentityPaths:
    """Where the files are."""

    certificate: Path
    private_key: Path
    bundle: Path
    federated: Mapping[TrustDomain, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, table: IdentityFilesTable, directory: str) -> IdentityPaths:
        """Give the paths of a configuration; relative ones are below `directory`."""
        return cls(
            Path(directory, table.certificate),
            Path(directory, table.private_key),
            Path(directory, table.bundle),
            {name: Path(directory, file) for name, file in table.federated_bundles.items()},
        )

    def all(self) -> list[Path]:
        """Give every path."""
        return [self.certificate, self.private_key, self.bundle, *self.federated.values()]


def signature(paths: IdentityPaths) -> Signature:
    """Give what stands at the paths; another one means that something has changed."""
    return tuple(_signature(path) for path in paths.all())


def read_identity(paths: IdentityPaths) -> tuple[IdentityPem, Signature]:
    """Read all files as they stand together, or raise `IdentityFilesError`."""
    for _ in range(_TRIES):
        before = signature(paths)
        try:
            pem = _read_all(paths)
        except OSError as exc:
            if signature(paths) != before:
                continue  # it went while it was opened; its successor is there
            raise IdentityFilesError(str(exc.strerror)) from exc
        if signature(paths) == before:
            return pem, before
    raise IdentityFilesError(f"{paths.certificate}: it changes faster than it can be read")


def _read_all(paths: IdentityPaths) -> IdentityPem:
    federated: dict[TrustDomain, bytes | str] = {}
    for trust_domain, path in paths.federated.items():
        try:
            federated[trust_domain] = _read(path)
        except OSError as exc:
            federated[trust_domain] = str(exc.strerror)
    return IdentityPem(
        _read(paths.certificate), _read(paths.private_key), _read(paths.bundle), federated
    )


def _read(path: Path) -> bytes:
    """Read one file, or raise `OSError` whose text names it."""
    try:
        return read_bytes(path, MAX_BYTES)
    except OSError as exc:
        raise OSError(exc.errno, f"{path}: {exc.strerror or exc}") from exc


def _signature(path: Path) -> Signature:
    try:
        # It reads links, and one that is being replaced by a file is none any more.
        real = os.path.realpath(path)
        status = os.stat(real)
    except OSError as exc:
        return (str(path), exc.errno)
    # The change time as well: it tells of rights, and of tools that set the other one back.
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (real, status.st_dev, status.st_ino, status.st_size, *times)


def newest_change(paths: IdentityPaths) -> float:
    """Give the time of the newest change, in seconds since 1970; 0 if there is no file."""
    times = []
    for path in paths.all():
        with suppress(OSError):
            status = os.stat(path)
            times.append(max(status.st_mtime, status.st_ctime))
    return max(times, default=0.0)
