"""Refusals: in the dialect of the path, and always a body that can be parsed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.refusal import Refusal, refusal_body, refusal_headers

REFUSED = Refusal(403, "endpoint_not_allowed", "POST /api/pull is not allowed for you")
LATER = Refusal(429, "rate_limited", "too many requests", 7)
SLOW = Refusal(503, "busy", "no place for this request", 0)


def body(refusal: Refusal, path: str, *, anthropic: bool = False, request_id: str = "r-1") -> Any:
    return json.loads(refusal_body(refusal, path, anthropic, request_id))


def dialect(path: str, *, anthropic: bool) -> str:
    """Tell the dialect by the shape alone."""
    found = body(REFUSED, path, anthropic=anthropic)
    if isinstance(found["error"], str):
        return "ollama"
    shapes = {"anthropic": found.get("type") == "error", "openai": "code" in found["error"]}
    return " and ".join(name for name, has in shapes.items() if has)


@pytest.mark.parametrize(
    ("path", "anthropic", "expected"),
    [
        pytest.param("/v1/messages", False, "anthropic", id="messages"),
        pytest.param("/v1/messages/count_tokens", False, "anthropic", id="below messages"),
        pytest.param("/v1/messages/", False, "anthropic", id="messages with a slash"),
        pytest.param("/v1/messages?beta=true", False, "anthropic", id="messages with a query"),
        pytest.param("/v1/messages", True, "anthropic", id="messages by an Anthropic client"),
        pytest.param("/v1/models", True, "anthropic", id="models for an Anthropic client"),
        pytest.param("/v1/models/qwen3:8b", True, "anthropic", id="one model for it"),
        pytest.param("/v1/models", False, "openai", id="models for another one"),
        pytest.param("/v1/chat/completions", False, "openai", id="chat completions"),
        pytest.param("/v1/responses", False, "openai", id="responses"),
        pytest.param("/v1/", False, "openai", id="nothing below v1"),
        pytest.param("/v1/messagesx", False, "openai", id="a longer word"),
        pytest.param("/v1/message", False, "openai", id="a shorter word"),
        pytest.param("/v1/MESSAGES", False, "openai", id="another case"),
        pytest.param("/v1/x/messages", False, "openai", id="deeper messages"),
        pytest.param("/v1/chat?x=/v1/messages/", False, "openai", id="messages in the query"),
        pytest.param("/api/chat", False, "ollama", id="Ollama's own"),
        pytest.param("/api/chat", True, "ollama", id="Ollama's own, whatever the client says"),
        pytest.param("/metrics", False, "ollama", id="neither"),
        pytest.param("", False, "anthropic and openai", id="a head that could not be read"),
        pytest.param("/", False, "anthropic and openai", id="root"),
        pytest.param("/", True, "anthropic and openai", id="root for an Anthropic client"),
        pytest.param("/?x=/v1/", False, "ollama", id="root with a query"),
        pytest.param("*", False, "ollama", id="asterisk"),
        pytest.param("/v1", True, "ollama", id="v1 itself"),
        pytest.param("/v11/messages", True, "ollama", id="v11"),
        pytest.param("v1/messages", True, "ollama", id="no slash in front"),
        pytest.param("/api/v1/messages", True, "ollama", id="v1 further down"),
        pytest.param("//v1/messages", True, "ollama", id="two slashes"),
    ],
)
def test_dialect_follows_the_path(path: str, anthropic: bool, expected: str) -> None:
    assert dialect(path, anthropic=anthropic) == expected


def test_anthropic_body_has_all_that_its_clients_read() -> None:
    assert body(REFUSED, "/v1/messages", request_id="r-7") == {
        "type": "error",
        "error": {
            "type": "permission_error",
            "message": "POST /api/pull is not allowed for you",
            "details": {"error_code": "endpoint_not_allowed"},
        },
        "request_id": "r-7",
    }


def test_openai_body_has_all_that_its_clients_read() -> None:
    assert body(REFUSED, "/v1/responses") == {
        "error": {
            "message": "POST /api/pull is not allowed for you",
            "type": "permission_error",
            "param": None,
            "code": "endpoint_not_allowed",
        }
    }


def test_body_where_the_path_tells_nothing_has_both() -> None:
    assert body(replace(REFUSED, status=413), "", request_id="r-7") == {
        "type": "error",
        "error": {
            "type": "request_too_large",
            "message": "POST /api/pull is not allowed for you",
            "param": None,
            "code": "endpoint_not_allowed",
            "details": {"error_code": "endpoint_not_allowed"},
        },
        "request_id": "r-7",
    }


def test_ollama_body_is_the_message() -> None:
    assert body(REFUSED, "/api/pull") == {"error": "POST /api/pull is not allowed for you"}


@pytest.mark.parametrize(
    ("status", "anthropic", "openai"),
    [
        pytest.param(400, "invalid_request_error", "invalid_request_error", id="400"),
        pytest.param(401, "authentication_error", "authentication_error", id="401"),
        pytest.param(403, "permission_error", "permission_error", id="403"),
        pytest.param(404, "not_found_error", "not_found_error", id="404"),
        pytest.param(405, "invalid_request_error", "invalid_request_error", id="405"),
        pytest.param(408, "invalid_request_error", "invalid_request_error", id="408"),
        pytest.param(413, "request_too_large", "invalid_request_error", id="413"),
        pytest.param(417, "invalid_request_error", "invalid_request_error", id="417"),
        pytest.param(421, "invalid_request_error", "invalid_request_error", id="421"),
        pytest.param(429, "rate_limit_error", "rate_limit_error", id="429"),
        pytest.param(431, "invalid_request_error", "invalid_request_error", id="431"),
        pytest.param(500, "api_error", "server_error", id="500"),
        pytest.param(501, "api_error", "server_error", id="501"),
        pytest.param(502, "api_error", "server_error", id="502"),
        pytest.param(503, "overloaded_error", "service_unavailable_error", id="503"),
        pytest.param(504, "timeout_error", "server_error", id="504"),
        pytest.param(505, "api_error", "server_error", id="505"),
    ],
)
def test_type_follows_the_status(status: int, anthropic: str, openai: str) -> None:
    refusal = replace(REFUSED, status=status)
    assert body(refusal, "/v1/messages")["error"]["type"] == anthropic
    assert body(refusal, "/v1/responses")["error"]["type"] == openai


@pytest.mark.parametrize(
    ("refusal", "path", "anthropic", "expected"),
    [
        pytest.param(
            LATER,
            "/v1/messages",
            False,
            [("Retry-After", "7"), ("Request-Id", "r-1")],
            id="messages, later",
        ),
        pytest.param(REFUSED, "/v1/models", True, [("Request-Id", "r-1")], id="Anthropic client"),
        pytest.param(REFUSED, "", False, [("Request-Id", "r-1")], id="no path"),
        pytest.param(LATER, "/v1/models", False, [("Retry-After", "7")], id="others, later"),
        pytest.param(SLOW, "/api/chat", False, [("Retry-After", "0")], id="at once"),
        pytest.param(REFUSED, "/v1/models", False, [], id="never"),
        pytest.param(REFUSED, "/api/chat", True, [], id="Ollama's own"),
    ],
)
def test_headers_tell_type_and_time_and_the_id_as_clients_look_for_it(
    refusal: Refusal, path: str, anthropic: bool, expected: list[tuple[str, str]]
) -> None:
    headers = refusal_headers(refusal, path, anthropic, "r-1")
    assert headers == [("Content-Type", "application/json"), *expected]


@pytest.mark.parametrize("path", ["", "/v1/messages", "/v1/responses", "/api/chat"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param('"}, {"', id="quotes and braces"),
        pytest.param("a\\b", id="backslash"),
        pytest.param("a\r\nb\0", id="control characters"),
        pytest.param("Gesuch für größere Modelle", id="umlauts"),
        pytest.param("模型 🦙", id="beyond the basic plane"),
    ],
)
def test_message_comes_out_as_it_went_in(path: str, text: str) -> None:
    error = body(replace(REFUSED, message=text), path)["error"]
    assert (error if isinstance(error, str) else error["message"]) == text


@pytest.mark.parametrize("path", ["", "/v1/messages", "/v1/responses", "/api/chat"])
def test_half_a_surrogate_pair_becomes_a_question_mark(path: str) -> None:
    refusal = replace(REFUSED, message="no such model: a\udcffb")
    assert b"no such model: a?b" in refusal_body(refusal, path, False, "r-\ud800")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.text(st.characters(), max_size=30),  # surrogates too
    st.text(st.characters(), max_size=30),
    st.sampled_from(["", "/v1/messages", "/v1/responses", "/api/chat"]) | st.text(),
    st.booleans(),
    st.integers(400, 599),
)
def test_whatever_is_said_there_is_a_body_of_one_line(
    message: str, request_id: str, path: str, anthropic: bool, status: int
) -> None:
    refusal = Refusal(status, "code", message)
    encoded = refusal_body(refusal, path, anthropic, request_id)
    assert b"\n" not in encoded
    assert "error" in json.loads(encoded.decode("utf-8"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_silent_backend_is_not_asked_again_by_itself(path: str) -> None:
    silent = Refusal(504, "backend_silent", "the model server gave no first byte of it")
    assert ("X-Should-Retry", "false") in refusal_headers(silent, path, False, "id")
    busy = Refusal(503, "busy", "the model server is busy", 10)
    assert "X-Should-Retry" not in dict(refusal_headers(busy, path, False, "id"))
