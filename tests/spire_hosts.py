"""A SPIRE server and the agents of several hosts, all of them on this one, for a whole story.

Unlike `tests.spire`, nothing is registered here: `register-workload` does that, and each agent
runs with the `agent.conf` and the join token that it wrote.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sidecar.core.host_layout import HOST_FOLDER_FILES
from tests.scenarios.peer import free_port

TRUST_DOMAIN = "ravenhelm.local"
# SPIRE dates SVIDs back by 10 s and renews them at half life: every 5 s or so.
SHORT_TTL = 20
_REGISTER_WORKLOAD = "from sidecar.cli.register_workload import register_workload as r; r()"
_INSTALLED = "/opt/spire"  # what the written agent.conf says
_SERVER = """
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{folder}/server.sock"
    trust_domain = "{trust_domain}"
    data_dir = "{folder}/server"
    log_level = "INFO"
    ca_ttl = "24h"
    agent_ttl = "1h"
    default_x509_svid_ttl = "{ttl}s"
    experimental {{ cache_reload_interval = "1s" }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{folder}/server/datastore.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
}}
"""


class Program:
    """One running program of SPIRE, and what it wrote."""

    def __init__(self, command: list[Any], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent)

    def until(self, is_so: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait until something is so; raise with the log if it does not come, or we end."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self._process.poll() is None, f"ended before {what}:\n{self.log()}"
            assert time.monotonic() < deadline, f"not {what} in {seconds} s:\n{self.log()}"
            time.sleep(0.05)  # it cannot tell us when it is

    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def account(uid: int | None) -> dict[str, Any]:
    """Keywords of `Popen` for a process of another account and of no group but its own."""
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


def python_for(uid: int, folder: Path) -> str:
    """Give an interpreter with our modules that another account can run; empty: there is none.

    Ours may be out of its reach, below somebody's home folder. Then it is the system's, in an
    environment in `folder` that has our packages.
    """
    if _runs_as(uid, sys.executable):
        return sys.executable
    system = "/usr/bin/python{}.{}".format(*sys.version_info)
    with suppress(OSError, subprocess.CalledProcessError):
        subprocess.run([system, "-m", "venv", "--without-pip", folder], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        packages.rmdir()
        packages.symlink_to(sysconfig.get_path("purelib"))
        if _runs_as(uid, f"{folder}/bin/python"):
            return f"{folder}/bin/python"
    return ""


def _runs_as(uid: int, python: str) -> bool:
    command = [python, "-m", "sidecar", "--version"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, **account(uid))
    except PermissionError:
        return False
    return done.returncode == 0


class SpireServer:
    """The platform's server; `start` it, and always `stop` it."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binary, self._folder = binaries / "spire-server", folder
        self.address = f"127.0.0.1:{free_port()}"
        self._socket = folder / "server.sock"
        self._program: Program | None = None

    def start(self) -> None:
        (self._folder / "server").mkdir(mode=0o700)
        port = self.address.rpartition(":")[2]
        config = self._folder / "server.conf"
        config.write_text(
            _SERVER.format(folder=self._folder, port=port, trust_domain=TRUST_DOMAIN, ttl=SHORT_TTL)
        )
        log = self._folder / "server.log"
        self._program = Program([self.binary, "run", "-config", config], log)
        self._program.until(lambda: self._ask("healthcheck").returncode == 0, "healthy")

    def stop(self) -> None:
        if self._program is not None:
            self._program.stop()

    def token(self, alias: str) -> str:
        """Make a join token for an agent that is to have an alias."""
        done = self._ask("token", "generate", "-spiffeID", alias, "-output", "json")
        assert done.returncode == 0, done.stderr
        token: str = json.loads(done.stdout)["value"]
        return token

    def entries(self) -> list[dict[str, Any]]:
        """All registration entries, as the server tells them."""
        done = self._ask("entry", "show", "-output", "json")
        assert done.returncode == 0, done.stderr
        entries: list[dict[str, Any]] = json.loads(done.stdout)["entries"]
        return entries

    def register_workload(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command of that name beside this server."""
        command = [sys.executable, "-c", _REGISTER_WORKLOAD, "--trust-domain", TRUST_DOMAIN]
        command += ["--spire-server", str(self.binary), "--socket-path", str(self._socket), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.binary, *words, "-socketPath", self._socket],
            capture_output=True,
            text=True,
            check=False,
        )


class SpireAgent:
    """The agent of one host, on what `register-workload --host-folder` wrote for that host."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binary, self._folder = binaries / "spire-agent", folder
        self.path = folder / "sockets" / "agent.sock"
        self._program: Program | None = None
        for name in ("conf", "data", "sockets"):
            (folder / name).mkdir(parents=True)

    def join(self, host_folder: Path) -> None:
        """Take the files, forget who we were if we were somebody, and be attested."""
        self.stop()
        shutil.rmtree(self._folder / "data")
        (self._folder / "data").mkdir(mode=0o700)
        for name in HOST_FOLDER_FILES:
            shutil.copy2(host_folder / name, self._folder / "conf" / name)
        config = self._folder / "conf" / "agent.conf"
        config.write_text(self._here(config.read_text()))
        self.start()

    def start(self) -> None:
        """Start it and wait until it is attested."""
        config = self._folder / "conf" / "agent.conf"
        log = self._folder / "agent.log"
        self._program = Program([self._binary, "run", "-config", config], log)
        self._program.until(self._is_healthy, "healthy")

    def stop(self) -> None:
        if self._program is not None:
            self._program.stop()

    def issues(self, uid: int) -> list[str]:
        """The SPIFFE IDs that a process of this account is given."""
        done = subprocess.run(
            [self._binary, "api", "fetch", "x509", "-socketPath", self.path],
            capture_output=True,
            text=True,
            check=False,
            **account(uid),
        )
        lines: Iterable[str] = done.stdout.splitlines()
        return [line.split()[-1] for line in lines if line.startswith("SPIFFE ID:")]

    def until_issued(self, uid: int, *spiffe_ids: str) -> None:
        """Wait until a process of this account is given exactly these."""
        assert self._program is not None
        self._program.until(lambda: sorted(self.issues(uid)) == sorted(spiffe_ids), "issued", 60)

    def _here(self, text: str) -> str:
        """The written agent.conf, for this folder, and quicker to hear of what is registered."""
        text = text.replace(_INSTALLED, str(self._folder))
        return text.replace("agent {", 'agent {\n    experimental { sync_interval = "1s" }', 1)

    def _is_healthy(self) -> bool:
        command: list[Any] = [self._binary, "healthcheck", "-socketPath", self.path]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
