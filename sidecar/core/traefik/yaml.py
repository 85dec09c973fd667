"""Values -> YAML as Traefik reads it, with comments, for a person who goes on with the file.

Every string is written in double quotes, whatever it holds, so no value is ever taken for another
one, for a comment, or for a template: Traefik runs its dynamic configuration through Go's
templates before it reads it, and `{{` in a value would be code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

# What is not printable in YAML 1.2 (5.1, Character Set), its line breaks, and what begins a
# template.
_ESCAPED = re.compile('["\\\\{\x00-\x1f\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]')
_TEMPLATE = re.compile(r"\{(?=\{)")
_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
# YAML 1.1 takes these for truth values, and programs still do.
_NOT_PLAIN = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True, slots=True)
class Noted:
    """A value, and the comment above it."""

    note: str
    value: Value


Value: TypeAlias = "str | int | bool | Noted | Sequence[Value] | Mapping[str, Value]"


def document(head: str, mapping: Mapping[str, Value]) -> str:
    """Give the text of a file that begins with a comment."""
    return "".join(f"{line}\n" for line in [*comment(head), *_mapping(mapping)])


def comment(text: str) -> Iterator[str]:
    """Give lines of a comment; one that holds a path must not begin a template either."""
    for line in text.split("\n"):
        yield _TEMPLATE.sub("{ ", f"# {line}".rstrip())


def quoted(text: str) -> str:
    """Give a double-quoted scalar, which can hold everything and ends on its line."""
    return '"' + _ESCAPED.sub(lambda found: _escape(found[0]), text) + '"'


def _mapping(mapping: Mapping[str, Value]) -> Iterator[str]:
    for key, value in mapping.items():
        if isinstance(value, Noted):
            yield from comment(value.note)
            value = value.value  # noqa: PLW2901 - from here on it is that
        lines = list(_lines(value))
        if isinstance(value, str | int):
            yield f"{_key(key)}: {lines[0]}"
        elif not lines:
            yield f"{_key(key)}: {'{}' if isinstance(value, Mapping) else '[]'}"
        else:
            yield f"{_key(key)}:"
            yield from (f"  {line}" for line in lines)


def _lines(value: Value) -> Iterator[str]:
    if isinstance(value, bool):
        yield "true" if value else "false"
    elif isinstance(value, int):
        yield str(value)
    elif isinstance(value, str):
        yield quoted(value)
    elif isinstance(value, Noted):
        yield from (*comment(value.note), *_lines(value.value))
    elif isinstance(value, Mapping):
        yield from _mapping(value)
    else:
        for item in value:
            for at, line in enumerate(_lines(item)):
                yield f"{'  ' if at else '- '}{line}"


def _key(key: str) -> str:
    plain = _PLAIN_KEY.fullmatch(key) and key.lower() not in _NOT_PLAIN
    return key if plain else quoted(key)


def _escape(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"
