"""Lines about refusals, of which anybody can cause any number: some a second, the rest counted.

Gets who is refused and the monotonic clock, tells whether the line is written. One who floods
uses up its own share first, so that the others' refusals are still seen.
"""

from __future__ import annotations

from collections import Counter

from sidecar.core.limits import TokenBuckets

# How many lines may come at once, in seconds of the rate; and what one address has of it.
_BURST_SECONDS = 10
_SHARE = 0.5


class Flood:
    """Lets `rate` lines a second through; 0 is no limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets = TokenBuckets()
        self._left_out: Counter[str] = Counter()
        self._since = 0.0

    def admits(self, event: str, address: str, now: float) -> bool:
        """Tell whether this line is written; count it otherwise."""
        if not self._rate:
            return True
        for key, rate in ((address, self._rate * _SHARE), (None, self._rate)):
            if self._buckets.take(key, rate, max(1, int(rate * _BURST_SECONDS)), now):
                if not self._left_out:
                    self._since = now
                self._left_out[event] += 1
                return False
        return True

    def summary(self, now: float, seconds: float) -> dict[str, int]:
        """Give how many lines of each event were left out, when that began `seconds` ago."""
        if not self._left_out or now - self._since < seconds:
            return {}
        left_out, self._left_out = dict(self._left_out), Counter()
        return left_out
