"""`explain`: what becomes of a peer or a request under the policy on disk, and why.

Reads the two files like `check`, connects to nothing, and needs no daemon: what a daemon decides
that runs with these files. Gets the question as a person has it, in words, as a `curl` command or
as a line of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidecar.core.checked import Serving
from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.http_head import ASTERISK
from sidecar.core.policy_explained import Explanation, Request, explain_peer, explain_request
from sidecar.core.spiffe_id import SCHEME, SpiffeId
from sidecar.operations.pasted_request import read_curl, read_log_line


class QuestionError(ValueError):
    """What was asked is no question; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who, and for what; no request: whether the peer is admitted at all."""

    peer: SpiffeId
    request: Request | None = None


def read_question(
    peer: str | None,
    method: str | None = None,
    path: str | None = None,
    curl: str | None = None,
    log: str | None = None,
) -> Question:
    """Read the question, or raise `QuestionError`; what is written out wins over the log line."""
    if (curl is not None) + (log is not None) + (method is not None or path is not None) > 1:
        raise QuestionError("expected one of --curl, --log, and --method with --path")
    try:
        request = None
        if log is not None:
            logged = read_log_line(log)
            peer, request = peer or logged.peer, logged.request
        elif curl is not None:
            request = read_curl(curl)
        elif method is not None and path is not None:
            request = Request(method.upper(), path.partition("?")[0])
        elif method is not None or path is not None:
            raise QuestionError("expected --method and --path together")
    except ValueError as exc:
        raise QuestionError(str(exc)) from exc
    whole = Request("OPTIONS", ASTERISK)
    if request is not None and not request.path.startswith("/") and request != whole:
        raise QuestionError(f"expected a path that begins with /, found {request.path!r}")
    if peer is None:
        raise QuestionError("expected --peer with a SPIFFE ID")
    return Question(_peer(peer), request)


def explain(serving: Serving, question: Question) -> Explanation:
    """Explain what a daemon with these files does."""
    config, policy = serving.config, serving.policy
    if question.request is None or config.backend.mode == "http":
        if question.request is None:
            return explain_peer(policy, question.peer, config)
        return explain_request(policy, question.peer, question.request, config)
    found = explain_peer(policy, question.peer, config)
    return replace(found, details=(f"{question.request} is not looked at", *found.details))


def _peer(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except InvalidSpiffeIdError as exc:
        meant = _meant(text)
        hint = f"; did you mean {meant}?" if meant else ""
        raise QuestionError(f"{exc.message}{hint}") from exc


def _meant(text: str) -> SpiffeId | None:
    """Give the ID that was probably meant, if mending the usual slips makes one of it."""
    domain, slash, path = text.strip().rstrip("/").removeprefix(SCHEME).partition("/")
    try:
        return SpiffeId.parse(f"{SCHEME}{domain.lower()}{slash}{path}")
    except InvalidSpiffeIdError:
        return None
