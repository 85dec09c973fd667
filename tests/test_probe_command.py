"""`probe` as a person and a program call it: what is written where, and the exit status.

What is found is in tests/test_probe.py and tests/scenarios/test_probe.py; here a server with an
SVID stands for a sidecar.
"""

from __future__ import annotations

import json
import os
import pty
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from tests.ca import Authority
from tests.fake_agent import AgentProcess
from tests.probe_peers import OddServer, over_tls, read_head, server_context
from tests.redaction import SECRET_MARKER, assert_redacted

TRAEFIK = "spiffe://example.org/workload/traefik"
MODEL_SERVER = "spiffe://example.org/workload/model-server"
EVIL = b"\x1b[2J\x9b31m\x1b]0;owned\x07\xe2\x80\xae fine\tline\n"


def converse(tls: ssl.SSLSocket) -> None:
    """Answer by path: /evil with what a terminal acts on, /no with 404, all else with a body."""
    request = read_head(tls)
    path = request.split(b" ")[1].partition(b"?")[0]
    head, _, body = request.partition(b"\r\n\r\n")
    if path == b"/evil":
        body = EVIL
    elif path == b"/told":
        body = head
    elif not body:
        body = b"hi"
    # The one control character that a head may hold: CSI in one byte.
    status = b"404 Not\x9b31mFound" if path == b"/no" else b"200 OK"
    answer = b"HTTP/1.1 %b\r\nX-Request-Id: \x9b31m\r\nContent-Length: %d\r\n\r\n%b"
    tls.sendall(answer % (status, len(body), body))
    tls.unwrap()


@dataclass
class Done:
    """What came of one call."""

    returncode: int
    stdout: bytes
    stderr: bytes


@dataclass
class Host:
    """A host with a helper's configuration, and a server that it may ask."""

    config: Path
    server: OddServer
    agent: AgentProcess

    def url(self, path: str = "/health") -> str:
        return f"https://127.0.0.1:{self.server.port}{path}"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "sidecar", "probe", "--config", str(self.config), *arguments]

    def run(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Call the command in this process."""
        command = ["probe", "--config", str(self.config), *arguments]
        done = CliRunner().invoke(main, command, input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return Done(done.exit_code, done.stdout_bytes, done.stderr_bytes or b"")

    def run_process(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Call it as a process of its own."""
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, timeout=60, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def host(authority: Authority) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        folder = Path(name)
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid("/workload/traefik"), authority.bundle)
        agent.start()
        config = folder / "sidecar.toml"
        config.write_text(
            f'[workload_api]\nsocket = "unix:{agent.path}"\n[cert_files]\ndirectory = "certs"\n'
        )
        context = server_context(authority.sign(authority.leaf()), folder, authority)
        with OddServer(over_tls(context, converse)) as server:
            yield Host(config, server, agent)
        agent.stop()


def refused(host_config: Path, *arguments: str) -> Result:
    """Call with arguments that are refused before anything is done."""
    done = CliRunner().invoke(main, ["probe", "--config", str(host_config), *arguments])
    assert done.stdout == ""
    return done


def harmless(text: bytes) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text.decode())


# For a person.


def test_phases_and_verdict_are_told(host: Host) -> None:
    done = host.run_process(host.url(), "--expect", MODEL_SERVER)
    assert done.returncode == 0, done
    assert done.stderr == b""
    lines = done.stdout.decode().splitlines()
    names = [line.split()[0] for line in lines[1:] if line[:2] == "  " and line[2] != " "]
    assert names == ["identity", "connect", "handshake", "peer", "request", "first", "answer"]
    assert lines[0] == f"GET {host.url()}"
    assert lines[-1].startswith(f"ok: 200 from {MODEL_SERVER} in ")
    assert TRAEFIK in done.stdout.decode()
    assert harmless(done.stdout)
    assert_redacted(lines)


def test_failure_names_hop_and_remedy(host: Host) -> None:
    done = host.run(host.url(), "--expect", f"{MODEL_SERVER}-2")
    assert done.returncode == 1
    lines = done.stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("x peer")]
    assert lines[-2].startswith("FAILED at the peer's identity: ")
    assert f"expected {MODEL_SERVER}-2" in lines[-2]
    assert lines[-1].startswith("hint: ")


def test_several_ids_may_be_expected(host: Host) -> None:
    more = ("--expect", f"{MODEL_SERVER}-2", "--expect", "spiffe://example.org/**")
    assert host.run(host.url(), *more).returncode == 0


def test_status_from_400_is_a_failure(host: Host) -> None:
    done = host.run(host.url("/no"))
    assert done.returncode == 1
    assert b"404" in done.stdout
    assert harmless(done.stdout)


def test_handshake_alone(host: Host) -> None:
    done = host.run(f"tls://127.0.0.1:{host.server.port}")
    assert done.returncode == 0
    assert f"ok: handshake with {MODEL_SERVER}" in done.stdout.decode()


def test_agent_that_is_away_is_told(host: Host, tmp_path: Path) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text(
        '[workload_api]\nsocket = "unix:/nonexistent/a.sock"\n[cert_files]\ndirectory = "certs"\n'
    )
    done = Host(config, host.server, host.agent).run(host.url())
    assert done.returncode == 1
    assert b"FAILED at our own identity" in done.stdout
    assert b"unix:/nonexistent/a.sock" in done.stdout


# The body.


def test_body_goes_to_stdout_alone_as_it_came(host: Host) -> None:
    done = host.run(host.url("/evil"), "--body")
    assert done.returncode == 0
    assert done.stdout == EVIL
    assert b"ok: 200" in done.stderr
    assert harmless(done.stderr)


@pytest.mark.parametrize("colour", [True, False], ids=["in colour", "NO_COLOR"])
def test_terminal_gets_colour_and_nothing_else_that_it_acts_on(host: Host, colour: bool) -> None:
    master, slave = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {"TERM": "xterm"} | ({} if colour else {"NO_COLOR": "1"})
    with subprocess.Popen(
        host.command(host.url("/evil"), "--body"), stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        seen = read_all(master)
        assert process.wait(60) == 0
    assert b"\\x1b[2J" in seen  # of the body, made harmless
    assert b" fine\tline" in seen
    for evil in (b"\x1b[2J", b"\x1b]0", b"\x07", b"\x9b", "\u202e".encode()):
        assert evil not in seen
    assert (b"\x1b[32m" in seen) is colour
    assert (b"\x1b" in seen) is colour


def read_all(master: int) -> bytes:
    seen = b""
    try:
        while data := os.read(master, 65536):
            seen += data
    except OSError:  # Linux says so when the other side is closed
        pass
    finally:
        os.close(master)
    return seen


# The request.


def test_request_is_made_of_the_options(host: Host, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text(f"Authorization: Bearer {SECRET_MARKER}\n\nX-Two: 2\n")
    more = ("-H", "X-One: 1", "--header", f"@{tmp_path / 'headers'}", "--data", "{}", "--body")
    done = host.run(host.url("/told?key=K1"), *more)
    assert done.returncode == 0
    told = done.stdout.decode().split("\r\n")
    assert told[0] == "POST /told?key=K1 HTTP/1.1"
    sent = {f"Authorization: Bearer {SECRET_MARKER}", "X-One: 1", "X-Two: 2"}
    assert sent | {"Content-Length: 2", "Content-Type: application/json"} <= set(told)
    # What is sent is shown by nobody.
    assert_redacted(done.stderr.decode().splitlines())
    assert b"K1" not in done.stderr


def test_body_of_a_file_and_of_stdin(host: Host, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\x00from a file")
    done = host.run(host.url(), "--data-file", str(tmp_path / "body"), "--body")
    assert done.stdout == b"\x00from a file"
    more = ("--data-file", "-", "--method", "PUT", "--body")
    assert host.run_process(host.url(), *more, stdin=b"from stdin").stdout == b"from stdin"


# For a program.


def test_json_has_all_of_it(host: Host) -> None:
    done = host.run(host.url("/a?key=K1"), "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert (told["ok"], told["fault"]) == (True, None)
    assert told["identity"]["spiffe_id"] == TRAEFIK
    assert told["peer"]["spiffe_id"] == MODEL_SERVER
    assert told["handshake"]["version"] == "TLSv1.3"
    assert told["answer"]["status"] == 200
    assert told["phases"][0]["name"] == "identity"
    assert "K1" not in done.stdout.decode()
    assert_redacted(done.stdout.decode().splitlines())


def test_json_of_a_failure_has_hop_code_and_remedy(host: Host) -> None:
    done = host.run(host.url("/no"), "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert not told["ok"]
    assert (told["fault"]["hop"], told["fault"]["code"]) == ("backend", "status")
    assert told["fault"]["hint"]
    assert harmless(done.stdout.replace(b"\\u001b", b"?"))
    assert b"\\u001b" not in done.stdout  # not even escaped by JSON: it is read on terminals


# Again and again.


def test_repeated_probes_have_a_line_each_and_a_sum(host: Host) -> None:
    done = host.run(host.url(), "--repeat", "3", "--interval", "0")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[-1] == "3 of 3 went well"


def test_repeated_probes_fail_if_one_does_and_are_lines_of_json(host: Host) -> None:
    done = host.run(host.url("/no"), "--repeat", "2", "--interval", "0", "--json")
    assert done.returncode == 1
    assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == [False, False]


# Wrong usage, wrong configuration.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["http://host:1/"], "plain text", id="plain HTTP, and why not"),
        pytest.param(["host:6701"], "https://", id="no URL"),
        pytest.param([], "URL", id="nothing"),
        pytest.param(["https://h/", "--expect", "traefik"], "SPIFFE ID", id="no ID"),
        pytest.param(["https://h/", "--expect", "spiffe://*/x"], "literal", id="no pattern"),
        pytest.param(["https://h/", "-H", "no colon"], "Name: value", id="no header"),
        pytest.param(["https://h/", "-H", "@/nonexistent"], "/nonexistent", id="no file of them"),
        pytest.param(["https://h/", "--method", "get"], "GET", id="no method"),
        pytest.param(["https://h/", "--data", "x", "--data-file", "-"], "two bodies", id="bodies"),
        pytest.param(["https://h/", "--data-file", "/nonexistent"], "/nonexistent", id="no file"),
        pytest.param(["https://h/", "--json", "--body"], "stdout", id="two for stdout"),
        pytest.param(["https://h/", "--repeat", "2", "--body"], "--repeat", id="many bodies"),
        pytest.param(["https://h/", "--timeout", "0"], "--timeout", id="no time"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = refused(tmp_path / "never-read.toml", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([f"https://me:{SECRET_MARKER}@h/"], id="in a URL"),
        pytest.param([f"http://h/?key={SECRET_MARKER}"], id="in a query"),
        pytest.param(["https://h/", "-H", f"Authorization {SECRET_MARKER}"], id="in a header"),
    ],
)
def test_wrong_usage_shows_no_secret(tmp_path: Path, arguments: list[str]) -> None:
    done = refused(tmp_path / "never-read.toml", *arguments)
    assert done.exit_code == 2
    assert_redacted(done.stderr.splitlines())


def test_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    config = tmp_path / "sidecar.toml"
    assert refused(config, "https://h/").exit_code == 78
    config.write_text("[workload_api]\nsoket = 1\n")
    done = refused(config, "https://h/")
    assert done.exit_code == 78
    assert "soket" in done.stderr
