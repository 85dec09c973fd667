"""A histogram of seconds with fixed buckets, as Prometheus counts them.

Not part of the ledger because its bounds are a decision of their own: an answer's first byte may
come in 5 ms or after a model was loaded, and a stream may run for ten minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

# Upper bounds in seconds; what is above the last one counts in the bucket without a bound.
BOUNDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)


class Histogram:
    """Counts seconds; never grows."""

    __slots__ = ("_counts", "total_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self.total_seconds = 0.0

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def observe(self, seconds: float) -> None:
        """Count one; a clock that ran backwards counts as no time."""
        seconds = max(0.0, seconds)
        at = 0
        for bound in BOUNDS:
            if seconds <= bound:
                break
            at += 1
        self._counts[at] += 1
        self.total_seconds += seconds

    def cumulative(self) -> Iterator[int]:
        """Give for each bound how many were no longer than it, and at last how many there are."""
        so_far = 0
        for count in self._counts:
            so_far += count
            yield so_far
