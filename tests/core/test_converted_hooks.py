"""`cmd`, `renew_signal` and `pid_file_name` become `[[after_rotation]]` tables."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.config import HelperConfig, parse_config
from sidecar.core.conversion import Conversion, conversion
from sidecar.core.files_config import SIGNALS
from sidecar.core.helper_conf import helper_conf

FILE = "helper.conf"
X509 = {
    "svid_file_name": "svid.pem",
    "svid_key_file_name": "svid_key.pem",
    "svid_bundle_file_name": "svid_bundle.pem",
}
JWT = {"jwt_svids": [{"jwt_audience": "vault", "jwt_svid_file_name": "vault.jwt"}]}


def converted(files: dict[str, Any] = X509, **keys: Any) -> Conversion:
    document = {"agent_address": "/run/agent.sock", "cert_dir": "/opt/certs", **files, **keys}
    return conversion(helper_conf(document, FILE), FILE, "")


def config(done: Conversion) -> HelperConfig:
    return parse_config(done.toml, "sidecar.toml")


def told(done: Conversion) -> list[str]:
    return [note.key for note in done.notes]


def with_the_comment_at_the_end(done: Conversion) -> HelperConfig:
    """The configuration of somebody who takes the last table out of its comment."""
    before, _, after = done.toml.rpartition("# [[after_rotation]]\n")
    lines = (line.removeprefix("# ") for line in after.splitlines())
    return parse_config("\n".join([before, "[[after_rotation]]", *lines]), "sidecar.toml")


def test_nothing_to_do_is_no_table() -> None:
    assert config(converted()).after_rotation == ()


def test_command_has_the_arguments_that_spiffe_helper_gives_it() -> None:
    done = converted(cmd="/usr/bin/psql", cmd_args='-p 5432 -c "SELECT ""x"" \\ y;" ""')
    (hook,) = config(done).after_rotation
    assert hook.command == ("/usr/bin/psql", "-p", "5432", "-c", 'SELECT "x" \\ y;', "")
    assert (hook.on, hook.pid_file) == (("x509",), None)
    assert told(done) == ["cmd"]
    assert "timeout_seconds" in done.notes[0].text
    assert "# [[after_rotation]]" not in done.toml


def test_command_alone_is_a_list_of_one() -> None:
    (hook,) = config(converted(cmd="reload")).after_rotation
    assert hook.command == ("reload",)


def test_command_in_a_relative_folder_is_told() -> None:
    assert told(converted(cmd="./reload")) == ["cmd", "cmd"]
    assert told(converted(cmd="reload")) == ["cmd"], "looked for in PATH"


@pytest.mark.parametrize("signal", SIGNALS)
def test_program_that_is_signalled_is_shown_how_as_a_comment(signal: str) -> None:
    done = converted(cmd="/usr/sbin/mosquitto", cmd_args="-d", renew_signal=signal)
    # It keeps running, and so is nothing to run after each rotation.
    assert config(done).after_rotation == ()
    assert '# command = ["/usr/sbin/mosquitto", "-d"]' in done.toml.splitlines()
    (note,) = done.notes
    assert "service manager" in note.text
    assert signal in note.text
    (hook,) = with_the_comment_at_the_end(done).after_rotation
    assert (hook.pid_file, hook.signal) == ("/run/mosquitto.pid", signal)


def test_name_of_a_program_cannot_leave_the_comment() -> None:
    done = converted(cmd='/x"\n[listener]\n', renew_signal="SIGHUP")
    assert config(done).after_rotation == ()
    (hook,) = with_the_comment_at_the_end(done).after_rotation
    assert hook.pid_file == '/run/x"\n[listener]\n.pid'


def test_pid_file_is_signalled() -> None:
    done = converted(pid_file_name="/run/nginx.pid", renew_signal="SIGUSR2")
    (hook,) = config(done).after_rotation
    assert (hook.pid_file, hook.signal, hook.command) == ("/run/nginx.pid", "SIGUSR2", ())
    assert hook.on == ("x509",)
    assert told(done) == []


def test_relative_pid_file_is_told() -> None:
    assert told(converted(pid_file_name="x.pid", renew_signal="SIGHUP")) == ["pid_file_name"]


def test_command_and_pid_file_are_two_tables_with_no_comment() -> None:
    done = converted(cmd="/bin/x", pid_file_name="/run/x.pid", renew_signal="SIGHUP")
    first, second = config(done).after_rotation
    assert (first.command, second.pid_file) == (("/bin/x",), "/run/x.pid")
    assert first.name != second.name
    assert told(done) == ["cmd", "pid_file_name"]
    assert "at the same time" in done.notes[1].text
    assert "# [[after_rotation]]" not in done.toml


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        pytest.param({"renew_signal": "SIGHUP"}, "renew_signal", id="signal for nobody"),
        pytest.param({"cmd_args": "-x"}, "cmd_args", id="arguments for nothing"),
    ],
)
def test_key_that_does_nothing_is_left_out_and_told(keys: dict[str, Any], key: str) -> None:
    done = converted(**keys)
    assert config(done).after_rotation == ()
    assert told(done) == [key]


def test_without_a_daemon_nothing_is_done_after_and_fetch_is_named() -> None:
    done = converted(daemon_mode=False, cmd="/bin/x", cmd_args="a", renew_signal="SIGHUP")
    assert config(done).after_rotation == ()
    assert told(done) == ["daemon_mode", "cmd", "renew_signal"]
    assert "spiffe-sidecar fetch" in done.notes[0].text


def test_with_jwt_alone_hooks_are_comments_as_they_never_ran() -> None:
    done = converted(JWT, pid_file_name="/run/x.pid", renew_signal="SIGHUP")
    assert config(done).after_rotation == ()
    assert told(done) == ["svid_file_name", "pid_file_name"]
    (hook,) = with_the_comment_at_the_end(done).after_rotation
    assert (hook.pid_file, hook.on) == ("/run/x.pid", ("jwt",))
