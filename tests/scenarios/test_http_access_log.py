"""One line for each request: who asked what and what came of it, and never what was said."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.core.svid import serial_text
from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.http_backend import Call, HttpBackend
from tests.http_client import (
    CUTS,
    HttpPeer,
    Site,
    new_id,
    request,
    request_line,
    running_site,
)
from tests.redaction import SECRET_MARKER
from tests.scenarios.conftest import Launch

PEER = f"spiffe://example.org{TRAEFIK}"
POLICY = """
endpoints = [
    "GET /v1/models/{model...}", "POST /v1/chat/completions", "GET /held/{name}",
    "POST /held/{name}", "GET /v1/broken",
]
trusted_proxy = true
"""
KEYS = {
    "address",
    "peer",
    "serial",
    "decision",
    "outcome",
    "rule",
    "method",
    "path",
    "status",
    "received",
    "sent",
    "first_byte",
    "seconds",
    "request_id",
}
OF_EVERY_LINE = {"event", "level", "timestamp"}


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, policy=POLICY) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; what came before is not this test's."""
    running.backend.forget()
    return running


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    with site.dial() as peer:
        yield peer


# One line, and what is in it.


def test_allowed_request_is_one_line_with_everything_in_it(
    site: Site, authority: Authority
) -> None:
    issued = authority.sign(authority.leaf(TRAEFIK))
    context = client_context(authority, issued, site.folder)
    request_id = new_id()
    with HttpPeer(site.daemon.address, context) as peer:
        address = peer.address
        headers = f"X-Request-Id: {request_id}", "Connection: close"
        peer.sendall(request("GET", "/v1/models/meta/llama:8b?verbose=1", *headers))
        answered, _ = peer.rest()
    line = site.line(request_id)
    assert line.keys() == KEYS | OF_EVERY_LINE
    assert line["level"] == "info"
    assert line["peer"] == PEER
    assert line["serial"] == serial_text(issued.chain[0])
    assert line["address"] == address
    assert (line["decision"], line["rule"], line["status"]) == ("allowed", "clients", 200)
    assert line["outcome"] == "answered"
    assert (line["method"], line["path"]) == ("GET", "/v1/models/{model...}")
    assert line["sent"] == len(answered)
    assert line["received"] > 300
    assert 0 < line["first_byte"] <= line["seconds"]


def test_bytes_of_a_body_are_counted(site: Site, peer: HttpPeer) -> None:
    counts = []
    for size in (0, 100_000):
        request_id = new_id()
        headers = f"X-Request-Id: {request_id}", f"Content-Length: {size}"
        peer.sendall(request("POST", "/v1/chat/completions", *headers) + b"x" * size)
        peer.answer()
        counts.append(site.line(request_id)["received"])
    assert counts[1] - counts[0] == 100_000 + len("100000") - len("0")


def test_refused_request_is_one_line_with_the_reason(site: Site, peer: HttpPeer) -> None:
    request_id = new_id()
    peer.sendall(request("POST", "/api/pull?x=1", f"X-Request-Id: {request_id}", body=b"{}"))
    assert peer.answer().status == 403
    line = site.line(request_id)
    assert line.keys() == KEYS | OF_EVERY_LINE | {"reason"}
    assert line["level"] == "warning"
    assert (line["decision"], line["rule"], line["status"]) == ("refused", None, 403)
    assert line["outcome"] == "refused"
    assert (line["method"], line["path"]) == ("POST", "/api/pull")
    assert (line["received"], line["first_byte"]) == (0, None)
    assert line["sent"] > 100
    assert line["reason"]


def test_stranger_is_one_line_with_the_reason(site: Site) -> None:
    with site.dial("/workload/stranger") as stranger:
        answer = stranger.ask("GET", "/v1/models/x", "X-Request-Id: of-a-stranger")
    line = site.line(answer.values("x-request-id")[0])
    assert line["peer"] == "spiffe://example.org/workload/stranger"
    assert (line["decision"], line["status"]) == ("refused", 403)
    assert "no allow rule names this peer" in line["reason"]


def test_every_request_of_a_connection_is_a_line_in_its_order(site: Site, peer: HttpPeer) -> None:
    ids = [new_id() for _ in range(20)]
    raw = (request("GET", f"/v1/models/{one}", f"X-Request-Id: {one}") for one in ids)
    peer.sendall(b"".join(raw))
    for _ in ids:
        assert peer.answer().status == 200
    peer.leave("close_notify")
    line = site.daemon.wait_for("connection closed", address=peer.address)
    assert line["requests"] == len(ids)
    assert (line["peer"], "seconds" in line) == (PEER, True)
    assert [one["request_id"] for one in site.daemon.lines("request")][-len(ids) :] == ids


def test_connection_without_a_request_is_a_line_of_its_own(site: Site) -> None:
    with site.dial() as peer:
        peer.leave("close_notify")
        line = site.daemon.wait_for("connection closed", address=peer.address)
    assert line["requests"] == 0


@pytest.mark.parametrize("way", ["close_notify", "reset"])
def test_stranger_that_asks_nothing_leaves_a_trace(way: str, site: Site) -> None:
    with site.dial("/workload/stranger") as stranger:
        address = stranger.address
        stranger.leave(way)
        line = site.daemon.wait_for("peer refused", address=address)
    assert line["peer"] == "spiffe://example.org/workload/stranger"


MALFORMED = {
    "no host": (b"GET /v1/models/x HTTP/1.1\r\n\r\n", 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "two lengths": (request("POST", "/x", "Content-Length: 1", "Content-Length: 1"), 400),
    "a version": (b"GET / HTTP/3.0\r\nHost: m\r\n\r\n", 505),
    "a head without end": (b"GET /" + b"x" * 40_000, 431),
}


@pytest.mark.parametrize(("raw", "status"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_request_is_a_line_with_the_id_that_the_peer_was_told(
    raw: bytes, status: int, site: Site, peer: HttpPeer
) -> None:
    peer.sendall(raw)
    answer = peer.answer()
    assert answer.status == status
    line = site.line(answer.get("x-request-id") or "none")
    assert line.keys() == KEYS | OF_EVERY_LINE | {"reason"}
    assert (line["decision"], line["status"], line["level"]) == ("refused", status, "warning")
    assert (line["peer"], line["received"]) == (PEER, 0)
    assert line["sent"] > 100


def test_refused_request_with_a_broken_body_is_one_line(site: Site, peer: HttpPeer) -> None:
    request_id = new_id()
    head = request("POST", "/denied", f"X-Request-Id: {request_id}", "Transfer-Encoding: chunked")
    peer.sendall(head + b"zz\r\n")
    answer = peer.answer()
    assert (answer.status, answer.get("connection")) == (403, "close")
    assert site.line(request_id)["status"] == 403
    site.daemon.wait_for("connection closed", address=peer.address)
    lines = [one for one in site.daemon.lines("request") if one["address"] == peer.address]
    assert len(lines) == 1


def test_allowed_request_with_a_broken_body_is_one_line(site: Site, peer: HttpPeer) -> None:
    request_id = new_id()
    headers = f"X-Request-Id: {request_id}", "Transfer-Encoding: chunked"
    peer.sendall(request("POST", "/held/broken", *headers))
    call = site.backend.next_call()
    peer.sendall(b"zz\r\n")
    answer = peer.answer()
    assert (answer.status, answer.get("connection")) == (400, "close")
    assert call.wait_gone() == "ConnectionResetError"
    call.close()
    site.daemon.wait_for("connection closed", address=peer.address)
    lines = [one for one in site.daemon.lines("request") if one["address"] == peer.address]
    assert [one["status"] for one in lines] == [400]


def test_peer_that_left_is_a_line_with_the_status_it_had_seen(site: Site) -> None:
    for begun, status in ((False, 0), (True, 200)):
        request_id = new_id()
        with site.dial() as peer:
            peer.sendall(request("GET", "/held/long", f"X-Request-Id: {request_id}"))
            call = site.backend.next_call()
            if begun:
                call.begin_stream()
                peer.until(b"\r\n\r\n")
            peer.leave("reset")
            call.wait_gone()
            call.close()
        line = site.line(request_id)
        assert (line["decision"], line["status"], line["level"]) == ("allowed", status, "warning")
        assert line["reason"] == "the peer left before it had its answer"
        assert line["outcome"] == "peer_left"


def test_peer_that_we_cut_has_not_left(site: Site) -> None:
    request_id = new_id()
    with site.dial() as peer:
        peer.sendall(request("GET", "/held/long", f"X-Request-Id: {request_id}"))
        call = site.backend.next_call()
        with suppress(*CUTS):
            peer.sendall(request("POST", "/v1/ahead", body=b"x" * 200_000))
        call.wait_gone()
        call.close()
        line = site.line(request_id)
    assert (line["decision"], line["outcome"], line["status"]) == ("allowed", "cut", 0)
    assert line["reason"] == "the peer sends too much ahead of its answer"


def test_answer_that_we_cut_is_no_fine_one(authority: Authority) -> None:
    with running_site(authority, policy=POLICY) as site, site.dial() as peer:
        peer.sendall(request("GET", "/held/long", "X-Request-Id: cut"))
        call = site.backend.next_call()
        call.begin_stream()
        peer.until(b"\r\n\r\n")
        assert site.daemon.stop() == 0
        assert not peer.rest()[1]
        line = site.line("cut")
        assert (line["decision"], line["status"], line["level"]) == ("allowed", 200, "warning")
        assert "shutting down" in line["reason"]
        assert line["outcome"] == "cut"


def test_what_a_backend_fails_was_allowed_all_the_same(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    """Down, gone before its answer, gone in its answer, and an error that is its own."""
    path = folder / "model.sock"
    more = "[timeouts]\nfirst_byte = 0.5\n"
    daemon = launch(backend_address=f"unix:{path}", mode="http", policy=POLICY, more=more)

    def half(call: Call) -> None:
        call.head(200, "Content-Length: 10")
        call.send(b"half")
        call.close()

    def wait(call: Call) -> None:
        call.wait_gone()

    seen = {}
    with HttpPeer(daemon.address, traefik) as peer:
        peer.ask("GET", "/v1/models/down", "X-Request-Id: down")
        seen["down"] = (502, "backend_failed")
        with HttpBackend(path) as backend:
            backend.routes |= {
                "/v1/models/gone": Call.close,
                "/v1/models/half": half,
                "/v1/models/own": lambda call: call.answer(502),
                "/v1/models/late": wait,
            }
            peer.ask("GET", "/v1/models/gone", "X-Request-Id: gone")
            seen["gone"] = (502, "backend_failed")
            peer.ask("GET", "/v1/models/own", "X-Request-Id: own")
            seen["own"] = (502, "answered")
            peer.sendall(request("GET", "/v1/models/half", "X-Request-Id: half"))
            peer.until(b"half")
            seen["half"] = (200, "backend_failed")
            with HttpPeer(daemon.address, traefik) as another:
                another.ask("GET", "/v1/models/late", "X-Request-Id: late")
            seen["late"] = (504, "backend_failed")
    for request_id, (status, outcome) in seen.items():
        line = request_line(daemon, request_id)
        found = line["decision"], line["rule"], line["status"], line["outcome"], line["level"]
        assert found == ("allowed", "clients", status, outcome, "warning"), line


def test_path_of_a_refused_request_is_not_logged_without_end(site: Site, peer: HttpPeer) -> None:
    request_id = new_id()
    path = "/" + "x" * 30_000
    assert peer.ask("GET", path, f"X-Request-Id: {request_id}").status == 403
    site.line(request_id)
    (raw,) = [line for line in site.daemon.raw if request_id in line]
    assert len(raw) < 2000


# What is never in it.


@pytest.mark.parametrize("style", ["json", "console"])
def test_nothing_that_was_said_is_in_the_log(style: str, authority: Authority) -> None:
    planted: list[str] = []

    def secret() -> str:
        planted.append(f"{SECRET_MARKER}{secrets.token_hex(8)}")
        return planted[-1]

    more = 'level = "debug"\n[limits]\nmax_body_bytes = 5000\n[timeouts]\n'
    more += "first_byte = 0.5\nbetween_bytes = 0.5\n"
    with running_site(authority, policy=POLICY, more=more, style=style) as site:
        site.backend.routes["/v1/chat"] = lambda call: talk(call, secret)
        site.backend.routes["/v1/broken"] = lambda call: call.send(
            f"HTTP/1.1 200 {secret()}\r\nContent-Length: {secret()}\r\n\r\n".encode()
        )
        visit(site, secret)
        with site.dial() as peer:
            peer.ask("GET", "/v1/models/x", "X-Request-Id: visible")
    log = site.daemon.raw
    assert len(log) > 15
    (line,) = [line for line in log if "visible" in line]
    for word in (PEER, "clients", "GET", "200", "/v1/models/{model...}"):
        assert word in line
    assert len(planted) > 40
    assert not [line for line in log for one in planted if one in line]


def talk(call: Call, secret: Callable[[], str]) -> None:
    """Answer with secrets in every place of an answer."""
    call.body()
    call.head(
        200,
        f"Set-Cookie: {secret()}",
        f"X-{secret()}: {secret()}",
        f"X-Request-Id: {secret()}",
        "Transfer-Encoding: chunked",
    )
    call.event(secret())
    call.end_stream()


def visit(site: Site, secret: Callable[[], str]) -> None:
    """Say secrets in every place of requests that end in every way."""

    def said(method: str, path: str, body: bytes = b"") -> bytes:
        headers = (
            f"Authorization: Bearer {secret()}",
            f"Cookie: session={secret()}",
            f"X-Api-Key: {secret()}",
            f"X-{secret()}: x",
            f"Origin: https://{secret()}.example.org",
            f"X-Request-Id: {secret()} {secret()}",
            f"User-Agent: {secret()}",
        )
        target = f"{path}?key={secret()}"
        return request(method, target, *headers, body=body, host=f"{secret()}.example.org")

    prompt = json.dumps({"prompt": secret()}).encode()
    wholes = [
        said("POST", "/v1/chat/completions", prompt),
        said("GET", f"/v1/models/{secret()}"),
        said("POST", "/api/pull", prompt),
        said("GET", "/v1/broken"),
        said("GET", "/health"),
        said("POST", "/v1/chat/completions", b"x" * 5001),
        said("POST", "/denied").replace(b"Host", b"Transfer-Encoding: chunked\r\nHost") + prompt,
        said("GET", "/v1/models/x").replace(b"HTTP/1.1", b"HTTP/2.0"),
        said("GET", "/v1/models/x").replace(b"Host", b"Hots"),
        said("GET", "/v1/models/x").replace(b"\r\nCookie", b"\nCookie"),
        secret().encode() + b"\r\n\r\n",
        said("GET", "/held/silent"),
        said("GET", "/v1/models/x").replace(b"Host", b"X: " + b"x" * 40_000 + b"\r\nHost"),
    ]
    for raw in wholes:
        with site.dial() as peer:
            peer.sendall(raw)
            peer.until(b"\r\n\r\n")
            peer.leave("close_notify")
    with site.dial() as peer:
        peer.sendall(said("POST", "/held/left", prompt))
        peer.leave("reset")
    with site.dial("/workload/stranger") as stranger:
        stranger.sendall(said("GET", "/v1/models/x"))
        stranger.until(b"\r\n\r\n")
