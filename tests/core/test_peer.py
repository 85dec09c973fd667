"""Who is believed: every rule of X509-SVID and RFC 5280 by a certificate that breaks just that one.

The tables are 7.1, 7.2 and 8 of `research/spiffe-client.md`. What `tests/ca.py` does not make
(authorities with odd extensions, certificates that no builder signs) is made at the end.
"""

from __future__ import annotations

import ipaddress
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from types import FrameType
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from sidecar.core.errors import PeerError
from sidecar.core.peer import MAX_INTERMEDIATES, SvidVerifier, claimed_id, leaf_spiffe_id
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import TrustBundle, certificates
from tests.ca import BOTH_USAGES, Authority, key_usage, rsa_key

OURS = "spiffe://example.org/workload/model-server"
PREFIX = "spiffe://example.org/"
SERVER_AUTH, CLIENT_AUTH = BOTH_USAGES
CA = x509.BasicConstraints(ca=True, path_length=None)
SIGNS = key_usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
Chain = Sequence[x509.Certificate]


def verified(chain: Chain, *bundles: TrustBundle, now: datetime | None = None) -> str:
    verifier = SvidVerifier({bundle.trust_domain: bundle for bundle in bundles})
    return str(verifier.verify(chain, now or datetime.now(UTC)))


def refusal(chain: Chain, *bundles: TrustBundle, now: datetime | None = None) -> str:
    with pytest.raises(PeerError) as refused:
        verified(chain, *bundles, now=now)
    return refused.value.message


# --- leaves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as SPIRE issues it"),
        pytest.param({"subject": None, "san_critical": True}, id="URI only, SAN critical"),
        pytest.param({"san_critical": True}, id="subject and critical SAN"),
        pytest.param({"subject": None}, id="no subject, SAN not critical: harmless"),
        pytest.param({"authority_key_id": False}, id="no authority key ID"),
        pytest.param({"basic_constraints": None}, id="no basicConstraints means cA false"),
        pytest.param({"extended_key_usage": None}, id="no extendedKeyUsage"),
        pytest.param(
            {"extended_key_usage": (*BOTH_USAGES, ExtendedKeyUsageOID.CODE_SIGNING)},
            id="more than both usages",
        ),
        pytest.param(
            {"key_usage": key_usage(key_encipherment=True, key_agreement=True)},
            id="keyEncipherment and keyAgreement may be set",
        ),
        pytest.param({"dns": ("a.example.org", "b.example.org")}, id="DNS names besides"),
        pytest.param({"key": ec.generate_private_key(ec.SECP384R1())}, id="P-384"),
        pytest.param({"key": ed25519.Ed25519PrivateKey.generate()}, id="Ed25519"),
        pytest.param({"key": rsa_key(2048)}, id="RSA of 2048 bits"),
        pytest.param({"not_after": timedelta(days=300)}, id="long life"),
    ],
)
def test_leaf_that_keeps_the_rules_is_verified(
    authority: Authority, changes: dict[str, Any]
) -> None:
    assert verified(authority.svid(**changes).chain, authority.bundle) == OURS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"uris": ()}, "0 URI", id="no URI"),
        pytest.param({"uris": (), "dns": ("example.org",)}, "0 URI", id="DNS name only"),
        pytest.param({"uris": (OURS, PREFIX + "admin")}, "2 URI", id="two IDs"),
        pytest.param({"uris": (OURS, OURS)}, "2 URI", id="one ID twice"),
        pytest.param({"uris": (OURS, "https://a.example.org")}, "2 URI", id="ID and another URI"),
        pytest.param({"uris": ("https://a.example.org/a",)}, "not a SPIFFE ID", id="other URI"),
        pytest.param({"uris": ("",)}, "not a SPIFFE ID", id="empty URI"),
        pytest.param({"uris": ("spiffe://example.org",)}, "trust domain", id="root ID"),
        pytest.param({"uris": (PREFIX,)}, "not a SPIFFE ID", id="root ID with a slash"),
        pytest.param({"uris": (OURS + "/",)}, "not a SPIFFE ID", id="trailing slash"),
        pytest.param({"uris": (OURS + "\n",)}, "not a SPIFFE ID", id="trailing newline"),
        pytest.param({"uris": (OURS + "\x00",)}, "not a SPIFFE ID", id="trailing NUL"),
        pytest.param({"uris": (OURS + "\x00@evil.org",)}, "not a SPIFFE ID", id="NUL inside"),
        pytest.param({"uris": ("spiffe://Example.org/a",)}, "not a SPIFFE ID", id="upper case"),
        pytest.param({"uris": ("SPIFFE://example.org/a",)}, "not a SPIFFE ID", id="its scheme"),
        pytest.param({"uris": (PREFIX + "a//b",)}, "not a SPIFFE ID", id="empty segment"),
        pytest.param({"uris": (PREFIX + "a/../b",)}, "not a SPIFFE ID", id="dot dot"),
        pytest.param({"uris": (PREFIX + "%61",)}, "not a SPIFFE ID", id="percent-encoding"),
        pytest.param({"uris": (OURS + "?a=b",)}, "not a SPIFFE ID", id="query"),
        pytest.param({"uris": (OURS + "#a",)}, "not a SPIFFE ID", id="fragment"),
        pytest.param({"uris": ("spiffe://example.org:1/a",)}, "not a SPIFFE ID", id="port"),
        pytest.param({"uris": ("spiffe://a@example.org/a",)}, "not a SPIFFE ID", id="userinfo"),
        pytest.param({"uris": (PREFIX + "a" * 2028,)}, "over 2048", id="2049 bytes"),
        pytest.param({"uris": ("spiffe://other.org/a",)}, "no trust bundle", id="no bundle"),
        pytest.param({"basic_constraints": CA}, "CA|cA", id="cA true"),
        pytest.param(
            {"basic_constraints": CA, "key_usage": key_usage(key_cert_sign=True)},
            "CA|cA|keyCertSign",
            id="an authority with an ID",
        ),
        pytest.param({"key_usage": None}, "2.5.29.15|keyUsage", id="no keyUsage"),
        pytest.param({"key_usage_critical": False}, "critical", id="keyUsage not critical"),
        pytest.param(
            {"key_usage": key_usage(digital_signature=False, key_agreement=True)},
            "keyUsage lacks digitalSignature",
            id="no digitalSignature",
        ),
        pytest.param({"key_usage": key_usage(key_cert_sign=True)}, "keyCertSign", id="keyCertSign"),
        pytest.param({"key_usage": key_usage(crl_sign=True)}, "cRLSign", id="cRLSign"),
        pytest.param({"extended_key_usage": (SERVER_AUTH,)}, "clientAuth", id="serverAuth only"),
        pytest.param({"extended_key_usage": (CLIENT_AUTH,)}, "serverAuth", id="clientAuth only"),
        pytest.param(
            {"extended_key_usage": (ExtendedKeyUsageOID.CODE_SIGNING,)},
            "extendedKeyUsage lacks",
            id="neither usage",
        ),
        pytest.param(
            {"extended_key_usage": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)},
            "extendedKeyUsage lacks",
            id="any usage is not both",
        ),
        pytest.param({"unknown_critical_extension": True}, "extension", id="unknown and critical"),
        pytest.param({"not_before": timedelta(minutes=1)}, "not valid before", id="of the future"),
        pytest.param({"not_after": timedelta(seconds=-5)}, "expired at", id="expired"),
        pytest.param({"key": rsa_key(1024)}, "RSA key of 1024 bits", id="RSA of 1024 bits"),
    ],
)
def test_leaf_that_breaks_one_rule_is_refused(
    authority: Authority, changes: dict[str, Any], reason: str
) -> None:
    message = refusal(authority.svid(**changes).chain, authority.bundle)
    assert any(word in message for word in reason.split("|")), message


def test_names_of_other_kinds_are_ignored(authority: Authority) -> None:
    names: list[x509.GeneralName] = [
        x509.DNSName("example.org"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.RFC822Name("a@example.org"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
        x509.DirectoryName(organization("SPIRE")),
        x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
        x509.UniformResourceIdentifier(OURS),
    ]
    assert verified([odd_leaf(authority, names=names)], authority.bundle) == OURS


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        pytest.param(b"\xa3\x02\x05\x00", "unreadable", id="x400Address"),
        pytest.param(b"\xa5\x02\x05\x00", "unreadable", id="ediPartyName"),
        pytest.param(b"\x89\x01\x00", "unreadable", id="a kind that does not exist"),
        pytest.param(b"\x86\x02\xff\xff", "unreadable", id="URI in no encoding"),
        pytest.param(b"\x86\x7fabc", "unreadable", id="truncated"),
        pytest.param(b"", "none", id="no name at all"),
    ],
)
def test_names_that_cannot_be_read_are_refused(
    authority: Authority, name: bytes, claimed: str
) -> None:
    leaf = odd_leaf(authority, raw_names=sequence(name))
    refusal([leaf], authority.bundle)
    assert claimed_id(leaf) == claimed


def test_id_beyond_ascii_is_refused(authority: Authority) -> None:
    uri = OURS.encode() + b"\xc3\xa9"
    leaf = odd_leaf(authority, raw_names=sequence(b"\x86" + bytes([len(uri)]) + uri))
    assert "not a SPIFFE ID" in refusal([leaf], authority.bundle)


def test_extension_that_is_there_twice_is_refused(authority: Authority) -> None:
    leaf = leaf_with_two_name_extensions(authority)
    refusal([leaf], authority.bundle)


def test_what_a_log_line_shows_of_it_is_unreadable(authority: Authority) -> None:
    assert claimed_id(leaf_with_two_name_extensions(authority)) == "unreadable"


@pytest.mark.parametrize(
    ("uris", "shown"),
    [
        pytest.param((), "none", id="none"),
        pytest.param((OURS,), repr(OURS), id="one"),
        pytest.param(("a\nb", "c"), r"'a\nb','c'", id="quoted"),
        pytest.param(("x" * 999,), repr("x" * 256), id="cut"),
        pytest.param(tuple("abcdef"), "'a','b','c','d'", id="four of many"),
    ],
)
def test_claimed_id_is_quoted_and_cut(
    authority: Authority, uris: tuple[str, ...], shown: str
) -> None:
    assert claimed_id(authority.svid(uris=uris).leaf) == shown


def test_claim_is_read_without_proof(authority: Authority) -> None:
    assert leaf_spiffe_id(authority.svid().leaf) == SpiffeId.parse(OURS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"key_usage": key_usage(crl_sign=True)}, id="one of our rules"),
        pytest.param({"extended_key_usage": (SERVER_AUTH,)}, id="another of our rules"),
        pytest.param({"key_usage": None}, id="a rule of the library"),
    ],
)
def test_refusal_tells_the_rule_and_not_the_library(
    authority: Authority, changes: dict[str, Any]
) -> None:
    message = refusal(authority.svid(**changes).chain, authority.bundle)
    assert "Python" not in message
    assert "ValueError" not in message
    assert "<Certificate" not in message


# --- time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "valid"),
    [
        pytest.param(-1, True, id="a second before the end"),
        pytest.param(0, True, id="the end belongs to it (RFC 5280 4.1.2.5)"),
        pytest.param(0.000001, False, id="a microsecond after the end"),
        pytest.param(1, False, id="a second after the end"),
        pytest.param(-3610, True, id="the beginning"),
        pytest.param(-3610.000001, False, id="a microsecond before the beginning"),
        pytest.param(-3611, False, id="a second before the beginning"),
        pytest.param(1e9, False, id="decades after"),
        pytest.param(-1e9, False, id="decades before"),
    ],
)
def test_validity_has_exact_ends(authority: Authority, seconds: float, valid: bool) -> None:
    svid = authority.svid()  # from 10 seconds ago to in an hour
    now = svid.not_after + timedelta(seconds=seconds)
    if valid:
        assert verified(svid.chain, authority.bundle, now=now) == OURS
    else:
        assert refusal(svid.chain, authority.bundle, now=now).startswith(("expired", "not valid"))


@pytest.mark.parametrize("hours", [-12, 0, 14])
def test_time_zone_of_now_does_not_matter(authority: Authority, hours: int) -> None:
    zone = timezone(timedelta(hours=hours))
    svid = authority.svid()
    assert verified(svid.chain, authority.bundle, now=datetime.now(zone)) == OURS
    late = (svid.not_after + timedelta(seconds=1)).astimezone(zone)
    assert "expired" in refusal(svid.chain, authority.bundle, now=late)


def test_one_verifier_judges_by_the_time_of_each_call(authority: Authority) -> None:
    svid = authority.svid()
    verifier = SvidVerifier({authority.trust_domain: authority.bundle})
    assert verifier.verify(svid.chain, svid.not_after)
    with pytest.raises(PeerError):
        verifier.verify(svid.chain, svid.not_after + timedelta(seconds=1))
    assert verifier.verify(svid.chain, svid.not_after)


# --- trust domains and bundles --------------------------------------------------------------


def test_each_trust_domain_is_verified_by_its_own_bundle(
    authority: Authority, foreign: Authority
) -> None:
    bundles = (authority.bundle, foreign.bundle)
    assert verified(authority.svid().chain, *bundles) == OURS
    assert verified(foreign.svid("/a").chain, *bundles) == "spiffe://other.org/a"


def test_foreign_authority_cannot_sign_our_id(authority: Authority, foreign: Authority) -> None:
    forged = foreign.svid(uris=(OURS,))
    message = refusal(forged.chain, authority.bundle, foreign.bundle)
    assert "trust bundle of example.org" in message


def test_our_authority_cannot_sign_a_foreign_id(authority: Authority, foreign: Authority) -> None:
    refusal(authority.svid(uris=("spiffe://other.org/a",)).chain, authority.bundle, foreign.bundle)


def test_foreign_authority_brought_along_in_the_chain_is_of_no_use(
    authority: Authority, foreign: Authority
) -> None:
    forged = foreign.svid(uris=(OURS,))
    for extra in ((foreign.certificate,), (foreign.certificate, authority.certificate)):
        refusal((*forged.chain, *extra), authority.bundle, foreign.bundle)


def test_authority_of_the_same_name_and_another_key_is_refused(authority: Authority) -> None:
    stranger = Authority("example.org")
    assert stranger.certificate.subject == authority.certificate.subject
    refusal(stranger.svid().chain, authority.bundle)
    refusal((*stranger.svid().chain, stranger.certificate), authority.bundle)


@pytest.mark.parametrize(
    "trust_domain", ["example.org.evil.org", "evil-example.org", "xexample.org", "example.or"]
)
def test_similar_trust_domain_is_another_one(authority: Authority, trust_domain: str) -> None:
    chain = authority.svid(uris=(f"spiffe://{trust_domain}/a",)).chain
    assert refusal(chain, authority.bundle) == f"no trust bundle for trust domain {trust_domain}"


def test_without_bundles_nobody_is_believed(authority: Authority) -> None:
    assert "no trust bundle" in refusal(authority.svid().chain)


def test_empty_bundle_trusts_nothing(authority: Authority, foreign: Authority) -> None:
    empty = TrustBundle(authority.trust_domain, ())
    assert "no trust bundle" in refusal(authority.svid().chain, empty, foreign.bundle)
    assert verified(foreign.svid("/a").chain, empty, foreign.bundle)


def test_bundle_trusts_each_of_its_authorities_though_all_have_one_name(
    authority: Authority,
) -> None:
    authorities = [Authority("example.org") for _ in range(8)] + [authority]
    assert len({one.certificate.subject for one in authorities}) == 1
    bundle = TrustBundle(authority.trust_domain, tuple(one.certificate for one in authorities))
    for one in authorities:
        assert verified(one.svid().chain, bundle) == OURS


def test_authority_that_left_the_bundle_is_refused(authority: Authority) -> None:
    newer = Authority("example.org")
    svid = authority.svid()
    both = TrustBundle(authority.trust_domain, (authority.certificate, newer.certificate))
    assert verified(svid.chain, both) == OURS
    refusal(svid.chain, newer.bundle)


def test_leaf_that_is_an_authority_of_its_bundle_is_refused(authority: Authority) -> None:
    svid = authority.svid()
    for authorities in ((svid.leaf,), (svid.leaf, authority.certificate)):
        bundle = TrustBundle(authority.trust_domain, authorities)
        assert "itself an authority" in refusal(svid.chain, bundle)


def test_leaf_that_signed_itself_is_refused(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    own = Ca(uris=(OURS,), basic_constraints=None, key_usage=key_usage(), key=key)
    leaf = own.signed(own)
    refusal([leaf], authority.bundle)
    refusal([leaf], TrustBundle(authority.trust_domain, (leaf,)))


def test_authority_of_the_bundle_cannot_be_the_peer(authority: Authority) -> None:
    refusal([authority.certificate], authority.bundle)
    root = Ca(uris=(OURS,))
    bundle = TrustBundle(authority.trust_domain, (root.signed(root),))
    refusal(bundle.authorities, bundle)


def test_leaf_of_a_leaf_is_refused(authority: Authority) -> None:
    parent = Ca(subject="leaf", basic_constraints=None, key_usage=key_usage(), uris=(OURS,))
    middle = parent.authority(issuer=authority)
    chain = middle.sign(replace(authority.leaf(), uris=(OURS,)), middle).chain
    refusal(chain, authority.bundle)


def test_no_certificate_is_refused(authority: Authority) -> None:
    assert refusal([], authority.bundle) == "no certificate presented"


# --- signing certificates -------------------------------------------------------------------


@dataclass(frozen=True)
class Ca:
    """What goes into a signing certificate; it begins as a good one, None leaves one out."""

    subject: str = "SPIFFE"
    basic_constraints: x509.BasicConstraints | None = CA
    basic_constraints_critical: bool = True
    key_usage: x509.KeyUsage | None = SIGNS
    key_usage_critical: bool = True
    uris: tuple[str, ...] = ()
    name_constraints: x509.NameConstraints | None = None
    name_constraints_critical: bool = True
    subject_key_id: bool = True
    unknown_critical_extension: bool = False
    policy_constraints: bool = False
    extended_key_usage: tuple[x509.ObjectIdentifier, ...] = ()
    not_before: timedelta = timedelta(hours=-1)
    not_after: timedelta = timedelta(hours=1)
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def authority(self, issuer: Authority | None = None) -> Authority:
        """An authority with this certificate, signed by `issuer` or by itself."""
        pem = self.signed(self if issuer is None else issuer).public_bytes(Encoding.PEM)
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Authority("example.org", trustme.CA.from_pem(pem, key))

    def signed(self, issuer: Ca | Authority) -> x509.Certificate:
        """The certificate, signed by `issuer`."""
        own_name = organization(self.subject)
        name = own_name if isinstance(issuer, Ca) else issuer.certificate.subject
        builder = builder_of(own_name, name, self.key.public_key())
        now = datetime.now(UTC)
        builder = replace_validity(builder, now + self.not_before, now + self.not_after)
        uris = [x509.UniformResourceIdentifier(uri) for uri in self.uris]
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        extensions: list[tuple[x509.ExtensionType | None, bool]] = [
            (self.basic_constraints, self.basic_constraints_critical),
            (self.key_usage, self.key_usage_critical),
            (x509.SubjectAlternativeName(uris) if uris else None, False),
            (self.name_constraints, self.name_constraints_critical),
            (unknown if self.unknown_critical_extension else None, True),
            (x509.PolicyConstraints(0, None) if self.policy_constraints else None, True),
            (x509.ExtendedKeyUsage(usages) if (usages := self.extended_key_usage) else None, False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False),
        ]
        if self.subject_key_id:
            own_id = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
            extensions.append((own_id, False))
        for extension, critical in extensions:
            if extension is not None:
                builder = builder.add_extension(extension, critical)
        return builder.sign(issuer.key, SHA256())


def uri_constraints(
    permitted: str | None = None, excluded: str | None = None
) -> x509.NameConstraints:
    def listed(text: str | None) -> list[x509.GeneralName] | None:
        return [x509.UniformResourceIdentifier(text)] if text else None

    return x509.NameConstraints(listed(permitted), listed(excluded))


GOOD_SIGNING = [
    pytest.param({}, id="a good one"),
    pytest.param({"extended_key_usage": BOTH_USAGES}, id="for both ends of TLS"),
    pytest.param(
        {"extended_key_usage": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, id="for any use"
    ),
    pytest.param({"subject_key_id": False}, id="no subject key ID"),
    pytest.param({"basic_constraints_critical": False}, id="basicConstraints not critical"),
    pytest.param({"uris": ("spiffe://example.org",)}, id="with the trust domain's ID"),
    pytest.param({"uris": ("https://example.org/ca",)}, id="with a URI that is no ID"),
    pytest.param(
        {"key_usage": key_usage(digital_signature=True, key_cert_sign=True)}, id="no cRLSign"
    ),
    pytest.param(
        {"name_constraints": x509.NameConstraints([x509.DNSName("example.org")], None)},
        id="name constraints on a kind that the leaf has not",
    ),
]
BAD_SIGNING = [
    pytest.param({"basic_constraints": None}, id="no basicConstraints"),
    pytest.param({"basic_constraints": x509.BasicConstraints(False, None)}, id="cA false"),
    pytest.param({"key_usage": key_usage()}, id="no keyCertSign"),
    pytest.param({"key_usage": key_usage(crl_sign=True)}, id="cRLSign only"),
    pytest.param({"extended_key_usage": (SERVER_AUTH,)}, id="for one end of TLS only"),
    pytest.param({"uris": (PREFIX + "spire/server",)}, id="an ID with a path"),
    pytest.param({"uris": ("spiffe://other.org/ca",)}, id="a foreign ID with a path"),
    pytest.param(
        {"uris": ("spiffe://example.org", PREFIX + "ca")}, id="an ID with a path as the second"
    ),
    pytest.param({"uris": ("spiffe://Example.org",)}, id="an ID that is none"),
    pytest.param({"uris": ("SPIFFE://example.org/ca",)}, id="a path behind an upper case scheme"),
    pytest.param({"not_after": timedelta(seconds=-5)}, id="expired"),
    pytest.param({"not_before": timedelta(minutes=1)}, id="of the future"),
    pytest.param({"name_constraints": uri_constraints("example.org")}, id="URI permitted: gap"),
    pytest.param({"name_constraints": uri_constraints(None, "other.org")}, id="URI excluded: gap"),
    pytest.param(
        {"name_constraints": uri_constraints("other.org")}, id="URI of others permitted: rightly"
    ),
]


# RFC 5280 6.1.1 (d): a trust anchor is a name and a key. Of intermediates all of it is demanded.
ODD_ANCHORS = [
    pytest.param({"key_usage": None}, id="no keyUsage, as `openssl req -x509` makes it"),
    pytest.param({"unknown_critical_extension": True}, id="unknown critical extension"),
    pytest.param({"policy_constraints": True}, id="critical policyConstraints"),
]


@pytest.mark.parametrize("changes", GOOD_SIGNING + ODD_ANCHORS)
def test_root_that_keeps_the_rules_signs(changes: dict[str, Any]) -> None:
    root = Ca(**changes).authority()
    assert verified(root.svid().chain, root.bundle) == OURS


@pytest.mark.parametrize("changes", GOOD_SIGNING)
def test_intermediate_that_keeps_the_rules_signs(
    authority: Authority, changes: dict[str, Any]
) -> None:
    middle = Ca(**changes).authority(issuer=authority)
    chain = middle.sign(authority.leaf(), middle).chain
    assert verified(chain, authority.bundle) == OURS


def test_reason_against_an_intermediate_is_in_our_own_words(authority: Authority) -> None:
    middle = Ca(uris=(PREFIX + "spire/server",)).authority(issuer=authority)
    chain = middle.sign(authority.leaf(), middle).chain
    with pytest.raises(PeerError) as refusal:
        verified(chain, authority.bundle)
    assert refusal.value.message == (
        "not proven by the trust bundle of example.org: "
        "the SPIFFE ID of a signing certificate has a path"
    )


@pytest.mark.parametrize("changes", BAD_SIGNING)
def test_root_that_breaks_one_rule_signs_nothing(changes: dict[str, Any]) -> None:
    root = Ca(**changes).authority()
    refusal(root.svid().chain, root.bundle)


@pytest.mark.parametrize("changes", BAD_SIGNING + ODD_ANCHORS)
def test_intermediate_that_breaks_one_rule_signs_nothing(
    authority: Authority, changes: dict[str, Any]
) -> None:
    middle = Ca(**changes).authority(issuer=authority)
    refusal(middle.sign(authority.leaf(), middle).chain, authority.bundle)


def test_name_constraints_are_kept_for_the_kinds_that_are_known() -> None:
    names = x509.NameConstraints([x509.DNSName("example.org")], None)
    root = Ca(name_constraints=names).authority()
    assert verified(root.svid(dns=("a.example.org",)).chain, root.bundle) == OURS
    refusal(root.svid(dns=("example.com",)).chain, root.bundle)


DIRECTORIES = [
    pytest.param([["SPIRE"]], None, True, id="permitted"),
    pytest.param([["spire"]], None, True, id="permitted in another case"),
    pytest.param([["OTHER"], ["SPIRE"]], None, True, id="one of two permitted"),
    pytest.param([["SPIRE", "x"]], None, False, id="deeper than the name"),
    pytest.param([["OTHER"]], None, False, id="others permitted"),
    pytest.param(None, [["OTHER"]], True, id="others excluded"),
    pytest.param(None, [["SPIRE"]], False, id="excluded"),
    pytest.param(None, [["  sPiRe "]], False, id="excluded in another spelling"),
    pytest.param([["SPIRE"]], [["SPIRE"]], False, id="excluded and permitted"),
]


@pytest.mark.parametrize("place", ["root", "critical root", "intermediate"])
@pytest.mark.parametrize(("permitted", "excluded", "accepted"), DIRECTORIES)
def test_directory_names_are_constrained(
    authority: Authority,
    permitted: list[list[str]] | None,
    excluded: list[list[str]] | None,
    accepted: bool,
    place: str,
) -> None:
    names = x509.NameConstraints(_directories(permitted), _directories(excluded))
    odd = Ca(name_constraints=names, name_constraints_critical="critical" in place)
    if place == "intermediate":
        middle = odd.authority(issuer=authority)
        chain, bundle = middle.sign(middle.leaf(), middle).chain, authority.bundle
    else:
        root = odd.authority()
        chain, bundle = root.svid().chain, root.bundle
    if accepted:
        assert verified(chain, bundle) == OURS
    else:
        assert "a name that an authority above it" in refusal(chain, bundle)


def _directories(names: list[list[str]] | None) -> list[x509.GeneralName] | None:
    if names is None:
        return None
    return [
        x509.DirectoryName(
            x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, part) for part in name])
        )
        for name in names
    ]


@pytest.mark.parametrize("order", [1, -1], ids=["as given", "turned round"])
def test_authorities_of_one_name_without_key_ids_are_all_tried(order: int) -> None:
    namesakes = [Ca(subject_key_id=False).authority() for _ in range(9)]
    bundle = TrustBundle(
        TrustDomain("example.org"), tuple(one.certificate for one in namesakes[::order])
    )
    for one in namesakes:
        assert verified(one.svid(authority_key_id=False).chain, bundle) == OURS
    impostor = Ca(subject_key_id=False).authority().svid(authority_key_id=False)
    assert refusal(impostor.chain, bundle).endswith("none of its authorities signed it")


def test_search_among_very_many_namesakes_is_bounded_and_says_so() -> None:
    key = Ca().authority().certificate
    many = TrustBundle(TrustDomain("example.org"), (key,) * 300)
    impostor = Ca(subject_key_id=False).authority().svid(authority_key_id=False)
    assert "too many certificates of one name" in refusal(impostor.chain, many)


@pytest.mark.parametrize("place", ["root", "intermediate"])
def test_ed25519_authority_is_named_as_what_is_not_supported(
    authority: Authority, place: str
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name, leaf_key = organization("ed"), ec.generate_private_key(ec.SECP256R1())
    issuer = name if place == "root" else authority.certificate.subject
    signer = odd_ca(issuer, name, key.public_key()).sign(
        key if place == "root" else authority.key, None if place == "root" else SHA256()
    )
    ours = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(OURS)])
    leaf = (
        valid_now(builder_of(organization("SPIRE"), name, leaf_key.public_key()))
        .add_extension(ours, critical=False)
        .add_extension(key_usage(), critical=True)
        .sign(key, None)
    )
    if place == "root":
        reason = refusal([leaf], TrustBundle(authority.trust_domain, (signer,)))
        assert "authority 1 (O=ed, serial " in reason
        both = (signer, authority.certificate)
        reason = refusal([leaf], TrustBundle(authority.trust_domain, both))
        assert "authority 1 (O=ed, serial " in reason
    else:
        reason = refusal([leaf, signer], authority.bundle)
    assert "Ed25519 key" in reason
    assert "expected ECDSA or RSA" in reason


def odd_ca(
    issuer: x509.Name, name: x509.Name, key: CertificatePublicKeyTypes
) -> x509.CertificateBuilder:
    return (
        valid_now(builder_of(name, issuer, key))
        .add_extension(CA, critical=True)
        .add_extension(SIGNS, critical=True)
    )


def valid_now(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return replace_validity(builder, now - timedelta(hours=1), now + timedelta(hours=1))


def test_uri_name_constraints_are_named_as_what_is_not_supported(authority: Authority) -> None:
    middle = Ca(name_constraints=uri_constraints("example.org")).authority(issuer=authority)
    chain = middle.sign(authority.leaf(), middle).chain
    assert "URI name constraints in its chain" in refusal(chain, authority.bundle)
    root = Ca(name_constraints=uri_constraints("example.org")).authority()
    assert "URI name constraints are not supported" in refusal(root.svid().chain, root.bundle)


def test_path_length_is_kept(authority: Authority) -> None:
    root = Ca(basic_constraints=x509.BasicConstraints(ca=True, path_length=0)).authority()
    assert verified(root.svid().chain, root.bundle) == OURS
    middle = Ca(subject="below").authority(issuer=root)
    refusal(middle.sign(authority.leaf(), middle).chain, root.bundle)


def below(authority: Authority, count: int, subject: str = "level {}") -> list[Authority]:
    """`count` authorities, each below the one before, the lowest first."""
    line = [authority]
    for number in range(count):
        line.insert(0, Ca(subject=subject.format(number)).authority(issuer=line[0]))
    return line[:-1]


@pytest.mark.parametrize("subject", ["level {}", "SPIFFE"], ids=["own names", "the root's name"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_chain_is_verified_through_intermediates(
    authority: Authority, count: int, subject: str
) -> None:
    line = below(authority, count, subject)
    assert verified(line[0].sign(authority.leaf(), *line).chain, authority.bundle) == OURS


def test_order_of_intermediates_does_not_matter_but_none_may_lack(authority: Authority) -> None:
    line = below(authority, 3)
    leaf, *rest = line[0].sign(authority.leaf(), *line).chain
    assert verified([leaf, *reversed(rest)], authority.bundle) == OURS
    for missing in rest:
        refusal([leaf, *(one for one in rest if one is not missing)], authority.bundle)


def test_what_does_not_belong_to_the_chain_changes_nothing(
    authority: Authority, foreign: Authority
) -> None:
    middle = authority.intermediate()
    leaf, own = middle.sign(authority.leaf(), middle).chain
    for extra in (own, authority.certificate, foreign.certificate, foreign.svid().leaf):
        assert verified([leaf, own, extra], authority.bundle) == OURS
        assert verified([leaf, extra, own], authority.bundle) == OURS
    refusal([own, leaf], authority.bundle)


def test_chain_has_at_most_eight_intermediates(authority: Authority) -> None:
    assert MAX_INTERMEDIATES == 8
    line = below(authority, 9)
    leaf = authority.leaf()
    assert verified(line[1].sign(leaf, *line[1:]).chain, authority.bundle) == OURS
    refusal(line[0].sign(leaf, *line).chain, authority.bundle)


def test_all_of_a_chain_is_judged_at_one_time(authority: Authority) -> None:
    middle = Ca(not_after=timedelta(hours=1)).authority(issuer=authority)
    leaf = replace(authority.leaf(), not_after=timedelta(hours=3))
    chain = middle.sign(leaf, middle).chain
    now = datetime.now(UTC)
    assert verified(chain, authority.bundle, now=now + timedelta(minutes=59)) == OURS
    refusal(chain, authority.bundle, now=now + timedelta(hours=2))


def test_intermediate_signs_for_its_trust_domain_only(
    authority: Authority, foreign: Authority
) -> None:
    middle = foreign.intermediate()
    forged = middle.sign(authority.leaf(), middle).chain
    refusal(forged, authority.bundle, foreign.bundle)
    refusal((*forged, foreign.certificate), authority.bundle, foreign.bundle)


def test_intermediate_may_be_the_authority_of_a_bundle(authority: Authority) -> None:
    middle = authority.intermediate()
    assert verified(middle.svid().chain, middle.bundle) == OURS
    refusal(authority.svid().chain, middle.bundle)


@pytest.mark.parametrize("count", [2, 8, 40])
def test_maze_of_authorities_is_left_after_few_steps(authority: Authority, count: int) -> None:
    # Certificates of one name and one key all sign each other: the ways through them grow with
    # the power of the longest chain, and a stranger can send as many as fit into a handshake.
    one = Ca(subject="maze")
    maze = [one.signed(one) for _ in range(count)]
    leaf = one.authority().svid().leaf
    with counted_calls("_signing_key_usage") as calls:
        refusal([leaf, *maze], authority.bundle)
    assert 0 < len(calls) < 1000


# --- algorithms -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "accepted"),
    [
        pytest.param(1024, False, id="too short"),
        pytest.param(2047, False, id="one bit too short"),
        pytest.param(2048, True, id="long enough"),
    ],
)
def test_rsa_key_of_a_leaf_has_a_shortest_length(
    authority: Authority, bits: int, accepted: bool
) -> None:
    chain = authority.svid(key=rsa_key(bits)).chain
    if accepted:
        assert verified(chain, authority.bundle) == OURS
    else:
        assert f"RSA key of {bits} bits" in refusal(chain, authority.bundle)


@pytest.mark.parametrize("bits", [1024, 2048])
def test_rsa_key_of_an_authority_has_a_shortest_length(bits: int) -> None:
    bundle, leaf = rsa_signed(rsa_key(bits))
    if bits < 2048:
        refusal([leaf], bundle)
    else:
        assert verified([leaf], bundle) == OURS


def test_signature_with_sha1_is_refused() -> None:
    key = rsa_key(2048)
    bundle, leaf = rsa_signed(key)
    sha1 = resigned_with_sha1(leaf, key)
    assert sha1.signature_hash_algorithm is not None
    assert sha1.signature_hash_algorithm.name == "sha1"
    refusal([sha1], bundle)


# --- mutants --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_mutant_of_a_good_leaf_is_believed(authority: Authority) -> None:
    # What is signed decides: the bytes around it (the signature's own encoding) can be written in
    # more ways than one, and ECDSA knows two signatures for each; neither changes who it is.
    good = authority.svid(dns=("a.example.org",)).leaf
    verifier = SvidVerifier({authority.trust_domain: authority.bundle})
    judged = 0
    for chain in mutants(good, 20260101, 2000):
        judged += 1
        try:
            verifier.verify(chain, datetime.now(UTC))
        except PeerError:
            continue
        assert chain[0].tbs_certificate_bytes == good.tbs_certificate_bytes
    assert judged > 500


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_mutant_of_an_intermediate_is_believed(authority: Authority) -> None:
    middle = authority.intermediate()
    leaf, own = middle.sign(authority.leaf(), middle).chain
    for odd in mutants(own, 20260102, 1000):
        try:
            verified([leaf, *odd], authority.bundle)
        except PeerError:
            continue
        assert odd[0].tbs_certificate_bytes == own.tbs_certificate_bytes


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_mutant_of_an_authority_signs_with_its_own_key_or_not_at_all(authority: Authority) -> None:
    # A bundle is trusted as it is: the signature of an authority by itself proves nothing.
    leaf = authority.svid().leaf
    for odd in mutants(authority.certificate, 20260103, 1000):
        try:
            verified([leaf], TrustBundle(authority.trust_domain, odd))
        except PeerError:
            continue
        assert odd[0].public_key() == authority.certificate.public_key()


def mutants(
    certificate: x509.Certificate, seed: int, count: int
) -> Iterator[tuple[x509.Certificate, ...]]:
    """Those of `count` mutants that can still be read."""
    der = certificate.public_bytes(Encoding.DER)
    draw = random.Random(seed)
    for _ in range(count):
        try:
            yield certificates(mutant(der, draw))
        except (ValueError, x509.InvalidVersion):
            continue


def mutant(der: bytes, draw: random.Random) -> bytes:
    """`der` with one to three small changes."""
    data = bytearray(der)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(data))
        kind = draw.randrange(5)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            data[at] = (data[at] + draw.choice((1, -1))) % 256
        elif kind == 3:
            start, size = draw.randrange(len(data)), draw.randrange(1, 12)
            data[at : at + size] = data[start : start + size]
        else:
            del data[at]
    return bytes(data)


# --- certificates that tests/ca.py does not make --------------------------------------------


def organization(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])


def builder_of(
    subject: x509.Name, issuer: x509.Name, key: CertificatePublicKeyTypes
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
    )


def replace_validity(
    builder: x509.CertificateBuilder, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return builder.not_valid_before(begin).not_valid_after(end)


def odd_builder(authority: Authority) -> x509.CertificateBuilder:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = builder_of(
        organization("SPIRE"), authority.certificate.subject, key.public_key()
    ).add_extension(key_usage(), critical=True)
    now = datetime.now(UTC)
    return replace_validity(builder, now - timedelta(hours=1), now + timedelta(hours=1))


def odd_leaf(
    authority: Authority, names: Sequence[x509.GeneralName] = (), raw_names: bytes = b""
) -> x509.Certificate:
    """A leaf with any names, or with any bytes where the names are."""
    extension: x509.ExtensionType = x509.SubjectAlternativeName(names)
    if not names:
        extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, raw_names)
    return (
        odd_builder(authority)
        .add_extension(extension, critical=False)
        .sign(authority.key, SHA256())
    )


def leaf_with_two_name_extensions(authority: Authority) -> x509.Certificate:
    """A leaf that has the extension of its names twice, with our ID in both."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(OURS)])
    double = x509.ObjectIdentifier("2.5.29.99")
    leaf = (
        odd_builder(authority)
        .add_extension(names, critical=False)
        .add_extension(x509.UnrecognizedExtension(double, names.public_bytes()), critical=False)
        .sign(authority.key, SHA256())
    )
    tbs = leaf.tbs_certificate_bytes.replace(b"\x55\x1d\x63", b"\x55\x1d\x11")
    ecdsa_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return assembled(tbs, ecdsa_sha256, authority.key.sign(tbs, ec.ECDSA(SHA256())))


def rsa_signed(key: rsa.RSAPrivateKey) -> tuple[TrustBundle, x509.Certificate]:
    """A bundle of one authority with an RSA key, and a good leaf of it."""
    name = organization("SPIFFE")
    begin = datetime.now(UTC) - timedelta(hours=1)
    end = begin + timedelta(hours=2)
    root = (
        replace_validity(builder_of(name, name, key.public_key()), begin, end)
        .add_extension(CA, critical=True)
        .add_extension(SIGNS, critical=True)
        .sign(key, SHA256())
    )
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(OURS)])
    leaf = (
        replace_validity(builder_of(name, name, leaf_key.public_key()), begin, end)
        .add_extension(names, critical=False)
        .add_extension(key_usage(), critical=True)
        .sign(key, SHA256())
    )
    return TrustBundle(TrustDomain("example.org"), (root,)), leaf


def resigned_with_sha1(leaf: x509.Certificate, key: rsa.RSAPrivateKey) -> x509.Certificate:
    """The same certificate under sha1WithRSAEncryption, which no builder signs any more."""
    sha256_oid = bytes.fromhex("06092a864886f70d01010b")
    sha1_oid = bytes.fromhex("06092a864886f70d010105")
    tbs = leaf.tbs_certificate_bytes.replace(sha256_oid, sha1_oid)
    return assembled(
        tbs, sequence(sha1_oid + b"\x05\x00"), key.sign(tbs, padding.PKCS1v15(), SHA1())
    )


def assembled(tbs: bytes, algorithm: bytes, signature: bytes) -> x509.Certificate:
    """A certificate of its three parts."""
    content = b"\x00" + signature
    size = (
        bytes([len(content)]) if len(content) < 128 else b"\x82" + len(content).to_bytes(2, "big")
    )
    return x509.load_der_x509_certificate(sequence(tbs + algorithm + b"\x03" + size + content))


def sequence(content: bytes) -> bytes:
    short = len(content) < 128
    size = bytes([len(content)]) if short else b"\x82" + len(content).to_bytes(2, "big")
    return b"\x30" + size + content


@contextmanager
def counted_calls(name: str) -> Iterator[list[None]]:
    """Count the calls of a Python function, as a measure of work that no clock blurs."""
    calls: list[None] = []

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name == name:
            calls.append(None)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_key_that_only_costs_time_is_refused_before_any_signature(authority: Authority) -> None:
    # The leaf claims our trust domain and is signed by nobody: only the look at its key ends it.
    numbers = rsa.RSAPublicNumbers(
        e=(1 << 2047) + 1, n=rsa_key(2048).public_key().public_numbers().n
    )
    slow = numbers.public_key()
    leaf = replace_public_key(authority, slow)
    with pytest.raises(PeerError, match="exponent of over 32 bits"):
        SvidVerifier({authority.trust_domain: authority.bundle}).check([leaf], datetime.now(UTC))


def replace_public_key(authority: Authority, key: rsa.RSAPublicKey) -> x509.Certificate:
    now = datetime.now(UTC)
    name = x509.UniformResourceIdentifier(f"spiffe://{authority.trust_domain}/slow")
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(authority.key, SHA256())
    )
