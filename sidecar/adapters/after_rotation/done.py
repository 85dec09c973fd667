"""What came of an action that went well."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """A few words for the log, and the end of what a command printed."""

    result: str
    output: str = ""
