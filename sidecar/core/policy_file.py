"""TOML text of `policy.toml` -> `Policy`, or every problem of it at once.

Not part of `policy` because a decision needs no file format. A policy that admits nobody is a
problem here: a daemon that can only refuse is a mistake that should be seen at start.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from sidecar.core.endpoint import Endpoint
from sidecar.core.policy import PeerPattern, Policy, Rule, RuleLimits
from sidecar.core.presets import PRESETS
from sidecar.core.toml_tables import (
    Name,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    unknown_key,
)

Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[allow]]` table."""

    name: Name
    peers: tuple[PeerPattern, ...]
    endpoints: tuple[str, ...] = ()
    requests_per_second: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    burst: Positive | None = None
    concurrent_requests: Positive | None = None
    max_body_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_099_511_627_776)] | None = None
    trusted_proxy: bool = False


def parse_policy(text: str, file: str, mode: str = "http") -> Policy:
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
            endpoints: list[Endpoint] = []
            for text in rule.endpoints:
                if text.startswith("preset:"):
                    endpoints += PRESETS[text.removeprefix("preset:")]
                else:
                    endpoints.append(Endpoint.parse(text))
            limits = RuleLimits(
                rule.requests_per_second, rule.burst, rule.concurrent_requests, rule.max_body_bytes
            )
            rules.append(Rule(rule.name, rule.peers, tuple(endpoints), limits, rule.trusted_proxy))
    return rules


def _check_names(rules: list[Rule], file: str, problems: list[Problem]) -> None:
    """A log line names the rule that decided; two of one name would make it a riddle."""
    names = [rule.name for rule in rules]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(file, f"name = {name!r}", "two rules of that name", "one"))
