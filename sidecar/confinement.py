"""What a daemon needs of the file system and the network after its start; all else is forbidden.

Gets a checked configuration, puts this process into the sandbox, gives what that is. Called once,
before any thread and before a key is read. Folders are allowed and not files, because editors and
deployers replace files: the folder in which a configured file is, and each one that a link in its
place leads to. Never one above it, never the root, never one that only happens to exist on the way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import structlog

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.file_changes import places_of
from sidecar.adapters.sandbox import Confinement, confine, python_needs
from sidecar.core.address import Inherited
from sidecar.core.checked import Checked
from sidecar.core.config import Config, HelperConfig
from sidecar.core.errors import CertFilesError

log = structlog.get_logger()

_ROOT = Path("/")
# As many links as the systems follow.
_MAX_LINKS = 32
# Links that are switched to a new folder beside the one of before: by the kubelet in a volume, and
# by our own certificate files. Where they lie is part of what they hold.
_SWITCHED = ("..data", "current")
# Accounts and groups are looked up by name there, and these files are replaced.
_ACCOUNTS = Path("/etc")
_LATER = "what is made or moved there later stays out of reach until a restart"


def confine_daemon(checked: Checked) -> Confinement:
    """Confine this process, unless the configuration says otherwise."""
    config = checked.config
    if not config.sandbox.enabled:
        return confine(None)
    commands = [table.name for table in config.after_rotation if table.command]
    if commands:
        # A command of [[after_rotation]] would be confined with us, and may do what it likes.
        reason = f"the command of [[after_rotation]] {', '.join(commands)} would be in the sandbox"
        return confine(None, reason=reason)
    not_made = list(_make_directory(checked))
    needs = python_needs()
    read = list(_outermost(one for file in _read(checked) for one in _folders(file)))
    allowed = replace(
        needs,
        read=(*needs.read, *read, *_accounts(config)),
        write=(*needs.write, *_directory(checked)),
        append=tuple(_log_folder(checked)),
        listen=tuple(_ports(config)),
    )
    confinement = confine(allowed)
    if not confinement.landlock_abi:
        return confinement
    pinned = [one for one in (*read, *allowed.append) if one.is_file()]
    words = "only as the file that it is now, because the root of the file system is never allowed"
    absent = (*not_made, *(f"{one}: {words}" for one in pinned), *confinement.absent)
    return replace(confinement, absent=absent)


def _make_directory(checked: Checked) -> Iterator[str]:
    """Make the directory of certificate files while that is allowed; give why it is not there."""
    table = checked.config.cert_files
    if table is not None:
        directory = Path(checked.directory, table.directory)
        files = CertFiles(directory, table.owner, table.group, table.unsafe_shared_directory)
        try:
            files.make()
        except CertFilesError as exc:
            if not directory.is_dir():  # else it is allowed, and what is wrong may be mended
                yield f"{directory}: {exc.message}"
        finally:
            files.close()


def _directory(checked: Checked) -> Iterator[Path]:
    """Give the directory of certificate files if it is there."""
    table = checked.config.cert_files
    if table is not None and (directory := Path(checked.directory, table.directory)).is_dir():
        yield directory


def _read(checked: Checked) -> Iterator[Path]:
    """Give each file that is read after the start."""
    config, directory = checked.config, Path(checked.directory)
    yield Path(checked.file)
    if isinstance(config, Config):
        yield directory / config.policy.file
    if config.identity_files is not None:
        table = config.identity_files
        for file in (table.certificate, table.private_key, table.bundle):
            yield directory / file
        for file in table.federated_bundles.values():
            yield directory / file
    for one in config.after_rotation:
        if one.pid_file:
            yield directory / one.pid_file


def _folders(file: Path) -> Iterator[Path]:
    """Give the folder of a file, and of each link in its place; of one in the root the file."""
    switched = [Path(place) for place, name in places_of(file) if _is_switched(place, name)]
    here = file
    for _ in range(_MAX_LINKS):
        yield here if _is_root(here.parent) else here.parent
        try:
            here = here.parent / os.readlink(here)
        except OSError:
            break
    yield from switched


def _is_switched(place: str, name: str) -> bool:
    try:
        target = os.readlink(os.path.join(place, name)) if name in _SWITCHED else "/"
    except OSError:
        return False
    return "/" not in target and target not in (".", "..")


def _is_root(folder: Path) -> bool:
    try:
        return os.path.samefile(folder, _ROOT)
    except OSError:
        return False


def _outermost(folders: Iterable[Path]) -> Iterator[Path]:
    """Give real paths, each once, without those in another one, where they may be made later."""
    real = dict.fromkeys(Path(os.path.realpath(one)) for one in folders)
    for folder in real:
        if not any(above in real and above.is_dir() for above in folder.parents):
            yield folder


def _accounts(config: HelperConfig) -> Iterator[Path]:
    table = config.cert_files
    if table is not None and (table.owner or table.group):
        yield _ACCOUNTS


def _log_folder(checked: Checked) -> Iterator[Path]:
    """Give the folder of the log, because a rotated log is a new file; it is not made."""
    file = checked.config.log.file
    if file is not None:
        path = Path(checked.directory, file)
        yield path if _is_root(path.parent) else path.parent


def _ports(config: HelperConfig) -> Iterator[int]:
    for address in config.listens_on():
        if not isinstance(address, Inherited) and address.ip is not None:
            yield address.port


def tell_confinement(confinement: Confinement) -> None:
    """Log what is in force, what is not, and every path that should be allowed and is not."""
    log.info(
        "confined",
        forbidden=confinement.forbidden,
        not_forbidden=confinement.missing or None,
        read=confinement.read or None,
        write=confinement.write or None,
        append=confinement.append or None,
    )
    for path in confinement.absent:
        log.warning("path not allowed by the sandbox", reason=path, hint=_LATER)
