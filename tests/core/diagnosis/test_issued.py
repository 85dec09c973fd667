"""What is told of an update: the times and the proof of each SVID apart, and never a key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.diagnosis.issued import Answer, Said, answer
from sidecar.core.identity_event import Denied, Lost, Unreadable, Updated
from sidecar.core.identity_update import RawSvid, RawUpdate
from sidecar.core.svid import TrustBundle, X509Svid
from tests.ca import Authority

OURS = Authority("example.org")
FOREIGN = Authority("example.org")
PARTNER = Authority("partner.example")
HOUR = timedelta(hours=1)


def der(bundle: TrustBundle) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in bundle.authorities)


def raw(svid: X509Svid, **changes: bytes | str) -> RawSvid:
    key = svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    chain = b"".join(one.public_bytes(Encoding.DER) for one in svid.chain)
    values = {"spiffe_id": str(svid.spiffe_id), "chain": chain, "private_key": key}
    return RawSvid(**({**values, "bundle": der(OURS.bundle)} | changes))  # type: ignore[arg-type]


def told(*svids: RawSvid, federated: dict[str, bytes] | None = None) -> Answer:
    return answer(Updated(RawUpdate(svids, federated or {})), datetime.now(UTC))


def test_a_good_update_is_told_whole() -> None:
    svid = OURS.svid()
    said = told(raw(svid), federated={"partner.example": der(PARTNER.bundle)})
    (one,) = said.svids
    assert (said.said, said.reason, one.fault) == (Said.ISSUED, "", "")
    assert (one.spiffe_id, one.serial) == (str(svid.spiffe_id), svid.serial)
    assert one.not_after == svid.not_after
    assert [(b.trust_domain, b.valid, b.authorities) for b in said.bundles] == [
        ("example.org", 1, 1),
        ("partner.example", 1, 1),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"not_before": -2 * HOUR, "not_after": -HOUR}, id="expired"),
        pytest.param({"not_before": HOUR, "not_after": 2 * HOUR}, id="not valid yet"),
    ],
)
def test_time_alone_is_no_fault_of_the_proof(changes: dict[str, Any]) -> None:
    (one,) = told(raw(OURS.svid(**changes))).svids
    assert one.fault == ""


@pytest.mark.parametrize(
    "svid",
    [
        pytest.param(raw(FOREIGN.svid()), id="signed by somebody else"),
        pytest.param(raw(OURS.svid(), private_key=raw(OURS.svid()).private_key), id="other key"),
        pytest.param(raw(OURS.svid(), chain=b"no certificate"), id="no certificate"),
        pytest.param(raw(OURS.svid(), chain=b""), id="empty chain"),
        pytest.param(raw(OURS.svid(), spiffe_id="spiffe://example.org/other"), id="another ID"),
        pytest.param(raw(OURS.svid(), spiffe_id="nonsense"), id="no SPIFFE ID"),
        pytest.param(raw(OURS.svid(), bundle=b""), id="empty bundle"),
        pytest.param(raw(OURS.svid(), bundle=b"nonsense"), id="no bundle"),
    ],
)
def test_what_does_not_prove_has_a_fault(svid: RawSvid) -> None:
    said = told(svid)
    assert said.said is Said.ISSUED
    assert said.svids[0].fault


def test_one_bad_svid_does_not_hide_the_next_one() -> None:
    faults = [bool(one.fault) for one in told(raw(FOREIGN.svid()), raw(OURS.svid())).svids]
    assert faults == [True, False]


def test_a_bad_federated_bundle_costs_only_itself() -> None:
    said = told(raw(OURS.svid()), federated={"partner.example": b"nonsense"})
    assert [one.trust_domain for one in said.bundles] == ["example.org"]
    assert "partner.example" in said.reason
    assert said.svids[0].fault == ""


@pytest.mark.parametrize(
    ("event", "said"),
    [
        pytest.param(Denied("no identity issued"), Said.DENIED, id="denied"),
        pytest.param(Lost("UNAVAILABLE"), Said.LOST, id="away"),
        pytest.param(Lost("UNIMPLEMENTED", useless=True), Said.UNREADABLE, id="another service"),
        pytest.param(Unreadable("8 bytes"), Said.UNREADABLE, id="unreadable"),
        pytest.param(Updated(RawUpdate((), {})), Said.UNREADABLE, id="without an SVID"),
    ],
)
def test_other_events_say_what_they_are(event: Denied, said: Said) -> None:
    assert answer(event, datetime.now(UTC)).said is said


def test_no_key_is_in_what_is_told() -> None:
    one = raw(OURS.svid())
    text = msgspec.json.encode(told(one))
    assert msgspec.json.decode(text, type=Answer) == told(one)
    for secret in (one.private_key, raw(OURS.svid()).private_key):
        assert secret not in text
    assert b"private" not in text.lower()
