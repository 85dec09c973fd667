"""`probe` against the real daemon: each refusal and each failure is named by the hop it is of.

The probe is Traefik's, in this process; the command itself is in tests/test_probe_command.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from sidecar.adapters.tls import ServerIdentity, server_identity
from sidecar.core.config import LimitsTable
from sidecar.core.errors import PeerError
from sidecar.core.policy import PeerPattern
from sidecar.core.probe.answer import told
from sidecar.core.probe.report import Hop, ProbeReport, ProbeRequest
from sidecar.core.probe.target import ProbeTarget
from sidecar.core.refusal import refusal_body
from sidecar.http_mode.admission import Admission, RefusedError
from sidecar.operations.probe import probe
from tests.adapters.deadlines import within
from tests.ca import Authority
from tests.daemon import Daemon
from tests.http_backend import Call
from tests.http_client import Site, running_site

OPENAI, ANTHROPIC, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/chat"
DIALECTS = pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, OLLAMA])
MORE = """
[timeouts]
first_byte = 2
[limits]
max_head_bytes = 2048
max_body_bytes = 1000
queue_seconds = 0.3
"""


def rule(name: str, *more: str, endpoints: str = '["*"]') -> str:
    """A rule for the peers below a path of its name."""
    lines = ["[[allow]]", f'name = "{name}"', f'peers = ["spiffe://example.org/{name}/*"]']
    return "\n".join([*lines, f"endpoints = {endpoints}", *more, ""])


POLICY = "\n".join(
    [
        'endpoints = ["*"]',
        rule("narrow", endpoints='["GET /api/version"]'),
        rule("slow", "requests_per_second = 0.001", "burst = 1"),
        rule("single", "concurrent_requests = 1"),
    ]
)


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, policy=POLICY, more=MORE) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """One site for all; what a test made of its model server goes with the test."""
    before = dict(running.backend.routes)
    running.backend.forget()
    yield running
    running.backend.routes.clear()
    running.backend.routes.update(before)


def identity(authority: Authority, path: str = "/workload/traefik") -> ServerIdentity:
    return server_identity(authority.svid(path), {authority.trust_domain: authority.bundle}, "1.3")


async def ask(
    where: tuple[str, int], own: ServerIdentity, path: str = "/api/version", **changes: Any
) -> ProbeReport:
    """Probe; a path that is empty makes it a handshake."""
    scheme = "https" if path else "tls"
    target = ProbeTarget.parse(f"{scheme}://{where[0]}:{where[1]}{path}")
    watch = {name: changes.pop(name) for name in ("on_phase", "on_body") if name in changes}
    request = replace(ProbeRequest(target, settle_seconds=15), **changes)
    return await probe(request, own, **watch)


def named(report: ProbeReport) -> tuple[Hop, str]:
    """Give hop and code; every fault has a remedy."""
    assert report.fault is not None, report
    assert report.fault.hint
    return report.fault.hop, report.fault.code


# What goes well.


@within(30)
async def test_health_of_a_sidecar_in_mode_http(site: Site, authority: Authority) -> None:
    report = await ask(site.address, identity(authority), "/health")
    assert report.ok
    assert report.answer is not None
    assert (report.answer.status, report.answer.is_echoed) == (200, True)
    assert report.notes == ()
    # The sidecar's log has the request under the same ID, from the same address.
    assert report.connection is not None
    assert site.line(report.answer.request_id)["address"] == report.connection.local


@within(30)
async def test_handshake_alone(site: Site, authority: Authority) -> None:
    report = await ask(site.address, identity(authority), "", settle_seconds=0.2)
    assert report.ok
    assert report.peer is not None
    assert report.peer.spiffe_id == "spiffe://example.org/workload/model-server"


@within(30)
async def test_answer_is_seen_as_it_comes(site: Site, authority: Authority) -> None:
    heard = threading.Semaphore(0)

    def stream(call: Call) -> None:
        call.body()
        call.begin_stream()
        for number in range(5):
            call.event(f"token {number}")
            assert heard.acquire(timeout=20)  # nobody on the way keeps a token back
        call.end_stream()

    site.backend.routes["/v1/"] = stream
    report = await ask(
        site.address,
        identity(authority),
        OPENAI,
        method="POST",
        body=b"{}",
        on_body=lambda _: heard.release(),
    )
    assert report.ok
    assert report.answer is not None
    assert (report.answer.pieces, report.answer.content_type) == (5, "text/event-stream")
    assert report.answer.spread_seconds > 0


# The sidecar says no: known in each dialect.


@DIALECTS
@within(30)
async def test_peer_that_no_rule_names(site: Site, authority: Authority, path: str) -> None:
    report = await ask(site.address, identity(authority, "/workload/stranger"), path)
    assert named(report) == (Hop.POLICY, "peer_not_admitted")
    assert report.fault is not None
    assert "spiffe://example.org/workload/stranger" in report.fault.message
    assert report.answer is not None
    assert report.answer.status == 403


@DIALECTS
@within(30)
async def test_endpoint_that_no_rule_names(site: Site, authority: Authority, path: str) -> None:
    report = await ask(site.address, identity(authority, "/narrow/x"), path)
    assert named(report) == (Hop.POLICY, "endpoint_not_allowed")
    assert report.fault is not None
    assert f"--method GET --path {path}" in report.fault.hint


@within(30)
async def test_sidecars_own_svid_asks(site: Site, authority: Authority) -> None:
    report = await ask(site.address, identity(authority, "/workload/model-server"))
    assert named(report) == (Hop.POLICY, "peer_not_admitted")
    assert report.fault is not None
    assert "own ID" in report.fault.hint


@DIALECTS
@within(30)
async def test_peer_over_its_rate(site: Site, authority: Authority, path: str) -> None:
    own = identity(authority, f"/slow/{path.replace('/', '-')}")
    await ask(site.address, own, path)
    assert named(await ask(site.address, own, path)) == (Hop.LIMITS, "rate_limited")


@DIALECTS
@within(30)
async def test_body_over_its_limit(site: Site, authority: Authority, path: str) -> None:
    report = await ask(
        site.address, identity(authority), path, method="POST", body=b"x" * 5_000_000
    )
    assert named(report) == (Hop.LIMITS, "body_too_large")


@within(30)
async def test_head_over_its_limit(site: Site, authority: Authority) -> None:
    own = identity(authority)
    report = await ask(site.address, own, OLLAMA, headers=(("X-Long", "x" * 5000),))
    assert named(report) == (Hop.LIMITS, "head_too_large")


@DIALECTS
@within(30)
async def test_no_place_for_the_request(site: Site, authority: Authority, path: str) -> None:
    held, release = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        held.set()
        assert release.wait(20)
        call.answer()

    own = identity(authority, "/single/x")
    site.backend.routes["/held/"] = hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, site.address, own, "/held/x")
        await trio.to_thread.run_sync(held.wait, 20)
        report = await ask(site.address, own, path)
        release.set()
    assert named(report) == (Hop.LIMITS, "busy")


# The hop behind it.


@within(30)
async def test_model_server_that_is_silent(site: Site, authority: Authority) -> None:
    report = await ask(site.address, identity(authority), "/held/x")
    assert named(report) == (Hop.BACKEND, "backend_silent")
    assert report.fault is not None
    assert "504" in report.fault.message


@DIALECTS
@within(30)
async def test_model_server_that_drops_requests(
    site: Site, authority: Authority, path: str
) -> None:
    site.backend.routes[path] = Call.reset
    report = await ask(site.address, identity(authority), path)
    assert named(report) == (Hop.BACKEND, "backend_unreachable")


@within(30)
async def test_model_server_that_is_not_well(site: Site, authority: Authority) -> None:
    site.backend.routes["/api/version"] = Call.reset
    report = await ask(site.address, identity(authority), "/health")
    assert named(report) == (Hop.BACKEND, "unhealthy")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
@within(30)
async def test_what_the_model_server_says_is_not_taken_for_the_sidecars_word(
    site: Site, authority: Authority, status: int
) -> None:
    said = b'{"error":"the model says so"}'
    site.backend.routes["/v1/"] = lambda call: call.answer(status, said)
    report = await ask(site.address, identity(authority), OPENAI)
    assert named(report) == (Hop.BACKEND, "status")
    assert report.fault is not None
    assert f"the model server said {status}" in report.fault.message
    assert "the model says so" in report.fault.message


@within(30)
async def test_answer_that_breaks_off(site: Site, authority: Authority) -> None:
    heard = threading.Event()

    def half(call: Call) -> None:
        call.begin_stream()
        call.event("one")
        assert heard.wait(20)
        call.reset()

    site.backend.routes["/v1/"] = half
    report = await ask(site.address, identity(authority), OPENAI, on_body=lambda _: heard.set())
    assert named(report) == (Hop.ANSWER, "broke_off")
    assert report.answer is not None
    assert (report.answer.status, report.answer.complete) == (200, False)


@within(30)
async def test_answer_that_we_do_not_wait_for(site: Site, authority: Authority) -> None:
    def slow(call: Call) -> None:
        call.begin_stream()
        call.event("one")
        call.wait_gone()

    site.backend.routes["/v1/"] = slow
    report = await ask(site.address, identity(authority), OPENAI, silence_seconds=0.2)
    assert named(report) == (Hop.ANSWER, "silent")
    assert [phase for phase in report.phases if not phase.ok] == [report.phases[-1]]


# The handshake, and mode stream.


@within(30)
async def test_sidecar_that_does_not_know_our_trust_domain(
    site: Site, authority: Authority, foreign: Authority
) -> None:
    bundles = {one.trust_domain: one.bundle for one in (authority, foreign)}
    own = server_identity(foreign.svid("/workload/traefik"), bundles, "1.3")
    for path in ("/health", ""):
        # Its peer is of another trust domain than we are, which has to be said.
        expect = (PeerPattern.parse("spiffe://example.org/workload/model-server"),)
        report = await ask(site.address, own, path, expect=expect)
        assert named(report) == (Hop.OWN_SVID, "alert")
        assert report.fault is not None
        assert "trust bundle" in report.fault.hint


Start = Callable[..., Daemon]


@within(60)
async def test_mode_stream(start_daemon: Start, authority: Authority) -> None:
    daemon = start_daemon()
    address = await trio.to_thread.run_sync(lambda: daemon.address)
    own, stranger = identity(authority), identity(authority, "/workload/stranger")
    assert (await ask(address, own, "", settle_seconds=0.2)).ok
    # What is behind it echoes.
    assert named(await ask(address, own)) == (Hop.ANSWER, "not_http")
    for path in ("", "/health"):
        report = await ask(address, stranger, path)
        assert named(report) == (Hop.OWN_SVID, "closed")
        assert report.fault is not None
        assert "policy" in report.fault.hint


@within(60)
async def test_mode_stream_without_its_model_server(
    start_daemon: Start, authority: Authority
) -> None:
    nobody = "unix:/nonexistent/backend.sock"
    daemon = start_daemon(backend_address=nobody)
    address = await trio.to_thread.run_sync(lambda: daemon.address)
    report = await ask(address, identity(authority), "/health")
    assert named(report) == (Hop.OWN_SVID, "closed")
    assert report.fault is not None
    assert "model server" in report.fault.hint


# Refusals that take hours, or a clock, to be met: the words of the real thing.


def refused(authority: Authority, *, left: ServerIdentity | None, years: int) -> RefusedError:
    """Ask the real admission about a peer that it refuses."""
    now = datetime.now(UTC)

    def prove_again(_identity: object, _now: object) -> None:
        raise PeerError("no more")

    peer: Any = SimpleNamespace(
        peer=authority.svid().spiffe_id,
        not_after=now.replace(year=now.year + years),
        identity=None,
        prove_again=prove_again,
    )
    current: Any = SimpleNamespace(serving=lambda _clocks: left)
    with pytest.raises(RefusedError) as caught:
        Admission(current, cast(Any, None), LimitsTable()).identity(peer)
    return caught.value


@DIALECTS
def test_refusals_for_an_identity_are_known(authority: Authority, path: str) -> None:
    left = identity(authority)
    found = {
        told(refusal_body(one.refusal, path, False, "id"))[0]
        for one in (
            refused(authority, left=None, years=1),
            refused(authority, left=left, years=-1),
            refused(authority, left=left, years=1),
        )
    }
    assert found == {"no_identity", "svid_expired", "svid_not_trusted"}
