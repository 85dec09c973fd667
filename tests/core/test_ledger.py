"""The ledger: what is told is counted once, and nothing of it grows with what peers do."""

from __future__ import annotations

import ast
import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import sidecar
from sidecar.adapters.tls import CurrentIdentity
from sidecar.core.after_rotation import HookResult
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.identity_state import IdentityState
from sidecar.core.ledger import (
    BACKEND_FAILURES,
    DENIALS,
    MAX_PROBLEMS,
    MAX_TEXT,
    OTHER_DENIALS,
    Ledger,
)
from sidecar.core.rule_counts import Finished
from sidecar.core.spiffe_id import SpiffeId
from sidecar.reloader import ConfigInForce

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
TRAEFIK = SpiffeId.parse("spiffe://example.org/traefik")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(NOON, ["a"])


# Peers and their requests.


def test_request_is_counted_for_its_peer_and_its_rule(ledger: Ledger) -> None:
    counts = ledger.connected(TRAEFIK, NOON)
    ledger.request_began(counts)
    assert (counts.running, counts.requests) == (1, 0)
    request = Finished("a", 200, 2.0, first_byte_seconds=0.2, received=10, sent=90, served=True)
    ledger.request_finished(counts, request)
    assert (counts.running, counts.requests, counts.refused) == (0, 1, 0)
    assert (counts.received, counts.sent) == (ledger.received, ledger.sent) == (10, 90)
    assert [name for name, _ in ledger.rules.items()] == ["a"]


def test_refused_request_is_counted_as_one_of_the_peer(ledger: Ledger) -> None:
    counts = ledger.connected(TRAEFIK, NOON)
    ledger.request_began(counts)
    ledger.denied("endpoint_not_allowed", counts)
    ledger.request_finished(counts, Finished(None, 403, 0.001, sent=50))
    assert (counts.requests, counts.refused, counts.running) == (1, 1, 0)
    assert ledger.sent == 50


def test_request_that_the_backend_failed_is_counted_apart_from_refusals(ledger: Ledger) -> None:
    counts = ledger.connected(TRAEFIK, NOON)
    for outcome in ("answered", "backend_failed", "peer_left", "cut"):
        ledger.request_began(counts)
        ledger.request_finished(counts, Finished("a", 502, 0.1, outcome=outcome, served=True))
    assert (counts.requests, counts.refused, counts.failed) == (4, 0, 1)


def test_answer_of_our_own_refuses_nobody(ledger: Ledger) -> None:
    counts = ledger.connected(TRAEFIK, NOON)
    for status in (200, 204, 503):  # health, a preflight
        ledger.request_began(counts)
        ledger.request_finished(counts, Finished(None, status, 0.001))
    assert (counts.requests, counts.refused) == (3, 0)


def test_request_of_a_stranger_is_counted_for_no_peer(ledger: Ledger) -> None:
    ledger.request_began(None)
    ledger.request_finished(None, Finished(None, 403, 0.001, sent=50))
    assert list(ledger.peers) == []
    assert ledger.sent == 50


def test_stream_counts_bytes_without_requests(ledger: Ledger) -> None:
    counts = ledger.connected(TRAEFIK, NOON)
    ledger.moved(counts, 10, 20)
    ledger.disconnected(counts, LATER)
    (peer,) = ledger.peers
    assert (peer.received, peer.sent, peer.requests, peer.connections) == (10, 20, 0, 0)
    assert list(ledger.rules.items()) == []


def test_every_handshake_has_one_result(ledger: Ledger) -> None:
    for result in HandshakeResult:
        ledger.handshake(result)
    ledger.handshake(HandshakeResult.ACCEPTED)
    assert ledger.handshakes[HandshakeResult.ACCEPTED] == 2
    assert sum(ledger.handshakes.values()) == len(HandshakeResult) + 1


def test_denial_that_nobody_knows_makes_no_word_of_its_own(ledger: Ledger) -> None:
    for code in ("rate_limited", "whatever", "whatever else"):
        ledger.denied(code)
    assert dict(ledger.denials) == {"rate_limited": 1, OTHER_DENIALS: 2}


def test_failure_of_the_backend_denies_nobody(ledger: Ledger) -> None:
    counts = ledger.connected(TRAEFIK, NOON)
    for code in BACKEND_FAILURES:
        ledger.denied(code, counts)
    assert not ledger.denials
    assert not counts.refused


def codes_of_our_answers() -> set[str]:
    """Every code that a refusal anywhere in the package is made with."""
    found = set()
    for path in Path(sidecar.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("Refusal", "HttpError") and len(node.args) >= 2:
                code = node.args[1]
                found |= {str(code.value)} if isinstance(code, ast.Constant) else set()
    return found


def test_every_code_that_a_peer_can_get_is_known() -> None:
    found = codes_of_our_answers()
    assert {"rate_limited", "busy", "bad_request", "backend_silent"} <= found
    assert found <= DENIALS | BACKEND_FAILURES


def test_whatever_peers_do_the_ledger_stays_small(ledger: Ledger) -> None:
    for number in range(3000):
        peer = SpiffeId.parse(f"spiffe://example.org/{number}")
        counts = ledger.connected(peer, NOON)
        ledger.request_began(counts)
        ledger.request_finished(counts, Finished(f"r{number}", number, 0.1, served=True))
        ledger.disconnected(counts, NOON)
        ledger.refused(NOON, f"10.0.0.1:{number}", f"'{number}'", "no")
        ledger.denied(f"code-{number}")
    assert len(list(ledger.peers)) == 257
    assert len(ledger.refusals) == 20
    assert len(ledger.denials) == 1
    ((name, rule),) = ledger.rules.items()
    assert name == "other"
    assert len(rule.codes) < 80


# Ourselves.


def test_state_is_since_its_first_moment(ledger: Ledger) -> None:
    assert (ledger.state, ledger.state_since) == (IdentityState.STARTING, NOON)
    ledger.state_changed(IdentityState.READY, LATER)
    ledger.state_changed(IdentityState.READY, LATER + timedelta(minutes=1))
    assert (ledger.state, ledger.state_since) == (IdentityState.READY, LATER)


def test_updates_are_counted_by_what_became_of_them(ledger: Ledger) -> None:
    ledger.rotated(NOON)
    ledger.update_discarded(NOON, "bad key")
    ledger.rotated(LATER)
    assert (ledger.updates.good, ledger.updates.bad) == (2, 1)


def test_files_that_fail_are_wrong_until_they_are_right_again(ledger: Ledger) -> None:
    ledger.files_published(NOON, "generation-1", is_new=True)
    ledger.files_failed(LATER, "disk full")
    assert (ledger.files.error, ledger.files.good_at, ledger.generation) == (
        "disk full",
        NOON,
        "generation-1",
    )
    ledger.files_published(LATER, "generation-1", is_new=False)
    assert (ledger.files.error, ledger.files.good, ledger.files.good_at) == ("", 1, NOON)


def test_jwt_svid_is_known_by_its_file(ledger: Ledger) -> None:
    ledger.jwt_svid_written("vault.jwt", NOON, LATER)
    ledger.jwt_svid_failed("other.jwt", NOON, "denied")
    assert ledger.jwt_expires == {"vault.jwt": LATER}
    assert ledger.jwt_svids["other.jwt"].error == "denied"
    assert not ledger.jwt_svids["vault.jwt"].error


def test_failure_without_a_reason_is_a_failure(ledger: Ledger) -> None:
    ledger.files_failed(NOON, "")
    assert ledger.files.error
    ledger.policy_refused(NOON, [])
    assert ledger.policy.error
    assert ledger.policy_problems


@pytest.mark.parametrize(
    ("result", "word"),
    [
        pytest.param(HookResult("nginx", "", NOON, 1, 0.1), "ok", id="well"),
        pytest.param(HookResult("nginx", "", NOON, 1, 0.1, "exit 1"), "failed", id="failed"),
        pytest.param(
            HookResult("nginx", "", NOON, 9, 0.1, "exit 1", gives_up=True), "gave_up", id="last try"
        ),
    ],
)
def test_hook_is_counted_by_how_it_went(ledger: Ledger, result: HookResult, word: str) -> None:
    ledger.hook_done(result)
    assert dict(ledger.hook_runs) == {("nginx", word): 1}


def test_policy_that_is_refused_is_told_until_one_is_loaded(ledger: Ledger) -> None:
    ledger.policy_refused(NOON, ["one", "two"])
    assert list(ledger.policy_problems) == ["one", "two"]
    assert (ledger.policy.good, ledger.policy.bad, ledger.policy.bad_at) == (0, 1, NOON)
    ledger.policy_loaded(LATER, ["a", "b"])
    assert not ledger.policy_problems
    assert (ledger.policy.good, ledger.policy.good_at, ledger.policy.error) == (1, LATER, "")


def test_rules_of_a_new_policy_are_counted_by_their_names(ledger: Ledger) -> None:
    ledger.policy_loaded(NOON, ["b"])
    ledger.request_finished(None, Finished("b", 200, 0.1, served=True))
    assert [name for name, _ in ledger.rules.items()] == ["b"]


def test_problems_are_few_and_short(ledger: Ledger) -> None:
    ledger.policy_refused(NOON, ["x" * 10_000] * 1000)
    assert len(ledger.policy_problems) == MAX_PROBLEMS
    assert {len(text) for text in ledger.policy_problems} == {MAX_TEXT}
    assert len(ledger.policy.error) == MAX_TEXT


def test_backend_is_up_or_down_since_the_first_time_it_was_found_so(ledger: Ledger) -> None:
    def at(minute: int) -> datetime:
        return NOON + timedelta(minutes=minute)

    seen = []
    for minute, reason in enumerate([None, None, "refused", "silent", None]):
        ledger.backend_checked(at(minute), reason)
        assert ledger.backend is not None
        seen.append((ledger.backend.reason, ledger.backend.since))
    assert seen == [
        (None, at(0)),
        (None, at(0)),
        ("refused", at(2)),
        ("silent", at(2)),
        (None, at(4)),
    ]


def test_drain_closes_the_port(ledger: Ledger) -> None:
    ledger.listens(["0.0.0.0:6701"])
    assert list(ledger.listening) == ["0.0.0.0:6701"]
    ledger.drain_began()
    assert ledger.draining
    assert not ledger.listening


@pytest.mark.parametrize("holder", [CurrentIdentity, ConfigInForce])
def test_who_writes_things_down_is_given_the_ledger(holder: type) -> None:
    ledger = inspect.signature(holder).parameters["ledger"]
    assert ledger.default is inspect.Parameter.empty, "a ledger that no status shows"
