"""The platform and the model's host of a user, both on this machine: SPIRE, Traefik, the sidecar.

All of it is real, and set up by the commands that a user would give. Each host has an agent of its
own and each program an account of its own, which takes root.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.scenarios.peer import free_port
from tests.spire_hosts import TRUST_DOMAIN, SpireAgent, SpireServer, account, python_for
from tests.traefik import DOMAIN, Traefik, printed

SIDECAR = f"spiffe://{TRUST_DOMAIN}/workload/model-server"
TRAEFIK = f"spiffe://{TRUST_DOMAIN}/workload/traefik"
PLATFORM = f"spiffe://{TRUST_DOMAIN}/host/platform"
# Accounts without a name, so that nobody has them.
SIDECAR_UID, TRAEFIK_UID, STRANGER_UID = 45101, 45102, 45103
_CONFIG = """
[workload_api]
socket = "unix:{agent}"
denied_grace_seconds = 0
[listener]
address = "127.0.0.1:{port}"
[backend]
address = "{backend}"
[policy]
file = "policy.toml"
[admin]
address = "unix:{folder}/run/admin.sock"
[log]
format = "json"
"""
_POLICY = f"""
[[allow]]
name = "traefik"
peers = ["{TRAEFIK}"]
endpoints = ["preset:ollama"]
trusted_proxy = true
"""


@dataclass
class Hosts:
    """Two hosts and what is registered: Traefik on the platform, the sidecar on the other."""

    folder: Path
    server: SpireServer
    platform: SpireAgent
    host: SpireAgent
    words: tuple[str, ...]  # of register-workload
    python: str  # for other accounts than ours

    def register(self) -> None:
        """Register all there is, have the host join by its new token, and wait for the SVIDs."""
        folder = self.folder / "mac-studio"
        written = ("--host-folder", str(folder), "--server-address", self.server.address)
        done = self.server.register_workload(*self.words, "--generate-token", *written)
        assert done.returncode == 0, done.stdout + done.stderr
        self.host.join(folder)
        self.host.until_issued(SIDECAR_UID, SIDECAR)

    def remove(self) -> None:
        """Remove what `register` made, and wait until both agents know."""
        done = self.server.register_workload(*self.words, "--remove")
        assert done.returncode == 0, done.stdout + done.stderr
        self.host.until_issued(SIDECAR_UID)
        self.platform.until_issued(TRAEFIK_UID)


@dataclass
class Site:
    """A sidecar and a Traefik on such hosts."""

    hosts: Hosts
    config: Path
    sidecar: Daemon
    traefik: Traefik

    @property
    def helper(self) -> Path:
        """The configuration of the sidecar on Traefik's host, which has Traefik's identity."""
        return self.config.parent / "traefik" / "helper.toml"

    def url(self, path: str) -> str:
        """What Traefik asks, past Traefik."""
        host, port = self.sidecar.address
        return f"https://{host}:{port}{path}"

    def command(self, *words: str, uid: int = SIDECAR_UID) -> subprocess.CompletedProcess[str]:
        """Run `spiffe-sidecar` as an account."""
        return subprocess.run(
            [self.hosts.python, "-m", "sidecar", *words],
            capture_output=True,
            text=True,
            check=False,
            **account(uid),
        )


@contextmanager
def running_hosts() -> Iterator[Hosts]:
    """Run both hosts, with what SPIRE has there; skips the test where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can run each program as an account of its own")
    binaries = needed("SPIRE_BIN", "a folder with spire-server and spire-agent")
    needed("TRAEFIK_BIN", "the binary of Traefik")
    with tempfile.TemporaryDirectory(prefix="st-") as name, ExitStack() as running:
        folder = Path(name)
        folder.chmod(0o755)
        python = python_for(SIDECAR_UID, folder / "venv")
        if not python:
            pytest.skip("other accounts can run no Python with our modules here")
        (folder / "server").mkdir()
        server = SpireServer(binaries, folder / "server")
        running.callback(server.stop)
        server.start()
        words = (
            *("--host", "mac-studio", "--spiffe-id", SIDECAR, "--uid", str(SIDECAR_UID)),
            *("--traefik-id", TRAEFIK, "--traefik-selector", f"unix:uid:{TRAEFIK_UID}"),
            *("--traefik-parent", PLATFORM),
        )
        platform = SpireAgent(binaries, folder / "platform")
        host = SpireAgent(binaries, folder / "host")
        running.callback(platform.stop)
        running.callback(host.stop)
        hosts = Hosts(folder, server, platform, host, words, python)
        hosts.register()
        # The platform had its agent before, and it stays when the host goes.
        (folder / "mac-studio" / "join-token").write_text(server.token(PLATFORM))
        platform.join(folder / "mac-studio")
        platform.until_issued(TRAEFIK_UID, TRAEFIK)
        yield hosts


def needed(name: str, what: str) -> Path:
    """Give the path in a variable of the environment, or skip the test."""
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set to {what}")
    return Path(value).resolve()


@contextmanager
def running_site(hosts: Hosts, variant: str, backend: str) -> Iterator[Site]:
    """Run a sidecar before a model server, and a Traefik before it that gets its SVID so or so."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="si-")))
        folder.chmod(0o755)
        config = _write_config(folder, hosts, backend)
        sidecar = _daemon(running, hosts, config, SIDECAR_UID)
        sidecar.wait_for("ready")
        traefik = _traefik(running, folder, hosts, config, variant)
        traefik.until_it_routes()
        yield Site(hosts, config, sidecar, traefik)


def _write_config(folder: Path, hosts: Hosts, backend: str) -> Path:
    run = folder / "run"
    run.mkdir()
    os.chown(run, SIDECAR_UID, SIDECAR_UID)
    (folder / "policy.toml").write_text(_POLICY)
    config = folder / "sidecar.toml"
    text = _CONFIG.format(agent=hosts.host.path, port=free_port(), backend=backend, folder=folder)
    config.write_text(text)
    return config


def _daemon(running: ExitStack, hosts: Hosts, config: Path, uid: int) -> Daemon:
    daemon = Daemon(config, python=hosts.python, **account(uid))
    running.callback(daemon.stop)
    return daemon


def _traefik(running: ExitStack, folder: Path, hosts: Hosts, config: Path, variant: str) -> Traefik:
    """Traefik with an account of its own, and the helper of the same account if it needs one."""
    theirs = folder / "traefik"
    (theirs / "dynamic").mkdir(parents=True)
    port, dynamic = free_port(), theirs / "dynamic" / "model-server.yml"
    options = ["--version", "3.8", "--variant", variant, "--domain", DOMAIN]
    options += ["--server", "127.0.0.1", "--spiffe-id", SIDECAR, "--traefik-id", TRAEFIK]
    options += ["--listen", f"127.0.0.1:{port}", "--dynamic-file", str(dynamic)]
    options += ["--agent-socket", f"unix:{hosts.platform.path}"]
    options += ["--certificates", f"{theirs}/spiffe"]
    static, helper = theirs / "static.yml", theirs / "helper.toml"
    static.write_text(printed(config, *options, "--part", "static"))
    # Traefik looks again after a second whether a sidecar is well, and not after ten.
    dynamic.write_text(printed(config, *options).replace('interval: "10s"', 'interval: "1s"'))
    for path in (theirs, dynamic):
        os.chown(path, TRAEFIK_UID, TRAEFIK_UID)
    options[options.index(variant)] = "files"
    helper.write_text(printed(config, *options, "--part", "helper") + '[log]\nformat = "json"\n')
    if variant == "files":
        _daemon(running, hosts, helper, TRAEFIK_UID).wait_for("after rotation done", hook="traefik")
    return running.enter_context(Traefik(static, port, **account(TRAEFIK_UID)))
