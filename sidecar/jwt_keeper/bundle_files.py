"""JWT bundles in files: ours, and each federated trust domain's in a file of its own.

Two tasks with the newest bundles between them: one follows the agent, one writes. A disk that
hangs does not stop the stream, and a bundle is never older than it need be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from sidecar.adapters.cert_files.file_set import FileSet, SetChange
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity
from sidecar.adapters.workload_api import JwtBundleStream
from sidecar.core.after_rotation import Publication
from sidecar.core.file_plan import PlannedFile
from sidecar.core.files_config import CertFilesTable
from sidecar.core.identity_event import Denied, Lost, Unreadable
from sidecar.core.jwt_bundle import (
    JwtBundles,
    RawJwtBundles,
    is_jwks,
    jwt_bundle_plan,
    jwt_bundles,
)
from sidecar.core.spiffe_id import TrustDomain
from sidecar.jwt_keeper.jwt_files import JwtFiles
from sidecar.jwt_keeper.trouble import Failure, Trouble, fail

log = structlog.get_logger()

_LOOK_AGAIN_SECONDS = 60.0
# Keys are announced hours before they sign; a silent agent is asked again well before that.
_ASK_AGAIN_SECONDS = 3600.0
# Hidden, so that no file of the configuration can have the name.
_LISTING = ".jwt-bundles"


@dataclass(slots=True)
class LatestBundles:
    """The newest good bundles: one writer, one reader; every message is whole."""

    bundles: JwtBundles | None = None
    changed: trio.Event = field(default_factory=trio.Event)

    def replace(self, bundles: JwtBundles) -> None:
        """Publish new ones and wake who waits for `changed`."""
        self.bundles = bundles
        self.look_again()

    def look_again(self) -> None:
        """Wake who waits for `changed`: the files may be others than these bundles."""
        self.changed.set()
        self.changed = trio.Event()


class BundleFiles:
    """The files of `[cert_files] jwt_bundle`, and what was told of them."""

    def __init__(self, place: JwtFiles, table: CertFilesTable) -> None:
        self._set = FileSet(place.files, place.directory, _LISTING, is_jwks)
        self._files = place.files
        self._directory = place.directory
        self._table = table
        self._notes: tuple[str, ...] = ()
        self._told: tuple[PlannedFile, ...] = ()

    async def write(self, bundles: JwtBundles, own: TrustDomain) -> bool:
        """Make the files what the bundles are; tell whether there is something to tell."""
        plan = jwt_bundle_plan(bundles, own, self._table)
        change = await self._files.in_thread(partial(self._set.replace, plan.files))
        for note in plan.notes:
            if note not in self._notes:
                log.warning("JWT bundles incomplete", reason=note)
        if change != SetChange():
            log.info(
                "JWT bundles written",
                trust_domain=str(own),
                files=change.written,
                removed=change.removed or None,
            )
        # Of what an attempt before this one has put in place, and then failed, nobody knows yet.
        news = change != SetChange() or plan.files != self._told
        self._notes, self._told = plan.notes, plan.files
        return news

    def publication(self, identity: ServerIdentity) -> Publication:
        """Give what others are told.

        A bundle has no end of its own. It is told as that of our SVID: until then we are sure
        to hear from the agent.
        """
        assert self._table.jwt_bundle is not None
        return Publication(
            kind="jwt",
            directory=str(self._directory),
            files={"jwt_bundle": str(self._directory / self._table.jwt_bundle)},
            spiffe_id=str(identity.svid.spiffe_id),
            expires=identity.svid.not_after,
        )


async def keep_jwt_bundles(
    place: JwtFiles,
    table: CertFilesTable,
    current: CurrentIdentity,
    tell: Callable[[Publication], None],
) -> None:
    """Keep the files of `table.jwt_bundle`; whose bundle is ours our X.509 identity says."""
    latest = LatestBundles()
    target = BundleFiles(place, table)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write, target, latest, current, tell)
        while True:
            asks = current.asks
            async with trio.open_nursery() as following:
                following.start_soon(_follow, JwtBundleStream(place.endpoint), latest, current)
                while current.asks == asks:
                    await current.changed.wait()
                following.cancel_scope.cancel()  # a fresh stream is answered at once
            latest.look_again()


def checked(event: RawJwtBundles | Unreadable | Denied | Lost, own: TrustDomain) -> JwtBundles:
    """Give the bundles of one message; raise `AgentProtocolError` or `FetchError`."""
    if not isinstance(event, RawJwtBundles):
        fail(event)
    return jwt_bundles(event, own)


async def _follow(stream: JwtBundleStream, latest: LatestBundles, current: CurrentIdentity) -> None:
    trouble = Trouble("JWT bundles not refreshed")
    try:
        while True:
            # First of all our identity: without it nobody knows which trust domain is ours.
            own = (await _identity(current)).svid.spiffe_id.trust_domain
            event = await stream.next_event(_ASK_AGAIN_SECONDS)
            try:
                latest.replace(checked(event, own))
            except Failure as exc:
                trouble.tell(exc, kept=latest.bundles is not None)
            else:
                stream.accepted()
                trouble.over()
    finally:
        stream.close()


async def _write(
    target: BundleFiles,
    latest: LatestBundles,
    current: CurrentIdentity,
    tell: Callable[[Publication], None],
) -> None:
    trouble = Trouble("JWT bundles not written")
    while True:
        changed, bundles, pause = latest.changed, latest.bundles, _LOOK_AGAIN_SECONDS
        identity = await _identity(current)
        own = identity.svid.spiffe_id.trust_domain
        if bundles is not None and own in bundles.bundles:
            try:
                if await target.write(bundles, own):
                    tell(target.publication(identity))
            except Failure as exc:
                trouble.tell(exc)
                current.ledger.jwt_bundles.failed(read_clocks().wall, exc.message)
                pause = trouble.pause()
            else:
                current.ledger.jwt_bundles.went_well(read_clocks().wall)
                trouble.over()
        with trio.move_on_after(pause):
            await changed.wait()


async def _identity(current: CurrentIdentity) -> ServerIdentity:
    while current.identity is None:
        await current.changed.wait()
    return current.identity
