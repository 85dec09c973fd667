"""What we know of our identity and of the agent -> the state we are in, and whether we may serve.

Pure: the caller passes the clocks. Two events that look alike are kept apart: an agent that is
away (serve on until the SVID expires) and an agent that says PermissionDenied (our identity was
taken away; stop after a grace, because SPIRE says the same while an entry is still on its way).
Specification: Workload API 5.2.1 (FetchX509SVID).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from sidecar.core.svid import is_over, seconds_left


class IdentityState(enum.StrEnum):
    """The states that logs, health and metrics show."""

    STARTING = "starting"
    READY = "ready"
    AGENT_LOST = "agent_lost"
    DENIED = "denied"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Clocks:
    """One reading of both clocks: validity is wall time, a grace is monotonic seconds."""

    wall: datetime
    monotonic: float


@dataclass(frozen=True, slots=True)
class Standing:
    """All that decides the state; `reason` is the agent's side of the story, for people."""

    not_after: datetime | None = None
    connected: bool = False
    denied_at: float | None = None
    reason: str = ""

    def state(self, clocks: Clocks) -> IdentityState:
        """Give the state at this moment; the worst news wins."""
        if self.not_after is not None and is_over(self.not_after, clocks.wall):
            return IdentityState.EXPIRED
        if self.denied_at is not None:
            return IdentityState.DENIED
        if self.not_after is None:
            return IdentityState.STARTING
        return IdentityState.READY if self.connected else IdentityState.AGENT_LOST

    def may_serve(self, clocks: Clocks, denied_grace_seconds: float) -> bool:
        """Tell whether a new connection may be served: no identity, no service."""
        if self.not_after is None or is_over(self.not_after, clocks.wall):
            return False
        return self.denied_at is None or clocks.monotonic < self.denied_at + denied_grace_seconds

    def seconds_to_change(self, clocks: Clocks, denied_grace_seconds: float) -> float:
        """Give the seconds until time alone changes the state or whether we may serve."""
        ends = [float("inf")]
        if self.not_after is not None:
            ends.append(seconds_left(self.not_after, clocks.wall))
        if self.denied_at is not None:
            ends.append(self.denied_at + denied_grace_seconds - clocks.monotonic)
        return min(end for end in ends if end > 0)
