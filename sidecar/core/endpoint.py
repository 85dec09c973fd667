"""Method and path -> does an endpoint of the policy name them?

Gets an endpoint's text and a request's path as it was received, gives values that match or do
not. A path is decoded once and never repaired: what could mean another path to the backend than
it means here (dots, doubled slashes, a second layer of escapes) is `BadPathError` for everybody.
The query never matters. Specification: RFC 3986 (URI) 2.1 (Percent-Encoding), 6.2.2 (Syntax-Based
Normalization).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ANY_ENDPOINT = "*"

_PATH = re.compile(r"/[!-~]*")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIDDEN = re.compile(r"%2[EeFf]")
_CAPTURE = re.compile(r"\{[a-z][a-z0-9_]*(\.\.\.)?\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()+,;=:@-]+")
_DOTS = (".", "..")


class BadPathError(ValueError):
    """A path that is refused whatever the policy says; the text says why."""


@dataclass(frozen=True, slots=True)
class RequestPath:
    """A request's path: `raw` as received, its segments decoded once."""

    raw: str
    segments: tuple[str, ...]
    # Which segments hold an escaped slash or dot: those only a capture may take.
    hides: tuple[bool, ...]

    @classmethod
    def parse(cls, raw: str) -> RequestPath:
        """Read a path without its query, or raise `BadPathError`."""
        if not _PATH.fullmatch(raw) or "?" in raw or "#" in raw:
            raise BadPathError("expected a path that begins with / and is printable ASCII")
        parts = raw[1:].split("/")
        if "" in parts[:-1]:
            raise BadPathError("two slashes in a row in the path")
        if "%" not in raw and "\\" not in raw:
            segments = tuple(parts)
        else:
            segments = tuple(map(_decoded, parts))
        for segment in segments:
            _check_dots(segment)
        return cls(raw, segments, tuple(bool(_HIDDEN.search(part)) for part in parts))


def _decoded(part: str) -> str:
    if _BROKEN_ESCAPE.search(part):
        raise BadPathError("a percent sign in the path without two hexadecimal digits")
    try:
        text = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadPathError("the decoded path is not UTF-8") from exc
    if not text.isprintable() or "\\" in text:
        raise BadPathError("a control character or backslash in the path")
    if _ESCAPE.search(text):
        raise BadPathError("the path is percent-encoded twice")
    return text


def _check_dots(segment: str) -> None:
    inner = segment.split("/")
    if any(one in _DOTS for one in inner) or (len(inner) > 1 and "" in inner):
        raise BadPathError("'.', '..' or nothing between two slashes of the path")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`METHOD /path` with `{name}` for a segment and `{name...}` for the rest; or `*` for all."""

    text: str
    method: str
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read an endpoint, or raise `ValueError` with what was expected."""
        if text == ANY_ENDPOINT:
            return cls(text, ANY_ENDPOINT, ())
        method, _, path = text.partition(" ")
        if method not in METHODS or not path.startswith("/"):
            raise ValueError('expected "METHOD /path", "preset:NAME" or "*"')
        segments = tuple(path[1:].split("/"))
        for at, segment in enumerate(segments):
            _check_segment(segment, is_last=at == len(segments) - 1)
        return cls(text, method, segments)

    @property
    def takes_rest(self) -> bool:
        """Tell whether the last segment stands for one or more."""
        return bool(self.segments) and self.segments[-1].endswith("...}")

    def matches(self, method: str, path: RequestPath) -> bool:
        """Tell whether the endpoint names the request; HEAD is allowed where GET is."""
        if self.method == ANY_ENDPOINT:
            return not any(path.hides)
        same_method = method == self.method or (method == "HEAD" and self.method == "GET")
        return same_method and self.matches_path(path)

    def matches_path(self, path: RequestPath) -> bool:
        """Tell whether the endpoint's path is the request's, whatever the method."""
        if self.method == ANY_ENDPOINT:
            return not any(path.hides)
        given = len(path.segments)
        if given < len(self.segments) or (given > len(self.segments) and not self.takes_rest):
            return False
        if path.segments[-1] == "" and self.segments[-1] != "":
            return False
        return all(map(_takes, self.segments, path.segments, path.hides))


def _takes(pattern: str, segment: str, hides: bool) -> bool:
    if pattern.startswith("{"):
        return segment != ""
    return pattern == segment and not hides


def _check_segment(segment: str, *, is_last: bool) -> None:
    capture = _CAPTURE.fullmatch(segment)
    if capture is not None:
        if capture[1] and not is_last:
            raise ValueError("expected {name...} as the last segment only")
    elif segment in _DOTS or not (_LITERAL.fullmatch(segment) or (is_last and segment == "")):
        raise ValueError("expected segments of letters, digits and -._~, {name} or {name...}")
