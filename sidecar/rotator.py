"""Story: one update from the agent, or from files, becomes the identity we serve with.

    workload_api, identity_files   one event of the source
    core.identity_update  raw fields -> proven update, or the reason why not
    core.identity_update  choose: which SVID is ours
    tls                builds a new server context: OpenSSL accepts key and chain
    rotator            swaps `CurrentIdentity`; one log line

The swap does not wait for the certificate files (`file_keeper`): a full disk or a hanging mount
must not keep us from serving with the newest SVID. Old connections keep the identity they began
with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import structlog
import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import IdentityFiles, IdentityPaths
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, server_identity
from sidecar.adapters.workload_api import WorkloadApi
from sidecar.core.checked import Checked
from sidecar.core.config import Config, HelperConfig
from sidecar.core.errors import AgentProtocolError
from sidecar.core.identity_event import Denied, IdentityEvent, Lost, Unreadable, Updated
from sidecar.core.identity_state import IdentityState, Standing
from sidecar.core.identity_update import (
    RawUpdate,
    SvidChoice,
    choose,
    identity_update,
    usable_from,
)
from sidecar.core.svid import same_bundles

log = structlog.get_logger()

# SPIRE renews at half life. An agent that is silent past this share of it is asked again.
_SILENT_SHARE = 0.75
_MIN_SILENCE_SECONDS = 5.0
_WITHOUT_IDENTITY_SECONDS = 30.0
_CLOCKS_DIFFER_SECONDS = 0.01  # a hair too early would be too early
# The longest time between two looks at the wall clock. It may jump (a host that slept), and a
# timer set for the expiry would not: on macOS the monotonic clock stands still during sleep.
_CLOCK_CHECK_SECONDS = 5.0
_NO_ENTRY_HINT = (
    "is there a registration entry whose selectors fit this process (its uid)? "
    "see `spire-server entry show`; a new entry takes some seconds to reach the agent"
)


class IdentitySource(Protocol):
    """Where identities come from: the agent, or files that something else writes."""

    name: str  # as the log calls it

    async def next_event(self, ask_again_seconds: float) -> IdentityEvent:
        """Wait for the next event; after so many seconds of silence look again."""

    def accepted(self) -> None:
        """Hear that the last update was good."""

    def close(self) -> None:
        """Let go of what is open."""


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """What the configuration says about our identity."""

    choice: SvidChoice
    tls_minimum_version: str
    speaks_http: bool = False


def identity_rules(config: HelperConfig) -> IdentityRules:
    """Give the rules of a configuration."""
    choice = SvidChoice(config.workload_api.spiffe_id, config.workload_api.hint)
    if not isinstance(config, Config):
        return IdentityRules(choice, "1.3")
    speaks_http = config.backend.mode == "http"
    return IdentityRules(choice, config.listener.tls_minimum_version, speaks_http)


def identity_source(checked: Checked) -> IdentitySource:
    """Give what the configuration names: the agent, or files."""
    table = checked.config.identity_files
    if table is None:
        return WorkloadApi(checked.endpoint)
    paths = IdentityPaths.of(table, checked.directory)
    return IdentityFiles(paths, table.poll_seconds, FileChanges)


async def follow_source(
    source: IdentitySource, current: CurrentIdentity, rules: IdentityRules
) -> None:
    """Turn every event of the source into the identity and the standing of the moment."""
    try:
        while True:
            event = await _next_event(source, current)
            if isinstance(event, Updated):
                if _rotate(event.update, current, rules):
                    source.accepted()
            else:
                _set_back(event, current, source.name)
    finally:
        source.close()


async def _next_event(source: IdentitySource, current: CurrentIdentity) -> IdentityEvent:
    """Wait for the next event; whoever asks for one gets it at once."""
    with trio.CancelScope() as scope:
        current.on_ask = scope.cancel
        return await source.next_event(_patience(current))
    current.on_ask = None
    log.info("asked to fetch now")
    return await source.next_event(0.0)


def _rotate(raw: RawUpdate, current: CurrentIdentity, rules: IdentityRules) -> bool:
    """Stage, prove, swap; tell whether the update was good."""
    clocks = read_clocks()
    current.retry_at = None
    try:
        update = identity_update(raw, clocks.wall)
    except AgentProtocolError as exc:
        current.retry_at = usable_from(raw, clocks.wall)
        _discarded(exc.message, current)
        return False
    svid = choose(update, rules.choice)
    if svid is None:
        offered = ", ".join(str(one.spiffe_id) for one in update.svids)
        _deny(f"no SVID with {rules.choice}; the agent offers {offered}", current)
        return True
    try:
        bundles = update.bundles
        identity = server_identity(
            svid, bundles, rules.tls_minimum_version, speaks_http=rules.speaks_http
        )
    except AgentProtocolError as exc:
        _discarded(exc.message, current)
        return False
    old = current.identity
    standing = Standing(not_after=svid.not_after, connected=True)
    _note(update.notes, current)
    if old is not None and old.svid.chain == svid.chain and same_bundles(old.bundles, bundles):
        # The old object stays: another one would end every kept connection for nothing.
        current.replace(old, standing)
        log.debug("identity confirmed", serial=svid.serial)
        return True
    current.replace(identity, standing)
    current.ledger.rotated(clocks.wall)
    if old is not None and old.svid.spiffe_id != svid.spiffe_id:
        log.warning(
            "another SPIFFE ID than before",
            spiffe_id=str(svid.spiffe_id),
            before=str(old.svid.spiffe_id),
            hint="the agent's first SVID is taken; [workload_api] spiffe_id says which one it is",
        )
    log.info(
        "identity rotated" if old else "identity obtained",
        spiffe_id=str(svid.spiffe_id),
        serial=svid.serial,
        expires=f"{svid.not_after:%FT%TZ}",
        trust_domains=len(identity.bundles),
        seconds=round(time.monotonic() - clocks.monotonic, 4),
    )
    return True


def _note(notes: tuple[str, ...], current: CurrentIdentity) -> None:
    """Say what of an update is not used, when that has changed."""
    for note in notes:
        if note not in current.ledger.update_notes:
            log.warning("update incomplete", reason=note)
    current.ledger.update_notes = notes


def _discarded(reason: str, current: CurrentIdentity) -> None:
    """Keep what we have; the stream is alive all the same (Workload API 4.5, Mandatory Fields)."""
    log.warning("update discarded", reason=reason, kept=current.identity is not None)
    current.ledger.update_discarded(read_clocks().wall, reason)
    current.replace(current.identity, replace(current.standing, connected=True, reason=reason))


def _set_back(event: IdentityEvent, current: CurrentIdentity, source: str) -> None:
    """Take note that the source is away or says no; say so once, not at every retry."""
    standing, known = current.standing, current.standing.reason
    if isinstance(event, Unreadable):
        _discarded(event.reason, current)
    elif isinstance(event, Denied):
        _deny(event.reason, current)
    elif isinstance(event, Lost):
        if standing.connected or known != event.reason:
            say = log.error if event.useless else log.warning
            serving = current.serving(read_clocks()) is not None
            say(f"{source} lost", reason=event.reason, serving=serving)
        current.replace(current.identity, replace(standing, connected=False, reason=event.reason))


def _deny(reason: str, current: CurrentIdentity) -> None:
    standing = current.standing
    since = time.monotonic() if standing.denied_at is None else standing.denied_at
    if standing.denied_at is None or standing.reason != reason:
        log.error("identity denied", reason=reason, hint=_NO_ENTRY_HINT)
    current.replace(
        current.identity, replace(standing, connected=False, denied_at=since, reason=reason)
    )


def _patience(current: CurrentIdentity) -> float:
    """Give the seconds of silence after which the agent is asked again."""
    seconds = _silence(current.identity)
    if current.retry_at is None:
        return seconds
    # What was discarded may be good from then on.
    left = (current.retry_at - read_clocks().wall).total_seconds()
    return min(seconds, max(left, 0.0) + _CLOCKS_DIFFER_SECONDS)


def _silence(identity: ServerIdentity | None) -> float:
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
            current.ledger.state_changed(state, clocks.wall)
            known, was_serving = state, serving
        left = current.standing.seconds_to_change(clocks, current.denied_grace_seconds)
        with trio.move_on_after(min(left, _CLOCK_CHECK_SECONDS)):
            await changed.wait()
