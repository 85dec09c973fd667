"""Each request of a connection is decided and answered on its own, whatever came before it."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.http_backend import BLOCK, Call, HttpBackend
from tests.http_client import Answer, HttpPeer, Site, request, running_site
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import free_port

POLICY = """
endpoints = [
    "GET /v1/{rest...}", "POST /v1/{rest...}", "GET /held/{rest...}", "POST /held/{rest...}",
    "GET /api/version",
]
[[allow]]
name = "proxies"
peers = ["spiffe://example.org/workload/proxy"]
endpoints = ["GET /v1/{rest...}"]
trusted_proxy = true
"""
BROWSERS = """
[cors]
allow_origins = ["https://ui.example.org"]
expose_headers = ["X-Request-Id"]
[response_headers]
X-Content-Type-Options = "nosniff"
X-Frame-Options = "SAMEORIGIN"
"""
ORIGIN = "Origin: https://ui.example.org"
PEER = "spiffe://example.org/workload/traefik"
OURS = "spiffe://example.org/workload/model-server"


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, policy=POLICY) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; what came before is not this test's."""
    running.backend.forget()
    return running


@pytest.fixture(scope="module")
def running_for_browsers(authority: Authority) -> Iterator[Site]:
    options = {"more": BROWSERS, "backend_table": 'host = "keep"'}
    with running_site(authority, policy=POLICY, **options) as site:
        yield site


@pytest.fixture
def browsers(running_for_browsers: Site) -> Site:
    """One that pages of another origin may call, with headers on every answer; keeps Host."""
    running_for_browsers.backend.forget()
    return running_for_browsers


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    with site.dial() as peer:
        yield peer


def is_usable(peer: HttpPeer) -> bool:
    """Tell whether the connection takes another request, and the answer is that request's."""
    return bool(peer.ask("GET", "/v1/still-there").json()["target"] == "/v1/still-there")


# One connection, many decisions.


def test_second_request_of_a_connection_is_decided_anew(site: Site, peer: HttpPeer) -> None:
    assert peer.ask("GET", "/v1/models").status == 200
    assert site.backend.next_call().target == "/v1/models"
    refused = peer.ask("POST", "/api/pull", body=b"{}")
    assert refused.status == 403
    assert "not allowed" in refused.json()["error"]
    assert refused.get("connection") is None
    assert peer.ask("POST", "/v1/chat/completions", body=b"{}").status == 200
    assert site.backend.untaken() == ["POST /v1/chat/completions"]


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(request("GET", "/denied"), id="no body"),
        pytest.param(request("HEAD", "/denied"), id="HEAD"),
        pytest.param(request("POST", "/denied", body=b"x"), id="a body of a byte"),
        pytest.param(request("POST", "/denied", body=b"x" * 65536), id="a body of 64 KiB"),
        pytest.param(b"POST /denied HTTP/1.1\r\nHost: m\r\n" + CHUNKED, id="chunked"),
        pytest.param(request("POST", "/v1/..%2fdenied", body=b"x"), id="a path that is none"),
    ],
)
def test_refused_request_leaves_the_connection_usable(
    raw: bytes, site: Site, peer: HttpPeer
) -> None:
    for _ in range(3):
        peer.sendall(raw)
        refused = peer.answer(raw.partition(b" ")[0].decode())
        assert refused.status == 403
        assert refused.get("connection") is None
        assert is_usable(peer)
    assert site.backend.untaken() == ["GET /v1/still-there"] * 3


def test_refused_request_whose_short_body_comes_later_leaves_the_connection_usable(
    site: Site, peer: HttpPeer
) -> None:
    head, _, body = request("POST", "/denied", body=b"x" * 1000).partition(b"\r\n\r\n")
    peer.sendall(head + b"\r\n\r\n")
    peer.sendall(body[:500])
    peer.sendall(body[500:])
    assert peer.answer().status == 403
    assert is_usable(peer)
    assert site.backend.untaken() == ["GET /v1/still-there"]


def test_refused_request_with_a_long_body_is_answered_and_the_connection_ends(
    site: Site, peer: HttpPeer
) -> None:
    head = request("POST", "/denied", "Content-Length: 10000000")
    peer.sendall(head + b"x" * 100_000)
    refused = peer.answer()
    assert refused.status == 403
    assert refused.get("connection") == "close"
    assert peer.rest() == (b"", True)
    assert site.backend.untaken() == []


def test_pipelined_requests_are_decided_one_by_one_and_answered_in_order(
    site: Site, peer: HttpPeer
) -> None:
    targets = [f"/v1/{number}" if number % 3 else f"/denied/{number}" for number in range(30)]
    peer.sendall(b"".join(request("POST", target, body=b"b" * 100) for target in targets))
    for target in targets:
        answer = peer.answer()
        if target.startswith("/v1/"):
            assert (answer.status, answer.json()["target"]) == (200, target)
        else:
            assert answer.status == 403
            assert target in answer.json()["error"]
    assert site.backend.untaken() == [f"POST {one}" for one in targets if one.startswith("/v1/")]


def test_pipelined_request_waits_for_the_answer_before_it(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("GET", "/held/first") + request("GET", "/held/second"))
    first = site.backend.next_call()
    first.head(200, "Content-Length: 4")
    first.send(b"ha")
    assert peer.until(b"ha").startswith(b"HTTP/1.1 200 ")
    assert site.backend.untaken() == []
    first.send(b"lf")
    first.release()
    second = site.backend.next_call()
    second.answer(201)
    second.release()
    assert peer.until(b"lf") == b"lf"
    assert peer.answer().status == 201


def test_connection_to_the_backend_is_used_again_but_by_no_other_peer(
    site: Site, peer: HttpPeer
) -> None:
    with site.dial() as other:
        for one in (peer, other, peer, other):
            assert one.ask("GET", "/v1/x").status == 200
    seen = [site.backend.next_call().connection for _ in range(4)]
    assert seen[0] == seen[2] != seen[1] == seen[3]


def test_peer_that_waits_holds_no_connection_to_the_backend(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("GET", "/held/x"))
    call = site.backend.next_call()
    call.answer(200)
    assert peer.answer().status == 200
    assert call.wait_gone() == "end"
    call.close()
    assert is_usable(peer)


def test_unhappy_connection_to_the_backend_is_not_used_again(site: Site, peer: HttpPeer) -> None:
    def close_unannounced(call: Call) -> None:
        call.answer(200, b"ok")
        call.close()

    site.backend.routes["/v1/closing"] = close_unannounced
    for _ in range(5):
        assert peer.ask("GET", "/v1/closing").body == b"ok"
        call = site.backend.next_call()
        assert call.released.wait(20)
        assert is_usable(peer)
        assert site.backend.next_call().connection != call.connection


def test_bytes_that_nobody_asked_the_backend_for_are_nobodys_answer(
    site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("GET", "/held/talkative"))
    call = site.backend.next_call()
    call.answer(200, b"one")
    assert peer.answer().body == b"one"
    call.answer(200, b"two")
    call.release()
    assert is_usable(peer)
    assert site.backend.next_call().connection != call.connection


# Methods, versions and statuses that frame their answers in their own way.


def test_answer_to_head_has_a_length_and_no_body(site: Site, peer: HttpPeer) -> None:
    answer = peer.ask("HEAD", "/v1/models")
    assert answer.status == 200
    assert int(answer.get("content-length") or 0) > 100
    assert answer.body == b""
    assert site.backend.next_call().method == "HEAD"
    assert is_usable(peer)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        pytest.param(204, (), id="204"),
        pytest.param(304, (), id="304"),
        pytest.param(304, ("Content-Length: 100", 'ETag: "x"'), id="304 with a length"),
        pytest.param(304, ("Transfer-Encoding: chunked",), id="304 with a coding"),
    ],
)
def test_statuses_without_a_body_end_with_their_head(
    status: int, headers: tuple[str, ...], site: Site, peer: HttpPeer
) -> None:
    site.backend.routes["/v1/bare"] = lambda call: call.head(status, *headers)
    answer = peer.ask("GET", "/v1/bare")
    assert (answer.status, answer.body) == (status, b"")
    assert is_usable(peer)


def test_peer_of_http_1_0_gets_no_chunks_and_the_connection_ends(
    site: Site, peer: HttpPeer
) -> None:
    peer.sendall(b"GET /held/old HTTP/1.0\r\nHost: m\r\nConnection: keep-alive\r\n\r\n")
    call = site.backend.next_call()
    call.head(103, "Link: </style.css>")
    call.begin_stream()
    call.event("one")
    head = peer.until(b"\r\n\r\n").lower()
    assert head.startswith(b"http/1.1 200 "), "an interim answer is not for HTTP/1.0"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert peer.until(b"\n\n") == b"data: one\n\n"
    call.event("two")
    call.end_stream()
    call.release()
    assert peer.rest() == (b"data: two\n\n", True)


def test_refused_peer_of_http_1_0_is_told_and_the_connection_ends(peer: HttpPeer) -> None:
    peer.sendall(b"GET /denied HTTP/1.0\r\nHost: m\r\n\r\n")
    assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    body, clean = peer.rest()
    assert clean
    assert b"not allowed" in body


def test_interim_answer_goes_through(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("GET", "/held/hints"))
    call = site.backend.next_call()
    call.head(103, "Link: </style.css>")
    assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 103 ")
    call.answer(200, b"done")
    call.release()
    assert peer.answer().body == b"done"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_answer_that_ends_with_the_backends_connection_is_whole(
    version: str, site: Site, peer: HttpPeer
) -> None:
    def answer(call: Call) -> None:
        call.send(f"HTTP/{version} 200 OK\r\n\r\n".encode())
        call.send(BLOCK)
        call.close()

    site.backend.routes["/v1/until-end"] = answer
    got = peer.ask("GET", "/v1/until-end")
    assert got.version == "1.1"
    assert hashlib.sha256(got.body).digest() == hashlib.sha256(BLOCK).digest()
    assert got.get("connection") is None
    assert is_usable(peer)


def test_backend_of_http_1_0_is_not_asked_twice_on_a_connection(site: Site, peer: HttpPeer) -> None:
    def answer(call: Call) -> None:
        call.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")

    site.backend.routes["/v1/old"] = answer
    assert peer.ask("GET", "/v1/old").body == b"ok"
    assert peer.ask("GET", "/v1/old").body == b"ok"
    assert site.backend.next_call().connection != site.backend.next_call().connection


def test_what_belongs_to_the_backends_connection_stays_there(site: Site, peer: HttpPeer) -> None:
    site.backend.routes["/v1/hops"] = lambda call: call.answer(
        200,
        b"ok",
        "Connection: keep-alive, X-Hop",
        "Keep-Alive: timeout=5",
        "X-Hop: 1",
        "Proxy-Authenticate: Basic",
        "Server: uvicorn",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
    )
    answer = peer.ask("GET", "/v1/hops")
    names = {name for name, _ in answer.headers}
    assert names == {"server", "set-cookie", "content-length", "x-request-id"}
    assert answer.values("set-cookie") == ["a=1", "b=2"]
    assert is_usable(peer)


# Expect: 100-continue.


def test_allowed_request_that_expects_100_gets_it_from_us(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/v1/chat", "Expect: 100-continue", "Content-Length: 4"))
    assert peer.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.sendall(b"body")
    answer = peer.answer()
    assert (answer.status, answer.json()["received"]) == (200, 4)
    assert site.backend.next_call().values("expect") == []
    assert is_usable(peer)


def test_body_that_does_not_wait_for_100_is_taken(peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/v1/chat", "Expect: 100-continue", body=b"body"))
    answer = peer.answer()
    assert (answer.status, answer.json()["received"]) == (200, 4)
    assert is_usable(peer)


def test_refused_request_that_expects_100_is_refused_at_once(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/denied", "Expect: 100-continue", "Content-Length: 4"))
    refused = peer.answer()
    assert (refused.status, refused.interim) == (403, [])
    assert refused.get("connection") == "close", "what comes next may be the body or a request"
    assert peer.rest() == (b"", True)
    assert site.backend.untaken() == []


# A backend with faults of its own.


def test_backend_that_answers_early_and_closes(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/held/early", "Content-Length: 100000000"))
    call = site.backend.next_call()
    call.answer(422, b"no such model", "Connection: close")
    call.close()
    answer = peer.answer()
    assert (answer.status, answer.body) == (422, b"no such model")
    assert answer.get("connection") == "close"
    assert peer.rest() == (b"", True)


def test_backend_that_answers_early_and_resets_a_peer_that_is_sending(
    site: Site, peer: HttpPeer
) -> None:
    def answer(call: Call) -> None:
        call.read_body(1)
        call.answer(422, b"no such model", "Connection: close")
        call.close()  # on unread bytes: the kernel resets

    site.backend.routes["/v1/early"] = answer
    peer.sendall(request("POST", "/v1/early", f"Content-Length: {1000 * len(BLOCK)}"))
    while not peer.has_word():
        peer.sendall(BLOCK)
    got = peer.answer()
    assert (got.status, got.body) == (422, b"no such model")
    assert got.get("connection") == "close"


def test_backend_that_closes_without_an_answer_is_a_502(site: Site, peer: HttpPeer) -> None:
    site.backend.routes["/v1/mute"] = lambda call: call.close()
    for _ in range(2):
        answer = peer.ask("POST", "/v1/mute", body=b"{}")
        assert answer.status == 502
        assert answer.json()["error"]["code"] == "backend_unreachable"
        line = site.line(answer.values("x-request-id")[0])
        assert (line["status"], line["decision"], line["level"]) == (502, "allowed", "warning")
        assert "without an answer" in line["reason"]
        assert is_usable(peer)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="a length"),
        pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", id="bare line feeds"),
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", id="an upgrade"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, id="a head without end"),
    ],
)
def test_answer_that_cannot_be_read_from_its_first_byte_is_a_502(
    answer: bytes, site: Site, peer: HttpPeer
) -> None:
    site.backend.routes["/v1/broken"] = lambda call: call.send(answer)
    got = peer.ask("GET", "/v1/broken")
    assert got.status == 502
    assert site.line(got.values("x-request-id")[0])["status"] == 502
    assert is_usable(peer)


BEGUN = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf an answer",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\nhalf an answer\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf an answer",
    "until the end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf an answer",
}


@pytest.mark.parametrize(
    ("framing", "end"),
    [(framing, "reset") for framing in BEGUN]
    + [(framing, "close") for framing in BEGUN if framing != "until the end"],
)
def test_answer_that_breaks_off_is_cut_for_the_peer_too(
    framing: str, end: str, site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("GET", "/held/cut"))
    call = site.backend.next_call()
    call.send(BEGUN[framing])
    begun = peer.until(b"half an answer")
    assert begun.startswith(b"HTTP/1.1 200 ")
    request_id = re.findall(rb"x-request-id: (\S+)", begun)[0].decode()
    call.reset() if end == "reset" else call.close()
    rest, clean = peer.rest()
    assert not clean, "half an answer looks like a whole one"
    assert rest.strip() == b"", "neither a last chunk nor a second status"
    line = site.line(request_id)
    assert (line["status"], line["level"]) == (200, "warning")
    assert "backend" in line["reason"]


def test_backend_that_is_down_is_a_502_and_found_when_it_is_back(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    path = folder / "model.sock"
    daemon = launch(backend_address=f"unix:{path}", mode="http", policy='endpoints = ["*"]\n')
    with HttpPeer(daemon.address, traefik) as peer:
        for _ in range(2):
            refused = peer.ask("POST", "/v1/messages", body=b"{}")
            assert refused.status == 502
            assert refused.json()["type"] == "error"
            assert str(path) not in refused.body.decode()
            line = daemon.wait_for("request", status=502)
            assert f"backend unix:{path} cannot be reached" in line["reason"]
            assert line["received"] == 0
        with HttpBackend(path) as backend:
            assert peer.ask("GET", "/v1/models").status == 200
            assert backend.next_call().values("host") == ["localhost"]
            peer.sendall(request("GET", "/held/long"))
            call = backend.next_call()
            peer.leave("close")
            call.wait_gone()


def test_backend_that_refuses_tcp_is_a_502(launch: Launch, traefik: ssl.SSLContext) -> None:
    where = f"127.0.0.1:{free_port()}"
    daemon = launch(backend_address=where, mode="http", policy='endpoints = ["*"]\n')
    with HttpPeer(daemon.address, traefik) as peer:
        refused = peer.ask("GET", "/api/tags")
        assert refused.status == 502
        assert where not in refused.body.decode()
        line = daemon.wait_for("request", status=502)
        assert line["reason"] == f"backend {where} cannot be reached: Connection refused"
        assert peer.ask("GET", "/api/tags").status == 502


# What the backend is told.


def test_host_is_the_backends_and_the_peers_is_told_beside_it(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("GET", "/v1/models?x=1&y", host="models.example.org"))
    assert peer.answer().json()["target"] == "/v1/models?x=1&y"
    call = site.backend.next_call()
    assert call.values("host") == [site.backend.address]
    assert call.values("x-forwarded-host") == ["models.example.org"]
    assert call.values("x-forwarded-proto") == ["https"]
    assert call.values("x-forwarded-for") == ["127.0.0.1"]


def test_host_is_kept_where_the_configuration_says_so(browsers: Site) -> None:
    with browsers.dial() as peer:
        peer.sendall(request("GET", "/v1/models", host="models.example.org:8443"))
        assert peer.answer().status == 200
    assert browsers.backend.next_call().values("host") == ["models.example.org:8443"]


SPOOFED = (
    "X-Spiffe-Id: spiffe://example.org/workload/admin",
    "X_Spiffe_Id: spiffe://example.org/workload/admin",
    "x-forwarded-client-cert: URI=spiffe://example.org/workload/admin",
    "X-Forwarded_Client-Cert: URI=spiffe://example.org/workload/admin",
    "X-Forwarded-For: 203.0.113.7",
    "X_Forwarded_For: 203.0.113.7",
    "X-Forwarded-Proto: ftp",
    "X-Forwarded-Host: elsewhere.example.org",
    "X-Real-Ip: 203.0.113.7",
    "Forwarded: for=203.0.113.7",
    "Proxy-Authorization: Basic abc",
    "Keep-Alive: timeout=5",
    "X-Private: 1",
    "Connection: X-Private, X-Spiffe-Id, X-Forwarded-For",
)


def test_identity_is_ours_to_tell(site: Site, peer: HttpPeer) -> None:
    assert peer.ask("GET", "/v1/models", "Accept: */*", *SPOOFED).status == 200
    call = site.backend.next_call()
    assert call.values("x-spiffe-id") == [PEER]
    (certificate,) = call.values("x-forwarded-client-cert")
    assert re.fullmatch(f"By={OURS};Hash=[0-9a-f]{{64}};URI={PEER}", certificate)
    assert call.values("x-forwarded-for") == ["127.0.0.1"]
    assert call.values("accept") == ["*/*"]
    told = "\n".join(f"{name}: {value}" for name, value in call.headers)
    for spoofed in ("admin", "203.0.113.7", "ftp", "elsewhere", "Basic", "timeout", "x-private"):
        assert spoofed not in told
    assert call.values("connection") == []


def test_trusted_proxy_may_tell_whom_it_speaks_for_but_not_who_it_is(site: Site) -> None:
    with site.dial("/workload/proxy") as peer:
        assert peer.ask("GET", "/v1/models", *SPOOFED[:-1]).status == 200
    call = site.backend.next_call()
    assert call.values("x-forwarded-for") == ["203.0.113.7, 127.0.0.1"]
    assert call.values("x-forwarded-proto") == ["ftp"]
    assert call.values("x-forwarded-host") == ["elsewhere.example.org"]
    assert call.values("x-spiffe-id") == ["spiffe://example.org/workload/proxy"]
    assert "admin" not in repr(call.headers)


# The request's id.


def test_request_id_of_a_trusted_proxy_is_kept_told_to_both_and_logged(site: Site) -> None:
    with site.dial("/workload/proxy") as proxy:
        answer = proxy.ask("GET", "/v1/models", "X-Request-Id: from-proxy_1")
        assert answer.values("x-request-id") == ["from-proxy_1"]
        assert site.backend.next_call().values("x-request-id") == ["from-proxy_1"]
        assert site.line("from-proxy_1")["status"] == 200
        refused = proxy.ask("POST", "/v1/models", "X-Request-Id: from-proxy_2", body=b"{}")
        assert (refused.status, refused.get("x-request-id")) == (403, "from-proxy_2")


def test_request_id_of_another_peer_is_replaced(site: Site, peer: HttpPeer) -> None:
    ids = set()
    for method, target in (("GET", "/v1/models"), ("GET", "/v1/models"), ("POST", "/denied")):
        answer = peer.ask(method, target, "X-Request-Id: same-id", "x_request_id: same-id")
        ids.add(answer.get("x-request-id"))
    seen = [site.backend.next_call().values("x-request-id") for _ in range(2)]
    assert len(ids) == 3
    assert {one for values in seen for one in values} < ids
    assert "same-id" not in ids
    assert all(site.line(one or "") for one in ids)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param((), id="none"),
        pytest.param(("X-Request-Id:",), id="empty"),
        pytest.param(('X-Request-Id: a"b',), id="a quote"),
        pytest.param(("X-Request-Id: a b",), id="a space"),
        pytest.param(("X-Request-Id: " + "x" * 129,), id="too long"),
        pytest.param(("X-Request-Id: \xe9",), id="not ASCII"),
        pytest.param(("X_Request_Id: spoofed",), id="another spelling"),
    ],
)
def test_request_id_that_is_missing_or_unusable_is_made(
    header: tuple[str, ...], site: Site, peer: HttpPeer
) -> None:
    for target, status in (("/v1/models", 200), ("/denied", 403)):
        answer = peer.ask("GET", target, *header)
        (made,) = answer.values("x-request-id")
        assert re.fullmatch("[0-9a-f]{32}", made)
        assert site.line(made)["status"] == status
    call = site.backend.next_call()
    assert [value for name, value in call.headers if "request" in name] != []
    assert "spoofed" not in repr(call.headers)


def test_backends_own_request_id_does_not_hide_ours(site: Site, peer: HttpPeer) -> None:
    site.backend.routes["/v1/own-id"] = lambda call: call.answer(200, b"", "X-Request-Id: theirs")
    (told,) = peer.ask("GET", "/v1/own-id").values("x-request-id")
    assert site.backend.next_call().values("x-request-id") == [told]


# Browsers, and the headers of every answer.


def has_added_headers(answer: Answer) -> bool:
    get = answer.get
    return (get("x-content-type-options"), get("x-frame-options")) == ("nosniff", "SAMEORIGIN")


PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")


def test_preflight_is_answered_by_us(browsers: Site) -> None:
    with browsers.dial() as peer:
        answer = peer.ask("OPTIONS", "/v1/chat/completions", ORIGIN, *PREFLIGHT)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.get("access-control-allow-origin") == "https://ui.example.org"
        assert "POST" in (answer.get("access-control-allow-methods") or "")
        assert "Content-Type" in (answer.get("access-control-allow-headers") or "")
        assert answer.get("x-request-id")
        assert has_added_headers(answer)
        assert is_usable(peer)
    assert browsers.backend.untaken() == ["GET /v1/still-there"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(("Origin: https://evil.example.org", *PREFLIGHT), id="another origin"),
        pytest.param(PREFLIGHT, id="no origin"),
        pytest.param((ORIGIN, "Access-Control-Request-Method: DELETE"), id="another method"),
    ],
)
def test_preflight_that_is_not_allowed_is_told_nothing(
    headers: tuple[str, ...], browsers: Site
) -> None:
    with browsers.dial() as peer:
        answer = peer.ask("OPTIONS", "/v1/chat/completions", *headers)
    assert [name for name, _ in answer.headers if name.startswith("access-control")] == []
    assert browsers.backend.untaken() == []


def test_preflight_of_a_peer_that_nobody_admits_is_refused(browsers: Site) -> None:
    with browsers.dial("/workload/stranger") as peer:
        assert peer.ask("OPTIONS", "/v1/chat/completions", ORIGIN, *PREFLIGHT).status == 403
    assert browsers.backend.untaken() == []


def test_options_that_is_no_preflight_is_decided_like_any_request(browsers: Site) -> None:
    with browsers.dial() as peer:
        assert peer.ask("OPTIONS", "/v1/chat/completions", ORIGIN).status == 403


def test_pages_may_read_answers_and_refusals_alike(browsers: Site) -> None:
    browsers.backend.routes["/v1/own-cors"] = lambda call: call.answer(
        200, b"", "Access-Control-Allow-Origin: *", "X-Frame-Options: DENY"
    )
    browsers.backend.routes["/v1/mute"] = lambda call: call.close()
    for target, status in (
        ("/v1/models", 200),
        ("/v1/own-cors", 200),
        ("/denied", 403),
        ("/v1/mute", 502),
        ("/health", 200),
    ):
        with browsers.dial() as peer:
            answer = peer.ask("GET", target, ORIGIN)
        assert answer.status == status
        assert answer.values("access-control-allow-origin") == ["https://ui.example.org"]
        assert answer.values("access-control-expose-headers") == ["X-Request-Id"]
        assert answer.values("vary") == ["Origin"]
        assert has_added_headers(answer)


def test_refusal_of_what_is_no_request_has_the_added_headers(browsers: Site) -> None:
    with browsers.dial() as peer:
        peer.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
        answer = peer.answer()
        assert answer.status == 400
        assert has_added_headers(answer)
        assert peer.rest() == (b"", True)


def test_backend_need_not_judge_the_origin_that_we_judged(browsers: Site) -> None:
    with browsers.dial() as peer:
        assert peer.ask("GET", "/v1/models", ORIGIN).status == 200
    assert browsers.backend.next_call().values("origin") == []


# What is agreed on before any request.


def test_http_is_agreed_on_by_alpn(site: Site) -> None:
    for offered, agreed in ((["h2", "http/1.1"], "http/1.1"), ([], None)):
        context = site.context()
        if offered:
            context.set_alpn_protocols(offered)
        with HttpPeer(site.address, context) as peer:
            assert peer.alpn == agreed
            assert peer.ask("GET", "/v1/models").status == 200


def test_client_that_speaks_http_2_alone_is_told_so_by_an_alert(site: Site) -> None:
    context = site.context()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(site.address, 20) as sock,
        pytest.raises(ssl.SSLError, match="no application protocol"),
    ):
        context.wrap_socket(sock)
    line = site.daemon.wait_for("peer refused", claimed="none")
    assert line["reason"] == "the peer offers 'h2' by ALPN, expected 'http/1.1'"
    assert line["hint"]
