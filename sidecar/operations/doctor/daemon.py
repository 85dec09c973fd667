"""Finds the running daemon, and the account that it runs as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from sidecar.adapters.host.accounts import account_of, own_account
from sidecar.adapters.host.command import Run
from sidecar.adapters.host.processes import is_sidecar, listener_of
from sidecar.core.address import Address
from sidecar.core.config import HelperConfig
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Account, ListeningSocket, Process, ServiceState
from sidecar.core.diagnosis.listener import Daemon, holders
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.core.host_layout import HostLayout
from sidecar.operations.status import NotReachableError, admin_address, ask

_SECONDS = 3.0
_UID = re.compile(r"[0-9]{1,10}")
_MAX_UID = 2**32 - 2  # the last one means "no change" to the system


class UserError(SidecarError):
    """The operator's: there is no such account. Exit status 2."""


async def daemon_that_answers(config: Path, config_of: HelperConfig | None) -> Daemon:
    """Ask the daemon of this configuration how it is."""
    if config_of is not None and config_of.admin is None:
        return Daemon(None)
    try:
        address = admin_address(config)
    except ConfigError:
        return Daemon(None)
    answer = None
    try:
        with trio.move_on_after(_SECONDS):
            answer = await trio.to_thread.run_sync(ask, address, abandon_on_cancel=True)
    except NotReachableError as exc:
        return Daemon(None, exc.message, str(address))
    if answer is None:
        return Daemon(None, f"no answer within {_SECONDS:g} s", str(address))
    return Daemon(answer.report, "", str(address), answer.report.status.pid)


async def daemon_on_port(
    said: Daemon,
    addresses: Sequence[Address],
    sockets: tuple[ListeningSocket, ...] | Unknown,
    run: Run,
    platform: str,
) -> Daemon:
    """Find the process of the daemon by the port that it has, whatever it tells of itself."""
    if said.pid:
        return replace(said, pid=await _holder(said, sockets, platform))
    if isinstance(sockets, Unknown):
        return said
    for address in addresses:
        for socket in holders(address, sockets):
            pid = socket.process.pid if socket.process else 0
            if pid and await is_sidecar(pid, run, platform):
                return Daemon(None, said.reason, said.asked, pid)
    return said


async def _holder(
    said: Daemon, sockets: tuple[ListeningSocket, ...] | Unknown, platform: str
) -> int:
    """Give the process that has the admin address: whoever took it may call itself any other."""
    address = Address.parse(said.asked)
    if address.ip is None:
        found = await trio.to_thread.run_sync(listener_of, address.path, platform)
        return said.pid if isinstance(found, Unknown) else found[0] or said.pid
    known = () if isinstance(sockets, Unknown) else holders(address, sockets)
    pids = [one.process.pid for one in known if one.process and one.process.pid]
    return said.pid if not pids or said.pid in pids else pids[0]


async def service_user(
    wanted: str, layout: HostLayout, sidecar: ServiceState | Unknown, process: Process | None
) -> tuple[Account, str]:
    """Give the account that the sidecar runs as, and how it was found out: empty, if it was not.

    Then it is whoever runs doctor. `process` is the running daemon, if there is one; where the
    service says who it is, only the service's own process counts: the remedies give this account
    rights, and anybody can have taken the daemon's ports.
    """
    if wanted:
        account = account_of(_uid(wanted) if _UID.fullmatch(wanted) else wanted)
        if account is None:
            raise UserError(f"there is no account {wanted!r} on this host")
        return account, "as --user says"
    named = _named(sidecar)
    if process is not None and process.uid is not None:
        account = account_of(process.uid)
        is_known = named is None or (
            isinstance(sidecar, ServiceState) and sidecar.pid == process.pid
        )
        if account is not None and is_known:
            return account, f"which the daemon, pid {process.pid}, runs as"
    if named is not None and isinstance(sidecar, ServiceState):
        return named, f"which {sidecar.name} names"
    account = account_of(layout.service_user)
    if account is not None:
        return account, "the one that the installer makes"
    return own_account(), ""


def _named(sidecar: ServiceState | Unknown) -> Account | None:
    """Give the account that the service names; a LaunchAgent runs as whoever has logged in."""
    if isinstance(sidecar, Unknown) or not sidecar.installed:
        return None
    if not sidecar.user and sidecar.only_when_logged_in:
        return None
    return account_of(sidecar.user or 0)


def _uid(text: str) -> int:
    if int(text) > _MAX_UID:
        raise UserError(f"--user {text}: expected a name, or a number up to {_MAX_UID}")
    return int(text)
