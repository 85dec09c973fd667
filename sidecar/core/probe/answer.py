"""An answer -> the fault in it: whether the sidecar itself said no, or the model server did.

Gets the status, the start of the body and who is asked, gives a `Fault`, or None for an answer
below 400. The sidecar tells its refusals by a code in the body, in the dialect of the path; where
a dialect has no room for codes, by its words. What is neither comes from behind the sidecar.
Never takes a body for more than a hint: whoever is behind a sidecar may say anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sidecar.core.http_answers import HEALTH_PATH
from sidecar.core.probe.http import json_value, shown_text
from sidecar.core.probe.report import Answer, Fault, Hop, ProbeRequest
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.status import printable

# The sidecar's refusals in Ollama's dialect, which has no codes.
_WORDS = {
    "peer_not_admitted": r"spiffe://\S+ is not admitted by the policy of this model server",
    "endpoint_not_allowed": r"[A-Z]+ .* is not allowed for spiffe://\S+",
    "svid_expired": r"your X\.509-SVID has expired;.*",
    "svid_not_trusted": r"your X\.509-SVID is no longer trusted here;.*",
    "no_identity": r"this model server has no valid identity at the moment;.*",
    "rate_limited": r"too many requests: [0-9.e+]+ a second are allowed, and [0-9]+ at once",
    "busy": r"the model server is busy: no place for this request within .*",
    "body_too_large": r"the request's body has over [0-9]+ bytes, which is the most.*",
    "head_too_large": r"the request's head has over [0-9]+ (bytes|headers).*",
    "request_timeout": r"(the request's body did not come: no byte|no complete head within).*",
    "websocket_not_served": r"WebSocket is not served here;.*",
    "backend_unreachable": r"the model server cannot be reached or broke off;.*",
    "backend_silent": r"the model server gave no (?:first|further) byte of .*",
}
_PATTERNS = {code: re.compile(words, re.DOTALL) for code, words in _WORDS.items()}
# Codes of refusals of a request's form; their texts say what is wrong.
_OF_FORM = ("bad_request", "http_version", "expectation", "misdirected", "transfer_coding")
_KNOWN = {*_WORDS, *_OF_FORM}
_STATUSES = {
    401: "it wants credentials of its own: --header 'Authorization: ...' (or @FILE)",
    404: "the model server does not know this path, or has not the model that the body names",
    405: "the model server does not take this method there: --method",
}

_BUSY = (
    "concurrent_requests of the rule or of [limits] there are all taken: answers take too long, "
    "or clients do not let go; `spiffe-sidecar status` there shows who has them"
)
_UNREACHABLE = (
    "on the sidecar's host: is the model server running, and on [backend] address (Ollama: "
    "127.0.0.1:11434)? `curl http://127.0.0.1:11434/api/version` there, and the sidecar's log"
)
_SILENT = (
    "it is there and does not answer: is it loading a model, or is its GPU busy? "
    "first_byte of [timeouts] is how long the sidecar waits"
)
_OLD_SVID = "is our agent attested, and are the clocks of both hosts right? then try again"
_HINTS = {
    "svid_expired": (Hop.OWN_SVID, _OLD_SVID),
    "svid_not_trusted": (Hop.OWN_SVID, _OLD_SVID),
    "rate_limited": (
        Hop.LIMITS,
        "requests_per_second and burst of the rule there; or ask less often",
    ),
    "busy": (Hop.LIMITS, _BUSY),
    "body_too_large": (Hop.LIMITS, "max_body_bytes of the rule or of [limits] there; or send less"),
    "head_too_large": (Hop.LIMITS, "max_head_bytes of [limits] there; or send fewer headers"),
    "no_identity": (
        Hop.SIDECAR,
        "there, is the agent up? `spiffe-sidecar status` and `doctor` tell",
    ),
    "backend_unreachable": (Hop.BACKEND, _UNREACHABLE),
    "backend_silent": (Hop.BACKEND, _SILENT),
}


@dataclass(frozen=True, slots=True)
class Ends:
    """Who asks whom."""

    own: SpiffeId
    peer: SpiffeId


def answer_fault(answer: Answer, body: bytes, request: ProbeRequest, ends: Ends) -> Fault | None:
    """Give the fault that an answer tells, if it does."""
    if answer.status < 400:
        return None
    code, text = told(body)
    if code in _KNOWN:
        return _refused(answer.status, code, text, request, ends)
    if answer.status == 503 and (reason := _unhealthy(body)) is not None:
        return _backend("unhealthy", f"the sidecar answers, its model server does not: {reason}")
    return _of_the_backend(answer, text or shown_text(body), request, ends)


def told(body: bytes) -> tuple[str, str]:
    """Give code and text of a refusal; the code is empty for one that is not the sidecar's."""
    said = json_value(body)
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, str):
        fits = (code for code, pattern in _PATTERNS.items() if pattern.fullmatch(error))
        return next(fits, ""), printable(error[:500])
    if not isinstance(error, dict):
        return "", ""
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else error.get("code")
    message = error.get("message")
    text = printable(message[:500]) if isinstance(message, str) else ""
    return (code if isinstance(code, str) and code in _KNOWN else ""), text


def _refused(status: int, code: str, text: str, request: ProbeRequest, ends: Ends) -> Fault:
    """Give the fault of a refusal of the sidecar's own."""
    hop, hint = _hop_and_hint(code, request, ends)
    said = f"the sidecar said {status}: {text}"
    if hop is Hop.BACKEND:
        said = f"the sidecar answers, its model server does not ({status}): {text}"
    return Fault(hop, code, said, hint)


def _hop_and_hint(code: str, request: ProbeRequest, ends: Ends) -> tuple[Hop, str]:
    ask = f"`spiffe-sidecar explain --config FILE --peer {ends.own}"
    path = request.target.path.partition("?")[0]
    if code == "peer_not_admitted":
        to_itself = "we asked with the sidecar's own ID; " if ends.own == ends.peer else ""
        hint = (
            f"{to_itself}no rule of policy.toml there names {ends.own}, or a [[deny]] does: "
            f"add it to peers of an [[allow]]; there, {ask}` tells"
        )
        return Hop.POLICY, hint
    if code == "endpoint_not_allowed":
        hint = (
            f"add '{request.method} {path}' or a preset to endpoints of the rule that names "
            f"this ID; there, {ask} --method {request.method} --path {path}` tells what is near"
        )
        return Hop.POLICY, hint
    return _HINTS.get(code, (Hop.SIDECAR, "the sidecar does not take requests of this form"))


def _backend(code: str, message: str, hint: str = _UNREACHABLE) -> Fault:
    return Fault(Hop.BACKEND, code, message, hint)


def _unhealthy(body: bytes) -> str | None:
    """Give the reason of the sidecar's own answer to a question for its health."""
    said = json_value(body)
    if not isinstance(said, dict) or said.get("status") != "unhealthy":
        return None
    return printable(str(said.get("reason", ""))[:300])


def _of_the_backend(answer: Answer, text: str, request: ProbeRequest, ends: Ends) -> Fault:
    """Give the fault of an answer that came from behind the sidecar."""
    who = "the model server" if answer.is_echoed else f"what is behind {ends.peer}"
    words = " ".join(filter(None, (str(answer.status), answer.reason)))
    said = f": {text}" if text else ""
    hint = _STATUSES.get(answer.status, "the way is fine; look at the model server's own log")
    if not answer.is_echoed:
        hint = _stream_hint(answer, request) or hint
    return _backend("status", f"{who} said {words}{said}", hint)


def _stream_hint(answer: Answer, request: ProbeRequest) -> str:
    """Say what is meant most likely where no sidecar in mode http speaks."""
    path = request.target.path.partition("?")[0]
    if answer.status == 404 and path == HEALTH_PATH:
        return (
            f"{HEALTH_PATH} is the sidecar's own in mode http only; in mode stream ask for a path "
            "of the model server, such as /api/version"
        )
    if answer.status == 403:
        return (
            'Ollama says 403 to a Host that it does not know: mode = "http" rewrites it; '
            "in mode stream, --header 'Host: localhost'"
        )
    return ""
