"""The group "host": program, account, service, limits, sleep and clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.core.diagnosis.finding import Finding, Unknown, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import Account, NetworkTime, Power, ServiceState, Way
from sidecar.core.diagnosis.permission import READ, hidden, obstacle, open_to_others

_NO_LOGIN = ("nologin", "false", "sync", "halt", "shutdown")
_HOMES = ("/home/", "/Users/", "/root/")
# A connection has the peer's socket and the backend's; the rest is for files, agent and logs.
_PER_CONNECTION, _BESIDES = 2, 64
_LANDLOCK_WITH_PORTS = 4
_ONE_TIME = (
    "; the agent has attested by a join token, which is good for one time: asleep for longer than "
    "its own SVID lives (agent_ttl), it cannot come back without a new token"
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is known of the host.

    `known_by` says how the service user was found out, empty if it was not; `program` are the ways
    to the interpreter and to this package. `landlock` is its ABI, 0 for none. `descriptors` is the
    limit of the running daemon. `no_sleep`, `set_clock`, `install` and `enable` are commands.
    """

    python: tuple[int, ...]
    openssl: str
    openssl_major: int
    account: Account
    known_by: str
    program: tuple[Way, ...]
    service: ServiceState | Unknown
    daemon_pid: int
    daemon_uid: int | None
    descriptors: int | Unknown
    connections: int  # the most at a time; 0 in helper mode
    sandbox: bool
    landlock: int | Unknown
    power: Power | Unknown
    no_sleep: str
    join_token: bool
    network_time: NetworkTime | Unknown
    set_clock: str
    install: str
    enable: str


def judge_host(facts: HostFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    yield _python(facts)
    yield _service_user(facts)
    yield _installation(facts)
    yield _service(facts)
    yield _enabled(facts)
    yield _active(facts)
    yield _descriptors(facts)
    yield _sandbox(facts)
    yield _sleep(facts)
    yield _clock(facts)


def _python(facts: HostFacts) -> Finding:
    name = "host.python"
    python = ".".join(map(str, facts.python))
    if facts.python[:2] < (3, 11) or facts.openssl_major < 3:
        seen = f"Python {python}, {facts.openssl}; expected 3.11 and OpenSSL 3, or newer"
        return fail(name, seen, "install it again on a newer Python: pip brings OpenSSL with it")
    return ok(name, f"Python {python}, {facts.openssl}")


def _service_user(facts: HostFacts) -> Finding:
    name, account = "host.service_user", facts.account
    if not facts.known_by:
        seen = f"neither daemon nor service nor account tells it; {account} stands in for it here"
        return warn(name, seen, f"say it with --user NAME, or install: {facts.install}")
    if account.uid == 0:
        seen = f"the sidecar runs as root ({facts.known_by})"
        return fail(name, seen, f"an account of its own; {facts.install} makes one")
    shell = account.shell.rpartition("/")[2]
    if shell and shell not in _NO_LOGIN:
        seen = f"{account} is an account to log in with: its shell is {account.shell}"
        remedy = f"an account of its own; {facts.install} makes one"
        return warn(name, seen, remedy)
    return ok(name, f"{account}, {facts.known_by}")


def _installation(facts: HostFacts) -> Finding:
    name = "host.installation"
    for way in facts.program:
        unseen = hidden(way)
        if unseen is not None:
            return skipped(name, f"this account may not look at {unseen.path}", _SUDO)
        blocked = obstacle(facts.account, way, READ)
        if blocked is not None:
            at_home = " in somebody's home" if blocked.path.startswith(_HOMES) else ""
            seen = f"{facts.account} may not pass or read {blocked}: it is installed{at_home}"
            return fail(name, seen, f"install it below /opt/spiffe-sidecar: {facts.install}")
        open_one = open_to_others(way, {0} | ({way[-1].uid} - {facts.account.uid}))
        if open_one is not None:
            seen = f"{open_one}: others than root can change the program"
            mode = f"sudo chown root {open_one.path} && sudo chmod go-w {open_one.path}"
            return warn(name, seen, mode)
    ends = [way[-1].path for way in facts.program]
    home = next((end for end in ends if end.startswith(_HOMES)), None)
    if home is not None:
        seen = f"{home} is in somebody's home: it goes with that account"
        return warn(name, seen, f"install it below /opt/spiffe-sidecar: {facts.install}")
    return ok(name, ends[-1] if ends else "not known")


_SUDO = "run doctor with sudo"


def _service(facts: HostFacts) -> Finding:
    name, service = "host.service", facts.service
    if isinstance(service, Unknown):
        return skipped(name, service)
    if not service.installed:
        return warn(name, f"no service {service.name}: nobody starts it", facts.install)
    if service.only_when_logged_in:
        seen = f"{service.path} is a LaunchAgent: it runs only while that user is logged in"
        return warn(name, seen, "a LaunchDaemon with UserName in /Library/LaunchDaemons")
    return ok(name, service.path or service.name)


def _enabled(facts: HostFacts) -> Finding:
    name, service = "host.enabled", facts.service
    if isinstance(service, Unknown) or not service.installed:
        return skipped(name, service if isinstance(service, Unknown) else "it is not installed")
    if service.enabled is False:
        return fail(name, f"{service.name} does not start with the host", facts.enable)
    if service.enabled is None:
        return skipped(name, "the service manager does not say")
    return ok(name, f"{service.name} starts with the host")


def _active(facts: HostFacts) -> Finding:
    name, service = "host.active", facts.service
    if isinstance(service, Unknown) or not service.installed:
        return skipped(name, service if isinstance(service, Unknown) else "it is not installed")
    if facts.account.uid and facts.daemon_uid not in (None, 0, facts.account.uid):
        seen = (
            f"pid {facts.daemon_pid} of uid {facts.daemon_uid} answers in place of the daemon, "
            f"which {facts.account} runs: nothing that it says of itself is to be believed"
        )
        return fail(name, seen, f"find out what it is, end it: sudo kill {facts.daemon_pid}")
    if service.running is False:
        ended = f": {service.ended}" if service.ended else ""
        if facts.daemon_pid:
            seen = f"{service.name} does not run, and pid {facts.daemon_pid} does, by hand"
            remedy = f"sudo kill {facts.daemon_pid}, then {facts.enable}"
            return warn(name, seen, remedy)
        return fail(name, f"{service.name} does not run{ended}", facts.enable)
    if service.pid and facts.daemon_pid and service.pid != facts.daemon_pid:
        seen = f"{service.name} is pid {service.pid}, and pid {facts.daemon_pid} answers"
        return warn(name, seen, f"sudo kill {facts.daemon_pid}, then {facts.enable}")
    return ok(name, f"{service.name} runs, pid {service.pid}")


def _descriptors(facts: HostFacts) -> Finding:
    name, limit = "host.descriptors", facts.descriptors
    if not facts.connections:
        return skipped(name, "without [listener] there are no connections")
    if isinstance(limit, Unknown):
        return skipped(name, limit)
    needed = _PER_CONNECTION * facts.connections + _BESIDES
    if limit < needed:
        seen = f"{limit} file descriptors, and {facts.connections} connections need {needed}"
        remedy = (
            f"LimitNOFILE={needed} in the unit (launchd: NumberOfFiles), "
            f"or [connections] maximum = {max(1, (limit - _BESIDES) // _PER_CONNECTION)}"
        )
        return warn(name, seen, remedy)
    return ok(name, f"{limit} for {facts.connections} connections")


def _sandbox(facts: HostFacts) -> Finding:
    name, abi = "host.sandbox", facts.landlock
    if not facts.sandbox:
        remedy = "[sandbox] enabled = true"
        return warn(name, "it is switched off in the configuration", remedy)
    if isinstance(abi, Unknown):
        return skipped(name, abi)
    if abi < _LANDLOCK_WITH_PORTS:
        seen = f"Landlock ABI {abi}" if abi else "no Landlock"
        remedy = "Linux 6.7 or newer, with landlock among lsm= of the kernel's command line"
        return warn(name, f"{seen}: files or ports of the process are not confined", remedy)
    return ok(name, f"Landlock ABI {abi}")


def _sleep(facts: HostFacts) -> Finding:
    name, power = "host.sleep", facts.power
    if isinstance(power, Unknown):
        return skipped(name, power)
    if power.sleeps:
        more = _ONE_TIME if facts.join_token else ""
        return warn(name, f"{power.how}{more}", facts.no_sleep)
    return ok(name, power.how)


def _clock(facts: HostFacts) -> Finding:
    name, clock = "host.clock", facts.network_time
    if isinstance(clock, Unknown):
        return skipped(name, clock)
    if not clock.synchronised:
        return warn(name, f"{clock.how}: an SVID lives for an hour", facts.set_clock)
    return ok(name, clock.how)
