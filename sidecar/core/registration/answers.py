"""What `spire-server ... -output json` answers, as values.

Gets the bytes of its standard output; gives entries, agents, a join token or the trust bundle, or
raises `RegistrationError`. The text of an answer is never part of a message: it may hold a token.
Specification: the messages of SPIRE's server API, in protobuf's JSON (64 bit numbers are strings).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from cryptography import x509

from sidecar.core.errors import RegistrationError
from sidecar.core.registration.entries import (
    Agent,
    Authorities,
    Entry,
    JoinToken,
    Others,
    Selector,
    without_token,
)
from sidecar.core.spiffe_id import SpiffeId, TrustDomain

_Answer = TypeVar("_Answer")
_LAST = 253_402_300_799  # the last second of the year 9999


class _Id(msgspec.Struct):
    trust_domain: str
    path: str = ""

    def value(self) -> SpiffeId:
        # The server has checked it, and older ones were more tolerant than we are: it is compared
        # and shown, and decides nothing.
        return SpiffeId(TrustDomain(self.trust_domain), self.path)


class _Selector(msgspec.Struct):
    type: str
    value: str


class _Attributes(msgspec.Struct):
    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False


class _Entry(msgspec.Struct):
    id: str
    spiffe_id: _Id
    parent_id: _Id
    selectors: list[_Selector] = []
    dns_names: list[str] = []
    x509_svid_ttl: int = 0
    jwt_svid_ttl: int = 0
    federates_with: list[str] = []
    hint: str = ""
    admin: bool = False
    downstream: bool = False
    store_svid: bool = False
    expires_at: int = 0
    additional_attributes: _Attributes | None = None


class _Entries(msgspec.Struct):
    entries: list[_Entry]


class _Status(msgspec.Struct):
    code: int
    message: str = ""


class _Result(msgspec.Struct):
    status: _Status
    entry: _Entry | None = None


class _Results(msgspec.Struct):
    results: list[_Result]


class _Agent(msgspec.Struct):
    id: _Id
    x509svid_expires_at: int
    can_reattest: bool = False
    banned: bool = False


class _Agents(msgspec.Struct):
    agents: list[_Agent]


class _Token(msgspec.Struct):
    value: str
    expires_at: int


class _Authority(msgspec.Struct):
    asn1: str
    tainted: bool = False


class _Bundle(msgspec.Struct):
    trust_domain: str
    x509_authorities: list[_Authority]


def read_entries(data: bytes) -> list[Entry]:
    """Read the answer of `entry show`."""
    return [_entry(found) for found in _decoded(data, _Entries).entries]


def read_changed(data: bytes, what: str) -> Entry | None:
    """Read the answer of `entry create`, `update` or `delete`, which succeeds even when it fails.

    The exit status is 0 whenever the server was asked; whether it has done it stands in here.
    """
    results = _decoded(data, _Results).results
    if len(results) != 1:
        raise RegistrationError(f"{what}: expected one result, found {len(results)}")
    (result,) = results
    if result.status.code != 0:
        raise RegistrationError(
            f"{what}: the server says: {_one_line(result.status.message)}", _hint(result.status)
        )
    return _entry(result.entry) if result.entry else None


def read_agents(data: bytes) -> list[Agent]:
    """Read the answer of `agent list`."""
    return [
        Agent(found.id.value(), _time(found.x509svid_expires_at), found.can_reattest, found.banned)
        for found in _decoded(data, _Agents).agents
    ]


def read_token(data: bytes) -> JoinToken:
    """Read the answer of `token generate`."""
    token = _decoded(data, _Token)
    if not token.value or not token.value.isascii() or not token.value.isprintable():
        raise RegistrationError("the server's join token is empty, or no text")
    return JoinToken(token.value, _time(token.expires_at))


def read_authorities(data: bytes) -> Authorities:
    """Read the answer of `bundle show`; every authority is a certificate, and there is one."""
    bundle = _decoded(data, _Bundle)
    return Authorities(bundle.trust_domain, "".join(_pem(bundle)))


def _pem(bundle: _Bundle) -> Iterator[str]:
    # What the server's operator has called tainted is on its way out: no agent is to begin with it.
    kept = [one for one in bundle.x509_authorities if not one.tainted]
    if not kept:
        raise RegistrationError(
            f"the server has no X.509 authority for {bundle.trust_domain!r}",
            "look at `spire-server bundle show` and the server's log",
        )
    for one in kept:
        try:
            x509.load_der_x509_certificate(base64.b64decode(one.asn1, validate=True))
        except ValueError as exc:
            raise RegistrationError("an authority of the server is no certificate") from exc
        body = "\n".join(one.asn1[at : at + 64] for at in range(0, len(one.asn1), 64))
        yield f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def _decoded(data: bytes, kind: type[_Answer]) -> _Answer:
    try:
        # Not strict: in protobuf's JSON a number of 64 bits is a string.
        return msgspec.json.decode(data, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Without the cause: it quotes the answer.
        raise RegistrationError(
            "the answer is not the JSON that spire-server prints",
            "is --spire-server the program itself, or `docker exec NAME PROGRAM` without -t? "
            "SPIRE 1.6 or newer is needed",
        ) from None


def _entry(found: _Entry) -> Entry:
    attributes = found.additional_attributes or _Attributes()
    others = Others(
        jwt_svid_ttl=found.jwt_svid_ttl,
        federates_with=tuple(found.federates_with),
        hint=found.hint,
        admin=found.admin,
        downstream=found.downstream,
        store_svid=found.store_svid,
        expires_at=found.expires_at,
        disable_x509_svid_prefetch=attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti=attributes.jwt_svid_include_jti,
    )
    return Entry(
        found.id,
        found.spiffe_id.value(),
        found.parent_id.value(),
        tuple(Selector(one.type, one.value) for one in found.selectors),
        tuple(found.dns_names),
        found.x509_svid_ttl,
        others,
    )


def _time(seconds: int) -> int:
    """Give a Unix time that a calendar has."""
    return min(max(seconds, 0), _LAST)


def _hint(status: _Status) -> str | None:
    return {
        5: "somebody has deleted it in the meantime: run this again",
        6: "somebody has made it in the meantime: run this again; or it is the entry of a nested "
        "server, which only `spire-server entry show -downstream` lists",
        7: "the socket is not the one for administration of the server",
    }.get(status.code)


def _one_line(text: str) -> str:
    return without_token(" ".join(text.split()))[:400]
