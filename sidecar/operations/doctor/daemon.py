"""Finds the running daemon, and the account that it runs as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from sidecar.adapters.host.accounts import account_of, own_account
from sidecar.adapters.host.command import Run
from sidecar.adapters.host.processes import is_sidecar
from sidecar.core.address import Address
from sidecar.core.config import HelperConfig
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Account, ListeningSocket, Process, ServiceState
from sidecar.core.diagnosis.listener import Daemon, holders
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.core.host_layout import HostLayout
from sidecar.operations.status import NotReachableError, admin_address, ask

_SECONDS = 3.0


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
    """Find the process of a daemon that tells nothing of itself by the port that it has."""
    if said.pid or isinstance(sockets, Unknown):
        return said
    for address in addresses:
        for socket in holders(address, sockets):
            pid = socket.process.pid if socket.process else 0
            if pid and await is_sidecar(pid, run, platform):
                return Daemon(None, said.reason, said.asked, pid)
    return said


async def service_user(
    wanted: str, layout: HostLayout, sidecar: ServiceState | Unknown, process: Process | None
) -> tuple[Account, str]:
    """Give the account that the sidecar runs as, and how it was found out: empty, if it was not.

    Then it is whoever runs doctor. `process` is the running daemon, if there is one.
    """
    if wanted:
        account = account_of(int(wanted) if wanted.isdigit() else wanted)
        if account is None:
            raise UserError(f"there is no account {wanted!r} on this host")
        return account, "as --user says"
    if process is not None and process.uid is not None:
        account = account_of(process.uid)
        if account is not None:
            return account, f"which the daemon, pid {process.pid}, runs as"
    if isinstance(sidecar, ServiceState) and sidecar.installed:
        account = account_of(sidecar.user or 0)
        if account is not None:
            return account, f"which {sidecar.name} names"
    account = account_of(layout.service_user)
    if account is not None:
        return account, "the one that the installer makes"
    return own_account(), ""
