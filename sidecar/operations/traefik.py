"""`traefik`: what Traefik needs to be told, from the configuration and what a person adds.

The one thing that may be asked outside is our own SPIFFE ID, where neither says it: the running
daemon first, which knows what it serves with, then the agent or the identity's files.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity
from sidecar.core.address import Inherited
from sidecar.core.checked import Checked
from sidecar.core.errors import InvalidSpiffeIdError, SidecarError
from sidecar.core.ledger import Ledger
from sidecar.core.spiffe_id import SpiffeId
from sidecar.operations.status import NotReachableError, ask
from sidecar.rotator import follow_source, identity_rules, identity_source

_SECONDS = 5.0


class NoIdError(SidecarError):
    """The host's: nobody could say which SPIFFE ID is ours. Exit status 1."""


@dataclass(frozen=True, slots=True)
class OwnId:
    """Our SPIFFE ID, and where it was learned."""

    spiffe_id: SpiffeId
    source: str


def own_id(checked: Checked) -> OwnId:
    """Find the SPIFFE ID that a sidecar with this configuration serves with.

    Raise `NoIdError` when the configuration does not say it and nobody answers.
    """
    configured = checked.config.workload_api.spiffe_id
    if configured is not None and checked.config.identity_files is None:
        return OwnId(configured, "the configuration")
    running = _id_of_daemon(checked)
    if running is not None:
        return OwnId(running, "the running daemon")
    return trio.run(_id_of_source, checked)


def _id_of_daemon(checked: Checked) -> SpiffeId | None:
    """Ask the daemon; None when it is not there or has no identity."""
    admin = checked.config.admin
    if admin is None or isinstance(admin.address, Inherited):
        return None
    try:
        identity = ask(admin.address).report.status.identity
        return SpiffeId.parse(identity.spiffe_id) if identity else None
    except (NotReachableError, InvalidSpiffeIdError):
        return None


async def _id_of_source(checked: Checked) -> OwnId:
    """Ask the agent, or look at the files."""
    grace = checked.config.workload_api.denied_grace_seconds
    current = CurrentIdentity(grace, Ledger(read_clocks().wall))
    source = identity_source(checked)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_source, source, current, identity_rules(checked.config))
        with trio.move_on_after(_SECONDS):
            await current.changed.wait()
        nursery.cancel_scope.cancel()
    if current.identity is None:
        reason = current.standing.reason or f"no answer within {_SECONDS:g} s"
        hint = (
            "say --spiffe-id, or set [workload_api] spiffe_id; the agent attests whoever asks it, "
            "so ask as the sidecar's own account"
        )
        raise NoIdError(f"our SPIFFE ID is not known: {reason}", hint)
    return OwnId(current.identity.svid.spiffe_id, f"the {source.name}")
