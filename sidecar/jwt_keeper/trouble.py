"""What fails again and again: each reason is told once, and tried again later and later.

Also how a refusal of the agent becomes an error that says who has to act.
"""

from __future__ import annotations

import random
from typing import NoReturn

import structlog

from sidecar.core.backoff import Backoff
from sidecar.core.errors import AgentProtocolError, CertFilesError, FetchError, SidecarError
from sidecar.core.identity_event import Denied, Lost, Unreadable

log = structlog.get_logger()

_AGAIN = Backoff(first=0.5, cap=30.0)
_NO_ENTRY_HINT = (
    "is there a registration entry whose selectors fit this process (its uid), "
    "with the SPIFFE ID that the configuration asks for?"
)
_USELESS_HINT = "is that the socket of an agent, and does it serve JWT-SVIDs?"
# Words of the agent may differ each time, and a day has many attempts.
_MANY = 100

Failure = (AgentProtocolError, FetchError, CertFilesError)


def fail(event: Unreadable | Denied | Lost) -> NoReturn:
    """Raise what the agent has done to us; a hint is there when a person must act."""
    if isinstance(event, Denied):
        raise FetchError(f"the agent denies it: {event.reason}", _NO_ENTRY_HINT)
    if isinstance(event, Lost):
        raise FetchError(event.reason, _USELESS_HINT if event.useless else None)
    raise AgentProtocolError(event.reason)


class Trouble:
    """Failures in a row of one task; `what` is the event of the log line about them."""

    def __init__(self, what: str, **fields: object) -> None:
        self._what = what
        self._fields = fields
        self._told: set[str] = set()
        self._failures = 0

    def tell(self, exc: SidecarError, **more: object) -> None:
        """Log a failure, if its reason is news; ERROR when waiting alone will not help."""
        if exc.message not in self._told:
            say = log.error if exc.hint else log.warning
            say(self._what, **self._fields, reason=exc.message, hint=exc.hint, **more)
        if len(self._told) > _MANY:
            self._told.clear()
        self._told.add(exc.message)

    def pause(self) -> float:
        """Give the seconds until the next attempt."""
        self._failures += 1
        return _AGAIN.delay(self._failures - 1, random.uniform(0.5, 1.0))

    def start_anew(self) -> None:
        """Take the next failure for the first one of a row."""
        self._failures = 0

    def over(self) -> None:
        """Hear that it went well: what fails from now on is news."""
        self._told.clear()
        self._failures = 0
