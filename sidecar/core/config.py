"""TOML text of `sidecar.toml` -> `Config`, or every problem of it at once.

One frozen struct per table; the defaults stand here and nowhere else (`conf/sidecar.toml` shows
them, a test compares). Gets text, gives values; opens no file. A configuration that would
expose the model server, or serve without a policy, is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import msgspec

from sidecar.core.address import Address, Inherited, ListenAddress, WorkloadEndpoint
from sidecar.core.cors import HEADER_NAME, SDK_HEADERS, Cors, cors_problems
from sidecar.core.files_config import (
    AfterRotationTable,
    CertFilesTable,
    IdentityFilesTable,
    JwtSvidTable,
    files_problems,
)
from sidecar.core.limits import Pace
from sidecar.core.spiffe_id import SCHEME, SpiffeId
from sidecar.core.toml_tables import (
    FilePath,
    Problem,
    ProblemsError,
    Table,
    load_toml,
    read_table,
    read_tables,
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


def most_of(count: int) -> int:
    """Return three quarters, rounded up: what one peer may have if nothing else is configured.

    Often one peer, a proxy, is all there is, and a small share would waste the rest. From four
    places on there is always one that a single peer cannot take.
    """
    return -(-count * 3 // 4)


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


class WorkloadApiTable(Table, frozen=True):
    """Where our identity comes from; `socket` None means the environment, then the default."""

    socket: WorkloadEndpoint | None = None
    spiffe_id: SpiffeId | None = None
    hint: str = ""
    denied_grace_seconds: Seconds = 30


class ListenerTable(Table, frozen=True):
    """Where peers connect."""

    address: tuple[ListenAddress, ...]
    tls_minimum_version: Literal["1.2", "1.3"] = "1.3"


class BackendTable(Table, frozen=True):
    """The model server; `host` empty means its address, "keep" what the peer asked for."""

    address: Address
    mode: Literal["http", "stream"] = "http"
    host: Authority | None = None
    health_path: UrlPath = UrlPath("/api/version")
    unsafe_remote_backend: bool = False

    @property
    def authority(self) -> str:
        """Return the Host of requests of our own."""
        if self.host not in (None, "keep"):
            return str(self.host)
        return "localhost" if self.address.ip is None else str(self.address)


class PolicyTable(Table, frozen=True):
    """Which peers are admitted; the path is relative to the configuration file."""

    file: FilePath


class ConnectionsTable(Table, frozen=True):
    """How many, and how they end."""

    maximum: Count = 4096
    maximum_per_peer: Count | None = None
    maximum_handshakes: Count = 256
    drain_seconds: Seconds = 300
    expiry_grace_seconds: Seconds = 300
    revoked_grace_seconds: Seconds = 0
    max_age_seconds: Seconds = 0

    @property
    def of_one_peer(self) -> int:
        """Return how many connections one peer may have."""
        return self.maximum_per_peer or most_of(self.maximum)


class TimeoutsTable(Table, frozen=True):
    """Every wait on somebody outside, in seconds."""

    handshake: Deadline = 10
    request_head: Deadline = 30
    request_body: Deadline = 3600
    backend_connect: Deadline = 60
    first_byte: Deadline = 600
    between_bytes: Deadline = 300
    idle: Deadline = 120
    health: Deadline = 5


class LimitsTable(Table, frozen=True):
    """How much one request, and all of them together, may take in mode `http`."""

    max_head_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1_048_576)] = 32768
    max_body_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_099_511_627_776)] = 104_857_600
    concurrent_requests: Count = 256
    concurrent_requests_per_peer: Count | None = None
    queued_requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 256
    queue_seconds: Seconds = 10
    min_bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1024

    @property
    def of_one_peer(self) -> int:
        """Return how many requests of one peer may run."""
        return self.concurrent_requests_per_peer or most_of(self.concurrent_requests)


class CorsTable(Table, frozen=True):
    """Pages of other origins that may call us from a browser."""

    allow_origins: tuple[str, ...]
    allow_methods: tuple[str, ...] = ("GET", "POST", "OPTIONS")
    allow_headers: tuple[str, ...] = SDK_HEADERS
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age_seconds: Annotated[int, msgspec.Meta(ge=0, le=31_536_000)] = 86400

    def cors(self) -> Cors:
        """Give the value that answers."""
        return Cors(**msgspec.structs.asdict(self))


class AdminTable(Table, frozen=True):
    """Health, status and metrics, for this host alone; without this table there are none."""

    address: ListenAddress = cast(ListenAddress, Address.parse("127.0.0.1:6703"))


class HealthTable(Table, frozen=True):
    """/livez and /readyz without details, for whoever asks; without this table there are none."""

    address: ListenAddress


class SandboxTable(Table, frozen=True):
    """Whether the process gives up what it does not need after its start."""

    enabled: bool = True


class LogTable(Table, frozen=True):
    """What the log looks like, and where it goes: to standard error without a `file`."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    refusals_per_second: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 20
    file: FilePath | None = None


class HelperConfig(Table, frozen=True):
    """A `sidecar.toml` without a listener: an identity, and the files that are made of it."""

    workload_api: WorkloadApiTable = WorkloadApiTable()
    identity_files: IdentityFilesTable | None = None
    cert_files: CertFilesTable | None = None
    jwt_svid: tuple[JwtSvidTable, ...] = ()
    after_rotation: tuple[AfterRotationTable, ...] = ()
    admin: AdminTable | None = None
    health: HealthTable | None = None
    sandbox: SandboxTable = SandboxTable()
    log: LogTable = LogTable()

    def listens_on(self) -> Iterator[Address]:
        """Yield every address that is listened on."""
        yield from (one.address for one in (self.admin, self.health) if one is not None)

    def managers(self) -> list[str]:
        """Return what the service manager hands over: "systemd:NAME" and its like."""
        return [one.manager for one in self.listens_on() if isinstance(one, Inherited)]


class Config(HelperConfig, frozen=True, kw_only=True):
    """The whole of `sidecar.toml`: what serves, and whatever a helper has."""

    listener: ListenerTable
    backend: BackendTable
    policy: PolicyTable
    connections: ConnectionsTable = ConnectionsTable()
    timeouts: TimeoutsTable = TimeoutsTable()
    limits: LimitsTable = LimitsTable()
    cors: CorsTable | None = None
    response_headers: tuple[tuple[str, str], ...] = ()

    def listens_on(self) -> Iterator[Address]:
        """Yield every address that is listened on."""
        yield from self.listener.address
        yield from HelperConfig.listens_on(self)

    @property
    def pace(self) -> Pace:
        """Return how slow the peer of one request may be."""
        return Pace(self.timeouts.request_body, self.limits.min_bytes_per_second)


TABLES: dict[str, type[Table]] = {
    "workload_api": WorkloadApiTable,
    "identity_files": IdentityFilesTable,
    "listener": ListenerTable,
    "backend": BackendTable,
    "policy": PolicyTable,
    "cert_files": CertFilesTable,
    "connections": ConnectionsTable,
    "timeouts": TimeoutsTable,
    "limits": LimitsTable,
    "cors": CorsTable,
    "admin": AdminTable,
    "health": HealthTable,
    "sandbox": SandboxTable,
    "log": LogTable,
}
# Tables of which there may be several.
LISTS: dict[str, type[Table]] = {"jwt_svid": JwtSvidTable, "after_rotation": AfterRotationTable}
# The one table whose keys are the user's own: names of headers.
RESPONSE_HEADERS = "response_headers"
_REQUIRED = ("listener", "backend", "policy")
_SERVING = (*_REQUIRED[1:], "connections", "timeouts", "limits", "cors", RESPONSE_HEADERS)


def parse_config(text: str, file: str) -> HelperConfig:
    """Read `sidecar.toml`, a `Config` if it has a listener; raise all problems at once."""
    document = load_toml(text, file)
    problems: list[Problem] = []
    known = [*TABLES, *LISTS, RESPONSE_HEADERS]
    for key in sorted(document.keys() - set(known)):
        problems.append(unknown_key(file, "", key, known))
    tables: dict[str, Any] = {}
    for name, struct in TABLES.items():
        if name in document:
            tables[name] = read_table(struct, document[name], file, f"[{name}]", problems)
    for name, struct in LISTS.items():
        tables[name] = tuple(read_tables(struct, name, document, file, problems))
    _check_own_id(document.get("workload_api"), file, problems)
    _check_purpose(document, file, problems)
    _check_addresses(document, file, problems)
    _check_backend(document.get("backend"), file, problems)
    _check_admin(document.get("admin"), file, problems)
    _check_cors(tables.get("cors"), file, problems)
    problems += files_problems(document, file)
    headers = _response_headers(document.get(RESPONSE_HEADERS, {}), file, problems)
    if problems:
        raise ProblemsError(problems)
    if "listener" in tables:
        return Config(**tables, response_headers=headers)
    return HelperConfig(**tables)


# The checks below look at the document and not at the structs, so that one problem of a table
# does not hide another one of it.


def _addresses(table: object) -> list[Address]:
    """Give the addresses of a table that can be read; the others are problems already."""
    values = table.get("address") if isinstance(table, dict) else None
    addresses = []
    for value in values if isinstance(values, list) else [values]:
        try:
            addresses += [ListenAddress.parse(value)] if isinstance(value, str) else []
        except ValueError:
            continue
    return addresses


def _check_purpose(document: dict[str, Any], file: str, problems: list[Problem]) -> None:
    """A configuration serves, writes files, or does both."""
    if "listener" in document or "cert_files" not in document:
        hint = None if "listener" in document else "or write [cert_files] alone, without a listener"
        for name in _REQUIRED:
            if name not in document:
                problems.append(Problem(file, f"[{name}]", "no such table", "one", hint))
        return
    for name in _SERVING:
        if name in document:
            expected = "[listener] beside it; without one, only files are written"
            problems.append(Problem(file, f"[{name}]", "a table of what serves", expected))


def _check_addresses(document: dict[str, Any], file: str, problems: list[Problem]) -> None:
    """What is listened on is listened on for one purpose."""
    seen: list[Address] = []
    for name in ("listener", "admin", "health"):
        where = f"[{name}] address"
        for address in _addresses(document.get(name)):
            if address in seen and (address.port or address.ip is None):
                problems.append(
                    Problem(file, where, f"{str(address)!r} twice", "each address once")
                )
            if str(address) == "systemd" and name != "listener":
                expected = 'the name of the socket, FileDescriptorName=: "systemd:NAME"'
                problems.append(Problem(file, where, "'systemd'", expected))
            seen.append(address)


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


def _check_admin(table: object, file: str, problems: list[Problem]) -> None:
    for address in _addresses(table):
        if not address.is_loopback:
            hint = "it tells who our peers are and what they do; let a scraper come by Traefik"
            where, found = "[admin] address", repr(str(address))
            problems.append(Problem(file, where, found, "a loopback address or unix:/path", hint))


def _check_cors(table: CorsTable | None, file: str, problems: list[Problem]) -> None:
    for problem in cors_problems(table.cors()) if table else ():
        key = f"[cors] {problem.key}"
        problems.append(Problem(file, key, problem.found, problem.expected, problem.hint))


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
