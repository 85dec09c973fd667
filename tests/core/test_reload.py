"""What of a changed configuration holds at once: every key there is, one by one."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.core.config import LISTS, TABLES, Config, parse_config
from sidecar.core.reload import Reload, reload
from tests.core.configurations import FILE, HELPS, NEEDED, SERVES, Tables, row_id, toml

# Everything that serves and writes files, each table there, so that one key at a time can differ.
BASE: Tables = {
    **SERVES,
    **HELPS,
    "cors": NEEDED["cors"],
    "admin": {"address": '"127.0.0.1:6703"'},
    "after_rotation": {"name": '"nginx"', "touch": '"a"'},
    "jwt_svid": NEEDED["jwt_svid"],
}
# Key -> another good value of it.
AT_ONCE: dict[str, dict[str, str]] = {
    "workload_api": {"denied_grace_seconds": "3"},
    "backend": {
        "address": '"127.0.0.1:8000"',
        "host": '"models"',
        "health_path": '"/health"',
        "unsafe_remote_backend": "true",
    },
    "connections": {
        "maximum": "3",
        "maximum_per_peer": "3",
        "maximum_handshakes": "3",
        "drain_seconds": "3",
        "expiry_grace_seconds": "3",
        "revoked_grace_seconds": "3",
        "max_age_seconds": "3",
    },
    "timeouts": {
        "handshake": "3",
        "request_head": "3",
        "request_body": "3",
        "backend_connect": "3",
        "first_byte": "3",
        "between_bytes": "3",
        "idle": "3",
        "health": "3",
    },
    "limits": {
        "max_head_bytes": "4096",
        "max_body_bytes": "3",
        "concurrent_requests": "3",
        "concurrent_requests_per_peer": "3",
        "queued_requests": "3",
        "queue_seconds": "3",
        "min_bytes_per_second": "3",
    },
    "cors": {
        "allow_origins": '["https://b"]',
        "allow_methods": '["GET"]',
        "allow_headers": '["Accept"]',
        "expose_headers": '["X-A"]',
        "allow_credentials": "true",
        "max_age_seconds": "3",
    },
}
AFTER_RESTART: dict[str, dict[str, str]] = {
    "workload_api": {
        "socket": '"unix:/a"',
        "spiffe_id": '"spiffe://example.org/a"',
        "hint": '"a"',
    },
    "listener": {"address": '"0.0.0.0:1"', "tls_minimum_version": '"1.2"'},
    "backend": {"mode": '"http"'},
    "policy": {"file": '"other.toml"'},
    "cert_files": {
        "directory": '"other"',
        "layout": '"kubernetes"',
        "certificate": '"a.pem"',
        "private_key": '"a.pem"',
        "bundle": '"a.pem"',
        "combined": '"a.pem"',
        "jwt_bundle": '"a.json"',
        "owner": '"root"',
        "group": '"root"',
        "certificate_mode": '"0640"',
        "key_mode": '"0400"',
        "intermediates_in_bundle": "true",
        "omit_expired_authorities": "true",
        "federated_bundles": "true",
        "unsafe_merge_federated": "true",
        "unsafe_shared_directory": "true",
    },
    "admin": {"address": '"127.0.0.1:1"'},
    "sandbox": {"enabled": "false"},
    "log": {
        "format": '"json"',
        "level": '"debug"',
        "refusals_per_second": "3",
        "file": '"/var/log/s.log"',
    },
}
# Tables that are named as a whole, by whatever of them differs.
AS_A_WHOLE: dict[str, dict[str, str]] = {
    "health": {"address": '"0.0.0.0:1"'},
    "jwt_svid": {
        "file": '"other.jwt"',
        "audience": '"other"',
        "extra_audiences": '["a"]',
        "mode": '"0400"',
    },
    "after_rotation": {
        "name": '"other"',
        "on": '["jwt"]',
        "touch": '"other"',
        "retries": "3",
    },
}
# Of [[after_rotation]] these belong to another action than `touch`.
OTHER_ACTIONS: dict[str, dict[str, str]] = {
    "pid_file": {"pid_file": '"a.pid"'},
    "signal": {"pid_file": '"a.pid"', "signal": '"SIGUSR1"'},
    "process": {"pid_file": '"a.pid"', "process": '"nginx"'},
    "command": {"command": '["/bin/true"]'},
    "timeout_seconds": {"command": '["/bin/true"]', "timeout_seconds": "3"},
}


def serving(text: str) -> Config:
    config = parse_config(text, FILE)
    assert isinstance(config, Config)
    return config


def changed(**tables: dict[str, str]) -> str:
    """The text with some keys changed and the others as they were."""
    return toml(BASE, **{name: {**BASE.get(name, {}), **keys} for name, keys in tables.items()})


OLD = serving(toml(BASE))


def rows(tables: dict[str, dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(table, key, value) for table, keys in tables.items() for key, value in keys.items()]


@pytest.mark.parametrize(("table", "key", "value"), rows(AT_ONCE), ids=row_id)
def test_key_that_holds_at_once(table: str, key: str, value: str) -> None:
    new = serving(changed(**{table: {key: value}}))
    done = reload(OLD, new)
    assert done.config == new
    assert done.config != OLD
    assert done.needs_restart == ()
    # Of a table that holds as a whole, that is what is told.
    assert done.changed in ((f"[{table}] {key}",), (f"[{table}]",))


@pytest.mark.parametrize(("table", "key", "value"), rows(AFTER_RESTART), ids=row_id)
def test_key_that_waits_for_a_restart_is_named_and_changes_nothing(
    table: str, key: str, value: str
) -> None:
    new = serving(changed(**{table: {key: value}}))
    assert new != OLD, "the row changes nothing"
    assert reload(OLD, new) == Reload(OLD, (), (f"[{table}] {key}",))


@pytest.mark.parametrize(("table", "key", "value"), rows(AS_A_WHOLE), ids=row_id)
def test_table_of_a_list_waits_for_a_restart_whatever_changes_in_it(
    table: str, key: str, value: str
) -> None:
    new = serving(changed(**{table: {key: value}}))
    assert new != OLD, "the row changes nothing"
    assert reload(OLD, new) == Reload(OLD, (), (f"[{table}]",))


@pytest.mark.parametrize("keys", OTHER_ACTIONS.values(), ids=OTHER_ACTIONS.keys())
def test_other_action_waits_for_a_restart(keys: dict[str, str]) -> None:
    new = serving(toml({**BASE, "after_rotation": {"name": '"nginx"', **keys}}))
    assert reload(OLD, new) == Reload(OLD, (), ("[after_rotation]",))


def test_every_key_of_the_configuration_is_in_one_of_these_tables() -> None:
    named: dict[str, set[str]] = {}
    for group in (AT_ONCE, AFTER_RESTART, AS_A_WHOLE, {"after_rotation": OTHER_ACTIONS}):
        for table, keys in group.items():
            assert not named.get(table, set()) & keys.keys()
            named.setdefault(table, set()).update(keys)
    structs = {**TABLES, **LISTS}
    # Instead of the agent, and so not in the same text as [workload_api] socket.
    del structs["identity_files"]
    assert named == {name: set(one.__struct_fields__) for name, one in structs.items()}


FILES = {"certificate": '"a"', "private_key": '"b"', "bundle": '"c"'}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("certificate", '"x"'),
        ("private_key", '"x"'),
        ("bundle", '"x"'),
        ("federated_bundles", '{ "partner.example" = "p" }'),
        ("poll_seconds", "3"),
    ],
)
def test_key_of_identity_files_waits_for_a_restart(key: str, value: str) -> None:
    old = serving(toml(SERVES, identity_files=FILES))
    new = serving(toml(SERVES, identity_files={**FILES, key: value}))
    assert new != old
    assert reload(old, new) == Reload(old, (), (f"[identity_files] {key}",))


def test_all_keys_of_identity_files_are_told_apart() -> None:
    keys = TABLES["identity_files"].__struct_fields__
    assert set(keys) == {*FILES, "federated_bundles", "poll_seconds"}


@pytest.mark.parametrize("table", ["cert_files", "admin", "after_rotation", "jwt_svid"])
def test_table_that_comes_or_goes_waits_for_a_restart(table: str) -> None:
    # JWT-SVIDs are files of [cert_files], and go with it.
    gone = {table, "jwt_svid", "after_rotation"} if table == "cert_files" else {table}
    without = serving(toml({name: keys for name, keys in BASE.items() if name not in gone}))
    there = reload(without, OLD)
    away = reload(OLD, without)
    assert (there.config, there.changed) == (without, ())
    assert (away.config, away.changed) == (OLD, ())
    for done in (there, away):
        assert {name.strip("[]") for name in done.needs_restart} == gone


def test_identity_files_instead_of_the_agent_waits_for_a_restart() -> None:
    old, new = serving(toml(SERVES)), serving(toml(SERVES, identity_files=FILES))
    assert reload(old, new) == Reload(old, (), ("[identity_files]",))
    assert reload(new, old) == Reload(new, (), ("[identity_files]",))


@pytest.mark.parametrize("table", ["cors", "connections", "timeouts", "limits"])
def test_table_that_comes_or_goes_at_once(table: str) -> None:
    keys = AT_ONCE[table]
    old, new = serving(toml(SERVES)), serving(toml(SERVES, **{table: keys}))
    assert reload(old, new) == Reload(new, (f"[{table}]",), ())
    assert reload(new, old) == Reload(old, (f"[{table}]",), ())


def test_headers_of_answers_hold_at_once() -> None:
    new = serving(toml(BASE) + '[response_headers]\nX-Frame-Options = "DENY"\n')
    assert reload(OLD, new) == Reload(new, ("[response_headers]",), ())
    assert reload(new, OLD) == Reload(OLD, ("[response_headers]",), ())


def test_what_can_hold_does_beside_what_has_to_wait() -> None:
    new = serving(
        changed(
            backend={"address": '"127.0.0.1:8000"', "mode": '"http"'},
            limits={"max_body_bytes": "3"},
            workload_api={"hint": '"a"', "denied_grace_seconds": "3"},
            listener={"address": '"0.0.0.0:1"'},
        )
    )
    done = reload(OLD, new)
    assert set(done.changed) == {
        "[workload_api] denied_grace_seconds",
        "[backend] address",
        "[limits]",
    }
    assert set(done.needs_restart) == {
        "[workload_api] hint",
        "[listener] address",
        "[backend] mode",
    }
    in_force = done.config
    assert in_force.listener == OLD.listener
    assert in_force.limits == new.limits
    assert in_force.backend == msgspec.structs.replace(new.backend, mode="stream")
    assert in_force.workload_api == msgspec.structs.replace(new.workload_api, hint="")
    # What waits is named again and again, and only that.
    again = reload(in_force, new)
    assert (again.config, again.changed) == (in_force, ())
    assert set(again.needs_restart) == set(done.needs_restart)


def test_same_configuration_is_no_change() -> None:
    assert reload(OLD, serving(toml(BASE))) == Reload(OLD, (), ())


def test_file_without_a_listener_changes_nothing_and_is_named() -> None:
    helper = parse_config(toml(HELPS), FILE)
    assert not isinstance(helper, Config)
    assert reload(OLD, helper) == Reload(OLD, (), ("[listener]",))
