"""Where a probe goes, read from what a person wrote: a URL, and headers.

Gets text, gives a `ProbeTarget` or a header, or raises `ProbeTargetError` with what was found and
what was expected; an error never shows what may be a password, a token or a key.
Specification: RFC 3986 (URI), RFC 6874 (IPv6 Zone Identifiers), RFC 9110 (HTTP Semantics) 4.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from sidecar.core.errors import SidecarError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_HOST = re.compile(r"[0-9A-Za-z._-]+")
_ZONE = re.compile(r"%25[0-9A-Za-z._~-]+")
_URL = re.compile(r"[!-~]+")
# What frames a message or belongs to the connection is the probe's own business.
_NOT_TO_SET = {"connection", "content-length", "expect", "te", "transfer-encoding", "upgrade"}


class ProbeTargetError(SidecarError):
    """The operator's: what is to be probed cannot be. Exit status 2."""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """`https://host:port/path?query`, or `tls://host:port` for a handshake alone."""

    scheme: str
    host: str  # a name, or an address without brackets
    port: int
    path: str  # with its query

    @classmethod
    def parse(cls, text: str) -> ProbeTarget:
        """Read a URL, or raise `ProbeTargetError`."""
        if not _URL.fullmatch(text):
            hint = "write other characters percent-encoded, and a name of others as punycode"
            raise _no_target(text, "a URL of printable ASCII without spaces", hint)
        scheme = _scheme(text)
        try:
            parts = urlsplit(text)
            port, host = parts.port, _host(parts.netloc, parts.hostname)
        except ValueError as exc:
            raise _no_target(text, f"{scheme}://host:port", str(exc)) from exc
        if host is None:
            raise _no_target(text, f"{scheme}://host:port", "a name, 192.0.2.1 or [2001:db8::1]")
        if "@" in parts.netloc:
            # The text is not shown: what stands there is a password.
            hint = "a sidecar knows its peers by their SVIDs; leave USER@ out"
            raise ProbeTargetError("found a user name in the URL, expected none", hint)
        if scheme == "tls":
            return cls._of_handshake(text, host, port, parts.path + parts.query)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls("https", host, _usable(443 if port is None else port, text), path)

    @classmethod
    def _of_handshake(cls, text: str, host: str, port: int | None, rest: str) -> ProbeTarget:
        if port is None or rest not in ("", "/"):
            hint = "tls:// makes a handshake and sends nothing; https:// asks for a path"
            raise _no_target(text, "tls://host:port and no path", hint)
        return cls("tls", host, _usable(port, text), "")

    @property
    def is_handshake_only(self) -> bool:
        """Tell whether nothing is asked for after the handshake."""
        return self.scheme == "tls"

    @property
    def is_name(self) -> bool:
        """Tell whether the host has to be looked up."""
        try:
            ip_address(self.host)
        except ValueError:
            return True
        return False

    @property
    def where(self) -> str:
        """Give host and port."""
        return where(self.host, self.port)

    @property
    def shown_path(self) -> str:
        """Give the path for a line on a screen: a query may hold a key."""
        path, mark, _ = self.path.partition("?")
        return f"{path}?..." if mark else path

    @property
    def authority(self) -> str:
        """Give what stands in the Host header."""
        host = self.host.partition("%")[0]  # RFC 6874: a zone means something to this host only
        shown = f"[{host}]" if ":" in host else host
        return shown if self.port == 443 else f"{shown}:{self.port}"

    def __str__(self) -> str:
        host = self.host.replace("%", "%25")
        return f"{self.scheme}://{where(host, self.port)}{self.shown_path}"


def where(host: str, port: int) -> str:
    """Give host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_header(text: str) -> tuple[str, str]:
    """Read `Name: value`; the error never shows the value."""
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    if not colon or not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        shown = name[:64] if colon and _TOKEN.fullmatch(name) else "no header name"
        raise ProbeTargetError(f"found {shown!r}, expected a header as 'Name: value' in one line")
    if name.lower() in _NOT_TO_SET:
        raise ProbeTargetError(f"the header {name} cannot be set: the probe frames its messages")
    return name, value


def _scheme(text: str) -> str:
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme == "http":
        hint = (
            "http:// is plain text, in which nobody shows an identity: "
            "ask the sidecar in front of it by https://"
        )
        raise _no_target(text, "https:// or tls://", hint)
    if scheme not in ("https", "tls"):
        raise _no_target(text, "https://host:port/path or tls://host:port")
    return scheme


def _host(netloc: str, hostname: str | None) -> str | None:
    """Give the host; None if it is neither a name nor an address."""
    if "[" not in netloc:
        return hostname if hostname and _HOST.fullmatch(hostname) else None
    address, percent, zone = (hostname or "").partition("%")
    IPv6Address(address)
    if not percent:
        return address
    if not _ZONE.fullmatch(percent + zone):
        raise ValueError("a zone is written %25 and its name")
    return f"{address}%{zone.removeprefix('25')}"


def _usable(port: int, text: str) -> int:
    if port == 0:
        raise _no_target(text, "a port from 1 to 65535")
    return port


def _no_target(text: str, expected: str, hint: str | None = None) -> ProbeTargetError:
    # Not what stands before an @: it may be a password. Nor the query, which may hold a key.
    shown = re.sub(r"//[^/?#]*@", "//...@", text).partition("?")[0]
    return ProbeTargetError(f"found {shown[:200]!r}, expected {expected}", hint)
