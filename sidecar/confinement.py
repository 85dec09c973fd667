"""What a daemon needs of the file system and the network after its start; all else is forbidden.

Gets a checked configuration, puts this process into the sandbox, gives what that is. Called once,
before any thread and before a key is read. Folders are allowed and not files, because editors and
deployers replace files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.file_changes import places_of
from sidecar.adapters.sandbox import Confinement, confine, python_needs
from sidecar.core.checked import Checked
from sidecar.core.config import Config, HelperConfig
from sidecar.core.errors import CertFilesError

log = structlog.get_logger()


def confine_daemon(checked: Checked) -> Confinement:
    """Confine this process, unless the configuration says otherwise."""
    if not checked.config.sandbox.enabled or any(
        table.command for table in checked.config.after_rotation
    ):
        # A command of [[after_rotation]] would be confined with us, and may do what it likes.
        return confine(None)
    _make_directory(checked)
    needs = python_needs()
    allowed = replace(
        needs,
        read=(*needs.read, *dict.fromkeys(_read(checked))),
        write=(*needs.write, *dict.fromkeys(_written(checked))),
        listen=tuple(_ports(checked.config)),
    )
    return confine(allowed)


def _make_directory(checked: Checked) -> None:
    """Make the directory of certificate files while that is allowed."""
    table = checked.config.cert_files
    if table is not None:
        files = CertFiles(
            Path(checked.directory, table.directory),
            table.owner,
            table.group,
            table.unsafe_shared_directory,
        )
        with suppress(CertFilesError):  # told when it is tried for the first time
            files.make()
        files.close()


def _read(checked: Checked) -> Iterator[Path]:
    config, directory = checked.config, Path(checked.directory)
    yield directory
    files: list[str] = [checked.file]
    if isinstance(config, Config):
        files.append(config.policy.file)
    if config.identity_files is not None:
        table = config.identity_files
        files += [table.certificate, table.private_key, table.bundle]
        files += table.federated_bundles.values()
    files += [one.pid_file for one in config.after_rotation if one.pid_file]
    for file in files:
        yield from _folders(directory / file)


def _folders(file: Path) -> Iterator[Path]:
    """Give each folder on the way to a file, and the one above it: a folder may be replaced."""
    for place, _ in places_of(file):
        for folder in (Path(place), Path(place).parent):
            there = next(one for one in (folder, *folder.parents) if one.is_dir())
            # The root would be everything; what is not there is named in the log instead.
            yield there if there != Path("/") else folder


def _written(checked: Checked) -> Iterator[Path]:
    table = checked.config.cert_files
    if table is not None:
        directory = Path(checked.directory, table.directory)
        # Where it could not be made it is made later, when what is in the way has been removed.
        yield next(folder for folder in (directory, *directory.parents) if folder.is_dir())

    for address in checked.config.listens_on():
        if address.path:
            yield Path(address.path).parent

    log_file = checked.config.log.file
    if log_file is not None:
        # The folder, because a rotated log is a new file; it is not made, and the root would be
        # everything.
        folder = Path(checked.directory, log_file).parent
        yield from () if folder == Path("/") else (folder,)


def _ports(config: HelperConfig) -> Iterator[int]:
    for address in config.listens_on():
        if address.ip is not None:
            yield address.port


def tell_confinement(confinement: Confinement) -> None:
    """Log what is in force, and what is not."""
    log.info(
        "confined",
        forbidden=confinement.forbidden,
        not_forbidden=confinement.missing or None,
        not_there=confinement.absent or None,
    )
