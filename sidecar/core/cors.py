"""Which pages of a browser may read our answers, and what a preflight is told.

Gets the origin of a request and gives headers; pure, and no access control: whoever is no
browser ignores them all, so the decision on a request is never made here. Origins are compared
byte by byte with what browsers send, and `cors_problems` tells which ones none ever sends.
Specification: WHATWG Fetch, CORS protocol; WICG Private Network Access; RFC 6454 4 (Origin).
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
_WEB_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#@]+)")
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[]*)(?::(?P<port>[0-9]{1,5}))?")
_METHOD = re.compile(r"[A-Z]+")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_PATTERN = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+\*?")
# What pages send that call with the `openai` and `anthropic` packages for JavaScript, and those
# for Python in a browser: src/client.ts and src/internal/detect-platform.ts, and _client.py and
# _base_client.py (JavaScript: 7.5 and 0.120; Python: 3.57 and 2.14).
SDK_HEADERS = (
    "Authorization",
    "Content-Type",
    "Accept",
    "User-Agent",  # which Firefox and Safari let a page set
    "X-Api-Key",
    "X-Stainless-*",
    "OpenAI-*",
    "Anthropic-*",
)
_MOST_SHOWN = 5
_MOST_SHOWN_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Cors:
    """One `[cors]` table."""

    allow_origins: tuple[str, ...]
    allow_methods: tuple[str, ...] = ("GET", "POST", "OPTIONS")
    allow_headers: tuple[str, ...] = SDK_HEADERS  # a star at the end: all that begin so
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
        self,
        origin: str | None,
        method: str | None,
        headers: str | None,
        *,
        private_network: bool = False,
    ) -> Headers | None:
        """Give the headers of the answer to a preflight; None: none that we allow.

        `method` and `headers` are the values of Access-Control-Request-Method and -Headers;
        `private_network`: it asks for Access-Control-Allow-Private-Network, too.
        """
        if self.missing(origin, method, headers) is not None:
            return None
        allowed = dict.fromkeys(
            name for name in self.allow_headers if name[-1] != ANY or name == ANY
        )
        # Browsers know no patterns: what one allows is named as it was asked for.
        known = {name.lower() for name in allowed}
        allowed |= dict.fromkeys(name for name in _names(headers) if name not in known)
        if ANY in self.allow_headers:
            allowed = dict.fromkeys(self.allow_headers)
        found = [
            *self._headers(origin),
            ("Access-Control-Allow-Methods", ", ".join(self.allow_methods)),
            ("Access-Control-Allow-Headers", ", ".join(allowed)),
            ("Access-Control-Max-Age", str(self.max_age_seconds)),
        ]
        if private_network:
            found.append(("Access-Control-Allow-Private-Network", "true"))
        return found

    def missing(self, origin: str | None, method: str | None, headers: str | None) -> str | None:
        """Return what a preflight asks for that is not allowed, in words, or None."""
        if method is None:
            return "it names no method"
        if not self._allows(origin):
            return "its origin is not one of allow_origins"
        if not self._allows_method(method):
            return f"{_shown([method])} is not one of allow_methods"
        if refused := [name for name in _names(headers) if not self._allows_header(name)]:
            return f"{_shown(refused)} is not in allow_headers"
        return None

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
        # GET includes HEAD, as in the policy; a browser needs no permission for it by name.
        asked = "GET" if method == "HEAD" else method
        return bool({method, asked, ANY} & {*self.allow_methods})

    def _allows_header(self, name: str) -> bool:
        """Tell whether a name, in lower case, is allowed; the star alone is none for this one."""
        for allowed in map(str.lower, self.allow_headers):
            if name == allowed or (allowed == ANY and name not in ("authorization", ANY)):
                return True
            if allowed[-1] == ANY != allowed and name.startswith(allowed[:-1]):
                return HEADER_NAME.fullmatch(name) is not None
        return False


def _names(headers: str | None) -> list[str]:
    """Return the names in a list of headers, in lower case."""
    names = [name.strip(" \t").lower() for name in (headers or "").split(",")]
    return [name for name in dict.fromkeys(names) if name]


def _shown(names: list[str]) -> str:
    """Return names that a page has chosen, for a person to read."""
    shown = [ascii(name[:_MOST_SHOWN_LENGTH])[1:-1] for name in names[:_MOST_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def is_same_origin(origin: str, host: str) -> bool:
    """Tell whether a page of `origin` came from the host that a Host header names.

    The scheme is not looked at: whoever ends TLS in front of us may serve the page without it.
    """
    page = _WEB_ORIGIN.fullmatch(origin.lower())
    if page is None or not host:
        return False
    default = _DEFAULT_PORTS[page["scheme"]]
    there, here = (_AUTHORITY.fullmatch(text) for text in (page["authority"], host.lower()))
    return (
        there is not None
        and here is not None
        and there["host"] == here["host"]
        and int(there["port"] or default) == int(here["port"] or default)
    )


@dataclass(frozen=True, slots=True)
class CorsProblem:
    """One thing that is wrong with one key."""

    key: str
    found: str
    expected: str
    hint: str | None = None


def cors_problems(cors: Cors) -> list[CorsProblem]:
    """Give what is wrong, all of it: what browsers refuse, ignore or never ask for."""
    problems = []
    if not cors.allow_origins:
        problems.append(CorsProblem("allow_origins", "none", "at least one origin"))
    for origin in cors.allow_origins:
        if origin != ANY and not _is_origin(origin):
            expected = '"*" or scheme://host[:port], lower case, no path, no default port'
            problems.append(CorsProblem("allow_origins", repr(origin), expected, _meant(origin)))
    problems += _name_problems("allow_methods", cors.allow_methods, _METHOD, "in upper case")
    problems += _name_problems("allow_headers", cors.allow_headers, _HEADER_PATTERN, "of a header")
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


def _meant(origin: str) -> str | None:
    """Say what is odd about an origin, and what was probably meant."""
    text = origin.strip()
    if text.lower() == "null":
        return (
            "pages in a sandbox and files are null, whatever their origin: serve them from a host"
        )
    if ANY in text:
        return 'there are no patterns: name each origin, or allow all with "*"'
    if "://" not in text:
        return f'did you mean "https://{text.lower()}"?' if _is_origin(f"https://{text}") else None
    if not text.isascii():
        return "a browser sends a name in its ASCII form (xn--...)"
    scheme, _, rest = text.lower().partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    authority = authority.removesuffix(f":{_DEFAULT_PORTS.get(scheme)}").removesuffix(":")
    return (
        f'did you mean "{scheme}://{authority}"?' if _is_origin(f"{scheme}://{authority}") else None
    )


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
