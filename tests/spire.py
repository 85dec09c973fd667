"""A real SPIRE server and agent on this host, below one folder, for as long as a test runs.

The agent is attested by a join token whose ID has an alias (`HOST`), so that entries do not die
with the token; it keeps its key on disk, so that it can be restarted. Workloads are attested by
uid: every process of this user gets the SVIDs of every entry made here.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

TRUST_DOMAIN = "example.org"
HOST = f"spiffe://{TRUST_DOMAIN}/host/test"

_SERVER = """
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{folder}/server.sock"
    trust_domain = "example.org"
    data_dir = "{folder}/server"
    log_level = "INFO"
    ca_ttl = "24h"
    default_x509_svid_ttl = "1h"
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
# sync_interval: how soon the agent hears of a new or deleted entry; 5 s unless told otherwise.
_AGENT = """
agent {{
    data_dir = "{folder}/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path = "{folder}/agent.sock"
    trust_bundle_path = "{folder}/bootstrap.pem"
    trust_domain = "example.org"
    join_token_file = "{folder}/token"
    experimental {{ sync_interval = "1s" }}
}}
plugins {{
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "disk" {{ plugin_data {{ directory = "{folder}/agent" }} }}
    WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class Spire:
    """One trust domain: `start`, register, and always `stop`."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.path = folder / "agent.sock"  # the Workload API
        self._binaries, self._folder = binaries, folder
        self._agent_program = binaries / "spire-agent"
        self._server: subprocess.Popen[bytes] | None = None
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for name in ("server", "agent"):
            (self._folder / name).mkdir()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        for name, text in (("server", _SERVER), ("agent", _AGENT)):
            config = text.format(folder=self._folder, port=port)
            (self._folder / f"{name}.conf").write_text(config)
        self._server = self._run("spire-server", "server")
        self._until_healthy("spire-server", "server", self._server)
        bundle = self.tell("bundle", "show")
        (self._folder / "bootstrap.pem").write_text(bundle)
        # By file and not by argument: arguments can be read by every user of the host.
        token = self._ask("token", "generate", "-spiffeID", HOST)["value"]
        file = self._folder / "token"
        file.touch(0o600)
        file.write_text(token)
        self.start_agent()

    def start_agent(self) -> None:
        self._agent = self._run("spire-agent", "agent")
        self._until_healthy("spire-agent", "agent", self._agent)

    def stop_agent(self) -> None:
        assert self._agent is not None
        self._agent.terminate()
        self._agent.wait(30)

    def kill_agent(self) -> None:
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait(30)

    def stop(self) -> None:
        """End both, whatever state they are in."""
        for process in (self._agent, self._server):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (self._agent, self._server):
            if process is not None:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def register(self, path: str, ttl: int = 3600, hint: str = "") -> str:
        """Create an entry for the processes of this user; gives its ID."""
        spiffe_id = f"spiffe://{TRUST_DOMAIN}{path}"
        selector = f"unix:uid:{os.getuid()}"
        more = ("-hint", hint) if hint else ()
        answer = self._ask(
            *("entry", "create", "-parentID", HOST, "-spiffeID", spiffe_id),
            *("-selector", selector, "-x509SVIDTTL", str(ttl), *more),
        )
        (result,) = answer["results"]
        assert result["status"]["code"] == 0, result
        return str(result["entry"]["id"])

    def delete(self, entry: str) -> None:
        self.tell("entry", "delete", "-entryID", entry)

    def forget_all(self) -> None:
        """Delete every entry for a workload, and wait until the agent has forgotten them too."""
        for entry in self._ask("entry", "show", "-parentID", HOST)["entries"]:
            self.delete(entry["id"])
        self.until_issued()

    def until_issued(self, *paths: str) -> None:
        """Wait until the agent issues exactly these; it asks the server every 5 s or so."""
        wanted = sorted(f"spiffe://{TRUST_DOMAIN}{path}" for path in paths)
        deadline = time.monotonic() + 60
        while sorted(_ids(self._fetch().stdout)) != wanted:
            assert time.monotonic() < deadline, f"the agent does not issue {wanted}"

    def bundle(self) -> str:
        """The trust bundle in PEM, as the server has it."""
        return self.tell("bundle", "show")

    def minted(self, path: str) -> ssl.SSLContext:
        """What a peer presents whose SVID the server minted."""
        folder = self._folder / f"minted{path.replace('/', '-')}-{time.monotonic_ns()}"
        folder.mkdir()
        spiffe_id = f"spiffe://{TRUST_DOMAIN}{path}"
        self.tell("x509", "mint", "-spiffeID", spiffe_id, "-ttl", "1h", "-write", str(folder))
        return _context(folder / "svid.pem", folder / "key.pem", folder / "bundle.pem")

    def fetched(self, path: str) -> ssl.SSLContext:
        """What a peer presents that fetches its SVID from the agent with SPIRE's own client."""
        folder = self._folder / f"fetched-{time.monotonic_ns()}"
        folder.mkdir()
        done = self._fetch("-write", str(folder))
        assert done.returncode == 0, done.stdout + done.stderr
        at = _ids(done.stdout).index(f"spiffe://{TRUST_DOMAIN}{path}")
        return _context(
            folder / f"svid.{at}.pem", folder / f"svid.{at}.key", folder / f"bundle.{at}.pem"
        )

    def tell(self, *words: str) -> str:
        """Run a command of `spire-server`; gives what it prints."""
        socket_path = ("-socketPath", str(self._folder / "server.sock"))
        return _output([self._binaries / "spire-server", *words, *socket_path])

    def log(self, name: str) -> str:
        """What "server" or "agent" wrote."""
        return (self._folder / f"{name}.log").read_text()

    def _ask(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.tell(*words, "-output", "json"))
        return answer

    def _fetch(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._agent_program, "api", "fetch", "x509", "-socketPath", self.path, *words],
            capture_output=True,
            text=True,
            check=False,
        )

    def _run(self, program: str, name: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / program, "run", "-config", self._folder / f"{name}.conf"],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )

    def _until_healthy(self, program: str, name: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 30
        path = self._folder / f"{name}.sock"
        while subprocess.run(
            [self._binaries / program, "healthcheck", "-socketPath", path],
            capture_output=True,
            check=False,
        ).returncode:
            assert process.poll() is None, f"{program} ended:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{program} is not healthy:\n{self.log(name)}"


def _ids(shown: str) -> list[str]:
    return [line.split()[-1] for line in shown.splitlines() if line.startswith("SPIFFE ID:")]


def _context(certificate: Path, key: Path, bundle: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(bundle)
    context.load_cert_chain(certificate, key)
    return context


def _output(command: list[Any]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout
