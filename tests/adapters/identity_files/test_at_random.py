"""Another process replaces the files, by every way at random or without pause.

Whole identities only come of it, and the newest is the last one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import trio
import trio.testing

from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import IdentityPaths
from sidecar.adapters.identity_files.reading import read_identity, signature
from sidecar.core.errors import IdentityFilesError
from sidecar.core.identity_event import IdentityEvent, Updated
from sidecar.core.svid import certificates
from tests.adapters.deadlines import until, within
from tests.adapters.file_processes import MortalPublisher, pair_matches
from tests.adapters.identity_files.sources import HEARD, Open, serial_of
from tests.ca import Authority
from tests.identity_writers import CERTIFICATE, Contents, Writer, flipping, paths_in, start
from tests.log_lines import Line


@HEARD
@within(120)
async def test_hundreds_of_replacements_by_another_process_give_whole_identities_only(
    folder: Path, opened: Open, nursery: trio.Nursery, watch: Any, poll_seconds: float
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    files = opened(paths_in(folder), watch, poll_seconds)
    events: list[IdentityEvent] = []

    async def ask() -> None:
        while True:
            events.append(await files.next_event())

    nursery.start_soon(ask)
    process = start(folder, 400, seed)
    output, _ = await trio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0
    last = output.strip()

    def seen() -> bool:
        return bool(events) and isinstance(events[-1], Updated) and serial_of(events[-1]) == last

    await until(seen, "the last one", 60)
    nursery.cancel_scope.cancel()
    updates = [event for event in events if isinstance(event, Updated)]
    assert len(updates) > 1
    for update in updates[:-1]:
        serial_of(update)
        assert len(certificates(update.update.svids[0].bundle)) == 2


def test_generations_that_are_switched_without_pause_are_never_mixed(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    names = [directory / f"svid{name}.pem" for name in ("", "_key", "_bundle")]
    publisher = MortalPublisher(directory)
    process = publisher.start()
    seen: Counter[bytes] = Counter()
    mixed = 0
    end = time.monotonic() + 60
    try:
        while len(seen) < 5 or seen.total() < 200:
            assert time.monotonic() < end, "too few readings that came to an end"
            try:
                found, _ = read_identity(IdentityPaths(names[0], names[1], names[2]))
            except IdentityFilesError:
                continue  # not there yet, or switched too fast
            mixed += not pair_matches(found.certificate, found.private_key)
            seen[found.certificate] += 1
    finally:
        os.kill(process, signal.SIGKILL)
        publisher.wait()
        publisher.close()
    assert mixed == 0


@within(120)
async def test_link_that_becomes_a_file_at_any_moment_is_no_fault(
    writer: Writer, opened: Open, authority: Authority, lines: list[Line]
) -> None:
    """Neither of looking, nor of watching: what tells of changes follows links as well."""
    contents = Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths)
    with flipping(writer.place / CERTIFICATE):
        for _ in range(5000):
            signature(writer.paths)
        for _ in range(20):
            assert serial_of(await files.next_event()) == contents.serial
        for _ in range(300):
            with FileChanges(*writer.paths.all()):
                pass
    assert lines == []
