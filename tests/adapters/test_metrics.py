"""Metrics: Prometheus reads them, each says what happened, and labels stay few."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.adapters.metrics import CONTENT_TYPE, metrics_page
from sidecar.core.after_rotation import HookResult
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.ledger import Ledger
from sidecar.core.rule_counts import Finished
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.status import FilesStatus, Status
from tests.statuses import (
    AGENT,
    BACKEND,
    FILES,
    HOOK,
    IDENTITY,
    JWT_SVID,
    LOAD,
    NOW,
    POLICY,
    ago,
    but,
    helping,
    serving,
)

Labels = dict[str, str]
EVERYTHING = serving(files=FILES, jwt_svids=(JWT_SVID,), hooks=(HOOK,))


def busy_ledger() -> Ledger:
    """A ledger in which everything has happened that is counted."""
    ledger = Ledger(ago(hours=3), ["traefik"])
    counts = ledger.connected(SpiffeId.parse("spiffe://example.org/traefik"), NOW)
    for status, seconds in ((200, 0.3), (200, 700.0), (502, 0.01)):
        ledger.request_began(counts)
        outcome = "answered" if status < 500 else "backend_failed"
        request = Finished("traefik", status, seconds, 0.02, 10, 100, outcome, served=True)
        ledger.request_finished(counts, request)
    ledger.request_finished(None, Finished(None, 403, 0.001, sent=7, outcome="refused"))
    ledger.denied("endpoint_not_allowed")
    ledger.handshake(HandshakeResult.ACCEPTED)
    ledger.handshake(HandshakeResult.PLAIN_HTTP)
    ledger.rotated(NOW)
    ledger.files_published(NOW, "generation-1", is_new=True)
    ledger.files_failed(NOW, "disk full")
    ledger.hook_done(HookResult("nginx", "", NOW, 1, 0.1, "no such process"))
    ledger.policy_refused(NOW, ["typo"])
    return ledger


def page(status: Status = EVERYTHING, ledger: Ledger | None = None, proc: str = "/proc") -> str:
    return metrics_page(status, ledger or busy_ledger(), proc).decode()


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Name -> labels -> value, as Prometheus' own library reads them."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            name = sample.name.removeprefix("spiffe_sidecar_")
            assert key not in found.setdefault(name, {}), f"{sample.name} {key} twice"
            found[name][key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name][tuple(sorted(labels.items()))]


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        pytest.param("build_info", {"version": "0.1.0", "mode": "http"}, 1, id="build"),
        pytest.param("start_time_seconds", {}, EVERYTHING.started_at.timestamp(), id="start"),
        pytest.param(
            "svid_not_after_timestamp_seconds", {}, IDENTITY.not_after.timestamp(), id="expiry"
        ),
        pytest.param(
            "svid_not_before_timestamp_seconds", {}, IDENTITY.not_before.timestamp(), id="begin"
        ),
        pytest.param("trust_domains", {}, 2, id="bundles"),
        pytest.param("svid_rotations_total", {}, 7, id="rotations"),
        pytest.param("svid_updates_discarded_total", {}, 0, id="discarded"),
        pytest.param("agent_connected", {}, 1, id="agent"),
        pytest.param("serving", {}, 1, id="serving"),
        pytest.param("state", {"state": "ready"}, 1, id="state"),
        pytest.param("state", {"state": "denied"}, 0, id="another state"),
        pytest.param("ready", {}, 1, id="ready"),
        pytest.param("unready", {"reason": "backend_down"}, 0, id="not unready"),
        pytest.param("warning", {"reason": "bad_policy"}, 0, id="no warning"),
        pytest.param("handshakes_total", {"result": "accepted"}, 1, id="handshake"),
        pytest.param("handshakes_total", {"result": "plain_http"}, 1, id="refused handshake"),
        pytest.param("handshakes_total", {"result": "timeout"}, 0, id="none of a kind"),
        pytest.param("connections", {}, LOAD.connections, id="connections"),
        pytest.param("connections_maximum", {}, 4096, id="most connections"),
        pytest.param("requests_in_flight", {}, 3, id="in flight"),
        pytest.param("requests_queued", {}, 1, id="queued"),
        pytest.param(
            "requests_total",
            {"rule": "traefik", "code": "200", "outcome": "answered"},
            2,
            id="requests",
        ),
        pytest.param(
            "requests_total",
            {"rule": "traefik", "code": "502", "outcome": "backend_failed"},
            1,
            id="other status",
        ),
        pytest.param(
            "requests_total",
            {"rule": "", "code": "403", "outcome": "refused"},
            1,
            id="without a rule",
        ),
        pytest.param("request_duration_seconds_count", {"rule": "traefik"}, 3, id="durations"),
        pytest.param("request_duration_seconds_sum", {"rule": "traefik"}, 700.31, id="their sum"),
        pytest.param(
            "request_duration_seconds_bucket", {"rule": "traefik", "le": "0.5"}, 2, id="bucket"
        ),
        pytest.param(
            "request_duration_seconds_bucket", {"rule": "traefik", "le": "600.0"}, 2, id="last one"
        ),
        pytest.param(
            "request_duration_seconds_bucket", {"rule": "traefik", "le": "+Inf"}, 3, id="all"
        ),
        pytest.param("request_first_byte_seconds_count", {"rule": "traefik"}, 3, id="first bytes"),
        pytest.param("bytes_total", {"direction": "received"}, 30, id="received"),
        pytest.param("bytes_total", {"direction": "sent"}, 307, id="sent"),
        pytest.param("denials_total", {"reason": "endpoint_not_allowed"}, 1, id="denial"),
        pytest.param("denials_total", {"reason": "rate_limited"}, 0, id="no denial"),
        pytest.param("cert_files_publications_total", {"result": "ok"}, 1, id="published"),
        pytest.param("cert_files_publications_total", {"result": "failed"}, 1, id="not published"),
        pytest.param(
            "jwt_svid_expiry_timestamp_seconds",
            {"file": "vault.jwt"},
            JWT_SVID.expires.timestamp() if JWT_SVID.expires else 0,
            id="JWT-SVID",
        ),
        pytest.param("hook_runs_total", {"hook": "nginx", "result": "failed"}, 1, id="hook"),
        pytest.param("hook_runs_total", {"hook": "nginx", "result": "ok"}, 0, id="hook, well"),
        pytest.param("policy_reloads_total", {"result": "refused"}, 1, id="bad policy"),
        pytest.param("policy_reloads_total", {"result": "ok"}, 0, id="good policy"),
        pytest.param("policy_rules", {"kind": "allow"}, 3, id="rules"),
        pytest.param("policy_last_reload_successful", {}, 1, id="last reload"),
        pytest.param("backend_up", {}, 1, id="backend"),
    ],
)
def test_page_says_what_happened(name: str, labels: Labels, expected: float) -> None:
    assert value(page(), name, **labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("status", "name", "labels", "expected"),
    [
        pytest.param(
            serving(agent=but(AGENT, state="agent_lost", connected=False)),
            "agent_connected",
            {},
            0,
            id="agent away",
        ),
        pytest.param(
            serving(agent=but(AGENT, state="agent_lost", connected=False)),
            "warning",
            {"reason": "agent_lost"},
            1,
            id="which is a warning",
        ),
        pytest.param(
            serving(backend=but(BACKEND, reason="silent")), "backend_up", {}, 0, id="backend down"
        ),
        pytest.param(serving(backend=but(BACKEND, reason="silent")), "ready", {}, 0, id="unready"),
        pytest.param(
            serving(backend=but(BACKEND, reason="silent")),
            "unready",
            {"reason": "backend_down"},
            1,
            id="and why",
        ),
        pytest.param(
            serving(policy=but(POLICY, problems=("typo",))),
            "policy_last_reload_successful",
            {},
            0,
            id="bad policy",
        ),
        pytest.param(
            serving(agent=but(AGENT, state="expired", serving=False)),
            "state",
            {"state": "expired"},
            1,
            id="expired",
        ),
    ],
)
def test_trouble_is_seen(status: Status, name: str, labels: Labels, expected: float) -> None:
    assert value(page(status), name, **labels) == expected


def test_what_is_not_there_is_not_on_the_page() -> None:
    names = samples(page(serving(identity=None, backend=but(BACKEND, checked_at=None))))
    assert not [name for name in names if name.startswith(("svid_not_", "backend_up", "hook_"))]
    assert "svid_rotations_total" in names


def test_helper_has_files_and_nothing_of_peers() -> None:
    names = samples(page(helping(files=FilesStatus(directory="/certs"))))
    assert {"cert_files_publications_total", "hook_runs_total", "ready"} <= names.keys()
    assert not [
        name
        for name in names
        if name.startswith(("request", "handshake", "backend", "connection", "accept"))
    ]


def test_each_scrape_is_of_its_moment() -> None:
    ledger = Ledger(ago(hours=1))
    assert value(page(serving(), ledger), "ready") == 1
    ledger.handshake(HandshakeResult.LEFT)
    second = page(serving(draining=True), ledger)
    assert value(second, "ready") == 0
    assert value(second, "handshakes_total", result="left") == 1


def test_scrape_in_a_thread_does_not_mind_what_happens_meanwhile() -> None:
    ledger, over, failures = Ledger(NOW), threading.Event(), list[Exception]()

    def scrape() -> None:
        try:
            for _ in range(10):
                metrics_page(serving(), ledger)
        except RuntimeError as exc:
            failures.append(exc)
        over.set()

    thread = threading.Thread(target=scrape)
    thread.start()
    number = 0
    while not over.is_set():
        number += 1
        ledger.policy_loaded(NOW, [f"rule-{number}"])
        ledger.request_finished(None, Finished(f"rule-{number}", number % 600, 0.1, served=True))
    thread.join()
    assert not failures


def test_every_word_is_there_from_the_start() -> None:
    text = page(ledger=Ledger(NOW))
    assert len(samples(text)["handshakes_total"]) == len(HandshakeResult)
    assert set(samples(text)["denials_total"].values()) == {0}
    assert set(samples(text)["hook_runs_total"].values()) == {0}


def test_no_peer_makes_a_series() -> None:
    ledger = busy_ledger()
    before = page(ledger=ledger).count("\n")
    for number in range(1000):
        counts = ledger.connected(SpiffeId.parse(f"spiffe://example.org/p{number}"), NOW)
        ledger.request_began(counts)
        ledger.request_finished(counts, Finished("traefik", 200, 0.1, 0.1, served=True))
        ledger.disconnected(counts, NOW)
        ledger.refused(NOW, f"10.0.0.1:{number}", f"'{number}'", "no")
        ledger.denied("endpoint_not_allowed")
    assert page(ledger=ledger).count("\n") == before
    assert "/p1" not in page(ledger=ledger)


def test_name_of_a_rule_cannot_break_a_line() -> None:
    name = 'a"} 1\\ b'
    ledger = Ledger(NOW, [name])
    ledger.request_finished(None, Finished(name, 200, 0.1, served=True))
    assert (
        value(page(ledger=ledger), "requests_total", rule=name, code="200", outcome="answered") == 1
    )


def test_process_is_on_the_page_where_the_library_can_tell() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc here")
    assert value(page(), "process_resident_memory_bytes") > 1_000_000


def test_page_is_whole_on_a_system_without_proc(tmp_path: Path) -> None:
    text = page(proc=str(tmp_path / "proc"))
    assert "process_" not in text
    assert value(text, "ready") == 1


def test_page_is_whole_where_proc_says_what_the_library_does_not_expect(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "stat").write_text("btime 1700000000\n")
    (tmp_path / "self" / "stat").write_text("1 (x) " + "0 " * 50)
    (tmp_path / "self" / "limits").write_text("Max open files unlimited unlimited files\n")
    assert value(page(proc=str(tmp_path)), "ready") == 1


def test_content_type_is_one_that_every_prometheus_knows() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(page(), id="serving"),
        pytest.param(page(helping()), id="helping"),
        pytest.param(page(serving(identity=None), Ledger(NOW)), id="nothing happened yet"),
        pytest.param(page(serving(mode="stream"), Ledger(NOW)), id="stream"),
    ],
)
def test_promtool_finds_nothing_to_complain_of(text: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (package prometheus) on this host")
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
