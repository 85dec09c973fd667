"""`fetch`: write all files once, for init containers and scripts.

The same parts as the daemon's, run until the files are there, or until there is a reason why
they will not be: at once, or after `wait_seconds` of trying again.
"""

from __future__ import annotations

from pathlib import Path

import trio

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity
from sidecar.core.after_rotation import Publication, hook
from sidecar.core.checked import Checked
from sidecar.core.errors import CertFilesError, ConfigError, FetchError
from sidecar.core.file_plan import file_plan
from sidecar.core.files_config import CertFilesTable
from sidecar.file_keeper import publication, publish
from sidecar.hooks import Hooks
from sidecar.jwt_keeper import JwtFiles, fetch_jwt_files
from sidecar.rotator import follow_source, identity_rules, identity_source

_AGAIN_SECONDS = 0.5


async def fetch(
    checked: Checked, wait_seconds: float, *, after_rotation: bool
) -> list[Publication]:
    """Write all files and give what was written, or raise `FetchError` or `CertFilesError`.

    With `after_rotation` also do what the configuration says is done then.
    """
    table = checked.config.cert_files
    if table is None:
        raise ConfigError("no [cert_files] in the configuration", "it says where files are written")
    deadline = trio.current_time() + wait_seconds
    identity = await _identity(checked, deadline)
    published = await _write(checked, table, identity, deadline)
    if after_rotation:
        hooks = Hooks([hook(one) for one in checked.config.after_rotation], checked.directory)
        for one in published:
            hooks.tell(one)
        if not await hooks.run_once():
            reasons = [f"{one.hook}: {one.reason}" for one in hooks.results.values() if not one.ok]
            raise FetchError("the files are written, but after_rotation failed", "; ".join(reasons))
    return published


async def _write(
    checked: Checked, table: CertFilesTable, identity: ServerIdentity, deadline: float
) -> list[Publication]:
    """Write the files of the identity, and the agent's JWT files; again until the deadline."""
    directory = Path(checked.directory, table.directory)
    files = CertFiles(directory, table.owner, table.group, table.unsafe_shared_directory)
    place = JwtFiles(checked.endpoint, identity_rules(checked.config).choice, files, directory)
    plan = file_plan(identity.svid, identity.bundles, table, read_clocks().wall)
    while True:
        try:
            generation, _ = await trio.to_thread.run_sync(
                publish, files, plan, abandon_on_cancel=True
            )
            jwt = await fetch_jwt_files(place, table, checked.config.jwt_svid, identity)
        except (CertFilesError, FetchError):
            if trio.current_time() + _AGAIN_SECONDS > deadline:
                raise
            await trio.sleep(_AGAIN_SECONDS)
        else:
            return [publication(plan, identity, directory, generation), *jwt]


async def _identity(checked: Checked, deadline: float) -> ServerIdentity:
    """Wait for an identity; without time to wait, for the first answer of the source."""
    current = CurrentIdentity(checked.config.workload_api.denied_grace_seconds)
    rules = identity_rules(checked.config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_source, identity_source(checked), current, rules)
        answered = current.changed
        await answered.wait()
        with trio.move_on_at(deadline):
            while current.identity is None:
                await current.changed.wait()
        nursery.cancel_scope.cancel()
    if current.identity is None:
        raise FetchError(f"no identity: {current.standing.reason}", "with --wait it is asked again")
    return current.identity
