"""JWT-SVIDs as values: the text of a token -> `JwtSvid`, or the reason why it is none.

Gets text and `now`. The signature is not ours to verify: the agent that gave us the token is
trusted (Workload API 6.2.1), and who gets the token from us verifies it. What is checked is that
the token is of use: well formed, for us, for all audiences asked for, not expired. No reason
quotes any part of a token: it is a secret, and an agent may have mixed up its fields.
Specification: JWT-SVID 2 (JOSE Header), 3 (JWT Claims) and 5.1 (Serialization).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from sidecar.core.errors import AgentProtocolError, InvalidSpiffeIdError
from sidecar.core.identity_update import SvidChoice
from sidecar.core.spiffe_id import SpiffeId

# A token travels in a header line; who reads the file has no room for more.
MAX_TOKEN_BYTES = 16 * 1024
# JWT-SVID 2.1 (Algorithm): signatures only, and so neither "none" nor a shared secret.
ALGORITHMS = frozenset(
    f"{family}{bits}" for family in ("RS", "ES", "PS") for bits in (256, 384, 512)
)
_HEADERS = {"alg", "kid", "typ"}
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RawJwtSvid:
    """The fields of one `JWTSVID` message, nothing checked; any of them may hold a token."""

    spiffe_id: str = field(repr=False)
    token: str = field(repr=False)
    hint: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """One JWT-SVID, of the agent that we trust; `audiences` are those of the token."""

    token: str = field(repr=False)  # whoever has it is us
    spiffe_id: SpiffeId
    audiences: tuple[str, ...]
    issued_at: datetime | None
    expires: datetime

    @classmethod
    def parse(cls, token: str, audiences: Sequence[str], now: datetime) -> JwtSvid:
        """Read a token that is for all of `audiences`; raise `ValueError` with the reason."""
        header, claims = _unpack(token)
        _check_header(header)
        named = _audiences(claims.get("aud"))
        if not set(audiences) <= set(named):
            raise ValueError("aud does not hold every audience that was asked for")
        expires = _time(claims, "exp")
        if expires is None:
            raise ValueError("there is no exp")
        if expires <= now:
            raise ValueError("it has expired; is the clock of this host right?")
        issued_at = _time(claims, "iat")
        if issued_at is not None and issued_at >= expires:
            raise ValueError("iat is not before exp")
        return cls(token, _subject(claims.get("sub")), named, issued_at, expires)

    def refresh_in(self, now: datetime) -> timedelta:
        """Give how long to wait for the next one: half of the life that is left.

        The life counts from `iat` at the most: for a clock that is behind the token would live
        longer than it was made for.
        """
        begins = max(now, self.issued_at) if self.issued_at else now
        return (self.expires - begins) / 2

    def refresh_at(self, now: datetime) -> datetime:
        """Give the time for the next one."""
        return now + self.refresh_in(now)


def jwt_svid(
    offered: Sequence[RawJwtSvid], choice: SvidChoice, audiences: Sequence[str], now: datetime
) -> JwtSvid:
    """Give the one of the agent's JWT-SVIDs that is ours, or raise `AgentProtocolError`.

    Of several that fit the first one, as with X.509-SVIDs (Workload API 6.2.1, FetchJWTSVID).
    """
    if not offered:
        raise AgentProtocolError("the answer has no JWT-SVID")
    ours = next((one for one in offered if _fits(one, choice)), None)
    if ours is None:
        shown = ", ".join(str(one) for one in map(_id, offered) if one) or "none with a SPIFFE ID"
        raise AgentProtocolError(f"no JWT-SVID with {choice}; the agent offers {shown[:500]}")
    spiffe_id = _id(ours)
    if spiffe_id is None:
        raise AgentProtocolError("a JWT-SVID without a SPIFFE ID")
    try:
        svid = JwtSvid.parse(ours.token, audiences, now)
    except ValueError as exc:
        raise AgentProtocolError(f"JWT-SVID of {spiffe_id}: {exc}") from exc
    if svid.spiffe_id != spiffe_id:
        raise AgentProtocolError(f"JWT-SVID of {spiffe_id}: its sub is another ID")
    return svid


def _fits(raw: RawJwtSvid, choice: SvidChoice) -> bool:
    return choice.spiffe_id in (None, _id(raw)) and choice.hint in ("", raw.hint)


def _id(raw: RawJwtSvid) -> SpiffeId | None:
    try:
        return SpiffeId.parse(raw.spiffe_id)
    except InvalidSpiffeIdError:
        return None


def _unpack(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Take a token in the compact form apart (RFC 7515 7.1, JWS Compact Serialization)."""
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"a token of {len(token)} bytes, expected at most {MAX_TOKEN_BYTES}")
    # fullmatch: the file's readers put the token into a header line, a line end would split it.
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        raise ValueError("expected three parts in base64url, with a dot between them")
    _decoded("signature", parts[3])
    return _object("header", parts[1]), _object("payload", parts[2])


def _decoded(name: str, part: str) -> bytes:
    """Decode base64url without padding, of which there is one spelling only (RFC 7515 2)."""
    try:
        data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        data = b""
    if urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise ValueError(f"the {name} is not base64url")
    return data


def _object(name: str, part: str) -> Mapping[str, Any]:
    data = _decoded(name, part)
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (ValueError, RecursionError):
        # Without the cause: a traceback would show what it was about.
        raise ValueError(f"the {name} is not a JSON object") from None


def _check_header(header: Mapping[str, Any]) -> None:
    if header.get("alg") not in ALGORITHMS:
        raise ValueError("alg is none of those of JWT-SVID 2.1")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise ValueError("typ is neither JWT nor JOSE")
    # JWT-SVID 2 (JOSE Header): no other one. Some, as `jku` and `jwk`, tell a naive verifier
    # which key to trust.
    if header.keys() - _HEADERS:
        raise ValueError("a header besides alg, kid and typ")


def _audiences(claim: object) -> tuple[str, ...]:
    """Read `aud`: one string or a list of them (RFC 7519 4.1.3)."""
    named = [claim] if isinstance(claim, str) else claim
    if not isinstance(named, list) or not named:
        raise ValueError("there is no aud")
    if not all(isinstance(one, str) and one for one in named):
        raise ValueError("aud is not a string or a list of strings")
    return tuple(named)


def _subject(claim: object) -> SpiffeId:
    try:
        spiffe_id = SpiffeId.parse(claim if isinstance(claim, str) else "")
    except InvalidSpiffeIdError:
        raise ValueError("sub is not a SPIFFE ID") from None
    if not spiffe_id.path:
        raise ValueError("sub is a trust domain, expected the ID of a workload")
    return spiffe_id


def _time(claims: Mapping[str, Any], name: str) -> datetime | None:
    """Read seconds since 1970, whole or not (RFC 7519 2, NumericDate)."""
    seconds = claims.get(name)
    if seconds is None and name not in claims:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"{name} is not a number")
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{name} is no time") from None
