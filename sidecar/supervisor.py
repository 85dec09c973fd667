"""The one nursery tree: start order, signals, reload, drain.

Gets a checked configuration and policy, runs until a signal or a fault. Binds first (a port on
which somebody listens shows at once), then asks the agent, and listens only when there is an
identity. The first SIGTERM or SIGINT drains: no new connections, running answers may finish; a
second one cuts.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import structlog
import trio

from sidecar.adapters.admin import serve_admin, serve_health
from sidecar.adapters.after_rotation import CHILDREN
from sidecar.adapters.binding import bind, bind_admin, listen, require_local
from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.service_manager import Notifier, inherited, notifier
from sidecar.adapters.tls import CurrentIdentity
from sidecar.admin_pages import AdminPages
from sidecar.core.address import Inherited
from sidecar.core.after_rotation import hook
from sidecar.core.checked import Checked
from sidecar.core.config import HelperConfig
from sidecar.core.ledger import Ledger
from sidecar.file_keeper import keep_files
from sidecar.hooks import Hooks
from sidecar.jwt_keeper import JwtFiles, keep_jwt_bundles, keep_jwt_svids
from sidecar.reloader import follow_files, warn
from sidecar.rotator import follow_source, identity_rules, identity_source, watch_state
from sidecar.server import Server

log = structlog.get_logger()


Handed = Mapping[str, Sequence[socket.socket]]


def bind_paths(config: HelperConfig, closing: ExitStack) -> Handed:
    """Bind the Unix sockets that are listened on, by address, while that is allowed."""
    paths = [
        one for one in config.listens_on() if not isinstance(one, Inherited) and one.ip is None
    ]
    return {str(one): bind([one], closing) for one in paths}


async def run(checked: Checked, bound: Handed) -> None:
    """Run the daemon until it is told to stop: one that serves, or one that keeps files only.

    `bound` are the Unix sockets that `bind_paths` has bound.
    """
    grace = checked.config.workload_api.denied_grace_seconds
    current = CurrentIdentity(grace, Ledger(read_clocks().wall))
    manager = notifier()
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
        trio.open_signal_receiver(signal.SIGUSR1) as wishes,
        ExitStack() as closing,
    ):
        on_result = current.ledger.hook_done
        tables = checked.config.after_rotation
        hooks = Hooks([hook(one) for one in tables], checked.directory, on_result)
        handed = {**inherited(checked.config.managers()), **bound}
        server = Server(checked, checked.serving, current, handed) if checked.serving else None
        if server:
            closing.callback(server.close)
        pages = AdminPages(checked, current, hooks, server)
        visitors = _admin_sockets(checked.config, handed, closing)
        probes = _health_sockets(checked.config, handed, closing)
        async with trio.open_nursery() as daemon:
            daemon.start_soon(serve_admin, visitors, pages.pages())
            daemon.start_soon(serve_health, probes, pages.health_pages())
            daemon.start_soon(_fetch_when_asked, wishes, current, hooks)
            daemon.start_soon(_watchdog, manager)
            if os.getpid() == 1:
                daemon.start_soon(CHILDREN.reap_orphans)
            daemon.start_soon(_identity, checked, current, hooks)
            if server:
                await _serve(checked, server, manager, signals, hangups)
            else:
                log.info("starting", pid=os.getpid(), identity=_origin(checked), mode="helper")
                await _help(current, manager, signals)
            daemon.cancel_scope.cancel()
    manager.close()
    log.info("stopped")


def _admin_sockets(
    config: HelperConfig, handed: Handed, closing: ExitStack
) -> Sequence[socket.socket]:
    if config.admin is None:
        return []
    address = config.admin.address
    if not isinstance(address, Inherited):
        if str(address) not in handed:
            return [closing.enter_context(bind_admin(address))]
        listen(handed[str(address)])
        return handed[str(address)]
    for sock in handed[address.manager]:
        require_local(sock, "[admin]")
    return [closing.enter_context(sock) for sock in handed[address.manager]]


def _health_sockets(
    config: HelperConfig, handed: Handed, closing: ExitStack
) -> Sequence[socket.socket]:
    if config.health is None:
        return []
    address = config.health.address
    if isinstance(address, Inherited):
        sockets: Sequence[socket.socket] = [
            closing.enter_context(sock) for sock in handed[address.manager]
        ]
    else:
        sockets = handed.get(str(address)) or bind([address], closing)
    log.info("answering health checks", listening=listen(sockets))
    return sockets


async def _fetch_when_asked(
    wishes: AsyncIterator[int], current: CurrentIdentity, hooks: Hooks
) -> None:
    async for _ in wishes:
        current.ask()
        hooks.again()


async def _watchdog(manager: Notifier) -> None:
    """Tell the service manager that we are alive, as often as it wants to hear it."""
    while manager.watchdog_seconds is not None:
        manager.watchdog()
        await trio.sleep(manager.watchdog_seconds)


async def _ready_with_identity(current: CurrentIdentity, manager: Notifier) -> None:
    while current.identity is None:
        await current.changed.wait()
    manager.ready(f"keeping files of {current.identity.svid.spiffe_id}")


async def _help(current: CurrentIdentity, manager: Notifier, signals: AsyncIterator[int]) -> None:
    """Keep files until a signal; nothing is running that could be cut."""
    async with trio.open_nursery() as daemon:
        daemon.start_soon(_ready_with_identity, current, manager)
        log.info("stopping", signal=signal.Signals(await anext(signals)).name)
        manager.stopping()
        daemon.cancel_scope.cancel()


async def _serve(
    checked: Checked,
    server: Server,
    manager: Notifier,
    signals: AsyncIterator[int],
    hangups: AsyncIterator[int],
) -> None:
    config = server.in_force.config
    log.info(
        "starting",
        pid=os.getpid(),
        identity=_origin(checked),
        backend=str(config.backend.address),
        descriptors=server.descriptors,
    )
    async with trio.open_nursery() as daemon:
        daemon.start_soon(server.relay.run)
        daemon.start_soon(server.health.run)
        daemon.start_soon(server.keeper.run)
        daemon.start_soon(warn, server.policy.policy, config)
        daemon.start_soon(
            follow_files, server.files, hangups, server.ending, manager, server.current.ledger
        )
        async with trio.open_nursery() as connections:
            door = trio.CancelScope()
            daemon.start_soon(_stop_on_signal, signals, server, manager, door, connections)
            with door:
                await server.accept(connections, manager)
            server.close()
        # Only here all connections have ended, by themselves or by the drain's deadline.
        daemon.cancel_scope.cancel()


def _origin(checked: Checked) -> str:
    files = checked.config.identity_files
    return files.certificate if files else str(checked.endpoint)


async def _identity(checked: Checked, current: CurrentIdentity, hooks: Hooks) -> None:
    """Run what keeps the identity: its source, the state's log, the files."""
    rules = identity_rules(checked.config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_source, identity_source(checked), current, rules)
        nursery.start_soon(watch_state, current)
        table = checked.config.cert_files
        if table is not None:
            folder = Path(checked.directory, table.directory)
            files = CertFiles(folder, table.owner, table.group, table.unsafe_shared_directory)
            nursery.start_soon(hooks.run)
            nursery.start_soon(keep_files, files, folder, table, current, hooks.tell)
            place = JwtFiles(checked.endpoint, rules.choice, files, folder)
            tables = checked.config.jwt_svid
            nursery.start_soon(keep_jwt_svids, place, tables, current, hooks.tell)
            if table.jwt_bundle:
                nursery.start_soon(keep_jwt_bundles, place, table, current, hooks.tell)


async def _stop_on_signal(
    signals: AsyncIterator[int],
    server: Server,
    manager: Notifier,
    door: trio.CancelScope,
    connections: trio.Nursery,
) -> None:
    name = signal.Signals(await anext(signals)).name
    running = len(connections.child_tasks)
    seconds = server.in_force.config.connections.drain_seconds
    log.info("draining", signal=name, connections=running, seconds=seconds)
    manager.stopping(f"draining, {seconds:g} s at most")
    door.cancel()
    server.drain()
    with trio.move_on_after(seconds):
        name = signal.Signals(await anext(signals)).name
    log.warning("cutting", connections=len(connections.child_tasks))
    connections.cancel_scope.cancel()
