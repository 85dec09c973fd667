from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.identity import IdentityFacts, judge_identity
from sidecar.core.diagnosis.issued import Answer, IssuedBundle, IssuedSvid, Said
from sidecar.core.identity_update import SvidChoice
from sidecar.core.spiffe_id import SpiffeId
from tests.core.diagnosis.good import IDENTITY, NOW, issued, svid, troubles

FAIL, WARN = Verdict.FAIL, Verdict.WARN
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
OTHER = SpiffeId.parse("spiffe://example.org/workload/other")


def with_svid(**changes: Any) -> IdentityFacts:
    return replace(IDENTITY, answer=issued(svid(**changes)))


def with_bundle(*bundles: IssuedBundle) -> IdentityFacts:
    return replace(IDENTITY, answer=issued(bundles=bundles))


def test_a_good_identity_is_content() -> None:
    assert troubles(judge_identity(IDENTITY)) == {}


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(
            replace(IDENTITY, choice=SvidChoice(OTHER)), "identity.spiffe_id", FAIL, id="another ID"
        ),
        pytest.param(
            replace(IDENTITY, choice=SvidChoice(None, "internal")),
            "identity.spiffe_id",
            FAIL,
            id="no SVID with this hint",
        ),
        pytest.param(
            replace(IDENTITY, answer=issued(svid(), svid(spiffe_id=str(OTHER)))),
            "identity.spiffe_id",
            WARN,
            id="several and no choice",
        ),
        pytest.param(
            with_svid(not_before=NOW + MINUTE, not_after=NOW + 60 * MINUTE),
            "identity.clock",
            FAIL,
            id="not valid yet",
        ),
        pytest.param(
            with_svid(not_before=NOW - 50 * MINUTE, not_after=NOW + 10 * MINUTE),
            "identity.rotation",
            WARN,
            id="three quarters of its life are over",
        ),
        pytest.param(with_svid(fault="not proven"), "identity.chain", FAIL, id="chain"),
        pytest.param(
            with_bundle(IssuedBundle("example.org", 0, 2, NOW - MINUTE)),
            "identity.bundle",
            FAIL,
            id="all authorities have expired",
        ),
        pytest.param(
            with_bundle(IssuedBundle("example.org", 1, 1, NOW + 30 * MINUTE)),
            "identity.bundle",
            WARN,
            id="the last authority ends soon",
        ),
        pytest.param(
            with_bundle(IssuedBundle("other.org", 1, 1, NOW + DAY)),
            "identity.bundle",
            FAIL,
            id="no bundle of our own trust domain",
        ),
        pytest.param(
            replace(IDENTITY, federated=("example.org", "partner.example")),
            "identity.federation",
            FAIL,
            id="the policy names a trust domain without a bundle",
        ),
        pytest.param(
            replace(IDENTITY, from_files=True, answer=Answer(Said.LOST, "no such file")),
            "identity.files",
            FAIL,
            id="files that are not there",
        ),
    ],
)
def test_each_fault_has_one_name(facts: IdentityFacts, name: str, verdict: Verdict) -> None:
    assert troubles(judge_identity(facts)) == {name: verdict}


def test_an_expired_svid_is_also_late_which_follows_from_it() -> None:
    facts = with_svid(not_before=NOW - 61 * MINUTE, not_after=NOW - MINUTE)
    assert troubles(judge_identity(facts)) == {
        "identity.lifetime": FAIL,
        "identity.rotation": WARN,
    }


def test_a_bundle_of_a_federated_trust_domain_is_seen() -> None:
    ours = IssuedBundle("example.org", 1, 1, NOW + DAY)
    partner = IssuedBundle("partner.example", 1, 1, NOW + DAY)
    facts = replace(with_bundle(ours, partner), federated=("partner.example",))
    assert troubles(judge_identity(facts)) == {}
    empty = replace(partner, authorities=0)
    facts = replace(with_bundle(ours, empty), federated=("partner.example",))
    assert troubles(judge_identity(facts)) == {"identity.federation": FAIL}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Unknown("late"), id="unknown"),
        pytest.param(Answer(Said.DENIED, "no identity issued"), id="denied"),
        pytest.param(Answer(Said.LOST, "gone"), id="lost"),
    ],
)
def test_without_an_identity_all_is_skipped(answer: Answer | Unknown) -> None:
    found = list(judge_identity(replace(IDENTITY, answer=answer)))
    assert {one.verdict for one in found} == {Verdict.SKIPPED}
    assert len(found) == 8


def test_a_certificate_that_cannot_be_read_is_a_fault_of_the_chain() -> None:
    facts = replace(IDENTITY, answer=issued(IssuedSvid(str(OTHER), fault="not a DER certificate")))
    assert troubles(judge_identity(facts)) == {"identity.chain": FAIL}
