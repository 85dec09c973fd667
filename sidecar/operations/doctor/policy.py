"""Gathers the facts of the groups "policy" and "identity"."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from sidecar.adapters.host.paths import way_to
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Way
from sidecar.core.diagnosis.identity import IdentityFacts
from sidecar.core.diagnosis.issued import Answer, IssuedBundle, Said
from sidecar.core.diagnosis.policy import InForce, PolicyFacts
from sidecar.core.identity_update import SvidChoice
from sidecar.core.policy import Policy
from sidecar.core.policy_lint import PolicyWarning, lint
from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.status import Status
from sidecar.operations.doctor.hearing import Hearing
from sidecar.operations.doctor.subject import Subject
from sidecar.operations.doctor.together import Pending
from sidecar.operations.doctor.witness import Testimony


async def policy_facts(subject: Subject, heard: Pending[Hearing]) -> PolicyFacts:
    """Give what is known of configuration and policy."""
    look, hearing = partial(_ways, subject), await heard.wait()
    return PolicyFacts(
        config=str(subject.request.config),
        problems=subject.files.problems,
        ways=await trio.to_thread.run_sync(look, abandon_on_cancel=True),
        account=subject.account,
        policy=subject.files.policy,
        helper=subject.files.config is not None and subject.files.serving is None,
        warnings=_warnings(subject),
        trust_domains=frozenset(one.trust_domain for one in _bundles(subject, hearing)),
        in_force=_in_force(subject),
        reload=subject.commands.reload,
        restart=subject.commands.restart,
    )


def _ways(subject: Subject) -> tuple[Way, ...]:
    paths: list[Path] = [subject.config_file]
    if subject.files.serving is not None:
        paths.append(subject.directory / subject.files.serving.policy.file)
    return tuple(way_to(path) for path in paths)


def _answer(subject: Subject, hearing: Hearing) -> Answer | Unknown:
    """Give the answer to the service user; another account's answer tells nothing of it."""
    testimony = hearing.testimony
    if not isinstance(testimony, Testimony):
        return testimony
    if hearing.asked_as.uid != subject.account.uid:
        reason = f"only {subject.account} can be told its identity"
        return Unknown(reason, "run doctor with sudo")
    return testimony.answer


def _bundles(subject: Subject, hearing: Hearing) -> tuple[IssuedBundle, ...]:
    answer = _answer(subject, hearing)
    if isinstance(answer, Unknown) or answer.said is not Said.ISSUED:
        return ()
    return tuple(one for one in answer.bundles if one.authorities)


def _warnings(subject: Subject) -> tuple[PolicyWarning, ...]:
    """Give what `check` warns of, but for trust domains: those are a check of their own."""
    policy, serving = subject.files.policy, subject.files.serving
    if policy is None or serving is None:
        return ()
    named = {peer.trust_domain for rule in (*policy.allow, *policy.deny) for peer in rule.peers}
    return lint(
        policy,
        mode=serving.backend.mode,
        health_path=serving.backend.health_path,
        trust_domains=frozenset(named),
    )


def _in_force(subject: Subject) -> InForce | Unknown:
    report, files = subject.daemon.report, subject.files
    if report is None:
        return Unknown("the daemon does not answer")
    status = report.status
    problems = status.config_problems + (status.policy.problems if status.policy else ())
    return InForce(
        problems, status.needs_restart, tuple(_differences(status, subject, files.policy))
    )


def _differences(status: Status, subject: Subject, policy: Policy | None) -> list[str]:
    """Compare what the daemon tells of its files with what stands there."""
    found = []
    serving = subject.files.serving
    if status.policy and policy and serving:
        counts = (status.policy.allow, status.policy.deny)
        if counts != (len(policy.allow), len(policy.deny)):
            found.append(str(serving.policy.file))
    if status.backend and serving and status.backend.address != str(serving.backend.address):
        found.append(subject.request.config.name)
    return found


async def identity_facts(subject: Subject, heard: Pending[Hearing]) -> IdentityFacts:
    """Give what is known of our identity."""
    hearing = await heard.wait()
    config, policy = subject.files.config, subject.files.policy
    table = config.workload_api if config else None
    named: set[TrustDomain] = set()
    if policy is not None:
        named = {peer.trust_domain for rule in policy.allow for peer in rule.peers}
    from_files = config is not None and config.identity_files is not None
    files = "let whatever writes the files of [identity_files] renew them"
    return IdentityFacts(
        now=datetime.now(UTC),
        choice=SvidChoice(table.spiffe_id if table else None, table.hint if table else ""),
        answer=_answer(subject, hearing),
        from_files=from_files,
        federated=tuple(sorted(map(str, named))),
        renew=files if from_files else subject.commands.restart_agent,
        register=subject.register,
        set_clock=subject.commands.set_clock,
    )
