"""What `status` shows a person: a report as text for a terminal.

Gets a `Report`, gives something that rich prints; asks nobody. All times are seen from the moment
of the report, so that the clock of whoever looks does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.core.status import (
    AgentStatus,
    BackendStatus,
    FilesStatus,
    HookStatus,
    IdentityStatus,
    JwtSvidStatus,
    LoadStatus,
    PeerStatus,
    PolicyStatus,
    RefusalStatus,
    Report,
    Status,
)
from sidecar.operations.screen_text import ago, clock, count, line, lines, plain, size, span

_BAR_CELLS = 30
_MAX_PEERS = 12
_GOOD, _ODD, _BAD = "green", "yellow", "bold red"
Row = tuple[str, Text]


def screen(report: Report, *, only_ascii: bool = False) -> RenderableType:
    """Give all of a report."""
    status = report.status
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, text in (*_verdict(report), *_rows(status, only_ascii)):
        grid.add_row(label, text)
    parts: list[RenderableType] = [_head(status), "", grid]
    if status.refusals:
        parts += ["", _refusals(status.refusals, status.at)]
    return Group(*parts)


def not_reachable(since: datetime, reason: str) -> Text:
    """Say that nobody answers, since when, and why."""
    return lines(plain(f"not reachable since {clock(since)}", _BAD), reason)


def _head(status: Status) -> Text:
    up = span(status.at - status.started_at)
    rest = f" {status.version}, mode {status.mode}, pid {status.pid}, up {up}"
    return line(plain("spiffe-sidecar", "bold"), rest)


def _verdict(report: Report) -> Iterator[Row]:
    reasons = [line(plain(one.name, _BAD), f": {one.text}") for one in report.reasons]
    yield "ready", lines(plain("no", _BAD), *reasons) if not report.ready else plain("yes", _GOOD)
    warnings = [line(plain(one.name, _ODD), f": {one.text}") for one in report.warnings]
    if warnings:
        yield "warnings", lines(*warnings)


def _rows(status: Status, only_ascii: bool) -> Iterator[Row]:
    now = status.at
    identity = status.identity
    yield "identity", _identity(identity, now, only_ascii) if identity else plain("none", _BAD)
    yield "agent", _agent(status.agent, now)
    if status.files is not None:
        yield "files", _files(status.files, now)
    for svid in status.jwt_svids:
        yield "JWT-SVID", _jwt_svid(svid, now)
    for hook in status.hooks:
        yield "hook", _hook(hook, now)
    if status.listening:
        yield "listener", plain(", ".join(status.listening))
    if status.backend is not None:
        yield "backend", _backend(status.backend, now)
    if status.policy is not None:
        yield "policy", _policy(status.policy, now)
    if status.load is not None:
        yield "load", _load(status.load)
    yield from _peers(status.peers, now)


def _identity(identity: IdentityStatus, now: datetime, only_ascii: bool) -> Text:
    life, left = identity.not_after - identity.not_before, identity.not_after - now
    due = identity.rotation_expected
    alive = left > timedelta()
    ends = f"{span(left)} of {span(life)} left" if alive else f"expired {span(left)} ago"
    when = f"in {span(due - now)}" if due > now else f"was due {ago(due, now)}"
    return lines(
        identity.spiffe_id,
        line(_bar(left / life if alive else 0.0, only_ascii), f"  {ends}"),
        f"until {clock(identity.not_after)}, next rotation {when}",
        f"serial {identity.serial}",
        f"trust bundles of {', '.join(identity.trust_domains)}",
    )


def _bar(share: float, only_ascii: bool) -> Text:
    """Draw the share of life that is left; yellow when it should have been renewed."""
    style = "green" if share > 0.5 else "yellow" if share > 0.25 else "red"
    full, empty = ("#", ".") if only_ascii else ("\u2588", "\u2591")
    cells = min(_BAR_CELLS, round(share * _BAR_CELLS))
    return plain(full * cells + empty * (_BAR_CELLS - cells), style)


def _agent(agent: AgentStatus, now: datetime) -> Text:
    style = _GOOD if agent.state == "ready" else _ODD if agent.serving else _BAD
    discarded = agent.updates_discarded
    facts = [
        f" for {span(now - agent.since)}",
        f"{agent.source} {'connected' if agent.connected else 'not connected'}",
        count(agent.rotations, "rotation"),
        *([f"{count(discarded, 'update')} discarded"] if discarded else []),
    ]
    return lines(line(plain(agent.state, style), ", ".join(facts)), agent.reason)


def _files(files: FilesStatus, now: datetime) -> Text:
    published = f", published {ago(files.published_at, now)}" if files.published_at else ""
    generation = plain(files.generation or "none yet", _GOOD if files.generation else _ODD)
    when = f" {ago(files.failed_at, now)}" if files.failed_at else ""
    failure = line(plain(f"FAILED{when}", _BAD), f": {files.error}") if files.error else ""
    return lines(line(generation, f" in {files.directory}{published}"), failure)


def _jwt_svid(svid: JwtSvidStatus, now: datetime) -> Text:
    if svid.expires is None:
        left = plain("none yet", _ODD)
    elif svid.expires <= now:
        left = plain(f"expired {ago(svid.expires, now)}", _BAD)
    else:
        left = plain(f"{span(svid.expires - now)} left")
    error = line(plain("not refreshed", _BAD), f": {svid.error}") if svid.error else ""
    return lines(line(f"{svid.file} for {', '.join(svid.audiences)}: ", left), error)


def _hook(hook: HookStatus, now: datetime) -> Text:
    if hook.at is None:
        return lines(line(f"{hook.name} ", plain("not done yet", _ODD)), hook.action)
    if not hook.reason:
        done = f" {ago(hook.at, now)}, in {hook.seconds:g} s"
        return lines(line(f"{hook.name} ", plain("ok", _GOOD), done), hook.action)
    failed = plain("gave up" if hook.gave_up else "FAILED", _BAD)
    when = f" {ago(hook.at, now)}, attempt {hook.attempt}"
    return lines(line(f"{hook.name} ", failed, when), f"{hook.action}: {hook.reason}")


def _backend(backend: BackendStatus, now: datetime) -> Text:
    if backend.checked_at is None:
        return line(f"{backend.address} ", plain("not asked yet", _ODD))
    verdict = plain("DOWN", _BAD) if backend.reason else plain("up", _GOOD)
    since = f" for {span(now - backend.since)}" if backend.since else ""
    return lines(line(f"{backend.address} ", verdict, since), backend.reason)


def _policy(policy: PolicyStatus, now: datetime) -> Text:
    rules = f"{policy.allow} allow, {policy.deny} deny"
    loaded = f"{policy.file}: {rules}, loaded {ago(policy.loaded_at, now)}"
    if not policy.problems:
        return plain(loaded)
    when = f" {ago(policy.refused_at, now)}" if policy.refused_at else ""
    refused = line(plain(f"a newer one was REFUSED{when}", _BAD), ", the old one is in force")
    return lines(loaded, refused, *(f"  {problem}" for problem in policy.problems))


def _load(load: LoadStatus) -> Text:
    connections = f"{load.connections} of {load.connections_maximum} connections"
    running = f"{count(load.running, 'request')} running, {load.queued} queued"
    return plain(f"{connections}, {running}")


def _peers(peers: Sequence[PeerStatus], now: datetime) -> Iterator[Row]:
    for peer in peers[:_MAX_PEERS]:
        states = (
            ("running", peer.running),
            ("queued", peer.queued),
            ("refused", peer.refused),
            ("failed by the backend", peer.failed),
        )
        of_them = ", ".join(f"{number} {word}" for word, number in states if number)
        facts = [
            f"{peer.connections} open" if peer.connections else f"gone {ago(peer.last_seen, now)}",
            count(peer.requests, "request") + (f" ({of_them})" if of_them else ""),
            f"{size(peer.received)} in",
            f"{size(peer.sent)} out",
        ]
        yield "peer", lines(plain(peer.name), ", ".join(facts))
    if len(peers) > _MAX_PEERS:
        yield "", plain(f"and {len(peers) - _MAX_PEERS} more peers")


def _refusals(refusals: Sequence[RefusalStatus], now: datetime) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("refused", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("who, and why", overflow="fold")
    for one in refusals:
        times = f", {one.times} times" if one.times > 1 else ""
        who = one.peer if one.proven else f"claims {one.peer or 'nothing'}"
        why = lines(f"{who}{times}", one.reason)
        table.add_row(plain(ago(one.at, now)), plain(one.address), why)
    return table
