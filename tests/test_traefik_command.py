"""`traefik` as a person calls it: files on stdout, words on stderr, exit codes; and `conf/`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.core.host_layout import AGENT_SOCKET
from sidecar.operations.check import check
from tests.ca import Authority
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.printed_yaml import read_yaml

CONF = Path(__file__).parent.parent / "conf"
OWN = "spiffe://ravenhelm.local/workload/model-server"
TRAEFIK = "spiffe://ravenhelm.local/workload/traefik"
# The platform that the files of conf/ are for.
RAVENHELM = ["--version", "3.7", "--server", "192.168.50.26", "--domain", "models.ravenhelm.dev"]
RAVENHELM += ["--spiffe-id", OWN, "--traefik-id", TRAEFIK]
RAVENHELM += ["--cert-resolver", "letsencrypt", "--middleware", "secure-headers"]
SHOWN = {
    "traefik-dynamic-spiffe.yml": ["--part", "dynamic", "--variant", "spiffe"],
    "traefik-dynamic-files.yml": ["--part", "dynamic", "--variant", "files"],
    "traefik-static-spiffe.yml": ["--part", "static", "--variant", "spiffe"],
    "traefik-static-files.yml": ["--part", "static", "--variant", "files"],
    "files-for-traefik.toml": ["--part", "helper"],
}


def call(*arguments: str, config: Path = CONF / "sidecar.toml") -> Result:
    return CliRunner().invoke(main, ["traefik", "--config", str(config), *arguments])


def call_really(
    *arguments: str, config: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call it in a process of its own, as it has to be when it asks for our ID."""
    command = [sys.executable, "-m", "sidecar", "traefik", "--config", str(config), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that does not say our SPIFFE ID, of an agent that is not there."""
    return write_config(tmp_path, tmp_path / "agent.sock", "127.0.0.1:11434", mode="http")


SHORT = ("--version", "3.7.9", "--server", "mac.lan:6701", "--domain", "models.example.org")


@pytest.mark.parametrize(("name", "part"), SHOWN.items(), ids=SHOWN)
def test_files_of_conf_are_what_the_command_prints(name: str, part: list[str]) -> None:
    done = call(*RAVENHELM, *part)
    assert done.exit_code == 0
    assert done.stderr == ""
    assert done.stdout_bytes == (CONF / name).read_bytes()


def test_helper_of_conf_passes_the_check() -> None:
    checked = check(CONF / "files-for-traefik.toml", {})
    assert checked.serving is None
    assert str(checked.endpoint) == f"unix:{AGENT_SOCKET}"


def test_real_command_prints_utf_8_whatever_the_terminal_is(config: Path) -> None:
    more = ("--spiffe-id", OWN, "--variant", "files", "--certificates", "/é")
    done = call_really(*SHORT, *more, config=config, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert '"/é/current/svid_bundle.pem"' in done.stdout


# What it takes from the configuration and from the version.


def test_port_is_the_listeners_unless_it_is_said(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "a.sock", "127.0.0.1:11434", mode="http")
    config.write_text(config.read_text().replace("127.0.0.1:0", "0.0.0.0:7000"))
    done = call(*SHORT, "--server", "gpu.lan", "--spiffe-id", OWN, config=config)
    service = read_yaml(done.stdout)["http"]["services"]["model-server"]
    urls = [one["url"] for one in service["loadBalancer"]["servers"]]
    assert urls == ["https://mac.lan:6701", "https://gpu.lan:7000"]


def test_port_that_nobody_knows_is_asked_for(config: Path) -> None:
    done = call(*SHORT, "--server", "gpu.lan", "--spiffe-id", OWN, config=config)
    assert done.exit_code == 2
    assert "expected HOST:PORT, found 'gpu.lan'" in done.stderr


@pytest.mark.parametrize(("version", "native"), [("3.0.0", True), ("2.11", False)])
def test_agent_is_asked_by_traefik_itself_where_it_can(
    config: Path, version: str, native: bool
) -> None:
    done = call(*SHORT, "--version", version, "--spiffe-id", OWN, config=config)
    (transport,) = read_yaml(done.stdout)["http"]["serversTransports"].values()
    assert ("spiffe" in transport) is native


def test_configured_id_is_the_one_that_traefik_is_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "a.sock", "127.0.0.1:11434", mode="http")
    text = config.read_text()
    config.write_text(text.replace("[listener]", f'spiffe_id = "{OWN}"\n[listener]', 1))
    done = call_really(*SHORT, config=config)
    assert done.returncode == 0
    assert f'- "{OWN}"' in done.stdout
    assert f"note: our SPIFFE ID is {OWN}, from the configuration" in done.stderr


def test_warnings_are_not_among_what_is_printed(config: Path) -> None:
    done = call(*SHORT, "--spiffe-id", OWN, "--traefik-id", f"{TRAEFIK}-2", config=config)
    assert done.exit_code == 0
    assert f"warning: policy.toml does not admit {TRAEFIK}-2" in done.stderr
    assert "warning:" not in done.stdout


def test_static_part_and_helper_need_neither_server_nor_id(config: Path) -> None:
    for part in ("static", "helper"):
        done = call("--version", "3.7.9", "--part", part, config=config)
        assert (done.exit_code, done.stderr) == (0, "")


# Who says what our ID is, when the configuration does not.


def test_running_daemon_is_asked_first(
    folder: Path, agent: AgentProcess, start_daemon: Callable[..., Daemon]
) -> None:
    more = f'[admin]\naddress = "unix:{folder}/admin.sock"\n'
    start_daemon(mode="http", more=more).wait_for("ready")
    # An agent tells whoever asks it who they are, and a person is mostly not the daemon.
    agent.kill()
    done = call_really(*SHORT, config=folder / "sidecar.toml")
    assert done.returncode == 0, done.stderr
    own = "spiffe://example.org/workload/model-server"
    assert f"note: our SPIFFE ID is {own}, from the running daemon" in done.stderr
    assert f'- "{own}"' in done.stdout


def test_agent_is_asked_when_no_daemon_runs(folder: Path, agent: AgentProcess) -> None:
    more = f'[admin]\naddress = "unix:{folder}/admin.sock"\n'
    config = write_config(folder, agent.path, "127.0.0.1:11434", mode="http", more=more)
    done = call_really(*SHORT, config=config)
    assert done.returncode == 0, done.stderr
    assert "workload/model-server, from the agent" in done.stderr


def test_identity_of_files_is_looked_at(folder: Path, authority: Authority) -> None:
    own = authority.sign(authority.leaf("/workload/from-files")).write(folder, "own")
    (folder / "bundle.pem").write_bytes(authority.ca.cert_pem.bytes())
    files = f'certificate = "{own}"\nprivate_key = "{own}"\nbundle = "bundle.pem"\n'
    config = write_config(folder, folder / "a.sock", "127.0.0.1:11434", mode="http")
    text = config.read_text().partition("[listener]")
    config.write_text(f"[identity_files]\n{files}[listener]{text[2]}")
    done = call_really(*SHORT, config=config)
    assert done.returncode == 0, done.stderr
    assert "workload/from-files, from the identity files" in done.stderr


def test_id_that_nobody_can_say_is_asked_for(config: Path) -> None:
    done = call_really(*SHORT, config=config)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: our SPIFFE ID is not known:" in done.stderr
    assert "--spiffe-id" in done.stderr


# What is wrong is refused, with what was expected.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version", "latest"], "expected a version such as 3.7.9, found 'latest'"),
        (["--version", "1.7"], "expected 2.11 or 3.x"),
        (["--version", "2.11", "--variant", "spiffe"], "expected --variant files"),
        (["--part", "helper", "--variant", "spiffe"], "--part helper is of --variant files"),
        (["--server", "https://a"], "expected HOST or HOST:PORT"),
        (["--domain", "a`b"], "expected a domain"),
        (["--spiffe-id", "spiffe://example.org"], "expected the ID of a workload, with a path"),
        (["--spiffe-id", "https://a"], "not a SPIFFE ID"),
        (["--traefik-id", "a"], "not a SPIFFE ID"),
        (["--variant", "files", "--spiffe-id", f"{OWN}-2"], "expected one --spiffe-id"),
        (["--name", "a@file"], "expected a name of letters"),
        (["--entry-point", ""], "expected a name of letters"),
        (["--cert-resolver", "a b"], "expected a name of letters"),
        (["--middleware", "a b"], "expected a name"),
        (["--listen", "443"], "expected :PORT"),
        (["--cert-resolver", ""], "expected a name of letters"),
        (["--agent-socket", ""], "expected unix:/absolute/path"),
        (["--agent-socket", "/a.sock"], "expected unix:/absolute/path"),
        (["--certificates", "certs"], "expected an absolute path"),
        (["--dynamic-file", "/a.toml"], "ends in .yml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_refused(arguments: list[str], says: str) -> None:
    done = call(*RAVENHELM, *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr


@pytest.mark.parametrize("option", ["--server", "--domain"])
def test_dynamic_part_says_what_it_needs(config: Path, option: str) -> None:
    at = SHORT.index(option)
    done = call(*SHORT[:at], *SHORT[at + 2 :], config=config)
    assert done.exit_code == 2
    assert f"the dynamic part needs {option}" in done.stderr


def test_helpers_configuration_has_nothing_behind_it_for_traefik() -> None:
    done = call(*RAVENHELM, config=CONF / "files-for-traefik.toml")
    assert done.exit_code == 2
    assert "has no [listener]" in done.stderr


def test_configuration_that_is_wrong_is_refused_as_everywhere(config: Path) -> None:
    config.write_text("[listener]\n")
    done = call(*SHORT, config=config)
    assert done.exit_code == 78
    assert done.stdout == ""
