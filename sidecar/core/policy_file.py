"""TOML text of `policy.toml` -> `Policy`, or every problem of it at once.

Not part of `policy` because a decision needs no file format. A policy that admits nobody is a
problem here: a daemon that can only refuse is a mistake that should be seen at start. So is a key
that would not be enforced: whoever wrote it believes that it keeps somebody out.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import msgspec

from sidecar.core.cors import HEADER_NAME
from sidecar.core.endpoint import Endpoint
from sidecar.core.http_headers import plain_pattern
from sidecar.core.policy import PeerPattern, Policy, Rule, RuleLimits
from sidecar.core.presets import PREFIX, PRESETS, STEERING_HEADERS, all_steer, steers
from sidecar.core.toml_tables import (
    Name,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    shown,
    unknown_key,
)

Mode = Literal["http", "stream"]
Kind = Literal["allow", "deny"]
# One request in a quarter of an hour: what is rarer is no rate, and what is near 0 no number to
# calculate with.
Rate = Annotated[float, msgspec.Meta(ge=0.001, le=1_000_000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1_099_511_627_776)]
_NO_ENDPOINTS = "a list of what is forbidden is never complete: write in [[allow]] what is allowed"
_NOTHING_ELSE = "a denied peer gets nothing, so there is nothing else to say of it"
_NOT_IN_STREAM = 'it cannot be enforced in mode "stream"; it needs [backend] mode = "http"'


class DenyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[deny]]` table: peers alone, because a list of bad endpoints is never complete."""

    name: Name
    peers: tuple[PeerPattern, ...]


class AllowTable(DenyTable, frozen=True):
    """One `[[allow]]` table; all but name, peers and connections are for mode "http"."""

    endpoints: tuple[str, ...] = ()
    requests_per_second: Rate | None = None
    burst: Count | None = None
    concurrent_requests: Count | None = None
    max_body_bytes: Bytes | None = None
    connections: Count | None = None
    trusted_proxy: bool = False
    pass_headers: tuple[str, ...] = ()


KINDS: dict[Kind, type[DenyTable]] = {"allow": AllowTable, "deny": DenyTable}
REQUEST_LIMITS = ("requests_per_second", "burst", "concurrent_requests", "max_body_bytes")
LIMITS = (*REQUEST_LIMITS, "connections")
# What is about requests, and what a denied peer has no use for.
REQUEST_KEYS = ("endpoints", *REQUEST_LIMITS, "trusted_proxy", "pass_headers")
ALLOW_KEYS = (*REQUEST_KEYS, "connections")


def parse_policy(text: str, file: str, mode: Mode = "http") -> Policy:
    """Read `policy.toml`; raise `ProblemsError` with all that is wrong with it."""
    document = load_toml(text, file)
    problems = [
        unknown_key(file, "", key, list(KINDS)) for key in sorted(document.keys() - KINDS.keys())
    ]
    allow = _rules("allow", document, file, mode, problems)
    deny = _rules("deny", document, file, mode, problems)
    _check_names(document, file, problems)
    if not allow and not problems:
        hint = (
            'an empty policy admits nobody; write [[allow]] with name = "..." and peers = ["..."]'
        )
        problems.append(Problem(file, "", "no [[allow]] rule", "at least one", hint))
    if problems:
        raise ProblemsError(problems)
    return Policy(tuple(allow), tuple(deny))


def _rules(
    kind: Kind, document: dict[str, Any], file: str, mode: Mode, problems: list[Problem]
) -> list[Rule]:
    tables = document.get(kind, [])
    if not isinstance(tables, list):
        hint = f"write [[{kind}]] with two brackets"
        problems.append(Problem(file, f"[{kind}]", "one table", "a list of tables", hint))
        return []
    rules = []
    for number, table in enumerate(tables, start=1):
        where, before = f"[[{kind}]] #{number}", len(problems)
        misplaced = ALLOW_KEYS if kind == "deny" else REQUEST_KEYS if mode == "stream" else ()
        problems += _misplaced(kind, misplaced, table, file, where)
        readable = _without(misplaced, table)
        rule = read_table(KINDS[kind], readable, file, where, problems)
        if kind == "allow":
            problems += _unusable(readable, file, where)
        if rule is not None and len(problems) == before:
            rules.append(_rule(rule))
    return rules


def _misplaced(
    kind: Kind, keys: tuple[str, ...], table: object, file: str, where: str
) -> Iterator[Problem]:
    """Find the keys that are right elsewhere, and would do nothing here."""
    if not isinstance(table, dict):
        return
    expected = "name and peers only" if kind == "deny" else "name, peers and connections only"
    for key in filter(table.__contains__, keys):
        denied = _NO_ENDPOINTS if key == "endpoints" else _NOTHING_ELSE
        hint = denied if kind == "deny" else _NOT_IN_STREAM
        yield Problem(file, f"{where} {key}", "a value", expected, hint)


def _without(keys: tuple[str, ...], table: object) -> object:
    if not isinstance(table, dict):
        return table
    return {key: value for key, value in table.items() if key not in keys}


# This looks at the document and not at the structs, so that one problem of a table does not hide
# another one of it.
def _unusable(table: object, file: str, where: str) -> Iterator[Problem]:
    """Find endpoints that are none, and limits that would limit nothing."""
    if not isinstance(table, dict):
        return
    for key in LIMITS:
        if table.get(key) == "":
            expected = "a number; without the key there is no such limit"
            yield Problem(file, f"{where} {key}", "''", expected)
    if "burst" in table and "requests_per_second" not in table:
        hint = "it is how far requests_per_second may be exceeded, and limits nothing alone"
        yield Problem(file, f"{where} burst", "no rate", "requests_per_second beside it", hint)
    names = table.get("pass_headers", [])
    for name in names if isinstance(names, list) else [names]:
        if isinstance(name, str) and not _is_held_back(name):
            held = sorted({name for of_one in STEERING_HEADERS.values() for name in of_one})
            hint = "identities are never passed on, and all other headers always are"
            expected = f"one that is held back: {', '.join(held)}"
            yield Problem(file, f"{where} pass_headers", shown(name), expected, hint)
    texts = table.get("endpoints", [])
    for text in texts if isinstance(texts, list) else [texts]:
        if isinstance(text, str):
            try:
                _endpoints(text)
            except ValueError as exc:
                expected = str(exc).removeprefix("expected ")
                place = f"{where} endpoints"
                yield Problem(file, place, shown(text), expected, _nearest(text))


def _is_held_back(name: str) -> bool:
    """Tell whether `name` is a header that is not passed on, or with a star many of them."""
    plain = plain_pattern(name)
    held = all_steer(plain[:-1]) if plain.endswith("*") else steers(plain)
    return held and HEADER_NAME.fullmatch(name) is not None


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read one entry of `endpoints`, or raise `ValueError` with what was expected."""
    if not text.startswith(PREFIX):
        return (Endpoint.parse(text),)
    name = text.removeprefix(PREFIX)
    if name not in PRESETS:
        raise ValueError(f"expected a preset: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def _nearest(text: str) -> str | None:
    """Say what an entry of `endpoints` was probably meant to be."""
    near = get_close_matches(text.rpartition(":")[2].strip().lower(), PRESETS, n=1, cutoff=0.75)
    if near:
        return f'did you mean "{PREFIX}{near[0]}"?'
    method, _, path = text.partition(" ")
    if "?" in path or "#" in path:
        return "a query is never looked at: leave it out"
    if "*" in path:
        return "write {name} for one segment, {name...} for all that follow"
    if method.upper() != method and path.startswith("/"):
        return f'did you mean "{method.upper()} {path}"?'
    return None


def _rule(table: DenyTable) -> Rule:
    if not isinstance(table, AllowTable):
        return Rule(table.name, table.peers)
    # A dictionary for its order: what is named twice counts once, where it stands first.
    endpoints = dict.fromkeys(one for text in table.endpoints for one in _endpoints(text))
    presets = dict.fromkeys(
        text.removeprefix(PREFIX) for text in table.endpoints if text.startswith(PREFIX)
    )
    limits = RuleLimits(
        table.requests_per_second,
        table.burst,
        table.concurrent_requests,
        table.max_body_bytes,
        table.connections,
    )
    return Rule(
        table.name,
        table.peers,
        tuple(endpoints),
        limits,
        table.trusted_proxy,
        tuple(presets),
        frozenset(map(plain_pattern, table.pass_headers)),
    )


def _check_names(document: dict[str, Any], file: str, problems: list[Problem]) -> None:
    """A log line names the rule that decided; two of one name would make it a riddle."""
    lists = [tables for tables in map(document.get, KINDS) if isinstance(tables, list)]
    tables = [table for tables in lists for table in tables if isinstance(table, dict)]
    names = [table["name"] for table in tables if isinstance(table.get("name"), str)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(file, f"name = {name!r}", "two rules of that name", "one"))
