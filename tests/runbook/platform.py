"""What the page expects of the platform before it begins: a SPIRE server, an agent, Traefik.

Real ones where SPIRE_BIN and TRAEFIK_BIN name them, stand-ins otherwise. There is no Docker: its
command runs `spire-server` for the one container that the page knows, and refuses all else.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import trustme

from tests import fake_docker
from tests.runbook import fake_traefik, spire_agent, spire_server
from tests.runbook.boot import PERSON
from tests.runbook.machine import Machine, reaches, wait_until
from tests.runbook.page import ROOT

PLATFORM_IP, DOMAIN = "10.10.0.10", "models.ravenhelm.dev"
ALIAS = "spiffe://ravenhelm.local/host/platform"
TRAEFIK = "spiffe://ravenhelm.local/workload/traefik"
TRUSTED = "/srv/web-authorities.pem"  # whose certificates a client takes from Traefik
_DYNAMIC = "/etc/traefik/dynamic"
_SVIDS = "/etc/traefik/spiffe"
_PEM = "/srv/web.pem"
_HTTPS = f"{PLATFORM_IP}:443"
_SPIRE_SERVER = "docker exec spire-server /opt/spire/bin/spire-server"
_STATE = "/srv/spire-server"
_SOCKET = f"{_STATE}/api.sock"
_AGENT = "/opt/spire/bin/spire-agent"
_SPIRE_BIN, _TRAEFIK_BIN = os.environ.get("SPIRE_BIN", ""), os.environ.get("TRAEFIK_BIN", "")
# `docker exec` into SPIRE's image: that one program, and no shell.
_DOCKER = f"""#!/bin/sh
case "$1 $2 $3" in
  "exec spire-server /opt/spire/bin/spire-server") ;;
  *) echo "there is no $*" >&2; exit 1 ;;
esac
shift 3
exec {_STATE}/spire-server "$@" -socketPath {_SOCKET}
"""
_SERVER_CONF = f"""
server {{
    bind_address = "{PLATFORM_IP}"
    bind_port = "8081"
    socket_path = "{_SOCKET}"
    trust_domain = "ravenhelm.local"
    data_dir = "{_STATE}"
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{_STATE}/datastore.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
}}
"""


def put_spire_agent(machine: Machine, path: str) -> None:
    """Put the program `spire-agent` somewhere."""
    if _SPIRE_BIN:
        machine.at(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(_SPIRE_BIN, "spire-agent"), machine.at(path))
        return
    words = f"PYTHONPATH={ROOT} exec {sys.executable} -B -m {spire_agent.__name__}"
    machine.program(path, f'#!/bin/sh\n{words} "$@"\n')


class Platform:
    """The platform and what runs there."""

    def __init__(self, machine: Machine, logs: Path) -> None:
        self.machine, self._logs = machine, logs
        machine.at(_STATE).mkdir()
        machine.at(_STATE).chmod(0o777)
        machine.at(_DYNAMIC).mkdir(parents=True)
        if _SPIRE_BIN:
            self._start_spire_server()
        else:
            self._start_stand_in_for_spire()
        wait_until(lambda: reaches(machine, f"{PLATFORM_IP}:8081"), "a SPIRE server", self.said)
        self._start_agent()
        self._make_web_certificate()
        self._take_environment()

    def spire_server(self, *words: str) -> dict[str, Any]:
        """Ask the SPIRE server."""
        done = self.machine.run(f"{_SPIRE_SERVER} {' '.join(words)} -output json")
        assert done.status == 0, done.error
        found: dict[str, Any] = json.loads(done.out)
        return found

    def move_dynamic_configuration(self) -> None:
        """Put what was printed where Traefik looks."""
        self._as_root(f"mv model-server.yml {_DYNAMIC}/")

    def remove_dynamic_configuration(self) -> None:
        self._as_root(f"rm {_DYNAMIC}/model-server.yml")

    def start_traefik(self, static: str) -> None:
        """Start Traefik, with what was printed for its static configuration."""
        # Nothing here has the page's selectors of Docker; and a person who probes needs an entry.
        for uid in (0, PERSON) if _SPIRE_BIN else ():
            entry = ("-parentID", ALIAS, "-spiffeID", TRAEFIK, "-selector", f"unix:uid:{uid}")
            self.spire_server("entry", "create", *entry)
        if _TRAEFIK_BIN:
            certificate = {"certFile": _PEM, "keyFile": _PEM}
            web = {"tls": {"certificates": [certificate]}}
            self.machine.at(f"{_DYNAMIC}/web.yml").write_text(json.dumps(web))
            self.machine.at("/etc/traefik/traefik.yml").write_text(static)
            shutil.copy(_TRAEFIK_BIN, self.machine.at("/srv/traefik"))
            self._start("traefik", "/srv/traefik", "--configFile=/etc/traefik/traefik.yml")
        else:
            fetch = f"{ROOT}/.venv/bin/spiffe-sidecar fetch --wait 30 --config"
            self._as_root(f"mkdir -p {_SVIDS}; {fetch} {ROOT}/conf/files-for-traefik.toml")
            module = fake_traefik.__name__
            words = (_DYNAMIC, _HTTPS, _PEM, _SVIDS)
            self._start("traefik", sys.executable, "-m", module, *words)
        wait_until(self._routes, "a Traefik that has its router", self.said)

    def said(self) -> str:
        """What its programs have written."""
        logs = [(path, path.read_text()) for path in sorted(self._logs.glob("*.log"))]
        return "".join(f"\n== {path.name}\n{text[-4000:]}" for path, text in logs)

    def _routes(self) -> bool:
        asked = f"curl --silent --fail --max-time 10 https://{DOMAIN}/health"
        return self.machine.run(asked, environment={"CURL_CA_BUNDLE": TRUSTED}).status == 0

    def _as_root(self, text: str) -> None:
        done = self.machine.run(text, root=True)
        assert done.status == 0, done.all

    def _start(self, name: str, *command: str) -> None:
        self.machine.start(*command, log=self._logs / f"{name}.log")

    def _start_spire_server(self) -> None:
        self.machine.at(f"{_STATE}/server.conf").write_text(_SERVER_CONF)
        shutil.copy(Path(_SPIRE_BIN, "spire-server"), self.machine.at(_STATE))
        self.machine.program("docker", _DOCKER)
        self._start(
            "spire-server", f"{_STATE}/spire-server", "run", "-config", f"{_STATE}/server.conf"
        )
        socket = self.machine.at(_SOCKET)
        wait_until(socket.exists, "the SPIRE server's socket", self.said)
        os.chown(socket, PERSON, PERSON)  # as for a member of the group docker

    def _start_stand_in_for_spire(self) -> None:
        container = {"running": True, "socket": _SOCKET}
        self.machine.at(f"{_STATE}/spire-server.json").write_text(json.dumps(container))
        words = f"FAKE_DOCKER={_STATE} exec {sys.executable} -IS {fake_docker.__file__}"
        self.machine.program("docker", f'#!/bin/sh\n{words} "$@"\n')
        module = spire_server.__name__
        self._start("spire-server", sys.executable, "-m", module, _SOCKET, PLATFORM_IP, "8081")

    def _start_agent(self) -> None:
        put_spire_agent(self.machine, _AGENT)
        token = self.spire_server("token", "generate", "-spiffeID", ALIAS)["value"]
        files = {
            "agent.conf": (ROOT / "conf/agent.conf").read_text(),
            "trust-bundle.pem": self.machine.run(f"{_SPIRE_SERVER} bundle show").out,
            "join-token": str(token),
        }
        for name in ("conf", "data", "sockets"):
            self.machine.at(f"/opt/spire/{name}").mkdir()
        for name, text in files.items():
            self.machine.at(f"/opt/spire/conf/{name}").write_text(text)
        self._start("platform-agent", _AGENT, "run", "-config", "/opt/spire/conf/agent.conf")

    def _make_web_certificate(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert(DOMAIN)
        self.machine.at(TRUSTED).write_bytes(authority.cert_pem.bytes())
        self.machine.at(_PEM).write_bytes(certificate.private_key_and_cert_chain_pem.bytes())

    def _take_environment(self) -> None:
        """What runs the tests is what `scripts/demo` would make; let it think that it did."""
        environment = self.machine.checkout(".venv")
        if not (ROOT / ".venv").exists() or not (ROOT / ".venv").samefile(sys.prefix):
            if environment.exists():
                environment.rename(environment.with_name(".venv.other"))
            environment.symlink_to(sys.prefix)
        says = '. scripts/environment; fingerprint "$(find_python)" requirements-dev.txt'
        done = self.machine.run(says)
        assert done.status == 0, done.error
        stamp = Path(sys.prefix, ".made-of")
        self.machine.at(str(stamp)).write_text(done.out)
