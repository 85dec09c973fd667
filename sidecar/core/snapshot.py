"""Configuration, ledger and the values of this moment -> the `Status` of this moment.

What `status` shows, and where it comes from, is decided here; nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sidecar.core.after_rotation import HookResult, hook
from sidecar.core.config import Config, HelperConfig
from sidecar.core.identity_state import Clocks, Standing
from sidecar.core.ledger import Ledger, Record
from sidecar.core.policy import Policy
from sidecar.core.readiness import HELPER
from sidecar.core.status import (
    AgentStatus,
    BackendStatus,
    FilesStatus,
    HookStatus,
    IdentityStatus,
    JwtBundleStatus,
    JwtSvidStatus,
    LoadStatus,
    PeerStatus,
    PolicyStatus,
    RefusalStatus,
    Status,
)
from sidecar.core.svid import Bundles, X509Svid


@dataclass(frozen=True, slots=True)
class Process:
    """What stays as it is from start to end."""

    config: HelperConfig
    directory: str  # where its relative paths begin
    version: str
    pid: int
    source: str  # of our identity, as the log calls it


@dataclass(frozen=True, slots=True)
class Moment:
    """What others hold, as of now; `policy` is None in helper mode."""

    clocks: Clocks
    standing: Standing
    svid: X509Svid | None = None
    bundles: Bundles = field(default_factory=dict)
    policy: Policy | None = None
    hook_results: Mapping[str, HookResult] = field(default_factory=dict)


def snapshot(process: Process, ledger: Ledger, moment: Moment) -> Status:
    """Give the status."""
    config = process.config
    serving = config if isinstance(config, Config) else None
    return Status(
        at=moment.clocks.wall,
        version=process.version,
        mode=serving.backend.mode if serving else HELPER,
        started_at=ledger.started_at,
        pid=process.pid,
        draining=ledger.draining,
        listening=ledger.listening,
        identity=_identity(moment.svid, moment.bundles) if moment.svid else None,
        agent=_agent(process, ledger, moment),
        files=_files(process, ledger),
        jwt_svids=tuple(_jwt_svids(config, ledger)),
        jwt_bundle=_jwt_bundle(config, ledger),
        hooks=tuple(
            _hook(table.name, str(hook(table).action), moment.hook_results.get(table.name))
            for table in config.after_rotation
        ),
        backend=_backend(serving, ledger) if serving else None,
        policy=_policy(serving, ledger, moment.policy) if serving and moment.policy else None,
        config_problems=ledger.config_problems,
        needs_restart=ledger.needs_restart,
        load=_load(serving, ledger) if serving else None,
        peers=tuple(_peers(ledger)),
        refusals=tuple(_refusals(ledger)),
    )


def _identity(svid: X509Svid, bundles: Bundles) -> IdentityStatus:
    begin, end = svid.leaf.not_valid_before_utc, svid.not_after
    own = svid.spiffe_id.trust_domain
    return IdentityStatus(
        spiffe_id=str(svid.spiffe_id),
        serial=svid.serial,
        not_before=begin,
        not_after=end,
        rotation_expected=begin + (end - begin) / 2,
        trust_domains=(str(own), *sorted(str(one) for one in bundles if one != own)),
    )


def _agent(process: Process, ledger: Ledger, moment: Moment) -> AgentStatus:
    standing, clocks = moment.standing, moment.clocks
    state = standing.state(clocks)
    grace = process.config.workload_api.denied_grace_seconds
    return AgentStatus(
        source=process.source,
        state=state.value,
        # Time alone may have changed it, and nobody has told the ledger yet.
        since=ledger.state_since if ledger.state is state else clocks.wall,
        connected=standing.connected,
        denied=standing.denied_at is not None,
        serving=standing.may_serve(clocks, grace),
        reason=standing.reason,
        rotations=ledger.updates.good,
        updates_discarded=ledger.updates.bad,
        notes=ledger.update_notes,
    )


def _files(process: Process, ledger: Ledger) -> FilesStatus | None:
    table, files = process.config.cert_files, ledger.files
    if table is None:
        return None
    absolute = table.directory.startswith("/")
    return FilesStatus(
        directory=str(table.directory) if absolute else f"{process.directory}/{table.directory}",
        generation=ledger.generation,
        serial=ledger.files_serial,
        expires=ledger.files_expire,
        published_at=files.good_at,
        publications=files.good,
        error=files.error,
        failed_at=files.bad_at,
    )


def _jwt_svids(config: HelperConfig, ledger: Ledger) -> Iterator[JwtSvidStatus]:
    for table in config.jwt_svid:
        record = ledger.jwt_svids.get(table.file, Record())
        yield JwtSvidStatus(
            file=str(table.file),
            audiences=(table.audience, *table.extra_audiences),
            expires=ledger.jwt_expires.get(table.file),
            error=record.error,
            failed_at=record.bad_at,
        )


def _jwt_bundle(config: HelperConfig, ledger: Ledger) -> JwtBundleStatus | None:
    table, record = config.cert_files, ledger.jwt_bundles
    if table is None or not table.jwt_bundle:
        return None
    return JwtBundleStatus(
        file=str(table.jwt_bundle),
        written_at=record.good_at,
        error=record.error,
        failed_at=record.bad_at,
    )


def _hook(name: str, action: str, result: HookResult | None) -> HookStatus:
    if result is None:
        return HookStatus(name=name, action=action)
    return HookStatus(
        name=name,
        action=action,
        at=result.at,
        attempt=result.attempt,
        seconds=result.seconds,
        reason=result.reason,
        gave_up=result.gives_up,
    )


def _backend(config: Config, ledger: Ledger) -> BackendStatus:
    address, record = str(config.backend.address), ledger.backend
    if record is None:
        return BackendStatus(address=address)
    return BackendStatus(
        address=address,
        checked_at=record.checked_at,
        since=record.since,
        reason=record.reason or "",
    )


def _policy(config: Config, ledger: Ledger, policy: Policy) -> PolicyStatus:
    return PolicyStatus(
        file=str(config.policy.file),
        allow=len(policy.allow),
        deny=len(policy.deny),
        loaded_at=ledger.policy.good_at or ledger.started_at,
        refused_at=ledger.policy.bad_at,
        problems=ledger.policy_problems,
    )


def _load(config: Config, ledger: Ledger) -> LoadStatus:
    peers = tuple(ledger.peers)
    return LoadStatus(
        connections=sum(peer.connections for peer in peers),
        connections_maximum=config.connections.maximum,
        running=sum(peer.running for peer in peers),
        queued=sum(peer.queued for peer in peers),
    )


def _peers(ledger: Ledger) -> Iterator[PeerStatus]:
    """Give all peers, those with the most to do first."""
    busy = sorted(
        ledger.peers,
        key=lambda peer: (peer.running + peer.queued, peer.connections, peer.last_seen),
        reverse=True,
    )
    for peer in busy:
        yield PeerStatus(
            name=peer.name,
            last_seen=peer.last_seen,
            connections=peer.connections,
            running=peer.running,
            queued=peer.queued,
            requests=peer.requests,
            refused=peer.refused,
            failed=peer.failed,
            received=peer.received,
            sent=peer.sent,
        )


def _refusals(ledger: Ledger) -> Iterator[RefusalStatus]:
    for one in ledger.refusals:
        yield RefusalStatus(
            at=one.at,
            address=one.address,
            peer=one.peer,
            reason=one.reason,
            proven=one.proven,
            times=one.times,
        )
