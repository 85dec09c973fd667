"""One check's result: a verdict, what was seen, and what to do about it.

`Unknown` stands where a fact could not be had, with the reason and what would make it known: a
check without its facts is skipped and never called good.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `name` never changes, programs may rely on it."""

    name: str
    verdict: Verdict
    seen: str
    remedy: str = ""

    @property
    def group(self) -> str:
        """Give the group that the check belongs to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that could not be had; `remedy` is what makes it known, if anything does."""

    reason: str
    remedy: str = ""


def ok(name: str, seen: str) -> Finding:
    """Give the finding of a check that is content."""
    return Finding(name, Verdict.OK, seen)


def warn(name: str, seen: str, remedy: str) -> Finding:
    """Give the finding of a check that somebody should look at."""
    return Finding(name, Verdict.WARN, seen, remedy)


def fail(name: str, seen: str, remedy: str) -> Finding:
    """Give the finding of a check that somebody has to act on."""
    return Finding(name, Verdict.FAIL, seen, remedy)


def skipped(name: str, reason: str | Unknown, remedy: str = "") -> Finding:
    """Give the finding of a check that could not be made, or does not apply."""
    if isinstance(reason, Unknown):
        return Finding(name, Verdict.SKIPPED, reason.reason, reason.remedy)
    return Finding(name, Verdict.SKIPPED, reason, remedy)


def all_skipped(names: Iterable[str], reason: str | Unknown) -> list[Finding]:
    """Give the findings of several checks for which there is one reason."""
    return [skipped(name, reason) for name in names]
