"""Configurations as text, for tests that change a key of a table and look what becomes of it."""

from __future__ import annotations

import pytest

from sidecar.core.config import LISTS, HelperConfig, parse_config
from sidecar.core.toml_tables import Problem, ProblemsError

Tables = dict[str, dict[str, str]]
FILE = "sidecar.toml"
SERVES: Tables = {
    "listener": {"address": '"0.0.0.0:6701"'},
    "backend": {"address": '"127.0.0.1:11434"', "mode": '"stream"'},
    "policy": {"file": '"policy.toml"'},
}
HELPS: Tables = {"cert_files": {"directory": '"certs"'}}
# What a table needs besides the key that a test sets.
NEEDED: Tables = {
    **SERVES,
    **HELPS,
    "cors": {"allow_origins": '"https://a"'},
    "identity_files": {"certificate": '"a"', "private_key": '"b"', "bundle": '"c"'},
    "jwt_svid": {"file": '"vault.jwt"', "audience": '"vault"'},
    "after_rotation": {"name": '"nginx"'},
}


def toml(base: Tables, **changes: dict[str, str]) -> str:
    """A whole configuration; values are TOML, an empty one leaves the key out."""
    tables = {name: dict(keys) for name, keys in base.items()}
    for name, keys in changes.items():
        tables[name] = {**NEEDED.get(name, {}), **keys}
    return "".join(_table(name, keys) for name, keys in tables.items())


def _table(name: str, keys: dict[str, str]) -> str:
    head = f"[[{name}]]" if name in LISTS else f"[{name}]"
    return f"{head}\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value)


def helper(text: str = "", /, **changes: dict[str, str]) -> HelperConfig:
    """A configuration without a listener; `text` is TOML at its end."""
    return parse_config(toml(HELPS, **changes) + text, FILE)


def problems_of(text: str) -> tuple[Problem, ...]:
    """All problems of a configuration that has some."""
    with pytest.raises(ProblemsError) as refused:
        parse_config(text, FILE)
    assert all(problem.file == FILE for problem in refused.value.problems)
    return refused.value.problems


def helper_problems(text: str = "", /, **changes: dict[str, str]) -> tuple[Problem, ...]:
    """All problems of a configuration without a listener."""
    return problems_of(toml(HELPS, **changes) + text)


# Values that each kind of key refuses.
NO_TEXT = ["3", "1.5", "true", '["a"]', "{}", "2020-01-01"]
NO_PATH = [*NO_TEXT, '""', '"a\\u0000b"']
NO_SECONDS = ["-1", "-0.001", "nan", "-nan", "inf", "-inf", "1e400", '"3"', "true", "[]", "{}"]
NO_SECONDS += ["2020-01-01", "12:00:00", "1" + "0" * 400]
NO_COUNT = ["-1", "1_000_001", "1.0", "1.5", "nan", "inf", '"1"', "true", "[]", "9" * 400]
NO_SWITCH = ['"true"', "1", "0", '""', "1.0", "[]"]
NO_MODE = ['""', '"0666"', '"0660"', '"0602"', '"0700"', '"0610"', '"1644"', '"4600"', '"-1"']
NO_MODE += ['"0x1a0"', '"0888"', '"rw-r--r--"', "600", "0o600", "true", "[]", '"0000"', '"0040"']
# int() reads these; a mode is three or four octal digits and nothing else.
NO_MODE += ['" 600"', '"600\\n"', '"+600"', '"-0"', '"6_0_0"', '"٦٠٠"']
NO_KEY_MODE = [*NO_MODE, '"0644"', '"0604"', '"0044"']


def row_id(value: object) -> str:
    """The name of a parameter that pytest can show."""
    return str(value)[:24].replace("\0", "NUL")
