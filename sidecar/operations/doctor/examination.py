"""The examination: gathers all groups at the same time, judges them, and tells the causes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from sidecar.core.diagnosis.agent import AgentFacts, judge_agent
from sidecar.core.diagnosis.backend import judge_backend
from sidecar.core.diagnosis.catalogue import CHECKS, only_causes
from sidecar.core.diagnosis.files import judge_files
from sidecar.core.diagnosis.finding import Finding, all_skipped, skipped
from sidecar.core.diagnosis.host import judge_host
from sidecar.core.diagnosis.identity import judge_identity
from sidecar.core.diagnosis.listener import judge_listener
from sidecar.core.diagnosis.policy import judge_policy
from sidecar.operations.doctor.agent import agent_facts
from sidecar.operations.doctor.asking import STREAM_SECONDS
from sidecar.operations.doctor.backend import backend_facts
from sidecar.operations.doctor.files import files_facts
from sidecar.operations.doctor.hearing import hear
from sidecar.operations.doctor.host import host_facts
from sidecar.operations.doctor.listener import listener_facts
from sidecar.operations.doctor.policy import identity_facts, policy_facts
from sidecar.operations.doctor.subject import UNUSABLE, Request, Subject, subject
from sidecar.operations.doctor.together import Pending

# The whole examination, when everything hangs that can; an answer of a model comes on top.
_SECONDS = 13.0
_AGENT = [name for name in CHECKS if name.startswith("agent.")]
# What can be said of the agent without a configuration of ours.
_OF_THE_HOST = ("agent.attestation", "agent.service")

F = TypeVar("F")
Judge = Callable[[F], Iterable[Finding]]


async def examine(request: Request) -> list[Finding]:
    """Give one finding for each check; raises `ConfigError` if there is no configuration."""
    deadline = trio.current_time() + _SECONDS + (STREAM_SECONDS if request.model else 0)
    of = await subject(request)
    findings: list[Finding] = []

    async def group(name: str, gather: Awaitable[F | None], judge: Judge[F]) -> None:
        reason = "it took too long to find out"
        with trio.move_on_at(deadline):
            facts = await gather
            reason = _absent(of)
            findings.extend(() if facts is None else judge(facts))
        known = {finding.name for finding in findings}
        names = [one for one in CHECKS if one.startswith(f"{name}.") and one not in known]
        findings.extend(all_skipped(names, reason))

    async with trio.open_nursery() as nursery:
        heard = Pending(nursery, hear(of))
        nursery.start_soon(group, "agent", agent_facts(of, heard), _agent_judge(of))
        nursery.start_soon(group, "identity", identity_facts(of, heard), judge_identity)
        nursery.start_soon(group, "files", files_facts(of, heard), judge_files)
        nursery.start_soon(group, "policy", policy_facts(of, heard), judge_policy)
        nursery.start_soon(group, "listener", listener_facts(of, heard), judge_listener)
        nursery.start_soon(group, "backend", backend_facts(of, heard), judge_backend)
        nursery.start_soon(group, "host", host_facts(of), judge_host)
    return only_causes(findings)


def _agent_judge(of: Subject) -> Judge[AgentFacts]:
    config = of.files.config
    if config is None:
        return lambda facts: [
            one if one.name in _OF_THE_HOST else skipped(one.name, UNUSABLE)
            for one in judge_agent(facts)
        ]
    if config.identity_files is not None:
        reason = "[identity_files]: no agent is asked"
        return lambda _facts: all_skipped(_AGENT, reason)
    return judge_agent


def _absent(of: Subject) -> str:
    if of.files.config is None:
        return UNUSABLE
    return "the configuration has no table for it"
