"""The one nursery tree: start order, signals, reload, drain.

Gets a checked configuration and policy, runs until a signal or a fault. Binds first (a port on
which somebody listens shows at once), then asks the agent, and listens only when there is an
identity. The first SIGTERM or SIGINT drains: no new connections, running answers may finish; a
second one cuts.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import structlog
import trio

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.listener import Slots, accept_forever, bind, listen
from sidecar.adapters.policy_file import CurrentPolicy
from sidecar.adapters.relay import Relay
from sidecar.adapters.tls import CurrentIdentity
from sidecar.adapters.workload_api import WorkloadApi
from sidecar.connection import Mode, Service, serve
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import Config
from sidecar.core.file_plan import FileModes
from sidecar.core.identity_update import SvidChoice
from sidecar.core.policy import Policy
from sidecar.http_mode import HttpMode
from sidecar.reloader import PolicySource, keep_policy
from sidecar.rotator import IdentityRules, follow_agent, publish_files, watch_state
from sidecar.stream_mode import StreamMode

log = structlog.get_logger()

# Descriptors beside those of connections: sockets of the agent, log, gRPC, files.
_SPARE_DESCRIPTORS = 128
_OPEN_MAX = 10240


async def run(
    config: Config,
    policy: Policy,
    policy_text: str,
    endpoint: WorkloadEndpoint,
    directory: Path,
) -> None:
    """Run the daemon until it is told to stop; relative paths are below `directory`."""
    _raise_descriptor_limit(config)
    current = CurrentIdentity(config.workload_api.denied_grace_seconds)
    slots = Slots(config.connections.maximum, config.connections.maximum_handshakes)
    relay = Relay(config.timeouts.between_bytes)
    in_force = CurrentPolicy(policy)
    source = PolicySource(directory / config.policy.file, config, policy_text)
    mode: Mode
    if config.backend.mode == "http":
        mode = HttpMode(config, current, in_force, slots, relay)
    else:
        mode = StreamMode(config, in_force, slots, relay)
    service = Service(current, slots, config.timeouts.handshake, mode)
    sockets = bind(config.listener.address)
    log.info("starting", pid=os.getpid(), agent=str(endpoint), backend=str(config.backend.address))
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        async with trio.open_nursery() as daemon:
            daemon.start_soon(relay.run)
            daemon.start_soon(keep_policy, in_force, source, hangups)
            daemon.start_soon(_identity, config, current, endpoint, directory)
            async with trio.open_nursery() as connections:
                door = trio.CancelScope()
                daemon.start_soon(_stop_on_signal, signals, config, door, mode, connections)
                with door:
                    await _accept(sockets, current, service, connections)
                for sock in sockets:
                    sock.close()
            # Only here all connections have ended, by themselves or by the drain's deadline.
            daemon.cancel_scope.cancel()
    log.info("stopped")


async def _identity(
    config: Config, current: CurrentIdentity, endpoint: WorkloadEndpoint, directory: Path
) -> None:
    """Run what keeps the identity: the agent's stream, the state's log, the files."""
    choice = SvidChoice(config.workload_api.spiffe_id, config.workload_api.hint)
    rules = IdentityRules(choice, config.listener.tls_minimum_version)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_agent, WorkloadApi(endpoint), current, rules)
        nursery.start_soon(watch_state, current)
        if config.cert_files is not None:
            files = CertFiles(directory / config.cert_files.directory)
            modes = FileModes(config.cert_files.certificate_mode, config.cert_files.key_mode)
            nursery.start_soon(publish_files, files, modes, current)


async def _accept(
    sockets: list[socket.socket],
    current: CurrentIdentity,
    service: Service,
    connections: trio.Nursery,
) -> None:
    """Listen as soon as there is an identity, then accept for ever."""
    while current.identity is None:
        await current.changed.wait()
    log.info("ready", listening=listen(sockets))
    async with trio.open_nursery() as accepting:
        for sock in sockets:
            handler = partial(serve, service=service)
            accepting.start_soon(accept_forever, sock, handler, connections)


async def _stop_on_signal(
    signals: AsyncIterator[int],
    config: Config,
    door: trio.CancelScope,
    mode: Mode,
    connections: trio.Nursery,
) -> None:
    name = signal.Signals(await anext(signals)).name
    running = len(connections.child_tasks)
    seconds = config.connections.drain_seconds
    log.info("draining", signal=name, connections=running, seconds=seconds)
    door.cancel()
    mode.drain()
    with trio.move_on_after(seconds):
        name = signal.Signals(await anext(signals)).name
    log.warning("cutting", connections=len(connections.child_tasks))
    connections.cancel_scope.cancel()


def _raise_descriptor_limit(config: Config) -> None:
    """Make room for two descriptors a connection; macOS begins with 256, Linux with 1024."""
    table = config.connections
    needed = 2 * table.maximum + table.maximum_handshakes + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    # macOS says "infinity" and takes no more than OPEN_MAX.
    for wanted in (needed if hard == resource.RLIM_INFINITY else min(needed, hard), _OPEN_MAX):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        soft = wanted
        break
    if soft < needed:
        log.warning("descriptor limit is low", limit=soft, needed=needed)
