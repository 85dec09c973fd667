"""What a refused request is told, in the dialect of its path.

Gets a `Refusal` and gives the body (JSON) and the headers that go with it, in the shape that the
path's own clients parse, so that they raise their own exceptions with our message in them:
Anthropic at /v1/messages and for clients that say so, OpenAI below /v1/, Ollama elsewhere, and
one for all where the path tells nothing. Never adds to the message: what may be said to a peer
is decided by who makes the `Refusal`.
Specification: Anthropic API, Errors; OpenAI API, Error codes; Ollama API, Errors.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus

import msgspec


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered by the backend.

    `code` is for programs. `message` is one line for the person at the client: what was found,
    what was expected, what to do; it never names other peers, rules of others, the backend's
    address or a path of this host.
    """

    status: int
    code: str
    message: str
    retry_after_seconds: int | None = None


class Dialect(enum.Enum):
    """Whose clients read the body."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    OLLAMA = "ollama"
    ANY = "any"

    @classmethod
    def of(cls, path: str, anthropic: bool) -> Dialect:
        """Give the dialect of a path; `anthropic`: the request has an anthropic-version."""
        # A head that could not be read has no path, and the root belongs to nobody.
        if path in ("", "/"):
            return cls.ANY
        if not path.startswith("/v1/"):
            return cls.OLLAMA
        if anthropic or f"{path.partition('?')[0]}/".startswith("/v1/messages/"):
            return cls.ANTHROPIC
        return cls.OPENAI


# The types that each interface documents; any other status has the one of its class. 408, 417,
# 421, 431 and the like are faults of the request to both, also where a client could try again:
# clients tell that from the status.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def refusal_body(refusal: Refusal, path: str, anthropic: bool, request_id: str) -> bytes:
    """Give the body: JSON in UTF-8, whatever the texts hold."""
    dialect, message = Dialect.of(path, anthropic), _encodable(refusal.message)
    if dialect is Dialect.OLLAMA:
        return msgspec.json.encode({"error": message})
    error: dict[str, object] = {}
    if dialect in (Dialect.OPENAI, Dialect.ANY):
        kind = _type(refusal.status, _OPENAI_TYPES, "server_error")
        error |= {"message": message, "type": kind, "param": None, "code": refusal.code}
    if dialect is Dialect.OPENAI:
        return msgspec.json.encode({"error": error})
    kind = _type(refusal.status, _ANTHROPIC_TYPES, "api_error")
    # `error_code` is where Anthropic's clients look for a cause that programs can rely on.
    error |= {"type": kind, "message": message, "details": {"error_code": refusal.code}}
    body = {"type": "error", "error": error, "request_id": _encodable(request_id)}
    return msgspec.json.encode(body)


def refusal_headers(
    refusal: Refusal, path: str, anthropic: bool, request_id: str
) -> list[tuple[str, str]]:
    """Give the headers that only refusals have; X-Request-Id and the length are on every answer."""
    headers = [("Content-Type", "application/json")]
    if refusal.retry_after_seconds is not None:
        headers.append(("Retry-After", str(refusal.retry_after_seconds)))
    if refusal.status == HTTPStatus.GATEWAY_TIMEOUT:
        # Their clients try again by themselves, and would have the same answer generated anew.
        headers.append(("X-Should-Retry", "false"))
    if Dialect.of(path, anthropic) in (Dialect.ANTHROPIC, Dialect.ANY):
        # The name under which Anthropic's clients look for what others call X-Request-Id.
        headers.append(("Request-Id", request_id))
    return headers


def _type(status: int, types: dict[int, str], server_fault: str) -> str:
    return types.get(status, "invalid_request_error" if status < 500 else server_fault)


def _encodable(text: str) -> str:
    # Half a surrogate pair, as an undecodable byte of a head leaves it, has no UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")
