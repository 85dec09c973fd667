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
from sidecar.core.file_plan import FilePlan, file_plan
from sidecar.core.files_config import CertFilesTable
from sidecar.core.ledger import Ledger
from sidecar.file_keeper import publication, publish
from sidecar.hooks import Hooks
from sidecar.jwt_keeper import JwtFiles, fetch_jwt_files
from sidecar.rotator import follow_source, identity_rules, identity_source

_AGAIN_SECONDS = 0.5
# What one step may take without --wait, and a step that was begun in time: the agent's answer, a
# disk. A mount that hangs gives no error.
STEP_SECONDS = 10.0


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
    identity = await _identity(checked, wait_seconds or STEP_SECONDS, wait=wait_seconds > 0)
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
            generation = await _published(files, plan, deadline)
            jwt = await fetch_jwt_files(place, table, checked.config.jwt_svid, identity)
        except (CertFilesError, FetchError):
            if trio.current_time() + _AGAIN_SECONDS > deadline:
                raise
            await trio.sleep(_AGAIN_SECONDS)
        else:
            return [publication(plan, identity, directory, generation), *jwt]


async def _published(files: CertFiles, plan: FilePlan, deadline: float) -> str:
    """Write the certificate files; give their generation, or raise `CertFilesError`."""
    # One attempt until the deadline: a second one would hang beside the first.
    seconds = max(deadline - trio.current_time(), STEP_SECONDS)
    with trio.move_on_after(seconds):
        generation, _ = await trio.to_thread.run_sync(publish, files, plan, abandon_on_cancel=True)
        return generation
    hint = "is the disk, or the mount that they lie on, alive?"
    raise FetchError(f"the files are not written after {seconds:g} s", hint)


async def _identity(checked: Checked, seconds: float, *, wait: bool) -> ServerIdentity:
    """Wait for an identity; unless it is to `wait`, for the first answer of the source."""
    grace = checked.config.workload_api.denied_grace_seconds
    current = CurrentIdentity(grace, Ledger(read_clocks().wall))
    rules = identity_rules(checked.config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_source, identity_source(checked), current, rules)
        with trio.move_on_after(seconds) as deadline:
            await current.changed.wait()
            while wait and current.identity is None:
                await current.changed.wait()
        nursery.cancel_scope.cancel()
    if current.identity is None:
        within = f" within {seconds:g} s" if deadline.cancelled_caught else ""
        reason = current.standing.reason or "no answer yet"
        raise FetchError(f"no identity{within}: {reason}", "with --wait it is asked again")
    return current.identity
