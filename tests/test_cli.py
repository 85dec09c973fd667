"""`check` and `run` as a person or a unit calls them: exit codes, and messages on stderr."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sidecar import __version__
from sidecar.cli import main

CONFIG = """
[listener]
address = "127.0.0.1:0"
[backend]
address = "127.0.0.1:11434"
mode = "stream"
[policy]
file = "policy.toml"
"""
HELPER = '[cert_files]\ndirectory = "certs"\n'
FILES = """
[identity_files]
certificate = "tls.crt"
private_key = "tls.key"
bundle = "ca.crt"
"""
HOOKS = """
[[jwt_svid]]
file = "vault.jwt"
audience = "vault"
extra_audiences = ["consul", "nomad"]
[[after_rotation]]
name = "nginx"
pid_file = "/run/nginx.pid"
signal = "SIGUSR1"
[[after_rotation]]
name = "reload"
on = ["x509", "jwt"]
command = ["systemctl", "reload", "traefik"]
[[after_rotation]]
name = "traefik"
touch = "dynamic.toml"
"""
POLICY = '[[allow]]\nname = "traefik"\npeers = ["spiffe://example.org/traefik"]\n'
COMMANDS = ["check", "run"]
# The log goes to stderr as well, and tells of what was done before the end.
QUIET = ("--log-level", "error")


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end."""
    inherited = {k: v for k, v in os.environ.items() if k != "SPIFFE_ENDPOINT_SOCKET"}
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**inherited, "PYTHONUTF8": "1", **environment},
        check=False,
    )


def errors(done: subprocess.CompletedProcess[str], code: int = 78) -> list[str]:
    """The lines of a refusal; nothing of it is on stdout, and no traceback is in it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines, "refused without a word"
    assert all(line.startswith(("error: ", "    hint: ", "hint: ")) for line in lines), lines
    return lines


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """A good configuration of a helper, in a folder of its own: it needs no policy."""
    path = tmp_path / "helper" / "sidecar.toml"
    path.parent.mkdir()
    path.write_text(HELPER)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A good configuration with a good policy."""
    (tmp_path / "policy.toml").write_text(POLICY)
    path = tmp_path / "sidecar.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


# --- fine -----------------------------------------------------------------------------------


def test_check_of_good_files_tells_what_would_run(config: Path) -> None:
    config.write_text(CONFIG + '[cert_files]\ndirectory = "certs"\n')
    done = call("check", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{config}: fine",
        "  identity  the agent's first SVID, from unix:/opt/spire/sockets/agent.sock",
        "  listener  127.0.0.1:0, TLS 1.3 or newer",
        "  backend   127.0.0.1:11434, mode stream",
        "  policy    1 allow, 0 deny",
        f"  files     {config.parent / 'certs'}",
    ]


def test_check_of_a_helper_tells_what_would_be_kept(helper: Path) -> None:
    helper.write_text(HELPER + HOOKS + '[workload_api]\nspiffe_id = "spiffe://e.org/a"\n')
    done = call("check", "--config", helper)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{helper}: fine",
        "  identity  spiffe://e.org/a, from unix:/opt/spire/sockets/agent.sock",
        f"  files     {helper.parent / 'certs'}",
        "  JWT-SVID  vault.jwt, for vault, consul, nomad",
        "  then      nginx: SIGUSR1 to the process in /run/nginx.pid",
        "  then      reload: command systemctl",
        "  then      traefik: touch of dynamic.toml",
    ]


@pytest.mark.parametrize("environment", ["", "unix:/env", "nonsense"])
def test_identity_of_files_asks_no_agent(config: Path, helper: Path, environment: str) -> None:
    for path in (config, helper):
        path.write_text(path.read_text() + FILES)
        done = call("check", "--config", path, SPIFFE_ENDPOINT_SOCKET=environment)
        told = [line.partition("/")[0] for line in done.stderr.splitlines()]
        assert (done.returncode, told) == (0, ["warning: [identity_files]: "] * 3)
        assert done.stdout.splitlines()[1] == "  identity  tls.crt, whatever ID it has"


@pytest.mark.parametrize(
    ("environment", "configured", "endpoint"),
    [
        pytest.param("unix:///run/a.sock", "", "unix:/run/a.sock", id="from the environment"),
        pytest.param("tcp://127.0.0.1:8081", "", "tcp://127.0.0.1:8081", id="tcp"),
        pytest.param("unix:/env", "unix:/conf", "unix:/conf", id="the configuration wins"),
        pytest.param("", "", "unix:/opt/spire/sockets/agent.sock", id="empty is not set"),
    ],
)
def test_endpoint_is_found_in_configuration_environment_default(
    config: Path, environment: str, configured: str, endpoint: str
) -> None:
    config.write_text(CONFIG + f'[workload_api]\nsocket = "{configured}"\n')
    done = call("check", "--config", config, SPIFFE_ENDPOINT_SOCKET=environment)
    assert f"from {endpoint}\n" in done.stdout


def test_check_warns_of_what_is_likely_a_slip_and_is_fine(config: Path) -> None:
    config.write_text(CONFIG.replace('mode = "stream"', 'mode = "http"'))
    wide = '[[allow]]\nname = "all"\npeers = ["spiffe://example.org/**"]\nendpoints = ["*"]\n'
    (config.parent / "policy.toml").write_text(POLICY + wide)
    done = call("check", "--config", config)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"{config}: fine"
    assert done.stderr.splitlines() == [
        "warning: policy.toml: rule 'traefik': it has no endpoints: "
        "its peers get an answer to GET /health and nothing else",
        '    hint: write endpoints = ["preset:ollama"] or other ones; "*" allows all',
        "warning: policy.toml: rule 'all': spiffe://example.org/** admits every workload "
        "of the trust domain, those still to come as well",
        "    hint: name them, or begin below a path: spiffe://example.org/workload/**",
        "warning: policy.toml: rule 'all': '*' allows every endpoint, "
        "those that delete models and those still to come",
        "    hint: a preset and the few endpoints beside it are safer",
    ]


def test_check_of_the_files_that_are_shipped_warns_of_nothing() -> None:
    done = call("check", "--config", Path(__file__).parent.parent / "conf" / "sidecar.toml")
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_told() -> None:
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"spiffe-sidecar, version {__version__}\n")


# --- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no command"),
        pytest.param(["serve"], id="unknown command"),
        pytest.param(["check"], id="check without a file"),
        pytest.param(["run"], id="run without a file"),
        pytest.param(["run", "--config"], id="option without a value"),
        pytest.param(["check", "--config", "x", "y"], id="an argument too many"),
        pytest.param(["explain", "--peer", "spiffe://e.org/a"], id="explain without a file"),
        pytest.param(["explain", "--config", "x"], id="explain without a peer"),
        pytest.param(["run", "--config", "x", "--log-level", "loud"], id="unknown level"),
        pytest.param(["run", "--config", "x", "--listen", "y"], id="flags do not repeat keys"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(("Usage: spiffe-sidecar", "Error: "))


# --- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_all_problems_of_both_files_are_told_at_once(config: Path, command: str) -> None:
    config.write_text(
        CONFIG.replace("127.0.0.1:11434", "10.0.0.1:11434")
        + "[timeouts]\nhandshake = nan\nhandshak = 1\n"
    )
    (config.parent / "policy.toml").write_text(POLICY.replace("example.org", "*"))
    assert errors(call(command, "--config", config)) == [
        "error: sidecar.toml: [timeouts]: found the unknown key 'handshak', "
        "expected one of handshake, request_head, request_body, backend_connect, first_byte, "
        "between_bytes, idle, health",
        "    hint: did you mean 'handshake'?",
        "error: sidecar.toml: [timeouts] handshake: found nan, "
        "expected a number, above 0 and at most 86400",
        "error: sidecar.toml: [backend] address: found '10.0.0.1:11434', "
        "expected a loopback address or unix:/path",
        "    hint: bytes leave this host in plain text otherwise; "
        "unsafe_remote_backend = true allows it",
        "error: policy.toml: [[allow]] #1 peers: found 'spiffe://*/traefik', "
        "expected a SPIFFE ID: the trust domain of a pattern is literal",
    ]


@pytest.mark.parametrize("command", [*COMMANDS, "fetch"])
def test_all_problems_of_a_helper_are_told_at_once(helper: Path, command: str) -> None:
    helper.write_text(
        HELPER + 'certificate = "svid_key.pem"\nkey_mode = "0644"\n[policy]\nfile = "p"\n'
        '[[after_rotation]]\nname = "a"\n'
    )
    lines = errors(call(command, "--config", helper))
    assert [line.split(": found ")[0] for line in lines] == [
        "error: sidecar.toml: [cert_files] key_mode",
        "error: sidecar.toml: [policy]",
        "error: sidecar.toml: [cert_files] private_key",
        "error: sidecar.toml: [[after_rotation]] #1",
        "error: sidecar.toml: [policy] file",
    ]


def test_problem_with_a_hint_of_the_tables_about_files_is_told_with_it(helper: Path) -> None:
    helper.write_text('[jwt_svid]\nfile = "a"\n' + HELPER)
    (message, hint) = errors(call("check", "--config", helper))
    assert "[jwt_svid]" in message
    assert hint == "    hint: write [[jwt_svid]] with two brackets"


@pytest.mark.parametrize("command", COMMANDS)
def test_empty_policy_does_not_run(config: Path, command: str) -> None:
    (config.parent / "policy.toml").write_text("")
    message, hint = errors(call(command, "--config", config))
    assert "no [[allow]] rule" in message
    assert "[[allow]]" in hint


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_configuration_is_one_line(tmp_path: Path, command: str) -> None:
    missing = tmp_path / "no.toml"
    (line,) = errors(call(command, "--config", missing))
    assert line == f"error: cannot read {missing}: No such file or directory"


def test_missing_policy_is_one_line_that_names_key_and_file(config: Path) -> None:
    policy = config.parent / "policy.toml"
    policy.unlink()
    (line,) = errors(call("check", "--config", config))
    assert line.startswith("error: sidecar.toml: [policy] file: ")
    assert str(policy) in line
    assert "No such file" in line


def test_policy_that_is_missing_is_told_beside_other_problems(config: Path) -> None:
    (config.parent / "policy.toml").unlink()
    config.write_text(CONFIG.replace("stream", "tcp"))
    mode, policy = errors(call("check", "--config", config))
    assert "[backend] mode" in mode
    assert "[policy] file" in policy


@pytest.mark.parametrize("name", ["sidecar.toml", "policy.toml"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"\xff", "not UTF-8", id="bad UTF-8"),
        pytest.param(b"a = 1\nb = [1, 2\nc", "line 3, column 1", id="syntax error"),
    ],
)
def test_file_that_cannot_be_read_is_one_clear_line(
    config: Path, name: str, content: bytes, told: str
) -> None:
    (config.parent / name).write_bytes(content)
    (line,) = errors(call("check", "--config", config))
    assert name in line
    assert told in line


def test_directory_for_a_file_is_one_line(config: Path) -> None:
    (line,) = errors(call("check", "--config", config.parent))
    assert "Is a directory" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", ["sidecar.toml", "policy.toml"])
def test_file_without_permission_is_one_line(config: Path, name: str) -> None:
    (config.parent / name).chmod(0)
    (line,) = errors(call("check", "--config", config))
    assert name in line
    assert "Permission denied" in line


@pytest.mark.parametrize(
    ("value", "key"),
    [
        pytest.param('""', "[policy] file", id="empty"),
        pytest.param("3", "[policy] file", id="number"),
    ],
)
def test_name_of_the_policy_that_is_none_is_told(config: Path, value: str, key: str) -> None:
    config.write_text(CONFIG.replace('"policy.toml"', value))
    (line,) = errors(call("check", "--config", config))
    assert key in line


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("/run/agent.sock", id="path without a scheme"),
        pytest.param("unix:agent.sock", id="relative path"),
        pytest.param("tcp://localhost:8081", id="name"),
    ],
)
def test_bad_endpoint_of_the_environment_is_refused_by_name(config: Path, value: str) -> None:
    (line,) = errors(call("check", "--config", config, SPIFFE_ENDPOINT_SOCKET=value))
    assert line.startswith(f"error: $SPIFFE_ENDPOINT_SOCKET: found {value!r}, expected ")


def test_environment_is_told_with_the_problems_of_the_files(config: Path) -> None:
    config.write_text(CONFIG.replace("stream", "tcp"))
    lines = errors(call("check", "--config", config, SPIFFE_ENDPOINT_SOCKET="x"))
    assert len(lines) == 2


# --- run time -------------------------------------------------------------------------------


def test_port_in_use_is_exit_1_with_one_line_and_a_hint(config: Path, taken_port: int) -> None:
    config.write_text(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{taken_port}"))
    message, hint = errors(call("run", *QUIET, "--config", config), code=1)
    assert message == f"error: cannot listen on 127.0.0.1:{taken_port}: Address already in use"
    assert hint.startswith("hint: another process has the port")


def test_address_of_no_interface_is_exit_1_with_one_line_and_a_hint(config: Path) -> None:
    config.write_text(CONFIG.replace("127.0.0.1:0", "192.0.2.1:6701"))  # RFC 5737: nobody's
    message, hint = errors(call("run", *QUIET, "--config", config), code=1)
    assert message.startswith("error: cannot listen on 192.0.2.1:6701: ")
    assert hint == "hint: no interface of this host has the address"


def test_each_command_is_found_under_its_own_name() -> None:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    assert commands
    assert {name: command.name for name, command in commands.items() if command} == {
        name: name for name in commands
    }


def test_check_does_not_load_what_only_a_daemon_needs() -> None:
    loaded = "import sys; from sidecar.cli import main; import sidecar.cli.check; "
    heavy = "print([name for name in ('grpc', 'trio', 'OpenSSL', 'rich') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", loaded + heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
