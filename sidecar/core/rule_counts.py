"""The requests of each rule: statuses, seconds to the first byte, seconds in all.

Rules are named by the policy, so their number is bounded by it; but policies come and go. Those
of the policy in force stay, and those of before as long as there are not too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from sidecar.core.histogram import Histogram

MAX_RULES = 256
NO_RULE = ""  # what no rule decided; no rule can be called so
OTHER_RULES = "other"
_KNOWN_STATUS = {status.value: str(status.value) for status in HTTPStatus}


class Finished(msgspec.Struct, frozen=True):
    """How one request ended, in a word of the log; `served`: it went to the backend."""

    rule: str | None
    status: int  # 0: the peer got no answer
    seconds: float
    first_byte_seconds: float | None = None  # None: the backend gave none
    received: int = 0
    sent: int = 0
    outcome: str = "answered"
    served: bool = False


@dataclass(slots=True)
class RuleCounts:
    """The requests of one rule; the histograms hold those that were served.

    `codes` are statuses, each with what came of the request: ours and the backend's own differ.
    """

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_byte: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)


class Rules:
    """The counts of all rules."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._known: dict[str, RuleCounts] = {}
        self._now = frozenset(names)

    def items(self) -> Iterator[tuple[str, RuleCounts]]:
        """Give the name of each rule that had a request, and its counts."""
        return iter(tuple(self._known.items()))

    def replace(self, names: Iterable[str]) -> None:
        """Take these for the rules of the policy in force."""
        self._now = frozenset(names)
        if len(self._known) > MAX_RULES:
            # Dropped, not added to the others: a counter that jumps reads as a burst of requests.
            for name in self._known.keys() - self._now - {NO_RULE, OTHER_RULES}:
                del self._known[name]

    def finished(self, request: Finished) -> None:
        """Count a request."""
        counts = self._counts(request.rule or NO_RULE)
        code = _KNOWN_STATUS.get(request.status) or _class_of(request.status)
        counts.codes[code, request.outcome] += 1
        if request.served and request.rule:
            counts.duration.observe(request.seconds)
            if request.first_byte_seconds is not None:
                counts.first_byte.observe(request.first_byte_seconds)

    def _counts(self, name: str) -> RuleCounts:
        counts = self._known.get(name)
        if counts is None:
            # A running request may outlive the policy that let it in.
            name = name if name in self._now or name == NO_RULE else OTHER_RULES
            counts = self._known.setdefault(name, RuleCounts())
        return counts


def _class_of(status: int) -> str:
    """Give one word for a status that nobody knows: its hundred, or that there was none."""
    return f"{status // 100}xx" if 100 <= status <= 599 else "other" if status else "none"
