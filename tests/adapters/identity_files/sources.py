"""Identity files for the tests: ways to hear of changes, and what is taken from a source.

No system behaves as badly as the watches in here, and each does so at times.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.serialization import load_der_private_key

from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import IdentityFiles
from sidecar.core.errors import WatchError
from sidecar.core.identity_event import IdentityEvent, Updated
from sidecar.core.identity_update import RawUpdate
from sidecar.core.svid import certificates, serial_text
from tests.adapters.deadlines import until
from tests.ca import Authority
from tests.held_clock import rest
from tests.identity_writers import (
    BUNDLE,
    CERTIFICATE,
    KEY,
    Contents,
    Writer,
    write_in_place,
)

# A look that no test waits for: only word of a change can be faster.
NEVER = 3600.0
OFTEN = 0.1
# Deadlines of tests that move the clock themselves.
MOVED = 1e9
# Long enough for some looks, and too short for a writer to be given up.
A_MOMENT = 0.3
# How fast time goes where the time of a writer has to pass, and nothing happens in it.
FAST = 20.0
Open = Callable[..., IdentityFiles]


# Ways to hear of changes.


class Deaf:
    """A watch that never says anything: a network mount, or a change that the system lost."""

    def __init__(self, *files: Path, quiet_seconds: float) -> None:
        assert files
        assert quiet_seconds >= 0

    def __enter__(self) -> Deaf:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def wait(self) -> None:
        await trio.sleep_forever()


class Impossible(Deaf):
    """A watch that cannot begin."""

    def __enter__(self) -> Deaf:
        raise WatchError("cannot watch for changes: no more watches")


class Dying(Deaf):
    """A watch that breaks when it is needed."""

    async def wait(self) -> None:
        raise WatchError("cannot watch for changes: it is broken")


class Noisy(Deaf):
    """A watch that always says that something has changed, as coalescing ones do after a burst."""

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()


# Taking events.


def serial_of(event: IdentityEvent) -> str:
    """The serial of an update, whose key and certificate are a pair."""
    assert isinstance(event, Updated), event
    (svid,) = event.update.svids
    leaf = certificates(svid.chain)[0]
    assert load_der_private_key(svid.private_key, None).public_key() == leaf.public_key()
    return serial_text(leaf)


async def newest(files: IdentityFiles, serial: str) -> RawUpdate:
    """Take events until the one of that serial comes; all of them are whole identities."""
    while True:
        event = await files.next_event()
        if serial_of(event) == serial:
            assert isinstance(event, Updated)
            return event.update


class Asked:
    """`next_event` in the background, again and again."""

    def __init__(self, files: IdentityFiles, nursery: trio.Nursery) -> None:
        self.events: list[IdentityEvent] = []
        self._files = files
        nursery.start_soon(self._ask)

    async def sees(self, writer: Writer, contents: Contents) -> None:
        """Have an identity put in place while the source waits, and wait until it has it."""
        await rest()
        writer.put(contents)

        def seen() -> bool:
            return bool(self.events) and serial_of(self.events[-1]) == contents.serial

        await until(seen, "the change")

    async def _ask(self) -> None:
        while True:
            self.events.append(await self._files.next_event())


CONFIGURATIONS: list[tuple[Any, float]] = [(FileChanges, NEVER), (Deaf, OFTEN)]
HEARD = pytest.mark.parametrize(("watch", "poll_seconds"), CONFIGURATIONS, ids=["heard", "looked"])
ORDERS = {
    "certificate first": (CERTIFICATE, KEY, BUNDLE),
    "key first": (KEY, CERTIFICATE, BUNDLE),
    "bundle first": (BUNDLE, KEY, CERTIFICATE),
}


# What is wrong with an identity.


def other_key(writer: Writer) -> None:
    write_in_place(writer.place / KEY, Contents.new(Authority("example.org")).of(KEY))


def empty_key(writer: Writer) -> None:
    write_in_place(writer.place / KEY, b"")


def no_key(writer: Writer) -> None:
    (writer.place / KEY).unlink()


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))
