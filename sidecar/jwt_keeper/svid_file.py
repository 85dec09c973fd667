"""One JWT-SVID in a file: asked for at once, and again at half of its remaining life.

The wall clock may jump (a host that slept), and a timer would not: it is looked at every minute,
and so is the file, so that what somebody removed or changed comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity
from sidecar.adapters.workload_api import fetch_jwt_svids
from sidecar.core.after_rotation import Publication
from sidecar.core.errors import SidecarError
from sidecar.core.file_plan import PlannedFile
from sidecar.core.files_config import JwtSvidTable
from sidecar.core.jwt_svid import JwtSvid, jwt_svid
from sidecar.core.spiffe_id import SpiffeId
from sidecar.jwt_keeper.jwt_files import JwtFiles
from sidecar.jwt_keeper.trouble import Failure, Trouble, fail

log = structlog.get_logger()

_CLOCK_CHECK_SECONDS = 60.0
# An agent that gives the same old token again is not asked in a hurry.
_AT_LEAST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FreshSvid:
    """A JWT-SVID, and when the next one is due, by whichever clock is there first."""

    svid: JwtSvid
    due: datetime
    due_monotonic: float

    def seconds_left(self) -> float:
        """Give the seconds until the next one is due."""
        by_wall = (self.due - read_clocks().wall) / timedelta(seconds=1)
        return min(by_wall, self.due_monotonic - trio.current_time())


@dataclass(frozen=True, slots=True)
class SvidFile:
    """One `[[jwt_svid]]` table: whom to ask for what, and where the answer goes."""

    place: JwtFiles
    table: JwtSvidTable

    @property
    def audiences(self) -> tuple[str, ...]:
        """Give all audiences that the token must be for."""
        return (self.table.audience, *self.table.extra_audiences)

    async def fetch(self) -> FreshSvid:
        """Ask the agent; raise `AgentProtocolError` or `FetchError`."""
        endpoint, choice = self.place.endpoint, self.place.choice
        answer = await fetch_jwt_svids(endpoint, self.audiences, choice.spiffe_id)
        if not isinstance(answer, tuple):
            fail(answer)
        now = read_clocks().wall
        svid = jwt_svid(answer, choice, self.audiences, now)
        wait = svid.refresh_in(now) / timedelta(seconds=1)
        return FreshSvid(svid, svid.refresh_at(now), trio.current_time() + wait)

    async def write(self, svid: JwtSvid) -> bool:
        """Put the token into the file, bare; tell whether it was another one."""
        planned = PlannedFile(self.table.file, self.table.mode, svid.token.encode())
        files = self.place.files
        written = await files.in_thread(partial(files.replace, planned))
        if written:
            log.info(
                "JWT-SVID written",
                file=str(self.table.file),
                audiences=self.audiences,
                spiffe_id=str(svid.spiffe_id),
                expires=f"{svid.expires:%FT%TZ}",
            )
        return written

    def publication(self, svid: JwtSvid) -> Publication:
        """Give what others are told; the audiences are the configured ones, not the agent's."""
        return Publication(
            kind="jwt",
            directory=str(self.place.directory),
            files={"jwt_svid": str(self.place.directory / self.table.file)},
            spiffe_id=str(svid.spiffe_id),
            expires=svid.expires,
            audiences=self.audiences,
        )


async def keep_jwt_svids(
    place: JwtFiles,
    tables: Sequence[JwtSvidTable],
    current: CurrentIdentity,
    tell: Callable[[Publication], None],
) -> None:
    """Keep the file of each table fresh, each for itself: one that fails holds up no other."""
    async with trio.open_nursery() as nursery:
        for table in tables:
            nursery.start_soon(_keep, SvidFile(place, table), current, tell)


async def _keep(
    file: SvidFile, current: CurrentIdentity, tell: Callable[[Publication], None]
) -> None:
    trouble = Trouble("JWT-SVID not refreshed", file=str(file.table.file), audiences=file.audiences)
    expiry = _Expiry(file.table.file)
    fresh: FreshSvid | None = None
    told = ""
    while True:
        known = _own_id(current)
        try:
            if fresh is None or fresh.seconds_left() <= 0:
                fresh = await file.fetch()
            written = await file.write(fresh.svid)
        except Failure as exc:
            trouble.tell(exc, kept_until=expiry.shown)
            current.ledger.jwt_svid_failed(file.table.file, read_clocks().wall, exc.message)
            expiry.tell_if_over(exc)
            pause = trouble.pause()
        else:
            # One that was put in place by an attempt that failed after it: nobody knows yet.
            if written or fresh.svid.token != told:
                tell(file.publication(fresh.svid))
            told, known = fresh.svid.token, known or fresh.svid.spiffe_id
            expiry.of(fresh.svid)
            wall = read_clocks().wall
            current.ledger.jwt_svid_written(file.table.file, wall, fresh.svid.expires)
            trouble.over()
            pause = min(max(fresh.seconds_left(), _AT_LEAST_SECONDS), _CLOCK_CHECK_SECONDS)
        if await _another_id(current, known, pause):
            fresh = None
            trouble.start_anew()


class _Expiry:
    """When the token in the file ends, and whether somebody has been told that it has."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._expires: datetime | None = None
        self._told = False

    @property
    def shown(self) -> str | None:
        """Give it for a log line; None when we have written nothing yet."""
        return f"{self._expires:%FT%TZ}" if self._expires else None

    def of(self, svid: JwtSvid) -> None:
        """Take note of what is in the file now."""
        self._expires, self._told = svid.expires, False

    def tell_if_over(self, exc: SidecarError) -> None:
        """Say, once, that readers of the file are refused from now on."""
        if self._expires and not self._told and read_clocks().wall >= self._expires:
            log.error(
                "JWT-SVID expired", file=str(self._file), expires=self.shown, reason=exc.message
            )
            self._told = True


def _own_id(current: CurrentIdentity) -> SpiffeId | None:
    return current.identity.svid.spiffe_id if current.identity else None


async def _another_id(current: CurrentIdentity, known: SpiffeId | None, seconds: float) -> bool:
    """Wait no longer than `seconds`; tell whether our SPIFFE ID has changed or somebody asks."""
    asks = current.asks
    with trio.move_on_after(seconds):
        while _own_id(current) in (None, known) and current.asks == asks:
            await current.changed.wait()
    return _own_id(current) not in (None, known) or current.asks != asks
