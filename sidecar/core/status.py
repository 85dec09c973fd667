"""The state of the daemon at one moment, as values: what `/status` gives and `status` shows.

One frozen struct, made of plain values by `snapshot`; JSON of it and back. Reading takes what is
there and leaves out what it does not know, because the daemon may be of another version. No text
in the JSON holds a control character: it is read on terminals.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Part(msgspec.Struct, frozen=True):
    """Base of all parts."""


class Reason(Part, frozen=True):
    """Why the daemon is not ready, or what a person should know; `name` never changes."""

    name: str
    text: str


class IdentityStatus(Part, frozen=True):
    """The SVID of the moment; `rotation_expected` is its half life, when SPIRE renews."""

    spiffe_id: str
    serial: str
    not_before: datetime
    not_after: datetime
    rotation_expected: datetime
    trust_domains: tuple[str, ...] = ()


class AgentStatus(Part, frozen=True):
    """Our standing with the agent, or with the files that an identity is read from."""

    source: str
    state: str
    since: datetime
    connected: bool = False
    denied: bool = False
    serving: bool = False
    reason: str = ""
    rotations: int = 0
    updates_discarded: int = 0
    notes: tuple[str, ...] = ()  # what of the last good update is not used, and why


class FilesStatus(Part, frozen=True):
    """The certificate files; `error` is empty while they are as they should be."""

    directory: str
    generation: str = ""  # empty: none is known to be published
    published_at: datetime | None = None  # by this process
    publications: int = 0
    error: str = ""
    failed_at: datetime | None = None
    serial: str = ""  # of the SVID in the published generation
    expires: datetime | None = None


class JwtSvidStatus(Part, frozen=True):
    """One file with a JWT-SVID."""

    file: str
    audiences: tuple[str, ...] = ()
    expires: datetime | None = None  # None: none was written yet
    error: str = ""
    failed_at: datetime | None = None


class JwtBundleStatus(Part, frozen=True):
    """The file with our JWT bundle, and those of federated trust domains beside it."""

    file: str
    written_at: datetime | None = None  # None: not written or compared yet
    error: str = ""
    failed_at: datetime | None = None


class HookStatus(Part, frozen=True):
    """One hook and its last attempt; `at` None means that there was none yet."""

    name: str
    action: str
    at: datetime | None = None
    attempt: int = 0
    seconds: float = 0.0
    reason: str = ""
    gave_up: bool = False


class BackendStatus(Part, frozen=True):
    """The backend; `reason` is empty while it answers."""

    address: str
    checked_at: datetime | None = None  # None: it was not asked yet
    since: datetime | None = None
    reason: str = ""


class PolicyStatus(Part, frozen=True):
    """The policy in force, and how the last reload went; no `problems`: well."""

    file: str
    allow: int
    deny: int
    loaded_at: datetime
    refused_at: datetime | None = None
    problems: tuple[str, ...] = ()


class LoadStatus(Part, frozen=True):
    """What is open, runs and waits now."""

    connections: int = 0
    connections_maximum: int = 0
    running: int = 0
    queued: int = 0


class PeerStatus(Part, frozen=True):
    """One peer: what it has open now, and all it did since the start."""

    name: str
    last_seen: datetime
    connections: int = 0
    running: int = 0
    queued: int = 0
    requests: int = 0
    refused: int = 0
    failed: int = 0  # allowed, and failed by the backend
    received: int = 0
    sent: int = 0


class RefusalStatus(Part, frozen=True):
    """One recent refusal; `peer` is what was claimed unless it is `proven`."""

    at: datetime
    address: str
    peer: str
    reason: str
    proven: bool = False
    times: int = 1


class Status(Part, frozen=True):
    """Everything; what a mode does not have is None or empty."""

    at: datetime
    version: str
    mode: str  # "http", "stream" or "helper"
    started_at: datetime
    agent: AgentStatus
    pid: int = 0
    draining: bool = False
    listening: tuple[str, ...] = ()
    identity: IdentityStatus | None = None
    files: FilesStatus | None = None
    jwt_svids: tuple[JwtSvidStatus, ...] = ()
    jwt_bundle: JwtBundleStatus | None = None
    hooks: tuple[HookStatus, ...] = ()
    backend: BackendStatus | None = None
    policy: PolicyStatus | None = None
    config_problems: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    load: LoadStatus | None = None
    peers: tuple[PeerStatus, ...] = ()
    refusals: tuple[RefusalStatus, ...] = ()


class Report(Part, frozen=True, kw_only=True):
    """What `/status` gives: the verdict first, then everything."""

    ready: bool
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()
    status: Status


class Readiness(Part, frozen=True):
    """What `/readyz` gives."""

    ready: bool
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()


def to_json(part: Part) -> bytes:
    """Give the JSON of a part."""
    return msgspec.json.encode(_all_printable(msgspec.to_builtins(part, enc_hook=_as_text)))


def read_report(data: bytes) -> Report:
    """Read the JSON of a report, or raise `ValueError`."""
    return msgspec.json.decode(data, type=Report)


def printable(text: str) -> str:
    """Give a text with every character escaped that a terminal might act on."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _as_text(value: object) -> str:
    """Give the text of a configuration's own kinds of text."""
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError


def _all_printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _all_printable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_all_printable(one) for one in value]
    return value
