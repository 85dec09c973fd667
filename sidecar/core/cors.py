"""Which pages of a browser may read our answers, and what a preflight is told.

Gets the origin of a request and gives headers; pure, and no access control: whoever is no
browser ignores them all, so the decision on a request is never made here. Origins are compared
byte by byte with what browsers send, and `cors_problems` tells which ones none ever sends.
Specification: WHATWG Fetch, CORS protocol.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANY = "*"
Headers = list[tuple[str, str]]

_HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]"
_ORIGIN = re.compile(
    rf"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:{_HOST})(?::(?P<port>[1-9][0-9]{{0,4}}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_METHOD = re.compile(r"[A-Z]+")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Cors:
    """One `[cors]` table."""

    allow_origins: tuple[str, ...]
    allow_methods: tuple[str, ...] = ("GET", "POST", "OPTIONS")
    allow_headers: tuple[str, ...] = ("Authorization", "Content-Type", "Accept")
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age_seconds: int = 86400

    def headers(self, origin: str | None) -> Headers:
        """Give the headers of an answer to `origin`, refused or not."""
        found = self._headers(origin)
        if self.expose_headers and (ANY in self.allow_origins or self._allows(origin)):
            found.append(("Access-Control-Expose-Headers", ", ".join(self.expose_headers)))
        return found

    def preflight(
        self, origin: str | None, method: str | None, headers: str | None
    ) -> Headers | None:
        """Give the headers of the answer to a preflight; None: none that we allow.

        `method` and `headers` are the values of Access-Control-Request-Method and -Headers.
        """
        if method is None or not self._allows(origin):
            return None
        if not self._allows_method(method) or not self._allows_headers(headers or ""):
            return None
        return [
            *self._headers(origin),
            ("Access-Control-Allow-Methods", ", ".join(self.allow_methods)),
            ("Access-Control-Allow-Headers", ", ".join(self.allow_headers)),
            ("Access-Control-Max-Age", str(self.max_age_seconds)),
        ]

    def _headers(self, origin: str | None) -> Headers:
        if ANY in self.allow_origins:
            # Never with credentials: any page could then read what only its visitor may.
            return [("Access-Control-Allow-Origin", ANY)]
        found = [("Vary", "Origin")]
        if origin is not None and self._allows(origin):
            found.append(("Access-Control-Allow-Origin", origin))
            if self.allow_credentials:
                found.append(("Access-Control-Allow-Credentials", "true"))
        return found

    def _allows(self, origin: str | None) -> bool:
        return origin is not None and (ANY in self.allow_origins or origin in self.allow_origins)

    def _allows_method(self, method: str) -> bool:
        return method in self.allow_methods or ANY in self.allow_methods

    def _allows_headers(self, requested: str) -> bool:
        allowed = {name.lower() for name in self.allow_headers}
        names = {name.strip(" \t").lower() for name in requested.split(",")} - {""}
        # The star stands for every name but this one.
        return names <= allowed or (ANY in allowed and "authorization" not in names - allowed)


@dataclass(frozen=True, slots=True)
class CorsProblem:
    """One thing that is wrong with one key."""

    key: str
    found: str
    expected: str


def cors_problems(cors: Cors) -> list[CorsProblem]:
    """Give what is wrong, all of it: what browsers refuse, ignore or never ask for."""
    problems = []
    if not cors.allow_origins:
        problems.append(CorsProblem("allow_origins", "none", "at least one origin"))
    for origin in cors.allow_origins:
        if origin != ANY and not _is_origin(origin):
            expected = '"*" or scheme://host[:port], lower case, no path, no default port'
            problems.append(CorsProblem("allow_origins", repr(origin), expected))
    problems += _name_problems("allow_methods", cors.allow_methods, _METHOD, "in upper case")
    problems += _name_problems("allow_headers", cors.allow_headers, HEADER_NAME, "of a header")
    problems += _name_problems("expose_headers", cors.expose_headers, HEADER_NAME, "of a header")
    if cors.max_age_seconds < 0:
        found = str(cors.max_age_seconds)
        problems.append(CorsProblem("max_age_seconds", found, "0 or more"))
    return problems + (_star_problems(cors) if cors.allow_credentials else [])


def _is_origin(text: str) -> bool:
    # "null" is none: every sandboxed page of whatever origin calls itself so.
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    port = int(match["port"] or 1)
    return port <= 65535 and port != _DEFAULT_PORTS.get(match["scheme"])


def _name_problems(
    key: str, names: tuple[str, ...], pattern: re.Pattern[str], what: str
) -> list[CorsProblem]:
    return [
        CorsProblem(key, repr(name), f'"*" or a name {what}')
        for name in names
        if name != ANY and not pattern.fullmatch(name)
    ]


def _star_problems(cors: Cors) -> list[CorsProblem]:
    lists = {
        "allow_origins": cors.allow_origins,
        "allow_methods": cors.allow_methods,
        "allow_headers": cors.allow_headers,
        "expose_headers": cors.expose_headers,
    }
    expected = "each one by name where allow_credentials is true"
    return [CorsProblem(key, '"*"', expected) for key, names in lists.items() if ANY in names]
