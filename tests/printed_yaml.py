"""Reads the YAML that we print: block mappings and lists, JSON-like scalars, comments, no more.

Written from the YAML specification and not from our writer. What is not in this subset is an
error, so a value that comes out as something else does not pass for text.
"""

from __future__ import annotations

import json
import re
from typing import Any

_KEY = re.compile(
    r'((?P<plain>[A-Za-z][A-Za-z0-9-]*)|(?P<quoted>"(?:[^"\\]|\\.)*")):(?: (?P<rest>.+))?'
)


def read_yaml(text: str) -> Any:
    """The value of a document."""
    for bad in ("\t", "\r", "\x85", "\u2028", "\u2029", "{{"):
        assert bad not in text, f"{bad!r} in what is printed"
    assert text.endswith("\n")
    lines = [line for line in text.split("\n") if line.strip() and not line.strip().startswith("#")]
    value, rest = _block([(len(one) - len(one.lstrip(" ")), one.lstrip(" ")) for one in lines])
    assert not rest, rest
    return value


_Lines = list[tuple[int, str]]


def _block(lines: _Lines) -> tuple[Any, _Lines]:
    indent, first = lines[0]
    return _list(lines, indent) if first.startswith("- ") else _mapping(lines, indent)


def _list(lines: _Lines, indent: int) -> tuple[list[Any], _Lines]:
    items = []
    while lines and lines[0][0] == indent and lines[0][1].startswith("- "):
        first = lines[0][1].removeprefix("- ")
        if _KEY.fullmatch(first):
            item, lines = _mapping([(indent + 2, first), *lines[1:]], indent + 2)
        else:
            item, lines = json.loads(first), lines[1:]
        items.append(item)
    return items, lines


def _mapping(lines: _Lines, indent: int) -> tuple[dict[str, Any], _Lines]:
    mapping: dict[str, Any] = {}
    while lines and lines[0][0] == indent and not lines[0][1].startswith("- "):
        found = _KEY.fullmatch(lines[0][1])
        assert found, lines[0]
        key = found["plain"] or json.loads(found["quoted"])
        assert key not in mapping, f"{key!r} twice"
        lines = lines[1:]
        if found["rest"] is not None:
            mapping[key] = json.loads(found["rest"])
        else:
            assert lines, key
            assert lines[0][0] > indent, key
            mapping[key], lines = _block(lines)
    assert not lines or lines[0][0] <= indent, lines[0]
    return mapping, lines
