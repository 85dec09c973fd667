"""Gathers the facts of the group "agent"."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

import trio
from cryptography import x509

from sidecar.adapters.host.paths import content_of, way_to
from sidecar.adapters.host.processes import listener_of, process_of
from sidecar.core.address import Address
from sidecar.core.diagnosis.agent import AgentConf, AgentFacts, Attestation, Token
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Kind, Process
from sidecar.core.host_layout import AGENT_CONF
from sidecar.operations.doctor.hearing import Hearing
from sidecar.operations.doctor.subject import Subject
from sidecar.operations.doctor.together import Pending
from sidecar.operations.doctor.witness import Testimony

_KNOCK_SECONDS = 2.0
_KEY = re.compile(r'^\s*(\w+)\s*=\s*(?:"([^"\n]*)"|(true|false))', re.MULTILINE)
_COMMENT = re.compile(r"^\s*(?:#|//)[^\n]*|/\*.*?\*/", re.DOTALL | re.MULTILINE)
# Where the agent keeps its own SVID, below its data_dir.
_KEPT = "agent-data.json"
_BOOTSTRAP = ("trust_bundle_path", "trust_bundle_url", "insecure_bootstrap")


async def agent_facts(subject: Subject, heard: Pending[Hearing]) -> AgentFacts:
    """Give what is known of the agent."""
    address = subject.files.endpoint.address
    way = () if address.ip is not None else way_to(address.path)
    is_socket = not way or way[-1].kind in (Kind.SOCKET, Kind.HIDDEN)
    refusal = await knock(address) if is_socket else "there is no socket"
    process = await _process(subject, address)
    conf = read_agent_conf(Path(AGENT_CONF))
    own = read_attestation(conf) if isinstance(conf, AgentConf) else conf
    hearing = await heard.wait()
    config = subject.files.config
    wanted = config.workload_api.spiffe_id if config else None
    testimony = hearing.testimony
    return AgentFacts(
        endpoint=str(subject.files.endpoint),
        way=way,
        account=subject.account,
        asked_as=hearing.asked_as,
        refusal=refusal,
        process=process,
        answer=testimony.answer if isinstance(testimony, Testimony) else testimony,
        conf=conf,
        service=subject.agent,
        attestation=own,
        now=datetime.now(UTC),
        start=subject.commands.start_agent,
        log=subject.commands.agent_log,
        register=subject.register,
        join=subject.commands.join(subject.register),
        trust_domain=str(wanted.trust_domain) if wanted else "",
    )


async def knock(address: Address) -> str:
    """Connect and say nothing; give why that was refused, empty if it was not."""
    family = socket.AddressFamily[address.family]
    try:
        with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
            with trio.fail_after(_KNOCK_SECONDS):
                await sock.connect(address.sockaddr)
    except trio.TooSlowError:
        return f"no answer within {_KNOCK_SECONDS:g} s"
    except OSError as exc:
        # The system's own words: trio adds the address to them.
        return os.strerror(exc.errno) if exc.errno else str(exc)
    return ""


async def _process(subject: Subject, address: Address) -> Process | Unknown:
    if address.ip is not None:
        return Unknown("only a Unix socket tells who listens on it")
    found = await trio.to_thread.run_sync(listener_of, address.path, subject.platform)
    if isinstance(found, Unknown):
        return found
    pid, uid = found
    process = await process_of(pid, subject.run, subject.platform)
    return Process(pid, uid, process.name)


def read_agent_conf(path: Path) -> AgentConf | Unknown:
    """Read what matters of an agent.conf; its plug-ins' own keys are not looked at."""
    try:
        text = content_of(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return Unknown(f"there is no {path}: the agent has its configuration elsewhere")
    except OSError as exc:
        return Unknown(f"{path}: {exc.strerror}", "run doctor with sudo")
    text = _COMMENT.sub("", text)
    agent, _, plugins = text.partition("plugins")
    values = {key: word or flag for key, word, flag in _KEY.findall(agent)}
    named = [key for key in _BOOTSTRAP if values.get(key) not in (None, "", "false")]
    return AgentConf(
        path=str(path),
        trust_domain=values.get("trust_domain", ""),
        socket_path=values.get("socket_path", ""),
        bootstrap=named[0] if named else "",
        insecure=values.get("insecure_bootstrap") == "true",
        join_token=bool(re.search(r'NodeAttestor\s+"?join_token"?', plugins)),
        data=values.get("data_dir", ""),
        token_file=values.get("join_token_file", ""),
    )


def read_attestation(conf: AgentConf) -> Attestation | Unknown:
    """Read the end of the agent's own SVID, and whether its join token is spent.

    The agent keeps both where only it and root can look.
    """
    try:
        kept = json.loads(content_of(Path(conf.data, _KEPT)))
        chain = [base64.b64decode(one) for one in kept.get("svid") or ()]
        # PEM, in the base64 of JSON.
        end = x509.load_pem_x509_certificate(chain[0]).not_valid_after_utc if chain else None
    except FileNotFoundError:
        end = None
    except OSError as exc:
        return Unknown(f"{exc.filename}: {exc.strerror}", "run doctor with sudo")
    except Exception as exc:  # a file of another program's, and a parser of certificates
        return Unknown(f"{conf.data}/{_KEPT} cannot be read: {type(exc).__name__}")
    return Attestation(end, _token(conf.token_file))


def _token(file: str) -> Token:
    try:
        is_spent = content_of(file).strip() in (b"spent", b"")
    except OSError:
        return Token.ABSENT
    return Token.SPENT if is_spent else Token.THERE
