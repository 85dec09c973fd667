"""Values -> lines of TOML, for a file that a person goes on with.

Gets keys and values, gives lines without line ends; what was not set leaves no line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST = 100
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')


def keys(**values: str | bool | Sequence[str] | None) -> list[str]:
    """Give a line for each key that is set; a list that is long has one line an item."""
    lines = []
    for key, value in values.items():
        if isinstance(value, bool):
            lines += [f"{key} = true"] if value else []
        elif isinstance(value, str):
            lines += [f"{key} = {quoted(value)}"] if value else []
        elif value:
            lines += _list(key, [quoted(item) for item in value])
    return lines


def off(lines: Sequence[str]) -> list[str]:
    """Give the same lines as a comment."""
    return [line if line.startswith("#") else f"# {line}" for line in lines]


def quoted(text: str) -> str:
    """Give a basic string of TOML, which can hold everything and ends on its line."""
    return '"' + _ESCAPED.sub(lambda found: _escape(found[0]), text) + '"'


def _list(key: str, items: Sequence[str]) -> list[str]:
    line = f"{key} = [{', '.join(items)}]"
    if len(line) <= _LONGEST:
        return [line]
    return [f"{key} = [", *(f"    {item}," for item in items), "]"]


def _escape(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"
