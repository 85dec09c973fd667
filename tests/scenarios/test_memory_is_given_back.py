"""What has ended is freed at once: nothing waits for the garbage collector, which is off here.

Resident memory by time: `python -m tests.bench_memory`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.bench_memory import THINGS, Site, sites

TIMES = 12
CLIENTS = 2
# A connection ends in the daemon a moment after its client has left; and of what is replaced the
# one of before may be in use.
_MORE = 3
_GUARD_SECONDS = 30.0


IN_MODE_STREAM = ("rotations", "connections", "refused", "stranger", "left")


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNCOLLECTED", "1")
        with sites(CLIENTS, request.param, watched=True) as site:
            yield site


@pytest.mark.parametrize(
    ("site", "what"),
    [*(("http", what) for what in THINGS), *(("stream", what) for what in IN_MODE_STREAM)],
    indirect=["site"],
)
def test_nothing_stays_of(site: Site, what: str) -> None:
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
