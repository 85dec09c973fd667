"""What is to be probed, and what came of it, as values.

A `ProbeRequest` is all that is to be done, a `ProbeReport` all that was seen, with the `Fault`
that ended it, if one did. Texts in a report come from outside and are made printable where they
enter. Never holds a key, and of the headers that are sent no value is ever shown.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from sidecar.core.policy import PeerPattern
from sidecar.core.probe.target import ProbeTarget, ProbeTargetError

__all__ = [
    "Answer",
    "Connection",
    "Fault",
    "FaultError",
    "Handshake",
    "Hop",
    "OwnIdentity",
    "PeerCertificate",
    "Phase",
    "ProbeReport",
    "ProbeRequest",
    "ProbeTarget",
    "ProbeTargetError",
    "old_share",
]

_METHODS = re.compile(r"[A-Z]{1,20}")


class Hop(enum.StrEnum):
    """Where on the way from us to the model server it failed."""

    IDENTITY = "identity"  # ours, from the agent or from files
    NAME = "name"
    CONNECT = "connect"
    TLS = "tls"
    PEER = "peer"  # its certificate
    OWN_SVID = "own_svid"  # the peer's opinion of it
    POLICY = "policy"
    LIMITS = "limits"
    SIDECAR = "sidecar"
    BACKEND = "backend"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong: `code` is for programs and never changes, the rest is for people."""

    hop: Hop
    code: str
    message: str
    hint: str = ""


class FaultError(Exception):
    """Ends a probe with its fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """All that is to be done; without `expect` any ID of our own trust domain will do.

    `connect_seconds` is for our identity, for the name, for each address and for the handshake;
    `silence_seconds` the longest wait for a byte of the answer.
    """

    target: ProbeTarget
    expect: tuple[PeerPattern, ...] = ()
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    connect_seconds: float = 10.0
    silence_seconds: float = 60.0
    total_seconds: float = float("inf")
    # How long a peer is given to refuse us after a handshake, when nothing is asked for.
    settle_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not _METHODS.fullmatch(self.method):
            raise ProbeTargetError(f"found the method {self.method[:32]!r}, expected one like GET")


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of the way; `says` are lines for people."""

    name: str
    seconds: float | None
    ok: bool
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnIdentity:
    """What we present."""

    spiffe_id: str
    serial: str
    not_before: datetime
    not_after: datetime
    source: str
    trust_domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """The TCP connection; `attempts` are those before it, each with what came of it."""

    remote: str
    local: str = ""
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Handshake:
    """What both ends agreed on; `asked` tells whether the peer wanted a certificate of us."""

    version: str
    cipher: str
    group: str
    alpn: str
    asked: bool


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the peer presented, proven or not: the report's fault tells."""

    spiffe_id: str  # as claimed; empty when there is no one URI name
    serial: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]
    issuer: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer; `text` is the start of a refusal's body, `is_echoed` that our request's ID
    came back, or one that a sidecar makes, as it does from a sidecar in mode `http`.
    """

    status: int
    reason: str
    request_id: str
    is_echoed: bool
    content_type: str
    size: int = 0
    pieces: int = 0
    spread_seconds: float = 0.0
    longest_gap_seconds: float = 0.0
    complete: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was seen, as far as it went; `notes` are no faults, but worth a look."""

    target: ProbeTarget
    fault: Fault | None = None
    phases: tuple[Phase, ...] = ()
    identity: OwnIdentity | None = None
    connection: Connection | None = None
    handshake: Handshake | None = None
    peer: PeerCertificate | None = None
    answer: Answer | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Tell whether all went well: the answer came, below 400, from the ID that was expected."""
        return self.fault is None

    @property
    def seconds(self) -> float:
        """Give the time that all phases took."""
        return sum(phase.seconds or 0.0 for phase in self.phases)


def old_share(not_before: datetime, not_after: datetime, now: datetime) -> float:
    """Give how much of a certificate's life is over, as 0 to 1 and beyond."""
    life = not_after - not_before
    return (now - not_before) / life if life > timedelta(0) else float("inf")
