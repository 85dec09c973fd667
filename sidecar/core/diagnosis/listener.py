"""The group "listener": the daemon, the port it serves, and the whole way in as a peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from sidecar.core.address import Address, Inherited
from sidecar.core.diagnosis.finding import Finding, Unknown, all_skipped, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import Account, Firewall, ListeningSocket, ServiceState
from sidecar.core.status import Report

# Tailscale and other overlays give these (RFC 6598, Shared Address Space).
_OVERLAY = IPv4Network("100.64.0.0/10")
_OF_PORT = (
    "listener.address",
    "listener.port",
    "listener.privileges",
    "listener.exposure",
    "listener.firewall",
    "listener.handshake",
    "listener.request",
)


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """How a request through our own listener went; `hop` is where it ended, empty: well."""

    hop: str = ""
    message: str = ""
    hint: str = ""
    peer: str = ""  # the SPIFFE ID that the server proved
    status: int = 0


@dataclass(frozen=True, slots=True)
class Daemon:
    """The running daemon: what it says of itself, or why it does not.

    `pid` is 0 if it is not known to run; `asked` where it was asked, empty without [admin].
    """

    report: Report | None
    reason: str = ""
    asked: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class ListenerFacts:
    """What is known of the way in; `addresses` are empty in helper mode.

    `holders` are the sockets that listen on this host. `unprivileged_from` is the first port that
    needs no privilege.
    """

    addresses: tuple[Address, ...]
    own_ips: frozenset[IPv4Address | IPv6Address] | Unknown
    holders: tuple[ListeningSocket, ...] | Unknown
    account: Account
    unprivileged_from: int
    wildcard_is_free: bool  # macOS asks for no privilege where the address is 0.0.0.0 or [::]
    firewalls: tuple[Firewall, ...] | Unknown
    daemon: Daemon
    installed_version: str
    service: ServiceState | Unknown
    end_to_end: EndToEnd | Unknown
    http: bool
    start: str
    restart: str
    no_port: str = "a configuration without [listener] has no port"  # why there are no addresses


def judge_listener(facts: ListenerFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    yield _daemon(facts)
    yield _ready(facts.daemon)
    yield _version(facts)
    if not facts.addresses:
        yield from all_skipped(_OF_PORT, facts.no_port)
        return
    bound = [one for one in facts.addresses if not isinstance(one, Inherited)]
    if not bound:
        reason = "the service manager listens for us, see its socket unit or plist"
        yield from all_skipped(_OF_PORT[:4], reason)
    else:
        yield _address(facts, bound)
        yield _port(facts, bound)
        yield _privileges(facts, bound)
        yield _exposure(bound)
    yield _firewall(facts)
    yield _handshake(facts)
    yield _request(facts)


def _daemon(facts: ListenerFacts) -> Finding:
    name, daemon, service = "listener.daemon", facts.daemon, facts.service
    if daemon.report is not None:
        status = daemon.report.status
        return ok(name, f"pid {status.pid}, mode {status.mode}, since {status.started_at:%F %T}Z")
    if daemon.pid and not daemon.asked:
        return ok(name, f"pid {daemon.pid}; without [admin] it tells nothing of itself")
    if daemon.pid:
        seen = f"pid {daemon.pid} runs, and {daemon.asked} gives no answer: {daemon.reason}"
        return fail(name, seen, facts.restart)
    if not daemon.asked and not facts.addresses:
        if isinstance(service, ServiceState) and service.running:
            return ok(name, f"{service.name} runs")
        return skipped(name, f"nothing shows whether it runs: no [admin], and {facts.no_port}")
    ended = ""
    if isinstance(service, ServiceState) and service.ended:
        ended = f"; {service.name} ended: {service.ended}"
    why = f": {daemon.reason}" if daemon.reason else ""
    return fail(name, f"it does not run{why}{ended}", facts.start)


def _ready(daemon: Daemon) -> Finding:
    name, report = "listener.ready", daemon.report
    if report is None:
        return skipped(name, _silent(daemon))
    if not report.ready:
        seen = "; ".join(f"{one.name}: {one.text}" for one in report.reasons)
        return fail(name, seen, "spiffe-sidecar status --config FILE; its log says more")
    if report.warnings:
        seen = "; ".join(f"{one.name}: {one.text}" for one in report.warnings)
        return warn(name, f"ready, but {seen}", "its log says more")
    return ok(name, "ready")


def _silent(daemon: Daemon) -> str:
    if daemon.pid and not daemon.asked:
        return "without [admin] nobody can be asked"
    return "the daemon does not answer"


def _version(facts: ListenerFacts) -> Finding:
    name, report = "listener.version", facts.daemon.report
    if report is None:
        return skipped(name, _silent(facts.daemon))
    runs, installed = report.status.version, facts.installed_version
    if runs != installed:
        return warn(name, f"{runs} runs, {installed} is installed", facts.restart)
    return ok(name, installed)


def _address(facts: ListenerFacts, bound: Sequence[Address]) -> Finding:
    name, own = "listener.address", facts.own_ips
    if isinstance(own, Unknown):
        return skipped(name, own)
    for address in bound:
        ip = address.ip
        if ip is None or ip.is_unspecified or ip.is_loopback or ip in own:
            continue
        seen = (
            f"{ip} is no address of this host; it has {', '.join(map(str, sorted(own, key=str)))}"
        )
        remedy = f"correct [listener] address {address}, or bring its network up before the start"
        if ip.version == 4 and ip in _OVERLAY:
            remedy = f"bring the overlay network up (tailscale up), then {facts.restart}"
        return fail(name, seen, remedy)
    return ok(name, ", ".join(map(str, bound)))


def _port(facts: ListenerFacts, bound: Sequence[Address]) -> Finding:
    name, sockets = "listener.port", facts.holders
    if isinstance(sockets, Unknown):
        return skipped(name, sockets)
    said = facts.daemon.report.status.listening if facts.daemon.report else ()
    seen = []
    for address in bound:
        for socket in holders(address, sockets):
            process = socket.process
            ours = str(address) in said if process is None else process.pid == facts.daemon.pid
            if ours:
                seen.append(f"{address} is ours")
            elif process is None:
                reason = f"somebody listens on {socket.where}, this account may not see who"
                return skipped(name, reason, "run doctor with sudo")
            else:
                text = f"{address} is held by {process}, which listens on {socket.where}"
                remedy = f"end it, or give [listener] address another port: sudo kill {process.pid}"
                return fail(name, text, remedy)
    return ok(name, "; ".join(dict.fromkeys(seen)) or "free")


def holders(address: Address, sockets: Sequence[ListeningSocket]) -> list[ListeningSocket]:
    """Give the sockets that stand in the way of an address, or are it."""
    ip = address.ip
    if ip is None or address.port == 0:
        return []
    return [
        one
        for one in sockets
        if one.port == address.port
        and (one.ip == ip or (_may_meet(one, ip) and _either_is_any(one, ip)))
    ]


def _may_meet(socket: ListeningSocket, ip: IPv4Address | IPv6Address) -> bool:
    """Tell whether they are of one family; `[::]` is of both."""
    return socket.ip.version == ip.version or (ip.version == 6 and ip.is_unspecified)


def _either_is_any(socket: ListeningSocket, ip: IPv4Address | IPv6Address) -> bool:
    return socket.ip.is_unspecified or ip.is_unspecified


def _privileges(facts: ListenerFacts, bound: Sequence[Address]) -> Finding:
    name = "listener.privileges"
    low = [
        one
        for one in bound
        if 0 < one.port < facts.unprivileged_from and not (facts.wildcard_is_free and _is_any(one))
    ]
    if not low or facts.account.uid == 0:
        return ok(name, "no privilege is needed")
    said = facts.daemon.report.status.listening if facts.daemon.report else ()
    if all(str(one) in said for one in low):
        return ok(name, f"the daemon has {', '.join(map(str, low))}")
    seen = f"{facts.account} may not listen on ports below {facts.unprivileged_from}: {low[0]}"
    remedy = "a port from 1024 on, or socket activation: [listener] address = 'systemd'"
    return fail(name, seen, remedy)


def _is_any(address: Address) -> bool:
    return address.ip is not None and address.ip.is_unspecified


def _exposure(bound: Sequence[Address]) -> Finding:
    name = "listener.exposure"
    if all(one.ip is None for one in bound):
        return ok(name, f"only this host reaches {', '.join(map(str, bound))}")
    if all(one.is_loopback for one in bound):
        port = next(one.port for one in bound if one.ip is not None)
        remedy = f'if Traefik is on another host: [listener] address = "0.0.0.0:{port}"'
        return warn(name, f"only this host reaches {', '.join(map(str, bound))}", remedy)
    return ok(name, f"other hosts reach {', '.join(map(str, bound))}")


def _firewall(facts: ListenerFacts) -> Finding:
    name, walls = "listener.firewall", facts.firewalls
    if isinstance(walls, Unknown):
        return skipped(name, walls)
    shut = [one for one in walls if one.blocks]
    if shut:
        seen = "; ".join(f"{one.name}: {one.how}" for one in shut)
        return warn(name, seen, "\n".join(one.remedy for one in shut if one.remedy))
    unclear = [one for one in walls if one.blocks is None]
    if unclear:
        seen = "; ".join(f"{one.name}: {one.how}" for one in unclear)
        remedies = [one.remedy for one in unclear if one.remedy]
        remedies.append("from Traefik's host: spiffe-sidecar probe https://THIS-HOST:PORT/health")
        return warn(name, seen, "\n".join(remedies))
    return ok(name, "; ".join(f"{one.name}: {one.how}" for one in walls) or "none is in the way")


_BEFORE_US = ("identity", "name")
_HANDSHAKE = ("connect", "tls", "peer", "own_svid")


def _handshake(facts: ListenerFacts) -> Finding:
    name, end = "listener.handshake", facts.end_to_end
    if isinstance(end, Unknown):
        return skipped(name, end)
    if end.hop in _BEFORE_US:
        return skipped(name, f"no identity to ask with: {end.message}")
    if end.hop in _HANDSHAKE and not (end.hop == "own_svid" and not facts.http):
        return fail(name, end.message, end.hint)
    return ok(name, f"the server is {end.peer or 'us'}")


def _request(facts: ListenerFacts) -> Finding:
    name, end = "listener.request", facts.end_to_end
    if isinstance(end, Unknown):
        return skipped(name, end)
    if end.hop in _BEFORE_US or end.hop in _HANDSHAKE:
        return skipped(name, "no connection to ask on")
    if not facts.http:
        return skipped(name, "in mode stream the backend's protocol is not ours to speak")
    if end.hop == "policy":
        return skipped(name, "handshake only: the policy does not admit our own SPIFFE ID")
    if end.hop:
        return fail(name, end.message, end.hint)
    return ok(name, f"GET /health: {end.status}")
