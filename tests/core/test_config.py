"""`sidecar.toml`: every key's good and bad values, and what would expose the model server."""

from __future__ import annotations

import pytest

from sidecar.core.address import Address, Inherited, WorkloadEndpoint
from sidecar.core.config import TABLES, Config, parse_config
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.toml_tables import Problem
from tests.core.configurations import (
    FILE,
    NEEDED,
    NO_COUNT,
    NO_PATH,
    NO_SECONDS,
    NO_SWITCH,
    NO_TEXT,
    SERVES,
    helper,
    problems_of,
    row_id,
    toml,
)

# Tables with a test file of their own: `test_files_config`.
OF_FILES = {"identity_files", "cert_files"}


def config(**changes: dict[str, str]) -> Config:
    read = parse_config(toml(SERVES, **changes), FILE)
    assert isinstance(read, Config)
    return read


def problems(**changes: dict[str, str]) -> tuple[Problem, ...]:
    return problems_of(toml(SERVES, **changes))


def test_three_tables_are_enough() -> None:
    read = config()
    assert read.listener.address == (Address.parse("0.0.0.0:6701"),)
    assert read.backend.address == Address.parse("127.0.0.1:11434")
    assert read.policy.file == "policy.toml"
    assert read.workload_api.socket is None
    assert read.cert_files is None


@pytest.mark.parametrize(
    ("table", "key", "value", "wanted"),
    [
        ("workload_api", "socket", '"unix:/a.sock"', WorkloadEndpoint(Address(None, 0, "/a.sock"))),
        ("workload_api", "socket", '""', None),
        ("workload_api", "spiffe_id", '"spiffe://e.org/a"', SpiffeId.parse("spiffe://e.org/a")),
        ("workload_api", "spiffe_id", '""', None),
        ("workload_api", "hint", '"internal"', "internal"),
        ("workload_api", "denied_grace_seconds", "0", 0.0),
        ("workload_api", "denied_grace_seconds", "0.5", 0.5),
        ("workload_api", "denied_grace_seconds", "31536000", 31536000.0),
        ("listener", "address", '["127.0.0.1:1", "[::1]:0"]', ("127.0.0.1:1", "[::1]:0")),
        ("listener", "tls_minimum_version", '"1.2"', "1.2"),
        ("backend", "address", '"[::1]:1"', Address.parse("[::1]:1")),
        ("backend", "address", '"[::ffff:127.0.0.1]:1"', Address.parse("[::ffff:127.0.0.1]:1")),
        ("backend", "address", '"127.1.2.3:1"', Address.parse("127.1.2.3:1")),
        ("backend", "address", '"unix:/run/m.sock"', Address(None, 0, "/run/m.sock")),
        ("backend", "unsafe_remote_backend", "true", True),
        ("policy", "file", '"/etc/p.toml"', "/etc/p.toml"),
        ("connections", "maximum", "1", 1),
        ("connections", "maximum", "1_000_000", 1_000_000),
        ("connections", "maximum_handshakes", "1", 1),
        ("connections", "drain_seconds", "0", 0.0),
        ("connections", "expiry_grace_seconds", "0", 0.0),
        ("connections", "revoked_grace_seconds", "0.5", 0.5),
        ("connections", "max_age_seconds", "31536000", 31536000.0),
        ("timeouts", "handshake", "0.001", 0.001),
        ("timeouts", "handshake", "86400", 86400.0),
        ("timeouts", "backend_connect", "5", 5.0),
        ("timeouts", "first_byte", "1800", 1800.0),
        ("timeouts", "between_bytes", "7.5", 7.5),
        ("timeouts", "health", "0.5", 0.5),
        ("backend", "mode", '"http"', "http"),
        ("backend", "mode", '"stream"', "stream"),
        ("backend", "host", '"keep"', "keep"),
        ("backend", "host", '"[::1]:11434"', "[::1]:11434"),
        ("backend", "health_path", '"/health?deep=1"', "/health?deep=1"),
        ("limits", "max_body_bytes", "0", 0),
        ("limits", "queued_requests", "0", 0),
        ("cors", "allow_origins", '"*"', ("*",)),
        ("admin", "address", '"[::1]:6703"', Address.parse("[::1]:6703")),
        ("admin", "address", '"unix:/run/a.sock"', Address(None, 0, "/run/a.sock")),
        ("admin", "address", '"systemd:admin"', Inherited(None, manager="systemd:admin")),
        ("health", "address", '"0.0.0.0:8080"', Address.parse("0.0.0.0:8080")),
        ("health", "address", '"[::]:8080"', Address.parse("[::]:8080")),
        ("health", "address", '"systemd:a b"', Inherited(None, manager="systemd:a b")),
        ("listener", "address", '"unix:/a.sock"', ("unix:/a.sock",)),
        ("sandbox", "enabled", "false", False),
        ("log", "format", '"json"', "json"),
        ("log", "level", '"error"', "error"),
        ("log", "refusals_per_second", "0", 0.0),
        ("log", "file", '"/var/log/s.log"', "/var/log/s.log"),
        ("log", "file", '""', None),
    ],
    ids=str,
)
def test_good_value_is_read(table: str, key: str, value: str, wanted: object) -> None:
    read = getattr(getattr(config(**{table: {key: value}}), table), key)
    if isinstance(wanted, tuple):
        read = tuple(map(str, read))
    assert read == wanted


@pytest.mark.parametrize(
    ("whole", "share"), [(1, 1), (2, 2), (3, 3), (4, 3), (256, 192), (4096, 3072), (10, 8)]
)
def test_share_of_one_peer_is_three_quarters_and_never_all_of_four(whole: int, share: int) -> None:
    read = config(connections={"maximum": str(whole)}, limits={"concurrent_requests": str(whole)})
    assert (read.connections.of_one_peer, read.limits.of_one_peer) == (share, share)


def test_share_of_one_peer_can_be_all() -> None:
    read = config(
        connections={"maximum": "5", "maximum_per_peer": "5"},
        limits={"concurrent_requests": "5", "concurrent_requests_per_peer": "5"},
    )
    assert (read.connections.of_one_peer, read.limits.of_one_peer) == (5, 5)


@pytest.mark.parametrize("seconds", ["30", "30.0"])
def test_whole_seconds_need_no_fraction(seconds: str) -> None:
    read = config(workload_api={"denied_grace_seconds": seconds})
    assert read.workload_api.denied_grace_seconds == 30.0


NO_ADDRESS = ['""', '"localhost:1"', '"127.0.0.1"', '"127.0.0.1:65536"', '"x"', "3", "true", "{}"]
BAD_VALUES: dict[str, dict[str, list[str]]] = {
    "workload_api": {
        "socket": [*NO_TEXT, '"/a.sock"', '"unix:a.sock"', '"unix://a"', '"tcp://localhost:1"'],
        "spiffe_id": [*NO_TEXT, '"x"', '"spiffe://E.org/a"', '"spiffe://e.org/a/"'],
        "hint": NO_TEXT,
        "denied_grace_seconds": [*NO_SECONDS, "31_536_001", "31536000.5"],
    },
    "listener": {
        "address": [
            *NO_ADDRESS,
            "[]",
            '[""]',
            "[3]",
            '[["127.0.0.1:1"]]',
            '"unix:a.sock"',
            '"systemd:"',
        ],
        "tls_minimum_version": ["1.3", '""', '"1.1"', '"1.0"', '"TLS1.3"', '"1.4"', "true"],
    },
    "backend": {
        "address": [
            *NO_ADDRESS,
            '["127.0.0.1:1"]',
            '"127.0.0.1:0"',
            '"unix:a"',
            '"http://[::1]:1"',
        ],
        "mode": ['""', '"https"', '"tcp"', '"Stream"', "3", "true", '["stream"]'],
        "host": [*NO_TEXT, '"a b"', '"a/b"', '"http://a"', '"a:b"', '"[::1"', '"a\\r\\nb: c"'],
        "health_path": [*NO_TEXT, '""', '"health"', '"http://a/"', '"/a b"', '"/a#b"', '"/ä"'],
        "unsafe_remote_backend": NO_SWITCH,
    },
    "policy": {"file": NO_PATH},
    "connections": {
        "maximum": [*NO_COUNT, "0"],
        "maximum_per_peer": [one for one in [*NO_COUNT, "0"] if one != '""'],
        "maximum_handshakes": [*NO_COUNT, "0"],
        "drain_seconds": [*NO_SECONDS, "31_536_001"],
        "expiry_grace_seconds": [*NO_SECONDS, "31_536_001"],
        "revoked_grace_seconds": [*NO_SECONDS, "31_536_001"],
        "max_age_seconds": [*NO_SECONDS, "31_536_001"],
    },
    "timeouts": {
        "handshake": [*NO_SECONDS, "0", "0.0", "-0.0", "86401"],
        "request_head": [*NO_SECONDS, "0", "86401"],
        "request_body": [*NO_SECONDS, "0", "86401"],
        "idle": [*NO_SECONDS, "0", "86401"],
        "backend_connect": [*NO_SECONDS, "0", "86400.5"],
        "first_byte": [*NO_SECONDS, "0", "86401"],
        "between_bytes": [*NO_SECONDS, "0", "86401"],
        "health": [*NO_SECONDS, "0", "86401"],
    },
    "limits": {
        "max_head_bytes": ["0", "-1", "1023", "1_048_577", "2048.0", '"2048"', "true", "[]"],
        "max_body_bytes": ["-1", "1.0", "nan", '"1"', "true", "[]", "2_000_000_000_000"],
        "concurrent_requests": [*NO_COUNT, "0"],
        "concurrent_requests_per_peer": [one for one in [*NO_COUNT, "0"] if one != '""'],
        "queued_requests": NO_COUNT,
        "queue_seconds": [*NO_SECONDS, "31_536_001"],
        "min_bytes_per_second": [*NO_COUNT, "1_000_001"],
    },
    "cors": {
        "allow_origins": [*NO_TEXT, '"null"', '"example.org"', '"https://a/b"', '"https://A"'],
        "allow_methods": ["3", '"get"', '"GET POST"', '[""]', "{}"],
        "allow_headers": ["3", '"a b"', '"a:"', '[""]', "{}"],
        "expose_headers": ["3", '"a b"', '"a:"', '[""]', "{}"],
        "allow_credentials": NO_SWITCH,
        "max_age_seconds": ["-1", "1.5", '"1"', "true", "[]", "31_536_001"],
    },
    "admin": {
        "address": [
            *NO_ADDRESS,
            '["127.0.0.1:1"]',
            '"0.0.0.0:6703"',
            '"10.0.0.1:1"',
            '"[::]:1"',
            '"systemd"',
        ]
    },
    "health": {"address": [*NO_ADDRESS, '["127.0.0.1:1"]', '"systemd"']},
    "sandbox": {"enabled": NO_SWITCH},
    "log": {
        "format": ['""', '"JSON"', '"text"', "3", "true"],
        "level": ['""', '"INFO"', '"trace"', '"warn"', "3", "true"],
        "refusals_per_second": [*NO_SECONDS, "1_000_001"],
        "file": [one for one in NO_PATH if one != '""'],
    },
}


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (table, key, value)
        for table, keys in BAD_VALUES.items()
        for key, values in keys.items()
        for value in values
    ],
    ids=row_id,
)
def test_bad_value_is_refused_and_located(table: str, key: str, value: str) -> None:
    (problem,) = problems(**{table: {key: value}})
    assert problem.where == f"[{table}] {key}"
    assert problem.found
    assert problem.expected


def test_every_key_has_bad_values_above() -> None:
    tables = {name: struct for name, struct in TABLES.items() if name not in OF_FILES}
    keys = {name: set(struct.__struct_fields__) for name, struct in tables.items()}
    assert {name: set(rows) for name, rows in BAD_VALUES.items()} == keys


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("0.0.0.0:11434", id="any IPv4, as Ollama is often set"),
        pytest.param("[::]:11434", id="any IPv6"),
        pytest.param("10.0.0.1:11434", id="private"),
        pytest.param("192.168.1.7:11434", id="the LAN"),
        pytest.param("8.8.8.8:11434", id="the internet"),
        pytest.param("128.0.0.1:11434", id="next to the loopback block"),
        pytest.param("169.254.169.254:80", id="a cloud's metadata"),
        pytest.param("[fe80::1]:11434", id="link-local"),
        pytest.param("[fd00::1]:11434", id="IPv6 private"),
        pytest.param("[::ffff:10.0.0.1]:11434", id="IPv4 in IPv6"),
        pytest.param("[::ffff:0.0.0.0]:11434", id="any IPv4 in IPv6"),
        pytest.param("[::127.0.0.1]:11434", id="IPv4-compatible IPv6"),
    ],
)
def test_backend_that_is_not_loopback_needs_the_unsafe_switch(address: str) -> None:
    (problem,) = problems(backend={"address": f'"{address}"'})
    assert problem.where == "[backend] address"
    assert "unsafe_remote_backend" in (problem.hint or "")
    allowed = config(backend={"address": f'"{address}"', "unsafe_remote_backend": "true"})
    assert allowed.backend.address == Address.parse(address)


def test_the_unsafe_switch_off_is_no_permission() -> None:
    remote = {"address": '"10.0.0.1:1"', "unsafe_remote_backend": "false"}
    assert [one.where for one in problems(backend=remote)] == ["[backend] address"]


def test_the_unsafe_switch_does_not_allow_port_0() -> None:
    remote = {"address": '"10.0.0.1:0"', "unsafe_remote_backend": "true"}
    assert [one.expected for one in problems(backend=remote)] == ["a port other than 0"]


@pytest.mark.parametrize(
    ("table", "key"), [("listener", "address"), ("backend", "address"), ("policy", "file")]
)
def test_key_without_a_default_must_be_there(table: str, key: str) -> None:
    (problem,) = problems(**{table: dict.fromkeys(NEEDED[table], "")})
    assert (problem.where, problem.found) == (f"[{table}] {key}", "nothing")


@pytest.mark.parametrize("table", sorted(SERVES))
def test_table_of_what_serves_must_be_there(table: str) -> None:
    text = toml(SERVES).replace(f"[{table}]", "[log]")
    assert f"[{table}]" in [one.where for one in problems_of(text)]


@pytest.mark.parametrize("text", ["", '[log]\nlevel = "info"', toml({}, identity_files={})])
def test_configuration_without_a_purpose_lacks_three_tables(text: str) -> None:
    found = problems_of(text)
    assert [one.where for one in found] == ["[listener]", "[backend]", "[policy]"]
    assert all("[cert_files] alone" in (one.hint or "") for one in found)


def test_listener_alone_is_not_told_of_the_helper() -> None:
    found = problems_of(toml({}, listener={}, cert_files={}))
    assert [(one.where, one.hint) for one in found] == [("[backend]", None), ("[policy]", None)]


def test_files_without_a_listener_are_a_helper() -> None:
    read = helper()
    assert not isinstance(read, Config)
    assert read.cert_files is not None
    assert read.cert_files.directory == "certs"


@pytest.mark.parametrize(
    "table", ["backend", "policy", "connections", "timeouts", "limits", "cors", "response_headers"]
)
def test_helper_has_no_table_of_what_serves(table: str) -> None:
    (problem,) = problems_of(toml({}, cert_files={}, **{table: {}}))
    assert (problem.where, problem.found) == (f"[{table}]", "a table of what serves")
    assert "[listener]" in problem.expected


def test_helper_may_have_all_that_is_not_for_serving() -> None:
    read = helper(
        workload_api={"hint": '"h"'},
        jwt_svid={},
        after_rotation={"touch": '"t"'},
        log={"level": '"debug"'},
    )
    assert read.workload_api.hint == "h"
    assert read.cert_files
    assert [table.file for table in read.jwt_svid] == ["vault.jwt"]
    assert [table.name for table in read.after_rotation] == ["nginx"]
    assert read.log.level == "debug"


def test_what_serves_may_write_files_as_well() -> None:
    read = config(cert_files={}, jwt_svid={}, after_rotation={"touch": '"t"'})
    assert read.cert_files
    assert [table.file for table in read.jwt_svid] == ["vault.jwt"]
    assert [table.name for table in read.after_rotation] == ["nginx"]


@pytest.mark.parametrize(
    ("table", "key", "hint"),
    [
        pytest.param("workload_api", "sockets", "did you mean 'socket'?", id="one letter more"),
        pytest.param("listener", "adress", "did you mean 'address'?", id="one letter less"),
        pytest.param("timeouts", "handshake_seconds", "did you mean 'handshake'?", id="longer"),
        pytest.param("connections", "Maximum", "did you mean 'maximum'?", id="upper case"),
        pytest.param("log", "zzz", None, id="nothing near"),
    ],
)
def test_unknown_key_comes_with_the_nearest_known_one(
    table: str, key: str, hint: str | None
) -> None:
    (problem,) = problems(**{table: {key: "1"}})
    assert (problem.where, problem.found) == (f"[{table}]", f"the unknown key {key!r}")
    assert problem.hint == hint


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        pytest.param("workload-api", "did you mean 'workload_api'?", id="dash"),
        pytest.param("zzz", None, id="nothing near"),
        pytest.param("logs", "did you mean 'log'?", id="plural"),
    ],
)
def test_unknown_table_comes_with_the_nearest_known_one(table: str, hint: str | None) -> None:
    (problem,) = problems(**{table: {"a": "1"}})
    assert (problem.where, problem.hint) == ("", hint)
    assert repr(table) in problem.found


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("log = 3", id="number"),
        pytest.param('log = "info"', id="text"),
        pytest.param("[[log]]", id="list of tables"),
        pytest.param("log = []", id="empty list"),
    ],
)
def test_table_that_is_none_is_refused(text: str) -> None:
    after = text.startswith("[")
    (problem,) = problems_of(toml(SERVES) + text if after else f"{text}\n{toml(SERVES)}")
    assert (problem.where, problem.expected) == ("[log]", "a table")


def test_problems_of_all_tables_are_told_at_once() -> None:
    found = problems(
        workload_api={"spiffe_id": '"x"', "denied_grace_seconds": "-1"},
        listener={"address": '["a", "b"]'},
        backend={"address": '"10.0.0.1:1"'},
        policy={"file": "3"},
        cert_files={"key_mode": '"0777"', "bundle": '"svid.pem"'},
        jwt_svid={"audience": ""},
        after_rotation={},
        timeouts={"handshake": "0", "zzz": "1"},
        nonsense={},
    )
    assert [problem.where for problem in found] == [
        "",
        "[workload_api] spiffe_id",
        "[workload_api] denied_grace_seconds",
        "[listener] address",
        "[listener] address",
        "[policy] file",
        "[cert_files] key_mode",
        "[timeouts]",
        "[timeouts] handshake",
        "[[jwt_svid]] #1 audience",
        "[backend] address",
        "[cert_files] bundle",
        "[[after_rotation]] #1",
    ]


@pytest.mark.parametrize(
    ("table", "keys", "hidden"),
    [
        pytest.param(
            "backend",
            {"address": '"10.0.0.1:1"', "mode": '"htp"'},
            "[backend] address",
            id="remote backend beside a bad mode",
        ),
        pytest.param(
            "backend",
            {"address": '"0.0.0.0:1"', "zzz": "1"},
            "[backend] address",
            id="remote backend beside an unknown key",
        ),
        pytest.param(
            "listener",
            {"address": '["unix:/a", "unix:/a"]', "tls_minimum_version": "1.3"},
            "[listener] address",
            id="listener on one Unix socket twice beside a bad version",
        ),
    ],
)
def test_one_problem_of_a_table_hides_no_other(
    table: str, keys: dict[str, str], hidden: str
) -> None:
    found = [problem.where for problem in problems(**{table: keys})]
    assert len(found) == 2
    assert hidden in found


def test_message_names_file_table_key_and_both_values() -> None:
    (problem,) = problems(timeouts={"handshake": "0"})
    assert str(problem) == (
        "sidecar.toml: [timeouts] handshake: found 0, expected a number, above 0 and at most 86400"
    )


def test_hint_stands_on_a_line_of_its_own() -> None:
    (problem,) = problems(listener={"adress": '"x"'})
    assert str(problem).endswith("\n    hint: did you mean 'address'?")


def test_name_instead_of_an_address_reads_as_a_sentence() -> None:
    (problem,) = problems(backend={"address": '"localhost:11434"'})
    assert "127.0.0.1" in str(problem)
    assert "expected 'localhost'" not in str(problem)


@pytest.mark.parametrize(
    ("tables", "where"),
    [
        ({"admin": '"127.0.0.1:1"', "health": '"127.0.0.1:1"'}, "[health] address"),
        ({"listener": '"[::]:1"', "health": '"[::]:1"'}, "[health] address"),
        ({"listener": '"unix:/a"', "admin": '"unix:/a"'}, "[admin] address"),
        ({"listener": '"systemd:a"', "admin": '"systemd:a"'}, "[admin] address"),
        ({"listener": '["systemd", "systemd"]'}, "[listener] address"),
    ],
    ids=["port", "listener", "path", "name", "all"],
)
def test_what_is_listened_on_has_one_purpose(tables: dict[str, str], where: str) -> None:
    (problem,) = problems(**{name: {"address": text} for name, text in tables.items()})
    assert (problem.where, problem.expected) == (where, "each address once")


def test_tables_may_share_a_service_manager() -> None:
    read = config(
        listener={"address": '["systemd", "systemd:more", "127.0.0.1:1"]'},
        admin={"address": '"systemd:admin"'},
        health={"address": '"launchd:Health"'},
    )
    wanted = ["systemd", "systemd:more", "systemd:admin", "launchd:Health"]
    assert read.managers() == wanted
