"""Who gives identities on a booted host: a real SPIRE below SPIRE_BIN, or the tests' own agent."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Protocol

from tests.ca import Authority
from tests.client import client_context
from tests.fake_agent import AgentProcess
from tests.nspawn import Machine

TRUST_DOMAIN = "example.org"
SPIFFE_ID = f"spiffe://{TRUST_DOMAIN}/workload/model-server"
TRAEFIK, STRANGER = "/workload/traefik", "/workload/open-webui"
_HOST = f"spiffe://{TRUST_DOMAIN}/host/gpu-1"
_SERVER = "/srv/spire"
_SERVER_CONF = """
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    socket_path = "/srv/spire/api.sock"
    trust_domain = "example.org"
    data_dir = "/srv/spire"
    log_level = "INFO"
    ca_ttl = "24h"
    default_x509_svid_ttl = "1h"
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "/srv/spire/datastore.sqlite3"
        }
    }
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "memory" { plugin_data {} }
}
"""
# As `register-workload --host-folder` writes it.
_AGENT_CONF = """
agent {
    data_dir = "/opt/spire/data"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "8081"
    socket_path = "/opt/spire/sockets/agent.sock"
    trust_bundle_path = "/opt/spire/conf/trust-bundle.pem"
    trust_domain = "example.org"
    join_token_file = "/opt/spire/conf/join-token"
}
plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "disk" { plugin_data { directory = "/opt/spire/data" } }
    WorkloadAttestor "unix" { plugin_data {} }
}
"""


class Identity(Protocol):
    """Mounts for the host, options for its setup, and what a peer presents."""

    binds: dict[Path, str]
    options: tuple[str, ...]

    def start(self, machine: Machine) -> None:
        """Begin, when the host is up."""

    def context(self, path: str) -> ssl.SSLContext:
        """What the peer with this ID presents."""

    def stop(self) -> None:
        """End."""


def identity(folder: Path) -> Identity:
    """The real one, if it is at hand."""
    binaries = os.environ.get("SPIRE_BIN")
    return RealSpire(Path(binaries), folder) if binaries else OwnAgent(folder)


class OwnAgent:
    """The tests' agent, outside; its socket is mounted where SPIRE's would be."""

    options: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        sockets = folder / "sockets"
        sockets.mkdir()
        sockets.chmod(0o755)
        self.binds = {sockets: "/opt/spire/sockets"}
        self._authority = Authority(TRUST_DOMAIN)
        self._folder = folder
        self._agent = AgentProcess(sockets / "agent.sock")
        self._agent.send(self._authority.svid(), self._authority.bundle)

    def start(self, machine: Machine) -> None:
        self._agent.start()
        self._agent.path.chmod(0o777)  # as SPIRE's: who asks is for it to judge

    def context(self, path: str) -> ssl.SSLContext:
        issued = self._authority.sign(self._authority.leaf(path))
        return client_context(self._authority, issued, self._folder)

    def stop(self) -> None:
        self._agent.stop()


class RealSpire:
    """A SPIRE server on the host itself, which has registered the service's uid; the agent is the
    setup's business."""

    options: tuple[str, ...] = (
        *("--spire-agent", "/mnt/spire/spire-agent"),
        *("--host-folder", "/mnt/share/host"),
    )

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._share = folder / "share"
        self._share.mkdir()
        self.binds = {binaries: "/mnt/spire", self._share: "/mnt/share"}
        self._machine: Machine | None = None

    def start(self, machine: Machine) -> None:
        self._machine = machine
        machine.run("mkdir", "-p", _SERVER)
        (self._share / "server.conf").write_text(_SERVER_CONF)
        program = "/mnt/spire/spire-server"
        start = ("systemd-run", "--quiet", "--unit=spire-server", program)
        machine.run(*start, "run", "-config", "/mnt/share/server.conf")
        while machine.ask(program, "healthcheck", "-socketPath", f"{_SERVER}/api.sock").returncode:
            assert machine.show("spire-server", "ActiveState") == "active"
        host = self._share / "host"
        host.mkdir()
        (host / "agent.conf").write_text(_AGENT_CONF)
        (host / "trust-bundle.pem").write_text(self._tell("bundle", "show"))
        self.bring_join_token()
        entry = ("entry", "create", "-parentID", _HOST, "-spiffeID", SPIFFE_ID)
        self._tell(*entry, "-selector", "unix:uid:451")

    def context(self, path: str) -> ssl.SSLContext:
        name = f"minted{path.replace('/', '-')}"
        (self._share / name).mkdir(exist_ok=True)
        mint = ("x509", "mint", "-spiffeID", f"spiffe://{TRUST_DOMAIN}{path}", "-write")
        self._tell(*mint, f"/mnt/share/{name}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        minted = self._share / name
        context.load_verify_locations(minted / "bundle.pem")
        context.load_cert_chain(minted / "svid.pem", minted / "key.pem")
        return context

    def bring_join_token(self) -> None:
        """Put a new one where the setup looks for it."""
        told = self._tell("token", "generate", "-spiffeID", _HOST, "-output", "json")
        file = self._share / "host/join-token"
        file.touch(0o600)
        file.write_text(json.loads(told)["value"])

    def evict_agent(self) -> None:
        """Have the server forget the agent, as when its SVID has expired."""
        for agent in json.loads(self._tell("agent", "list", "-output", "json"))["agents"]:
            spiffe_id = f"spiffe://{agent['id']['trust_domain']}{agent['id']['path']}"
            self._tell("agent", "evict", "-spiffeID", spiffe_id)

    def stop(self) -> None:
        """Nothing: it ends with its host."""

    def _tell(self, *words: str) -> str:
        assert self._machine is not None
        socket = ("-socketPath", f"{_SERVER}/api.sock")
        return self._machine.run("/mnt/spire/spire-server", *words, *socket)
