"""What has to be done, from what is asked for and what the server has; nothing is changed here.

Reads the server with commands that change nothing. In a dry run a server that cannot be asked is
no error: then the plan is the one for a server without entries, and says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.adapters.spire_server import SpireServer
from sidecar.core.errors import RegistrationError
from sidecar.core.registration.advice import (
    AGENT_TTL_ADVICE,
    address_advice,
    parent_advice,
    selector_advice,
    token_advice,
    ttl_advice,
)
from sidecar.core.registration.answers import read_agents, read_authorities, read_entries
from sidecar.core.registration.entries import (
    Agent,
    Authorities,
    Entry,
    Registration,
    agents_command,
    bundle_command,
    entries_command,
    is_token_agent,
    without_token,
)
from sidecar.core.registration.plan import (
    Step,
    other_ids_of_the_process,
    plan_alias_removal,
    plan_registration,
    plan_removal,
    same_id_beside,
    same_id_elsewhere,
)
from sidecar.operations.register_workload.request import Request


@dataclass(frozen=True, slots=True)
class Platform:
    """What the server has of what concerns us; `authorities` is None if it could not be asked."""

    authorities: Authorities | None = None
    entries: tuple[Entry, ...] = ()
    agents: tuple[Agent, ...] = ()


@dataclass(frozen=True, slots=True)
class AliasState:
    """The agents that have the host's alias, and how many join tokens have none (yet, or any more).

    `by_others` are entries that give the alias to agents by other means than a token of ours.
    """

    agents: tuple[Agent, ...] = ()
    tokens_without_agent: int = 0
    by_others: int = 0

    def alive(self, now: float) -> list[Agent]:
        """Give the agents whose workloads get their SVIDs."""
        return [agent for agent in self.agents if agent.expires_at > now and not agent.banned]


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done, in this order, and what should be known about it."""

    steps: tuple[Step, ...]
    evictions: tuple[Agent, ...]
    alias: AliasState
    platform: Platform
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    # Why the server could not be asked, in a dry run.
    unasked: RegistrationError | None = None


def make_plan(request: Request, server: SpireServer, now: float) -> Plan:
    """Look at the server and plan, or raise `RegistrationError`."""
    unasked = None
    try:
        platform = _look(request, server)
    except RegistrationError as exc:
        # What is to be removed, only the server can say.
        if not request.dry_run or request.remove:
            raise
        platform, unasked = Platform(), exc
    if platform.authorities and not _is_of(request, platform.authorities):
        raise RegistrationError(
            f"the server's trust domain is {platform.authorities.trust_domain!r}, "
            f"expected {str(request.trust_domain)!r}",
            "correct --trust-domain, or ask another server with --spire-server or --socket-path",
        )
    alias = _alias_state(request, platform)
    if request.remove:
        steps, evictions = _removal(request, platform, alias)
    else:
        steps = [plan_registration(one, platform.entries) for one in request.registrations]
        evictions = ()
    return Plan(
        steps=tuple(steps),
        evictions=evictions,
        alias=alias,
        platform=platform,
        warnings=(
            *_advice(request, steps),
            *(_warnings(request, platform, steps, alias, now) if not unasked else ()),
        ),
        notes=tuple(_notes(request, platform, steps, alias, now)),
        unasked=unasked,
    )


def _look(request: Request, server: SpireServer) -> Platform:
    authorities = read_authorities(server.look(bundle_command()))
    if not _is_of(request, authorities):
        return Platform(authorities)  # nothing else is of interest there
    entries: dict[str, Entry] = {}
    for command in _questions(request):
        for entry in read_entries(server.look(command)):
            entries[entry.id] = entry
    agents = read_agents(server.look(agents_command()))
    return Platform(authorities, tuple(entries.values()), tuple(agents))


def _questions(request: Request) -> Iterator[tuple[str, ...]]:
    yield entries_command(spiffe_id=request.alias)
    for one in request.registrations:
        yield entries_command(spiffe_id=one.spiffe_id)
        yield entries_command(parent_id=one.parent_id)
    if request.remove:
        # A nested server may hang on the alias, too, and is not in the list without this.
        yield entries_command(parent_id=request.alias, downstream=True)


def _is_of(request: Request, authorities: Authorities) -> bool:
    return authorities.trust_domain.removeprefix("spiffe://") == str(request.trust_domain)


def _alias_state(request: Request, platform: Platform) -> AliasState:
    aliases = [entry for entry in platform.entries if entry.spiffe_id == request.alias]
    ours = {entry.parent_id for entry in aliases if entry.is_token_alias}
    agents = tuple(agent for agent in platform.agents if agent.spiffe_id in ours)
    others = sum(not entry.is_token_alias for entry in aliases)
    return AliasState(agents, len(ours) - len(agents), others)


def _removal(
    request: Request, platform: Platform, alias: AliasState
) -> tuple[list[Step], tuple[Agent, ...]]:
    steps = [plan_removal(one, platform.entries) for one in request.registrations]
    aliases = [entry for entry in platform.entries if entry.spiffe_id == request.alias]
    children = [entry for entry in platform.entries if entry.parent_id == request.alias]
    going = {step.entry.id for step in steps if step.action == "remove"}
    alias_steps = plan_alias_removal(aliases, children, going)
    if not request.evict_agent:
        return [*steps, *alias_steps], ()
    if kept := [step for step in alias_steps if step.action == "keep"]:
        raise RegistrationError(
            f"the agent is not evicted, and nothing was changed: {request.alias} is still in use: "
            f"{kept[0].reason}",
            "leave out --evict-agent, or remove those entries first",
        )
    return [*steps, *alias_steps], alias.agents


def _advice(request: Request, steps: list[Step]) -> Iterator[str]:
    """Give what can be said without the server."""
    if request.remove:
        return
    for step in steps:
        yield from selector_advice(step.role, step.entry.selectors)
        yield from ttl_advice(step.entry, step.role)
        yield from parent_advice(step.entry, step.role)
    if request.token_ttl is not None:
        yield from token_advice(request.token_ttl)
    if request.server is not None:
        yield from address_advice(request.server)


def _warnings(
    request: Request, platform: Platform, steps: list[Step], alias: AliasState, now: float
) -> Iterator[str]:
    if request.remove:
        return
    for step in steps:
        if others := other_ids_of_the_process(step, platform.entries):
            yield (
                f"{step.role}: the same process also gets {', '.join(map(str, others))}: say which "
                "one it is to use ([workload_api] spiffe_id for the sidecar)"
            )
    for one in request.registrations:
        yield from _elsewhere(one, platform)
    yield from _alias_warnings(request, alias, now)


def _elsewhere(one: Registration, platform: Platform) -> Iterator[str]:
    for entry in same_id_elsewhere(one, platform.entries):
        if is_token_agent(entry.parent_id):
            yield (
                f"{one.role}: entry {entry.id} gives the same ID below the agent of one join "
                "token, and dies with it; it can go: "
                f"`spire-server entry delete -entryID {shlex.quote(entry.id)}`"
            )


def _alias_warnings(request: Request, alias: AliasState, now: float) -> Iterator[str]:
    if request.token_ttl is not None or alias.by_others:
        return
    if alias.alive(now):
        return
    if any(agent.banned for agent in alias.agents):
        yield f"the agent of {request.alias} is banned, so its workloads get nothing"
    elif alias.agents:
        yield (
            f"the SVID of the agent of {request.alias} has expired: it needs a new join token, "
            "by --generate-token"
        )
    elif alias.tokens_without_agent:
        yield (
            f"no agent has come yet with the join token for {request.alias}; once it has "
            "expired, --generate-token makes another"
        )
    else:
        yield (
            f"no agent has the alias {request.alias}, so this entry reaches nobody yet: "
            "--generate-token makes a join token for one"
        )


def _notes(
    request: Request, platform: Platform, steps: list[Step], alias: AliasState, now: float
) -> Iterator[str]:
    for one, step in zip(request.registrations, steps, strict=False):
        for entry in same_id_elsewhere(one, platform.entries):
            if not is_token_agent(entry.parent_id):
                yield f"{one.role}: entry {entry.id} gives the same ID below {entry.parent_id}"
        for entry in same_id_beside(step, platform.entries) if step.entry.id else ():
            selectors = ", ".join(map(str, entry.selectors))
            yield f"{one.role}: entry {entry.id} gives the same ID to {selectors}; it stays"
        if kept := _kept(one, step):
            yield kept
    if request.remove and any(step.action == "remove" for step in steps):
        yield (
            "SVIDs that were issued before are valid until they expire; a [[deny]] rule in "
            "policy.toml refuses an ID at once"
        )
    if request.remove and alias.alive(now) and not request.evict_agent:
        yield (
            "the host's agent stays attested until its SVID expires; --evict-agent ends that, too"
        )
    if request.token_ttl is not None:
        if alias.alive(now):
            yield (
                "the host has an agent whose SVID is valid: it does not look at the new token, "
                "unless its data_dir is emptied"
            )
        yield AGENT_TTL_ADVICE


def _kept(one: Registration, step: Step) -> str:
    """Say that selectors stay that nobody asked for this time."""
    if step.action not in ("update", "unchanged") or one.selectors is not None:
        return ""
    if set(step.entry.selectors) == set(one.default_selectors):
        return ""
    selectors = without_token(", ".join(map(str, step.entry.selectors)))
    return f"{one.role}: {selectors} stays, because neither --uid nor --selector is given"
