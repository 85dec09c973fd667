"""`convert` as a person calls it, and what comes of it: a daemon that writes the same files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from sidecar.core.conversion import Conversion
from sidecar.core.svid import serial_text
from sidecar.core.toml_tables import ProblemsError
from sidecar.operations.convert import convert
from tests.ca import Authority
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess

HELPER = """
# What a database server was given.
agent_address = "{socket}"
cert_dir = "certs"
svid_file_name = "server-cert.pem"
svid_key_file_name = "server-key.pem"
svid_bundle_file_name = "ca.pem"
cert_file_mode = 0444 // octal
key_file_mode = 0640
add_intermediates_to_bundle = true
"""
MORE = r"""
cmd = "/bin/sh"
cmd_args = "-c \"echo é \"\"x\"\"\""
jwt_svids = [{ jwt_audience = "a", jwt_svid_file_name = "a.jwt" }]
include_federated_domains = true
hint = "é"
health_checks { listener_enabled = true }
"""


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end."""
    inherited = {k: v for k, v in os.environ.items() if k != "SPIFFE_ENDPOINT_SOCKET"}
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**inherited, **environment},
        check=False,
    )


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """A configuration of spiffe-helper."""
    path = tmp_path / "helper.conf"
    path.write_text(HELPER.format(socket="/run/agent.sock"))
    return path


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Daemons that are ended, whatever becomes of the test."""
    running: list[Daemon] = []
    yield running
    for daemon in running:
        daemon.stop()


# --- the command ----------------------------------------------------------------------------


def test_result_is_on_stdout_and_what_differs_on_stderr(helper: Path) -> None:
    done = call("convert", helper)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "# Converted from spiffe-helper's 'helper.conf'.",
        "# Without [listener] this keeps files and serves nobody.",
        "# Relative paths are relative to this file.",
        "",
        "[workload_api]",
        'socket = "unix:/run/agent.sock"',
        "",
        "[cert_files]",
        "# Made if it is missing. It has to belong to the sidecar's account or to root, and nobody",
        "# else may write to it. The files keep their paths, as links to where they are written.",
        'directory = "certs"',
        'certificate = "server-cert.pem"',
        'private_key = "server-key.pem"',
        'bundle = "ca.pem"',
        'certificate_mode = "0444"',
        'key_mode = "0640"',
        "intermediates_in_bundle = true",
    ]
    assert done.stderr.splitlines() == [
        "note: cert_dir: 'certs' was relative to the folder that spiffe-helper was started in; "
        "here it is relative to the configuration file"
    ]


def test_what_is_printed_passes_check(helper: Path, tmp_path: Path) -> None:
    with helper.open("a", encoding="utf-8") as file:
        file.write(MORE)
    # TOML is UTF-8, whatever the terminal of the moment speaks.
    done = call("convert", helper, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0
    config = tmp_path / "sidecar.toml"
    config.write_text(done.stdout, encoding="utf-8")
    checked = call("check", "--config", config)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "  then      cmd: command /bin/sh" in checked.stdout.splitlines()
    assert """command = ["/bin/sh", "-c", "echo é \\"x\\""]""" in done.stdout.splitlines()
    keys = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert keys == ["cert_dir", "include_federated_domains", "cmd", "health_checks"]


def test_variable_of_the_moment_is_looked_at(helper: Path) -> None:
    helper.write_text(HELPER.format(socket=""))
    done = call("convert", helper, SPIFFE_ENDPOINT_SOCKET="/run/other.sock")
    assert 'socket = "unix:/run/other.sock"' in done.stdout.splitlines()


def test_key_that_is_there_twice_is_told(helper: Path) -> None:
    with helper.open("a") as file:
        file.write('svid_bundle_file_name = "bundle.pem"\n')
    done = call("convert", helper)
    assert 'bundle = "bundle.pem"' in done.stdout.splitlines()
    assert done.stderr.startswith("note: svid_bundle_file_name: there more than once")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no file"),
        pytest.param(["a", "b"], id="a file too many"),
        pytest.param(["--config", "a"], id="an option"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    done = call("convert", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")


def refused(path: Path) -> list[str]:
    """The lines of a refusal; nothing of it is on stdout, and no traceback is in it."""
    done = call("convert", path)
    assert (done.returncode, done.stdout) == (78, "")
    lines = done.stderr.splitlines()
    assert all(line.startswith(("error: ", "    hint: ")) for line in lines), lines
    return lines


def test_all_problems_are_told_at_once_and_nothing_is_printed(helper: Path) -> None:
    text = helper.read_text().replace("add_intermediates_to_bundle", "addIntermediatesToBundle")
    helper.write_text(text.replace("/run/agent.sock", "spire-agent\\\\public\\\\api"))
    first, hint, second = refused(helper)
    assert first.startswith("error: helper.conf: found the unknown key 'addIntermediatesToBundle'")
    assert hint == "    hint: did you mean 'add_intermediates_to_bundle'?"
    assert second == (
        "error: helper.conf: agent_address: found 'spire-agent\\\\public\\\\api', "
        "expected a Unix socket: this one is a named pipe of Windows"
    )


def test_syntax_error_is_one_line_with_its_place(helper: Path) -> None:
    helper.write_text('svid_file_name = "a"\ncert_dir = "b\n')
    (line,) = refused(helper)
    assert line.startswith("error: helper.conf: line 2, column 12: found a string that does not")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (line,) = refused(tmp_path / "no.conf")
    assert line == f"error: cannot read {tmp_path / 'no.conf'}: No such file or directory"
    (line,) = refused(tmp_path)
    assert line == f"error: cannot read {tmp_path}: Is a directory"
    (tmp_path / "latin1.conf").write_bytes(b'cmd = "\xe9"\n')
    (line,) = refused(tmp_path / "latin1.conf")
    assert "it is not UTF-8" in line


# --- what comes of it -----------------------------------------------------------------------


def convert_and_run(folder: Path, helper: str) -> Daemon:
    """Convert, and run the daemon with the result in another folder than the old one's."""
    path = folder / "helper.conf"
    path.write_text(helper)
    done = call("convert", path)
    assert done.returncode == 0, done.stderr
    config = folder / "sidecar.toml"
    config.write_text(done.stdout + '[log]\nformat = "json"\n')
    return Daemon(config)


def certificates(path: Path) -> list[str]:
    return [serial_text(one) for one in x509.load_pem_x509_certificates(path.read_bytes())]


def test_daemon_writes_the_same_files_with_the_result(
    folder: Path, agent: AgentProcess, authority: Authority, daemons: list[Daemon]
) -> None:
    middle = authority.intermediate()
    issued = middle.sign(middle.leaf(), middle)
    svid = middle.svid()
    agent.send(type(svid)(svid.spiffe_id, issued.chain, issued.key), authority.bundle)
    daemons.append(convert_and_run(folder, HELPER.format(socket=agent.path)))
    daemons[0].wait_for("starting", mode="helper")
    daemons[0].wait_for("certificate files published")
    certs = folder / "certs"
    leaf, intermediate = map(serial_text, issued.chain)
    assert certificates(certs / "server-cert.pem") == [leaf]
    assert certificates(certs / "ca.pem") == [serial_text(authority.certificate), intermediate]
    names = ("server-cert.pem", "server-key.pem", "ca.pem")
    modes = {name: stat.S_IMODE((certs / name).stat().st_mode) for name in names}
    assert modes == {"server-cert.pem": 0o444, "server-key.pem": 0o640, "ca.pem": 0o444}
    newer = authority.svid()
    agent.send(newer, authority.bundle)
    daemons[0].wait_for("certificate files published", serial=newer.serial)
    assert certificates(certs / "server-cert.pem") == [newer.serial]
    assert daemons[0].stop() == 0


SERVER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("running", flush=True)
print(signal.Signals(signal.sigwait({signal.SIGUSR1})).name, flush=True)
"""


def test_daemon_does_after_a_rotation_what_the_old_one_did(
    folder: Path, agent: AgentProcess, authority: Authority, daemons: list[Daemon]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "running\n"
            (folder / "server.pid").write_text(f"{server.pid}\n")
            helper = HELPER.format(socket=agent.path) + (
                'cmd = "/bin/sh"\n'
                'cmd_args = "-c \\"cp certs/server-cert.pem \'seen by it.pem\'\\""\n'
                'pid_file_name = "server.pid"\n'
                'renew_signal = "SIGUSR1"\n'
            )
            daemons.append(convert_and_run(folder, helper))
            published = daemons[0].wait_for("certificate files published")
            assert server.communicate(timeout=60)[0] == "SIGUSR1\n"
        finally:
            server.kill()
    daemons[0].wait_for("after rotation done", hook="cmd")
    assert certificates(folder / "seen by it.pem") == [published["serial"]]
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemons[0].wait_for("certificate files published", serial=svid.serial)
    daemons[0].wait_for("after rotation done", hook="cmd")
    assert certificates(folder / "seen by it.pem") == [svid.serial]


# --- spiffe-helper's own configurations -----------------------------------------------------


def test_configurations_of_spiffe_helper_itself_are_converted() -> None:
    checkout = os.environ.get("SPIFFE_HELPER_REPO")
    if not checkout:
        pytest.skip("SPIFFE_HELPER_REPO names no checkout of spiffe-helper")
    results: dict[str, Conversion | str] = {}
    for path in sorted(Path(checkout).rglob("helper*.conf")):
        try:
            results[str(path.relative_to(checkout))] = convert(path, {})
        except ProblemsError as exc:
            results[str(path.relative_to(checkout))] = exc.message
    refusals = {name: text for name, text in results.items() if isinstance(text, str)}
    assert len(results) > len(refusals) + 5
    # A key that spiffe-helper does not know any more either, and Windows.
    reasons = ("the unknown key 'timeout'", "named pipe of Windows")
    assert not [text for text in refusals.values() if not any(one in text for one in reasons)]
