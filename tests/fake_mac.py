"""A Mac for `setup-macos.sh`: a tree, stand-ins for its programs, and what they have made of it.

PATH has the stand-ins and, of this system, only programs that macOS has as well and that are called
in a way that both understand. The shell is $BASH32 if it is set: a real bash 3.2.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.macos_stand_ins.server import COMMANDS, PYTHON, Server, write_program
from tests.macos_stand_ins.state import State

CHECKOUT = Path(__file__).parent.parent
SCRIPT = "scripts/setup-macos.sh"
# The same on both, in the way that the script calls them.
_TOOLS = (
    *("awk", "basename", "bash", "cat", "chmod", "cmp", "dirname", "find", "grep", "ln", "ls"),
    *("mkdir", "mktemp", "rm", "rmdir", "sed", "sort", "tr"),
)
_FOLDERS = ("etc/newsyslog.d", "Library/LaunchDaemons", "opt", "var/run", "var/db", "var/log")
AGENT_SOCKET = "opt/spire/sockets/agent.sock"
HOMEBREW = "opt/homebrew/bin/python3.12"
TOKEN = "5c1a2b3d-1111-4222-8333-444455556666"
TRAEFIK = "spiffe://example.org/workload/traefik"
_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
_AGENT_CONF = """agent {
    data_dir = "/opt/spire/data"
    socket_path = "/opt/spire/sockets/agent.sock"
    trust_bundle_path = "/opt/spire/conf/trust-bundle.pem"
    join_token_file = "/opt/spire/conf/join-token"
    trust_domain = "example.org"
}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the script."""

    status: int
    out: str
    error: str

    @property
    def changes(self) -> list[str]:
        """What it says that it changed, or would change."""
        return [line[2:] for line in self.out.splitlines() if line.startswith("+ ")]

    @property
    def last(self) -> str:
        """The summary."""
        return self.out.splitlines()[-1]


class FakeMac:
    """One tree; `run` installs in it, and the rest looks at what came of it."""

    def __init__(self, folder: Path, checkout: Path, state: State | None = None) -> None:
        self.root, self._bin = folder / "mac", folder / "bin"
        self.host_folder = folder / "host"
        self.agent_program = folder / "spire-agent"
        self.checkout = checkout
        self.state = state or State()
        for name in COMMANDS:
            write_program(self._bin / name, name)
        for name in _TOOLS:
            (self._bin / name).symlink_to(shutil.which(name) or "/nowhere")
        for name in _FOLDERS:
            (self.root / name).mkdir(parents=True)
        write_program(self.root / HOMEBREW, PYTHON)
        write_program(self.agent_program, "spire-agent")
        self.issue_token()
        self.server = Server(self.state, self.root / HOMEBREW)

    def close(self) -> None:
        """Switch it off."""
        self.server.close()

    def copy(self, folder: Path) -> FakeMac:
        """Give another Mac on which the same has happened."""
        other = FakeMac(folder, self.checkout, self.state.copy())
        for name in ("root", "host_folder"):
            source, target = getattr(self, name), getattr(other, name)
            shutil.rmtree(target)
            ignored = shutil.ignore_patterns(Path(AGENT_SOCKET).name)
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(other.root / AGENT_SOCKET))
        moved = str(self.root), str(other.root)
        other.state.owners = {
            path.replace(*moved): owner for path, owner in self.state.owners.items()
        }
        for service in other.state.services.values():
            service.path = service.path.replace(*moved)
        return other

    def issue_token(self, token: str = TOKEN) -> None:
        """Be `register-workload --host-folder`."""
        self.host_folder.mkdir(exist_ok=True)
        (self.host_folder / "agent.conf").write_text(_AGENT_CONF)
        (self.host_folder / "trust-bundle.pem").write_text(_CERTIFICATE)
        (self.host_folder / "join-token").write_text(token + "\n")

    def install(self, *more: str) -> Run:
        """Install with what is needed, and more options."""
        return self.run(
            *("--spire-agent", str(self.agent_program), "--host-folder", str(self.host_folder)),
            *("--traefik-id", TRAEFIK, *more),
        )

    def run(self, *options: str) -> Run:
        """Run the script with --root."""
        shell = os.environ.get("BASH32") or "bash"
        process = subprocess.Popen(
            [shell, str(self.checkout / SCRIPT), *options, "--root", str(self.root)],
            env={"PATH": str(self._bin), "LC_ALL": "C", "MAC_PORT": str(self.server.port)},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

        def off() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        self.server.off = off
        try:
            out, error = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                off()
                process.wait()
        return Run(process.returncode, out, error)

    def calls(self, *begin: str) -> list[list[str]]:
        """The calls since that was asked for the last time, which begin with these words."""
        found, self.server.calls = self.server.calls, []
        return [call for call in found if tuple(call[: len(begin)]) == begin]

    def attributes(self, path: str) -> str:
        """Give `owner:group mode` of a path in the tree."""
        where = self.root / path
        key = os.path.join(os.path.realpath(where.parent), where.name)
        owner = self.state.owners.get(key, "root:wheel")
        return f"{owner} {where.lstat().st_mode & 0o777:04o}"

    def tree(self) -> dict[str, str]:
        """Everything in the tree, with its attributes and content or target."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name, what = str(path.relative_to(self.root)), ""
            if path.is_symlink():
                what = f"-> {path.readlink()}"
            elif path.is_file():
                what = path.read_text()
            found[name] = f"{self.attributes(name)} {what}"
        return found
