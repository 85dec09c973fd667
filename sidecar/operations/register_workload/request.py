"""What a person asks for, from the options of the command line; all of it checked before any call.

Raises `RequestError`, which is a matter of usage, for what cannot be meant.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.host_layout import SERVICE_UID
from sidecar.core.registration.agent_conf import ServerAddress
from sidecar.core.registration.entries import Registration, Selector, is_reserved, uid_selector
from sidecar.core.spiffe_id import SpiffeId, TrustDomain, check_segment

DEFAULT_PATH = "/workload/model-server"
DEFAULT_TOKEN_TTL = 600
_MAX_UID = 2**32 - 2  # the last one means "no change" to the system
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


class RequestError(ValueError):
    """Options that cannot be meant; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options as they were given; None and empty: not given."""

    trust_domain: str
    host: str
    spiffe_id: str | None = None
    uid: int | None = None
    selectors: Sequence[str] = ()
    dns: Sequence[str] = ()
    no_dns: bool = False
    x509_svid_ttl: int | None = None
    traefik_id: str | None = None
    traefik_selectors: Sequence[str] = ()
    traefik_parent: str | None = None
    generate_token: bool = False
    token_ttl: int | None = None
    server_address: str | None = None
    host_folder: Path | None = None
    remove: bool = False
    evict_agent: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be done; `alias` is the parent of the host's workloads."""

    trust_domain: TrustDomain
    alias: SpiffeId
    registrations: tuple[Registration, ...]
    token_ttl: int | None
    server: ServerAddress | None
    folder: Path | None
    remove: bool
    evict_agent: bool
    dry_run: bool


def read_request(given: Options) -> Request:
    """Read the options, or raise `RequestError`."""
    _check_together(given)
    domain = _trust_domain(given.trust_domain)
    alias = _alias(domain, given.host)
    sidecar = _sidecar(given, domain, alias)
    registrations = [sidecar]
    if given.traefik_id:
        registrations.append(_traefik(given, domain))
        if registrations[1].spiffe_id == sidecar.spiffe_id:
            raise RequestError("--traefik-id and --spiffe-id are the same: each needs its own")
    return Request(
        trust_domain=domain,
        alias=alias,
        registrations=tuple(registrations),
        token_ttl=(given.token_ttl or DEFAULT_TOKEN_TTL) if given.generate_token else None,
        server=_server(given.server_address) if given.server_address is not None else None,
        folder=given.host_folder,
        remove=given.remove,
        evict_agent=given.evict_agent,
        dry_run=given.dry_run,
    )


def read_prefix(text: str) -> tuple[str, ...]:
    """Read how to run `spire-server`: words as in a shell, but no shell runs them."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as exc:
        raise RequestError(f"--spire-server {text!r}: {exc}") from exc
    if not words:
        raise RequestError('--spire-server is empty: expected "docker exec NAME PROGRAM", say')
    return words


def _check_together(given: Options) -> None:
    """Refuse options that do not go together."""
    if given.uid is not None and given.selectors:
        raise RequestError("--uid and --selector are two ways to say the same: use one")
    if given.dns and given.no_dns:
        raise RequestError("--dns and --no-dns do not go together")
    if given.token_ttl is not None and not given.generate_token:
        raise RequestError("--token-ttl is for --generate-token")
    if given.generate_token and given.host_folder is None:
        raise RequestError(
            "--generate-token needs --host-folder: the token goes into a file there (0600), and "
            "neither onto the screen nor into arguments"
        )
    if given.host_folder is not None and given.server_address is None and not given.remove:
        raise RequestError(
            "--host-folder needs --server-address: agent.conf says where the host finds the server"
        )
    _check_traefik(given)
    _check_removal(given)


def _check_traefik(given: Options) -> None:
    rest = (given.traefik_selectors, given.traefik_parent)
    if given.traefik_id is None and any(rest):
        raise RequestError("--traefik-selector and --traefik-parent are for --traefik-id")
    if given.traefik_id is not None and not given.traefik_parent:
        raise RequestError(
            "--traefik-id needs --traefik-parent: the ID of the agent on Traefik's host, or of "
            "its alias (`spire-server agent list`)"
        )
    if given.traefik_id is not None and not given.traefik_selectors and not given.remove:
        raise RequestError(
            "--traefik-id needs --traefik-selector: by what the agent there tells Traefik, as "
            "unix:uid:N or docker:label:KEY:VALUE"
        )


def _check_removal(given: Options) -> None:
    if given.evict_agent and not given.remove:
        raise RequestError("--evict-agent is for --remove")
    without_use = {
        "--generate-token": given.generate_token,
        "--host-folder": given.host_folder is not None,
        "--dns": bool(given.dns) or given.no_dns,
        "--x509-svid-ttl": given.x509_svid_ttl is not None,
        "--server-address": given.server_address is not None,
    }
    if given.remove and (named := [name for name, used in without_use.items() if used]):
        raise RequestError(f"{', '.join(named)}: of no use with --remove")


def _sidecar(given: Options, domain: TrustDomain, alias: SpiffeId) -> Registration:
    spiffe_id = SpiffeId(domain, DEFAULT_PATH)
    if given.spiffe_id is not None:
        spiffe_id = _workload_id("--spiffe-id", given.spiffe_id, domain)
    if spiffe_id == alias:
        raise RequestError(f"--spiffe-id is the host's own alias, {alias}")
    selectors = _selectors("--selector", given.selectors)
    if given.uid is not None:
        selectors = (uid_selector(_uid(given.uid)),)
    return Registration(
        role="sidecar",
        spiffe_id=spiffe_id,
        parent_id=alias,
        selectors=selectors or None,
        default_selectors=(uid_selector(SERVICE_UID),),
        dns_names=() if given.no_dns else _dns_names(given.dns),
        x509_svid_ttl=given.x509_svid_ttl,
    )


def _traefik(given: Options, domain: TrustDomain) -> Registration:
    assert given.traefik_id is not None
    assert given.traefik_parent is not None
    spiffe_id = _workload_id("--traefik-id", given.traefik_id, domain)
    parent = _member("--traefik-parent", given.traefik_parent, domain)
    if parent == spiffe_id:
        raise RequestError("--traefik-parent is Traefik's own ID: expected its agent's")
    selectors = _selectors("--traefik-selector", given.traefik_selectors)
    return Registration("traefik", spiffe_id, parent, selectors or None)


def _trust_domain(text: str) -> TrustDomain:
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeIdError as exc:
        raise RequestError(f"--trust-domain {text[:256]!r}: {exc.reason}") from exc


def _alias(domain: TrustDomain, host: str) -> SpiffeId:
    try:
        check_segment(host, host)
    except InvalidSpiffeIdError as exc:
        raise RequestError(
            f"--host {host[:256]!r}: expected a name for the host, of letters, digits, '.', '-' "
            "and '_'"
        ) from exc
    return _member("--host", f"spiffe://{domain}/host/{host}", domain)


def _workload_id(option: str, text: str, domain: TrustDomain) -> SpiffeId:
    spiffe_id = _member(option, text, domain)
    if is_reserved(spiffe_id):
        raise RequestError(f"{option} {spiffe_id}: SPIRE keeps /spire/ for itself")
    return spiffe_id


def _member(option: str, text: str, domain: TrustDomain) -> SpiffeId:
    try:
        spiffe_id = SpiffeId.parse(text)
    except InvalidSpiffeIdError as exc:
        raise RequestError(f"{option}: {exc.message}") from exc
    if spiffe_id.trust_domain != domain:
        raise RequestError(
            f"{option} {spiffe_id}: expected an ID in the trust domain {domain}, as "
            f"spiffe://{domain}{spiffe_id.path or DEFAULT_PATH}"
        )
    if not spiffe_id.path:
        raise RequestError(
            f"{option} {spiffe_id}: expected a path, as spiffe://{domain}{DEFAULT_PATH}"
        )
    return spiffe_id


def _selectors(option: str, texts: Sequence[str]) -> tuple[Selector, ...]:
    found: list[Selector] = []
    for text in texts:
        try:
            selector = Selector.parse(text)
            if selector.type == "unix":
                _check_number(selector)
        except ValueError as exc:
            raise RequestError(f"{option} {text[:256]!r}: {exc}") from exc
        if selector in found:
            raise RequestError(f"{option} {selector} is there twice")
        found.append(selector)
    return tuple(found)


def _check_number(selector: Selector) -> None:
    kind, _, value = selector.value.partition(":")
    if kind in ("uid", "gid") and not re.fullmatch(r"0|[1-9][0-9]{0,9}", value):
        raise ValueError(f"expected a number, as in unix:{kind}:{SERVICE_UID}")


def _uid(uid: int) -> int:
    if not 0 <= uid <= _MAX_UID:
        raise RequestError(f"--uid {uid}: expected 0 to {_MAX_UID}")
    return uid


def _dns_names(names: Sequence[str]) -> tuple[str, ...] | None:
    for name in names:
        if not _DNS_NAME.fullmatch(name) or len(name) > 253:
            raise RequestError(
                f"--dns {name[:256]!r}: expected a host name, as in models.example.org"
            )
    if len({name.lower() for name in names}) != len(names):
        raise RequestError("--dns: a name is there twice")
    return tuple(names) or None


def _server(text: str) -> ServerAddress:
    try:
        return ServerAddress.parse(text)
    except ValueError as exc:
        raise RequestError(f"--server-address {text[:256]!r}: {exc}") from exc
