"""What one request, one peer and all of them together may take; who takes more is told so."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.ca import Authority
from tests.http_backend import Call
from tests.http_client import HttpPeer, Site, new_id, request, running_site

HEAD = 2048
BODY = 200_000
RULE_BODY = 1000
SLOTS = 4
QUEUE = 8
MORE = f"""
[limits]
max_head_bytes = {HEAD}
max_body_bytes = {BODY}
concurrent_requests = {SLOTS}
concurrent_requests_per_peer = {SLOTS}
queued_requests = {QUEUE}
queue_seconds = 2
"""


OPEN = ('endpoints = ["*"]', "trusted_proxy = true")


def rule(name: str, *more: str) -> str:
    """A rule for the peers below a path of its name."""
    peers = f'peers = ["spiffe://example.org/{name}/*"]'
    return "\n".join(["[[allow]]", f'name = "{name}"', peers, *OPEN, *more, ""])


POLICY = "\n".join(
    [
        *OPEN,
        rule("small", f"max_body_bytes = {RULE_BODY}"),
        rule("empty", "max_body_bytes = 0"),
        rule("generous", "max_body_bytes = 1_000_000_000"),
        rule("slow", "requests_per_second = 0.1", "burst = 3"),
        rule("slow-too", "requests_per_second = 0.1", "burst = 1"),
        rule("quick", "requests_per_second = 10", "burst = 1"),
        rule("single", "concurrent_requests = 1"),
        rule("pair", "concurrent_requests = 2"),
        rule("greedy"),
    ]
)


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, policy=POLICY, more=MORE) as site:
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


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


LIMITS = [
    pytest.param("/workload/traefik", BODY, id="of all"),
    pytest.param("/small/x", RULE_BODY, id="of a rule"),
    pytest.param("/generous/x", BODY, id="of all where a rule says more"),
]


# Bodies.


@pytest.mark.parametrize(("path", "most"), LIMITS)
def test_body_of_just_the_limit_is_taken(path: str, most: int, site: Site) -> None:
    with site.dial(path) as peer:
        assert peer.ask("POST", "/v1/x", body=b"x" * most).json()["received"] == most
        half = b"x" * (most // 2)
        peer.sendall(request("POST", "/v1/x", "Transfer-Encoding: chunked") + chunked(half, half))
        assert peer.answer().json()["received"] == most


@pytest.mark.parametrize(("path", "most"), [*LIMITS, pytest.param("/empty/x", 0, id="of nothing")])
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)], ids=["", "expecting 100"])
def test_body_announced_as_too_long_is_refused_before_the_backend_hears_of_it(
    expect: tuple[str, ...], path: str, most: int, site: Site
) -> None:
    request_id = new_id()
    with site.dial(path) as peer:
        headers = f"Content-Length: {most + 1}", f"X-Request-Id: {request_id}", *expect
        peer.sendall(request("POST", "/v1/messages", *headers))
        refused = peer.answer()
        assert (refused.status, refused.interim) == (413, [])
        assert refused.json()["type"] == "error"
        assert str(most) in refused.json()["error"]["message"]
        assert refused.get("connection") == "close"
        assert peer.rest() == (b"", True)
    assert site.backend.untaken() == []
    assert (site.line(request_id)["status"], site.line(request_id)["received"]) == (413, 0)


@pytest.mark.parametrize(("path", "most"), LIMITS)
@pytest.mark.parametrize("size", [100, 70_000])
def test_chunked_body_is_refused_when_it_passes_the_limit(
    size: int, path: str, most: int, site: Site
) -> None:
    request_id = new_id()
    headers = f"X-Request-Id: {request_id}", "Transfer-Encoding: chunked"
    with site.dial(path) as peer:
        peer.sendall(request("POST", "/held/upload", *headers))
        call = site.backend.next_call()
        piece, left = b"x" * min(size, most), most
        while left >= len(piece):
            peer.sendall(chunked(piece)[:-5])
            assert len(call.read_body(len(piece))) == len(piece)
            left -= len(piece)
        peer.sendall(chunked(b"x" * (left + 1)))
        refused = peer.answer()
        assert (refused.status, refused.get("connection")) == (413, "close")
        assert peer.rest() == (b"", True)
    assert call.wait_gone() == "ConnectionResetError", "half a body looks like a whole one"
    assert call.received <= most
    call.close()
    assert site.line(request_id)["status"] == 413


def test_chunked_body_that_is_too_long_from_the_start_does_not_reach_the_backend(
    site: Site,
) -> None:
    with site.dial("/small/x") as peer:
        head = request("POST", "/v1/x", "Transfer-Encoding: chunked")
        peer.sendall(head + chunked(b"x" * (RULE_BODY + 1)))
        assert peer.answer().status == 413
    assert site.backend.untaken() == []


def test_body_that_passes_the_limit_after_the_answer_has_begun_cuts_it(
    site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("POST", "/held/both", "Transfer-Encoding: chunked"))
    call = site.backend.next_call()
    call.begin_stream()
    call.event("one")
    peer.until(b"data: one\n\n\r\n")
    for _ in range(4):
        peer.sendall(chunked(b"x" * (BODY // 4))[:-5])
        call.read_body(BODY // 4)
    peer.sendall(chunked(b"x"))
    assert peer.rest() == (b"", False)
    assert call.wait_gone() == "ConnectionResetError"
    call.close()


# Heads.


def padded(size: int, *headers: str) -> bytes:
    """A head of so many bytes."""
    bare = request("GET", "/v1/x", *headers, "X-Pad: ")
    return request("GET", "/v1/x", *headers, "X-Pad: " + "x" * (size - len(bare)))


def test_head_of_just_the_limit_is_taken(peer: HttpPeer) -> None:
    for _ in range(2):
        peer.sendall(padded(HEAD))
        assert peer.answer().status == 200


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(padded(HEAD + 1), id="a byte too long"),
        pytest.param(padded(100_000), id="much too long"),
        pytest.param(padded(HEAD * 2)[:-4], id="without an end"),
        pytest.param(b"GET /" + b"x" * HEAD, id="a request line without end"),
        pytest.param(
            request("GET", "/v1/x", *(f"X-{number}: x" for number in range(300))), id="many fields"
        ),
    ],
)
def test_head_that_is_too_large_is_refused(raw: bytes, site: Site, peer: HttpPeer) -> None:
    assert peer.ask("GET", "/v1/first").status == 200
    peer.sendall(raw)
    refused = peer.answer()
    assert (refused.status, refused.get("connection")) == (431, "close")
    assert peer.rest() == (b"", True)
    assert site.backend.untaken() == ["GET /v1/first"]


# Rates.


def test_requests_above_the_rate_are_refused_and_told_when_to_come_back(site: Site) -> None:
    with site.dial("/slow/a") as one, site.dial("/slow/a") as another:
        for peer in (one, another, one):
            assert peer.ask("GET", "/v1/x").status == 200
        for peer in (another, one, another):
            request_id = new_id()
            refused = peer.ask("POST", "/v1/x", f"X-Request-Id: {request_id}", body=b"{}")
            assert refused.status == 429
            assert refused.json()["error"]["code"] == "rate_limited"
            assert 1 <= int(refused.get("retry-after") or 0) <= 10
            assert refused.get("connection") is None
            line = site.line(request_id)
            assert (line["decision"], line["rule"], line["status"]) == ("refused", "slow", 429)
    assert site.backend.untaken() == ["GET /v1/x"] * 3


def test_peers_do_not_share_a_rate_under_one_rule_or_two(site: Site) -> None:
    with (
        site.dial("/slow/b") as greedy,
        site.dial("/slow/c") as same_rule,
        site.dial("/slow-too/b") as other_rule,
    ):
        assert [greedy.ask("GET", "/v1/x").status for _ in range(5)] == [200] * 3 + [429] * 2
        assert [same_rule.ask("GET", "/v1/x").status for _ in range(4)] == [200] * 3 + [429]
        assert [other_rule.ask("GET", "/v1/x").status for _ in range(2)] == [200, 429]


def test_peer_with_a_new_svid_is_the_same_peer(site: Site) -> None:
    with site.dial("/slow/d") as before:
        assert [before.ask("GET", "/v1/x").status for _ in range(4)] == [200] * 3 + [429]
    with site.dial("/slow/d") as after:
        assert after.ask("GET", "/v1/x").status == 429


def test_what_policy_refuses_takes_nothing_of_the_rate(site: Site) -> None:
    with site.dial("/slow/e") as peer:
        for _ in range(5):
            assert peer.ask("GET", "/v1/../x").status == 403
        assert [peer.ask("GET", "/v1/x").status for _ in range(4)] == [200] * 3 + [429]


def test_rate_recovers(site: Site) -> None:
    deadline = time.monotonic() + 20
    with site.dial("/quick/a") as peer:
        for _ in range(3):
            seen: list[int] = []
            while not seen or seen[-1] == 429:
                assert time.monotonic() < deadline, "it never recovers"
                seen.append(peer.ask("GET", "/v1/x").status)
            assert seen[-1] == 200


# What runs at a time.


def held(site: Site, peer: HttpPeer, name: str) -> Call:
    """A request that runs until the test ends it."""
    peer.sendall(request("GET", f"/held/{name}"))
    call = site.backend.next_call()
    assert call.target == f"/held/{name}"
    return call


def finish(call: Call) -> None:
    call.answer(200, call.target.encode())
    call.release()


def nothing_comes(site: Site) -> bool:
    """Tell that nothing new has reached the backend by the time that another peer was served."""
    with site.dial() as other:
        assert other.ask("GET", "/v1/meanwhile").status == 200
    return site.backend.untaken() == ["GET /v1/meanwhile"]


def test_request_above_the_peers_number_waits_its_turn(site: Site) -> None:
    with (
        site.dial("/pair/a") as first,
        site.dial("/pair/a") as second,
        site.dial("/pair/a") as third,
        site.dial("/pair/b") as other_peer,
    ):
        one, two = held(site, first, "1"), held(site, second, "2")
        third.sendall(request("GET", "/held/3"))
        assert nothing_comes(site)
        site.backend.forget()
        finish(held(site, other_peer, "own-number"))
        finish(two)
        three = site.backend.next_call()
        assert three.target == "/held/3"
        finish(three)
        finish(one)
        for peer in (first, second, third, other_peer):
            assert peer.answer().status == 200


def test_request_that_waited_too_long_is_told_to_come_back(site: Site) -> None:
    request_id = new_id()
    with site.dial("/single/a") as first, site.dial("/single/a") as second:
        running = held(site, first, "1")
        refused = second.ask("POST", "/v1/x", f"X-Request-Id: {request_id}", body=b"{}")
        assert refused.status == 503
        assert refused.json()["error"]["code"] == "busy"
        assert int(refused.get("retry-after") or 0) >= 1
        assert refused.get("connection") is None
        line = site.line(request_id)
        assert (line["decision"], line["rule"], line["status"]) == ("refused", "single", 503)
        finish(running)
        assert first.answer().status == 200
        assert second.ask("GET", "/v1/x").status == 200
    assert site.backend.untaken() == ["GET /v1/x"]


def test_slot_is_free_again_however_a_request_ended(site: Site) -> None:
    for end in ("answered", "left", "reset", "closed", "too-long"):
        with site.dial("/single/b") as peer:
            peer.sendall(request("POST", f"/held/{end}", "Transfer-Encoding: chunked"))
            call = site.backend.next_call()
            if end == "answered":
                finish(call)
            elif end == "left":
                peer.leave("reset")
            elif end == "reset":
                call.reset()
            elif end == "closed":
                call.close()
            else:
                peer.sendall(chunked(b"x" * (BODY + 1)))
            if end != "left":
                peer.until(b"\r\n\r\n")
            with site.dial("/single/b") as next_one:
                assert next_one.ask("GET", "/v1/next").status == 200, end
            assert site.backend.next_call().target == "/v1/next"
            call.close()


def test_request_of_a_peer_that_left_while_it_waited_never_reaches_the_backend(
    site: Site,
) -> None:
    for way in ("close", "reset", "close_notify"):
        request_id = new_id()
        with (
            site.dial("/single/c") as first,
            site.dial("/single/c") as leaving,
            site.dial("/single/c") as last,
        ):
            running = held(site, first, "first")
            leaving.sendall(request("GET", "/held/gone", f"X-Request-Id: {request_id}"))
            assert nothing_comes(site)
            site.backend.forget()
            leaving.leave(way)
            last.sendall(request("GET", "/held/last"))
            line = site.line(request_id)
            assert line["reason"] == "the peer left before it had its answer"
            finish(running)
            call = site.backend.next_call()
            assert call.target == "/held/last"
            finish(call)
            assert last.answer().status == 200


def test_greedy_peer_does_not_starve_another(site: Site) -> None:
    with ExitStack() as stack:
        greedy = [stack.enter_context(site.dial("/greedy/a")) for _ in range(SLOTS + QUEUE)]
        running = [held(site, peer, "greedy") for peer in greedy[:SLOTS]]
        for peer in greedy[SLOTS:]:
            peer.sendall(request("GET", "/held/greedy"))
        # Half of the queue is for those who have no place in it yet.
        told = answered(greedy[SLOTS:], QUEUE // 2)
        for peer in told:
            refused = peer.answer()
            assert refused.status == 503
            assert int(refused.get("retry-after") or 0) >= 1
        other = stack.enter_context(site.dial("/greedy/b"))
        other.sendall(request("GET", "/held/other"))
        with site.dial("/workload/stranger") as stranger:
            assert stranger.ask("GET", "/v1/x").status == 403  # by now the other one waits, too
        served = []
        while "/held/other" not in served:
            finish(running.pop(0))
            running.append(site.backend.next_call())
            served.append(running[-1].target)
        assert len(served) <= 2, "its turn is the next one or the one after it"
        while running:
            finish(running.pop(0))
            if len(served) < 1 + QUEUE // 2:
                running.append(site.backend.next_call())
                served.append(running[-1].target)
        assert other.answer().status == 200
        for peer in greedy:
            assert peer in told or peer.answer().status == 200


def answered(peers: list[HttpPeer], count: int) -> list[HttpPeer]:
    """Wait until so many of the peers have an answer, and give them."""
    deadline = time.monotonic() + 20
    ready: list[HttpPeer] = []
    while len(ready) < count:
        assert time.monotonic() < deadline, f"only {len(ready)} of {count}"
        select.select([peer.sock for peer in peers if peer not in ready], [], [], 20)
        ready += [peer for peer in peers if peer not in ready and peer.has_word()]
    return ready


# Connections.


def test_idle_connection_gives_way_to_a_newcomer_and_a_busy_one_does_not(
    authority: Authority,
) -> None:
    more = "[connections]\nmaximum = 2\n"
    with running_site(authority, more=more) as site, site.dial() as busy, site.dial() as idle:
        call = held(site, busy, "busy")
        call.begin_stream()
        assert idle.ask("GET", "/v1/x").status == 200
        with site.dial() as newcomer:
            assert newcomer.ask("GET", "/v1/x").status == 200
            assert idle.rest() == (b"", True)
            site.backend.forget()
            held(site, newcomer, "busy-too")
            with site.dial() as one_too_many:
                assert one_too_many.rest() == (b"", True)
                line = site.daemon.wait_for("peer refused", address=one_too_many.address)
                assert line["reason"] == "too many connections"
        call.event("still here")
        busy.until(b"data: still here\n\n\r\n")
        call.close()


def test_strangers_take_no_place_from_those_whom_policy_admits(authority: Authority) -> None:
    more = "[connections]\nmaximum = 2\n"
    with running_site(authority, more=more) as site, ExitStack() as stack:
        good = [stack.enter_context(site.dial()) for _ in range(2)]
        for peer in good:
            assert peer.ask("GET", "/v1/x").status == 200
        for begun in (b"", b"G", request("POST", "/v1/x", "Content-Length: 10")):
            for _ in range(4):
                stranger = stack.enter_context(site.dial("/workload/stranger"))
                stranger.sendall(begun)
        with site.dial("/workload/stranger") as last:
            assert last.ask("GET", "/v1/x").status == 403
        for peer in good:
            assert peer.ask("GET", "/v1/x").status == 200
