"""The answers that are ours: refusals, preflights, health; and what is added to all others.

Gets a request's head and what is to be said, gives an `Answer` that can be written. Not part of
`http_headers` because that one rewrites what others said.
Specification: RFC 9110 (HTTP Semantics) 6.6.1 (Date), 9.3.7 (OPTIONS), 15 (Status Codes); WHATWG
Fetch, CORS protocol.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from sidecar.core.cors import Cors
from sidecar.core.http_head import ASTERISK, RequestHead
from sidecar.core.http_headers import Extras
from sidecar.core.refusal import Refusal, refusal_body, refusal_headers

# Ours on the data port, for any peer that some rule names; it never reaches the backend.
HEALTH_PATH = "/health"
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")
_CORS_HEADERS = frozenset(
    {
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of our own."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    note: str | None = None  # for the log: why it is not what the peer hoped for

    def encoded(
        self, request_id: str, *, without_body: bool, closes: bool, date: str | None = None
    ) -> bytes:
        """Write it; `without_body` is for HEAD, whose length is told all the same.

        `date` is the time of now as HTTP writes it.
        """
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += _once((*([("date", date)] if date else []), *self.headers))
        lines.append(f"x-request-id: {request_id}")
        if self.status != HTTPStatus.NO_CONTENT:
            lines.append(f"content-length: {len(self.body)}")
        if closes:
            lines.append("connection: close")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return head if without_body else head + self.body


def _once(headers: tuple[tuple[str, str], ...]) -> list[str]:
    """Write headers: what an answer of ours says of itself comes first, and is said once."""
    seen: set[str] = set()
    lines = []
    for name, value in headers:
        if name.lower() not in seen:
            lines.append(f"{name.lower()}: {value}")
        seen |= {name.lower()} - {"vary"}
    return lines


class Answerer:
    """Writes our own answers with the headers that the configuration adds to every answer."""

    def __init__(self, cors: Cors | None, headers: tuple[tuple[str, str], ...]) -> None:
        self._cors = cors
        self._headers = headers
        names = frozenset(name.lower().encode() for name, _ in headers)
        self._replaces = names | _CORS_HEADERS if cors else names

    def extras(self, request: RequestHead | None) -> Extras:
        """Give what is added to an answer, and what of the backend's it takes the place of."""
        if self._cors is None:
            return Extras(self._headers, self._replaces)
        origin = _text(request.get(b"origin")) if request else None
        return Extras((*self._headers, *self._cors.headers(origin)), self._replaces)

    def preflight(self, request: RequestHead) -> Answer | None:
        """Answer a browser's preflight; None for any other request."""
        asked = _text(request.get(b"access-control-request-method"))
        if self._cors is None or request.method != "OPTIONS" or asked is None:
            return None
        origin = _text(request.get(b"origin"))
        # A list may come in several lines (RFC 9110 5.3).
        names = _text(b",".join(request.values(b"access-control-request-headers")))
        network = request.get(b"access-control-request-private-network") == b"true"
        allowed = self._cors.preflight(origin, asked, names, private_network=network)
        if allowed is not None:
            return Answer(HTTPStatus.NO_CONTENT, (*self._headers, *allowed))
        # A browser takes the absence of the headers for the no that it is.
        note = f"preflight not granted by [cors]: {self._cors.missing(origin, asked, names)}"
        return Answer(HTTPStatus.NO_CONTENT, (*self._headers, ("Vary", "Origin")), note=note)

    def server_options(self, request: RequestHead) -> Answer | None:
        """Answer OPTIONS that asks for the server as a whole; None for any other request."""
        if request.path != ASTERISK:
            return None
        return Answer(HTTPStatus.OK, self.extras(request).headers)

    def health(self, request: RequestHead, reason_against: str | None) -> Answer:
        """Answer a question for our health: our SVID is valid, or nobody could have asked."""
        status = "unhealthy" if reason_against else "ok"
        told = {"status": status, **({"reason": reason_against} if reason_against else {})}
        code = HTTPStatus.SERVICE_UNAVAILABLE if reason_against else HTTPStatus.OK
        headers = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
        return Answer(code, (*headers, *self.extras(request).headers), msgspec.json.encode(told))

    def refusal(self, refusal: Refusal, request: RequestHead | None, request_id: str) -> Answer:
        """Say no, in the dialect of the request's path; None for what was no request."""
        path = request.path if request else "/"
        anthropic = request is not None and request.get(b"anthropic-version") is not None
        headers = refusal_headers(refusal, path, anthropic, request_id)
        body = refusal_body(refusal, path, anthropic, request_id)
        return Answer(refusal.status, (*headers, *self.extras(request).headers), body)


def is_preflight(request: RequestHead) -> bool:
    """Tell whether a browser asks whether a page may send a request."""
    asked = request.get(b"access-control-request-method")
    return request.method == "OPTIONS" and asked is not None


def is_health_question(request: RequestHead) -> bool:
    """Tell whether our health is asked for."""
    return request.path == HEALTH_PATH and request.method in ("GET", "HEAD")


def is_balancer_check(request: RequestHead) -> bool:
    """Tell whether it is HAProxy's check as it is without `http-check send`: OPTIONS / HTTP/1.0."""
    line = request.method, request.path, request.minor
    return line == ("OPTIONS", "/", 0) and not is_preflight(request)


def usable_request_id(request: RequestHead) -> str | None:
    """Give the X-Request-Id that a trusted proxy sent if a log line and a header can hold it."""
    value = request.get(b"x-request-id")
    return value.decode() if value and _REQUEST_ID.fullmatch(value) else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
