"""Story: the identity of the moment becomes files on disk, and others are told.

    core.file_plan    identity -> names, modes and bytes
    cert_files        stage, prove, publish; nothing is written when nothing has changed
    file_keeper       one log line; tells of the publication, also of one that a process before
                      this one made and perhaps did not live to tell of

Beside the rotation and not part of it: serving never waits for a disk. The files are looked at
again from time to time, so that what somebody removed or changed comes back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity
from sidecar.core.after_rotation import Publication
from sidecar.core.backoff import Backoff
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan, file_plan
from sidecar.core.files_config import CertFilesTable

log = structlog.get_logger()

LOOK_AGAIN_SECONDS = 60.0
_AGAIN = Backoff(first=1.0, cap=60.0)


async def keep_files(
    files: CertFiles,
    directory: Path,
    table: CertFilesTable,
    current: CurrentIdentity,
    tell: Callable[[Publication], None],
) -> None:
    """Publish each new identity as files; retry while the disk refuses, newest first."""
    told = ""
    failures = 0
    while True:
        identity = current.identity
        if identity is None:
            await current.changed.wait()
            continue
        plan = file_plan(identity.svid, identity.bundles, table, read_clocks().wall)
        try:
            # Left behind at shutdown and when the disk hangs: a generation that is half written is
            # never the published one.
            generation, is_new = await files.in_thread(partial(publish, files, plan))
        except CertFilesError as exc:
            delay = _AGAIN.delay(failures, random.uniform(0.5, 1.0))
            failures += 1
            current.ledger.files_failed(read_clocks().wall, exc.message)
            log.error(
                "certificate files not published",
                reason=exc.message,
                hint=exc.hint,
                retry_seconds=round(delay, 1),
            )
            await _another(current, identity, delay)
            continue
        failures = 0
        svid = identity.svid
        current.ledger.files_published(
            read_clocks().wall,
            generation,
            is_new=is_new,
            serial=svid.serial,
            expires=svid.not_after,
        )
        # Of one that an attempt before this one published, and then failed, nobody knows yet.
        if is_new or generation != told:
            say = log.info if is_new or told else log.debug
            say("certificate files published", generation=generation, serial=svid.serial)
            for note in plan.notes:
                log.warning("certificate files incomplete", reason=note)
            tell(publication(plan, identity, directory, generation))
        told = generation
        await _another(current, identity, LOOK_AGAIN_SECONDS)


async def _another(current: CurrentIdentity, known: ServerIdentity, seconds: float) -> None:
    """Wait for another identity or until somebody asks, no longer than `seconds`."""
    asks = current.asks
    with trio.move_on_after(seconds):
        while current.identity is known and current.asks == asks:
            await current.changed.wait()


def publish(files: CertFiles, plan: FilePlan) -> tuple[str, bool]:
    """Publish; give the generation that holds the plan now, and whether it is a new one."""
    name = files.publish(plan)
    return name or files.current() or "", name is not None


def publication(
    plan: FilePlan, identity: ServerIdentity, directory: Path, generation: str
) -> Publication:
    """Give what others are told of one generation: stable paths, whose it is, when it ends."""
    return Publication(
        kind="x509",
        directory=str(directory),
        files={key: str(directory / name) for key, name in plan.names.items()},
        spiffe_id=str(identity.svid.spiffe_id),
        expires=identity.svid.not_after,
        serial=identity.svid.serial,
        generation=generation,
    )
