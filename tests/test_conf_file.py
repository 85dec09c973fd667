"""`conf/`: the annotated files list every key with its default, and pass the check."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import RESPONSE_HEADERS, TABLES, Config, parse_config
from sidecar.core.policy import RuleLimits
from sidecar.core.policy_file import KINDS, parse_policy
from sidecar.operations.check import DEFAULT_ENDPOINT, check

CONF = Path(__file__).parent.parent / "conf"
TEXT = (CONF / "sidecar.toml").read_text(encoding="utf-8")
KEYS = [
    pytest.param(table, field, id=f"[{table}] {field.name}")
    for table, struct in TABLES.items()
    for field in msgspec.structs.fields(struct)
]
ASSIGNMENT = re.compile(r"(# )?([a-z_]+) = (.+)")


def listed() -> dict[str, dict[str, tuple[Any, bool, str]]]:
    """Table -> key -> its value, whether it is commented out, and the comment above it."""
    tables: dict[str, dict[str, tuple[Any, bool, str]]] = {}
    table = comment = ""
    for line in TEXT.splitlines():
        assignment = ASSIGNMENT.fullmatch(line)
        if line.startswith("["):
            table, comment = line.strip("[]"), ""
            tables[table] = {}
        elif assignment:
            off, key, value = assignment.groups()
            tables[table][key] = (tomllib.loads(f"x = {value}")["x"], bool(off), comment)
            comment = ""
        else:
            comment = f"{comment} {line}" if line.startswith("#") else ""
    return tables


def test_every_table_is_listed_once_and_no_other() -> None:
    assert [name for name in listed() if name != RESPONSE_HEADERS] == list(TABLES)
    fields = {field.name for field in msgspec.structs.fields(Config)}
    assert fields == {*TABLES, RESPONSE_HEADERS} == set(listed())


@pytest.mark.parametrize(("table", "struct"), TABLES.items(), ids=TABLES)
def test_keys_of_a_table_are_listed_in_the_order_of_its_struct(
    table: str, struct: type[msgspec.Struct]
) -> None:
    assert list(listed()[table]) == [field.name for field in msgspec.structs.fields(struct)]


@pytest.mark.parametrize(("table", "field"), KEYS)
def test_key_is_shown_with_its_default(table: str, field: msgspec.structs.FieldInfo) -> None:
    _, off, comment = listed()[table][field.name]
    assert ("No default." in comment) == field.required
    if off:
        assert field.default is None
    elif not field.required:
        read = getattr(parse_config(TEXT, "sidecar.toml"), table)
        assert getattr(read, field.name) == field.default


def test_socket_that_is_commented_out_is_the_one_we_fall_back_to() -> None:
    value, off, _ = listed()["workload_api"]["socket"]
    assert off
    assert WorkloadEndpoint.parse(value) == DEFAULT_ENDPOINT


def test_table_that_may_be_left_out_says_so() -> None:
    optional = [field.name for field in msgspec.structs.fields(Config) if field.default is None]
    assert optional == ["cert_files", "cors"]
    for table in optional:
        before = TEXT[: TEXT.index(f"[{table}]")].splitlines()
        assert "Without this table none " in before[-1]


def test_headers_of_every_answer_are_off_and_can_be_uncommented() -> None:
    assert parse_config(TEXT, "sidecar.toml").response_headers == ()
    text = re.sub(r'^# (?=[XS][A-Za-z-]+ = ")', "", TEXT, flags=re.MULTILINE)
    names = [name for name, _ in parse_config(text, "sidecar.toml").response_headers]
    assert names == ["X-Content-Type-Options", "X-Frame-Options", "Strict-Transport-Security"]


def test_both_files_pass_the_check_together() -> None:
    checked = check(CONF / "sidecar.toml", {})
    assert checked.endpoint == DEFAULT_ENDPOINT
    assert [rule.name for rule in checked.policy.allow] == ["traefik"]


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
    (rule,) = check(CONF / "sidecar.toml", {}).policy.allow
    assert rule.limits == RuleLimits(10, 20, 8, 100 * 1024 * 1024)
