"""Attempt number to delay: capped exponential backoff with full jitter.

Full jitter (a uniform draw from zero to the ceiling) so that the workloads of one host do not
come back to a restarted agent in step. The caller draws, so that tests can.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds: at most `first`, 2 `first`, 4 `first`, ... and never above `cap`."""

    first: float
    cap: float

    def ceiling(self, attempt: int) -> float:
        """Give the longest delay before attempt `attempt`, counted from 0."""
        return float(min(self.cap, self.first * 2 ** min(attempt, 32)))

    def delay(self, attempt: int, draw: float) -> float:
        """Give the delay for a `draw` from [0, 1)."""
        return self.ceiling(attempt) * draw
