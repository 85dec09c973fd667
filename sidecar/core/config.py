"""TOML text of `sidecar.toml` -> `Config`, or every problem of it at once.

One frozen struct per table; the defaults stand here and nowhere else (`conf/sidecar.toml` shows
them, a test compares). Gets text, gives values; opens no file. A configuration that would
expose the model server, or serve without a policy, is refused here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from sidecar.core.address import Address, WorkloadEndpoint
from sidecar.core.cors import HEADER_NAME, Cors, cors_problems
from sidecar.core.spiffe_id import SCHEME, SpiffeId
from sidecar.core.toml_tables import (
    FileMode,
    FilePath,
    KeyMode,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    shown,
    unknown_key,
)

Seconds = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]
Deadline = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


_AUTHORITY = re.compile(r"[0-9A-Za-z._-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](?::[0-9]{1,5})?")
_URL_PATH = re.compile(r"/[!-\"$-~]*")
_HEADER_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?")
# What frames an answer or belongs to one connection is not for a table to set.
_NOT_SETTABLE = {
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
}


class Authority(str):
    """What a request is addressed by: `name`, `name:port`, or "keep"."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Authority:
        """Refuse what no Host header can hold."""
        if not _AUTHORITY.fullmatch(text):
            raise ValueError('expected a host name or address with or without a port, or "keep"')
        return cls(text)


class UrlPath(str):
    """A path of a URL, with or without a query."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> UrlPath:
        """Refuse what is no path."""
        if not _URL_PATH.fullmatch(text):
            raise ValueError("expected a path that begins with /")
        return cls(text)


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables."""


class WorkloadApiTable(Table, frozen=True):
    """Where our identity comes from; `socket` None means the environment, then the default."""

    socket: WorkloadEndpoint | None = None
    spiffe_id: SpiffeId | None = None
    hint: str = ""
    denied_grace_seconds: Seconds = 30


class ListenerTable(Table, frozen=True):
    """Where peers connect."""

    address: tuple[Address, ...]
    tls_minimum_version: Literal["1.2", "1.3"] = "1.3"


class BackendTable(Table, frozen=True):
    """The model server; `host` empty means its address, "keep" what the peer asked for."""

    address: Address
    mode: Literal["http", "stream"] = "http"
    host: Authority | None = None
    health_path: UrlPath = UrlPath("/api/version")
    unsafe_remote_backend: bool = False


class PolicyTable(Table, frozen=True):
    """Which peers are admitted; the path is relative to the configuration file."""

    file: FilePath


class CertFilesTable(Table, frozen=True):
    """Certificate files for whoever needs files; without this table nothing is written."""

    directory: FilePath
    certificate_mode: FileMode = FileMode(0o644)
    key_mode: KeyMode = KeyMode(0o600)


class ConnectionsTable(Table, frozen=True):
    """How many, and how they end."""

    maximum: Count = 4096
    maximum_handshakes: Count = 256
    drain_seconds: Seconds = 300


class TimeoutsTable(Table, frozen=True):
    """Every wait on somebody outside, in seconds."""

    handshake: Deadline = 10
    request_head: Deadline = 30
    backend_connect: Deadline = 60
    between_bytes: Deadline = 300
    idle: Deadline = 120


class LimitsTable(Table, frozen=True):
    """How much one request, and all of them together, may take in mode `http`."""

    max_head_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1_048_576)] = 32768
    max_body_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_099_511_627_776)] = 104_857_600
    concurrent_requests: Count = 256
    queued_requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 256
    queue_seconds: Seconds = 10


class CorsTable(Table, frozen=True):
    """Pages of other origins that may call us from a browser."""

    allow_origins: tuple[str, ...]
    allow_methods: tuple[str, ...] = ("GET", "POST", "OPTIONS")
    allow_headers: tuple[str, ...] = ("Authorization", "Content-Type", "Accept")
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age_seconds: Annotated[int, msgspec.Meta(ge=0, le=31_536_000)] = 86400

    def cors(self) -> Cors:
        """Give the value that answers."""
        return Cors(**msgspec.structs.asdict(self))


class LogTable(Table, frozen=True):
    """What the log looks like."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Table, frozen=True):
    """The whole of `sidecar.toml`."""

    listener: ListenerTable
    backend: BackendTable
    policy: PolicyTable
    workload_api: WorkloadApiTable = WorkloadApiTable()
    cert_files: CertFilesTable | None = None
    connections: ConnectionsTable = ConnectionsTable()
    timeouts: TimeoutsTable = TimeoutsTable()
    limits: LimitsTable = LimitsTable()
    cors: CorsTable | None = None
    response_headers: tuple[tuple[str, str], ...] = ()
    log: LogTable = LogTable()


TABLES: dict[str, type[Table]] = {
    "workload_api": WorkloadApiTable,
    "listener": ListenerTable,
    "backend": BackendTable,
    "policy": PolicyTable,
    "cert_files": CertFilesTable,
    "connections": ConnectionsTable,
    "timeouts": TimeoutsTable,
    "limits": LimitsTable,
    "cors": CorsTable,
    "log": LogTable,
}
# The one table whose keys are the user's own: names of headers.
RESPONSE_HEADERS = "response_headers"
_REQUIRED = ("listener", "backend", "policy")


def parse_config(text: str, file: str) -> Config:
    """Read `sidecar.toml`; raise `ProblemsError` with all that is wrong with it."""
    document = load_toml(text, file)
    problems: list[Problem] = []
    known = [*TABLES, RESPONSE_HEADERS]
    for key in sorted(document.keys() - set(known)):
        problems.append(unknown_key(file, "", key, known))
    tables: dict[str, Any] = {}
    for name, struct in TABLES.items():
        if name in document:
            tables[name] = read_table(struct, document[name], file, f"[{name}]", problems)
        elif name in _REQUIRED:
            problems.append(Problem(file, f"[{name}]", "no such table", "one"))
    _check_own_id(document.get("workload_api"), file, problems)
    _check_listener(document.get("listener"), file, problems)
    _check_backend(document.get("backend"), file, problems)
    _check_cors(tables.get("cors"), file, problems)
    headers = _response_headers(document.get(RESPONSE_HEADERS, {}), file, problems)
    if problems:
        raise ProblemsError(problems)
    return Config(**tables, response_headers=headers)


# The checks below look at the document and not at the structs, so that one problem of a table
# does not hide another one of it.


def _addresses(table: object) -> list[Address]:
    """Give the addresses of a table that can be read; the others are problems already."""
    values = table.get("address") if isinstance(table, dict) else None
    addresses = []
    for value in values if isinstance(values, list) else [values]:
        try:
            addresses += [Address.parse(value)] if isinstance(value, str) else []
        except ValueError:
            continue
    return addresses


def _check_listener(table: object, file: str, problems: list[Problem]) -> None:
    addresses, where = _addresses(table), "[listener] address"
    for at, address in enumerate(addresses):
        if address.ip is None:
            problems.append(Problem(file, where, repr(str(address)), "ip:port or [ip]:port"))
        if address.port and address in addresses[:at]:
            problems.append(Problem(file, where, f"{str(address)!r} twice", "each address once"))


def _check_own_id(table: object, file: str, problems: list[Problem]) -> None:
    text = table.get("spiffe_id") if isinstance(table, dict) else None
    if isinstance(text, str) and text.startswith(SCHEME) and "/" not in text[len(SCHEME) :]:
        where, expected = "[workload_api] spiffe_id", "the ID of a workload, with a path"
        problems.append(Problem(file, where, repr(text[:256]), expected))


def _check_backend(table: object, file: str, problems: list[Problem]) -> None:
    for address in _addresses(table):
        where, found = "[backend] address", repr(str(address))
        if address.ip is not None and address.port == 0:
            problems.append(Problem(file, where, found, "a port other than 0"))
        allowed = isinstance(table, dict) and table.get("unsafe_remote_backend") is True
        if not address.is_loopback and not allowed:
            hint = (
                "bytes leave this host in plain text otherwise; "
                "unsafe_remote_backend = true allows it"
            )
            problems.append(Problem(file, where, found, "a loopback address or unix:/path", hint))


def _check_cors(table: CorsTable | None, file: str, problems: list[Problem]) -> None:
    for problem in cors_problems(table.cors()) if table else ():
        problems.append(Problem(file, f"[cors] {problem.key}", problem.found, problem.expected))


def _response_headers(
    table: object, file: str, problems: list[Problem]
) -> tuple[tuple[str, str], ...]:
    where = f"[{RESPONSE_HEADERS}]"
    if not isinstance(table, dict):
        problems.append(Problem(file, where, shown(table), "a table"))
        return ()
    for name, value in table.items():
        if not HEADER_NAME.fullmatch(name) or name.lower() in _NOT_SETTABLE:
            expected = "the name of a header that is not ours to frame"
            problems.append(Problem(file, where, f"the key {name!r}", expected))
        if name.lower().startswith("access-control-"):
            expected = "no header that [cors] sets"
            problems.append(Problem(file, where, f"the key {name!r}", expected))
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            expected = "a string of printable ASCII"
            problems.append(Problem(file, f"{where} {name}", shown(value), expected))
    return tuple(table.items())
