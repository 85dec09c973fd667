"""The latest refusals, for people: who, from where, why, and how often.

The same one again is counted and not listed again, so that a peer that tries every second does
not push out what else there was. Text from outside is cut to a bounded length here, and made
printable by whoever shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sidecar.core.spiffe_id import SpiffeId

MAX_REFUSALS = 20
_MAX_TEXT = 300


@dataclass(slots=True)
class Refused:
    """One refusal; `at` and `address` are those of the last time."""

    at: datetime
    address: str
    peer: str
    proven: bool
    reason: str
    times: int = 1


class RecentRefusals:
    """The latest `MAX_REFUSALS`."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, bool, str], Refused] = {}

    def __iter__(self) -> Iterator[Refused]:
        """Give them, the latest first."""
        return reversed(self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, now: datetime, address: str, peer: SpiffeId | str, reason: str) -> None:
        """Keep one; `peer` is an ID that was proven, or the text of what was claimed."""
        who, proven = str(peer)[:_MAX_TEXT], isinstance(peer, SpiffeId)
        host, why = address.rpartition(":")[0][:_MAX_TEXT], reason[:_MAX_TEXT]
        key = host, who, proven, why
        same = self._kept.pop(key, None)
        if same is None:
            if len(self._kept) >= MAX_REFUSALS:
                del self._kept[next(iter(self._kept))]
            same = Refused(now, address, who, proven, why, times=0)
        same.at, same.address = now, address[:_MAX_TEXT]
        same.times += 1
        self._kept[key] = same
