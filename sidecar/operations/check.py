"""`check`: configuration and policy, all problems at once. `run` starts with the same.

Reads the two files and nothing else: it needs neither agent nor backend, and no privileges
beyond reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sidecar.core.address import ENDPOINT_VARIABLE, Address, WorkloadEndpoint, is_for_both_families
from sidecar.core.after_rotation import hook
from sidecar.core.checked import Checked, Serving
from sidecar.core.config import Config, HelperConfig, parse_config
from sidecar.core.errors import ConfigError, HostError
from sidecar.core.policy_file import parse_policy
from sidecar.core.policy_lint import policy_warnings
from sidecar.core.toml_tables import Problem, ProblemsError, load_toml
from sidecar.reading import read_text_now

DEFAULT_ENDPOINT = WorkloadEndpoint(Address(None, 0, "/opt/spire/sockets/agent.sock"))


def check(path: Path, environment: Mapping[str, str]) -> Checked:
    """Read and check both files; raise `ProblemsError` with the problems of both."""
    text = read_file(path)
    problems: list[Problem] = []
    config: HelperConfig | None = None
    serving = endpoint = None
    try:
        config = parse_config(text, path.name)
    except ProblemsError as exc:
        problems += exc.problems
    try:
        explicit = config.workload_api.socket if config else None
        unused = config is not None and config.identity_files is not None
        endpoint = explicit or (DEFAULT_ENDPOINT if unused else _endpoint(environment))
    except ProblemsError as exc:
        problems += exc.problems
    policy_file = config.policy.file if isinstance(config, Config) else _policy_file(text)
    if policy_file:
        try:
            policy_text = read_file(path.parent / policy_file)
            mode = config.backend.mode if isinstance(config, Config) else "http"
            policy = parse_policy(policy_text, policy_file, mode)
            serving = Serving(config, policy, policy_text) if isinstance(config, Config) else None
        except ProblemsError as exc:
            problems += exc.problems
        except ConfigError as exc:
            expected = f"a readable file ({exc.message})"
            problems.append(Problem(path.name, "[policy] file", repr(policy_file), expected))
    if problems or config is None or endpoint is None:
        raise ProblemsError(problems)
    file = path.absolute()
    return Checked(config, endpoint, str(file.parent), serving, str(file), text)


def summary(checked: Checked) -> Iterator[str]:
    """Say in a few lines what this configuration does."""
    config, serving = checked.config, checked.serving
    wanted = config.workload_api.spiffe_id or config.workload_api.hint or "the agent's first SVID"
    if config.identity_files:
        yield f"identity  {config.identity_files.certificate}, whatever ID it has"
    else:
        yield f"identity  {wanted}, from {checked.endpoint}"
    if serving:
        listener, backend, policy = serving.config.listener, serving.config.backend, serving.policy
        where = ", ".join(_told(one, listener.address) for one in listener.address)
        yield f"listener  {where}, TLS {listener.tls_minimum_version} or newer"
        yield f"backend   {backend.address}, mode {backend.mode}"
        yield f"policy    {len(policy.allow)} allow, {len(policy.deny)} deny"
    if config.health:
        yield f"health    {_told(config.health.address, ())}, /livez and /readyz for all who ask"
    if config.cert_files:
        yield f"files     {Path(checked.directory) / config.cert_files.directory}"
    for jwt in config.jwt_svid:
        yield f"JWT-SVID  {jwt.file}, for {', '.join((jwt.audience, *jwt.extra_audiences))}"
    for table in config.after_rotation:
        yield f"then      {table.name}: {hook(table).action}"


def _told(address: Address, beside: Sequence[Address]) -> str:
    """Say of `[::]` which families it is for, as the system's own default differs."""
    if not is_for_both_families(address, beside):
        return str(address)
    return f"{address} (IPv6 and IPv4)"


def warnings(checked: Checked) -> Iterator[str]:
    """Give what is legal and yet most likely not what was meant."""
    if checked.serving:
        config = checked.serving.config
        for warning in policy_warnings(checked.serving.policy, config):
            yield f"{config.policy.file}: {warning}"


def read_file(path: Path) -> str:
    """Read a text file, or raise `ConfigError`; `HostError` if the disk does not answer."""
    try:
        return read_text_now(path)
    except TimeoutError as exc:
        raise HostError(f"cannot read {path}: {exc.strerror}", "a mount that hangs?") from exc
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
