"""What a version of Traefik can do and what it gets wrong, as far as its connection to us goes.

Gets a version as `traefik version` prints it. Each line below was read in Traefik's source at its
tags. 3.8 is not out at the time of writing and was read on the way to it; that and 3.7.9 were run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(
    r"v?([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,5}|x))?(?:[-+][0-9A-Za-z.+-]{1,64})?"
)
# The last one whose source was read.
NEWEST = (3, 8)
_OLDEST = (2, 11)


@dataclass(frozen=True, slots=True)
class TraefikVersion:
    """`patch` is None when it was not told: then it may be any of them."""

    major: int
    minor: int
    patch: int | None = None

    @classmethod
    def parse(cls, text: str) -> TraefikVersion:
        """Read `3.7.9`, `v3.7.9`, `3.7`, `3.7.x` or `3.8.0-rc.1`, or raise `ValueError`."""
        found = _VERSION.fullmatch(text)
        if not found:
            raise ValueError(f"expected a version such as 3.7.9, found {text[:64]!r}")
        patch = None if found[3] in (None, "x") else int(found[3])
        version = cls(int(found[1]), int(found[2]), patch)
        if (version.major, version.minor) < _OLDEST or version.major > NEWEST[0]:
            raise ValueError(f"expected 2.11 or 3.x, found {text[:64]!r}")
        if version.major == _OLDEST[0] and version.minor > _OLDEST[1]:
            raise ValueError(f"expected 2.11, the last of 2.x, found {text[:64]!r}")
        return version

    def __str__(self) -> str:
        line = f"{self.major}.{self.minor}"
        return line if self.patch is None else f"{line}.{self.patch}"

    @property
    def is_unknown(self) -> bool:
        """Tell whether it is newer than all that is known here."""
        return (self.major, self.minor) > NEWEST

    @property
    def has_spiffe(self) -> bool:
        """Tell whether it asks the Workload API itself: `spiffe.workloadAPIAddr`, `spiffe.ids`."""
        return self.major >= 3

    @property
    def has_peer_cert_sans(self) -> bool:
        """Tell whether `peerCertSANs` has taken the place of `peerCertURI`."""
        return (self.major, self.minor) >= (3, 8)

    @property
    def may_ignore_trust_domain(self) -> bool:
        """Tell whether `peerCertURI` may compare all of the ID but its trust domain."""
        return not self.has_peer_cert_sans and self._lowest < (3, 6, 8)

    @property
    def has_tls_versions(self) -> bool:
        """Tell whether `minVersion` exists, which breaks the transport without `maxVersion`."""
        return (self.major, self.minor) >= (3, 7)

    @property
    def has_strategy(self) -> bool:
        """Tell whether a load balancer can do anything but take turns: `strategy`."""
        return (self.major, self.minor) >= (3, 4)

    @property
    def reloads_on_sighup(self) -> bool:
        """Tell whether SIGHUP makes it read its dynamic configuration again."""
        return self.major >= 3

    @property
    def refuses_encoded_slash(self) -> bool:
        """Tell whether it answers 400 to `%2F` in a path unless an entry point allows it."""
        exactly = self.patch is not None
        return exactly and (
            (3, 6, 3) <= self._lowest < (3, 6, 7) or (2, 11, 32) <= self._lowest < (2, 11, 35)
        )

    @property
    def may_refuse_encoded_slash(self) -> bool:
        """Tell whether that hangs on the patch that was not told."""
        return self.patch is None and (self.major, self.minor) in ((3, 6), (2, 11))

    @property
    def _lowest(self) -> tuple[int, int, int]:
        return self.major, self.minor, self.patch or 0
