"""Setup, units and all on a host that is booted for it: everything by the real systemd.

NSPAWN_TREE or FULL=1 has it run, SPIRE_BIN adds a real SPIRE. The tests go on from one state to
the next, in the order of this file: each leaves the service well for the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.adapters.sandbox.kernel import LinuxKernel
from sidecar.core import host_layout
from sidecar.core.host_layout import LINUX
from tests.host_identity import (
    SPIFFE_ID,
    STRANGER,
    TRAEFIK,
    TRUST_DOMAIN,
    Identity,
    RealSpire,
    identity,
)
from tests.nspawn import ROOT, Machine, find_tree, find_wheels

SIDECAR, AGENT, SOCKET = LINUX.sidecar_service, LINUX.agent_service, "spiffe-sidecar.socket"
PORT = 6701
SETUP = "/mnt/checkout/scripts/setup-linux.sh"
_CHECKOUT = ("scripts", "systemd", "conf", "sidecar")
_FILES = ("pyproject.toml", "README.md", "requirements.txt")
_MODEL_SERVER = "/srv/model"

needs_spire = pytest.mark.skipif(
    not os.environ.get("SPIRE_BIN"), reason="SPIRE_BIN names no folder with spire-server and -agent"
)


@dataclass(frozen=True)
class Host:
    """A booted host with a model server, this checkout and somebody who issues identities."""

    machine: Machine
    identity: Identity
    checkout: Path
    before: set[str]

    def setup(self, *options: str) -> subprocess.CompletedProcess[str]:
        wheels = () if "--uninstall" in options else ("--wheels", "/mnt/wheels")
        return self.machine.ask(SETUP, *options, *wheels)

    def install(self, *options: str) -> str:
        """Set it up; doctor may have its say, all else has to be well."""
        peer = f"spiffe://{TRUST_DOMAIN}{TRAEFIK}"
        ids = ("--spiffe-id", SPIFFE_ID, "--traefik-id", peer)
        done = self.setup(*self.identity.options, *ids, *options)
        _well(done)
        return done.stdout

    def status(self, path: str = "/api/version", peer: str = TRAEFIK) -> int:
        """Ask the sidecar as a peer; give the status."""
        context = self.identity.context(peer)
        with context.wrap_socket(self.machine.connect(PORT)) as tls:
            tls.sendall(f"GET {path} HTTP/1.1\r\nHost: model\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := tls.recv(65536):
                answer += piece
        return int(answer.split()[1])

    def main_pid(self) -> int:
        return int(self.machine.show(SIDECAR, "MainPID"))

    def ready(self) -> int:
        """Wait until the sidecar is; give its process."""
        self.machine.until(SIDECAR, "ActiveState", "active")
        return self.main_pid()

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a file of the host."""
        text = self.machine.run("cat", path)
        assert old in text
        self.write(path, text.replace(old, new))

    def write(self, path: str, text: str) -> None:
        beside = self.checkout / "text"
        beside.write_text(text)
        self.machine.run("mkdir", "-p", str(Path(path).parent))
        self.machine.run("cp", "/mnt/checkout/text", path)

    def paths(self) -> set[str]:
        """Every path where setup could leave something."""
        found = self.machine.run("find", "/etc", "/opt", "/usr/local", "/var/lib", "-mount")
        # Backups of the accounts' files, and what systemd remembers of units that ran.
        return {path for path in found.splitlines() if not path.endswith("-")}


def _well(done: subprocess.CompletedProcess[str]) -> None:
    warnings = re.findall(r"^warning: (.*)", done.stderr, re.MULTILINE)
    others = [line for line in warnings if not line.startswith("doctor found something")]
    assert others == [], done.stdout + done.stderr
    assert done.returncode == 0 or warnings, done.stdout + done.stderr


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which nothing is installed yet."""
    tree, folder = find_tree(), tmp_path_factory.mktemp("booted")
    python = (tree / "usr/bin/python3").resolve()
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in _CHECKOUT:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    for name in _FILES:
        shutil.copy2(ROOT / name, checkout)
    issuer = identity(folder)
    binds = {checkout: "/mnt/checkout", find_wheels(python): "/mnt/wheels", **issuer.binds}
    machine = Machine(tree, folder, binds)
    try:
        machine.boot()
        issuer.start(machine)
        _start_model_server(machine)
        host = Host(machine, issuer, checkout, set())
        host.before.update(host.paths())
        yield host
    finally:
        issuer.stop()
        machine.close()


def _start_model_server(machine: Machine) -> None:
    machine.run("mkdir", "-p", f"{_MODEL_SERVER}/api")
    for name in ("version", "tags"):
        machine.run("sh", "-c", f"echo '{{}}' >{_MODEL_SERVER}/api/{name}")
    serve = ("python3", "-m", "http.server", "11434", "--bind", "127.0.0.1")
    folder = f"--property=WorkingDirectory={_MODEL_SERVER}"
    machine.run("systemd-run", "--quiet", "--unit=model-server", folder, *serve)


@pytest.fixture(scope="module")
def installed(host: Host) -> Host:
    """The same after its first installation."""
    said = host.install("--traefik-address", "192.0.2.7")
    assert f"+ start {SIDECAR}" in said
    assert "the model server listens on loopback only" in said
    return host


def test_it_serves_whom_the_policy_names_and_nobody_else(installed: Host) -> None:
    installed.ready()
    assert installed.machine.show(SIDECAR, "StatusText") == f"serving on 0.0.0.0:{PORT}"
    assert installed.status() == 200
    assert installed.status("/api/pull") == 403
    assert installed.status(peer=STRANGER) == 403


def test_the_process_has_no_rights_to_speak_of(installed: Host) -> None:
    pid = installed.ready()
    status = dict(
        line.split(":\t", 1)
        for line in installed.machine.run("cat", f"/proc/{pid}/status").splitlines()
        if ":\t" in line
    )
    assert set(status["Uid"].split()) == {str(host_layout.SERVICE_UID)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_the_sandbox_of_the_sidecar_is_in_force_within_the_unit_s(installed: Host) -> None:
    try:
        abi = LinuxKernel().landlock_abi()
    except OSError as exc:
        pytest.skip(f"this kernel has no Landlock: {exc}")
    assert abi > 0
    (line,) = re.findall(r".*\bconfined\b.*", installed.machine.journal(SIDECAR))[-1:]
    forbidden = line.partition("forbidden=")[2].partition("not_forbidden")[0]
    assert "other files" in forbidden


def test_certificate_files_are_there_for_the_service_alone(installed: Host) -> None:
    key = f"{host_layout.CERT_FILES}/current/svid_key.pem"
    while installed.machine.ask("test", "-e", key).returncode:  # they come after it is ready
        assert installed.machine.show(SIDECAR, "ActiveState") == "active"
    shown = installed.machine.run("stat", "--format=%U %a", key)
    assert shown == f"{LINUX.service_user} 600\n"


@needs_spire
def test_the_agent_attests_the_service_s_uid_without_being_root(installed: Host) -> None:
    machine = installed.machine
    pid = machine.show(AGENT, "MainPID")
    assert machine.run("stat", "--format=%U", f"/proc/{pid}") == f"{LINUX.agent_user}\n"
    assert f"spiffe_id={SPIFFE_ID}" in machine.journal(SIDECAR)


@needs_spire
def test_the_join_token_is_gone_and_the_agent_starts_without_it(installed: Host) -> None:
    machine, pid = installed.machine, installed.ready()
    assert machine.run("cat", host_layout.JOIN_TOKEN) == "spent\n"
    assert "join-token" not in machine.run("ls", "/mnt/share/host")
    machine.run("systemctl", "restart", AGENT)
    healthy = (host_layout.AGENT_BINARY, "healthcheck", "-socketPath", host_layout.AGENT_SOCKET)
    while machine.ask(*healthy).returncode:
        assert machine.until(AGENT, "ActiveState", "active")
    assert installed.main_pid() == pid
    assert installed.status() == 200


@needs_spire
def test_a_new_join_token_brings_back_an_agent_that_was_lost(installed: Host) -> None:
    machine = installed.machine
    assert isinstance(installed.identity, RealSpire)
    installed.identity.evict_agent()
    machine.run("systemctl", "restart", AGENT)
    while "already been used" not in machine.journal(AGENT):
        assert machine.show(AGENT, "ActiveState") in {"active", "activating"}
    installed.identity.bring_join_token()
    done = installed.setup("--host-folder", "/mnt/share/host")
    _well(done)
    assert f"+ restart {AGENT}" in done.stdout
    assert f"+ restart {SIDECAR}" not in done.stdout
    assert machine.run("cat", host_layout.JOIN_TOKEN) == "spent\n"
    assert installed.status() == 200


def test_a_second_run_changes_and_restarts_nothing(installed: Host) -> None:
    pid = installed.ready()
    paths = _without_the_services_own(installed.paths())
    said = installed.install()
    assert not re.search(r"^\+ ", said, re.MULTILINE), said
    assert installed.main_pid() == pid
    assert _without_the_services_own(installed.paths()) == paths


def _without_the_services_own(paths: set[str]) -> set[str]:
    """A rotation comes when it likes."""
    folders = (f"{host_layout.CERT_FILES}/", f"{host_layout.AGENT_DATA}/")
    return {path for path in paths if not path.startswith(folders)}


def test_systemctl_reload_takes_a_new_policy(installed: Host) -> None:
    pid = installed.ready()
    assert installed.status("/api/tags") == 200
    policy = installed.machine.run("cat", host_layout.POLICY)
    installed.edit(host_layout.POLICY, '"preset:ollama"', '"GET /api/version"')
    installed.machine.run("systemctl", "reload", SIDECAR)
    while installed.status("/api/tags") != 403:
        assert installed.main_pid() == pid
    installed.write(host_layout.POLICY, policy)
    installed.machine.run("systemctl", "reload", SIDECAR)
    while installed.status("/api/tags") != 200:
        assert installed.main_pid() == pid


def test_systemctl_reload_fails_on_a_configuration_that_cannot_be_used(installed: Host) -> None:
    pid = installed.ready()
    config = installed.machine.run("cat", host_layout.CONFIG)
    installed.edit(host_layout.CONFIG, "drain_seconds", "drain_second")
    assert installed.machine.ask("systemctl", "reload", SIDECAR).returncode != 0
    assert "drain_second" in installed.machine.journal(SIDECAR)
    assert installed.ready() == pid
    assert installed.status() == 200
    installed.write(host_layout.CONFIG, config)
    installed.machine.run("systemctl", "reload", SIDECAR)


def test_a_configuration_that_cannot_be_used_is_not_tried_again(installed: Host) -> None:
    machine = installed.machine
    config = machine.run("cat", host_layout.CONFIG)
    installed.edit(host_layout.CONFIG, "drain_seconds", "drain_second")
    assert machine.ask("systemctl", "restart", SIDECAR).returncode != 0
    # "failed" and not "activating": nothing is waited for.
    assert machine.show(SIDECAR, "ActiveState") == "failed"
    assert machine.show(SIDECAR, "ExecMainStatus") == "78"
    assert machine.show(SIDECAR, "NRestarts") == "0"
    installed.write(host_layout.CONFIG, config)
    machine.run("systemctl", "start", SIDECAR)
    installed.ready()


def test_a_sidecar_that_dies_is_started_again(installed: Host) -> None:
    pid = installed.ready()
    installed.machine.run("sh", "-c", f"kill -KILL {pid}")
    installed.machine.until(SIDECAR, "NRestarts", "1")
    assert installed.ready() != pid
    assert installed.status() == 200


def test_a_sidecar_that_hangs_is_started_again(installed: Host) -> None:
    machine = installed.machine
    drop_in = f"/etc/systemd/system/{SIDECAR}.d/test.conf"
    installed.write(drop_in, "[Service]\nWatchdogSec=4s\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SIDECAR)
    pid = installed.ready()
    heard = machine.show(SIDECAR, "WatchdogTimestampMonotonic")
    while machine.show(SIDECAR, "WatchdogTimestampMonotonic") == heard:
        assert machine.show(SIDECAR, "ActiveState") == "active"
    machine.run("sh", "-c", f"kill -STOP {pid}")
    machine.until(SIDECAR, "NRestarts", "1")
    assert installed.ready() != pid
    assert "Watchdog timeout" in machine.journal(SIDECAR)
    machine.run("rm", "-r", str(Path(drop_in).parent))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SIDECAR)


PID_FILE = """
[[after_rotation]]
name = "other"
pid_file = "/run/other.pid"
signal = "SIGHUP"
"""
SIGNALS = "[Service]\nCapabilityBoundingSet=CAP_KILL\nAmbientCapabilities=CAP_KILL\n"
OWNERS = "CAP_CHOWN CAP_FOWNER CAP_DAC_READ_SEARCH"


@pytest.mark.parametrize(
    ("old", "new", "drop_in", "key_of"),
    [
        pytest.param(
            "",
            "",
            f"{SIGNALS}PrivateUsers=no\nProtectProc=default\n",
            f"{LINUX.service_user} {LINUX.service_user}",
            id="a signal to another account's process",
        ),
        pytest.param(
            'group = ""',
            'group = "games"',
            "[Service]\nPrivateUsers=no\nSupplementaryGroups=games\nSystemCallFilter=@chown\n",
            f"{LINUX.service_user} games",
            id="files of a group",
        ),
        pytest.param(
            'owner = ""',
            'owner = "games"',
            f"[Service]\nPrivateUsers=no\nSystemCallFilter=@chown\n"
            f"CapabilityBoundingSet={OWNERS}\nAmbientCapabilities={OWNERS}\n",
            f"games {LINUX.service_user}",
            id="files of another account",
        ),
    ],
)
def test_what_the_unit_says_that_a_setting_needs_is_enough(
    installed: Host, old: str, new: str, drop_in: str, key_of: str
) -> None:
    machine = installed.machine
    config = machine.run("cat", host_layout.CONFIG)
    name = f"/etc/systemd/system/{SIDECAR}.d/test.conf"
    machine.run("systemd-run", "--quiet", "--unit=other", "--uid=nobody", "sleep", "infinity")
    machine.run("sh", "-c", "systemctl show --value -p MainPID other >/run/other.pid")
    machine.run("systemctl", "stop", SIDECAR)
    machine.run("sh", "-c", f"rm -rf {host_layout.CERT_FILES}/*")
    installed.write(host_layout.CONFIG, config.replace(old, new, 1) + PID_FILE)
    installed.write(name, drop_in)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", SIDECAR)
    key = f"{host_layout.CERT_FILES}/current/svid_key.pem"
    shown = ("stat", "--format=%U %G", key)
    while machine.ask(*shown).stdout != f"{key_of}\n":
        assert machine.show(SIDECAR, "ActiveState") == "active"
    if "CAP_KILL" in drop_in:
        machine.until("other", "ActiveState", "inactive", "failed")
    machine.ask("systemctl", "stop", "other")
    machine.run("sh", "-c", f"rm -rf {host_layout.CERT_FILES}/* {Path(name).parent}")
    installed.write(host_layout.CONFIG, config)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SIDECAR)
    installed.ready()


def test_no_connection_is_refused_while_a_socket_unit_holds_the_port(installed: Host) -> None:
    machine = installed.machine
    installed.edit(host_layout.CONFIG, f'"0.0.0.0:{PORT}"', '"systemd"')
    said = installed.setup("--upgrade")
    _well(said)
    assert f"+ open {SOCKET}" in said.stdout
    pid = installed.ready()
    assert installed.status() == 200
    restart = threading.Thread(target=machine.run, args=("systemctl", "restart", SIDECAR))
    restart.start()
    while restart.is_alive():
        machine.connect(PORT).close()  # raises when it is refused
    restart.join()
    assert installed.ready() != pid
    assert installed.status() == 200


def test_an_upgrade_restarts_and_a_rollback_goes_back(installed: Host) -> None:
    machine = installed.machine
    module = installed.checkout / "sidecar/__init__.py"
    text = module.read_text()
    module.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0.0"', text))
    pid = installed.ready()
    done = installed.setup("--upgrade")
    _well(done)
    assert f"+ restart {SIDECAR}" in done.stdout
    newer = installed.ready()
    assert newer != pid
    assert "/venv-99.0.0-" in machine.run("cat", f"/proc/{newer}/cmdline")
    assert installed.status() == 200
    _well(installed.setup("--rollback"))
    assert "/venv-99" not in machine.run("cat", f"/proc/{installed.ready()}/cmdline")
    assert installed.status() == 200
    module.write_text(text)


def test_what_an_interrupted_run_left_open_is_done_by_the_next_one(installed: Host) -> None:
    machine = installed.machine
    # As if it had ended between the link and the restart, and a unit were gone.
    pid = installed.ready()
    now = machine.run("readlink", host_layout.VENV).strip()
    before = machine.run("readlink", f"{host_layout.VENV}.previous").strip()
    machine.run("ln", "-sfn", before, host_layout.VENV)
    machine.run("systemctl", "restart", SIDECAR)
    machine.run("ln", "-sfn", now, host_layout.VENV)
    machine.run("rm", f"/etc/systemd/system/{SOCKET}")
    assert installed.ready() != pid
    done = installed.setup("--upgrade")
    _well(done)
    assert now in machine.run("cat", f"/proc/{installed.ready()}/cmdline")
    assert machine.show(SOCKET, "ActiveState") == "active"
    assert installed.status() == 200


def test_uninstall_ends_everything_and_leaves_what_it_says(installed: Host) -> None:
    machine = installed.machine
    done = installed.setup("--uninstall")
    assert done.returncode == 0, done.stdout + done.stderr
    for unit in (SIDECAR, SOCKET):
        assert machine.show(unit, "LoadState") == "not-found"
        assert machine.show(unit, "ActiveState") == "inactive"
    with pytest.raises(ConnectionRefusedError):
        machine.connect(PORT)
    assert machine.show("model-server", "ActiveState") == "active"
    said = set(re.findall(r"^  (?:file|folder) ([^,\n]+)", done.stdout, re.MULTILINE))
    left = _without_the_services_own(installed.paths() - installed.before)
    assert left - {str(Path(path).parent) for path in said} <= said
    assert host_layout.CONFIG in left


def test_purge_leaves_the_host_as_it_was(installed: Host) -> None:
    done = installed.setup("--uninstall", "--purge")
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed.paths() == installed.before
    for account in (LINUX.service_user, LINUX.agent_user):
        assert installed.machine.ask("getent", "passwd", account).returncode == 2
        assert installed.machine.ask("getent", "group", account).returncode == 2


def test_it_can_be_installed_again(installed: Host) -> None:
    if os.environ.get("SPIRE_BIN"):
        pytest.skip("a real agent would need a new join token")
    installed.install()
    installed.ready()
    assert installed.status() == 200
