"""Gathers the facts of the group "listener"."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from sidecar.adapters.host.firewalls import firewalls
from sidecar.adapters.host.limits import first_free_port
from sidecar.core.address import Inherited
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Firewall
from sidecar.core.diagnosis.listener import EndToEnd, ListenerFacts
from sidecar.operations.doctor.hearing import Hearing, own_listener
from sidecar.operations.doctor.subject import UNUSABLE, Subject
from sidecar.operations.doctor.together import Pending

_FIREWALL_SECONDS = 4.0


async def listener_facts(subject: Subject, heard: Pending[Hearing]) -> ListenerFacts:
    """Give what is known of daemon, port and the way in."""
    serving = subject.files.serving
    addresses = serving.listener.address if serving else ()
    ports = tuple(one.port for one in addresses if not isinstance(one, Inherited) and one.port)
    walls: tuple[Firewall, ...] | Unknown = Unknown("the firewalls' programs took too long")
    with trio.move_on_after(_FIREWALL_SECONDS):
        walls = await firewalls(ports, _program(), subject.run, subject.platform)
    hearing = await heard.wait()
    return ListenerFacts(
        addresses=addresses,
        own_ips=subject.own_ips,
        holders=subject.sockets,
        account=subject.account,
        unprivileged_from=first_free_port(subject.platform),
        wildcard_is_free=subject.platform == "darwin",
        firewalls=walls,
        daemon=subject.daemon,
        installed_version=subject.request.version,
        service=subject.sidecar,
        end_to_end=_end_to_end(subject, hearing),
        http=serving is not None and serving.backend.mode == "http",
        start=subject.commands.start,
        restart=subject.commands.restart,
        **({"no_port": UNUSABLE} if subject.files.config is None else {}),
    )


def _program() -> str:
    return str(Path(sys.executable).resolve())


def _end_to_end(subject: Subject, hearing: Hearing) -> EndToEnd | Unknown:
    serving, testimony = subject.files.serving, hearing.testimony
    if serving is None:
        return Unknown("there is no port")
    if not subject.daemon.pid:
        return Unknown("the daemon does not run")
    if not own_listener(subject, serving):
        told = subject.daemon.report is not None
        return Unknown(
            "the daemon does not listen yet"
            if told
            else "the daemon does not tell where it listens, without [admin]"
        )
    if isinstance(testimony, Unknown):
        return testimony
    if testimony.end_to_end is not None:
        return testimony.end_to_end
    need = "" if hearing.asked_as.uid == subject.account.uid else "run doctor with sudo"
    return Unknown(f"{hearing.asked_as} has no SVID to ask with", need)
