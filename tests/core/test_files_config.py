"""The tables about files: every key's good and bad values, and what must hold between keys."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.core.config import Config, parse_config
from sidecar.core.files_config import (
    LAYOUTS,
    SIGNALS,
    AfterRotationTable,
    CertFilesTable,
    FileName,
    IdentityFilesTable,
    JwtSvidTable,
)
from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.toml_tables import FilePath
from tests.core.configurations import (
    FILE,
    HELPS,
    NEEDED,
    NO_COUNT,
    NO_KEY_MODE,
    NO_MODE,
    NO_PATH,
    NO_SECONDS,
    NO_SWITCH,
    NO_TEXT,
    SERVES,
    helper,
    helper_problems,
    problems_of,
    row_id,
    toml,
)

TABLES: dict[str, type[msgspec.Struct]] = {
    "identity_files": IdentityFilesTable,
    "cert_files": CertFilesTable,
    "jwt_svid": JwtSvidTable,
    "after_rotation": AfterRotationTable,
}
NAMES = ("certificate", "private_key", "bundle", "combined", "jwt_bundle")
# The action that a key of [[after_rotation]] belongs to.
ACTION = {
    "pid_file": "pid_file",
    "signal": "pid_file",
    "process": "pid_file",
    "command": "command",
    "timeout_seconds": "command",
}
VALUES = {"pid_file": '"nginx.pid"', "command": '["true"]', "touch": '"t"'}


def head(table: str) -> str:
    """A table as a message names it, the first one if there may be several."""
    return f"[[{table}]] #1" if table in ("jwt_svid", "after_rotation") else f"[{table}]"


def keys_of(table: str, key: str, value: str) -> dict[str, str]:
    """A key and what it needs beside it."""
    action = ACTION.get(key, "touch")
    return {action: VALUES[action], key: value} if table == "after_rotation" else {key: value}


def wheres(text: str = "", /, **changes: dict[str, str]) -> list[str]:
    return [problem.where for problem in helper_problems(text, **changes)]


# Each key by itself.


@pytest.mark.parametrize(
    ("table", "key", "value", "wanted"),
    [
        ("identity_files", "certificate", '"/a b/c.pem"', "/a b/c.pem"),
        ("identity_files", "private_key", '"k.pem"', "k.pem"),
        ("identity_files", "bundle", '"certs/current/ca.crt"', "certs/current/ca.crt"),
        ("identity_files", "federated_bundles", "{}", {}),
        (
            "identity_files",
            "federated_bundles",
            '{ "e.org" = "a", "spiffe://f.org" = "b" }',
            {TrustDomain("e.org"): "a", TrustDomain("f.org"): "b"},
        ),
        ("identity_files", "poll_seconds", "0.1", 0.1),
        ("identity_files", "poll_seconds", "86400", 86400.0),
        ("cert_files", "directory", '"/c"', "/c"),
        ("cert_files", "layout", '"spiffe-helper"', "spiffe-helper"),
        ("cert_files", "layout", '"kubernetes"', "kubernetes"),
        *(("cert_files", key, '"a b.pem"', "a b.pem") for key in NAMES),
        *(("cert_files", key, '""', None) for key in NAMES),
        ("cert_files", "combined", '"a..pem"', "a..pem"),
        ("cert_files", "combined", '"generation-x"', "generation-x"),
        ("cert_files", "combined", '"generation-"', "generation-"),
        ("cert_files", "combined", '"currently"', "currently"),
        ("cert_files", "owner", '"traefik"', "traefik"),
        ("cert_files", "owner", '""', None),
        ("cert_files", "group", '"ssl-cert"', "ssl-cert"),
        ("cert_files", "group", '""', None),
        ("cert_files", "certificate_mode", '"0640"', 0o640),
        ("cert_files", "certificate_mode", '"444"', 0o444),
        ("cert_files", "key_mode", '"0400"', 0o400),
        ("cert_files", "key_mode", '"640"', 0o640),
        ("cert_files", "intermediates_in_bundle", "true", True),
        ("cert_files", "omit_expired_authorities", "true", True),
        ("cert_files", "federated_bundles", "true", True),
        ("cert_files", "unsafe_merge_federated", "true", True),
        ("cert_files", "unsafe_shared_directory", "true", True),
        ("jwt_svid", "file", '"a.jwt"', "a.jwt"),
        ("jwt_svid", "audience", '"https://vault.example.org"', "https://vault.example.org"),
        ("jwt_svid", "extra_audiences", '["a", "b"]', ("a", "b")),
        ("jwt_svid", "extra_audiences", '"a"', ("a",)),
        ("jwt_svid", "extra_audiences", "[]", ()),
        ("jwt_svid", "mode", '"0440"', 0o440),
        ("after_rotation", "name", '"reload nginx"', "reload nginx"),
        ("after_rotation", "on", '["jwt"]', ("jwt",)),
        ("after_rotation", "on", '["x509", "jwt"]', ("x509", "jwt")),
        ("after_rotation", "on", '"x509"', ("x509",)),
        ("after_rotation", "pid_file", '"/run/nginx.pid"', "/run/nginx.pid"),
        *(("after_rotation", "signal", f'"{name}"', name) for name in SIGNALS),
        ("after_rotation", "process", '"nginx"', "nginx"),
        ("after_rotation", "process", '""', None),
        ("after_rotation", "command", '["nginx", "-s", "reload"]', ("nginx", "-s", "reload")),
        ("after_rotation", "command", '"/bin/reload"', ("/bin/reload",)),
        ("after_rotation", "command", '["a", "", " ", "$x"]', ("a", "", " ", "$x")),
        ("after_rotation", "timeout_seconds", "0.5", 0.5),
        ("after_rotation", "timeout_seconds", "86400", 86400.0),
        ("after_rotation", "touch", '"dynamic.toml"', "dynamic.toml"),
        ("after_rotation", "retries", "0", 0),
        ("after_rotation", "retries", "1_000_000", 1_000_000),
    ],
    ids=row_id,
)
def test_good_value_is_read(table: str, key: str, value: str, wanted: object) -> None:
    # A hook on JWTs needs one.
    beside = {"jwt_svid": dict[str, str]()} if key == "on" else {}
    read = getattr(helper(**beside, **{table: keys_of(table, key, value)}), table)
    (read,) = read if isinstance(read, tuple) else (read,)
    assert getattr(read, key) == wanted


NO_NAME = [*NO_TEXT, '"a/b"', '"/a"', '"../a"', '"."', '".."', '".hidden"', '".new-a"', '"a\\nb"']
NO_NAME += ['"a\\u0000"', '"\\u001b[1m"', f'"{"a" * 129}"', '"current"', '"generation-1"']
NO_NAME += ['"generation-007"', '"a\\u2028b"']
# APFS does not tell upper from lower case, HFS+ gives other names back than it was given, and a
# file system counts bytes.
NO_NAME += ['"Current"', '"GENERATION-1"', f'"{"é" * 128}"', '"é.pem"']
# An empty table is no action at all.
NO_ACTION = [value for value in NO_TEXT if value != "{}"] + ["{ a = 1 }"]
BAD_VALUES: dict[str, dict[str, list[str]]] = {
    "identity_files": {
        "certificate": NO_PATH,
        "private_key": NO_PATH,
        "bundle": NO_PATH,
        "federated_bundles": ["3", '""', '"a"', '["a"]', "true"],
        "poll_seconds": [*NO_SECONDS, "0", "0.09", "86401"],
    },
    "cert_files": {
        "directory": NO_PATH,
        "layout": [
            '""',
            '"Kubernetes"',
            '"spiffe_helper"',
            '"files"',
            "3",
            "true",
            '["kubernetes"]',
        ],
        **dict.fromkeys(NAMES, NO_NAME),
        "owner": [*NO_TEXT, '" "', '"a\\nb"', "0", "1000"],
        "group": [*NO_TEXT, '" "', '"a\\nb"', "0", "1000"],
        "certificate_mode": NO_MODE,
        "key_mode": NO_KEY_MODE,
        "intermediates_in_bundle": NO_SWITCH,
        "omit_expired_authorities": NO_SWITCH,
        "federated_bundles": NO_SWITCH,
        "unsafe_merge_federated": NO_SWITCH,
        "unsafe_shared_directory": NO_SWITCH,
    },
    "jwt_svid": {
        "file": [*NO_NAME, '""'],
        "audience": [*NO_TEXT, '""', '" "', '"a\\nb"'],
        "extra_audiences": ["3", "true", "{}", '""', '[""]', "[3]", '[["a"]]', '["a\\nb"]'],
        "mode": NO_KEY_MODE,
    },
    "after_rotation": {
        "name": [*NO_TEXT, '""', '"\\t"', '"a\\nb"'],
        "on": ["[]", '""', '"x.509"', '["X509"]', '["svid"]', "3", "true", '[["x509"]]'],
        "pid_file": [*NO_ACTION, '"a\\u0000b"'],
        "signal": ['""', '"HUP"', '"sighup"', '"SIGKILL"', '"SIGSTOP"', "1", "true", '["SIGHUP"]'],
        "process": [*NO_TEXT, '" "', '"a\\nb"'],
        "command": ["3", "true", "[3]", '[["a"]]', '["a\\u0000"]', '"nginx -s reload"', '[""]'],
        "timeout_seconds": [*NO_SECONDS, "0", "86400.5"],
        "touch": [*NO_ACTION, '"a\\u0000b"'],
        "retries": NO_COUNT,
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
    (problem,) = helper_problems(**{table: keys_of(table, key, value)})
    assert problem.where == f"{head(table)} {key}"
    assert problem.found
    assert problem.expected


def test_every_key_has_bad_values_above() -> None:
    keys = {name: set(struct.__struct_fields__) for name, struct in TABLES.items()}
    assert {name: set(rows) for name, rows in BAD_VALUES.items()} == keys


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (table, field.name)
        for table, struct in TABLES.items()
        for field in msgspec.structs.fields(struct)
        if field.required
    ],
)
def test_key_without_a_default_must_be_there(table: str, key: str) -> None:
    keys = {key: "", **({"touch": '"t"'} if table == "after_rotation" else {})}
    (problem,) = helper_problems(**{table: keys})
    assert (problem.where, problem.found) == (f"{head(table)} {key}", "nothing")


@pytest.mark.parametrize(
    ("table", "key", "near"),
    [
        ("identity_files", "privat_key", "private_key"),
        ("cert_files", "certificates_mode", "certificate_mode"),
        ("cert_files", "merge_federated", "unsafe_merge_federated"),
        ("jwt_svid", "audiences", "audience"),
        ("after_rotation", "cmd", "command"),
        ("after_rotation", "zzz", None),
    ],
)
def test_unknown_key_comes_with_the_nearest_known_one(
    table: str, key: str, near: str | None
) -> None:
    (problem,) = helper_problems(**{table: keys_of(table, key, "1")})
    assert (problem.where, problem.found) == (head(table), f"the unknown key {key!r}")
    assert problem.hint == (near and f"did you mean {near!r}?")


def test_layouts_name_three_files_that_a_user_may_name_too() -> None:
    assert set(LAYOUTS) == {"spiffe-helper", "kubernetes"}
    for names in LAYOUTS.values():
        assert len(set(names)) == 3
        assert [FileName.parse(name) for name in names] == list(names)


def test_name_may_be_long_but_no_longer_than_a_file_system_takes() -> None:
    assert FileName.parse("a" * 128) == "a" * 128


# One source of the identity.


@pytest.mark.parametrize("base", [HELPS, SERVES], ids=["helper", "serving"])
def test_files_may_be_where_the_identity_comes_from(base: dict[str, dict[str, str]]) -> None:
    read = parse_config(toml(base, identity_files={}), FILE)
    a, b, c = map(FilePath, "abc")
    assert read.identity_files == IdentityFilesTable(certificate=a, private_key=b, bundle=c)


@pytest.mark.parametrize(
    ("beside", "where"),
    [
        pytest.param({"workload_api": {}}, "[workload_api]", id="the agent"),
        pytest.param({"workload_api": {"hint": '"a"'}}, "[workload_api]", id="its hint"),
        pytest.param({"jwt_svid": {}}, "[[jwt_svid]]", id="a JWT-SVID"),
        pytest.param(
            {"cert_files": {"jwt_bundle": '"j"'}}, "[cert_files] jwt_bundle", id="a JWT bundle"
        ),
    ],
)
def test_identity_has_one_source(beside: dict[str, dict[str, str]], where: str) -> None:
    (problem,) = helper_problems(identity_files={}, **beside)
    assert problem.where == where
    assert "[identity_files]" in problem.expected
    assert wheres(log={}, **beside, identity_files={"bundle": "3"}) == [
        "[identity_files] bundle",
        where,
    ]


def test_no_jwt_bundle_beside_identity_files_is_fine() -> None:
    helper(identity_files={}, cert_files={"jwt_bundle": '""'})


def test_trust_domain_has_one_bundle_however_it_is_written() -> None:
    both = '{ "other.org" = "x", "third.org" = "z", "spiffe://other.org" = "y" }'
    (problem,) = helper_problems(identity_files={"federated_bundles": both})
    assert problem.where == "[identity_files] federated_bundles"
    assert "'other.org'" in problem.found


@pytest.mark.parametrize("key", ["Other.org", "", "a b", "spiffe://other.org/a"])
def test_key_that_is_no_trust_domain_is_told(key: str) -> None:
    table = {"federated_bundles": f'{{ "{key}" = "x" }}'}
    (problem,) = helper_problems(identity_files=table)
    assert problem.where == "[identity_files] federated_bundles: key"
    assert "trust domain" in problem.expected


# Names in one directory.


@pytest.mark.parametrize(
    ("keys", "where", "other"),
    [
        pytest.param(
            {"certificate": '"svid_key.pem"'},
            "[cert_files] private_key",
            "[cert_files] certificate",
            id="an own name and one of the layout",
        ),
        pytest.param(
            {"layout": '"kubernetes"', "bundle": '"tls.crt"'},
            "[cert_files] bundle",
            "[cert_files] certificate",
            id="one of the other layout",
        ),
        pytest.param(
            {"certificate": '"a"', "bundle": '"a"'},
            "[cert_files] bundle",
            "[cert_files] certificate",
            id="two own names",
        ),
        pytest.param(
            {"combined": '"svid.pem"'},
            "[cert_files] combined",
            "[cert_files] certificate",
            id="combined and certificate",
        ),
        pytest.param(
            {"jwt_bundle": '"svid_bundle.pem"'},
            "[cert_files] jwt_bundle",
            "[cert_files] bundle",
            id="both bundles",
        ),
        pytest.param(
            {"combined": '"a"', "jwt_bundle": '"a"'},
            "[cert_files] jwt_bundle",
            "[cert_files] combined",
            id="combined and JWT bundle",
        ),
        pytest.param(
            {"combined": '"vault.jwt"'},
            "[[jwt_svid]] #1 file",
            "[cert_files] combined",
            id="JWT-SVID and combined",
        ),
        pytest.param(
            {"private_key": '"vault.jwt"'},
            "[[jwt_svid]] #1 file",
            "[cert_files] private_key",
            id="JWT-SVID and key",
        ),
        pytest.param(
            {"certificate": '"SVID_KEY.pem"'},
            "[cert_files] private_key",
            "[cert_files] certificate",
            id="only the case differs",
        ),
    ],
)
def test_two_files_have_two_names(keys: dict[str, str], where: str, other: str) -> None:
    (problem,) = helper_problems(cert_files=keys, jwt_svid={})
    assert problem.where == where
    assert problem.expected == f"a name other than that of {other}"


def test_two_jwt_svids_have_two_files() -> None:
    table = '[[jwt_svid]]\nfile = "{}"\naudience = "a"\n'
    (problem,) = helper_problems(table.format("b") + table.format("vault.jwt"), jwt_svid={})
    assert problem.where == "[[jwt_svid]] #3 file"
    assert problem.expected == "a name other than that of [[jwt_svid]] #1 file"


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"certificate": '"svid_key.pem"', "private_key": '"svid.pem"'}, id="swapped"),
        pytest.param({"combined": '"tls.key"'}, id="a name of the layout that is not used"),
        pytest.param({"layout": '"kubernetes"', "combined": '"svid.pem"'}, id="the other way"),
        pytest.param({"combined": '""', "jwt_bundle": '""'}, id="empty means none"),
    ],
)
def test_names_that_only_look_alike_are_fine(keys: dict[str, str]) -> None:
    helper(cert_files=keys, jwt_svid={"file": '"x"'})


@pytest.mark.parametrize(
    ("keys", "file"),
    [
        pytest.param({}, "svid_bundle.other.org.pem", id="spiffe-helper"),
        pytest.param({"layout": '"kubernetes"'}, "ca.other.org.crt", id="kubernetes"),
        pytest.param({"bundle": '"roots"'}, "roots.other.org", id="a name without a suffix"),
    ],
)
def test_jwt_svid_keeps_off_the_names_of_federated_bundles(keys: dict[str, str], file: str) -> None:
    """Which trust domains there will be is known at run time only."""
    jwt = {"file": f'"{file}"'}
    assert wheres(cert_files={**keys, "federated_bundles": "true"}, jwt_svid=jwt) == [
        "[[jwt_svid]] #1 file"
    ]
    helper(cert_files=keys, jwt_svid=jwt)


def test_jwt_svid_needs_a_directory() -> None:
    (problem,) = problems_of(toml(SERVES, jwt_svid={}))
    assert problem.where == "[[jwt_svid]]"
    assert "[cert_files]" in problem.expected


def test_federated_bundles_are_apart_or_merged() -> None:
    both = {"federated_bundles": "true", "unsafe_merge_federated": "true"}
    (problem,) = helper_problems(cert_files=both)
    assert problem.where == "[cert_files] unsafe_merge_federated"
    assert "sign for every trust domain" in (problem.hint or "")
    helper(cert_files={**both, "federated_bundles": "false"})
    helper(cert_files={**both, "unsafe_merge_federated": "false"})


# Hooks.


@pytest.mark.parametrize("action", VALUES)
def test_hook_has_one_action(action: str) -> None:
    (read,) = helper(after_rotation={action: VALUES[action]}).after_rotation
    assert read.name == "nginx"


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        pytest.param({}, "no action", id="none"),
        pytest.param({"command": "[]"}, "no action", id="a command of nothing"),
        pytest.param({"pid_file": '""', "touch": '""'}, "no action", id="empty ones"),
        pytest.param(
            {"touch": '"t"', "pid_file": '"p"'}, "pid_file and touch", id="signal and touch"
        ),
        pytest.param(
            {"touch": '"t"', "command": '["c"]'}, "command and touch", id="command and touch"
        ),
        pytest.param(
            {"touch": '"t"', "command": '["c"]', "pid_file": '"p"'},
            "pid_file and command and touch",
            id="all",
        ),
    ],
)
def test_hook_has_no_more_and_no_less_than_one_action(actions: dict[str, str], found: str) -> None:
    (problem,) = helper_problems(after_rotation=actions)
    assert (problem.where, problem.found) == ("[[after_rotation]] #1", found)
    assert problem.expected == "one of pid_file, command, touch"


@pytest.mark.parametrize("action", VALUES)
@pytest.mark.parametrize(
    ("key", "value"), [("signal", '"SIGHUP"'), ("process", '"nginx"'), ("timeout_seconds", "30")]
)
def test_key_of_another_action_is_refused(action: str, key: str, value: str) -> None:
    keys = {action: VALUES[action], key: value}
    if ACTION[key] == action:
        helper(after_rotation=keys)
        return
    (problem,) = helper_problems(after_rotation=keys)
    assert problem.where == f"[[after_rotation]] #1 {key}"
    assert problem.expected == f"it beside {ACTION[key]} only"


@pytest.mark.parametrize("action", ["command", "touch"])
def test_empty_key_of_another_action_is_not_set(action: str) -> None:
    helper(after_rotation={action: VALUES[action], "process": '""'})


def test_command_in_one_piece_is_told_how_to_be_written() -> None:
    (problem,) = helper_problems(after_rotation={"command": '"systemctl reload nginx"'})
    assert problem.expected == "a list of strings"
    assert "without a shell" in (problem.hint or "")


def test_hooks_have_names_of_their_own() -> None:
    hook = '[[after_rotation]]\nname = "{}"\ntouch = "t"\n'
    text = "".join(map(hook.format, ("a", "b", "a", "c", "b", "a")))
    found = helper_problems(text)
    assert [problem.where for problem in found] == [
        "[[after_rotation]] name = 'a'",
        "[[after_rotation]] name = 'b'",
    ]
    assert len(helper("".join(map(hook.format, "abc"))).after_rotation) == 3


def test_problem_of_a_hook_says_which() -> None:
    text = '[[after_rotation]]\nname = "b"\n[[after_rotation]]\nname = "c"\ntouch = 3\n'
    assert wheres(text, after_rotation={"touch": '"t"'}) == [
        "[[after_rotation]] #3 touch",
        "[[after_rotation]] #2",
    ]


def test_hook_without_files_would_never_be_due() -> None:
    (problem,) = problems_of(toml(SERVES, after_rotation={"touch": '"t"'}))
    assert problem.where == "[[after_rotation]]"
    assert "[cert_files]" in problem.expected


def test_hook_on_jwts_needs_one() -> None:
    hook = {"touch": '"t"', "on": '["jwt"]'}
    (problem,) = helper_problems(after_rotation=hook)
    assert problem.where == "[[after_rotation]] #1 on"
    helper(after_rotation=hook, jwt_svid={})
    helper(after_rotation=hook, cert_files={"jwt_bundle": '"j"'})


# All at once.


@pytest.mark.parametrize(
    ("changes", "hidden"),
    [
        pytest.param(
            {"cert_files": {"bundle": '"svid.pem"', "zzz": "1"}},
            "[cert_files] bundle",
            id="a name that is taken, beside an unknown key",
        ),
        pytest.param(
            {"cert_files": {"layout": '"x"', "combined": '"svid.pem"'}},
            "[cert_files] combined",
            id="a name that is taken, beside an unknown layout",
        ),
        pytest.param(
            {"jwt_svid": {"file": '"svid.pem"', "audience": ""}},
            "[[jwt_svid]] #1 file",
            id="a name that is taken, beside a missing key",
        ),
        pytest.param(
            {"after_rotation": {"retries": "-1"}},
            "[[after_rotation]] #1",
            id="no action, beside a bad number",
        ),
        pytest.param(
            {"identity_files": {"poll_seconds": "0"}, "workload_api": {}},
            "[workload_api]",
            id="two sources, one of them bad",
        ),
    ],
)
def test_one_problem_of_a_table_hides_no_other(
    changes: dict[str, dict[str, str]], hidden: str
) -> None:
    found = wheres(**changes)
    assert len(found) == 2
    assert hidden in found


@pytest.mark.parametrize(
    "text",
    [
        "cert_files = 3",
        "cert_files = []",
        "[[cert_files]]",
        "jwt_svid = 3\n[cert_files]\ndirectory = 'c'",
        "jwt_svid = [3]\n[cert_files]\ndirectory = 'c'",
        "after_rotation = 'a'\n[cert_files]\ndirectory = 'c'",
        "after_rotation = [[]]\n[cert_files]\ndirectory = 'c'",
        "identity_files = [3]\n[cert_files]\ndirectory = 'c'",
    ],
)
def test_table_that_is_none_is_one_problem(text: str) -> None:
    assert len(problems_of(text)) == 1


def test_defaults_are_those_of_spiffe_helper_with_the_key_for_its_owner_only() -> None:
    read = helper().cert_files
    assert read == CertFilesTable(directory=FilePath("certs"))
    assert (read.layout, read.certificate_mode, read.key_mode) == ("spiffe-helper", 0o644, 0o600)
    assert not read.federated_bundles
    assert not read.unsafe_merge_federated
    assert not read.unsafe_shared_directory


def test_serving_configuration_reads_the_same_tables() -> None:
    tables = {name: NEEDED[name] for name in ("cert_files", "jwt_svid")}
    read = parse_config(toml(SERVES, **tables, after_rotation={"touch": '"t"'}), FILE)
    alone = helper(jwt_svid={}, after_rotation={"touch": '"t"'})
    assert isinstance(read, Config)
    for name in ("cert_files", "jwt_svid", "after_rotation"):
        assert getattr(read, name) == getattr(alone, name)
