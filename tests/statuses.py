"""Statuses for tests: one of a daemon that is well, changed by what a test is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from sidecar.core.status import (
    AgentStatus,
    BackendStatus,
    FilesStatus,
    HookStatus,
    IdentityStatus,
    JwtSvidStatus,
    LoadStatus,
    Part,
    PeerStatus,
    PolicyStatus,
    RefusalStatus,
    Status,
)

NOW = datetime(2026, 3, 1, 13, 20, 11, tzinfo=UTC)
TRAEFIK = "spiffe://ravenhelm.local/workload/traefik"


def ago(**time: float) -> datetime:
    """So long before `NOW`."""
    return NOW - timedelta(**time)


IDENTITY = IdentityStatus(
    spiffe_id="spiffe://ravenhelm.local/workload/model-server",
    serial="2AAA66E7D1C04B5F9A3E",
    not_before=ago(minutes=19),
    not_after=NOW + timedelta(minutes=41),
    rotation_expected=NOW + timedelta(minutes=11),
    trust_domains=("ravenhelm.local", "partner.example"),
)
AGENT = AgentStatus(
    source="agent",
    state="ready",
    since=ago(hours=3),
    connected=True,
    serving=True,
    rotations=7,
)
FILES = FilesStatus(
    directory="/opt/spiffe-sidecar/certs",
    generation="generation-42",
    published_at=ago(minutes=19),
    publications=7,
)
JWT_SVID = JwtSvidStatus(file="vault.jwt", audiences=("vault",), expires=NOW + timedelta(minutes=4))
HOOK = HookStatus(
    name="nginx",
    action="SIGHUP to the process in /run/nginx.pid",
    at=ago(minutes=19),
    attempt=1,
    seconds=0.012,
)
BACKEND = BackendStatus(address="127.0.0.1:11434", checked_at=ago(seconds=1), since=ago(hours=3))
POLICY = PolicyStatus(file="policy.toml", allow=3, deny=1, loaded_at=ago(hours=2))
LOAD = LoadStatus(connections=12, connections_maximum=4096, running=3, queued=1)
PEER = PeerStatus(
    name=TRAEFIK,
    last_seen=ago(seconds=2),
    connections=12,
    running=3,
    queued=1,
    requests=48211,
    refused=17,
    received=9_812_311,
    sent=731_220_441,
)
REFUSAL = RefusalStatus(
    at=ago(minutes=4),
    address="192.168.50.77:50912",
    peer="'spiffe://other.org/x'",
    reason="no trust bundle for trust domain other.org",
    times=3,
)


def serving(**changes: object) -> Status:
    """A daemon that serves, writes no files and is well."""
    status = Status(
        at=NOW,
        version="0.1.0",
        mode="http",
        started_at=ago(hours=3, minutes=12),
        pid=4711,
        listening=("0.0.0.0:6701",),
        identity=IDENTITY,
        agent=AGENT,
        backend=BACKEND,
        policy=POLICY,
        load=LOAD,
    )
    return msgspec.structs.replace(status, **changes)


def helping(**changes: object) -> Status:
    """A helper that is well."""
    status = Status(
        at=NOW,
        version="0.1.0",
        mode="helper",
        started_at=ago(hours=3, minutes=12),
        pid=4711,
        identity=IDENTITY,
        agent=AGENT,
        files=FILES,
        jwt_svids=(JWT_SVID,),
        hooks=(HOOK,),
    )
    return msgspec.structs.replace(status, **changes)


def but(part: Part, **changes: object) -> Part:
    """A part with some fields changed."""
    return msgspec.structs.replace(part, **changes)
