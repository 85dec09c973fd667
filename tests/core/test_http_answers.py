"""Answers of our own: whole, framed, in the dialect of the path, with the configured headers."""

from __future__ import annotations

import json
from http import HTTPStatus

import h11
import pytest

from sidecar.core.cors import Cors
from sidecar.core.http_answers import HEALTH_PATH, Answer, Answerer, usable_request_id
from sidecar.core.http_head import RequestHead, parse_request
from sidecar.core.refusal import Refusal
from tests.fuzz import wire

CHAT = "https://chat.example.org"
CORS = Cors(allow_origins=(CHAT,), expose_headers=("X-Request-Id",))
HSTS = (("Strict-Transport-Security", "max-age=1"), ("Server", "gate"))
PLAIN = Answerer(None, ())
DENIED = Refusal(403, "endpoint_not_allowed", "no")
ALLOW_ORIGIN = b"access-control-allow-origin"


def request(*fields: str, line: str = "GET /v1/models HTTP/1.1") -> RequestHead:
    """A request with a Host."""
    return parse_request("\r\n".join((line, "Host: x", *fields, "", "")).encode("latin-1"))


def read(answer: Answer, *, method: str = "GET", closes: bool = False) -> wire.Message:
    """Read a written answer strictly and to its last byte, by two parsers."""
    to_head = method == "HEAD"
    written = answer.encoded("the-id", without_body=to_head, closes=closes)
    message = wire.read_answer(written, 0, to_head=to_head, strict=True)
    assert message is not None
    assert message.complete
    assert message.end == len(written)
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(written)
    body = b""
    while not isinstance(event := peer.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        body += event.data if isinstance(event, h11.Data) else b""
    assert body == message.body
    assert peer.their_state is (h11.MUST_CLOSE if closes else h11.DONE)
    return message


# How an answer is written.


def test_answer_is_written_with_its_length_and_the_request_id() -> None:
    headers = (("X-A", "b"), ("Vary", "Origin"), ("x-a", "c"), ("vary", "Accept"))
    message = read(Answer(200, headers, b"hello"))
    assert message.line == b"HTTP/1.1 200 OK"
    assert message.headers == [
        (b"x-a", b"b"),
        (b"vary", b"Origin"),
        (b"vary", b"Accept"),
        (b"x-request-id", b"the-id"),
        (b"content-length", b"5"),
    ]
    assert message.body == b"hello"


def test_header_is_written_once_and_the_first_is_right() -> None:
    own = (("Content-Type", "a/b"), ("Vary", "c"), ("content-type", "d/e"), ("vary", "f"))
    message = read(Answer(200, own, b"x"))
    assert message.values(b"content-type") == [b"a/b"]
    assert message.values(b"vary") == [b"c", b"f"]


def test_configured_headers_do_not_belie_what_an_answer_of_ours_is() -> None:
    lies = (("Content-Type", "text/html"), ("Cache-Control", "public"), ("Server", "gate"))
    asked = request(line=f"GET {HEALTH_PATH} HTTP/1.1")
    health = read(Answerer(None, lies).health(asked, None))
    refusal = read(Answerer(None, lies).refusal(DENIED, asked, "the-id"))
    for message in (health, refusal):
        assert message.values(b"content-type") == [b"application/json"]
        assert message.values(b"server") == [b"gate"]
    assert health.values(b"cache-control") == [b"no-store"]


@pytest.mark.parametrize("status", [s for s in HTTPStatus if s >= 200 and s not in (204, 304)])
@pytest.mark.parametrize("body", [b"", b"x"])
def test_every_status_has_its_length(status: HTTPStatus, body: bytes) -> None:
    message = read(Answer(status, (), body))
    assert message.line == f"HTTP/1.1 {status.value} {status.phrase}".encode()
    assert message.value(b"content-length") == b"%d" % len(body)


def test_head_is_told_the_length_of_what_it_does_not_get() -> None:
    message = read(Answer(403, (), b"hello"), method="HEAD")
    assert message.value(b"content-length") == b"5"
    assert message.body == b""


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_204_has_no_length(method: str) -> None:
    assert read(Answer(204, ()), method=method).value(b"content-length") is None


@pytest.mark.parametrize("status", [200, 204, 400])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_last_answer_says_so(status: int, method: str) -> None:
    answer = Answer(status, (), b"" if status == 204 else b"x")
    assert read(answer, method=method, closes=True).value(b"connection") == b"close"
    assert read(answer, method=method).value(b"connection") is None


def test_configured_text_is_written_as_latin_1() -> None:
    assert read(Answer(200, (("Server", "m\xe4x"),))).value(b"server") == b"m\xe4x"


# Refusals.


@pytest.mark.parametrize(
    ("line", "fields", "told"),
    [
        pytest.param("POST /api/chat HTTP/1.1", (), {"error": "no"}, id="Ollama"),
        pytest.param("POST /api/chat HTTP/1.1", ("Anthropic-Version: 1",), {"error": "no"}, id="O"),
        pytest.param("POST /v1/chat/completions HTTP/1.1", (), "permission_error", id="OpenAI"),
        pytest.param("POST /v1/messages?a HTTP/1.1", (), "permission_error", id="Anthropic"),
        pytest.param(
            "GET /v1/models HTTP/1.1", ("anthropic-version:",), "permission_error", id="A"
        ),
    ],
)
def test_refusal_speaks_the_dialect_of_its_path(
    line: str, fields: tuple[str, ...], told: object
) -> None:
    message = read(PLAIN.refusal(DENIED, request(*fields, line=line), "the-id"))
    assert message.line == b"HTTP/1.1 403 Forbidden"
    assert message.value(b"content-type") == b"application/json"
    body = json.loads(message.body)
    assert told in (body, body.get("error") if isinstance(told, dict) else body["error"]["type"])


def test_anthropic_is_known_by_its_shape_and_its_own_id_header() -> None:
    spoken = read(PLAIN.refusal(DENIED, request(line="POST /v1/messages HTTP/1.1"), "the-id"))
    assert json.loads(spoken.body)["type"] == "error"
    assert spoken.value(b"request-id") == b"the-id"
    other = read(PLAIN.refusal(DENIED, request(), "the-id"))
    assert "type" not in json.loads(other.body)
    assert other.value(b"request-id") is None


@pytest.mark.parametrize("cors", [None, CORS], ids=["no CORS", "CORS"])
def test_what_was_no_request_is_told_why_in_every_dialect(cors: Cors | None) -> None:
    refusal = Refusal(431, "head_too_large", "m\xe4h \N{SNOWMAN} \ud800")
    message = read(Answerer(cors, HSTS).refusal(refusal, None, "the-id"), closes=True)
    body = json.loads(message.body)
    assert body["error"]["message"].startswith("m\xe4h \N{SNOWMAN}")
    assert body["error"]["code"] == "head_too_large"
    assert message.value(b"server") == b"gate"
    assert message.value(ALLOW_ORIGIN) is None


def test_refusal_says_when_to_try_again() -> None:
    message = read(PLAIN.refusal(Refusal(429, "rate_limited", "slow", 7), request(), "the-id"))
    assert message.value(b"retry-after") == b"7"
    assert read(PLAIN.refusal(DENIED, request(), "i")).value(b"retry-after") is None


def test_page_may_read_why_it_was_refused() -> None:
    answerer = Answerer(CORS, HSTS)
    message = read(answerer.refusal(DENIED, request(f"Origin: {CHAT}"), "the-id"))
    assert message.value(ALLOW_ORIGIN) == CHAT.encode()
    assert message.value(b"vary") == b"Origin"
    other = read(answerer.refusal(DENIED, request("Origin: https://evil.example.org"), "the-id"))
    assert other.value(ALLOW_ORIGIN) is None
    assert other.value(b"vary") == b"Origin"


# Health.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_told_and_not_kept(method: str) -> None:
    asked = request(line=f"{method} {HEALTH_PATH} HTTP/1.1")
    well = read(PLAIN.health(asked, None), method=method)
    ill = read(PLAIN.health(asked, "the backend refuses"), method=method)
    assert well.line == b"HTTP/1.1 200 OK"
    assert ill.line == b"HTTP/1.1 503 Service Unavailable"
    assert well.value(b"cache-control") == ill.value(b"cache-control") == b"no-store"
    if method == "GET":
        assert json.loads(well.body) == {"status": "ok"}
        assert json.loads(ill.body) == {"status": "unhealthy", "reason": "the backend refuses"}


def test_page_may_ask_for_health() -> None:
    asked = request(f"Origin: {CHAT}", line=f"GET {HEALTH_PATH} HTTP/1.1")
    message = read(Answerer(CORS, HSTS).health(asked, None))
    assert message.value(ALLOW_ORIGIN) == CHAT.encode()
    assert message.value(b"server") == b"gate"


# Preflights.

ASKS = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
PREFLIGHT = "OPTIONS /v1/chat HTTP/1.1"


def test_preflight_is_answered_for_a_listed_origin() -> None:
    answer = Answerer(CORS, HSTS).preflight(request(f"Origin: {CHAT}", *ASKS, line=PREFLIGHT))
    assert answer is not None
    message = read(answer, method="OPTIONS")
    assert message.line == b"HTTP/1.1 204 No Content"
    assert message.value(ALLOW_ORIGIN) == CHAT.encode()
    assert message.value(b"access-control-allow-methods") is not None
    assert message.value(b"server") == b"gate"


def test_preflight_asks_for_headers_in_as_many_lines_as_it_likes() -> None:
    lines = (*ASKS, "Access-Control-Request-Headers: x-stainless-os, x-stainless-lang")
    answer = Answerer(CORS, ()).preflight(request(f"Origin: {CHAT}", *lines, line=PREFLIGHT))
    assert answer is not None
    allowed = read(answer, method="OPTIONS").value(b"access-control-allow-headers") or b""
    assert {b"Content-Type", b"x-stainless-os", b"x-stainless-lang"} <= {*allowed.split(b", ")}
    more = (*lines, "Access-Control-Request-Headers: x-spiffe-id")
    answer = Answerer(CORS, ()).preflight(request(f"Origin: {CHAT}", *more, line=PREFLIGHT))
    assert answer is not None
    assert read(answer, method="OPTIONS").value(ALLOW_ORIGIN) is None
    assert "x-spiffe-id" in (answer.note or "")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(("Origin: https://evil.example.org", *ASKS), id="another origin"),
        pytest.param((*ASKS,), id="no origin"),
        pytest.param(("Origin: null", *ASKS), id="null"),
        pytest.param((f"Origin: {CHAT}\xe4", *ASKS), id="not ASCII"),
        pytest.param((f"Origin: {CHAT}", "Access-Control-Request-Method: DELETE"), id="method"),
        pytest.param((f"Origin: {CHAT}", "Access-Control-Request-Method:"), id="empty method"),
        pytest.param(
            (f"Origin: {CHAT}", ASKS[0], "Access-Control-Request-Headers: x-spiffe-id"), id="header"
        ),
    ],
)
def test_other_preflights_are_answered_without_a_permission(fields: tuple[str, ...]) -> None:
    answer = Answerer(CORS, ()).preflight(request(*fields, line=PREFLIGHT))
    assert answer is not None
    message = read(answer, method="OPTIONS")
    assert message.line == b"HTTP/1.1 204 No Content"
    assert message.headers == [(b"vary", b"Origin"), (b"x-request-id", b"the-id")]


@pytest.mark.parametrize(
    ("cors", "line", "fields"),
    [
        pytest.param(None, PREFLIGHT, (f"Origin: {CHAT}", *ASKS), id="no CORS here"),
        pytest.param(CORS, PREFLIGHT, (f"Origin: {CHAT}",), id="OPTIONS that asks nothing"),
        pytest.param(CORS, "POST / HTTP/1.1", (f"Origin: {CHAT}", *ASKS), id="POST"),
        pytest.param(CORS, "GET / HTTP/1.1", (f"Origin: {CHAT}", *ASKS), id="GET"),
        pytest.param(
            CORS, PREFLIGHT, (f"Origin: {CHAT}", "Access_Control_Request_Method: POST"), id="name"
        ),
    ],
)
def test_what_is_no_preflight_goes_the_way_of_every_request(
    cors: Cors | None, line: str, fields: tuple[str, ...]
) -> None:
    assert Answerer(cors, HSTS).preflight(request(*fields, line=line)) is None


# What is added to the backend's answers.


def test_configured_names_replace_those_of_the_backend() -> None:
    extras = Answerer(None, HSTS).extras(request())
    assert extras.headers == HSTS
    assert extras.replaces == {b"strict-transport-security", b"server"}
    assert PLAIN.extras(None).headers == ()
    assert PLAIN.extras(request()).replaces == frozenset()


@pytest.mark.parametrize("origin", [CHAT, "https://evil.example.org", None])
def test_backend_has_no_say_in_cors_when_it_is_ours(origin: str | None) -> None:
    asked = request(*([f"Origin: {origin}"] if origin else []))
    extras = Answerer(CORS, HSTS).extras(asked)
    assert {b"server", ALLOW_ORIGIN, b"access-control-allow-credentials"} <= extras.replaces
    assert b"access-control-expose-headers" in extras.replaces
    assert b"vary" not in extras.replaces
    assert (("Access-Control-Allow-Origin", CHAT) in extras.headers) == (origin == CHAT)


# The request's ID.


@pytest.mark.parametrize("value", ["a", "9f:1/2+3=4@5-6_7.8", "x" * 128])
def test_request_id_of_the_peer_is_kept(value: str) -> None:
    assert usable_request_id(request(f"X-Request-Id: {value}")) == value


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param((), id="none"),
        pytest.param(("X-Request-Id:",), id="empty"),
        pytest.param(("X-Request-Id: a b",), id="space"),
        pytest.param(("X-Request-Id: a\tb",), id="tab"),
        pytest.param(("X-Request-Id: a,b",), id="list"),
        pytest.param(('X-Request-Id: a"',), id="quote"),
        pytest.param(("X-Request-Id: a\\",), id="backslash"),
        pytest.param(("X-Request-Id: <a>",), id="tag"),
        pytest.param(("X-Request-Id: \xe4",), id="not ASCII"),
        pytest.param(("X-Request-Id: " + "x" * 129,), id="too long"),
        pytest.param(("X_Request_Id: a",), id="another spelling"),
    ],
)
def test_other_request_ids_are_not_used(fields: tuple[str, ...]) -> None:
    assert usable_request_id(request(*fields)) is None
