"""Gathers the facts of the group "host"."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio
from OpenSSL import SSL

from sidecar.adapters.host.limits import descriptors
from sidecar.adapters.host.network_time import network_time
from sidecar.adapters.host.paths import way_to
from sidecar.adapters.host.power import power
from sidecar.adapters.host.processes import process_of
from sidecar.adapters.sandbox.kernel import LinuxKernel
from sidecar.core.diagnosis.agent import AgentConf
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host import HostFacts
from sidecar.core.diagnosis.host_facts import Way
from sidecar.core.host_layout import AGENT_CONF
from sidecar.operations.doctor.agent import read_agent_conf
from sidecar.operations.doctor.subject import Subject
from sidecar.operations.doctor.together import Pending


async def host_facts(subject: Subject) -> HostFacts:
    """Give what is known of the host."""
    pid, run, platform = subject.daemon.pid, subject.run, subject.platform
    async with trio.open_nursery() as nursery:
        sleep = Pending(nursery, power(run, platform))
        clock = Pending(nursery, network_time(run, platform))
        program = Pending(nursery, trio.to_thread.run_sync(_program, abandon_on_cancel=True))
    conf = await trio.to_thread.run_sync(
        partial(read_agent_conf, Path(AGENT_CONF)), abandon_on_cancel=True
    )
    config, serving, commands = subject.files.config, subject.files.serving, subject.commands
    return HostFacts(
        python=tuple(sys.version_info[:3]),
        openssl=SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "replace"),
        openssl_major=SSL.OPENSSL_VERSION_NUMBER >> 28,
        account=subject.account,
        known_by=subject.known_by,
        program=program.value,
        service=subject.sidecar,
        daemon_pid=pid,
        daemon_uid=(await process_of(pid, run, platform)).uid if pid else None,
        descriptors=await descriptors(pid, run, platform) if pid else _NOT_RUNNING,
        connections=serving.connections.maximum if serving else 0,
        sandbox=config is None or config.sandbox.enabled,
        landlock=_landlock(platform),
        power=sleep.value,
        no_sleep=commands.no_sleep,
        join_token=isinstance(conf, AgentConf) and conf.join_token,
        network_time=clock.value,
        set_clock=commands.set_clock,
        install=commands.install,
        enable=commands.start,
    )


_NOT_RUNNING = Unknown("the daemon does not run")


def _program() -> tuple[Way, ...]:
    """Give the ways to the interpreter and to this package, as they are installed."""
    package = Path(__file__).parents[2]
    # The folder of the interpreter, which is that of the virtual environment; what it links to.
    python = Path(sys.executable)
    return (way_to(python.parent), way_to(python), way_to(package))


def _landlock(platform: str) -> int | Unknown:
    if platform != "linux":
        return Unknown(f"only Linux has Landlock, this is {platform}")
    try:
        return LinuxKernel().landlock_abi()
    except OSError:
        return 0
