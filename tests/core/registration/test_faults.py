"""Every known trouble with `spire-server`, as the programs tell it, and what we make of it."""

from __future__ import annotations

import pytest

from sidecar.core.registration.faults import failure, not_started, timed_out

COMMAND = ("entry", "create", "-selector", "unix:uid:1")
TOKEN = "998a0493-c4d2-48e7-a0ad-0c3178b51d4c"
DIAL = (
    "Error: rpc error: code = Unavailable desc = connection error: desc = "
    '"transport: Error while dialing: dial unix ///tmp/spire-server/private/api.sock: '
)


@pytest.mark.parametrize(
    ("stderr", "meaning", "hint"),
    [
        pytest.param(
            f'{DIAL}connect: no such file or directory"',
            "not running: there is no socket",
            "--socket-path",
            id="no socket",
        ),
        pytest.param(
            f'{DIAL}connect: connection refused"',
            "nobody answers at its socket",
            "--socket-path",
            id="nobody at the socket",
        ),
        pytest.param(
            f'{DIAL}connect: permission denied"', "may not use the socket", "sudo", id="rights"
        ),
        pytest.param(
            "Error response from daemon: No such container: spire",
            "no such container",
            "docker ps",
            id="docker, no container",
        ),
        pytest.param(
            'Error: no container with name or ID "spire" found: no such container',
            "no such container",
            "podman ps",
            id="podman, no container",
        ),
        pytest.param(
            "Error response from daemon: container 4f4f is not running",
            "container of the SPIRE server is not running",
            "docker logs",
            id="docker, stopped",
        ),
        pytest.param(
            "Error response from daemon: Container 4f4f is not running",
            "container of the SPIRE server is not running",
            "docker logs",
            id="older docker, stopped",
        ),
        pytest.param(
            "Error: can only create exec sessions on running containers: container state improper",
            "container of the SPIRE server is not running",
            "start it",
            id="podman, stopped",
        ),
        pytest.param(
            'service "spire-server" is not running',
            "container of the SPIRE server is not running",
            "start it",
            id="docker compose, stopped",
        ),
        pytest.param(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
            "Is the docker daemon running?",
            "Docker is not running",
            "start it",
            id="docker is not running",
        ),
        pytest.param(
            "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path "
            "is correct and if the daemon is running: dial unix /var/run/docker.sock: connect: no "
            "such file or directory",
            "Docker is not running",
            "start it",
            id="newer docker is not running",
        ),
        pytest.param(
            "permission denied while trying to connect to the Docker daemon socket at "
            "unix:///var/run/docker.sock: dial unix /var/run/docker.sock: connect: permission "
            "denied",
            "may not use Docker",
            "group docker",
            id="rights to docker",
        ),
        pytest.param("the input device is not a TTY", "no terminal", "-it", id="docker exec -t"),
        pytest.param(
            "OCI runtime exec failed: exec failed: unable to start container process: exec: "
            '"spire-server": executable file not found in $PATH: unknown',
            "does not have that program",
            "/opt/spire/bin/spire-server",
            id="program, by name",
        ),
        pytest.param(
            "OCI runtime exec failed: exec failed: unable to start container process: exec: "
            '"/bin/sh": stat /bin/sh: no such file or directory: unknown',
            "does not have that program",
            "no shell",
            id="program, by path",
        ),
        pytest.param(
            "flag provided but not defined: -x509SVIDTTL\nUsage of entry create:\n  -admin\n",
            "does not know -x509SVIDTTL",
            "1.6",
            id="older version",
        ),
        pytest.param(
            "Error: rpc error: code = Unimplemented desc = unknown service spire.api.server",
            "not the socket of a SPIRE server",
            "agent",
            id="the agent's socket",
        ),
        pytest.param(
            "Error: rpc error: code = PermissionDenied desc = authorization denied for method",
            "does not let this account",
            "socket",
            id="no administration",
        ),
        pytest.param(
            'Error: rpc error: code = InvalidArgument desc = invalid agent ID: "spiffe://a/h" is '
            'not a member of trust domain "b"',
            "another trust domain",
            "--trust-domain",
            id="trust domain",
        ),
        pytest.param(
            "Error: rpc error: code = InvalidArgument desc = ttl is required, you must provide one",
            "time to live",
            "seconds",
            id="ttl",
        ),
        pytest.param(
            "Error: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
            "did not answer in time",
            "log",
            id="slow datastore",
        ),
    ],
)
def test_known_trouble_is_named_with_what_to_do(stderr: str, meaning: str, hint: str) -> None:
    error = failure(COMMAND, 1, f"{stderr}\n")
    assert error.message.startswith("entry create: ")
    assert meaning in error.message
    assert hint in (error.hint or "")
    assert "unix:uid:1" not in error.message


def test_unknown_trouble_is_shown_as_it_came() -> None:
    error = failure(COMMAND, 1, "some notice\nError: something new\nError: the last word\n\n")
    assert "the last word" in error.message
    assert "log" in (error.hint or "")
    assert "a warning" in failure(COMMAND, 3, "a warning\n  more of it\n").message


def test_silence_is_told() -> None:
    assert "exit status 3" in failure(COMMAND, 3, "\n").message


def test_program_without_the_command() -> None:
    error = failure(COMMAND, 127, "Usage: spire-server [--version] [--help] <command> [<args>]\n")
    assert "no such command" in error.message


def test_nothing_of_a_token_or_for_the_terminal_is_shown() -> None:
    stderr = f"Error: \x1b[2Jspiffe://a/spire/agent/join_token/{TOKEN} {'x' * 9000}"
    error = failure(COMMAND, 1, stderr)
    assert TOKEN not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 1000


def test_missing_program_names_the_option() -> None:
    error = not_started("spire-server", "", missing=True)
    assert "'spire-server'" in error.message
    assert "--spire-server" in (error.hint or "")
    assert "Permission" in not_started("x", "Permission denied", missing=False).message


def test_timeout_tells_whether_something_may_have_been_done() -> None:
    assert "not known" not in timed_out(COMMAND, 30, changes=False).message
    error = timed_out(COMMAND, 30, changes=True)
    assert "30 s" in error.message
    assert "not known" in error.message
