"""Lines about refusals, of which anybody can cause any number: some a second, the rest counted.

Gets who is refused and the monotonic clock, tells whether the line is written. One who floods
uses up its own share first, so that the others' refusals are still seen; many who flood together
hide them, because what is written stays bounded.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, IPv6Network, ip_address

from sidecar.core.limits import TokenBuckets

# How many lines may come at once, in seconds of the rate; and what one party has of it.
_BURST_SECONDS = 10
_SHARE = 0.5
_ONE_HOST = 64  # bits of an IPv6 address; whoever has a host has all addresses behind them


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
        for key, rate in ((_party(address), self._rate * _SHARE), (None, self._rate)):
            if self._buckets.take(key, rate, max(1, int(rate * _BURST_SECONDS)), now):
                if not self._left_out:
                    self._since = now
                self._left_out[event] += 1
                return False
        return True

    def summary(self, now: float, seconds: float) -> dict[str, int]:
        """Give how many lines of each event were left out, when that began `seconds` ago.

        What is given is forgotten.
        """
        if not self._left_out or now - self._since < seconds:
            return {}
        left_out, self._left_out = dict(self._left_out), Counter()
        return left_out


def _party(address: str) -> str:
    """Give what stands for all addresses that one host has."""
    try:
        ip = ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    return str(ip.ipv4_mapped or IPv6Network((ip, _ONE_HOST), strict=False))
