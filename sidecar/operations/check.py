"""`check`: configuration and policy, all problems at once. `run` starts with the same.

Reads the two files and nothing else: it needs neither agent nor backend, and no privileges
beyond reading them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sidecar.core.address import ENDPOINT_VARIABLE, Address, WorkloadEndpoint
from sidecar.core.config import Config, parse_config
from sidecar.core.errors import ConfigError
from sidecar.core.policy import Policy
from sidecar.core.policy_file import parse_policy
from sidecar.core.toml_tables import Problem, ProblemsError, load_toml

DEFAULT_ENDPOINT = WorkloadEndpoint(Address(None, 0, "/opt/spire/sockets/agent.sock"))


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration that can be run; relative paths are below `directory`."""

    config: Config
    policy: Policy
    policy_text: str
    endpoint: WorkloadEndpoint
    directory: Path


def check(path: Path, environment: Mapping[str, str]) -> Checked:
    """Read and check both files; raise `ProblemsError` with the problems of both."""
    text = _read(path)
    problems: list[Problem] = []
    config = policy = endpoint = None
    policy_text = ""
    try:
        config = parse_config(text, path.name)
    except ProblemsError as exc:
        problems += exc.problems
    try:
        explicit = config.workload_api.socket if config else None
        endpoint = explicit or _endpoint(environment)
    except ProblemsError as exc:
        problems += exc.problems
    policy_file = config.policy.file if config else _policy_file(text)
    if policy_file:
        try:
            policy_text = _read(path.parent / policy_file)
            mode = config.backend.mode if config else "http"
            policy = parse_policy(policy_text, policy_file, mode)
        except ProblemsError as exc:
            problems += exc.problems
        except ConfigError as exc:
            expected = f"a readable file ({exc.message})"
            problems.append(Problem(path.name, "[policy] file", repr(policy_file), expected))
    if config is None or policy is None or endpoint is None:
        raise ProblemsError(problems)
    return Checked(config, policy, policy_text, endpoint, path.parent)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 ({exc.reason})") from exc


def _endpoint(environment: Mapping[str, str]) -> WorkloadEndpoint:
    text = environment.get(ENDPOINT_VARIABLE)
    if not text:
        return DEFAULT_ENDPOINT
    try:
        return WorkloadEndpoint.parse(text)
    except ValueError as exc:
        expected = str(exc).removeprefix("expected ")
        raise ProblemsError([Problem(f"${ENDPOINT_VARIABLE}", "", repr(text), expected)]) from exc


def _policy_file(text: str) -> str | None:
    """Find the policy of a configuration that has problems, to tell the policy's as well."""
    try:
        table = load_toml(text, "").get("policy")
    except ProblemsError:
        return None
    name = table.get("file") if isinstance(table, dict) else None
    return name if isinstance(name, str) and name and "\0" not in name else None
