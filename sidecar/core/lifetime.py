"""How long a connection may go on: what ends it, when, and with how much grace.

Gets the `Ending`s of one connection, each a reason with the moment since when it holds, and gives
a `Verdict`. Pure: moments are seconds from now, negative ones have passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NEVER = float("inf")
# What ends a connection, as logs say it, and the words that metrics count.
PEER_EXPIRED = "the peer's SVID has expired"
NO_IDENTITY = "no valid identity of our own"
MAX_AGE = "max_age_seconds"
_WORDS = {
    "": "closed",
    PEER_EXPIRED: "svid_expired",
    NO_IDENTITY: "no_identity",
    MAX_AGE: "max_age",
}
_REVOKED = "not_admitted"
END_WORDS = (*_WORDS.values(), _REVOKED)


def end_word(reason: str) -> str:
    """Return the word for the reason of a `Verdict`; what policy and bundles say is one word."""
    return _WORDS.get(reason, _REVOKED)


@dataclass(frozen=True, slots=True)
class Ending:
    """A reason for which no new request may begin, `at` seconds from now.

    An answer that is running then may go on for `grace` seconds.
    """

    reason: str
    at: float
    grace: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is empty as long as new requests may begin."""

    reason: str
    cut_now: bool
    look_again_in: float


def judge(endings: Iterable[Ending]) -> Verdict:
    """Give the verdict of this moment; of several reasons the one that held first is told."""
    reason, cut, again = "", False, NEVER
    for ending in sorted(endings, key=lambda one: one.at):
        if ending.at > 0:
            again = min(again, ending.at)
            continue
        reason = reason or ending.reason
        left = ending.at + ending.grace
        if left <= 0:
            reason = reason if cut else ending.reason
            cut = True
        else:
            again = min(again, left)
    return Verdict(reason, cut, again)
