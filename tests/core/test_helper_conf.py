"""spiffe-helper's configuration: what it says, and all that is wrong with it, by its own keys."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.helper_conf import (
    AgentAddress,
    Arguments,
    HelperConf,
    Mode,
    Number,
    helper_conf,
)
from sidecar.core.toml_tables import Problem, ProblemsError

FILE = "helper.conf"
X509 = {
    "svid_file_name": "svid.pem",
    "svid_key_file_name": "svid_key.pem",
    "svid_bundle_file_name": "svid_bundle.pem",
}
JWT = {"jwt_audience": "vault", "jwt_svid_file_name": "vault.jwt"}


def conf(**keys: Any) -> HelperConf:
    """A configuration with X.509 files and these keys."""
    return helper_conf({**X509, **keys}, FILE)


def problems(document: dict[str, Any]) -> list[Problem]:
    with pytest.raises(ProblemsError) as refused:
        helper_conf(document, FILE)
    assert all(one.file == FILE for one in refused.value.problems)
    return list(refused.value.problems)


def problem(**keys: Any) -> Problem:
    """The one problem of a configuration with these keys."""
    (one,) = problems({**X509, **keys})
    return one


# --- whole configurations -------------------------------------------------------------------


def test_configuration_with_all_keys_is_read() -> None:
    read = conf(
        agent_address="/run/agent.sock",
        cmd="/usr/bin/psql",
        cmd_args='-c "SELECT 1"',
        pid_file_name="/run/x.pid",
        cert_dir="certs",
        daemon_mode=True,
        add_intermediates_to_bundle=True,
        renew_signal="SIGUSR1",
        jwt_svids=[{**JWT, "jwt_extra_audiences": ["a", "b"]}],
        jwt_bundle_file_name="jwks.json",
        include_federated_domains=True,
        cert_file_mode=Number("0640"),
        key_file_mode=Number("0400"),
        jwt_bundle_file_mode=Number("0644"),
        jwt_svid_file_mode="0440",
        hint="internal",
        omit_expired=True,
        health_checks={"listener_enabled": True, "bind_port": Number("8081")},
    )
    assert read.agent_address == "unix:/run/agent.sock"
    assert read.cmd_args is not None
    assert (read.cmd, read.cmd_args.argv) == ("/usr/bin/psql", ("-c", "SELECT 1"))
    assert (read.svid_file_name, read.cert_dir) == ("svid.pem", "certs")
    (jwt,) = read.jwt_svids
    assert (jwt.jwt_audience, jwt.jwt_svid_file_name) == ("vault", "vault.jwt")
    assert jwt.jwt_extra_audiences == ("a", "b")
    modes = (read.cert_file_mode, read.key_file_mode, read.jwt_svid_file_mode)
    assert [mode and mode.bits for mode in modes] == [0o640, 0o400, 0o440]
    assert read.health_checks.listener_enabled
    assert (read.renew_signal, read.hint, read.omit_expired) == ("SIGUSR1", "internal", True)


def test_what_is_set_to_nothing_is_not_set() -> None:
    read = conf(agent_address="", cmd="", cmd_args="", cert_dir="", renew_signal="", jwt_svids=[])
    assert read == conf()
    assert (read.cmd, read.cert_dir, read.renew_signal) == (None, None, None)
    assert read.daemon_mode


def test_keys_are_found_whatever_their_case() -> None:
    read = conf(CMD="x", jwt_svids=[{"JWT_Audience": "a", "jwt_svid_file_name": "f"}])
    assert read.cmd == "x"
    assert read.jwt_svids[0].jwt_audience == "a"


def test_number_stands_for_its_text() -> None:
    assert conf(cmd="sleep", cmd_args=Number("5")).cmd_args == Arguments(("5",))


def test_keys_of_health_checks_that_nobody_knows_are_not_looked_at() -> None:
    assert not conf(health_checks={"path": "/x"}).health_checks.listener_enabled


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"jwt_svids": [JWT]}, id="JWT-SVIDs alone"),
        pytest.param({"jwt_bundle_file_name": "jwks.json"}, id="JWT bundle alone"),
    ],
)
def test_x509_files_are_not_required(document: dict[str, Any]) -> None:
    assert helper_conf(document, FILE).svid_file_name is None


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        {
            "svid_file_name": "svid.pem",
            "cmdArgs": "x",
            "agent_address": "spire-agent\\public\\api",
            "key_file_mode": Number("-1"),
            "jwt_svids": [JWT, {"jwt_audienc": "a"}],
            "pid_file_name": "/run/x.pid",
            "daemon_mode": False,
            "add_intermediates_to_bundle": "true",
        }
    )
    assert sorted(one.where for one in found) == [
        "",
        "add_intermediates_to_bundle",
        "agent_address",
        "jwt_svids #2",
        "jwt_svids #2 jwt_audience",
        "jwt_svids #2 jwt_svid_file_name",
        "key_file_mode",
        "pid_file_name",
        "pid_file_name",
        "svid_file_name",
    ]
    hints = {one.found: one.hint for one in found if one.hint}
    assert hints == {
        "the unknown key 'cmdArgs'": "did you mean 'cmd_args'?",
        "the unknown key 'jwt_audienc'": "did you mean 'jwt_audience'?",
    }


@pytest.mark.parametrize(
    "key", [field.name for field in msgspec.structs.fields(HelperConf) if "_" in field.name]
)
def test_key_of_older_versions_is_refused_with_the_one_of_today(key: str) -> None:
    first, *rest = key.split("_")
    old = first + "".join(map(str.capitalize, rest))
    assert problem(**{old: "x"}).hint == f"did you mean {key!r}?"


@pytest.mark.parametrize(
    ("document", "where"),
    [
        pytest.param({}, "", id="nothing to write"),
        pytest.param({"svid_file_name": "", "jwt_svids": []}, "", id="nothing to write, in words"),
        pytest.param(
            {"svid_file_name": "a", "svid_key_file_name": "b"},
            "svid_file_name and svid_key_file_name",
            id="no bundle",
        ),
        pytest.param(
            {"svid_bundle_file_name": "a", "jwt_svids": [JWT]},
            "svid_bundle_file_name",
            id="bundle without a certificate",
        ),
    ],
)
def test_files_that_are_not_all_named_are_refused(document: dict[str, Any], where: str) -> None:
    (one,) = problems(document)
    assert one.where == where


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        pytest.param({"pid_file_name": "x.pid"}, "pid_file_name", id="pid file, no signal"),
        pytest.param(
            {"pid_file_name": "x.pid", "renew_signal": "SIGHUP", "daemon_mode": False},
            "pid_file_name",
            id="pid file, no daemon",
        ),
        pytest.param({"renew_signal": "HUP"}, "renew_signal", id="no name of a signal"),
        pytest.param({"renew_signal": "SIGKILL"}, "renew_signal", id="signal that ends for good"),
        pytest.param({"renew_signal": Number("1")}, "renew_signal", id="number of a signal"),
        pytest.param({"daemon_mode": "false"}, "daemon_mode", id="text for a switch"),
        pytest.param({"omit_expired": Number("1")}, "omit_expired", id="number for a switch"),
        pytest.param({"cmd": ["a"]}, "cmd", id="list for a text"),
        pytest.param({"cmd": True}, "cmd", id="switch for a text"),
        pytest.param({"cmd": "a\0b"}, "cmd", id="NUL in a command"),
        pytest.param({"cert_dir": "a\0b"}, "cert_dir", id="NUL in a path"),
        pytest.param({"cmd_args": 'a "b'}, "cmd_args", id="quote that is not closed"),
        pytest.param({"cmd_args": ["a"]}, "cmd_args", id="list of arguments"),
        pytest.param({"svid_file_name": "a/b"}, "svid_file_name", id="file in a folder"),
        pytest.param({"svid_file_name": "current"}, "svid_file_name", id="name of ours"),
        pytest.param({"jwt_bundle_file_name": ".x"}, "jwt_bundle_file_name", id="hidden file"),
        pytest.param({"cert_file_mode": True}, "cert_file_mode", id="switch for a mode"),
        pytest.param({"jwt_svids": "a"}, "jwt_svids", id="JWT-SVIDs as text"),
        pytest.param({"jwt_svids": JWT}, "jwt_svids", id="JWT-SVID without a list"),
        pytest.param({"jwt_svids": ["a"]}, "jwt_svids #1", id="JWT-SVID as text"),
        pytest.param(
            {"jwt_svids": [{**JWT, "jwt_audience": ""}]}, "jwt_svids #1 jwt_audience", id="empty"
        ),
        pytest.param({"health_checks": "on"}, "health_checks", id="health checks as text"),
        pytest.param(
            {"health_checks": {"listener_enabled": "true"}},
            "health_checks listener_enabled",
            id="text for the switch of health checks",
        ),
    ],
)
def test_what_no_key_takes_is_refused(keys: dict[str, Any], where: str) -> None:
    assert problem(**keys).where == where


# --- agent_address --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        pytest.param("/run/agent.sock", "unix:/run/agent.sock", id="path"),
        pytest.param("/run/my agent.sock", "unix:/run/my%20agent.sock", id="path with a space"),
        pytest.param("unix:/run/agent.sock", "unix:/run/agent.sock", id="unix:"),
        pytest.param("unix:///run/agent.sock", "unix:///run/agent.sock", id="unix://"),
        pytest.param("tcp://127.0.0.1:8081", "tcp://127.0.0.1:8081", id="tcp"),
    ],
)
def test_address_is_read(text: str, ours: str) -> None:
    assert AgentAddress.parse(text) == ours


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("spire-agent\\public\\api", id="named pipe"),
        pytest.param("npipe:spire-agent/public/api", id="named pipe, as a URI"),
    ],
)
def test_named_pipe_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ValueError, match="named pipe of Windows"):
        AgentAddress.parse(text)


@pytest.mark.parametrize("text", ["agent.sock", "unix:agent.sock", "//run/x", "http://a", "tcp://"])
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unix:/absolute/path"):
        AgentAddress.parse(text)


# --- modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bits", "meant"),
    [
        pytest.param("0644", 0o644, 0o644, id="octal"),
        pytest.param("0o640", 0o640, 0o640, id="octal, in a string"),
        pytest.param("0x1a4", 0o644, 0o644, id="hexadecimal"),
        pytest.param("0755", 0o755, 0o755, id="octal says what it means, whatever it is"),
        pytest.param("0", 0, 0, id="not set"),
        pytest.param("00", 0, 0, id="not set, octal"),
        pytest.param("420", 0o644, 0o644, id="decimal on purpose: 0644"),
        pytest.param("384", 0o600, 0o600, id="decimal on purpose: 0600"),
        pytest.param("416", 0o640, 0o640, id="decimal on purpose: 0640"),
        pytest.param("256", 0o400, 0o400, id="decimal on purpose: 0400"),
        pytest.param("444", 0o674, 0o444, id="octal without its 0"),
        pytest.param("600", 0o1130, 0o600, id="octal without its 0, for a key"),
        pytest.param("644", 0o1204, 0o644, id="octal without its 0, for a certificate"),
        pytest.param("400", 0o620, 0o400, id="octal without its 0, readable in both"),
        pytest.param("999", 0o1747, 0o1747, id="neither"),
    ],
)
def test_mode_is_what_hcl_makes_of_it_and_what_was_meant(text: str, bits: int, meant: int) -> None:
    mode = Mode.parse(text)
    assert (mode.bits, mode.meant) == (bits, meant)


@pytest.mark.parametrize(
    "text",
    ["-1", "-0644", "0999", "6.4", "1e3", "rw-r--r--", "0x", "٦٤٤", "6_4_4", " 644", "9" * 99],
)
def test_mode_that_is_no_number_of_hcl_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="octal mode"):
        Mode.parse(text)


# --- cmd_args -------------------------------------------------------------------------------


# The right-hand sides are what Go's csv.Reader gives for a space as its comma.
@pytest.mark.parametrize(
    ("text", "argv"),
    [
        pytest.param("", [], id="none"),
        pytest.param("-c a", ["-c", "a"], id="spaces"),
        pytest.param('-e "ALTER INSTANCE;"', ["-e", "ALTER INSTANCE;"], id="quoted"),
        pytest.param('"one argument"', ["one argument"], id="quoted alone"),
        pytest.param('"with one "" in it"', ['with one " in it'], id="quote inside"),
        pytest.param('"" a', ["", "a"], id="empty, quoted"),
        pytest.param("a  b", ["a", "", "b"], id="two spaces hold an empty argument"),
        pytest.param("a ", ["a", ""], id="so does one at the end"),
        pytest.param(" ", ["", ""], id="and one alone"),
        pytest.param("-c 'echo hi'", ["-c", "'echo", "hi'"], id="single quotes are characters"),
        pytest.param("$HOME *.pem \\n", ["$HOME", "*.pem", "\\n"], id="nothing is expanded"),
        pytest.param("a\tb", ["a\tb"], id="a tab separates nothing"),
        pytest.param("a b\nc d", ["a", "b"], id="the first line counts"),
        pytest.param("\n\na b\n", ["a", "b"], id="the first line with something"),
        pytest.param('"a\nb" c\nd', ["a\nb", "c"], id="a line end in quotes"),
        pytest.param("a\r\nb", ["a"], id="line end of Windows"),
        pytest.param("a\r", ["a"], id="carriage return at the end"),
        pytest.param("a\rb", ["a\rb"], id="carriage return inside"),
    ],
)
def test_arguments_are_split_as_spiffe_helper_splits_them(text: str, argv: list[str]) -> None:
    assert list(Arguments.parse(text).argv) == argv


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('a"b', id="quote inside"),
        pytest.param('a "b', id="quote that is not closed"),
        pytest.param('"a"b', id="text after the closing quote"),
        pytest.param('"a" "', id="opened at the end"),
        pytest.param('--x="a b"', id="quotes of a shell"),
        pytest.param("\n", id="empty line"),
        pytest.param("a\0b", id="NUL"),
    ],
)
def test_arguments_that_spiffe_helper_cannot_split_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Arguments.parse(text)


@given(st.lists(st.text(st.characters(exclude_characters="\0\r")), min_size=1))
def test_any_arguments_come_back_when_they_are_quoted(argv: list[str]) -> None:
    quoted = (f'"{argument.replace(chr(34), chr(34) * 2)}"' for argument in argv)
    assert list(Arguments.parse(" ".join(quoted)).argv) == argv
