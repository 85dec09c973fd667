"""One message of the Workload API: taken whole, or refused whole with the reason.

The rows are the fault table of `research/spiffe-client.md`, section 3: whatever is wrong with a
mandatory part discards the message; a bad federated bundle costs its own trust domain only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.errors import AgentProtocolError
from sidecar.core.identity_update import (
    IdentityUpdate,
    RawSvid,
    RawUpdate,
    SvidChoice,
    choose,
    identity_update,
)
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid
from tests.ca import BOTH_USAGES, Authority, key_usage, rsa_key

SERVER_AUTH = (BOTH_USAGES[0],)
OTHER = "spiffe://other.org"
OURS = "spiffe://example.org/workload/model-server"


def der(*chain: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in chain)


def pkcs8(svid: X509Svid) -> bytes:
    return svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def raw(svid: X509Svid, bundle: TrustBundle) -> RawSvid:
    """The message's fields for a good SVID; tests replace one."""
    authorities = der(*bundle.authorities)
    return RawSvid(str(svid.spiffe_id), der(*svid.chain), pkcs8(svid), authorities, svid.hint)


def replaced(good: RawSvid, name: str, value: Any) -> RawSvid:
    return replace(good, **{name: value})


def taken(
    *svids: RawSvid, federated: Mapping[str, bytes] = MappingProxyType({}), crls: int = 0
) -> IdentityUpdate:
    return identity_update(RawUpdate(svids, federated, crls), datetime.now(UTC))


def refused(*svids: RawSvid, federated: Mapping[str, bytes] = MappingProxyType({})) -> str:
    with pytest.raises(AgentProtocolError) as error:
        taken(*svids, federated=federated)
    return error.value.message


@pytest.fixture
def good(authority: Authority) -> RawSvid:
    return raw(authority.svid(), authority.bundle)


def test_good_message_is_taken(authority: Authority, foreign: Authority) -> None:
    svid = authority.svid(hint="internal")
    update = taken(raw(svid, authority.bundle), federated={OTHER: der(foreign.certificate)})
    assert update.notes == ()
    (read,) = update.svids
    assert (read.spiffe_id, read.chain, read.hint) == (svid.spiffe_id, svid.chain, "internal")
    assert pkcs8(read) == pkcs8(svid)
    assert update.bundles == {
        TrustDomain("example.org"): authority.bundle,
        TrustDomain("other.org"): foreign.bundle,
    }


def test_chain_with_an_intermediate_is_taken(authority: Authority) -> None:
    intermediate = authority.intermediate()
    issued = intermediate.sign(authority.leaf(), intermediate)
    svid = X509Svid(SpiffeId.parse(OURS), issued.chain, issued.key)
    assert taken(raw(svid, authority.bundle)).svids[0].chain == issued.chain


def test_bundle_of_old_and_new_authority_is_taken(authority: Authority) -> None:
    newer = Authority("example.org")
    both = TrustBundle(authority.trust_domain, (authority.certificate, newer.certificate))
    for one in (authority, newer):
        assert taken(raw(one.svid(), both)).bundles == {authority.trust_domain: both}


@pytest.mark.parametrize(
    "key",
    [pytest.param(rsa_key(2048), id="RSA"), pytest.param(ed25519.Ed25519PrivateKey.generate())],
)
def test_key_kind_is_the_agents_choice(authority: Authority, key: object) -> None:
    assert taken(raw(authority.svid(key=key), authority.bundle)).svids


def test_svids_of_two_trust_domains_bring_a_bundle_each(
    authority: Authority, foreign: Authority
) -> None:
    update = taken(raw(authority.svid(), authority.bundle), raw(foreign.svid("/a"), foreign.bundle))
    assert set(update.bundles) == {authority.trust_domain, foreign.trust_domain}
    assert [str(svid.spiffe_id) for svid in update.svids] == [OURS, "spiffe://other.org/a"]


def test_message_without_svids_is_refused() -> None:
    assert refused() == "the update has no SVID"


@pytest.mark.parametrize("field", ["spiffe_id", "chain", "private_key", "bundle"])
def test_empty_mandatory_field_is_refused_by_name(good: RawSvid, field: str) -> None:
    message = refused(replaced(good, field, "" if field == "spiffe_id" else b""))
    assert f"the mandatory field {field} is empty" in message


def test_hint_is_the_only_optional_field(good: RawSvid) -> None:
    assert taken(replace(good, hint="")).svids[0].hint == ""


GARBAGE = [
    pytest.param(lambda good: b"garbage-of-the-agent", id="garbage"),
    pytest.param(lambda good: good[:-1], id="last byte missing"),
    pytest.param(lambda good: good[:40], id="cut short"),
    pytest.param(lambda good: good + b"\x00", id="a byte too many"),
    pytest.param(lambda good: good + b"\x30", id="beginning of another"),
    pytest.param(lambda good: b"\x30\x80" + good[4:] + b"\x00\x00", id="indefinite length"),
    pytest.param(lambda good: good[:4] + b"\xff" * (len(good) - 4), id="garbage in a sequence"),
    pytest.param(lambda good: b"-----BEGIN CERTIFICATE-----\n", id="PEM"),
]


@pytest.mark.parametrize("field", ["chain", "private_key", "bundle"])
@pytest.mark.parametrize("spoil", GARBAGE)
def test_field_that_cannot_be_read_is_refused(
    good: RawSvid, field: str, spoil: Callable[[bytes], bytes]
) -> None:
    spoiled = replaced(good, field, spoil(getattr(good, field)))
    assert OURS in refused(spoiled)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param(
            {"basic_constraints": x509.BasicConstraints(ca=True, path_length=None)},
            "cA|CA",
            id="leaf is an authority",
        ),
        pytest.param({"key_usage": key_usage(key_cert_sign=True)}, "keyCertSign", id="keyCertSign"),
        pytest.param({"key_usage": key_usage(crl_sign=True)}, "cRLSign", id="cRLSign"),
        pytest.param({"key_usage": None}, "2.5.29.15|keyUsage", id="no keyUsage"),
        pytest.param({"key_usage_critical": False}, "critical", id="keyUsage not critical"),
        pytest.param(
            {"key_usage": key_usage(digital_signature=False, key_agreement=True)},
            "digitalSignature",
            id="no digitalSignature",
        ),
        pytest.param({"extended_key_usage": SERVER_AUTH}, "clientAuth", id="EKU serverAuth only"),
        pytest.param({"uris": ()}, "0 URI", id="no URI"),
        pytest.param({"uris": (OURS, OURS)}, "2 URI", id="the ID twice"),
        pytest.param({"uris": (OURS, "https://example.org")}, "2 URI", id="two URIs"),
        pytest.param({"uris": (OURS + "\n",)}, "not a SPIFFE ID", id="newline in the certificate"),
        pytest.param({"uris": ("https://example.org/a",)}, "not a SPIFFE ID", id="another URI"),
        pytest.param({"uris": ("spiffe://example.org",)}, "trust domain", id="root ID"),
        pytest.param(
            {"uris": ("spiffe://example.org/other",)}, "certificate says", id="another path"
        ),
        pytest.param({"uris": (OURS + "2",)}, "says", id="longer path"),
        pytest.param({"uris": ("spiffe://other.org/a",)}, "bundle", id="another trust domain"),
        pytest.param(
            {"not_before": timedelta(hours=-2), "not_after": timedelta(seconds=-1)},
            "expired",
            id="expired a second ago",
        ),
        pytest.param({"not_before": timedelta(minutes=1)}, "not valid before", id="of the future"),
        pytest.param({"key": rsa_key(1024)}, "1024", id="RSA of 1024 bits"),
        pytest.param({"unknown_critical_extension": True}, "critical|extension", id="unknown rule"),
    ],
)
def test_leaf_that_breaks_a_rule_is_refused(
    authority: Authority, changes: dict[str, Any], reason: str
) -> None:
    message = refused(raw(authority.svid(**changes), authority.bundle))
    assert message.startswith(f"SVID {OURS}: ")
    assert any(word in message for word in reason.split("|"))


@pytest.mark.parametrize(
    "spiffe_id",
    [
        pytest.param("spiffe://example.org/other", id="another path"),
        pytest.param("spiffe://example.org/Workload/model-server", id="another case"),
        pytest.param("spiffe://other.org/workload/model-server", id="another trust domain"),
        pytest.param("spiffe://example.org", id="the trust domain itself"),
        pytest.param("spiffe://example.org/", id="empty path"),
        pytest.param("spiffe://Example.org/workload/model-server", id="upper case trust domain"),
        pytest.param(OURS + "\n", id="trailing newline"),
        pytest.param(OURS + "/", id="trailing slash"),
        pytest.param("workload/model-server", id="no ID"),
        pytest.param("\x00", id="NUL"),
    ],
)
def test_spiffe_id_that_is_not_the_certificates_is_refused(good: RawSvid, spiffe_id: str) -> None:
    refused(replace(good, spiffe_id=spiffe_id))


def test_private_key_of_another_svid_is_refused(authority: Authority, good: RawSvid) -> None:
    message = refused(replace(good, private_key=pkcs8(authority.svid())))
    assert "private key does not belong to the certificate" in message


def test_chain_that_begins_with_the_authority_is_refused(
    authority: Authority, good: RawSvid
) -> None:
    refused(replace(good, chain=der(authority.certificate) + good.chain))


def test_svid_of_an_authority_that_its_bundle_lacks_is_refused(authority: Authority) -> None:
    stranger = Authority("example.org")
    assert "bundle" in refused(raw(stranger.svid(), authority.bundle))


def test_intermediate_left_out_of_the_chain_is_refused(authority: Authority) -> None:
    issued = authority.intermediate().sign(authority.leaf())
    svid = X509Svid(SpiffeId.parse(OURS), issued.chain, issued.key)
    refused(raw(svid, authority.bundle))


def test_svid_is_never_proven_by_a_federated_bundle(
    authority: Authority, foreign: Authority
) -> None:
    forged = foreign.svid(uris=(OURS,))
    svid = X509Svid(SpiffeId.parse(OURS), forged.chain, forged.private_key)
    refused(raw(svid, authority.bundle), federated={OTHER: der(foreign.certificate)})


@pytest.mark.parametrize("more", [False, True], ids=["alone", "beside the authority"])
def test_leaf_as_its_own_bundle_is_refused(authority: Authority, more: bool) -> None:
    svid = authority.svid()
    authorities = (svid.leaf, authority.certificate) if more else (svid.leaf,)
    message = refused(raw(svid, TrustBundle(authority.trust_domain, authorities)))
    assert "itself an authority" in message


def test_expired_authority_is_refused(authority: Authority) -> None:
    end = authority.certificate.not_valid_after_utc
    svid = authority.svid(not_after=end - datetime.now(UTC) + timedelta(days=1))
    message = RawUpdate((raw(svid, authority.bundle),), {})
    assert identity_update(message, end)
    with pytest.raises(AgentProtocolError, match="trust bundle"):
        identity_update(message, end + timedelta(seconds=1))


@pytest.mark.parametrize("bad_first", [True, False], ids=["the first", "the second"])
def test_one_bad_svid_of_two_refuses_the_message(
    authority: Authority, good: RawSvid, bad_first: bool
) -> None:
    bad = raw(authority.svid("/second", not_after=timedelta(seconds=-1)), authority.bundle)
    refused(*((bad, good) if bad_first else (good, bad)))


def test_two_bundles_for_one_trust_domain_are_refused(authority: Authority) -> None:
    other = Authority("example.org")
    message = refused(
        raw(authority.svid(), authority.bundle), raw(other.svid("/second"), other.bundle)
    )
    assert message == "two different bundles for trust domain example.org"


def test_two_bundles_are_refused_also_when_both_prove_both(authority: Authority) -> None:
    other = Authority("example.org")
    both = TrustBundle(authority.trust_domain, (authority.certificate, other.certificate))
    refused(raw(authority.svid(), both), raw(authority.svid("/second"), authority.bundle))


@pytest.mark.parametrize(
    ("key", "bundle"),
    [
        pytest.param("spiffe://other.org", b"garbage", id="garbage"),
        pytest.param("spiffe://other.org", b"\x30\x82\x01\x00", id="truncated"),
        pytest.param("spiffe://Other.org", None, id="upper case trust domain"),
        pytest.param("spiffe://other.org/", None, id="slash"),
        pytest.param("spiffe://other.org/path", None, id="path"),
        pytest.param("spiffe://other.org\n", None, id="newline"),
        pytest.param("spiffe://", None, id="no trust domain"),
        pytest.param("", None, id="empty key"),
        pytest.param("https://other.org", None, id="another scheme"),
    ],
)
def test_bad_federated_bundle_costs_its_own_trust_domain_only(
    authority: Authority, foreign: Authority, good: RawSvid, key: str, bundle: bytes | None
) -> None:
    third = Authority("third.org")
    federated = {
        key: der(foreign.certificate) if bundle is None else bundle,
        "spiffe://third.org": der(third.certificate),
    }
    update = taken(good, federated=federated)
    assert update.bundles == {
        authority.trust_domain: authority.bundle,
        third.trust_domain: third.bundle,
    }
    (note,) = update.notes
    assert note.startswith(f"federated bundle {key!r} left out: ")


def test_of_thousands_of_certificates_that_are_of_no_use_the_first_are_named(
    foreign: Authority, good: RawSvid
) -> None:
    unreadable = [b"\x30\x04\x02\x02" + number.to_bytes(2, "big") for number in range(2000)]
    no_authority = foreign.svid().leaf
    bundle = der(foreign.certificate, *[no_authority] * 2000) + b"".join(unreadable)
    update = taken(good, federated={OTHER: bundle})
    assert update.bundles[foreign.trust_domain].authorities[0] == foreign.certificate
    of_bundle = "bundle of other.org: "
    assert [one.removeprefix(of_bundle).partition(" (")[0] for one in update.notes] == [
        "left out certificate 2002 of 4001",
        "left out certificate 2003 of 4001",
        "left out certificate 2004 of 4001",
        "left out 1997 more certificates like these",
        "authority 2",
        "authority 3",
        "authority 4",
        "1997 more certificates like these",
    ]


def test_federated_bundle_never_replaces_or_joins_our_own(
    authority: Authority, foreign: Authority, good: RawSvid
) -> None:
    update = taken(good, federated={"spiffe://example.org": der(foreign.certificate)})
    assert update.bundles == {authority.trust_domain: authority.bundle}
    assert update.notes == ("second bundle for trust domain example.org left out",)


def test_second_federated_bundle_of_a_trust_domain_is_left_out(
    authority: Authority, foreign: Authority, good: RawSvid
) -> None:
    federated = {"spiffe://other.org": der(foreign.certificate), "other.org": good.bundle}
    update = taken(good, federated=federated)
    assert update.bundles[foreign.trust_domain] == foreign.bundle
    assert update.notes == ("second bundle for trust domain other.org left out",)


def test_empty_federated_bundle_is_kept_and_trusts_nothing(good: RawSvid) -> None:
    update = taken(good, federated={OTHER: b""})
    assert update.bundles[TrustDomain("other.org")].authorities == ()
    assert update.notes == ()


def test_crls_are_noted_and_cost_nothing(good: RawSvid) -> None:
    update = taken(good, crls=2)
    assert update.notes == ("2 CRLs ignored: SVIDs are short-lived instead",)


def test_what_a_message_leaves_out_is_gone(foreign: Authority, good: RawSvid) -> None:
    before = taken(good, federated={OTHER: der(foreign.certificate)})
    after = taken(good)
    assert foreign.trust_domain in before.bundles
    assert foreign.trust_domain not in after.bundles


SECRET = b"a-key-that-nobody-may-see"


@pytest.mark.parametrize("field", ["chain", "private_key", "bundle"])
def test_bytes_of_the_message_are_in_no_error(good: RawSvid, field: str) -> None:
    with pytest.raises(AgentProtocolError) as error:
        taken(replaced(good, field, SECRET))
    told: BaseException | None = error.value
    while told is not None:
        assert "nobody-may-see" not in f"{told}{told!r}"
        assert SECRET.hex() not in f"{told}{told!r}"
        told = told.__cause__ or told.__context__


def test_bytes_of_a_federated_bundle_are_in_no_note(good: RawSvid) -> None:
    assert "nobody-may-see" not in str(taken(good, federated={OTHER: SECRET}).notes)


def test_keys_and_certificates_are_in_no_repr(good: RawSvid) -> None:
    message = RawUpdate((replace(good, private_key=SECRET),), {"spiffe://other.org": SECRET})
    assert "nobody-may-see" not in repr(message)
    assert "\\x" not in repr(RawUpdate((good,), {"spiffe://other.org": good.bundle}))
    update = taken(good)
    assert "Certificate" not in repr(update)
    assert "Key" not in repr(update)


def test_text_of_the_agent_cannot_begin_a_log_line(good: RawSvid) -> None:
    text = "spiffe://example.org/a\nlevel=info forged" + "x" * 5000
    message = refused(replace(good, spiffe_id=text))
    assert "\n" not in message
    assert len(message) < 1000
    note = taken(good, federated={"a\nforged": b""}).notes[0]
    assert "\n" not in note


FIRST = "spiffe://example.org/first"
SECOND = "spiffe://example.org/second"


@pytest.fixture(scope="module")
def several(authority: Authority) -> IdentityUpdate:
    """Four SVIDs; the hint "internal" is there twice, the second ID too."""
    svids = [
        authority.svid("/first"),
        authority.svid("/second", hint="internal"),
        authority.svid("/third", hint="internal"),
        authority.svid("/second", hint="external"),
    ]
    return taken(*(raw(svid, authority.bundle) for svid in svids))


@pytest.mark.parametrize(
    ("choice", "index"),
    [
        pytest.param(SvidChoice(), 0, id="nothing asked: the first"),
        pytest.param(SvidChoice(SpiffeId.parse(SECOND)), 1, id="by ID: the first of it"),
        pytest.param(SvidChoice(hint="internal"), 1, id="hint twice: the first wins"),
        pytest.param(SvidChoice(hint="external"), 3, id="by hint"),
        pytest.param(SvidChoice(SpiffeId.parse(SECOND), "external"), 3, id="by ID and hint"),
    ],
)
def test_choice_gives_the_first_that_fits(
    several: IdentityUpdate, choice: SvidChoice, index: int
) -> None:
    assert choose(several, choice) is several.svids[index]


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(SvidChoice(SpiffeId.parse("spiffe://example.org/x")), id="no such ID"),
        pytest.param(SvidChoice(SpiffeId.parse("spiffe://example.org/FIRST")), id="other case"),
        pytest.param(SvidChoice(SpiffeId.parse("spiffe://other.org/first")), id="other domain"),
        pytest.param(SvidChoice(hint="x"), id="no such hint"),
        pytest.param(SvidChoice(hint="intern"), id="part of a hint"),
        pytest.param(SvidChoice(hint="Internal"), id="hint in other case"),
        pytest.param(SvidChoice(SpiffeId.parse(FIRST), "internal"), id="ID of one, hint of other"),
    ],
)
def test_choice_that_nothing_fits_gives_none(several: IdentityUpdate, choice: SvidChoice) -> None:
    assert choose(several, choice) is None


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        pytest.param(SvidChoice(), "any ID", id="nothing"),
        pytest.param(SvidChoice(SpiffeId.parse(FIRST)), f"ID {FIRST}", id="ID"),
        pytest.param(SvidChoice(hint="a\nb"), r"hint 'a\nb'", id="hint, quoted"),
        pytest.param(SvidChoice(SpiffeId.parse(FIRST), "h"), f"ID {FIRST} and hint 'h'", id="both"),
    ],
)
def test_choice_is_shown_as_it_was_asked(choice: SvidChoice, text: str) -> None:
    assert str(choice) == text
