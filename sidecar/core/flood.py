"""Lines of the log that others can cause, in any number: some a second, the rest counted.

Gets the event of a line, who caused it (its party) and the monotonic clock; tells whether the line
is written. Each event has a limit of its own, so a flood of one kind hides no other kind. Of one
event's lines a party has a share: one that floods uses up its share first, and the lines about
others are still seen. Many parties that flood together hide them, because what is written stays
bounded.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, IPv6Network, ip_address

from sidecar.core.limits import TokenBuckets

# How many lines may come at once, in seconds of the rate; and what one party has of it.
_BURST_SECONDS = 10
_SHARE = 0.5
# What concerns no party (a listening socket without descriptors, say) may go on for days, and is
# said again and again: one line in ten seconds where parties have twenty in one.
_OF_LINES_WITHOUT_PARTY = 0.005
# A traceback is one line of the log by its event, and some thirty by its length.
_OF_TRACEBACKS = 0.1
_ONE_HOST = 64  # bits of an IPv6 address; a host has all addresses behind them


class Flood:
    """Lets `rate` lines of each event through in a second; 0 is no limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets = TokenBuckets()
        self._left_out: Counter[str] = Counter()
        self._since = 0.0

    def admits(self, event: str, party: str, now: float, *, is_traceback: bool = False) -> bool:
        """Return whether this line is written; count it otherwise.

        `party` is empty for what concerns none, such as a listening socket of ours.
        """
        if not self._rate:
            return True
        most = self._rate * (_OF_TRACEBACKS if is_traceback else 1.0)
        burst = most * _BURST_SECONDS
        limits = [((event, ""), most * _OF_LINES_WITHOUT_PARTY, burst)]
        if party:
            of_party = (event, party), most * _SHARE, burst * _SHARE
            limits = [of_party, ((event, ""), most, burst)]
        for key, rate, at_once in limits:
            if self._buckets.take(key, rate, max(1, int(at_once)), now):
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


def host_of(address: str) -> str:
    """Return what stands for all addresses that one host has; `address` is `ip:port`."""
    host = address.rpartition(":")[0]
    try:
        ip = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    if not isinstance(ip, IPv6Address):
        return host
    return str(ip.ipv4_mapped or IPv6Network((ip, _ONE_HOST), strict=False))
