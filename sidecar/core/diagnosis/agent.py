"""The group "agent": the socket of the Workload API, who is behind it, and what it answers."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sidecar.core.diagnosis.finding import Finding, Unknown, all_skipped, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import Account, Kind, Process, ServiceState, Way
from sidecar.core.diagnosis.identity import span
from sidecar.core.diagnosis.issued import Answer, Said
from sidecar.core.diagnosis.permission import WRITE, absent, hidden, obstacle, open_to_others
from sidecar.core.svid import is_over

NAMES = (
    "agent.socket",
    "agent.access",
    "agent.guarded",
    "agent.listening",
    "agent.process",
    "agent.workload_api",
    "agent.registration",
    "agent.configuration",
    "agent.attestation",
    "agent.service",
)


@dataclass(frozen=True, slots=True)
class AgentConf:
    """What matters of an agent.conf; empty where it says nothing."""

    path: str
    trust_domain: str = ""
    socket_path: str = ""
    bootstrap: str = ""  # the key that says how the server is known; empty: none
    insecure: bool = False
    join_token: bool = False
    data: str = ""  # data_dir
    token_file: str = ""  # join_token_file


class Token(enum.StrEnum):
    """What stands in the file of the join token; the token itself is never looked at."""

    ABSENT = "is not there"
    SPENT = "is spent"
    THERE = "is there"


@dataclass(frozen=True, slots=True)
class Attestation:
    """What the agent has on its disk: its own SVID, None if it has none, and the token's file."""

    not_after: datetime | None
    token: Token


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What is known of the agent; `way` is empty for an agent that is reached by TCP.

    `asked_as` is who asked for `answer`; `refusal` is why no connection was taken, empty if one
    was. `register` is the command that makes an entry for the service user.
    """

    endpoint: str
    way: Way
    account: Account
    asked_as: Account
    refusal: str
    process: Process | Unknown
    answer: Answer | Unknown
    conf: AgentConf | Unknown
    service: ServiceState | Unknown
    attestation: Attestation | Unknown
    now: datetime
    start: str  # the command that starts the agent
    log: str  # the command that shows its log
    register: str
    join: str  # the commands that give it a new join token
    trust_domain: str = ""  # that our configuration names


def judge_agent(facts: AgentFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    yield from _of_socket(facts)
    yield _listening(facts)
    yield _process(facts)
    yield _workload_api(facts)
    yield _registration(facts)
    yield _configuration(facts)
    yield _attestation(facts)
    yield _service(facts)


def _of_socket(facts: AgentFacts) -> Iterator[Finding]:
    names = NAMES[:3]
    if not facts.way:
        yield from all_skipped(names, f"the agent is at {facts.endpoint}, which is no Unix socket")
        return
    end, gone, unseen = facts.way[-1], absent(facts.way), hidden(facts.way)
    if unseen is not None:
        need = Unknown(f"this account may not look at {unseen.path}", "run doctor with sudo")
        yield from all_skipped(names, need)
        return
    if gone is not None:
        yield fail("agent.socket", f"{gone.path} does not exist", _without_socket(facts))
        yield from all_skipped(names[1:], "there is no socket")
        return
    if end.kind is not Kind.SOCKET:
        remedy = f"move it away and start the agent: {facts.start}"
        yield fail("agent.socket", f"{end.path} is {end.kind}, expected a socket", remedy)
        yield from all_skipped(names[1:], "there is no socket")
        return
    yield ok("agent.socket", end.path)
    yield _access(facts)
    yield _guarded(facts)


def _without_socket(facts: AgentFacts) -> str:
    """Say what to do: an agent that runs makes its socket once the server has attested it."""
    if not (isinstance(facts.service, ServiceState) and facts.service.running):
        return f"start the agent: {facts.start}\nor say in [workload_api] socket where it is"
    log = f"the agent runs, and the server does not attest it; its log says why: {facts.log}"
    if isinstance(facts.conf, AgentConf) and facts.conf.join_token:
        return f"{log}\nif its join token is used or has expired, {facts.join}"
    return log


def _access(facts: AgentFacts) -> Finding:
    blocked = obstacle(facts.account, facts.way, WRITE)
    if blocked is None:
        return ok("agent.access", f"{facts.account} may connect to {facts.way[-1].path}")
    is_end = blocked == facts.way[-1]
    doing, mode = ("connect to", "a+rw") if is_end else ("pass", "a+x")
    seen = f"{facts.account} may not {doing} {blocked}"
    return fail("agent.access", seen, f"sudo chmod {mode} {blocked.path}")


def _guarded(facts: AgentFacts) -> Finding:
    trusted = {0, facts.way[-1].uid}
    open_one = open_to_others(facts.way, trusted)
    if open_one is None:
        return ok("agent.guarded", "only its owner and root can replace it")
    remedy = f"sudo chown root {open_one.path} && sudo chmod go-w {open_one.path}"
    seen = f"{open_one} lets others put another socket in its place, and with it our identity"
    return fail("agent.guarded", seen, remedy)


def _listening(facts: AgentFacts) -> Finding:
    if facts.way and facts.way[-1].kind is not Kind.SOCKET:
        return skipped("agent.listening", "there is no socket")
    if facts.refusal:
        seen = f"{facts.endpoint} takes no connection: {facts.refusal}"
        return fail("agent.listening", seen, f"start the agent: {facts.start}")
    return ok("agent.listening", f"{facts.endpoint} takes connections")


def _process(facts: AgentFacts) -> Finding:
    process = facts.process
    if facts.refusal or isinstance(process, Unknown):
        reason = process if isinstance(process, Unknown) else "nobody listens"
        return skipped("agent.process", reason)
    if process.uid not in (None, 0) and process.uid == facts.account.uid:
        remedy = (
            "run the agent as an account of its own, with User= (systemd) or UserName (launchd)"
        )
        seen = f"{process} is the service user itself: who takes over one of them has both"
        return warn("agent.process", seen, remedy)
    return ok("agent.process", str(process))


def _workload_api(facts: AgentFacts) -> Finding:
    answer = facts.answer
    if isinstance(answer, Unknown):
        return skipped("agent.workload_api", answer)
    if answer.said in (Said.ISSUED, Said.DENIED):
        return ok("agent.workload_api", f"{facts.endpoint} speaks the SPIFFE Workload API")
    if facts.refusal:
        return skipped("agent.workload_api", "nobody listens")
    seen = f"{facts.endpoint} gives no answer of a Workload API: {answer.reason}"
    remedy = (
        "is that the agent's socket, and not its admin socket or another program's? write the "
        "socket_path of agent.conf into [workload_api] socket"
    )
    return fail("agent.workload_api", seen, remedy)


def _registration(facts: AgentFacts) -> Finding:
    name, answer = "agent.registration", facts.answer
    if isinstance(answer, Unknown):
        return skipped(name, answer)
    if facts.asked_as.uid != facts.account.uid:
        reason = f"asked as {facts.asked_as}, which tells nothing about {facts.account}"
        return skipped(name, reason, "run doctor with sudo: then the service user asks")
    if answer.said is Said.DENIED:
        seen = (
            f"no identity for {facts.account} ({answer.reason}): no registration entry has the "
            f"selector unix:uid:{facts.account.uid} below this host's agent"
        )
        remedy = f"on the SPIRE server: {facts.register}\na new entry takes some seconds to arrive"
        return fail(name, seen, remedy)
    if answer.said is not Said.ISSUED:
        return skipped(name, "the agent gave no answer")
    ids = ", ".join(one.spiffe_id for one in answer.svids)
    return ok(name, f"{facts.account} gets {ids}")


def _configuration(facts: AgentFacts) -> Finding:
    name, conf = "agent.configuration", facts.conf
    if isinstance(conf, Unknown):
        return skipped(name, conf)
    served = f"unix:{conf.socket_path}"
    if conf.socket_path and served != facts.endpoint:
        seen = f"{conf.path}: socket_path is {conf.socket_path}, we ask {facts.endpoint}"
        return warn(name, seen, f'[workload_api] socket = "{served}"')
    domain = facts.trust_domain
    if domain and conf.trust_domain and conf.trust_domain != domain:
        seen = f"{conf.path}: trust_domain is {conf.trust_domain}, our SPIFFE ID is of {domain}"
        return fail(name, seen, "correct [workload_api] spiffe_id, or the agent's trust_domain")
    if conf.insecure:
        seen = f"{conf.path}: insecure_bootstrap: the agent believed the first server it met"
        remedy = "trust_bundle_path instead; register-workload --host-folder writes the bundle"
        return warn(name, seen, remedy)
    if not conf.bootstrap:
        seen = f"{conf.path}: none of trust_bundle_path, trust_bundle_url, insecure_bootstrap"
        remedy = "trust_bundle_path; register-workload --host-folder writes file and configuration"
        return fail(name, seen, remedy)
    return ok(name, f"{conf.path}: trust domain {conf.trust_domain or 'not said'}")


def _attestation(facts: AgentFacts) -> Finding:
    """A join token is good for one time, and what it gave lives for agent_ttl if not renewed."""
    name, conf, own = "agent.attestation", facts.conf, facts.attestation
    if isinstance(conf, Unknown) or not conf.join_token:
        other = "it attests by another way than a join token"
        return skipped(name, conf if isinstance(conf, Unknown) else other)
    if isinstance(own, Unknown):
        return skipped(name, own)
    if own.not_after is None and own.token is Token.THERE and not facts.refusal:
        return ok(name, "it has just joined")
    if own.not_after is None:
        seen = f"the agent has no SVID of its own, and its join token {own.token}"
        remedy = f"{facts.join}\nwhy it has none: {facts.log}"
        return fail(name, seen, remedy)
    if is_over(own.not_after, facts.now):
        seen = (
            f"the agent's own SVID expired {span(facts.now - own.not_after)} ago: this host slept, "
            "or did not reach the server, and a join token is good for one time"
        )
        return fail(name, seen, facts.join)
    return ok(name, f"its own SVID has {span(own.not_after - facts.now)} left")


def _service(facts: AgentFacts) -> Finding:
    name, service = "agent.service", facts.service
    if isinstance(service, Unknown):
        return skipped(name, service)
    if not service.installed:
        if facts.refusal:
            remedy = "scripts/setup-linux.sh or setup-macos.sh installs one"
            return warn(name, f"no service {service.name}, and nobody listens", remedy)
        return skipped(name, f"no service {service.name}: something else starts the agent")
    if service.running is False:
        seen = f"{service.name} does not run{f' ({service.ended})' if service.ended else ''}"
        return fail(name, seen, f"{facts.start}\nif it ends again, its log says why: {facts.log}")
    if service.enabled is False:
        return warn(name, f"{service.name} does not start with the host", facts.start)
    return ok(name, f"{service.name} runs and starts with the host")
