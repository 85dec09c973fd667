"""A peer's certificate, described for a person; and what is wrong with it, with the remedy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.core.errors import PeerError
from sidecar.core.peer import SvidVerifier
from sidecar.core.policy import PeerPattern
from sidecar.core.probe.peer import not_trusted, peer_certificate, unexpected_id
from sidecar.core.probe.report import Fault, Hop
from sidecar.core.spiffe_id import SpiffeId
from tests.ca import Authority, Leaf

OURS, THEIRS = Authority("example.org"), Authority("other.org")
IMPOSTOR = Authority("example.org")
ID = "spiffe://example.org/workload/model-server"


def refused(authority: Authority, leaf: Leaf) -> Fault:
    """Have the real verifier refuse a leaf, and tell the fault."""
    issued, now = authority.sign(leaf), datetime.now(UTC)
    verifier = SvidVerifier({OURS.trust_domain: OURS.bundle})
    with pytest.raises(PeerError) as caught:
        verifier.verify(issued.chain, now)
    seen = peer_certificate(issued.chain[0])
    return not_trusted(seen, caught.value.message, caught.value.result, OURS.trust_domain, now)


GOOD = OURS.leaf()
WEB = replace(GOOD, uris=(), dns=("models.ravenhelm.dev", "www.ravenhelm.dev"))


@pytest.mark.parametrize(
    ("authority", "leaf", "code", "says"),
    [
        pytest.param(OURS, WEB, "web_certificate", "models.ravenhelm.dev", id="a web server"),
        pytest.param(OURS, replace(GOOD, uris=()), "no_svid", "no name", id="no name at all"),
        pytest.param(
            OURS, replace(GOOD, uris=("https://example.org/x",)), "no_svid", "https://", id="a URL"
        ),
        pytest.param(
            OURS, replace(GOOD, uris=(ID, ID + "2")), "no_svid", "2 URI names", id="two IDs"
        ),
        pytest.param(
            OURS,
            replace(GOOD, uris=("spiffe://example.org",)),
            "no_svid",
            "not a work",
            id="no path",
        ),
        pytest.param(THEIRS, THEIRS.leaf(), "unknown_trust_domain", "other.org", id="foreign"),
        pytest.param(IMPOSTOR, GOOD, "not_proven", ID, id="our ID by a foreign authority"),
        pytest.param(
            OURS,
            replace(GOOD, not_before=timedelta(-2), not_after=timedelta(-1)),
            "expired",
            ID,
            id="expired",
        ),
        pytest.param(
            OURS,
            replace(GOOD, not_before=timedelta(1), not_after=timedelta(2)),
            "not_yet_valid",
            ID,
            id="not yet valid",
        ),
    ],
)
def test_what_is_wrong_with_a_peer_is_told_apart(
    authority: Authority, leaf: Leaf, code: str, says: str
) -> None:
    fault = refused(authority, leaf)
    assert (fault.hop, fault.code) == (Hop.PEER, code)
    assert says in fault.message
    assert fault.hint


def test_web_servers_certificate_is_told_with_its_issuer() -> None:
    fault = refused(OURS, WEB)
    assert "www.ravenhelm.dev" in fault.message
    assert "'SPIFFE'" in fault.message  # the name of the test authority
    assert "no SVID" in fault.message


def test_moments_of_difference_are_told_to_be_moments() -> None:
    soon = refused(OURS, replace(GOOD, not_before=timedelta(seconds=60)))
    later = refused(OURS, replace(GOOD, not_before=timedelta(hours=2), not_after=timedelta(1)))
    assert "moments" in soon.hint
    assert "moments" not in later.hint


def test_certificate_that_was_not_seen_is_refused_all_the_same() -> None:
    now = datetime.now(UTC)
    fault = not_trusted(None, "no certificate", "bad_certificate", OURS.trust_domain, now)
    assert (fault.hop, fault.code) == (Hop.PEER, "no_certificate")


def test_description_has_id_serial_life_and_names() -> None:
    svid = OURS.svid(dns=("host.example",))
    seen = peer_certificate(svid.leaf)
    assert (seen.spiffe_id, seen.serial, seen.not_after) == (ID, svid.serial, svid.not_after)
    assert seen.names == (f"URI:{ID}", "host.example")


def test_names_of_a_certificate_are_few_and_made_printable() -> None:
    many = tuple(f"h{number}.example" for number in range(100))
    seen = peer_certificate(OURS.svid(dns=many).leaf)
    assert len(seen.names) <= 5
    evil = peer_certificate(
        OURS.sign(replace(GOOD, uris=("x:\x1b[2J",), subject="\x1b]0;x\x07")).chain[0]
    )
    assert evil.spiffe_id == ""
    assert all(name.isprintable() for name in evil.names)


def test_unexpected_peer_is_named_against_what_was_expected() -> None:
    found = SpiffeId.parse("spiffe://example.org/workload/other")
    patterns = tuple(map(PeerPattern.parse, (ID, "spiffe://example.org/gpu/*")))
    fault = unexpected_id(found, patterns, OURS.trust_domain)
    assert (fault.hop, fault.code) == (Hop.PEER, "unexpected_id")
    assert f"{found}, expected {ID} or spiffe://example.org/gpu/*" in fault.message


def test_peer_of_another_trust_domain_is_told_how_to_be_expected() -> None:
    found = SpiffeId.parse("spiffe://partner.org/gateway")
    fault = unexpected_id(found, (), OURS.trust_domain)
    assert "any ID of example.org" in fault.message
    assert f"--expect {found}" in fault.hint


@pytest.mark.parametrize(
    ("found", "put"),
    [
        pytest.param(b"\x0c\x05SPIRE", b"\x01\x05SPIRE", id="its subject"),
        pytest.param(b"\x0c\x06SPIFFE", b"\x01\x06SPIFFE", id="its issuer"),
        pytest.param(b"\x86\x01x", b"\xa6\x01x", id="its names"),
    ],
)
def test_certificate_that_cannot_be_read_in_part_is_described(found: bytes, put: bytes) -> None:
    der = OURS.sign(replace(GOOD, uris=("x",))).chain[0].public_bytes(Encoding.DER)
    assert found in der
    odd = x509.load_der_x509_certificate(der.replace(found, put))
    seen = peer_certificate(odd)
    assert seen.spiffe_id == ""
    assert all(text.isprintable() for text in (*seen.names, seen.issuer))
