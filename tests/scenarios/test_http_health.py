"""Our health, on the port where the requests come: for whoever some rule names, and nobody else."""

from __future__ import annotations

import select
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.http_backend import Call, HttpBackend
from tests.http_client import EVERYTHING, Answer, HttpPeer, Site, new_id, request, running_site
from tests.scenarios.conftest import Launch

# The first rule names an endpoint, the second one a peer and no endpoint at all.
POLICY = """
endpoints = ["GET /v1/models"]
trusted_proxy = true
[[allow]]
name = "balancers"
peers = ["spiffe://example.org/balancer/*"]
trusted_proxy = true
"""


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, policy=POLICY) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; the model server is well."""
    running.backend.routes["/api/version"] = lambda call: call.answer(200, b'{"version":"1"}')
    with running.dial() as peer:
        until(peer, 200, "never well")
    running.backend.forget()
    return running


def until(peer: HttpPeer, status: int, otherwise: str) -> Answer:
    """Ask until the answer is another one: each is good for a moment."""
    deadline = time.monotonic() + 20
    while (answer := peer.ask("GET", "/health")).status != status:
        assert time.monotonic() < deadline, otherwise
        select.select([peer.sock], [], [], 0.1)
    return answer


def ask_until_the_backend_is_asked(site: Site, peer: HttpPeer) -> None:
    """Ask until the answer of before is good no more; one of ours is then under way."""
    deadline = time.monotonic() + 20
    while True:
        peer.sendall(request("GET", "/health"))
        while not peer.has_word():
            if site.backend.untaken():
                return
            assert time.monotonic() < deadline, "neither an answer nor a question"
            select.select([peer.sock], [], [], 0.01)
        assert peer.answer().status == 200
        select.select([peer.sock], [], [], 0.1)


@pytest.mark.parametrize("path", ["/workload/traefik", "/balancer/a"])
def test_peer_that_some_rule_names_is_told(path: str, site: Site) -> None:
    request_id = new_id()
    with site.dial(path) as peer:
        answer = peer.ask("GET", "/health?verbose=1", f"X-Request-Id: {request_id}")
        assert (answer.status, answer.json()) == (200, {"status": "ok"})
        assert answer.get("content-type") == "application/json"
        assert answer.get("cache-control") == "no-store"
        assert answer.get("x-request-id") == request_id
        head = peer.ask("HEAD", "/health")
        assert (head.status, head.body) == (200, b"")
        assert head.get("content-length") == answer.get("content-length")
        assert peer.ask("GET", "/health").status == 200
    line = site.line(request_id)
    assert (line["decision"], line["method"], line["path"]) == ("allowed", "GET", "/health")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_stranger_is_not_told(method: str, site: Site) -> None:
    with site.dial("/workload/stranger") as peer:
        answer = peer.ask(method, "/health")
        assert answer.status == 403
        assert b"ok" not in answer.body
    assert site.backend.untaken() == []


@pytest.mark.parametrize(
    ("method", "target"),
    [
        pytest.param("POST", "/health", id="POST"),
        pytest.param("OPTIONS", "/health", id="OPTIONS"),
        pytest.param("GET", "/health/", id="a slash more"),
        pytest.param("GET", "/Health", id="another case"),
        pytest.param("GET", "/%68ealth", id="escaped"),
        pytest.param("GET", "/api/version", id="the backend's own"),
    ],
)
def test_what_only_looks_like_our_health_is_decided_by_policy(
    method: str, target: str, site: Site
) -> None:
    with site.dial("/balancer/a") as peer:
        assert peer.ask(method, target).status == 403
    assert site.backend.untaken() == []


def test_backend_is_asked_at_its_own_path_and_by_its_own_name(site: Site) -> None:
    with site.dial() as peer:
        ask_until_the_backend_is_asked(site, peer)
    call = site.backend.next_call()
    assert (call.method, call.target) == ("GET", "/api/version")
    assert call.values("host") == [site.backend.address]
    assert call.values("x-spiffe-id") == []


def test_backend_that_is_not_well_is_told_with_its_status(site: Site) -> None:
    site.backend.routes["/api/version"] = lambda call: call.answer(500)
    with site.dial("/balancer/a") as peer:
        answer = until(peer, 503, "never seen")
        assert answer.json()["status"] == "unhealthy"
        assert "answers 500 " in answer.json()["reason"]
        head = peer.ask("HEAD", "/health")
        assert (head.status, head.body, head.get("connection")) == (503, b"", None)


def test_backend_that_is_down_is_told_and_found_when_it_is_back(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    path = folder / "model.sock"
    daemon = launch(backend_address=f"unix:{path}", mode="http")
    with HttpPeer(daemon.address, traefik) as peer:
        answer = peer.ask("GET", "/health")
        assert answer.status == 503
        assert answer.json()["status"] == "unhealthy"
        assert "does not answer" in answer.json()["reason"]
        assert str(path) not in answer.body.decode(), "where it listens is nobody's business"
        line = daemon.wait_for("request", path="/health")
        assert (line["status"], line["level"], line["outcome"]) == (503, "info", "answered")
        assert line["reason"] == answer.json()["reason"]
        with HttpBackend(path) as backend:
            assert until(peer, 200, "never found").json() == {"status": "ok"}
            assert backend.calls[0].values("host") == ["localhost"]
        assert until(peer, 503, "not missed").status == 503
        for _ in range(20):
            assert peer.ask("GET", "/health").status == 503
        daemon.wait_for("backend up")
        daemon.wait_for("backend down")
    warned = [line["event"] for line in daemon.log if line["level"] == "warning"]
    assert warned.count("request") == 0, "one that asks for our health is no warning"
    downs, ups = daemon.lines("backend down"), daemon.lines("backend up")
    assert (len(downs), len(ups)) == (2, 1)
    assert "does not answer: " in downs[0]["reason"]
    assert {line["backend"] for line in downs + ups} == {f"unix:{path}"}
    assert ups[0]["down_seconds"] >= 0


def test_change_of_the_backend_is_found_by_requests_alone(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    path = folder / "model.sock"
    daemon = launch(backend_address=f"unix:{path}", mode="http", policy=EVERYTHING)
    with HttpPeer(daemon.address, traefik) as peer:
        assert peer.ask("GET", "/v1/models").status == 502
        assert "does not answer: " in daemon.wait_for("backend down")["reason"]
        with HttpBackend(path):
            assert peer.ask("GET", "/v1/models").status == 200
            assert daemon.wait_for("backend up")["down_seconds"] >= 0


def answer_after(call: Call, event: threading.Event, seconds: float) -> None:
    event.wait(seconds)
    call.answer(200)


def test_busy_backend_that_answers_late_is_well(authority: Authority) -> None:
    """Its health path takes 7 s, and it sends a token now and then."""
    table = 'health_path = "/slow"'
    with running_site(authority, backend_table=table) as site, ExitStack() as stack:
        late = threading.Event()
        stack.callback(late.set)
        site.backend.routes["/slow"] = lambda call: answer_after(call, late, 7)
        streaming, balancer = stack.enter_context(site.dial()), stack.enter_context(site.dial())
        streaming.sendall(request("POST", "/held/chat", body=b"{}"))
        stream = site.backend.next_call()
        stream.body()
        stream.begin_stream()
        for _ in range(3):
            stream.event("token")
            streaming.until(b"data: token")
            answer = balancer.ask("GET", "/health")
            assert (answer.status, answer.json()) == (200, {"status": "ok"})
        stream.close()
    assert site.daemon.lines("backend down") == []


def test_deadline_of_the_question_is_a_key(
    authority: Authority,
) -> None:
    more = "[timeouts]\nhealth = 0.3\n"
    with running_site(authority, more=more) as site, site.dial() as peer:
        now = threading.Event()
        site.backend.routes["/api/version"] = lambda call: answer_after(call, now, 20)
        answer = peer.ask("GET", "/health")
        now.set()
        assert answer.status == 503
        assert answer.json()["reason"] == "the backend does not answer within 0.3 s"


@pytest.fixture
def slowly(site: Site) -> Iterator[threading.Event]:
    """The model server answers when the event is set."""
    now = threading.Event()

    site.backend.routes["/api/version"] = lambda call: answer_after(call, now, 20)
    yield now
    now.set()


def test_many_who_ask_at_once_make_one_question(site: Site, slowly: threading.Event) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(site.dial("/balancer/a")) for _ in range(20)]
        ask_until_the_backend_is_asked(site, peers[0])
        for peer in peers[1:]:
            peer.sendall(request("GET", "/health"))
        with site.dial() as other:
            assert other.ask("GET", "/v1/models").status == 200, "others do not wait for it"
        slowly.set()
        for peer in peers:
            assert peer.answer().status == 200
    asked = [target for target in site.backend.untaken() if "version" in target]
    assert asked == ["GET /api/version"]


def test_asker_that_leaves_does_not_take_the_answer_from_the_others(
    site: Site, slowly: threading.Event
) -> None:
    with site.dial("/balancer/a") as leaving, site.dial("/balancer/b") as staying:
        ask_until_the_backend_is_asked(site, leaving)
        staying.sendall(request("GET", "/health"))
        leaving.leave("reset")
        slowly.set()
        assert staying.answer().status == 200
