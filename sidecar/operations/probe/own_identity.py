"""Our own identity for a probe: taken once, from what the configuration names.

Not the rotator's way, which waits for ever and logs: a probe wants one answer, and each way of
not getting one is a fault of its own with a remedy of its own.
"""

from __future__ import annotations

import os
import pwd
import sys
from contextlib import suppress
from pathlib import Path

import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.probing import ConnectError, knock
from sidecar.adapters.tls import ServerIdentity, server_identity
from sidecar.core.checked import Checked
from sidecar.core.errors import AgentProtocolError
from sidecar.core.host_layout import LINUX, MACOS
from sidecar.core.identity_event import Denied, IdentityEvent, Lost, Unreadable, Updated
from sidecar.core.identity_update import RawUpdate, choose, identity_update
from sidecar.core.probe.faults import ConnectEnd
from sidecar.core.probe.report import Fault, FaultError, Hop
from sidecar.core.status import printable
from sidecar.rotator import identity_rules, identity_source

_KNOCK_SECONDS = 1.0


async def take_identity(checked: Checked, seconds: float) -> ServerIdentity:
    """Take the identity of a configuration within `seconds`, or raise `FaultError`."""
    source = identity_source(checked)
    event: IdentityEvent | None = None
    try:
        with trio.move_on_after(seconds):
            event = await source.next_event(seconds)
    finally:
        source.close()
    match event:
        case Updated():
            return _proven(event.update, checked)
        case Denied():
            raise FaultError(_denied(event.reason))
        case Unreadable():
            raise FaultError(_bad(event.reason))
    if checked.config.identity_files is not None:
        raise FaultError(_no_files(event))
    raise FaultError(await _no_agent(event, checked, seconds))


def source_of(checked: Checked) -> str:
    """Say where the identity comes from."""
    table = checked.config.identity_files
    if table is None:
        return str(checked.endpoint)
    return str(Path(checked.directory, table.certificate))


def _proven(raw: RawUpdate, checked: Checked) -> ServerIdentity:
    rules = identity_rules(checked.config)
    try:
        update = identity_update(raw, read_clocks().wall)
        svid = choose(update, rules.choice)
        if svid is None:
            offered = ", ".join(str(one.spiffe_id) for one in update.svids)
            raise FaultError(_not_offered(f"{rules.choice}", offered))
        return server_identity(svid, update.bundles, rules.tls_minimum_version)
    except AgentProtocolError as exc:
        raise FaultError(_bad(exc.message)) from exc


def _not_offered(wanted: str, offered: str) -> Fault:
    message = f"no SVID with {wanted}; the agent offers {offered}"
    hint = "correct spiffe_id or hint in [workload_api], or the registration entry"
    return Fault(Hop.IDENTITY, "svid_not_offered", printable(message), hint)


def _bad(reason: str) -> Fault:
    hint = (
        "an SVID that is expired or not yet valid means that the agent could not renew it (is the "
        "host's clock right?); anything else is a fault of whoever issues it"
    )
    return Fault(Hop.IDENTITY, "identity_bad", f"unusable identity: {printable(reason)}", hint)


def _denied(reason: str) -> Fault:
    uid = os.getuid()
    message = f"the agent has no identity for this process (uid {uid}): {printable(reason)}"
    hint = (
        f"{_as_service_user()}is there a registration entry with the selector unix:uid:{uid}, "
        "below this agent? `register-workload --dry-run` shows it; a new one takes some seconds"
    )
    return Fault(Hop.IDENTITY, "agent_denied", message, hint)


def _as_service_user() -> str:
    """Advise to ask as the account that is registered, if this host has it and we are another."""
    user = (MACOS if sys.platform == "darwin" else LINUX).service_user
    with suppress(KeyError):
        if pwd.getpwnam(user).pw_uid != os.getuid():
            return f"the agent attests who asks: try `sudo -u {user} spiffe-sidecar probe ...`; or "
    return ""


def _no_files(event: Lost | None) -> Fault:
    reason = event.reason if event else "they could not be read in time"
    hint = (
        f"{_as_service_user()}are the paths of [identity_files] right, is what writes them "
        f"running, and may uid {os.getuid()} read them?"
    )
    return Fault(Hop.IDENTITY, "identity_unreadable", printable(reason), hint)


async def _no_agent(event: Lost | None, checked: Checked, seconds: float) -> Fault:
    """Tell an agent that is not there from one that does not answer."""
    endpoint = checked.endpoint
    failed = await knock(endpoint.address, _KNOCK_SECONDS)
    if failed is not None:
        hint = _away_hint(failed)
        message = f"nobody at the agent's socket {endpoint}: {failed.reason}"
        return Fault(Hop.IDENTITY, "agent_away", printable(message), hint)
    if event is None or event.reason.startswith("no answer"):
        message = f"the agent at {endpoint} takes the question and gives no answer in {seconds:g} s"
        hint = "is it attested? its log says so; restart it if it hangs"
        return Fault(Hop.IDENTITY, "agent_silent", message, hint)
    message = f"who listens at {endpoint} does not answer as a SPIRE agent: {event.reason}"
    hint = "is that the socket of the Workload API? an agent that is not attested yet says so, too"
    return Fault(Hop.IDENTITY, "agent_failed", printable(message), hint)


def _away_hint(failed: ConnectError) -> str:
    if failed.end is ConnectEnd.NOT_PERMITTED:
        uid = os.getuid()
        return f"{_as_service_user()}may uid {uid} write to the socket, and enter its folders?"
    return (
        "is the SPIRE agent running on this host, and is that its socket? see socket in "
        "[workload_api], or $SPIFFE_ENDPOINT_SOCKET, and socket_path in agent.conf"
    )
