"""What has ended is freed at once: nothing waits for the garbage collector, which is off here.

Resident memory by time: `python -m tests.bench_memory`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.bench_memory import THINGS, Site, sites

TIMES = 12
CLIENTS = 2
# A connection ends in the daemon a moment after its client has left; and of what is replaced the
# one of before may be in use.
_MORE = 3
_GUARD_SECONDS = 30.0


IN_MODE_STREAM = ("rotations", "connections", "refused", "stranger", "left")


@contextmanager
def watched(mode: str) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNCOLLECTED", "1")
        with sites(CLIENTS, mode, watched=True) as site:
            yield site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with watched("http") as site:
        yield site


@pytest.mark.parametrize("what", THINGS)
def test_nothing_stays_of(site: Site, what: str) -> None:
    assert_nothing_stays(site, what)


def test_nothing_stays_of_a_stream() -> None:
    with watched("stream") as site:
        for what in IN_MODE_STREAM:
            assert_nothing_stays(site, what)


def assert_nothing_stays(site: Site, what: str) -> None:
    do, _ = THINGS[what]
    site.every_client()
    do(site)  # what is made once, such as threads
    before = site.alive()
    for _ in range(TIMES):
        do(site)
    deadline = time.monotonic() + _GUARD_SECONDS
    while more := _more(before, site.alive()):
        assert time.monotonic() < deadline, f"{TIMES} {what} left {more}"
        threading.Event().wait(0.1)


def _more(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Of what there is more than chance explains."""
    grown = {kind: after[kind] - before[kind] for kind in after}
    return {kind: count for kind, count in grown.items() if count > _MORE}
