"""What serves: listener, connections, backend, and all that they share, made of one configuration.

Part of the supervisor's layer, and apart from it because a sidecar in helper mode has none of
this. The supervisor starts its tasks and ends it; `apply` hands a changed configuration to those
who hold its parts.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import structlog
import trio

from sidecar.adapters import backend
from sidecar.adapters.backend_health import Ask, BackendHealth, HealthPath
from sidecar.adapters.binding import bind, listen
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.lifelines import Lifelines
from sidecar.adapters.lingering import Lingering
from sidecar.adapters.listener import accept_forever
from sidecar.adapters.relay import Relay
from sidecar.adapters.service_manager import Notifier
from sidecar.adapters.slots import Slots
from sidecar.adapters.tls import CurrentIdentity
from sidecar.connection import Mode, Service, serve
from sidecar.core.address import Address, Inherited
from sidecar.core.checked import Checked, Serving
from sidecar.core.config import Config
from sidecar.core.errors import BackendError
from sidecar.http_mode import HttpMode
from sidecar.lifekeeper import LifeKeeper
from sidecar.reloader import ConfigInForce, Followed, followed_config, followed_policy
from sidecar.stream_mode import StreamMode

log = structlog.get_logger()

# Connections whose peer still sends after our last byte, at the same time.
_MAX_LINGERING = 256
# Descriptors beside those of connections: sockets of the agent, log, gRPC, files.
_SPARE_DESCRIPTORS = 128
_OPEN_MAX = 10240


class Server:
    """One serving sidecar; binds at once, listens when there is an identity."""

    def __init__(
        self,
        checked: Checked,
        serving: Serving,
        current: CurrentIdentity,
        handed: Mapping[str, Sequence[socket.socket]],
    ) -> None:
        config = serving.config
        self.descriptors = raise_descriptor_limit(config)
        self.in_force = ConfigInForce(config, self.apply, current.ledger)
        self.current = current
        current.ledger.rules.replace([rule.name for rule in serving.policy.allow])
        self.policy = CurrentPolicy(serving.policy)
        table = config.connections
        self.slots = Slots(table.maximum, table.maximum_handshakes, table.of_one_peer)
        self.lingering = Lingering(_MAX_LINGERING)
        self.relay = Relay(config.timeouts.between_bytes, config.timeouts.first_byte, config.pace)
        seconds, self.lifelines = config.timeouts.health, Lifelines()
        self.health = BackendHealth(
            _question(config), seconds, lambda: self.relay.heard_at, self._backend_was_found
        )
        self.keeper = LifeKeeper(self.lifelines, current, self.policy, config.connections)
        self.mode = self._made_mode(config)
        self.service = Service(
            current, self.slots, self.lingering, config.timeouts.handshake, self.mode
        )
        self.files: list[Followed] = [
            followed_config(Path(checked.file), checked.text, self.in_force),
            followed_policy(
                Path(checked.directory, config.policy.file),
                serving.policy_text,
                self.policy,
                self.in_force,
            ),
        ]
        self.ending = trio.Event()
        self._closing = ExitStack()
        self._sockets = _sockets(config, handed, self._closing)

    def _made_mode(self, config: Config) -> Mode:
        policy, slots, relay = self.policy, self.slots, self.relay
        lifelines, ledger, health = self.lifelines, self.current.ledger, self.health
        if config.backend.mode == "http":
            return HttpMode(
                config,
                self.current,
                policy,
                slots,
                relay,
                lifelines=lifelines,
                ledger=ledger,
                health=health,
            )
        return StreamMode(
            config, policy, slots, relay, lifelines=lifelines, ledger=ledger, health=health
        )

    def _backend_was_found(self, reason: str | None) -> None:
        """Take note of the backend's health, and log each change of it."""
        ledger, now = self.current.ledger, read_clocks().wall
        before = ledger.backend
        ledger.backend_checked(now, reason)
        was_up = before is None or before.reason is None
        address = str(self.in_force.config.backend.address)
        if was_up and reason is not None:
            log.warning("backend down", backend=address, reason=reason)
        elif before is not None and not was_up and reason is None:
            seconds = round((now - before.since).total_seconds(), 1)
            log.info("backend up", backend=address, down_seconds=seconds)

    def apply(self, config: Config) -> None:
        """Go on with another configuration; no connection ends because of it."""
        connections = config.connections
        self.slots.resize(
            connections.maximum, connections.maximum_handshakes, connections.of_one_peer
        )
        self.relay.pace = config.pace
        self.relay.set_deadlines(config.timeouts.between_bytes, config.timeouts.first_byte)
        self.health.apply(_question(config), config.timeouts.health)
        self.service.handshake_seconds = config.timeouts.handshake
        self.current.denied_grace_seconds = config.workload_api.denied_grace_seconds
        self.keeper.settings_changed(connections)
        self.mode.apply(config)
        raise_descriptor_limit(config)

    async def accept(self, connections: trio.Nursery, manager: Notifier) -> None:
        """Listen as soon as there is an identity, and serve peers in `connections`, for ever."""
        while self.current.identity is None:
            await self.current.changed.wait()
        listening = listen(self._sockets)
        self.current.ledger.listens(listening)
        log.info("ready", listening=listening)
        reason = manager.ready(f"serving on {', '.join(listening)}")
        if reason:
            log.warning("service manager not told", reason=reason)
        async with trio.open_nursery() as accepting:
            for sock in self._sockets:
                handler = partial(serve, service=self.service)
                failed = self.current.ledger.accept_failed
                accepting.start_soon(accept_forever, sock, handler, connections, failed)

    def drain(self) -> None:
        """Let no connection wait for more to do, and nothing change any more."""
        self.ending.set()
        self.slots.drain()
        self.current.ledger.drain_began()
        self.mode.drain()
        self.lingering.hurry()

    def close(self) -> None:
        """Stop listening."""
        self._closing.close()


def _question(config: Config) -> Ask:
    """Return what asks the backend: its health path, or in mode `stream` a connection alone."""
    table = config.backend
    if table.mode == "http":
        return HealthPath(table.address, table.authority, table.health_path)
    return partial(_reason_against_connecting, table.address, config.timeouts.backend_connect)


async def _reason_against_connecting(address: Address, seconds: float) -> str | None:
    try:
        sock = await backend.connect(address, seconds)
    except BackendError as exc:
        return exc.message
    sock.close()
    return None


def _sockets(
    config: Config, handed: Mapping[str, Sequence[socket.socket]], closing: ExitStack
) -> list[socket.socket]:
    """Bind what is ours to bind, and take what the service manager or `bind_paths` has bound."""
    addresses = config.listener.address
    names = [one.manager if isinstance(one, Inherited) else str(one) for one in addresses]
    ours = [one for one, name in zip(addresses, names, strict=True) if name not in handed]
    sockets = bind(ours, closing)
    for name in names:
        sockets += [closing.enter_context(one) for one in handed.get(name, ())]
    return sockets


def raise_descriptor_limit(config: Config) -> int:
    """Make room for two descriptors a connection; macOS begins with 256, Linux with 1024.

    Gives the limit that is in force.
    """
    table = config.connections
    needed = 2 * table.maximum + table.maximum_handshakes + _MAX_LINGERING + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return soft
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
    return soft
