"""The adapter for the program: real processes, no shell, and a bound on how long they take."""

from __future__ import annotations

import base64
import json
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.adapters import spire_server
from sidecar.adapters.spire_server import SpireServer
from sidecar.core.errors import RegistrationError
from sidecar.core.registration.answers import read_authorities
from tests.ca import Authority
from tests.fake_docker import docker
from tests.spire_stand_in import FakeSpireServer

BUNDLE = ("bundle", "show", "-output", "json")


@pytest.fixture
def fake(tmp_path: Path, authority: Authority) -> FakeSpireServer:
    der = authority.certificate.public_bytes(Encoding.DER)
    return FakeSpireServer(tmp_path / "api.sock", "example.org", base64.b64encode(der).decode())


def server(fake: FakeSpireServer, timeout: float = 30) -> SpireServer:
    return SpireServer(tuple(shlex.split(fake.prefix)), str(fake.path), timeout)


def program(tmp_path: Path, text: str) -> SpireServer:
    """A program of ours in the place of the real one."""
    file = tmp_path / "program.py"
    file.write_text(text)
    return SpireServer((sys.executable, "-I", str(file)))


def test_answer_is_what_the_program_prints(fake: FakeSpireServer) -> None:
    assert read_authorities(server(fake).look(BUNDLE)).trust_domain == "example.org"


def test_what_was_run_to_look_is_kept(fake: FakeSpireServer) -> None:
    spire = server(fake)
    spire.look(BUNDLE)
    spire.change(("token", "generate", "-output", "json"))
    assert spire.looked == [BUNDLE]


def test_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    spire = program(tmp_path, "import sys, json; print(json.dumps(sys.argv[1:]))")
    words = ["entry", "create", "-selector", "docker:label:a b; $(touch x) `y` *", ""]
    assert json.loads(spire.change(words)) == words


def test_socket_is_named_behind_the_subcommand() -> None:
    spire = SpireServer(("docker", "exec", "my spire", "spire-server"), "/a b/api.sock")
    assert spire.arguments(("bundle", "show")) == [
        *("docker", "exec", "my spire", "spire-server"),
        *("bundle", "show", "-socketPath", "/a b/api.sock"),
    ]
    line = spire.shown(("entry", "create", "-selector", "docker:label:a $b"))
    assert shlex.split(line) == spire.arguments(
        ("entry", "create", "-selector", "docker:label:a $b")
    )


def test_program_does_not_wait_for_our_input(tmp_path: Path) -> None:
    assert program(tmp_path, "import sys; print(sys.stdin.read() == '')").look(()) == b"True\n"


def test_program_that_takes_too_long_is_ended(fake: FakeSpireServer, tmp_path: Path) -> None:
    fake.fault("bundle show", "hang")
    with pytest.raises(RegistrationError, match=r"bundle show: no answer within 0\.5 s"):
        server(fake, 0.5).look(BUNDLE)
    hanging = program(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    hanging.timeout_seconds = 0.5
    with pytest.raises(RegistrationError) as raised:
        hanging.change(())
    assert "not known" in raised.value.message
    # The exception holds nothing of what was printed before.
    assert raised.value.__suppress_context__


def test_failure_is_translated(fake: FakeSpireServer) -> None:
    with pytest.raises(RegistrationError, match="not running: there is no socket"):
        SpireServer(server(fake).prefix, "/nonexistent/api.sock").look(BUNDLE)


def test_socket_that_nobody_listens_at(fake: FakeSpireServer, tmp_path: Path) -> None:
    (tmp_path / "left-over").touch()
    with pytest.raises(RegistrationError, match="nobody answers at its socket"):
        SpireServer(server(fake).prefix, str(tmp_path / "left-over")).look(BUNDLE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_socket_that_we_may_not_use(fake: FakeSpireServer) -> None:
    fake.path.chmod(0)
    with pytest.raises(RegistrationError, match="may not use the socket"):
        server(fake).look(BUNDLE)


def test_missing_program_names_the_option() -> None:
    with pytest.raises(RegistrationError, match="no program 'no-such-spire-server'") as raised:
        SpireServer(("no-such-spire-server",)).look(BUNDLE)
    assert "--spire-server" in (raised.value.hint or "")


def test_file_that_is_no_program(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("text")
    file.chmod(stat.S_IRUSR)
    with pytest.raises(RegistrationError, match=r"text': Permission denied"):
        SpireServer((str(file),)).look(BUNDLE)


def test_through_docker(
    fake: FakeSpireServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path))
    prefix = docker(tmp_path, "spire", socket=fake.path)
    answer = SpireServer(tuple(shlex.split(prefix))).look(BUNDLE)
    assert read_authorities(answer).trust_domain == "example.org"

    docker(tmp_path, "stopped", running=False)
    for words, meaning in (
        (prefix.replace(" spire ", " other "), "no such container"),
        (prefix.replace(" spire ", " stopped "), "container of the SPIRE server is not running"),
        (prefix.replace("exec ", "exec -it "), "no terminal"),
        (prefix.replace("/opt/spire/bin/spire-server", "/bin/sh"), "does not have that program"),
    ):
        with pytest.raises(RegistrationError, match=meaning):
            SpireServer(tuple(shlex.split(words))).look(BUNDLE)


def test_answer_without_end_does_not_take_our_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spire_server, "_STDOUT_LIMIT", 1000)
    assert program(tmp_path, "print('x' * 999)").look(BUNDLE) == b"x" * 999 + b"\n"
    with pytest.raises(RegistrationError, match="an answer of over"):
        program(tmp_path, "print('x' * 10_000_000)").look(BUNDLE)


def test_child_that_keeps_the_pipe_does_not_keep_us(tmp_path: Path) -> None:
    child = "[sys.executable, '-c', 'import time; time.sleep(30)']"
    spire = program(tmp_path, f"import subprocess, sys; subprocess.Popen({child})")
    spire.timeout_seconds = 0.5
    with pytest.raises(RegistrationError, match="no answer within"):
        spire.look(BUNDLE)
