"""A model server may close a connection that it kept, at any moment: no request fails for that.

It closes a few milliseconds after its answer, as a server with a short keep-alive does; or while
the next request is on its way, which no look before sending can see.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from tests.ca import Authority
from tests.http_backend import Call
from tests.http_client import Site, new_id, running_site


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; what came before is not this test's."""
    running.backend.forget()
    running.backend.routes.pop("/v1/", None)
    return running


def close_later(call: Call) -> None:
    """Answer, and close 5 ms later without having announced it."""
    call.answer(200, call.body())
    threading.Timer(0.005, call.close).start()
    call.released.wait(20)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_backend_that_closes_after_its_answer_fails_no_request(site: Site, method: str) -> None:
    site.backend.routes["/v1/"] = close_later
    pauses, pause = random.Random(41), threading.Event()
    body = b"{}" if method == "POST" else b""
    with site.dial() as peer:
        for number in range(100):
            answer = peer.ask(method, "/v1/models", body=body)
            assert (answer.status, answer.body) == (200, body), f"request {number}"
            pause.wait(pauses.uniform(0, 0.015))


class EndsWithTheSecond:
    """Answers the first request of each connection, and ends the connection with the second."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.known: set[int] = set()
        self.ended: list[str] = []

    def __call__(self, call: Call) -> None:
        if call.connection not in self.known:
            self.known.add(call.connection)
            call.answer(200, b"", f"X-Connection: {call.connection}")
            return
        self.ended.append(call.method)
        if self.how == "408":
            call.answer(408, b"late", "Connection: close")
        if self.how == "half a head":
            call.send(b"HTTP/1.1 200 OK\r\nContent-")
        if self.how == "a head that cannot be read":
            call.send(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")
        if self.how == "two lengths":
            call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        if self.how == "reset":
            call.reset()
        else:
            call.close()


@pytest.mark.parametrize("how", ["end", "reset", "408"])
def test_safe_request_that_meets_the_end_is_sent_again(site: Site, how: str) -> None:
    ends = site.backend.routes["/v1/"] = EndsWithTheSecond(how)
    request_id = new_id()
    with site.dial() as peer:
        address = peer.address
        for method in ("GET", "GET", "HEAD", "OPTIONS", "GET"):
            answer = peer.ask(method, "/v1/models", f"X-Request-Id: {request_id}")
            assert answer.status == 200
    assert ends.ended == ["GET", "HEAD", "OPTIONS", "GET"]
    assert len(ends.known) == 5
    site.daemon.wait_for("connection closed", address=address)
    lines = [line for line in site.daemon.lines("request") if line["request_id"] == request_id]
    assert [(line["status"], line["level"]) for line in lines] == [(200, "info")] * 5
    first, second = (line["received"] for line in lines[:2])
    assert first == second, "bytes of one request, also of what was sent twice"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
def test_request_that_may_do_something_has_a_connection_of_its_own(site: Site, method: str) -> None:
    ends = site.backend.routes["/v1/"] = EndsWithTheSecond("end")
    body = b"{}" if method in ("GET", "POST") else b""  # a GET may have one
    with site.dial() as peer:
        numbers = [peer.ask(method, "/v1/x", body=body).get("x-connection") for _ in range(3)]
    assert len({*numbers}) == 3
    assert ends.ended == []


@pytest.mark.parametrize("how", ["half a head", "a head that cannot be read", "two lengths"])
def test_answer_that_was_begun_is_not_asked_for_again(site: Site, how: str) -> None:
    ends = site.backend.routes["/v1/"] = EndsWithTheSecond(how)
    with site.dial() as peer:
        assert peer.ask("GET", "/v1/models").status == 200
        assert peer.ask("GET", "/v1/models").status == 502
    assert (ends.ended, len(ends.known)) == (["GET"], 1)


def test_request_is_sent_again_once_and_never_from_a_new_connection(site: Site) -> None:
    with site.dial() as peer:
        assert peer.ask("GET", "/v1/models").status == 200
        site.backend.routes["/v1/"] = Call.close
        site.backend.forget()
        assert peer.ask("GET", "/v1/models").status == 502
        assert site.backend.untaken() == ["GET /v1/models"] * 2
        site.backend.forget()
        assert peer.ask("GET", "/v1/models").status == 502
        assert site.backend.untaken() == ["GET /v1/models"]


def test_408_that_is_an_answer_is_passed_on(site: Site) -> None:
    site.backend.routes["/v1/"] = lambda call: call.answer(408, b"own", "Connection: close")
    with site.dial() as peer:
        for _ in range(2):
            answer = peer.ask("GET", "/v1/models")
            assert (answer.status, answer.body) == (408, b"own")
    assert site.backend.untaken() == ["GET /v1/models"] * 2
