"""The snapshot: what the status says is what configuration, ledger and others say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sidecar.core.after_rotation import HookResult
from sidecar.core.config import parse_config
from sidecar.core.identity_state import Clocks, IdentityState, Standing
from sidecar.core.ledger import Ledger
from sidecar.core.policy_file import parse_policy
from sidecar.core.readiness import readiness, report, warnings
from sidecar.core.snapshot import Moment, Process, snapshot
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.status import read_report, to_json
from sidecar.core.svid import Bundles, X509Svid
from tests.ca import Authority

SERVES = """
[listener]
address = "0.0.0.0:6701"
[backend]
address = "127.0.0.1:11434"
[policy]
file = "policy.toml"
[connections]
maximum = 100
"""
POLICY = """
[[allow]]
name = "traefik"
peers = ["spiffe://example.org/traefik"]
endpoints = ["*"]
[[deny]]
name = "old"
peers = ["spiffe://example.org/old"]
"""
FILES = """
[cert_files]
directory = "certs"
[[jwt_svid]]
file = "vault.jwt"
audience = "vault"
extra_audiences = ["other"]
[[after_rotation]]
name = "nginx"
pid_file = "/run/nginx.pid"
[[after_rotation]]
name = "traefik"
touch = "dynamic.toml"
"""


def process(text: str) -> Process:
    return Process(parse_config(text, "sidecar.toml"), "/etc/sidecar", "0.1.0", 4711, "agent")


@pytest.fixture
def svid(authority: Authority) -> X509Svid:
    return authority.svid(not_before=timedelta(minutes=-20), not_after=timedelta(minutes=40))


@pytest.fixture
def bundles(authority: Authority, foreign: Authority) -> Bundles:
    return {one.trust_domain: one.bundle for one in (foreign, authority)}


@pytest.fixture
def now(svid: X509Svid) -> datetime:
    return svid.not_after - timedelta(minutes=40)


@pytest.fixture
def ready(svid: X509Svid, bundles: Bundles, now: datetime) -> Moment:
    standing = Standing(svid.not_after, connected=True)
    policy = parse_policy(POLICY, "policy.toml", "http")
    return Moment(Clocks(now, 1000.0), standing, svid, bundles, policy)


def test_sidecar_that_serves_shows_what_it_is(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now - timedelta(hours=1))
    ledger.listens(["0.0.0.0:6701"])
    ledger.backend_checked(now, None)
    status = snapshot(process(SERVES), ledger, ready)
    assert (status.mode, status.version, status.pid) == ("http", "0.1.0", 4711)
    assert (status.at, status.started_at) == (now, now - timedelta(hours=1))
    assert status.listening == ("0.0.0.0:6701",)
    assert status.backend is not None
    assert (status.backend.address, status.backend.reason) == ("127.0.0.1:11434", "")
    assert status.policy is not None
    assert (status.policy.allow, status.policy.deny) == (1, 1)
    assert status.policy.loaded_at == status.started_at
    assert status.files is None
    assert readiness(status) == warnings(status) == []


def test_identity_is_that_of_the_svid(ready: Moment, svid: X509Svid, now: datetime) -> None:
    identity = snapshot(process(SERVES), Ledger(now), ready).identity
    assert identity is not None
    assert identity.spiffe_id == "spiffe://example.org/workload/model-server"
    assert identity.serial == svid.serial
    assert identity.rotation_expected == now + timedelta(minutes=10)
    assert identity.not_after - identity.not_before == timedelta(hours=1)
    assert identity.trust_domains == ("example.org", "other.org")


def test_our_own_trust_domain_is_the_first_one(
    ready: Moment, authority: Authority, now: datetime
) -> None:
    before = Authority("aaa.org")
    bundles = {one.trust_domain: one.bundle for one in (before, authority)}
    moment = Moment(ready.clocks, ready.standing, ready.svid, bundles)
    identity = snapshot(process(SERVES), Ledger(now), moment).identity
    assert identity is not None
    assert identity.trust_domains == ("example.org", "aaa.org")


def test_without_an_identity_it_starts(now: datetime) -> None:
    standing = Standing(reason="connection refused")
    moment = Moment(Clocks(now, 1000.0), standing)
    status = snapshot(process(SERVES), Ledger(now), moment)
    assert status.identity is None
    assert (status.agent.state, status.agent.serving) == ("starting", False)
    assert "connection refused" in readiness(status)[0].text


def test_state_that_time_has_changed_is_new(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now - timedelta(hours=1))
    ledger.state_changed(IdentityState.READY, now - timedelta(minutes=30))
    assert snapshot(process(SERVES), ledger, ready).agent.since == now - timedelta(minutes=30)
    late = Clocks(now + timedelta(hours=2), 8000.0)
    moment = Moment(late, ready.standing, ready.svid, ready.bundles)
    agent = snapshot(process(SERVES), ledger, moment).agent
    assert (agent.state, agent.since, agent.serving) == ("expired", late.wall, False)


@pytest.mark.parametrize(
    ("monotonic", "serving"),
    [pytest.param(1029.0, True, id="in the grace"), pytest.param(1031.0, False, id="after it")],
)
def test_denied_identity_serves_for_its_grace(
    ready: Moment, now: datetime, monotonic: float, serving: bool
) -> None:
    standing = Standing(ready.standing.not_after, denied_at=1000.0, reason="no entry")
    moment = Moment(Clocks(now, monotonic), standing, ready.svid, ready.bundles)
    agent = snapshot(process(SERVES), Ledger(now), moment).agent
    assert (agent.state, agent.denied, agent.serving) == ("denied", True, serving)


def test_helper_has_files_and_no_peers(ready: Moment, now: datetime) -> None:
    status = snapshot(process(FILES), Ledger(now), ready)
    assert status.mode == "helper"
    assert (status.load, status.backend, status.policy) == (None, None, None)
    assert status.files is not None
    assert status.files.directory == "/etc/sidecar/certs"
    assert [one.name for one in readiness(status)] == ["files_missing", "jwt_svid_missing"]


def test_names_of_the_configuration_are_fit_for_json(ready: Moment, now: datetime) -> None:
    made = report(snapshot(process(SERVES + FILES), Ledger(now), ready))
    assert read_report(to_json(made)) == made


def test_files_show_their_last_publication(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now)
    ledger.files_published(now, "generation-7", is_new=True)
    ledger.files_failed(now + timedelta(minutes=1), "disk full")
    files = snapshot(process(FILES), ledger, ready).files
    assert files is not None
    assert (files.generation, files.published_at, files.publications) == ("generation-7", now, 1)
    assert (files.error, files.failed_at) == ("disk full", now + timedelta(minutes=1))


def test_absolute_directory_is_shown_as_it_is(ready: Moment, now: datetime) -> None:
    text = FILES.replace('"certs"', '"/srv/certs"')
    files = snapshot(process(text), Ledger(now), ready).files
    assert files is not None
    assert files.directory == "/srv/certs"


def test_jwt_svids_are_those_of_the_configuration(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now)
    assert snapshot(process(FILES), ledger, ready).jwt_svids[0].expires is None
    ledger.jwt_svid_written("vault.jwt", now, now + timedelta(minutes=5))
    ledger.jwt_svid_failed("vault.jwt", now, "denied")
    (svid,) = snapshot(process(FILES), ledger, ready).jwt_svids
    assert (svid.file, svid.audiences) == ("vault.jwt", ("vault", "other"))
    assert (svid.expires, svid.error) == (now + timedelta(minutes=5), "denied")


def test_hooks_show_their_last_attempt(ready: Moment, now: datetime) -> None:
    result = HookResult("nginx", "SIGHUP", now, 10, 0.5, "no such process", gives_up=True)
    moment = Moment(
        ready.clocks, ready.standing, ready.svid, ready.bundles, hook_results={"nginx": result}
    )
    nginx, traefik = snapshot(process(FILES), Ledger(now), moment).hooks
    assert (nginx.name, nginx.at, nginx.attempt, nginx.gave_up) == ("nginx", now, 10, True)
    assert nginx.reason == "no such process"
    assert (traefik.name, traefik.action, traefik.at) == ("traefik", "touch of dynamic.toml", None)


def test_policy_shows_its_last_reload(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now)
    ledger.policy_loaded(now + timedelta(minutes=1), ["traefik"])
    ledger.policy_refused(now + timedelta(minutes=2), ["typo"])
    policy = snapshot(process(SERVES), ledger, ready).policy
    assert policy is not None
    assert (policy.file, policy.problems) == ("policy.toml", ("typo",))
    assert policy.loaded_at == now + timedelta(minutes=1)
    assert policy.refused_at == now + timedelta(minutes=2)


def test_peers_are_in_the_order_of_what_they_do(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now)
    away, idle, busy = (
        ledger.connected(SpiffeId.parse(f"spiffe://example.org/{name}"), now)
        for name in ("away", "idle", "busy")
    )
    ledger.disconnected(away, now)
    ledger.request_began(busy)
    ledger.request_began(busy)
    with busy.queue():
        status = snapshot(process(SERVES), ledger, ready)
    assert [peer.name.rpartition("/")[2] for peer in status.peers] == ["busy", "idle", "away"]
    assert status.load is not None
    assert (status.load.connections, status.load.connections_maximum) == (2, 100)
    assert (status.load.running, status.load.queued) == (1, 1)
    assert idle.connections == 1


def test_refusals_tell_a_claim_from_a_proven_peer(ready: Moment, now: datetime) -> None:
    ledger = Ledger(now)
    ledger.refused(now, "10.0.0.1:1", "'spiffe://other.org/x'", "no bundle")
    ledger.refused(now, "10.0.0.2:1", SpiffeId.parse("spiffe://example.org/x"), "no rule")
    proven, claimed = snapshot(process(SERVES), ledger, ready).refusals
    assert (proven.peer, proven.proven) == ("spiffe://example.org/x", True)
    assert (claimed.peer, claimed.proven) == ("'spiffe://other.org/x'", False)


def test_drain_is_shown(ready: Moment, now: datetime) -> None:
    ledger = Ledger(datetime(2026, 1, 1, tzinfo=UTC))
    ledger.backend_checked(now, None)
    ledger.drain_began()
    status = snapshot(process(SERVES), ledger, ready)
    assert [one.name for one in readiness(status)] == ["draining"]
