"""A host for `doctor`: real agent, daemon, backend and files; systemd alone is a stand-in.

As root the daemon runs as an account without rights, as it should, in a Python that this account
can run; as an ordinary user everything is that user's. A test breaks one thing and mends it again,
so one host serves many tests.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio

from sidecar.adapters.host.addresses import own_addresses
from sidecar.adapters.host.command import run
from sidecar.core.address import Address
from sidecar.core.diagnosis.finding import Finding, Unknown, Verdict
from sidecar.core.status import Report
from sidecar.operations.doctor.examination import examine
from sidecar.operations.doctor.subject import Request
from sidecar.operations.status import ask
from tests.ca import Authority
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.http_backend import HttpBackend

IS_ROOT = os.geteuid() == 0
OURS = "spiffe://example.org/workload/model-server"
_POLICY = """
[[allow]]
name = "peers"
peers = ["spiffe://example.org/workload/traefik", "spiffe://example.org/workload/model-server"]
endpoints = ["GET /api/version", "POST /v1/messages", "POST /v1/chat/completions"]
"""
_CONFIG = """
[workload_api]
socket = "unix:{folder}/agent/agent.sock"
spiffe_id = "spiffe://example.org/workload/model-server"
[listener]
address = "{listen}:{port}"
[backend]
address = "{backend}"
host = "{host}"
[policy]
file = "policy.toml"
[admin]
address = "127.0.0.1:{admin}"
[cert_files]
directory = "certs"
[[after_rotation]]
name = "traefik"
touch = "touched.yml"
[log]
format = "json"
{more}
"""
# What the real one prints, from a file for each unit that a test may change.
_SYSTEMCTL = """#!/bin/sh
for last; do :; done
case "$1" in
show) cat "{units}/$last" 2>/dev/null || echo LoadState=not-found ;;
enable)
    sed 's/^UnitFileState=.*/UnitFileState=enabled/; s/^ActiveState=.*/ActiveState=active/' \\
        "{units}/$last" > "{units}/new" && mv "{units}/new" "{units}/$last" ;;
kill)
    for word; do case "$word" in --signal=*) signal="${{word#--signal=}}" ;; esac; done
    kill -s "$signal" "$(sed -n 's/^MainPID=//p' "{units}/$last")" ;;
is-enabled) echo masked ;;
get-default) echo multi-user.target ;;
esac
"""
UNITS = ("spiffe-sidecar.service", "spire-agent.service")


def usable_python(folder: Path) -> str:
    """A Python that the service user can run and that has what we have; skips if there is none."""
    if not IS_ROOT or _runs(sys.executable):
        return sys.executable
    name = f"python3.{sys.version_info.minor}"
    system = shutil.which(name, path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if system is None or not _runs(system):
        pytest.skip(f"nobody can run {sys.executable}, and there is no other {name}")
    subprocess.run([system, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    own = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({str(own)!r})\n")
    python = str(folder / "venv/bin/python")
    if not _runs(python, "import sidecar"):
        pytest.skip(f"nobody can read what is installed for {sys.executable}")
    return python


def _runs(python: str, code: str = "") -> bool:
    try:
        ended = subprocess.run([python, "-I", "-c", code], cwd="/", user="nobody", check=False)
    except OSError:
        return False
    return ended.returncode == 0


class ServiceDaemon(Daemon):
    """A daemon as the service user."""

    def __init__(self, python: str, config: Path, user: int | None) -> None:
        self.log, self.raw = [], []
        self._changed = threading.Condition()
        self._seen = 0
        group = None if user is None else pwd.getpwuid(user).pw_gid
        self.process = subprocess.Popen(
            [python, "-m", "sidecar", "run", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()


class Host:
    """The host; `examine` is doctor, everything else breaks and mends."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder, self.authority = folder, authority
        folder.chmod(0o755)
        self.python = usable_python(folder)
        self.user = pwd.getpwnam("nobody").pw_uid if IS_ROOT else None
        self.units, self.certs = folder / "units", folder / "certs"
        self.config, self.policy = folder / "sidecar.toml", folder / "policy.toml"
        self.touched = folder / "touched.yml"
        for name in ("agent", "units", "certs", "bin"):
            (folder / name).mkdir(mode=0o755)
        self._own(self.certs)
        self.touched.touch()
        self._own(self.touched)
        self.backend = HttpBackend()
        self.svid = authority.svid()
        self.agent = AgentProcess(folder / "agent/agent.sock")
        self.start_agent()
        self.port, self.admin = free_port(), free_port()
        self.write_config()
        self.policy.write_text(_POLICY)
        systemctl = folder / "bin/systemctl"
        systemctl.write_text(_SYSTEMCTL.format(units=self.units))
        systemctl.chmod(0o755)
        self.daemon = self.start_daemon()

    def close(self) -> None:
        self.daemon.stop()
        self.agent.stop()
        self.backend.close()

    def _own(self, path: Path) -> None:
        if self.user is not None:
            os.chown(path, self.user, -1)

    # The parts.

    def start_agent(self) -> None:
        self.agent.send(self.svid, self.authority.bundle)
        self.agent.start()
        self.agent.path.chmod(0o777)

    def start_daemon(self, *, as_root: bool = False) -> ServiceDaemon:
        self.daemon = ServiceDaemon(self.python, self.config, 0 if as_root else self.user)
        self.daemon.wait_for("ready")
        self.daemon.wait_for("after rotation done")
        self.until_ready()
        self.write_unit("spiffe-sidecar.service")
        self.write_unit("spire-agent.service")
        return self.daemon

    def until_ready(self) -> None:
        """Wait until the daemon says that it is ready, without any warning."""
        self.until(lambda host: host.report().ready and not host.report().warnings)

    def report(self) -> Report:
        """What the daemon says of itself."""
        return ask(Address.parse(f"127.0.0.1:{self.admin}")).report

    def until(self, condition: Callable[[Host], bool]) -> None:
        """Wait until something holds that nobody tells us of."""
        end = time.monotonic() + 20
        while not condition(self):
            assert time.monotonic() < end, self.report()
            time.sleep(0.05)

    def write_config(
        self, *, listen: str = "0.0.0.0", backend: str = "", host: str = "", more: str = ""
    ) -> None:
        """Write `sidecar.toml`; the daemon, if it runs, reads it."""
        text = _CONFIG.format(
            folder=self.folder,
            listen=listen,
            port=self.port,
            admin=self.admin,
            backend=backend or self.backend.address,
            host=host,
            more=more,
        )
        new = self.folder / "new"
        new.write_text(text)
        new.replace(self.config)

    def write_policy(self, more: str = "") -> None:
        new = self.folder / "new"
        new.write_text(_POLICY + more)
        new.replace(self.policy)

    def write_unit(self, name: str, enabled: str = "enabled", active: str = "active") -> None:
        pid = self.daemon.process.pid if name.startswith("spiffe-sidecar") else self.agent.pid
        values = {
            "LoadState": "loaded",
            "UnitFileState": enabled,
            "ActiveState": active,
            "Result": "success" if active == "active" else "exit-code",
            "ExecMainStatus": "0" if active == "active" else "1",
            "MainPID": str(pid) if active == "active" else "0",
            "User": pwd.getpwuid(self.user or os.geteuid()).pw_name,
            "FragmentPath": f"/etc/systemd/system/{name}",
        }
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        (self.units / name).write_text(text)

    @property
    def key(self) -> Path:
        """The private key that is published now."""
        return self.certs / "current" / "svid_key.pem"

    # Doctor.

    def environment(self) -> dict[str, str]:
        """With the stand-in of systemctl first."""
        path = f"{self.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": path}

    def examine(self, model: str = "") -> dict[str, Finding]:
        """Run doctor in this process, by their names."""
        request = Request(self.config, "0.1.0", model=model)
        return {one.name: one for one in trio.run(partial(examine, request))}

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run doctor's command."""
        return subprocess.run(
            [self.python, "-m", "sidecar", "doctor", "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd="/",
            check=False,
        )

    def do(self, remedy: str) -> None:
        """Do what doctor says; only root can, and root needs no sudo."""
        command = remedy.splitlines()[0].replace("sudo ", "")
        subprocess.run(["/bin/sh", "-ec", command], env=self.environment(), check=True)


def failed(findings: Mapping[str, Finding]) -> set[str]:
    """The names of those that fail."""
    return {name for name, one in findings.items() if one.verdict is Verdict.FAIL}


def shown(findings: Mapping[str, Finding]) -> str:
    """All that is not well, for the message of a failing test."""
    return "\n".join(
        f"{one.verdict} {name}: {one.seen}"
        for name, one in findings.items()
        if one.verdict is not Verdict.OK
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def lan_address() -> str:
    """An address of this host that is not loopback; skips if there is none."""
    found = trio.run(own_addresses, run)
    assert not isinstance(found, Unknown)
    for ip in sorted(found, key=str):
        if isinstance(ip, IPv4Address) and not ip.is_loopback:
            return str(ip)
    pytest.skip("this host has no address but loopback")
