"""SPIFFE IDs and trust domains as values: parsed once, compared exactly.

Gets text from configuration, certificates and the Workload API; gives `SpiffeId` and
`TrustDomain` or raises `InvalidSpiffeIdError`. Never compares with `str` and never repairs.
Specification: The SPIFFE Identity and Verifiable Identity Document ("SPIFFE-ID"), section 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sidecar.core.errors import InvalidSpiffeIdError

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255

# SPIFFE-ID 2.1 (Trust Domain) demands lower case, 2.4 (Parsing) ignores case.
# We refuse upper case: an identity with two spellings slips past a rule.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """The name of a trust domain, as `example.org` (SPIFFE-ID 2.1, Trust Domain)."""

    name: str

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """Read `example.org` or `spiffe://example.org`; raise `InvalidSpiffeIdError`."""
        name = text.removeprefix(SCHEME)
        if len(name) > MAX_TRUST_DOMAIN_BYTES:
            raise InvalidSpiffeIdError(text, f"trust domain over {MAX_TRUST_DOMAIN_BYTES} bytes")
        # fullmatch: a pattern that ends in `$` also accepts a trailing newline.
        if not _TRUST_DOMAIN.fullmatch(name):
            raise InvalidSpiffeIdError(text, "a trust domain is made of a-z, 0-9, '.', '-' and '_'")
        return cls(name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """One SPIFFE ID; `path` is empty or starts with a slash (SPIFFE-ID 2, SPIFFE Identity)."""

    trust_domain: TrustDomain
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read `spiffe://trust-domain/path`; raise `InvalidSpiffeIdError`."""
        if len(text) > MAX_ID_BYTES:
            raise InvalidSpiffeIdError(text, f"over {MAX_ID_BYTES} bytes (SPIFFE-ID 2.3)")
        if not text.startswith(SCHEME):
            raise InvalidSpiffeIdError(text, f"it does not start with {SCHEME}")
        domain, slash, rest = text.removeprefix(SCHEME).partition("/")
        trust_domain = TrustDomain.parse(SCHEME + domain)
        if slash:
            for segment in rest.split("/"):
                check_segment(text, segment)
        return cls(trust_domain, slash + rest)

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def check_segment(text: str, segment: str) -> None:
    """Raise `InvalidSpiffeIdError` about `text` if one path segment of it is not allowed."""
    if not segment:
        raise InvalidSpiffeIdError(text, "empty path segment or trailing slash")
    if segment in (".", ".."):
        raise InvalidSpiffeIdError(text, f"relative path segment {segment!r}")
    if not _SEGMENT.fullmatch(segment):
        raise InvalidSpiffeIdError(
            text, f"path segment {segment[:64]!r}: allowed are letters, digits, '.', '-' and '_'"
        )
