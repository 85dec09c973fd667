"""spiffe-helper's configuration becomes ours: each key, and what a person is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.config import Config, HelperConfig, parse_config
from sidecar.core.conversion import Conversion, conversion
from sidecar.core.helper_conf import Number, helper_conf
from sidecar.core.toml_tables import ProblemsError

FILE = "helper.conf"
SOCKET = "unix:/run/agent.sock"
# What has nothing to be told.
PLAIN = {
    "agent_address": "/run/agent.sock",
    "cert_dir": "/opt/certs",
    "svid_file_name": "tls.crt",
    "svid_key_file_name": "tls.key",
    "svid_bundle_file_name": "ca.crt",
}
JWT = {"jwt_audience": "vault", "jwt_svid_file_name": "vault.jwt"}


def converted(document: dict[str, Any], variable: str = "") -> Conversion:
    return conversion(helper_conf(document, FILE), FILE, variable)


def config(done: Conversion) -> HelperConfig:
    """What the result says, in helper mode."""
    read = parse_config(done.toml, "sidecar.toml")
    assert not isinstance(read, Config)
    return read


def notes(done: Conversion) -> dict[str, str]:
    """Key -> what is told of it; each key once."""
    assert len({note.key for note in done.notes}) == len(done.notes)
    return {note.key: note.text for note in done.notes}


def changed(**keys: Any) -> tuple[HelperConfig, dict[str, str]]:
    """What becomes of these keys, beside those of which nothing is told."""
    done = converted({**PLAIN, **keys})
    return config(done), notes(done)


def test_plain_configuration_is_the_same_without_a_word() -> None:
    done = converted(PLAIN)
    assert done.notes == ()
    read, files = config(done), config(done).cert_files
    assert files is not None
    assert str(read.workload_api.socket) == SOCKET
    assert files.directory == "/opt/certs"
    assert (files.certificate, files.private_key, files.bundle) == ("tls.crt", "tls.key", "ca.crt")
    assert (files.certificate_mode, files.key_mode) == (0o644, 0o600)
    assert not files.intermediates_in_bundle
    assert not files.federated_bundles
    assert not files.unsafe_merge_federated
    assert (read.jwt_svid, read.after_rotation) == ((), ())


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("add_intermediates_to_bundle", "intermediates_in_bundle"),
        ("omit_expired", "omit_expired_authorities"),
    ],
)
def test_switch_has_its_counterpart(key: str, ours: str) -> None:
    read, told = changed(**{key: True})
    assert getattr(read.cert_files, ours) is True
    assert told == {}


def test_hint_is_kept_whatever_it_is() -> None:
    hint = 'a "b" \\ \n é'
    read, told = changed(hint=hint)
    assert (read.workload_api.hint, told) == (hint, {})


def test_name_of_the_file_cannot_leave_its_comment() -> None:
    done = conversion(helper_conf(PLAIN, FILE), "a\n[listener]\n", "")
    assert config(done) == config(converted(PLAIN))


# --- the socket -----------------------------------------------------------------------------


def test_default_of_spiffe_helper_is_written_out() -> None:
    done = converted({**PLAIN, "agent_address": ""})
    assert str(config(done).workload_api.socket) == "unix:/tmp/spire-agent/public/api.sock"
    assert "SPIFFE_ENDPOINT_SOCKET" in notes(done)["agent_address"]


def test_variable_that_the_daemon_reads_too_is_left_to_it() -> None:
    done = converted({**PLAIN, "agent_address": ""}, "unix:///run/agent.sock")
    assert config(done).workload_api.socket is None
    assert notes(done) == {}


def test_variable_with_a_mere_path_is_written_out() -> None:
    done = converted({**PLAIN, "agent_address": ""}, "/run/agent.sock")
    assert str(config(done).workload_api.socket) == SOCKET
    assert "has to be a URI" in notes(done)["agent_address"]


def test_key_wins_over_the_variable() -> None:
    done = converted(PLAIN, "not an address")
    assert str(config(done).workload_api.socket) == SOCKET
    assert notes(done) == {}


def test_variable_that_says_nothing_is_a_problem_of_the_variable() -> None:
    with pytest.raises(ProblemsError) as refused:
        converted({**PLAIN, "agent_address": ""}, "agent.sock")
    (one,) = refused.value.problems
    assert one.file == "$SPIFFE_ENDPOINT_SOCKET"


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cert_dir", "directory"), [("certs", "certs"), ("./a", "./a"), ("", ".")])
def test_relative_folder_is_told(cert_dir: str, directory: str) -> None:
    read, told = changed(cert_dir=cert_dir)
    assert read.cert_files is not None
    assert read.cert_files.directory == directory
    assert "relative to the configuration file" in told["cert_dir"]


@pytest.mark.parametrize(
    ("mode", "written"),
    [("0644", 0o644), ("0444", 0o444), ("0600", 0o600), ("420", 0o644), ("0", 0o644)],
)
def test_mode_of_certificates_is_kept(mode: str, written: int) -> None:
    read, told = changed(cert_file_mode=Number(mode))
    assert read.cert_files is not None
    assert read.cert_files.certificate_mode == written
    assert told == {}


@pytest.mark.parametrize(
    ("key", "mode", "written", "why"),
    [
        pytest.param("cert_file_mode", "0666", 0o644, "at most 0644", id="nobody else writes"),
        pytest.param("cert_file_mode", "0755", 0o644, "at most 0644", id="nobody executes"),
        pytest.param("cert_file_mode", "0200", 0o644, "the owner", id="the owner has to read"),
        pytest.param("cert_file_mode", "344", 0o644, "the owner", id="as octal it is meant"),
        pytest.param("key_file_mode", "0644", 0o640, "at most 0640", id="nobody else reads a key"),
        pytest.param("key_file_mode", "0777", 0o640, "at most 0640", id="no key for everybody"),
        pytest.param("key_file_mode", "0044", 0o600, "the owner", id="the owner reads the key"),
    ],
)
def test_mode_that_is_not_allowed_is_narrowed(key: str, mode: str, written: int, why: str) -> None:
    done = converted({**PLAIN, key: Number(mode)})
    ours = {"cert_file_mode": "certificate_mode", "key_file_mode": "key_mode"}[key]
    assert getattr(config(done).cert_files, ours) == written
    note = done.notes[-1]
    assert note.key == key
    assert note.text.startswith(f"{mode:0>4} is written as {written:04o}: ")
    assert why in note.text


def test_octal_without_its_0_is_what_was_meant_and_told() -> None:
    read, told = changed(cert_file_mode=Number("444"))
    assert read.cert_files is not None
    assert read.cert_files.certificate_mode == 0o444
    assert "444 is decimal" in told["cert_file_mode"]
    assert "0674" in told["cert_file_mode"]


def test_octal_without_its_0_is_narrowed_as_well() -> None:
    done = converted({**PLAIN, "key_file_mode": Number("444")})
    files = config(done).cert_files
    assert files is not None
    assert files.key_mode == 0o440
    assert [note.key for note in done.notes] == ["key_file_mode", "key_file_mode"]


def test_federated_trust_domains_are_not_merged() -> None:
    read, told = changed(include_federated_domains=True)
    assert read.cert_files is not None
    assert read.cert_files.federated_bundles
    assert not read.cert_files.unsafe_merge_federated
    assert "unsafe_merge_federated = true" in told["include_federated_domains"]


def test_old_behaviour_is_had_as_the_note_says() -> None:
    text = converted({**PLAIN, "include_federated_domains": True}).toml
    merged = text.replace("\nfederated_bundles = true", "\nunsafe_merge_federated = true")
    files = parse_config(merged, "sidecar.toml").cert_files
    assert files is not None
    assert files.unsafe_merge_federated
    assert not files.federated_bundles


@pytest.mark.parametrize(
    ("checks", "address", "told"),
    [
        ({}, "0.0.0.0:8081", ["/live is /livez", "/ready is /readyz"]),
        (
            {"bind_port": Number("9000"), "readiness_path": "/ok"},
            "0.0.0.0:9000",
            ["/ok is /readyz"],
        ),
        ({"bind_port": Number("0")}, "0.0.0.0:8081", ["/live is /livez"]),
        ({"BIND_PORT": "65535", "other": "x"}, "0.0.0.0:65535", ["/live is /livez"]),
        ({"liveness_path": "/livez", "readiness_path": "/readyz"}, "0.0.0.0:8081", []),
    ],
    ids=["defaults", "a port and a path", "no port", "case", "our paths"],
)
def test_health_checks_become_a_listener_for_probes(
    checks: dict[str, object], address: str, told: list[str]
) -> None:
    document = {**PLAIN, "health_checks": {"listener_enabled": True, **checks}}
    read = parse_config(converted(document).toml, "sidecar.toml")
    assert read.health is not None
    assert str(read.health.address) == address
    notes = changed(health_checks=document["health_checks"])[1]
    assert ("health_checks" in notes) is bool(told)
    for words in told:
        assert words in notes["health_checks"]


def test_health_checks_that_are_off_become_nothing() -> None:
    for more in ({"listener_enabled": False}, {"bind_port": Number("1")}):
        assert changed(health_checks=more)[1] == {}
        assert "[health]" not in converted({**PLAIN, "health_checks": more}).toml
    once = {**PLAIN, "health_checks": {"listener_enabled": True}, "daemon_mode": False}
    assert "[health]" not in converted(once).toml


@pytest.mark.parametrize("port", [Number("65536"), Number("-1"), "x", True, [1]], ids=repr)
def test_port_of_health_checks_that_is_none_is_a_problem(port: object) -> None:
    with pytest.raises(ProblemsError) as refused:
        converted({**PLAIN, "health_checks": {"listener_enabled": True, "bind_port": port}})
    assert [one.where for one in refused.value.problems] == ["health_checks bind_port"]


def test_two_files_of_one_name_are_problems_of_the_old_keys() -> None:
    document = {**PLAIN, "jwt_svids": [JWT, {**JWT, "jwt_svid_file_name": "tls.key"}]}
    with pytest.raises(ProblemsError) as refused:
        converted({**document, "svid_bundle_file_name": "tls.crt"})
    assert [(one.file, one.where, one.expected) for one in refused.value.problems] == [
        (FILE, "svid_bundle_file_name", "a name other than that of svid_file_name"),
        (FILE, "jwt_svids #2 file", "a name other than that of svid_key_file_name"),
    ]


# --- JWT ------------------------------------------------------------------------------------


def test_jwt_svids_are_kept_with_their_mode() -> None:
    second = {**JWT, "jwt_svid_file_name": "b.jwt", "jwt_extra_audiences": ["x", "y"]}
    read, told = changed(jwt_svids=[JWT, second], jwt_svid_file_mode=Number("0440"))
    assert [(one.file, one.audience, one.extra_audiences) for one in read.jwt_svid] == [
        ("vault.jwt", "vault", ()),
        ("b.jwt", "vault", ("x", "y")),
    ]
    assert [one.mode for one in read.jwt_svid] == [0o440, 0o440]
    assert told == {}


def test_mode_of_jwt_svids_is_narrowed_and_told_once() -> None:
    second = {**JWT, "jwt_svid_file_name": "b.jwt"}
    read, told = changed(jwt_svids=[JWT, second], jwt_svid_file_mode=Number("0644"))
    assert [one.mode for one in read.jwt_svid] == [0o640, 0o640]
    assert list(told) == ["jwt_svid_file_mode"]


def test_mode_of_jwt_svids_that_are_not_there_is_no_word_worth() -> None:
    assert changed(jwt_svid_file_mode=Number("0644"))[1] == {}


@pytest.mark.parametrize(
    ("modes", "told"),
    [
        pytest.param({}, True, id="0600, and 0644 here"),
        pytest.param({"jwt_bundle_file_mode": Number("0644")}, False, id="the same"),
        pytest.param(
            {"jwt_bundle_file_mode": Number("0444"), "cert_file_mode": Number("0440")},
            True,
            id="not that of certificates",
        ),
        pytest.param({"cert_file_mode": Number("0600")}, False, id="both for the owner alone"),
    ],
)
def test_jwt_bundle_has_another_form_and_perhaps_another_mode(
    modes: dict[str, str], told: bool
) -> None:
    read, all_told = changed(jwt_bundle_file_name="jwks.json", **modes)
    assert read.cert_files is not None
    assert read.cert_files.jwt_bundle == "jwks.json"
    assert "base64" in all_told["jwt_bundle_file_name"]
    assert ("jwt_bundle_file_mode" in all_told) is told


def test_jwt_alone_is_told_of_the_files_beside_it() -> None:
    done = converted({"agent_address": "/a", "cert_dir": "/c", "jwt_svids": [JWT]})
    read = config(done)
    assert [one.file for one in read.jwt_svid] == ["vault.jwt"]
    assert read.cert_files is not None
    assert read.cert_files.certificate is None
    assert "svid_key.pem" in notes(done)["svid_file_name"]


def test_jwt_alone_may_not_take_the_name_of_a_file_beside_it() -> None:
    with pytest.raises(ProblemsError) as refused:
        converted({"jwt_svids": [{**JWT, "jwt_svid_file_name": "svid_key.pem"}]})
    assert [one.where for one in refused.value.problems] == ["jwt_svids #1 file"]
