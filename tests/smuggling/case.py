"""What a case is: raw bytes of a peer, and all that may come of them.

`forwarded` is the most that the backend may see complete, in this order; `begun` one request
more whose end it must not see. `answers` are the statuses that each answer may have, with
NOTHING where none may come. Builders put well-formed bytes around the one odd thing of a case.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.recording_backend import Style

NOTHING = 0

OK = frozenset({200})
BAD = frozenset({400})
CODING = frozenset({400, 501})  # a transfer coding that is not known
VERSION = frozenset({400, 505})
TOO_LARGE = frozenset({400, 413})
HEAD_TOO_LARGE = frozenset({400, 431})
METHOD = frozenset({400, 403, 405, 501})
DENIED = frozenset({400, 403, 404, 405, 421})
EITHER = OK | BAD
SILENT = BAD | {NOTHING}

HOST = b"Host: models.example.org"
MODELS = b"GET /v1/models HTTP/1.1"
VERSION_LINE = b"GET /api/version HTTP/1.1"
CHAT = b"POST /v1/chat/completions HTTP/1.1"
SPOOFED = b"spiffe://example.org/workload/admin"


@dataclass(frozen=True, slots=True)
class Request:
    """What the backend may see of one request."""

    method: bytes
    target: bytes
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Case:
    """One connection's bytes, and what must hold."""

    id: str
    raw: bytes
    answers: tuple[frozenset[int], ...]
    forwarded: tuple[Request, ...] = ()
    begun: Request | None = None
    ends: bool = False  # the gate ends the connection after the last answer, unasked
    style: Style = "plain"  # how the backend answers


def request(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """A request line, header lines and body as they are given; no Host is added."""
    return b"\r\n".join((line, *fields)) + b"\r\n\r\n" + body


def models(*fields: bytes, body: bytes = b"") -> bytes:
    """GET /v1/models, which policy allows."""
    return request(MODELS, HOST, *fields, body=body)


def chat(*fields: bytes, body: bytes = b"") -> bytes:
    """POST /v1/chat/completions, which policy allows."""
    return request(CHAT, HOST, *fields, body=body)


def sized(body: bytes, *fields: bytes) -> bytes:
    """A chat request with a right Content-Length."""
    return chat(*fields, b"Content-Length: %d" % len(body), body=body)


def chunked(raw: bytes, *fields: bytes) -> bytes:
    """A chat request whose chunks are the raw bytes given."""
    return chat(*fields, b"Transfer-Encoding: chunked", body=raw)


# What every attack would like to see at the backend: a request that policy denies.
PULL = request(b"POST /api/pull HTTP/1.1", HOST, b"Content-Length: 2", body=b"{}")
SEES_MODELS = Request(b"GET", b"/v1/models")


def sees_chat(body: bytes) -> Request:
    """A chat request as the backend sees it."""
    return Request(b"POST", b"/v1/chat/completions", body)


def accepted(name: str, raw: bytes, *forwarded: Request, style: Style = "plain") -> Case:
    """All of it goes through, one answer each."""
    return Case(name, raw, (OK,) * len(forwarded), forwarded, style=style)


def refused(name: str, raw: bytes, statuses: frozenset[int] = BAD) -> Case:
    """Refused for its form: nothing reaches the backend, and the connection ends."""
    return Case(name, raw, (statuses,), ends=True)


def denied(name: str, raw: bytes, statuses: frozenset[int] = DENIED) -> Case:
    """Refused, and the connection may live on."""
    return Case(name, raw, (statuses,))


def either(name: str, raw: bytes, forwarded: Request, statuses: frozenset[int] = EITHER) -> Case:
    """The standard leaves it open: refused, or forwarded as this and as nothing else."""
    return Case(name, raw, (statuses | OK,), (forwarded,))
