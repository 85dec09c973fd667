"""What a source of identities says: an update, a refusal, or that it is away.

Values only. A source is whatever gives one event at a time: the agent's Workload API, or files
that something else writes. The rotator turns events into the identity of the moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.core.identity_update import RawUpdate


@dataclass(frozen=True, slots=True)
class Updated:
    """The source has a whole update."""

    update: RawUpdate = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The agent sent something that is no `X509SVIDResponse`; the stream goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The agent says that this process has no identity (any more)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The agent is away; `useless` when it is there but serves no Workload API."""

    reason: str
    useless: bool = False


IdentityEvent = Updated | Unreadable | Denied | Lost
