"""The findings for people, a line a check, and as JSON for programs.

What was seen comes from outside: no character of it reaches a terminal that it might act on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import click
import msgspec

from sidecar.core.diagnosis.catalogue import CHECKS
from sidecar.core.diagnosis.finding import Finding, Verdict
from sidecar.core.status import printable

# Of the JSON: raised when something in it changes its meaning or goes.
_VERSION = 1
_STYLES = {
    Verdict.OK: ("ok", "green"),
    Verdict.WARN: ("warn", "yellow"),
    Verdict.FAIL: ("FAIL", "red"),
    Verdict.SKIPPED: ("skip", "bright_black"),
}
_WIDTH = max(map(len, CHECKS))


def lines(findings: Sequence[Finding], *, verbose: bool) -> Iterator[str]:
    """Give the screen: groups, a line for each check, the remedy below it, the summary last."""
    group = ""
    for one in findings:
        if one.group != group:
            yield from (
                ("", click.style(one.group, bold=True))
                if group
                else (click.style(one.group, bold=True),)
            )
            group = one.group
        yield from _lines(one, verbose=verbose)
    yield ""
    yield _summary(findings)


def _lines(one: Finding, *, verbose: bool) -> Iterator[str]:
    word, colour = _STYLES[one.verdict]
    seen = [printable(text) for text in one.seen.splitlines()] or [""]
    shown = seen if verbose or one.verdict is not Verdict.OK else [""]
    yield f"  {click.style(f'{word:<4}', fg=colour)}  {one.name:<{_WIDTH}}  {shown[0]}".rstrip()
    for text in shown[1:]:
        yield f"  {'':<4}  {'':<{_WIDTH}}  {text}"
    if one.verdict in (Verdict.WARN, Verdict.FAIL) or (one.remedy and verbose):
        for number, text in enumerate(one.remedy.splitlines()):
            yield f"        {'do:' if not number else '   '} {printable(text)}"


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(one.verdict for one in findings)
    parts = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
    failed = [one.name for one in findings if one.verdict is Verdict.FAIL]
    first = f"; begin with {failed[0]}" if failed else ""
    return f"{len(findings)} checks: {', '.join(parts)}{first}"


def as_json(findings: Sequence[Finding]) -> bytes:
    """Give everything for programs: names and keys never change their meaning."""
    counts = Counter(one.verdict for one in findings)
    document = {
        "version": _VERSION,
        "ok": not counts[Verdict.FAIL],
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "findings": [
            {
                "name": one.name,
                "group": one.group,
                "verdict": one.verdict.value,
                "seen": _printable(one.seen),
                "remedy": _printable(one.remedy),
            }
            for one in findings
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _printable(text: str) -> str:
    return "\n".join(printable(one) for one in text.splitlines())
