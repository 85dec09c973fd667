"""One line of the log for one request: who asked for what, what was decided, and how it went.

Never a query, a header's value or a body; of a path as much as a person reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
import trio

from sidecar.adapters.relay import Traffic
from sidecar.core.http_head import RequestHead
from sidecar.core.rule_counts import Finished
from sidecar.http_mode.admission import MAX_SHOWN_PATH

log = structlog.get_logger()


@dataclass(slots=True)
class RequestLine:
    """What the log says of one request.

    `decision` is what policy and limits said of it, `outcome` what came of it: "answered" (by the
    backend, or by us with our health), "refused", "backend_failed", "peer_left" or "cut".
    """

    started: float
    request_id: str
    method: str | None = None
    path: str | None = None
    rule: str | None = None
    decision: str = "refused"
    outcome: str = "refused"
    is_own: bool = False  # answered by us, and allowed
    served: bool = False  # it went to the backend
    status: int = 0
    reason: str | None = None
    note: str | None = None  # what a person might look for, of a request that was allowed
    traffic: Traffic = field(default_factory=Traffic)

    def write(self, who: dict[str, str]) -> None:
        """Write the line; what went wrong, or was refused, is a warning.

        That the backend is down is one line of its own, and not one for each who asks.
        """
        now, first = trio.current_time(), self.traffic.first_sent_at
        fine = self.outcome == "answered" and (self.is_own or self.status < 500)
        say = log.info if fine else log.warning
        say(
            "request",
            **who,
            decision=self.decision,
            outcome=self.outcome,
            rule=self.rule,
            method=self.method,
            path=self.path,
            status=self.status,
            received=self.traffic.received,
            sent=self.traffic.sent,
            first_byte=round(first - self.started, 4) if first else None,
            seconds=round(now - self.started, 4),
            request_id=self.request_id,
            **({"reason": self.reason} if self.reason else {}),
            **({"note": self.note} if self.note else {}),
        )

    def finished(self) -> Finished:
        """Give what is counted of the request; served is what went to the backend."""
        now, first = trio.current_time(), self.traffic.first_sent_at
        return Finished(
            rule=self.rule,
            status=self.status,
            seconds=now - self.started,
            first_byte_seconds=first - self.started if first else None,
            received=self.traffic.received,
            sent=self.traffic.sent,
            outcome=self.outcome,
            served=self.served,
        )


def shown_path(request: RequestHead) -> str:
    """Give the path as the log and a refusal show it: not without end."""
    path = request.path
    return path if len(path) <= MAX_SHOWN_PATH else path[:MAX_SHOWN_PATH] + "..."
