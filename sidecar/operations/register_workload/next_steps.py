"""What is to be done on the other host now, as a person does it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime

from sidecar.core.host_layout import SERVICE_UID
from sidecar.core.registration.entries import Selector, uid_selector
from sidecar.operations.register_workload.work import Outcome
from sidecar.operations.screen_text import clock

# It goes into a command line: what else the server has is not put there.
_UID = re.compile(r"uid:[0-9]+")


def next_steps(outcome: Outcome, now: float) -> Iterator[str]:
    """Give one step a line; none after a removal or for a dry run."""
    request = outcome.request
    if request.dry_run or request.remove:
        return
    alias = outcome.plan.alias
    served = bool(alias.alive(now) or alias.by_others)
    if request.folder is None and served:
        return
    if request.folder is None:
        yield (
            "run this again with --host-folder DIR --server-address HOST --generate-token for the "
            "files that the other host needs"
        )
        return
    if outcome.token is None and not served:
        yield "the host also needs a new join token: run this again with --generate-token"
    yield _copy(outcome)
    yield (
        "there, in a checkout (on a Mac with setup-macos.sh): "
        f"sudo scripts/setup-linux.sh {' '.join(_installer_options(outcome))}"
    )
    yield "there: spiffe-sidecar doctor --config /etc/spiffe-sidecar/sidecar.toml"


def _installer_options(outcome: Outcome) -> Iterator[str]:
    """Give the options of the installer, which are the same on both systems."""
    assert outcome.request.folder is not None
    folder = outcome.request.folder.absolute().name  # also when it was given as "."
    sidecar, *others = outcome.steps
    traefik = str(others[0].entry.spiffe_id) if others else "ID-OF-TRAEFIK"
    yield "--spire-agent /path/to/spire-agent"
    yield f"--host-folder {shlex.quote(folder)}"
    yield f"--spiffe-id {sidecar.entry.spiffe_id}"
    yield f"--traefik-id {traefik}"
    yield from _uid_option(sidecar.entry.selectors)


def _copy(outcome: Outcome) -> str:
    folder = shlex.quote(str(outcome.request.folder))
    if outcome.token is None or outcome.token.expires_at is None:
        return f"copy the folder to the other host: scp -rp {folder} HOST:"
    until = clock(datetime.fromtimestamp(outcome.token.expires_at, UTC))
    return (
        f"before {until}, copy the folder to the other host: scp -rp {folder} HOST: "
        "(join-token is a secret until an agent has used it; then delete this copy)"
    )


def _uid_option(selectors: tuple[Selector, ...]) -> Iterator[str]:
    """Give the option that has the installer make the account that the entry names."""
    uids = [one for one in selectors if one.type == "unix" and _UID.fullmatch(one.value)]
    if len(uids) == 1 and uids[0] != uid_selector(SERVICE_UID):
        yield f"--uid {uids[0].value.removeprefix('uid:')}"
