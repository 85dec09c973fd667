"""What was done, for a person's terminal and, as JSON, for a program.

No join token is in either: agents that have one are named without it, and of the token itself only
its file and its time are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sidecar.adapters.spire_server import SpireServer
from sidecar.core.registration.entries import Agent, Entry, without_token
from sidecar.core.registration.plan import NONE, SERVERS_DEFAULT, Step, fields
from sidecar.core.status import printable
from sidecar.operations.register_workload.next_steps import next_steps
from sidecar.operations.register_workload.work import (
    AGENT_CONF,
    TRUST_BUNDLE,
    Outcome,
    commands,
)
from sidecar.operations.screen_text import clock, span

_WIDTH = 10
_DONE = {
    "create": "created",
    "update": "changed",
    "unchanged": "unchanged",
    "remove": "removed",
    "absent": "is not there",
    "keep": "stays",
}
_WOULD = {**_DONE, "create": "would be created", "update": "would be changed"} | {
    "remove": "would be removed"
}


def lines(outcome: Outcome, server: SpireServer, now: float) -> Iterator[str]:
    """Give the report for a terminal."""
    request = outcome.request
    if request.dry_run:
        yield "dry run: nothing is changed"
        yield ""
    yield _row("server", f"trust domain {request.trust_domain}")
    for step in outcome.steps:
        yield from _step_lines(step, dry_run=request.dry_run)
    yield from _agent_lines(outcome, now)
    yield from _file_lines(outcome, now)
    if not outcome.changed and not outcome.plan.unasked:
        yield ""
        yield "nothing to do: all is as asked"
    if request.dry_run:
        yield from _command_lines(outcome, server)
    if request.folder is None:
        yield from _text_lines(outcome)
    steps = list(next_steps(outcome, now))
    if steps:
        yield ""
        yield "next:"
        yield from (f"  {number}. {text}" for number, text in enumerate(steps, 1))


def as_json(outcome: Outcome, server: SpireServer, now: float) -> dict[str, Any]:
    """Give the report for a program; names and kinds of values here are a contract."""
    request, plan, token = outcome.request, outcome.plan, outcome.token
    return {
        "trust_domain": str(request.trust_domain),
        "alias": str(request.alias),
        "dry_run": request.dry_run,
        "server_asked": plan.unasked is None,
        "changed": outcome.changed,
        "entries": [_json_step(step) for step in outcome.steps],
        "agents": [_json_agent(agent) for agent in plan.alias.agents],
        "evicted": len(plan.evictions),
        "files": [{"path": str(one.path), "changed": one.changed} for one in outcome.files],
        "join_token": {"file": str(token.path), "expires_at": _moment(token.expires_at)}
        if token
        else None,
        "agent_conf": outcome.agent_conf,
        "trust_bundle": outcome.trust_bundle,
        "commands_to_look": [server.arguments(command) for command in server.looked],
        "commands": [server.arguments(command) for command in commands(plan, request)],
        "warnings": warnings(outcome),
        "notes": notes(outcome),
        "next_steps": list(next_steps(outcome, now)),
    }


def warnings(outcome: Outcome) -> list[str]:
    """Give what a person has to think about."""
    return [_harmless(text) for text in (*_unasked(outcome), *outcome.plan.warnings)]


def notes(outcome: Outcome) -> list[str]:
    """Give what a person may want to know."""
    return [_harmless(text) for text in outcome.plan.notes]


def _unasked(outcome: Outcome) -> list[str]:
    unasked = outcome.plan.unasked
    if unasked is None:
        return []
    return [
        f"the server could not be asked, so this is the plan for one without entries, and its "
        f"trust domain is not known: {unasked.message} ({unasked.hint})"
    ]


def _step_lines(step: Step, *, dry_run: bool) -> Iterator[str]:
    words = (_WOULD if dry_run else _DONE)[step.action]
    reason = f", because {step.reason}" if step.reason else ""
    yield _row(step.role, f"{step.entry.spiffe_id} {words}{reason}")
    if step.action == "absent":
        return
    yield from (_row("", str(change)) for change in step.changes)
    changed = {change.field for change in step.changes}
    if step.entry.id:
        yield _row("", f"entry {step.entry.id}")
    if step.role == "alias":
        return
    yield _row("", f"parent {without_token(step.entry.parent_id)}")
    for field, value in fields(step.entry).items():
        if field not in changed and value not in (NONE, SERVERS_DEFAULT):
            yield _row("", f"{field} {value}")


def _agent_lines(outcome: Outcome, now: float) -> Iterator[str]:
    for agent in outcome.plan.alias.agents:
        until = clock(datetime.fromtimestamp(agent.expires_at, UTC))
        valid = "is" if agent.expires_at > now else "was"
        words = f"{_agent_state(agent, outcome)}; its SVID {valid} valid until {until}"
        yield _row("agent", f"{without_token(agent.spiffe_id)} {words}")


def _agent_state(agent: Agent, outcome: Outcome) -> str:
    if agent in outcome.plan.evictions:
        return "would be evicted" if outcome.request.dry_run else "evicted"
    steps = [step for step in outcome.steps if step.role == "alias"]
    if not any(step.entry.parent_id == agent.spiffe_id and step.command for step in steps):
        return "has the alias"
    return "would lose the alias" if outcome.request.dry_run else "has lost the alias, but stays"


def _file_lines(outcome: Outcome, now: float) -> Iterator[str]:
    dry_run = outcome.request.dry_run
    for file in outcome.files:
        written = "would be written" if dry_run else "written"
        yield _row("file", f"{file.path} {written if file.changed else 'unchanged'}")
    token = outcome.token
    if token is None:
        return
    if token.expires_at is None:
        yield _row("token", f"would be made, into {token.path} (0600)")
        return
    until = clock(datetime.fromtimestamp(token.expires_at, UTC))
    left = span(timedelta(seconds=max(token.expires_at - now, 0)))
    yield _row("token", f"in {token.path} (0600), for one use until {until}, in {left}")


def _command_lines(outcome: Outcome, server: SpireServer) -> Iterator[str]:
    yield ""
    yield "commands that were run to look; they change nothing:"
    yield from (f"  {server.shown(command)}" for command in server.looked)
    planned = commands(outcome.plan, outcome.request)
    yield ""
    yield "commands that would be run:" if planned else "no command would be run"
    for command in planned:
        if command[0] == "token":
            yield "  # this one prints the join token; it is read from a pipe into its file"
        yield f"  {server.shown(command)}"


def _text_lines(outcome: Outcome) -> Iterator[str]:
    for name, text in ((AGENT_CONF, outcome.agent_conf), (TRUST_BUNDLE, outcome.trust_bundle)):
        if text is not None and outcome.agent_conf is not None:
            yield ""
            yield f"# ---- {name}"
            yield text.rstrip("\n")


def _row(title: str, text: str) -> str:
    return f"{title:<{_WIDTH}}{_harmless(text)}"


def _harmless(text: str) -> str:
    return without_token(printable(text))


def _json_step(step: Step) -> dict[str, Any]:
    return {
        "role": step.role,
        "action": step.action,
        "reason": step.reason or None,
        "changes": [{"field": one.field, "old": one.old, "new": one.new} for one in step.changes],
        **_json_entry(step.entry),
    }


def _json_entry(entry: Entry) -> dict[str, Any]:
    return {
        "entry_id": entry.id or None,
        "spiffe_id": str(entry.spiffe_id),
        "parent_id": without_token(entry.parent_id),
        "selectors": [without_token(selector) for selector in entry.selectors],
        "dns_names": list(entry.dns_names),
        "x509_svid_ttl": entry.x509_svid_ttl,
    }


def _json_agent(agent: Agent) -> dict[str, Any]:
    return {
        "spiffe_id": without_token(agent.spiffe_id),
        "svid_expires_at": _moment(agent.expires_at),
        "banned": agent.banned,
    }


def _moment(at: int | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
