"""TOML text of `policy.toml` -> `Policy`, or every problem of it at once.

Not part of `policy` because a decision needs no file format. A policy that admits nobody is a
problem here: a daemon that can only refuse is a mistake that should be seen at start.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sidecar.core.policy import PeerPattern, Policy, Rule, RuleLimits
from sidecar.core.presets import EndpointSet
from sidecar.core.toml_tables import (
    Name,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    unknown_key,
)

Mode = Literal["http", "stream"]
T = TypeVar("T", bound="DenyTable")
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class DenyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[deny]]` table: peers alone, because a list of bad endpoints is never complete."""

    name: Name
    peers: tuple[PeerPattern, ...]


class AllowTable(DenyTable, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[allow]]` table; all but the first two keys are for mode `http`."""

    endpoints: tuple[EndpointSet, ...] = ()
    requests_per_second: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    burst: Positive | None = None
    concurrent_requests: Positive | None = None
    max_body_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_099_511_627_776)] | None = None
    trusted_proxy: bool = False

    def rule(self) -> Rule:
        """Give the rule that decides."""
        limits = RuleLimits(
            self.requests_per_second, self.burst, self.concurrent_requests, self.max_body_bytes
        )
        endpoints = tuple(dict.fromkeys(one for group in self.endpoints for one in group.endpoints))
        return Rule(self.name, self.peers, endpoints, limits, self.trusted_proxy)


KINDS: dict[str, type[DenyTable]] = {"allow": AllowTable, "deny": DenyTable}
_ONLY_HTTP = [field for field in AllowTable.__struct_fields__ if field not in ("name", "peers")]


def parse_policy(text: str, file: str, mode: Mode = "http") -> Policy:
    """Read `policy.toml`; raise `ProblemsError` with all that is wrong with it."""
    document = load_toml(text, file)
    problems = [
        unknown_key(file, "", key, list(KINDS)) for key in sorted(document.keys() - KINDS.keys())
    ]
    allow = [one.rule() for one in _tables(AllowTable, document, file, mode, problems)]
    deny = _tables(DenyTable, document, file, mode, problems)
    _check_names([*(rule.name for rule in allow), *(one.name for one in deny)], file, problems)
    if not allow and not problems:
        hint = (
            'an empty policy admits nobody; write [[allow]] with name = "..." and peers = ["..."]'
        )
        problems.append(Problem(file, "", "no [[allow]] rule", "at least one", hint))
    if problems:
        raise ProblemsError(problems)
    return Policy(tuple(allow), tuple(Rule(one.name, one.peers) for one in deny))


def _tables(
    kind: type[T],
    document: dict[str, Any],
    file: str,
    mode: Mode,
    problems: list[Problem],
) -> list[T]:
    name = next(name for name, table in KINDS.items() if table is kind)
    tables = document.get(name, [])
    if not isinstance(tables, list):
        hint = f"write [[{name}]] with two brackets"
        problems.append(Problem(file, f"[{name}]", "one table", "a list of tables", hint))
        return []
    read = []
    for number, table in enumerate(tables, start=1):
        where = f"[[{name}]] #{number}"
        one = read_table(kind, table, file, where, problems)
        if isinstance(table, dict):
            _check_keys(table, file, where, mode, problems)
        if one is not None:
            read.append(one)
    return read


def _check_keys(
    table: dict[str, Any], file: str, where: str, mode: Mode, problems: list[Problem]
) -> None:
    """Refuse keys that would not be enforced: who wrote them counts on them."""
    for key in _ONLY_HTTP if mode == "stream" else ():
        if key in table:
            hint = 'write [backend] mode = "http" in sidecar.toml'
            expected = "no such key in mode stream, where nobody looks into the bytes"
            problems.append(Problem(file, f"{where} {key}", "a value", expected, hint))
    if "burst" in table and "requests_per_second" not in table:
        expected = "requests_per_second beside it"
        problems.append(Problem(file, f"{where} burst", "no rate", expected))


def _check_names(names: list[str], file: str, problems: list[Problem]) -> None:
    """A log line names the rule that decided; two of one name would make it a riddle."""
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(file, f"name = {name!r}", "two rules of that name", "one"))
