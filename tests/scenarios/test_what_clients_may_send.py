"""What HTTP lets a server ignore is ignored, and what would reach another's request stays here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime

import pytest

from tests.ca import Authority
from tests.http_backend import Call
from tests.http_client import Answer, HttpPeer, Site, request, running_site

POLICY = """
endpoints = ["GET /v1/{rest...}", "POST /v1/{rest...}", "POST /held/{rest...}"]
[[allow]]
name = "proxies"
peers = ["spiffe://example.org/workload/proxy"]
endpoints = ["POST /v1/{rest...}"]
trusted_proxy = true
[[allow]]
name = "sessions"
peers = ["spiffe://example.org/workload/sessions"]
endpoints = ["POST /v1/{rest...}"]
pass_headers = ["x_session_id"]
"""
CHAT = "/v1/chat/completions"
IDLE = "[timeouts]\nidle = 0.5\nrequest_head = 0.5\n"


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, policy=POLICY) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; what came before is not this test's."""
    running.backend.forget()
    running.backend.routes.clear()
    return running


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    with site.dial() as peer:
        yield peer


def sent(peer: HttpPeer, raw: bytes) -> Answer:
    peer.sendall(raw)
    return peer.answer(raw.strip().partition(b" ")[0].decode())


def post(*headers: str, body: bytes = b"{}") -> bytes:
    return request("POST", CHAT, *headers, body=body)


H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAoAAAAAIA",
)
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n"


def test_offer_of_an_upgrade_changes_nothing(site: Site, peer: HttpPeer) -> None:
    offers = "\r\n".join(H2C).encode()
    raws = [
        request("GET", "/v1/models", *H2C),
        post(*H2C),
        CHUNKED + offers + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        request("GET", "/v1/models", "Connection: Upgrade", "Upgrade: TLS/1.2"),
        post("Connection: upgrade", "Upgrade: something/9, h2c"),
    ]
    for raw in raws:
        assert sent(peer, raw).status == 200
        names = {name.lower() for name, _ in site.backend.next_call().headers}
        assert not {"upgrade", "http2-settings", "connection"} & names


def test_websocket_is_refused_in_the_dialect_of_its_path(site: Site) -> None:
    def asked(target: str) -> Answer:
        with site.dial() as peer:
            fields = ("Connection: Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Version: 13")
            answer = peer.ask("GET", target, *fields)
            assert (answer.status, answer.get("connection")) == (501, "close")
            return answer

    openai = asked("/v1/realtime?model=x").json()["error"]
    assert openai["code"] == "websocket_not_served"
    assert "WebSocket" in openai["message"]
    assert asked("/v1/messages").json()["error"]["details"]["error_code"] == openai["code"]
    assert asked("/api/chat").json() == {"error": openai["message"]}
    assert site.backend.untaken() == []


def test_balancers_may_ask_as_they_are_used_to(site: Site, peer: HttpPeer) -> None:
    whole = sent(peer, request("OPTIONS", "*"))
    assert (whole.status, whole.body, whole.get("connection")) == (200, b"", None)
    assert sent(peer, request("GET", "/v1/models")).status == 200
    for raw in (b"GET /health HTTP/1.0\r\n\r\n", b"OPTIONS / HTTP/1.0\r\n\r\n"):
        with site.dial() as balancer:
            assert sent(balancer, raw).status == 200
    with site.dial() as old:
        assert sent(old, b"GET /v1/models HTTP/1.0\r\n\r\n").status == 200
    calls = [site.backend.next_call() for _ in range(2)]
    assert calls[1].values("host") == calls[0].values("host")
    assert calls[1].values("x-forwarded-host") == []
    with site.dial("/workload/stranger") as stranger:
        assert sent(stranger, b"OPTIONS / HTTP/1.0\r\n\r\n").status == 403


def test_our_own_answers_have_a_date(site: Site, peer: HttpPeer) -> None:
    for raw, status in ((request("GET", "/health"), 200), (request("GET", "/no"), 403)):
        answer = sent(peer, raw)
        assert answer.status == status
        assert (answer.get("date") or "").endswith(" GMT")
        assert parsedate_to_datetime(answer.get("date") or "").year >= 2024


def test_empty_lines_before_a_request_are_skipped(site: Site, peer: HttpPeer) -> None:
    peer.sendall(b"\r\n" + post() + b"\r\n" + request("GET", "/v1/models") + b"\r\n\r\n")
    assert [peer.answer().status, peer.answer().status] == [200, 200]
    peer.sendall(b"\r")
    peer.sendall(b"\n" + request("GET", "/health"))
    assert peer.answer().status == 200
    assert site.backend.untaken() == [f"POST {CHAT}", "GET /v1/models"]


def test_connection_that_says_nothing_is_closed_without_a_word(authority: Authority) -> None:
    with running_site(authority, policy=POLICY, more=IDLE) as site, ExitStack() as stack:
        peers = [stack.enter_context(site.dial()) for _ in range(5)]
        assert sent(peers[0], request("GET", "/v1/models")).status == 200
        for one, raw in zip(
            peers, (b"\r\n", b"\r\n\r\n\r", b"", b"\r", b"\r\n" * 2000), strict=True
        ):
            one.sendall(raw)
        assert [one.rest() for one in peers] == [(b"", True)] * 5
        with site.dial() as begun:
            begun.sendall(b"\r\nGET /v1")
            assert begun.answer().status == 408


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"2;a=b\r\n{}\r\n0\r\n\r\n", id="extension"),
        pytest.param(b'2 ; a="x;y" ;b\r\n{}\r\n0;c\r\n\r\n', id="quoted extension"),
        pytest.param(b"2 \r\n{}\r\n0\t\r\n\r\n", id="padding"),
        pytest.param(b"1\r\n{\r\n01\r\n}\r\n0\r\nX-T: 1\r\n\r\n", id="trailer"),
    ],
)
def test_framing_that_may_be_ignored_is_ignored_from_both_sides(
    chunks: bytes, site: Site, peer: HttpPeer
) -> None:
    head = "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n"
    seen = []

    def echo(call: Call) -> None:
        seen.append(call.body())
        call.send(head.encode() + chunks)

    site.backend.routes[CHAT] = echo
    for _ in range(2):
        peer.sendall(CHUNKED + b"\r\n" + chunks)
        answer = peer.answer()
        assert (answer.status, answer.body) == (200, b"{}")
        assert answer.get("trailer") is None
    assert seen == [b"{}", b"{}"]


def test_endless_extension_is_refused(site: Site, peer: HttpPeer) -> None:
    peer.sendall(CHUNKED + b"\r\n2;" + b"a" * 5000)
    assert peer.answer().status == 400


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", "both Content-Length and Transfer-Enc"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "two Transfer-Encoding"),
    ],
)
def test_two_framings_of_the_backend_are_a_502_that_the_log_names(
    fields: str, named: str, site: Site, peer: HttpPeer
) -> None:
    raw = f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode()
    site.backend.routes[CHAT] = lambda call: call.send(raw)
    answer = sent(peer, post())
    assert answer.status == 502
    assert named in site.line(answer.values("x-request-id")[0])["reason"]


# What one peer could do to another.


STEERING = (
    *("X-Conversation-Id: a", "X-Session-ID: a", "x_session_id: b", "X-data-parallel-rank: 1"),
    *("X-Vllm-Priority: -9", "X-Override-Rid: a", "X_Override_Bootstrap_Host: 10.0.0.1"),
    *("X-SMG-Routing-Key: a", "X-Amzn-SageMaker-Session-Id: a"),
)


def steering(call: Call) -> list[str]:
    """The headers of a request by which it would steer a model server."""
    found = [name.lower() for name, _ in call.headers]
    names = {one.partition(":")[0].lower() for one in STEERING}
    return sorted(name for name in found if name in names)


def test_headers_that_steer_the_model_server_are_passed_on_by_rule_alone(site: Site) -> None:
    for path, passed in (
        ("traefik", []),
        ("proxy", []),
        ("sessions", ["x-session-id", "x_session_id"]),
    ):
        with site.dial(f"/workload/{path}") as peer:
            assert sent(peer, post(*STEERING, "X-Other: 1")).status == 200
        call = site.backend.next_call()
        assert steering(call) == passed
        assert call.values("x-other") == ["1"]
        assert call.values("via") == ["1.1 spiffe-sidecar"]


def refuse_origins(call: Call) -> None:
    """Answer as Ollama does: 403 to the Origin of another host than Host."""
    hosts = [f"{scheme}://{call.values('host')[0]}" for scheme in ("http", "https")]
    refused = any(origin not in hosts for origin in call.values("origin"))
    call.answer(403 if refused else 200, b"" if refused else b"{}")


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        pytest.param("traefik", ("Origin: https://models",), 200, id="the host's own"),
        pytest.param("traefik", ("Origin: http://models",), 200, id="TLS ends before us"),
        pytest.param("traefik", (), 200, id="none"),
        pytest.param("traefik", ("Origin: https://models:8443",), 403, id="another port"),
        pytest.param("traefik", ("Origin: null",), 403, id="null"),
        pytest.param(
            "traefik",
            ("Origin: https://ui.example", "X-Forwarded-Host: ui.example"),
            403,
            id="a host that a peer claims",
        ),
        pytest.param(
            "proxy",
            ("Origin: https://ui.example", "X-Forwarded-Host: ui.example"),
            200,
            id="a host that a trusted proxy tells",
        ),
    ],
)
def test_origin_of_the_host_that_was_asked_for_is_no_other_one(
    path: str, fields: tuple[str, ...], status: int, site: Site
) -> None:
    site.backend.routes[CHAT] = refuse_origins
    with site.dial(f"/workload/{path}") as peer:
        answer = sent(peer, post(*fields))
    assert answer.status == status
    line = site.line(answer.values("x-request-id")[0])
    assert line["decision"] == "allowed"
    assert ("[cors]" in line.get("note", "")) is (status == 403)
    assert "ui.example" not in json.dumps(line)


# Browsers.

CORS = '[cors]\nallow_origins = ["https://ui.example"]\n'
ORIGIN = "Origin: https://ui.example"
ASKED = "Access-Control-Request-Method: POST"
OF_SDK = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)


def test_preflight_is_granted_or_the_log_says_what_was_missing(authority: Authority) -> None:
    with running_site(authority, policy=POLICY, more=CORS) as site, site.dial() as peer:

        def asked(*fields: str) -> tuple[Answer, str]:
            answer = peer.ask("OPTIONS", CHAT, *fields)
            assert answer.status == 204
            return answer, site.line(answer.values("x-request-id")[0]).get("note", "")

        granted, note = asked(ORIGIN, ASKED, f"Access-Control-Request-Headers: {OF_SDK}")
        allowed = (granted.get("access-control-allow-headers") or "").lower().split(", ")
        assert set(OF_SDK.split(",")) <= set(allowed)
        assert note == ""
        private, _ = asked(ORIGIN, ASKED, "Access-Control-Request-Private-Network: true")
        assert private.get("access-control-allow-private-network") == "true"
        for fields, missing in (
            ((ORIGIN, ASKED, "Access-Control-Request-Headers: accept,x-foo"), "x-foo is not in"),
            ((ORIGIN, ASKED.replace("POST", "DELETE")), "DELETE is not one of allow_methods"),
            (("Origin: https://evil.example", ASKED), "its origin is not one of allow_origins"),
        ):
            refused, note = asked(*fields)
            assert refused.get("access-control-allow-origin") is None
            assert missing in note
            assert "evil" not in note
        assert site.backend.untaken() == []


def test_preflight_without_cors_says_what_would_answer_it(site: Site, peer: HttpPeer) -> None:
    answer = peer.ask("OPTIONS", CHAT, ORIGIN, ASKED)
    assert answer.status == 403
    assert "[cors]" in site.line(answer.values("x-request-id")[0])["note"]
