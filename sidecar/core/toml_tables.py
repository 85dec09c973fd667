"""TOML text -> frozen structs, with every problem of a file at once.

Gets text and a `msgspec` struct per table, gives the struct or adds to a list of `Problem`s: what
was found, what was expected, in which file, table and key, and the nearest key for a typo.
Text becomes domain values (`SpiffeId`, `Address`, ...) in the same pass; nothing fills in
defaults later. This is not part of `config` because the policy file is read by the same rules.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import msgspec

from sidecar.core.errors import ConfigError, InvalidSpiffeIdError, SidecarError
from sidecar.core.spiffe_id import TrustDomain

S = TypeVar("S", bound=msgspec.Struct)
_MODE = re.compile(r"0?[0-7]{3}")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the tables of a configuration."""


class FileMode(int):
    """Permission bits, written as an octal string: `"0640"`."""

    allowed = 0o644

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an octal mode that lets only the owner write."""
        mode = cls(text, 8) if _MODE.fullmatch(text) else cls(-1)
        if mode & ~cls.allowed or not mode & 0o400:
            raise ValueError(
                f'expected an octal mode that lets the owner read, at most "{cls.allowed:04o}"'
            )
        return mode


class KeyMode(FileMode):
    """Permission bits of a private key: nothing for others."""

    allowed = 0o640


class Name(str):
    """A name that a log line can show."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Refuse an empty name and one that would break a line."""
        if not text.strip() or not text.isprintable():
            raise ValueError("expected printable text that is not empty")
        return cls(text)


class FilePath(str):
    """The path of a file or folder."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Refuse what no system takes for a path."""
        if not text or "\0" in text:
            raise ValueError("expected a path")
        return cls(text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one file."""

    file: str
    where: str  # "[table] key", "[table]" or empty for the whole file
    found: str
    expected: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}" if self.where else self.file
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{place}: found {self.found}, expected {self.expected}{hint}"


class ProblemsError(ConfigError):
    """All problems of a configuration and its policy."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


def load_toml(text: str, file: str) -> dict[str, Any]:
    """Read TOML, or raise `ProblemsError` with the parser's line and column."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError, and Python's own limits
        raise ProblemsError([Problem(file, "", f"a syntax error: {exc}", "TOML")]) from exc


def read_table(
    struct: type[S], table: object, file: str, where: str, problems: list[Problem]
) -> S | None:
    """Give `struct` from one TOML table; on any problem add it to `problems` and give None."""
    if not isinstance(table, dict):
        problems.append(Problem(file, where, shown(table), "a table"))
        return None
    before = len(problems)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    for key in sorted(table.keys() - fields.keys()):
        problems.append(unknown_key(file, where, key, list(fields)))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            # An empty string means "not set" wherever not set is a choice.
            if table[name] == [] and field.default == ():
                continue
            if not (table[name] == "" and field.default is None):
                values[name] = _value(field.type, table[name], file, f"{where} {name}", problems)
        elif field.required:
            problems.append(
                Problem(file, f"{where} {name}", "nothing", "a value: it has no default")
            )
    return struct(**values) if len(problems) == before else None


def read_tables(
    struct: type[S], name: str, document: dict[str, Any], file: str, problems: list[Problem]
) -> list[S]:
    """Give a struct for each `[[name]]` of a document that can be read; add the rest's problems."""
    tables = document.get(name, [])
    if not isinstance(tables, list):
        hint = f"write [[{name}]] with two brackets"
        problems.append(Problem(file, f"[{name}]", "one table", "a list of tables", hint))
        return []
    read = [
        read_table(struct, table, file, f"[[{name}]] #{number}", problems)
        for number, table in enumerate(tables, start=1)
    ]
    return [table for table in read if table is not None]


def unknown_key(file: str, where: str, key: str, known: list[str]) -> Problem:
    """Give the problem for a key that nobody reads, with the nearest one that is read."""
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else None
    return Problem(file, where, f"the unknown key {key!r}", f"one of {', '.join(known)}", hint)


def shown(value: object) -> str:
    """Give a value as a message shows it."""
    return repr(value) if len(repr(value)) <= 200 else repr(value)[:200] + "..."


def _value(kind: Any, value: object, file: str, where: str, problems: list[Problem]) -> Any:
    """Convert one value; where a list is asked for, one string stands for a list of one."""
    inner = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) in (UnionType, Union) and len(inner) == 1:
        kind = inner[0]
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list) else [value]
        if not items:
            problems.append(Problem(file, where, "an empty list", "at least one entry"))
        return tuple(_value(get_args(kind)[0], item, file, where, problems) for item in items)
    if get_origin(kind) is Mapping:
        return _mapping(get_args(kind), value, file, where, problems)
    try:
        if parse := _parser(kind):
            return _domain_value(parse, value)
        return msgspec.convert(value, kind)
    except (ValueError, SidecarError) as exc:  # msgspec.ValidationError is a ValueError
        problems.append(Problem(file, where, shown(value), _expected(kind, exc)))
        return None


def _mapping(
    kinds: tuple[Any, ...], value: object, file: str, where: str, problems: list[Problem]
) -> dict[Any, Any]:
    """Convert a table inside of a table, whose keys are the user's own."""
    if not isinstance(value, dict):
        problems.append(Problem(file, where, shown(value), "a table"))
        return {}
    of_keys, of_values = kinds
    return {
        _value(of_keys, key, file, f"{where}: key", problems): _value(
            of_values, one, file, f"{where} {key!r}", problems
        )
        for key, one in value.items()
    }


def _parser(kind: Any) -> Callable[[str], object] | None:
    """Give the `parse` of a domain type; the types of TOML itself have none."""
    return getattr(kind, "parse", None)


def _domain_value(parse: Callable[[str], object], value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return parse(value)


def _expected(kind: Any, exc: ValueError | SidecarError) -> str:
    """Say what a key takes; `exc` tells what our own parsers missed."""
    if isinstance(exc, InvalidSpiffeIdError):
        what = "a trust domain" if kind is TrustDomain else "a SPIFFE ID"
        return f"{what}: {exc.reason}"
    if _parser(kind):
        return str(exc).removeprefix("expected ")
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is Annotated:
        number, bounds = get_args(kind)
        name = "an integer" if number is int else "a number"
        low = f"at least {bounds.ge}" if bounds.ge is not None else f"above {bounds.gt}"
        return f"{name}, {low} and at most {bounds.le}"
    return {str: "a string", bool: "true or false"}[kind]
