"""A signer of JWT-SVIDs in memory, and the JWT bundle that verifies them.

For the demonstration and the tests. Gets IDs, audiences and lifetimes, gives tokens (ES256) and
a JWK Set. JWT-SVID 2 and 3; RFC 7518 3.4 (ECDSA) and 6.2 (Elliptic Curve keys).
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

_COORDINATE_BYTES = 32


class JwtIssuer:
    """One signing key, made anew or the one of a private number."""

    def __init__(self, number: int | None = None) -> None:
        curve = ec.SECP256R1()
        self._key = (
            ec.generate_private_key(curve)
            if number is None
            else ec.derive_private_key(number, curve)
        )
        self.kid = _base64url(_bytes(self._key.public_key().public_numbers().x)[:8])

    @property
    def number(self) -> int:
        """Give the private number, of which another process can make the same issuer."""
        return self._key.private_numbers().private_value

    def token(self, spiffe_id: str, audiences: Sequence[str], life: timedelta) -> str:
        """Sign a JWT-SVID; no two are alike."""
        now = datetime.now(UTC)
        return self.sign(
            {
                "aud": list(audiences),
                "exp": int((now + life).timestamp()),
                "iat": int(now.timestamp()),
                "jti": secrets.token_hex(8),
                "sub": spiffe_id,
            }
        )

    def sign(self, claims: object) -> str:
        """Sign any claims at all."""
        header = {"alg": "ES256", "kid": self.kid, "typ": "JWT"}
        signed = ".".join(_base64url(msgspec.json.encode(part)) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(SHA256())))
        return f"{signed}.{_base64url(_bytes(r) + _bytes(s))}"

    def jwks(self) -> bytes:
        """Give the JWT bundle, as SPIRE writes it: without `use`."""
        numbers = self._key.public_key().public_numbers()
        x, y = (_base64url(_bytes(one)) for one in (numbers.x, numbers.y))
        key = {"kty": "EC", "kid": self.kid, "crv": "P-256", "x": x, "y": y}
        return msgspec.json.format(msgspec.json.encode({"keys": [key]}), indent=4)


def _bytes(number: int) -> bytes:
    return number.to_bytes(_COORDINATE_BYTES, "big")


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
