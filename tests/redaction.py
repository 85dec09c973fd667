"""What no line of any daemon may hold: keys, tokens, credentials, and what peers say to models.

Applied to all output of every daemon that a test runs. Looks for the shapes of secrets, so that
a test need not know which ones there are; what a test sends as one has `SECRET_MARKER` in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# In headers, queries and bodies that tests send, and never in a path, which is logged.
SECRET_MARKER = "sEcReT7mArKeR"

_SHAPES = {
    "a private key in PEM": re.compile(r"PRIVATE KEY"),
    "PEM": re.compile(r"-----(BEGIN|END) "),
    # PKCS#8 of P-256, P-384, Ed25519 and RSA (whose length differs from key to key); SEC1 of P-256
    # and P-384; PKCS#1.
    "a private key in base64": re.compile(
        r"MIGHAgEA|MIG2AgEA|MC4CAQAwBQYDK2Vw|MIIEv|IBADANBgkqhkiG9w|MHcCAQEE|MIGkAgEB|IBAAKCAQ"
    ),
    "a JWT": re.compile(r"eyJ[\w-]{8,}\.(eyJ)?[\w-]{8,}\.?"),
    # With a capital or a digit somewhere: "basic constraints" are no credentials.
    "a credential": re.compile(r"\b(?i:bearer|basic|dpop)\s+(?=[\w+/=.~-]*[A-Z0-9])[\w+/=.~-]{4,}"),
    "a value of Authorization": re.compile(
        r"\bauthorization['\"\\]*\s*[:=,]\s*['\"\\(\[]*[\w+/]", re.IGNORECASE
    ),
    "a marked secret": re.compile(SECRET_MARKER, re.IGNORECASE),
}
# Of random bytes nearly every run this long has all three kinds of characters; a path of one
# word, a fingerprint in hexadecimal or a row of equal letters has not.
_BASE64 = re.compile(r"[A-Za-z0-9+/]{60,}|[A-Za-z0-9_-]{60,}")
_KINDS = tuple(map(re.compile, ("[a-z]", "[A-Z]", "[0-9]")))


class SecretShownError(AssertionError):
    """A line that should not have been written."""


def assert_redacted(lines: Iterable[str]) -> None:
    """Raise with the first line that shows a secret, or what looks like one."""
    for line in lines:
        if what := _secret_in(line):
            raise SecretShownError(f"{what} in the output: {line}")


def _secret_in(line: str) -> str | None:
    for what, shape in _SHAPES.items():
        if shape.search(line):
            return what
    for run in _BASE64.findall(line):
        if all(kind.search(run) for kind in _KINDS):
            return "base64"
    return None
