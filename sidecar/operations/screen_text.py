"""Times, sizes and texts as a terminal shows them.

Apart from the screen because what is dangerous about a terminal is met here: no text from outside
is taken for markup, and no character of it reaches the terminal that it might act on, a new
line included.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from rich.text import Text

from sidecar.core.status import printable

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def plain(text: str, style: str = "") -> Text:
    """Give a text as it is, in one line."""
    return Text(printable(text), style)


def line(*parts: Text | str) -> Text:
    """Give parts in one line."""
    return Text.assemble(*(plain(part) if isinstance(part, str) else part for part in parts))


def lines(*texts: Text | str) -> Text:
    """Give texts below each other, without those that are empty."""
    return Text("\n").join(line(text) for text in texts if text)


def span(time: timedelta) -> str:
    """Give a length of time in its two largest units."""
    left = round(abs(time).total_seconds())
    words: list[str] = []
    for seconds, unit in _UNITS:
        count, left = divmod(left, seconds)
        if count or (unit == "s" and not words):
            words.append(f"{count} {unit}")
        elif words:
            break
    return " ".join(words[:2])


def ago(at: datetime, now: datetime) -> str:
    """Give how long ago something was."""
    return f"{span(now - at)} ago" if now - at >= timedelta(seconds=1) else "just now"


def clock(at: datetime) -> str:
    """Give a moment in UTC, as the log does."""
    return f"{at:%Y-%m-%d %H:%M:%S}Z"


def count(number: int, noun: str) -> str:
    """Give a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(number: int) -> str:
    """Give a number of bytes."""
    left = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < 1000:
            return f"{left:.0f} {unit}" if unit == "B" or left >= 100 else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:.1f} TiB"
