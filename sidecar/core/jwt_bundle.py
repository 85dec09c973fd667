"""JWT bundles: raw JWK Sets of several trust domains -> checked ones, and the files they go to.

A JWT bundle is the public keys that verify JWT-SVIDs of one trust domain. Each trust domain has
a file of its own: by a set with all keys in it, a federated trust domain could sign for ours.
Checked is what a wrong set would cost: that it is one, and that no key in it is a secret. It is
written as it came, since members that we do not know may be known to its reader.
Specification: Workload API 6.2.2 (FetchJWTBundles); SPIFFE Trust Domain and Bundle 4; RFC 7517.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sidecar.core.errors import AgentProtocolError, InvalidSpiffeIdError
from sidecar.core.file_plan import NAME_MAX, PlannedFile
from sidecar.core.files_config import CertFilesTable, federated_name
from sidecar.core.spiffe_id import TrustDomain

MAX_BUNDLE_BYTES = 1024 * 1024

# RFC 7518 6: what a public key has not. `k` is that of a secret that both ends know.
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
# Workload API 6.2.2: no keys with other uses, say for X.509-SVIDs. SPIRE leaves it out.
_USES = (None, "sig", "jwt-svid")
_NO_KEYS = b'{"keys": []}'


@dataclass(frozen=True, slots=True)
class RawJwtBundles:
    """The bundles of one `JWTBundlesResponse` message."""

    bundles: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwtBundles:
    """The good JWK Sets of one message; `notes` say what was left out, and why."""

    bundles: Mapping[TrustDomain, bytes] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JwtBundlePlan:
    """The files for JWT bundles, that of our own trust domain first."""

    files: tuple[PlannedFile, ...]
    notes: tuple[str, ...] = ()


def jwt_bundles(raw: RawJwtBundles, own: TrustDomain) -> JwtBundles:
    """Check one message, or raise `AgentProtocolError` if our own bundle is absent or bad.

    A bad bundle of another trust domain costs only that trust domain its place.
    """
    bundles: dict[TrustDomain, bytes] = {}
    notes: list[str] = []
    for key, data in raw.bundles.items():
        try:
            trust_domain = TrustDomain.parse(key)
        except InvalidSpiffeIdError as exc:
            notes.append(f"JWT bundle of {key[:256]!r} left out: {exc.reason}")
            continue
        if trust_domain in bundles:
            notes.append(f"second JWT bundle of {trust_domain} left out")
            continue
        try:
            bundles[trust_domain] = checked_jwks(data)
        except ValueError as exc:
            if trust_domain == own:
                raise AgentProtocolError(f"JWT bundle of {own}: {exc}") from exc
            notes.append(f"JWT bundle of {trust_domain} left out: {exc}")
    if own not in bundles:
        raise AgentProtocolError(f"no JWT bundle of our own trust domain {own}")
    return JwtBundles(bundles, tuple(notes))


def checked_jwks(data: bytes) -> bytes:
    """Give a JWK Set of public keys as it came, or raise `ValueError` with the reason.

    SPIRE writes a set without keys as `null`, which no reader of JWK Sets takes: such a one is
    given as the empty list. It trusts nobody, and that has to reach the reader.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise ValueError(f"{len(data)} bytes, expected at most {MAX_BUNDLE_BYTES}")
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise ValueError("not a JSON object") from None
    if "keys" in document and document["keys"] is None:
        return _NO_KEYS
    if not isinstance(document.get("keys"), list):
        raise ValueError("there is no list of keys")
    for key in document["keys"]:
        _check_key(key)
    return data


def is_jwks(data: bytes) -> bool:
    """Tell whether data is what `checked_jwks` gives."""
    try:
        return checked_jwks(data) == data
    except ValueError:
        return False


def _check_key(key: object) -> None:
    if not isinstance(key, dict):
        raise ValueError("a key is not a JSON object")
    for name in ("kty", "kid"):
        if not isinstance(key.get(name), str) or not key[name]:
            raise ValueError(f"a key without {name}")
    if key["kty"] == "oct" or not _PRIVATE.isdisjoint(key):
        raise ValueError("a key is not a public one")
    if key.get("use") not in _USES:
        raise ValueError("a key is for another use")


def jwt_bundle_plan(bundles: JwtBundles, own: TrustDomain, table: CertFilesTable) -> JwtBundlePlan:
    """Give the files for checked bundles; that no other file has such a name is checked before."""
    assert table.jwt_bundle is not None
    mode = table.certificate_mode
    files = [PlannedFile(table.jwt_bundle, mode, bundles.bundles[own])]
    notes = list(bundles.notes)
    others = sorted(bundles.bundles.keys() - {own}) if table.federated_bundles else ()
    for other in others:
        name = federated_name(table.jwt_bundle, str(other))
        if len(name) > NAME_MAX:
            notes.append(f"JWT bundle of {other} not written: its name would be too long")
            continue
        files.append(PlannedFile(name, mode, bundles.bundles[other]))
    return JwtBundlePlan(tuple(files), tuple(notes))
