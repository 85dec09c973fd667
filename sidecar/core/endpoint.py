"""Method and path -> does an endpoint of the policy name them?

Gets an endpoint's text and a request's path as it was received, gives values that match or do
not. A path is decoded once and never repaired: what could mean another path to the backend than
it means here (dots, doubled slashes, a second layer of escapes) is `BadPathError` for everybody.
The query never matters. Specification: RFC 3986 (URI) 2.1 (Percent-Encoding), 3.3 (Path),
6.2.2 (Syntax-Based Normalization).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

# CONNECT makes a tunnel of the connection, and TRACE sends our own headers back to the peer.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ANY_ENDPOINT = "*"
# Many times the longest path of a model server. Decoding is work that a peer makes us do before
# its rate is known.
MAX_LENGTH = 2048

_PATH = re.compile(r"/[!\"$->@-~]*")  # printable ASCII without "#" and "?"
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIDDEN = re.compile(r"%2[EeFf]")
# Some servers cut a segment off at its semicolon, so "..;x" is ".." to them.
_DOTS = re.compile(r"/\.\.?(?=[/;]|\Z)")
_CAPTURE = re.compile(r"\{[a-z][a-z0-9_]*(\.\.\.)?\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()+,;=:@-]+")
_NONE: frozenset[int] = frozenset()


class BadPathError(ValueError):
    """A path that is refused whatever the policy says; the text says why."""


@dataclass(frozen=True, slots=True)
class RequestPath:
    """A request's path: `raw` as received, its segments decoded once."""

    raw: str
    segments: tuple[str, ...]
    # The segments that hold an escaped slash or dot: only a capture may take them.
    hidden: frozenset[int] = _NONE

    @classmethod
    def parse(cls, raw: str) -> RequestPath:
        """Read a path without its query, or raise `BadPathError`."""
        if len(raw) > MAX_LENGTH:
            raise _bad(raw, f"at most {MAX_LENGTH} characters")
        if not _PATH.fullmatch(raw):
            raise _bad(raw, "a path of printable ASCII that begins with /")
        if "//" in raw:
            raise _bad(raw, "one slash between two segments")
        parts = tuple(raw.split("/")[1:])
        if "%" not in raw and "\\" not in raw:
            if "/." in raw and _DOTS.search(raw):
                raise _bad(raw, "no '.' or '..' in the path")
            return cls(raw, parts)
        hidden = frozenset(at for at, part in enumerate(parts) if _HIDDEN.search(part))
        return cls(raw, tuple(map(_decoded, parts)), hidden)


def _decoded(part: str) -> str:
    if _BROKEN_ESCAPE.search(part):
        raise _bad(part, "two hexadecimal digits after each percent sign")
    try:
        text = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _bad(part, "UTF-8 once it is decoded") from exc
    if not text.isprintable() or "\\" in text:
        raise _bad(part, "no control character and no backslash in the path")
    if _ESCAPE.search(text):
        raise _bad(part, "a path that is percent-encoded once and not twice")
    if _DOTS.search(f"/{text}"):
        raise _bad(part, "no '.' or '..' in the path, encoded or not")
    if text.startswith("/") or text.endswith("/") or "//" in text:
        raise _bad(part, "something before and after an encoded slash")
    return text


def _bad(found: str, expected: str) -> BadPathError:
    return BadPathError(f"found {found[:100]!r} in the path, expected {expected}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`METHOD /path` with `{name}` for a segment and `{name...}` for the rest; or `*` for all."""

    text: str
    method: str
    segments: tuple[str, ...]
    captures: frozenset[int] = _NONE  # the segments that stand for any text
    takes_rest: bool = False  # the last capture stands for one or more segments

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read an endpoint, or raise `ValueError` with what was expected."""
        if text == ANY_ENDPOINT:
            return cls(text, ANY_ENDPOINT, ())
        method, _, path = text.partition(" ")
        if method not in METHODS or not path.startswith("/"):
            raise ValueError(
                f'expected "METHOD /path" with a method of {", ".join(METHODS)}, '
                'or "preset:NAME", or "*" for everything'
            )
        segments = tuple(path.split("/")[1:])
        for at, segment in enumerate(segments):
            _check_segment(segment, is_last=at == len(segments) - 1)
        captures = frozenset(at for at, one in enumerate(segments) if one.startswith("{"))
        return cls(text, method, segments, captures, segments[-1].endswith("...}"))

    def matches(self, method: str, path: RequestPath) -> bool:
        """Tell whether the endpoint names the request; HEAD is allowed where GET is."""
        return method in self.methods() and self.matches_path(path)

    def methods(self) -> tuple[str, ...]:
        """Give the methods that the endpoint names."""
        if self.method == ANY_ENDPOINT:
            return METHODS
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)

    def matches_path(self, path: RequestPath) -> bool:
        """Tell whether the endpoint names the request's path, whatever the method."""
        if self.method == ANY_ENDPOINT:
            return not path.hidden
        if not self.captures:
            return path.segments == self.segments and not path.hidden
        wanted, given = len(self.segments), len(path.segments)
        if given < wanted or (given > wanted and not self.takes_rest):
            return False
        for at, segment in enumerate(self.segments):
            if at in self.captures:
                if not path.segments[at]:
                    return False
            elif segment != path.segments[at] or at in path.hidden:
                return False
        # A slash at the end is a segment of its own, and an empty one is no part of a name.
        return given == wanted or path.segments[-1] != ""

    def __str__(self) -> str:
        return self.text


def _check_segment(segment: str, *, is_last: bool) -> None:
    capture = _CAPTURE.fullmatch(segment)
    if capture is not None:
        if capture[1] and not is_last:
            raise ValueError("expected {name...} as the last segment only")
    elif segment in (".", "..") or not (_LITERAL.fullmatch(segment) or (is_last and not segment)):
        raise ValueError(
            "expected segments of letters, digits and -._~!$&'()+,;=:@ as they are once decoded, "
            "{name} for any one segment, {name...} for one or more at the end"
        )
