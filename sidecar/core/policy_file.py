"""TOML text of `policy.toml` -> `Policy`, or every problem of it at once.

Not part of `policy` because a decision needs no file format. A policy that admits nobody is a
problem here: a daemon that can only refuse is a mistake that should be seen at start.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.core.policy import PeerPattern, Policy, Rule
from sidecar.core.toml_tables import (
    Name,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    unknown_key,
)


class RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[allow]]` or `[[deny]]` table."""

    name: Name
    peers: tuple[PeerPattern, ...]


def parse_policy(text: str, file: str) -> Policy:
    """Read `policy.toml`; raise `ProblemsError` with all that is wrong with it."""
    document = load_toml(text, file)
    problems = [
        unknown_key(file, "", key, ["allow", "deny"])
        for key in sorted(document.keys() - {"allow", "deny"})
    ]
    allow = _rules("allow", document, file, problems)
    deny = _rules("deny", document, file, problems)
    _check_names(allow + deny, file, problems)
    if not allow and not problems:
        hint = (
            'an empty policy admits nobody; write [[allow]] with name = "..." and peers = ["..."]'
        )
        problems.append(Problem(file, "", "no [[allow]] rule", "at least one", hint))
    if problems:
        raise ProblemsError(problems)
    return Policy(tuple(allow), tuple(deny))


def _rules(kind: str, document: dict[str, Any], file: str, problems: list[Problem]) -> list[Rule]:
    tables = document.get(kind, [])
    if not isinstance(tables, list):
        hint = f"write [[{kind}]] with two brackets"
        problems.append(Problem(file, f"[{kind}]", "one table", "a list of tables", hint))
        return []
    rules = []
    for number, table in enumerate(tables, start=1):
        label = f"[[{kind}]] #{number}"
        rule = read_table(RuleTable, table, file, label, problems)
        if rule is not None:
            rules.append(Rule(rule.name, rule.peers))
    return rules


def _check_names(rules: list[Rule], file: str, problems: list[Problem]) -> None:
    """A log line names the rule that decided; two of one name would make it a riddle."""
    names = [rule.name for rule in rules]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(file, f"name = {name!r}", "two rules of that name", "one"))
