"""The policy of the moment: readers take it once per decision."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from sidecar.core.policy import Policy


@dataclass(slots=True)
class CurrentPolicy:
    """The policy in force: one writer, many readers."""

    policy: Policy
    changed: trio.Event = field(default_factory=trio.Event)

    def replace(self, policy: Policy) -> None:
        """Put another one in force, for the next decision."""
        self.policy = policy
        self.changed.set()
        self.changed = trio.Event()
