"""Story: one update from the agent becomes the identity we serve with.

    workload_api       one event of the agent
    core.identity_update  raw fields -> proven update, or the reason why not
    core.identity_update  choose: which SVID is ours
    tls                builds a new server context: OpenSSL accepts key and chain
    rotator            swaps `CurrentIdentity`; one log line
    core.file_plan, cert_files   stage, prove and publish the files, in a task of its own

The swap does not wait for the files: a full disk or a hanging mount must not keep us from
serving with the newest SVID. Old connections keep the identity they began with.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
import trio

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, server_identity
from sidecar.adapters.workload_api import (
    AgentEvent,
    Denied,
    Lost,
    Unreadable,
    Updated,
    WorkloadApi,
)
from sidecar.core.backoff import Backoff
from sidecar.core.errors import AgentProtocolError, CertFilesError
from sidecar.core.file_plan import FileModes, FileNames, file_plan
from sidecar.core.identity_state import IdentityState, Standing
from sidecar.core.identity_update import RawUpdate, SvidChoice, choose, identity_update

log = structlog.get_logger()

# SPIRE renews at half life. An agent that is silent past this share of it is asked again.
_SILENT_SHARE = 0.75
_MIN_SILENCE_SECONDS = 5.0
_WITHOUT_IDENTITY_SECONDS = 30.0
# The longest time between two looks at the wall clock. It may jump (a host that slept), and a
# timer set for the expiry would not: on macOS the monotonic clock stands still during sleep.
_CLOCK_CHECK_SECONDS = 5.0
_FILES_AGAIN = Backoff(first=1.0, cap=60.0)
_NO_ENTRY_HINT = (
    "is there a registration entry whose selectors fit this process (its uid)? "
    "see `spire-server entry show`; a new entry takes some seconds to reach the agent"
)


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """What the configuration says about our identity."""

    choice: SvidChoice
    tls_minimum_version: str


async def follow_agent(agent: WorkloadApi, current: CurrentIdentity, rules: IdentityRules) -> None:
    """Turn every event of the agent into the identity and the standing of the moment."""
    try:
        while True:
            event = await agent.next_event(_patience(current.identity))
            if isinstance(event, Updated):
                if _rotate(event.update, current, rules):
                    agent.accepted()
            else:
                _set_back(event, current)
    finally:
        agent.close()


def _rotate(raw: RawUpdate, current: CurrentIdentity, rules: IdentityRules) -> bool:
    """Stage, prove, swap; tell whether the update was good."""
    clocks = read_clocks()
    try:
        update = identity_update(raw, clocks.wall)
    except AgentProtocolError as exc:
        _discarded(exc.message, current)
        return False
    for note in update.notes:
        log.warning("update incomplete", reason=note)
    svid = choose(update, rules.choice)
    if svid is None:
        offered = ", ".join(str(one.spiffe_id) for one in update.svids)
        _set_back(Denied(f"no SVID with {rules.choice}; the agent offers {offered}"), current)
        return True
    try:
        identity = server_identity(svid, update.bundles, rules.tls_minimum_version)
    except AgentProtocolError as exc:
        _discarded(exc.message, current)
        return False
    for trust_domain in update.bundles.keys() - identity.bundles.keys():
        log.warning("update incomplete", reason=f"OpenSSL cannot read the bundle of {trust_domain}")
    old = current.identity
    standing = Standing(not_after=svid.not_after, connected=True)
    if old is not None and old.svid.chain == svid.chain and old.bundles == identity.bundles:
        # The old object stays: another one would end every kept connection for nothing.
        current.replace(old, standing)
        log.debug("identity confirmed", serial=svid.serial)
        return True
    current.replace(identity, standing)
    log.info(
        "identity rotated" if old else "identity obtained",
        spiffe_id=str(svid.spiffe_id),
        serial=svid.serial,
        expires=f"{svid.not_after:%FT%TZ}",
        trust_domains=len(identity.bundles),
        seconds=round(time.monotonic() - clocks.monotonic, 4),
    )
    return True


def _discarded(reason: str, current: CurrentIdentity) -> None:
    """Keep what we have; the stream is alive all the same (Workload API 4.5, Mandatory Fields)."""
    log.warning("update discarded", reason=reason, kept=current.identity is not None)
    current.replace(current.identity, replace(current.standing, connected=True, reason=reason))


def _set_back(event: AgentEvent, current: CurrentIdentity) -> None:
    """Take note that the agent is away or says no; say so once, not at every retry."""
    standing, known = current.standing, current.standing.reason
    if isinstance(event, Unreadable):
        _discarded(event.reason, current)
    elif isinstance(event, Denied):
        since = time.monotonic() if standing.denied_at is None else standing.denied_at
        if standing.denied_at is None or known != event.reason:
            log.error("identity denied", reason=event.reason, hint=_NO_ENTRY_HINT)
        current.replace(
            current.identity,
            replace(standing, connected=False, denied_at=since, reason=event.reason),
        )
    elif isinstance(event, Lost):
        if standing.connected or known != event.reason:
            say = log.error if event.useless else log.warning
            serving = current.serving(read_clocks()) is not None
            say("agent lost", reason=event.reason, serving=serving)
        current.replace(current.identity, replace(standing, connected=False, reason=event.reason))


def _patience(identity: ServerIdentity | None) -> float:
    """Give the seconds of silence after which the agent is asked again."""
    if identity is None:
        # The last update may have been discarded for a clock that has been set since.
        return _WITHOUT_IDENTITY_SECONDS
    leaf = identity.svid.leaf
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    left = leaf.not_valid_before_utc + _SILENT_SHARE * life - read_clocks().wall
    return max(_MIN_SILENCE_SECONDS, max(left, life / 10) / timedelta(seconds=1))


async def watch_state(current: CurrentIdentity) -> None:
    """Log each change of state, those that only time brings included."""
    known, was_serving = IdentityState.STARTING, False
    while True:
        changed, clocks = current.changed, read_clocks()
        state, serving = current.standing.state(clocks), current.serving(clocks) is not None
        if (state, serving) != (known, was_serving):
            say = log.info if state is IdentityState.READY else log.warning
            say("state changed", state=str(state), before=str(known), serving=serving)
            known, was_serving = state, serving
        left = current.standing.seconds_to_change(clocks, current.denied_grace_seconds)
        with trio.move_on_after(min(left, _CLOCK_CHECK_SECONDS)):
            await changed.wait()


async def publish_files(files: CertFiles, modes: FileModes, current: CurrentIdentity) -> None:
    """Publish each new identity as files; retry while the disk refuses, newest first."""
    done: ServerIdentity | None = None
    failures = 0
    while True:
        changed, identity = current.changed, current.identity
        if identity is None or identity is done:
            await changed.wait()
            continue
        bundle = identity.bundles[identity.svid.spiffe_id.trust_domain]
        plan = file_plan(identity.svid, bundle, FileNames(), modes)
        try:
            # Abandoned at shutdown: a mount that hangs must not hold up the exit, and a
            # generation that is half written is never the published one.
            name = await trio.to_thread.run_sync(files.publish, plan, abandon_on_cancel=True)
        except CertFilesError as exc:
            delay = _FILES_AGAIN.delay(failures, random.uniform(0.5, 1.0))
            failures += 1
            log.error(
                "certificate files not published",
                reason=exc.message,
                hint=exc.hint,
                retry_seconds=round(delay, 1),
            )
            with trio.move_on_after(delay):
                await changed.wait()
            continue
        done, failures = identity, 0
        if name:
            log.info("certificate files published", generation=name, serial=identity.svid.serial)
