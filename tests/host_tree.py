"""A host's tree in a folder, and a small checkout that `scripts/setup-linux.sh` installs there.

The checkout is this one, but for the lock: its one wheel puts the packages of the environment that
runs the tests on the path. So a real environment is made, by pip and with hashes, in seconds and
without a network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CHECKOUT = ("scripts", "systemd", "conf", "sidecar", "pyproject.toml", "README.md")
_PYTHON = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
_INFO = "locked-1.0.dist-info"
SPIFFE_ID = "spiffe://example.org/workload/model-server"
TRAEFIK_ID = "spiffe://example.org/workload/traefik"
TOKEN = "0c5d9f5e-3b1f-4c58-8c52-7c9f4c1d2e3f"
_AGENT_CONF = """agent {
    data_dir = "/opt/spire/data"
    socket_path = "/opt/spire/sockets/agent.sock"
    trust_bundle_path = "/opt/spire/conf/trust-bundle.pem"
    trust_domain = "example.org"
    join_token_file = "/opt/spire/conf/join-token"
}
"""
_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"


def make_checkout(folder: Path) -> Path:
    """Copy this checkout; its lock names one wheel, which is in `wheels`."""
    folder.mkdir()
    for name in _CHECKOUT:
        ignore = shutil.ignore_patterns("__pycache__")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder)
    wheel = _wheel(folder / "wheels")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "requirements.txt").write_text(f"locked==1.0 --hash=sha256:{digest}\n")
    return folder


def _wheel(folder: Path) -> Path:
    folder.mkdir()
    files = {
        "locked.pth": sysconfig.get_path("purelib") + "\n",
        f"{_INFO}/METADATA": "Metadata-Version: 2.1\nName: locked\nVersion: 1.0\n",
        f"{_INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in files.items())
    wheel = folder / "locked-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{_INFO}/RECORD": f"{record}{_INFO}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class HostTree:
    """One host, and what is installed on it from."""

    root: Path
    checkout: Path
    host_folder: Path
    agent: Path

    def setup(self, *options: str | Path, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run the script; `path` goes before PATH."""
        return subprocess.run(
            [self.checkout / "scripts/setup-linux.sh", "--root", self.root, *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={
                **os.environ,
                "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"],
            },
        )

    @property
    def everything(self) -> tuple[str | Path, ...]:
        """The options of a first installation."""
        return (
            *("--spire-agent", self.agent, "--host-folder", self.host_folder),
            *("--spiffe-id", SPIFFE_ID, "--traefik-id", TRAEFIK_ID),
            *self.offline,
        )

    @property
    def offline(self) -> tuple[str | Path, ...]:
        return ("--wheels", self.checkout / "wheels", "--python", _PYTHON)

    def at(self, path: str) -> Path:
        """Where a path of the host is."""
        return self.root / path.removeprefix("/")

    def snapshot(self) -> dict[str, tuple[str, ...]]:
        """What there is, with mode, owner, content or target, and the time of the last change."""
        return {
            str(path.relative_to(self.root)): _seen(path)
            for path in sorted(self.root.rglob("*"))
            # useradd's backups and locks.
            if not path.name.endswith(("-", ".lock")) and "__pycache__" not in path.parts
        }


def _seen(path: Path) -> tuple[str, ...]:
    status = path.lstat()
    owner = f"{status.st_uid}:{status.st_gid} {stat.filemode(status.st_mode)}"
    if path.is_symlink():
        return (owner, str(path.readlink()))
    if path.is_dir():
        return (owner,)
    return (owner, str(status.st_mtime_ns), hashlib.sha256(path.read_bytes()).hexdigest())


def make_host(folder: Path, checkout: Path) -> HostTree:
    """Make a host on which nothing is installed, and what a person brings to it."""
    for name in ("etc/systemd/system", "opt", "var/lib"):
        (folder / "host" / name).mkdir(parents=True)
    (folder / "host/etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (folder / "host/etc/group").write_text("root:x:0:\n")
    brought = folder / "brought"
    brought.mkdir()
    (brought / "agent.conf").write_text(_AGENT_CONF)
    (brought / "trust-bundle.pem").write_text(_CERTIFICATE)
    (brought / "join-token").write_text(TOKEN + "\n")
    agent = folder / "spire-agent"
    agent.write_text("#!/bin/sh\necho 1.13.3\n")
    agent.chmod(0o755)
    return HostTree(folder / "host", checkout, brought, agent)
