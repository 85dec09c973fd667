"""Makes a machine a Mac, as far as the runbook goes; called in its first process.

The programs of macOS are those of `tests.macos_stand_ins`, where `setup-macos.sh` looks for them
without --root. Other than there, accounts and owners are made real ones, and the services of
`launchctl`, which is that of `launchd`, run. Python, its environments, the sidecar and the SPIRE
agent are those of Linux; `doctor` takes its macOS side.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.macos_stand_ins import directory, files
from tests.macos_stand_ins.server import COMMANDS, Server, write_program
from tests.macos_stand_ins.state import State
from tests.runbook.model_server import ADDRESS

# By the service manager; not needed, because ours will do; the story's own.
_OTHERS = {"launchctl", "id", "sleep", "readlink", "spire-agent"}
_FOLDERS = (
    "/Library/LaunchDaemons",
    "/etc/newsyslog.d",
    "/var/db",
    "/var/run",
    "/var/empty",
    "/usr/libexec/ApplicationFirewall",
)
# The sidecar asks its Python where it is; only `doctor` shall believe that it is on a Mac.
_SITE = """
import sys
if "doctor" in sys.orig_argv:
    import asyncio, httpx, trio, watchdog.observers
    import sidecar.adapters.workload_api
    sys.platform = "darwin"
    try:
        import sidecar.operations.doctor.examination
    finally:
        sys.platform = "linux"
"""


def _dscl(state: State, arguments: list[str]) -> str:
    """Answer, and make the system's own lists of accounts say the same."""
    answer = directory.dscl(state, arguments)
    users, groups = state.accounts["/Users"], state.accounts["/Groups"]
    gids = {name: keys.get("PrimaryGroupID") for name, keys in groups.items()}
    _write_list(
        "passwd", {name: (keys.get("UniqueID"), gids.get(name)) for name, keys in users.items()}
    )
    _write_list("group", {name: (gid, "") for name, gid in gids.items()})
    return answer


def _write_list(name: str, accounts: dict[str, tuple[str | None, str | None]]) -> None:
    """Write /etc/passwd or /etc/group: ours are those of services, which begin with `_`."""
    path = Path("/etc", name)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("_")]
    for account, (number, group) in accounts.items():
        if account.startswith("_") and number:
            more = f"{group}::/var/empty:/usr/bin/false" if name == "passwd" else ""
            lines.append(f"{account}:x:{number}:{more}")
    path.write_text("\n".join(lines) + "\n")


def _chown(state: State, arguments: list[str]) -> str:
    """Answer, and give the files to the accounts of these numbers."""
    answer = files.chown(state, arguments)
    words = arguments[1:] if arguments[0] == "-h" else arguments
    user, _, group = words[0].partition(":")
    uid = int(state.accounts["/Users"][user]["UniqueID"])
    gid = int(state.accounts["/Groups"][group]["PrimaryGroupID"])
    for path in words[1:]:
        os.chown(path, uid, gid, follow_symlinks=False)
    return answer


def play_a_mac() -> None:
    """Put the programs into their places; a thread of this process answers them."""
    for folder in _FOLDERS:
        os.makedirs(folder, exist_ok=True)
    COMMANDS.update(dscl=_dscl, chown=_chown)
    server = Server(State(listens=[ADDRESS]), Path("/nowhere"))
    for name in set(COMMANDS) - _OTHERS:
        path = Path("/usr/bin", name)
        path.unlink(missing_ok=True)
        write_program(path, name)
        path.write_text(path.read_text().replace("$MAC_PORT", str(server.port)))
    version = "{}.{}".format(*sys.version_info)
    python = Path(f"/Library/Frameworks/Python.framework/Versions/{version}/bin/python{version}")
    python.parent.mkdir(parents=True)
    python.symlink_to(f"/usr/bin/python{version}")
    site = Path(f"/usr/lib/python{version}/sitecustomize.py")
    site.unlink(missing_ok=True)
    site.write_text(_SITE)
