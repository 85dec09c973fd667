"""`conf/`: the annotated files list every key with its default, and pass the check."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import LISTS, RESPONSE_HEADERS, TABLES, Config, parse_config
from sidecar.core.files_config import LAYOUTS, CertFilesTable
from sidecar.core.policy import Rule, RuleLimits
from sidecar.core.policy_file import KINDS, parse_policy
from sidecar.core.toml_tables import Problem, read_table
from sidecar.operations.check import DEFAULT_ENDPOINT, check

CONF = Path(__file__).parent.parent / "conf"
FILE = "sidecar.toml"
TEXT = (CONF / FILE).read_text(encoding="utf-8")
STRUCTS = TABLES | LISTS
KEYS = [
    pytest.param(table, field, id=f"[{table}] {field.name}")
    for table, struct in STRUCTS.items()
    for field in msgspec.structs.fields(struct)
]
HEAD = re.compile(r"(# )?(\[[a-z_]+\]|\[\[[a-z_]+\]\])")
ASSIGNMENT = re.compile(r"(# )?([a-z_]+) = (.+)")
# A hook has one of three actions; the file shows this one.
EXAMPLE = ("after_rotation", "pid_file")
ACTIONS = {
    "pid_file": ["pid_file", "signal", "process"],
    "command": ["command", "timeout_seconds"],
    "touch": ["touch"],
}


@dataclasses.dataclass
class Shown:
    """A table or key as the file shows it: commented out or not, and the comment above it."""

    line: str
    off: bool
    comment: str
    value: Any = None
    keys: dict[str, Shown] = dataclasses.field(default_factory=dict)


def _listed() -> dict[str, Shown]:
    tables: dict[str, Shown] = {}
    comment = ""
    for line in TEXT.splitlines():
        if head := HEAD.fullmatch(line):
            table = head[2].strip("[]")
            tables[table] = Shown(head[2], bool(head[1]), comment)
        elif assignment := ASSIGNMENT.fullmatch(line):
            off, key, value = assignment.groups()
            read = tomllib.loads(f"x = {value}")["x"]
            tables[table].keys[key] = Shown(f"{key} = {value}", bool(off), comment, read)
        comment = f"{comment} {line}" if line.startswith("#") and not (head or assignment) else ""
    return tables


LISTED = _listed()


def written(table: str, *keys: str) -> str:
    """A table with these keys, or all, as if it were not commented out."""
    shown = LISTED[table]
    lines = [one.line for key, one in shown.keys.items() if not keys or key in keys]
    return "\n".join([shown.line, *lines, ""])


def without(table: str) -> str:
    """The file without one of its tables."""
    return re.sub(rf"^\[{table}\]\n.*?(?=^\[)", "", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_every_table_is_listed_once_and_no_other() -> None:
    heads = [match[2].strip("[]") for match in map(HEAD.fullmatch, TEXT.splitlines()) if match]
    assert len(heads) == len(LISTED)
    assert [name for name in heads if name in TABLES] == list(TABLES)
    assert [name for name in heads if name in LISTS] == list(LISTS)
    fields = {field.name for field in msgspec.structs.fields(Config)}
    assert fields == {*STRUCTS, RESPONSE_HEADERS} == set(heads)
    assert [name for name in LISTED if LISTED[name].line.startswith("[[")] == list(LISTS)


@pytest.mark.parametrize(("table", "struct"), STRUCTS.items(), ids=STRUCTS)
def test_keys_of_a_table_are_listed_in_the_order_of_its_struct(
    table: str, struct: type[msgspec.Struct]
) -> None:
    keys = LISTED[table].keys
    assert list(keys) == [field.name for field in msgspec.structs.fields(struct)]
    if LISTED[table].off:
        assert all(key.off for key in keys.values())


@pytest.mark.parametrize(("table", "field"), KEYS)
def test_key_is_shown_with_its_default(table: str, field: msgspec.structs.FieldInfo) -> None:
    shown = LISTED[table]
    key = shown.keys[field.name]
    assert ("No default." in key.comment) == field.required
    if key.off and not shown.off:
        assert field.default is None
        return
    values = {name: one.value for name, one in shown.keys.items() if one.off == shown.off}
    required = [one.name for one in msgspec.structs.fields(STRUCTS[table]) if one.required]
    bare = {name: values[name] for name in required}
    if (table, field.name) != EXAMPLE:
        assert getattr(_read(table, values), field.name) == getattr(_read(table, bare), field.name)


def _read(table: str, values: dict[str, Any]) -> msgspec.Struct | None:
    problems: list[Problem] = []
    read = read_table(STRUCTS[table], values, FILE, table, problems)
    assert not problems
    return read


def test_file_reads_as_it_is_shown() -> None:
    read = parse_config(TEXT, FILE)
    defaults = {one.name: one.default for one in msgspec.structs.fields(Config)}
    for table, shown in LISTED.items():
        if shown.off:
            assert getattr(read, table) == defaults[table]
        elif table in TABLES:
            assert getattr(read, table) is not None


def test_socket_that_is_commented_out_is_the_one_we_fall_back_to() -> None:
    socket = LISTED["workload_api"].keys["socket"]
    assert socket.off
    assert WorkloadEndpoint.parse(socket.value) == DEFAULT_ENDPOINT


def test_table_that_may_be_left_out_says_so() -> None:
    fields = msgspec.structs.fields(Config)
    optional = {one.name for one in fields if one.default is None} | set(LISTS)
    assert optional == {
        name for name in LISTED if "Without this table none " in LISTED[name].comment
    }
    off = {name for name, shown in LISTED.items() if shown.off}
    assert off == {"identity_files", "cors", "health", *LISTS}


# What is commented out can be uncommented.


def test_identity_may_come_from_files_instead_of_the_agent() -> None:
    read = parse_config(without("workload_api") + written("identity_files"), FILE)
    assert read.identity_files
    assert read.identity_files.certificate == "certs/svid.pem"


def test_pages_of_other_origins_may_call_when_the_table_is_uncommented() -> None:
    read = parse_config(TEXT + written("cors"), FILE)
    assert isinstance(read, Config)
    assert read.cors


def test_jwt_svid_can_be_uncommented_and_written_again() -> None:
    again = written("jwt_svid").replace("vault.jwt", "other.jwt")
    read = parse_config(TEXT + written("jwt_svid") + again, FILE)
    assert [table.file for table in read.jwt_svid] == ["vault.jwt", "other.jwt"]


@pytest.mark.parametrize("action", ACTIONS)
def test_hook_can_be_uncommented_with_one_of_its_actions(action: str) -> None:
    others = {key for keys in ACTIONS.values() for key in keys} - set(ACTIONS[action])
    keys = [key for key in LISTED["after_rotation"].keys if key not in others]
    text = written("after_rotation", *keys)
    # Those that are not the example are shown as not set.
    text = text.replace(f"{action} = []", f'{action} = ["true"]')
    text = text.replace(f'{action} = ""', f'{action} = "t"')
    (table,) = parse_config(TEXT + text, FILE).after_rotation
    assert getattr(table, action)
    assert table.name == "nginx"


def test_table_of_files_alone_is_a_helper() -> None:
    text = "".join(map(written, ("cert_files", "jwt_svid", "log")))
    read = parse_config(text, FILE)
    assert not isinstance(read, Config)
    assert read.cert_files


def test_names_of_a_layout_are_those_that_are_told() -> None:
    comment = LISTED["cert_files"].keys["layout"].comment
    (kind,) = (one.type for one in msgspec.structs.fields(CertFilesTable) if one.name == "layout")
    told = re.findall(r'"([a-z-]+)": ([a-z_.]+), ([a-z_.]+), ([a-z_.]+)\.(?: |$)', comment)
    assert {name: tuple(files) for name, *files in told} == dict(LAYOUTS)
    assert set(LAYOUTS) == set(get_args(kind))


def headers(text: str) -> list[str]:
    read = parse_config(text, FILE)
    assert isinstance(read, Config)
    return [name for name, _ in read.response_headers]


def test_headers_of_every_answer_are_off_and_can_be_uncommented() -> None:
    assert headers(TEXT) == []
    text = re.sub(r'^# (?=[XS][A-Za-z-]+ = ")', "", TEXT, flags=re.MULTILINE)
    assert headers(text) == [
        "X-Content-Type-Options",
        "X-Frame-Options",
        "Strict-Transport-Security",
    ]


def shipped_rules() -> tuple[Rule, ...]:
    """The allow rules of both files together."""
    checked = check(CONF / FILE, {})
    assert checked.endpoint == DEFAULT_ENDPOINT
    assert checked.serving
    return checked.serving.policy.allow


def test_both_files_pass_the_check_together() -> None:
    assert [rule.name for rule in shipped_rules()] == ["traefik"]


@pytest.mark.parametrize("key", ["format", "level"])
def test_values_named_beside_a_key_are_all_that_it_takes(key: str) -> None:
    (line,) = re.findall(rf"^{key} = .+$", TEXT, re.MULTILINE)
    (kind,) = (one.type for one in msgspec.structs.fields(TABLES["log"]) if one.name == key)
    assert set(re.findall(r'"([a-z]+)"', line)) == set(get_args(kind))


def test_policy_lists_both_kinds_of_rules_with_every_key() -> None:
    text = (CONF / "policy.toml").read_text(encoding="utf-8")
    text = re.sub(r"^# (?=\[\[deny|name = |peers = )", "", text, flags=re.MULTILINE)
    document = tomllib.loads(text)
    for kind, table in KINDS.items():
        (written,) = document[kind]
        assert list(written) == [field.name for field in msgspec.structs.fields(table)]
    assert len(parse_policy(text, "p").allow) == 1


def test_limits_in_the_policy_shown_are_those_of_the_setup_it_replaces() -> None:
    (rule,) = shipped_rules()
    assert rule.limits == RuleLimits(10, 20, 8, 100 * 1024 * 1024, 64)
