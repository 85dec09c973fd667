"""Registration entries: what is wanted, what the SPIRE server has, and the commands between them.

A `Registration` is an entry as a person asks for it, an `Entry` is one of the server's. Commands
are argument lists for `spire-server`, never a line for a shell. No join token is in any of them.
Specification: SPIRE, "Registering workloads", and `spire-server entry create -help`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sidecar.core.spiffe_id import SpiffeId

# SPIRE keeps these paths for itself, and refuses entries below them.
_RESERVED = "/spire"
# Who has been attested by a join token is named for the token: this path holds a secret until the
# token is used, and `entry show` prints it.
_TOKEN_PATH = re.compile(r"(/spire/agent/join_token/)[^\s\"'/]+")
_TYPE = re.compile(r"[A-Za-z0-9_]+")
_JSON = ("-output", "json")


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One attribute of a workload, as `unix:uid:451`; all selectors of an entry have to match."""

    type: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read `type:value`, or raise `ValueError` with what was expected."""
        kind, colon, value = text.partition(":")
        if not colon or not _TYPE.fullmatch(kind) or not value:
            raise ValueError("expected type:value, as in unix:uid:451")
        if value != value.strip() or not value.isprintable():
            raise ValueError("a value has no space around it, and nothing that cannot be printed")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


def uid_selector(uid: int) -> Selector:
    """Give the selector of a user's processes."""
    return Selector("unix", f"uid:{uid}")


@dataclass(frozen=True, slots=True)
class Registration:
    """An entry that somebody wants; None: as the server has it, or the default of a new one."""

    role: str
    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: tuple[Selector, ...] | None
    default_selectors: tuple[Selector, ...] = ()
    dns_names: tuple[str, ...] | None = None
    x509_svid_ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Others:
    """What we do not manage of an entry; an update replaces all of it, so it is said again."""

    jwt_svid_ttl: int = 0
    federates_with: tuple[str, ...] = ()
    hint: str = ""
    admin: bool = False
    downstream: bool = False
    store_svid: bool = False
    expires_at: int = 0
    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration entry of the server; `id` is empty until it has given one."""

    id: str
    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: tuple[Selector, ...]
    dns_names: tuple[str, ...] = ()
    x509_svid_ttl: int = 0
    others: Others = field(default_factory=Others)

    @property
    def is_token_alias(self) -> bool:
        """Tell whether `token generate -spiffeID` made it: shape and parent are its own."""
        return is_token_agent(self.parent_id) and self.selectors == (
            Selector("spiffe_id", str(self.parent_id)),
        )


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that the server has attested; its SVID is valid until `expires_at`, Unix time."""

    spiffe_id: SpiffeId
    expires_at: int
    can_reattest: bool
    banned: bool


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A secret for one use; it does not show when it is printed or logged."""

    value: str = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True)
class Authorities:
    """The trust bundle as the server has it."""

    trust_domain: str
    pem: str


def is_token_agent(spiffe_id: SpiffeId) -> bool:
    """Tell whether this is an agent that a join token has attested, or will."""
    return _TOKEN_PATH.match(spiffe_id.path) is not None


def is_reserved(spiffe_id: SpiffeId) -> bool:
    """Tell whether SPIRE keeps the path for itself."""
    return spiffe_id.path == _RESERVED or spiffe_id.path.startswith(f"{_RESERVED}/")


def without_token(text: object) -> str:
    """Give a text without the join tokens in its SPIFFE IDs."""
    return _TOKEN_PATH.sub(r"\1...", str(text))


def bundle_command() -> tuple[str, ...]:
    """Ask for the trust bundle, and so for the trust domain."""
    return ("bundle", "show", *_JSON)


def entries_command(
    *,
    spiffe_id: SpiffeId | None = None,
    parent_id: SpiffeId | None = None,
    downstream: bool = False,
) -> tuple[str, ...]:
    """Ask for entries of an ID, or below a parent; those for downstream servers are apart."""
    by_id = ("-spiffeID", str(spiffe_id)) if spiffe_id else ()
    by_parent = ("-parentID", str(parent_id)) if parent_id else ()
    apart = ("-downstream",) if downstream else ()
    return ("entry", "show", *by_id, *by_parent, *apart, *_JSON)


def agents_command() -> tuple[str, ...]:
    """Ask for the attested agents."""
    return ("agent", "list", *_JSON)


def create_command(entry: Entry) -> tuple[str, ...]:
    """Create an entry."""
    return ("entry", "create", *_flags(entry), *_JSON)


def update_command(entry: Entry) -> tuple[str, ...]:
    """Give the entry of this ID new content, all of it."""
    return ("entry", "update", "-entryID", entry.id, *_flags(entry), *_JSON)


def delete_command(entry_id: str) -> tuple[str, ...]:
    """Delete an entry."""
    return ("entry", "delete", "-entryID", entry_id, *_JSON)


def token_command(alias: SpiffeId, ttl: int) -> tuple[str, ...]:
    """Make a join token whose agent gets an alias; the answer on standard output is a secret."""
    return ("token", "generate", "-spiffeID", str(alias), "-ttl", str(ttl), *_JSON)


def evict_command(agent: SpiffeId) -> tuple[str, ...]:
    """End the attestation of an agent."""
    return ("agent", "evict", "-spiffeID", str(agent), *_JSON)


def _flags(entry: Entry) -> Iterator[str]:
    yield from ("-parentID", str(entry.parent_id), "-spiffeID", str(entry.spiffe_id))
    yield from _each("-selector", [str(selector) for selector in entry.selectors])
    if entry.x509_svid_ttl:
        yield from ("-x509SVIDTTL", str(entry.x509_svid_ttl))
    yield from _each("-dns", entry.dns_names)
    yield from _other_flags(entry.others)


def _other_flags(others: Others) -> Iterator[str]:
    """Give flags for what differs from the default only: older versions lack the newer ones."""
    if others.jwt_svid_ttl:
        yield from ("-jwtSVIDTTL", str(others.jwt_svid_ttl))
    yield from _each("-federatesWith", others.federates_with)
    if others.hint:
        yield from ("-hint", others.hint)
    if others.expires_at:
        yield from ("-entryExpiry", str(others.expires_at))
    for flag, value in (
        ("-admin", others.admin),
        ("-downstream", others.downstream),
        ("-storeSVID", others.store_svid),
        ("-disableX509SVIDPrefetch", others.disable_x509_svid_prefetch),
        ("-jwtSVIDIncludeJTI", others.jwt_svid_include_jti),
    ):
        if value:
            yield flag


def _each(flag: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield from (flag, value)
