"""OpenSSL: who gets in, how a refused peer learns of it, that nothing is resumed, the stream.

The certificates are those of the tables 7.1 and 7.2 of `research/spiffe-client.md`, end to end
through a real handshake.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from sidecar.adapters.tls import (
    RECORD_BYTES,
    HandshakeError,
    ServerIdentity,
    TlsStream,
    handshake,
    server_identity,
)
from sidecar.core.errors import HostError, PeerError
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.svid import TrustBundle, serial_text
from tests.adapters.certificates import (
    OddAuthority,
    bundle_of,
    chain_of,
    odd_leaf,
    organization,
    san_of,
)
from tests.adapters.deadlines import within
from tests.adapters.tls_ends import Cut, Peer, Refused, Wire, admit, refuse, tcp_ends
from tests.ca import Authority, Issued, Key, key_usage, rsa_key
from tests.client import client_context

TRAEFIK = "/workload/traefik"
UNKNOWN_EXTENSION = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
OURS = "spiffe://example.org/workload/traefik"
CLIENT_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER_ONLY = (ExtendedKeyUsageOID.SERVER_AUTH,)
LONG_AGO = {"not_before": timedelta(hours=-2), "not_after": timedelta(hours=-1)}
NOT_YET = {"not_before": timedelta(hours=1), "not_after": timedelta(hours=2)}


@dataclass
class Pki:
    """The authorities of one test; `root` is trusted for example.org, `foreign` for other.org."""

    root: Authority
    foreign: Authority
    folder: Path
    closing: ExitStack

    def identity(
        self, *more: Authority, version: str = "1.3", speaks_http: bool = False
    ) -> ServerIdentity:
        """Our identity, which trusts `root`, `foreign`, and what is given besides."""
        authorities: dict[str, list[Authority]] = {}
        for one in (self.root, self.foreign, *more):
            authorities.setdefault(one.trust_domain.name, []).append(one)
        bundles = [bundle_of(*each) for each in authorities.values()]
        return server_identity(
            self.root.svid(),
            {one.trust_domain: one for one in bundles},
            version,
            speaks_http=speaks_http,
        )

    def context(self, issued: Issued | None, version: str = "1.3") -> ssl.SSLContext:
        context = client_context(self.root, None, self.folder, version)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # a peer may present what we must refuse
        if issued is not None:
            context.load_cert_chain(issued.write(self.folder, f"peer-{id(issued)}"))
        return context

    def dial(
        self,
        issued: Issued | None,
        version: str = "1.3",
        session: ssl.SSLSession | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[socket.socket, Peer]:
        ours, wire = tcp_ends(self.closing)
        return ours, Peer(wire, context or self.context(issued, version), session)

    async def admit(self, identity: ServerIdentity, issued: Issued, version: str = "1.3") -> Pair:
        ours, peer = self.dial(issued, version)
        return Pair(await admit(ours, identity, peer), peer)

    async def refuse(
        self, identity: ServerIdentity, issued: Issued | None, version: str = "1.3"
    ) -> Refused:
        ours, peer = self.dial(issued, version)
        return await refuse(ours, identity, peer)


@dataclass
class Pair:
    """An admitted connection: our stream and the peer."""

    ours: TlsStream
    peer: Peer


@pytest.fixture
def pki(authority: Authority, foreign: Authority, folder: Path, closing: ExitStack) -> Pki:
    return Pki(authority, foreign, folder, closing)


BUFFER = memoryview(bytearray(256 * 1024))


async def drained(stream: TlsStream, count: int) -> bytes:
    """Drain until so many bytes have come."""
    data = bytearray()
    while True:
        got, _ = stream.drain(BUFFER)
        data += BUFFER[:got]
        if len(data) >= count:
            return bytes(data)
        await trio.lowlevel.wait_readable(stream.sock)


async def drained_to_the_end(stream: TlsStream) -> bytes:
    """Drain until the peer's close_notify."""
    data = bytearray()
    while True:
        got, ended = stream.drain(BUFFER)
        data += BUFFER[:got]
        if ended:
            return bytes(data)
        await trio.lowlevel.wait_readable(stream.sock)


def with_leaf(**changes: object) -> Callable[[Authority], Issued]:
    """A leaf of Traefik's with one rule kept or broken."""

    def issue(root: Authority) -> Issued:
        return root.sign(replace(root.leaf(TRAEFIK), **changes))  # type: ignore[arg-type]

    return issue


def below(count: int) -> Callable[[Authority], Issued]:
    """A leaf below so many intermediates."""

    def issue(root: Authority) -> Issued:
        chain = chain_of(root, count)
        return chain[0].sign(root.leaf(TRAEFIK), *chain)

    return issue


def named_like_the_root(root: Authority) -> Issued:
    name = root.certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)[0]
    below_root = OddAuthority(name=str(name.value), parent=root)
    return below_root.sign(root.leaf(TRAEFIK), below_root)


def with_strangers(root: Authority) -> Issued:
    strangers = [OddAuthority(name=f"stranger {number}") for number in range(20)]
    signer = OddAuthority(name="signer", parent=root)
    return signer.sign(root.leaf(TRAEFIK), *strangers, signer)


ACCEPTED = [
    pytest.param(with_leaf(), id="URI name only"),
    pytest.param(with_leaf(subject=None, san_critical=True), id="no subject, name critical"),
    pytest.param(with_leaf(san_critical=True), id="subject, and name critical"),
    pytest.param(with_leaf(subject=None), id="no subject, name not critical"),
    pytest.param(with_leaf(dns=("traefik.example.org",)), id="DNS name beside the ID"),
    pytest.param(with_leaf(authority_key_id=False), id="no authorityKeyIdentifier"),
    pytest.param(with_leaf(basic_constraints=None), id="no basicConstraints"),
    pytest.param(with_leaf(extended_key_usage=None), id="no extendedKeyUsage"),
    pytest.param(
        with_leaf(key_usage=key_usage(key_encipherment=True, key_agreement=True)),
        id="more key usages",
    ),
    pytest.param(with_leaf(key=rsa_key(2048)), id="RSA of 2048 bits"),
    pytest.param(with_leaf(key=ec.generate_private_key(ec.SECP384R1())), id="P-384"),
    pytest.param(with_leaf(key=ed25519.Ed25519PrivateKey.generate()), id="Ed25519"),
    pytest.param(below(1), id="one intermediate"),
    pytest.param(below(8), id="eight intermediates"),
    pytest.param(named_like_the_root, id="intermediate named like the root"),
    pytest.param(with_strangers, id="certificates that have nothing to do with it"),
]


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@pytest.mark.parametrize("issue", ACCEPTED)
@within(30)
async def test_svid_is_admitted(
    pki: Pki, issue: Callable[[Authority], Issued], version: str
) -> None:
    issued = issue(pki.root)
    pair = await pki.admit(pki.identity(version=version), issued, version)
    assert str(pair.ours.peer) == OURS
    assert pair.ours.serial == serial_text(issued.chain[0])
    assert pair.peer.tls.version() == f"TLSv{version}"
    await pair.peer.send(b"hello")
    assert await drained(pair.ours, 5) == b"hello"


# RFC 8446 6.2 (Error Alerts), as the standard library names them.
BAD = "BAD_CERTIFICATE"
UNSUPPORTED = "UNSUPPORTED_CERTIFICATE"
UNKNOWN = "UNKNOWN_CA"

BY_THE_RULES = "not proven by the trust bundle of example.org"

REFUSED = [
    pytest.param(with_leaf(**LONG_AGO), "expired at", "CERTIFICATE_EXPIRED", id="expired"),
    pytest.param(
        with_leaf(**NOT_YET), "not valid before", "CERTIFICATE_EXPIRED", id="not yet valid"
    ),
    pytest.param(with_leaf(key_usage=None), "no keyUsage", UNSUPPORTED, id="no keyUsage"),
    pytest.param(
        with_leaf(key_usage_critical=False),
        "keyUsage is not critical",
        UNSUPPORTED,
        id="keyUsage not critical",
    ),
    pytest.param(
        with_leaf(key_usage=key_usage(digital_signature=False, key_encipherment=True)),
        "keyUsage lacks digitalSignature",
        UNSUPPORTED,
        id="no digitalSignature",
    ),
    pytest.param(
        with_leaf(key_usage=key_usage(crl_sign=True)), "cRLSign", UNSUPPORTED, id="cRLSign"
    ),
    pytest.param(
        with_leaf(key_usage=key_usage(key_cert_sign=True)),
        "keyCertSign",
        UNSUPPORTED,
        id="keyCertSign",
    ),
    pytest.param(
        with_leaf(
            basic_constraints=x509.BasicConstraints(True, None),
            key_usage=key_usage(key_cert_sign=True),
        ),
        "cA is true",
        BAD,
        id="an authority as leaf",
    ),
    pytest.param(
        with_leaf(basic_constraints=x509.BasicConstraints(True, None)),
        "cA is true",
        BAD,
        id="cA on a leaf",
    ),
    pytest.param(
        with_leaf(extended_key_usage=SERVER_ONLY),
        "extendedKeyUsage",
        UNSUPPORTED,
        id="serverAuth only",
    ),
    pytest.param(
        with_leaf(extended_key_usage=CLIENT_ONLY),
        "extendedKeyUsage",
        UNSUPPORTED,
        id="clientAuth only",
    ),
    pytest.param(with_leaf(uris=(OURS, OURS)), "2 URI names", BAD, id="two URI names, the same"),
    pytest.param(
        with_leaf(uris=(OURS, "https://example.org/")), "2 URI names", BAD, id="two URI names"
    ),
    pytest.param(with_leaf(uris=(), dns=("example.org",)), "0 URI names", BAD, id="no URI name"),
    pytest.param(with_leaf(uris=()), "0 URI names", BAD, id="no subjectAlternativeName"),
    pytest.param(
        with_leaf(uris=("https://example.org/workload/traefik",)),
        "does not start with spiffe://",
        BAD,
        id="URI of another scheme",
    ),
    pytest.param(
        with_leaf(uris=("SPIFFE://example.org/workload/traefik",)),
        "does not start with spiffe://",
        BAD,
        id="scheme in upper case",
    ),
    pytest.param(with_leaf(uris=(OURS + "\n",)), "not a SPIFFE ID", BAD, id="newline after the ID"),
    pytest.param(
        with_leaf(uris=("spiffe://example.org\n/workload/traefik",)),
        "not a SPIFFE ID",
        BAD,
        id="newline after the trust domain",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://Example.org/workload/traefik",)),
        "not a SPIFFE ID",
        BAD,
        id="trust domain in upper case",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://example.org",)), "names a trust domain", BAD, id="no path"
    ),
    pytest.param(with_leaf(uris=(OURS + "/",)), "trailing slash", BAD, id="trailing slash"),
    pytest.param(
        with_leaf(uris=("spiffe://example.org/workload/../traefik",)),
        "relative path",
        BAD,
        id="relative path",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://example.org/workload%2Ftraefik",)),
        "not a SPIFFE ID",
        BAD,
        id="percent-encoding",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://user@example.org/workload/traefik",)),
        "not a SPIFFE ID",
        BAD,
        id="user in the trust domain",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://example.org:443/workload/traefik",)),
        "not a SPIFFE ID",
        BAD,
        id="port in the trust domain",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://example.org/" + "a" * 2048,)), "2048 bytes", BAD, id="too long"
    ),
    pytest.param(
        with_leaf(uris=("spiffe://nowhere.org/workload/traefik",)),
        "no trust bundle for trust domain nowhere.org",
        UNKNOWN,
        id="a trust domain that we do not know, signed by one that we know",
    ),
    pytest.param(
        with_leaf(uris=("spiffe://example.org.other.org/workload/traefik",)),
        "no trust bundle",
        UNKNOWN,
        id="a trust domain that begins like ours",
    ),
    pytest.param(with_leaf(key=rsa_key(1024)), "RSA key of 1024 bits", BAD, id="RSA of 1024 bits"),
    pytest.param(
        with_leaf(unknown_critical_extension=True),
        "critical extensions which are not supported: 1.3.6.1.4.1.99999.1",
        UNSUPPORTED,
        id="unknown critical extension",
    ),
    pytest.param(below(9), BY_THE_RULES, UNKNOWN, id="nine intermediates"),
    pytest.param(below(12), BY_THE_RULES, UNKNOWN, id="twelve intermediates"),
]


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@pytest.mark.parametrize(("issue", "reason", "alert"), REFUSED)
@within(30)
async def test_what_is_no_svid_is_refused_with_a_reason_and_an_alert(
    pki: Pki, issue: Callable[[Authority], Issued], reason: str, alert: str, version: str
) -> None:
    issued = issue(pki.root)
    refused = await pki.refuse(pki.identity(version=version), issued, version)
    assert reason in refused.reason
    uris = _uris(issued.chain[0])
    assert refused.claimed == (",".join(repr(uri[:256]) for uri in uris) or "none")
    _assert_alert(refused, version, alert)


def _uris(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _assert_alert(refused: Refused, version: str, alert: str = UNKNOWN) -> None:
    """Under TLS 1.3 a refused peer sees its own handshake succeed, and the alert when it reads."""
    assert "ALERT" in refused.alert, f"no alert: {refused}"
    assert refused.alert.endswith(f"ALERT_{alert}")
    assert refused.seen_at == ("read" if version == "1.3" else "handshake")


# RFC 5280 6.1.1 (d): a trust anchor is a name and a key.
ANCHORS_ACCEPTED = [
    pytest.param({"usage": None}, id="no keyUsage, as `openssl req -x509` makes it"),
    pytest.param({"more": [(UNKNOWN_EXTENSION, True)]}, id="unknown critical extension"),
    pytest.param(
        {"more": [(x509.PolicyConstraints(0, None), True)]}, id="critical policyConstraints"
    ),
]


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("changes", ANCHORS_ACCEPTED)
@within(30)
async def test_anchor_needs_no_more_than_name_and_key(
    pki: Pki, changes: dict[str, object], federated: bool, version: str
) -> None:
    trust_domain = "third.org" if federated else "example.org"
    root = OddAuthority(trust_domain, "corp", **changes)  # type: ignore[arg-type]
    signer = OddAuthority(trust_domain, "below", parent=root)
    identity = pki.identity(root, version=version)
    for chain in ((), (root,)):
        issued = signer.sign(root.leaf(TRAEFIK), signer, *chain)
        pair = await pki.admit(identity, issued, version)
        assert str(pair.ours.peer) == f"spiffe://{trust_domain}{TRAEFIK}"
        pair.ours.prove_again(pki.identity(root), datetime.now(UTC))
    # What is not an anchor keeps all of the rules.
    odd = OddAuthority(parent=pki.root, name="odd", **changes)  # type: ignore[arg-type]
    await pki.refuse(pki.identity(), odd.sign(odd.leaf(TRAEFIK), odd))


def _identity_of(authority: Authority) -> ServerIdentity:
    return server_identity(authority.svid(), {authority.trust_domain: authority.bundle}, "1.3")


@within(30)
async def test_what_the_handshake_did_not_look_at_is_not_looked_at_later(pki: Pki) -> None:
    signer = pki.root.intermediate()
    issued = signer.sign(signer.leaf(TRAEFIK), signer)
    weak = pki.foreign.sign(replace(pki.foreign.leaf(), key=rsa_key(1024)))
    issued = Issued((*issued.chain, *weak.chain), issued.key)
    pair = await pki.admit(pki.identity(), issued)
    pair.ours.prove_again(pki.identity(), datetime.now(UTC))
    with pytest.raises(PeerError, match="not proven"):
        pair.ours.prove_again(_identity_of(Authority("example.org")), datetime.now(UTC))


@pytest.mark.parametrize("order", [1, -1])
@within(30)
async def test_authorities_of_one_name_without_key_ids_are_all_tried(pki: Pki, order: int) -> None:
    roots = [OddAuthority(name="same", key_id=False) for _ in range(8)]
    identity = pki.identity(*roots[::order])
    for root in roots:
        leaf = replace(root.leaf(TRAEFIK), authority_key_id=False)
        assert str((await pki.admit(identity, root.sign(leaf))).ours.peer) == OURS
    impostor = OddAuthority(name="same", key_id=False)
    leaf = replace(impostor.leaf(TRAEFIK), authority_key_id=False)
    refused = await pki.refuse(identity, impostor.sign(leaf))
    assert refused.reason == f"{BY_THE_RULES}: none of its authorities signed it"


AUTHORITIES_ACCEPTED = [
    pytest.param({}, id="plain"),
    pytest.param({"key_id": False}, id="no subjectKeyIdentifier"),
    pytest.param({"basic_constraints_critical": False}, id="basicConstraints not critical"),
    pytest.param({"path_length": 0}, id="path length 0"),
    pytest.param({"uris": ("spiffe://example.org",)}, id="ID of the trust domain"),
    pytest.param({"uris": ("spiffe://example.org/",)}, id="ID of the trust domain, with slash"),
]
AUTHORITIES_REFUSED = [
    pytest.param({"usage": key_usage(crl_sign=True)}, id="no keyCertSign"),
    pytest.param({"ca": None}, id="no basicConstraints"),
    pytest.param({"ca": False}, id="cA false"),
    pytest.param({"not_after": timedelta(hours=-1)}, id="expired"),
    pytest.param({"uris": ("spiffe://example.org/a",)}, id="ID with a path"),
    pytest.param(
        # X509-SVID 4.2 (Name Constraints) allows them, our verifier does not know them for
        # URIs: a gap that is known and fails closed.
        {
            "name_constraints": x509.NameConstraints(
                [x509.UniformResourceIdentifier("example.org")], None
            )
        },
        id="URI name constraints",
    ),
    pytest.param(
        {
            "name_constraints": x509.NameConstraints(
                None, [x509.UniformResourceIdentifier("example.org")]
            )
        },
        id="URI name constraints that exclude us",
    ),
]


@pytest.mark.parametrize("changes", AUTHORITIES_ACCEPTED)
@within(30)
async def test_authority_may_sign(pki: Pki, changes: dict[str, object]) -> None:
    root = OddAuthority(**changes)  # type: ignore[arg-type]
    pair = await pki.admit(pki.identity(root), root.sign(root.leaf(TRAEFIK)))
    assert str(pair.ours.peer) == OURS


@pytest.mark.parametrize("place", ["in the bundle", "as intermediate"])
@pytest.mark.parametrize("changes", AUTHORITIES_REFUSED)
@within(30)
async def test_authority_may_not_sign(pki: Pki, changes: dict[str, object], place: str) -> None:
    if place == "in the bundle":
        odd = OddAuthority(**changes)  # type: ignore[arg-type]
        identity, issued = pki.identity(odd), odd.sign(odd.leaf(TRAEFIK))
    else:
        odd = OddAuthority(parent=pki.root, name="odd", **changes)  # type: ignore[arg-type]
        identity, issued = pki.identity(), odd.sign(odd.leaf(TRAEFIK), odd)
    refused = await pki.refuse(identity, issued)
    assert BY_THE_RULES in refused.reason
    assert refused.claimed == repr(OURS)
    is_gap = "name_constraints" in changes and place == "as intermediate"
    _assert_alert(refused, "1.3", UNSUPPORTED if is_gap else UNKNOWN)


@within(30)
async def test_path_length_is_respected(pki: Pki) -> None:
    root = OddAuthority(path_length=0)
    below_root = OddAuthority(parent=root, name="too deep")
    refused = await pki.refuse(pki.identity(root), below_root.sign(root.leaf(TRAEFIK), below_root))
    assert BY_THE_RULES in refused.reason
    _assert_alert(refused, "1.3")


@pytest.mark.parametrize("critical", [True, False])
@pytest.mark.parametrize("violator", ["leaf", "intermediate"])
@within(30)
async def test_name_constraints_are_respected(pki: Pki, violator: str, critical: bool) -> None:
    # OpenSSL looks at name constraints after it has called back for the leaf, so this objection
    # comes when the peer was already judged.
    excluded = "SPIRE" if violator == "leaf" else "intermediate"
    constraints = x509.NameConstraints(None, [x509.DirectoryName(organization(excluded))])
    root = OddAuthority(name_constraints=constraints, name_constraints_critical=critical)
    signer = OddAuthority(parent=root, name="intermediate")
    refused = await pki.refuse(pki.identity(root), signer.sign(root.leaf(TRAEFIK), signer))
    assert refused.claimed == repr(OURS)
    _assert_alert(refused, "1.3")


@within(30)
async def test_authority_for_one_end_of_tls_signs_for_neither(pki: Pki) -> None:
    root = OddAuthority(extended_key_usage=SERVER_ONLY)
    refused = await pki.refuse(pki.identity(root), root.sign(root.leaf(TRAEFIK)))
    assert "extendedKeyUsage of a signing certificate lacks clientAuth" in refused.reason
    assert refused.claimed == repr(OURS)
    _assert_alert(refused, "1.3")


@within(30)
async def test_several_authorities_of_one_name_each_prove_their_own(pki: Pki) -> None:
    roots = [OddAuthority() for _ in range(6)]
    identity = pki.identity(*roots)
    for root in roots:
        pair = await pki.admit(identity, root.sign(root.leaf(TRAEFIK)))
        assert str(pair.ours.peer) == OURS


@within(30)
async def test_foreign_authority_of_our_name_without_key_id_hinders_nobody(pki: Pki) -> None:
    roots = [OddAuthority() for _ in range(3)]
    namesakes = [OddAuthority("other.org", key_id=False) for _ in range(3)]
    for identity in (pki.identity(*roots, *namesakes), pki.identity(*namesakes, *roots)):
        for root in roots:
            pair = await pki.admit(identity, root.sign(root.leaf(TRAEFIK)))
            assert str(pair.ours.peer) == OURS


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_foreign_authority_cannot_speak_for_our_trust_domain(pki: Pki, version: str) -> None:
    identity = pki.identity(version=version)
    forged = pki.foreign.sign(pki.root.leaf(TRAEFIK))
    refused = await pki.refuse(identity, forged, version)
    assert BY_THE_RULES in refused.reason
    assert refused.claimed == repr(OURS)
    _assert_alert(refused, version)


@within(30)
async def test_reason_of_a_forgery_is_whose_signature_it_lacks(pki: Pki) -> None:
    # The refusal that matters most should not read like a chain that is too long.
    refused = await pki.refuse(pki.identity(), pki.foreign.sign(pki.root.leaf(TRAEFIK)))
    assert refused.reason == f"{BY_THE_RULES}: none of its authorities signed it"


@within(30)
async def test_foreign_intermediate_cannot_speak_for_our_trust_domain(pki: Pki) -> None:
    below_foreign = pki.foreign.intermediate()
    forged = below_foreign.sign(pki.root.leaf(TRAEFIK), below_foreign)
    refused = await pki.refuse(pki.identity(), forged)
    assert BY_THE_RULES in refused.reason
    # With our own root thrown in, the chain is none the better.
    forged = below_foreign.sign(pki.root.leaf(TRAEFIK), below_foreign, pki.root)
    refused = await pki.refuse(pki.identity(), forged)
    assert BY_THE_RULES in refused.reason


@within(30)
async def test_foreign_authority_named_like_ours_cannot_speak_for_our_trust_domain(
    pki: Pki,
) -> None:
    ours, namesake = OddAuthority(), OddAuthority("other.org")
    identity = pki.identity(ours, namesake)
    for has_key_id in (True, False):
        leaf = replace(ours.leaf(TRAEFIK), authority_key_id=has_key_id)
        refused = await pki.refuse(identity, namesake.sign(leaf))
        assert BY_THE_RULES in refused.reason
        _assert_alert(refused, "1.3")


@within(30)
async def test_federated_peer_is_admitted_under_its_own_id(pki: Pki) -> None:
    pair = await pki.admit(pki.identity(), pki.foreign.sign(pki.foreign.leaf("/billing")))
    assert str(pair.ours.peer) == "spiffe://other.org/billing"


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_unknown_authority_is_refused(pki: Pki, version: str) -> None:
    for impostor in (Authority("example.org"), OddAuthority(name="unheard of")):
        refused = await pki.refuse(
            pki.identity(version=version), impostor.sign(pki.root.leaf(TRAEFIK)), version
        )
        assert BY_THE_RULES in refused.reason
        assert refused.claimed == repr(OURS)
        _assert_alert(refused, version)


@within(30)
async def test_leaf_without_its_intermediate_is_refused(pki: Pki) -> None:
    refused = await pki.refuse(pki.identity(), pki.root.intermediate().sign(pki.root.leaf(TRAEFIK)))
    assert refused.reason == f"{BY_THE_RULES}: none of its authorities signed it"
    _assert_alert(refused, "1.3", "UNKNOWN_CA")


@within(30)
async def test_more_certificates_than_anybody_needs_are_refused(pki: Pki) -> None:
    stranger = OddAuthority(name="stranger")
    refused = await pki.refuse(
        pki.identity(), pki.root.sign(pki.root.leaf(TRAEFIK), *[stranger] * 400)
    )
    assert refused.reason == "excessive message size"
    assert refused.claimed == "none"
    _assert_alert(refused, "1.3", "ILLEGAL_PARAMETER")


@within(30)
async def test_leaf_that_is_itself_in_the_bundle_is_refused(pki: Pki) -> None:
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    bundle = TrustBundle(pki.root.trust_domain, (pki.root.certificate, issued.chain[0]))
    identity = server_identity(pki.root.svid(), {bundle.trust_domain: bundle}, "1.3")
    refused = await pki.refuse(identity, issued)
    assert "itself an authority" in refused.reason
    _assert_alert(refused, "1.3", BAD)


@within(30)
async def test_authority_cannot_be_a_peer(pki: Pki) -> None:
    root = OddAuthority(uris=("spiffe://example.org",))
    refused = await pki.refuse(pki.identity(root), Issued((root.certificate,), root.key))
    assert "names a trust domain" in refused.reason
    _assert_alert(refused, "1.3", BAD)


@within(30)
async def test_intermediate_in_a_bundle_is_an_authority(pki: Pki) -> None:
    unheard = OddAuthority(name="unheard of")
    anchor = OddAuthority(parent=unheard, name="anchor")
    identity = pki.identity(anchor)
    for chain in ((), (anchor,), (anchor, unheard)):
        pair = await pki.admit(identity, anchor.sign(anchor.leaf(TRAEFIK), *chain))
        assert str(pair.ours.peer) == OURS


@within(30)
async def test_empty_bundle_trusts_nobody(pki: Pki) -> None:
    empty = TrustBundle(pki.foreign.trust_domain, ())
    bundles = {one.trust_domain: one for one in (pki.root.bundle, empty)}
    identity = server_identity(pki.root.svid(), bundles, "1.3")
    refused = await pki.refuse(identity, pki.foreign.sign(pki.foreign.leaf("/billing")))
    assert "no trust bundle for trust domain other.org" in refused.reason
    _assert_alert(refused, "1.3")


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_peer_without_certificate_is_refused(pki: Pki, version: str) -> None:
    refused = await pki.refuse(pki.identity(version=version), None, version)
    assert refused.reason == "no certificate presented"
    assert refused.claimed == "none"
    alert = {"1.3": "CERTIFICATE_REQUIRED", "1.2": "HANDSHAKE_FAILURE"}[version]
    _assert_alert(refused, version, alert)


# What comes instead of a ClientHello.


class OneByteWire(Wire):
    """Sends every byte by itself, and lets others run in between."""

    async def send(self, data: bytes) -> None:
        for number in range(len(data)):
            await super().send(data[number : number + 1])


NOT_TLS = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: models\r\n\r\n", "plain HTTP,", "plain_http", id="HTTP"),
    pytest.param(b"CONNECT a:1 HTTP/1.1\r\n\r\n", "plain HTTP,", "plain_http", id="CONNECT"),
    pytest.param(b"OPTIONS * HTTP/1.1\r\n\r\n", "plain HTTP,", "plain_http", id="OPTIONS"),
    pytest.param(b"M-SEARCH * HTTP/1.1\r\n\r\n", "plain HTTP,", "plain_http", id="M-SEARCH"),
    pytest.param(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "plain HTTP/2 (h2c),", "plain_http", id="h2c preface"
    ),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", "SSH,", "protocol", id="SSH"),
    pytest.param(
        b"PROXY TCP4 192.0.2.10 192.0.2.26 50912 6701\r\n",
        "a PROXY protocol header (version 1),",
        "protocol",
        id="PROXY 1",
    ),
    pytest.param(b"PROXY UNKNOWN\r\n", "(version 1),", "protocol", id="PROXY 1, unknown"),
    pytest.param(
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\x0a\xc0\0\2\x1a\xc6\xe0\x1a\x2d",
        "a PROXY protocol header (version 2),",
        "protocol",
        id="PROXY 2",
    ),
    pytest.param(bytes(range(256)) * 8, "no TLS (first bytes 00 01 02 03),", "protocol", id="any"),
    pytest.param(b"\5\1\0", "no TLS (first bytes 05 01 00),", "protocol", id="SOCKS"),
    pytest.param(b"\n", "no TLS (first bytes 0a),", "protocol", id="one byte"),
]
ODD_TLS = [
    pytest.param(b"\x16\x03\x01\xff\xff" + b"\1" * 64, id="a record that is too long"),
    pytest.param(b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", id="a huge ClientHello"),
    pytest.param(b"\x16GET / HTTP/1.1\r\n\r\n", id="HTTP behind a byte of TLS"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x28", id="an alert first"),
    pytest.param(b"\x80\x2e\x01\x03\x01" + b"\0" * 44, id="an SSLv2 hello"),
    pytest.param(b"\xff" * 40, id="bytes of another world"),
]


@pytest.mark.parametrize("wire_class", [Wire, OneByteWire])
@pytest.mark.parametrize(("data", "found", "result"), NOT_TLS)
@within(30)
async def test_what_is_no_tls_is_named_with_what_to_do(
    pki: Pki, data: bytes, found: str, result: str, wire_class: type[Wire]
) -> None:
    ours, wire = tcp_ends(pki.closing)
    wire.__class__ = wire_class
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.send, data)
        with pytest.raises(HandshakeError) as caught:
            await handshake(ours, pki.identity(), 20)
    assert caught.value.message.startswith("the peer sent ")
    assert f"{found} expected TLS" in caught.value.message
    assert (caught.value.claimed, caught.value.result) == ("none", result)
    assert caught.value.hint
    if "PROXY" in found:
        assert "switch it off" in caught.value.hint


@pytest.mark.parametrize("data", ODD_TLS)
@within(30)
async def test_what_only_begins_like_tls_is_refused(pki: Pki, data: bytes) -> None:
    ours, wire = tcp_ends(pki.closing)
    await wire.send(data)
    wire.end()
    with pytest.raises(HandshakeError) as caught:
        await handshake(ours, pki.identity(), 20)
    assert caught.value.claimed == "none"
    assert caught.value.message
    # Words, never a class of ours or of Python's.
    assert "Error" not in caught.value.message


@within(30)
async def test_silent_peer_gets_no_longer_than_the_deadline(pki: Pki) -> None:
    ours, _wire = tcp_ends(pki.closing)
    with pytest.raises(HandshakeError) as caught:
        await handshake(ours, pki.identity(), 0.05)
    assert caught.value.message == "no TLS handshake within 0.05 s"
    assert caught.value.claimed == "none"


@within(30)
async def test_peer_that_stops_half_way_gets_no_longer_than_the_deadline(pki: Pki) -> None:
    hello = _client_hello(pki)
    for data in (hello[:3], hello[:-1], hello):
        ours, wire = tcp_ends(pki.closing)
        await wire.send(data)
        with pytest.raises(HandshakeError, match="no TLS handshake within"):
            await handshake(ours, pki.identity(), 0.05)


@pytest.mark.parametrize("how", ["end", "reset"])
@within(30)
async def test_peer_that_goes_away_half_way_is_told_as_such(pki: Pki, how: str) -> None:
    hello = _client_hello(pki)
    for data in (b"", hello[:10], hello):
        ours, wire = tcp_ends(pki.closing)
        await wire.send(data)
        getattr(wire, how)()
        with pytest.raises(HandshakeError) as caught:
            await handshake(ours, pki.identity(), 20)
        assert caught.value.claimed == "none"
        words = {"end": "ended", "reset": "ECONNRESET"}
        assert words[how] in caught.value.message
        # Without a byte it was no handshake: a load balancer asks so whether we listen.
        assert (caught.value.result == HandshakeResult.PROBE) is (not data)


def _client_hello(pki: Pki) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pki.context(None).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_handshake_may_come_one_byte_at_a_time(pki: Pki, version: str) -> None:
    ours, wire = tcp_ends(pki.closing)
    wire.__class__ = OneByteWire
    peer = Peer(wire, pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)), version))
    stream = await admit(ours, pki.identity(version=version), peer)
    await peer.send(b"hello")
    assert await drained(stream, 5) == b"hello"


@within(30)
async def test_handshake_that_is_cancelled_leaves_the_socket_to_its_owner(pki: Pki) -> None:
    ours, _wire = tcp_ends(pki.closing)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handshake, ours, pki.identity(), 20)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert ours.fileno() >= 0


# Versions and ciphers.


@within(30)
async def test_tls_1_2_is_refused_unless_configured(pki: Pki) -> None:
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    refused = await pki.refuse(pki.identity(), issued, "1.2")
    assert refused.reason == "the peer offers TLS 1.2 at most, expected TLS 1.3"
    assert refused.hint is not None
    assert '[listener] tls_minimum_version = "1.2"' in refused.hint
    assert refused.alert == "TLSV1_ALERT_PROTOCOL_VERSION"
    pair = await pki.admit(pki.identity(version="1.2"), issued, "1.2")
    assert pair.peer.tls.version() == "TLSv1.2"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        pytest.param(["h2", "http/1.1"], "http/1.1", id="among others"),
        pytest.param(["http/1.1"], "http/1.1", id="alone"),
        pytest.param([], None, id="none offered"),
    ],
)
@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_mode_http_chooses_http_by_alpn(
    pki: Pki, offered: list[str], chosen: str | None, version: str
) -> None:
    for speaks_http in (True, False):
        context = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)), version)
        if offered:
            context.set_alpn_protocols(offered)
        ours, peer = pki.dial(None, context=context)
        await admit(ours, pki.identity(version=version, speaks_http=speaks_http), peer)
        assert peer.tls.selected_alpn_protocol() == (chosen if speaks_http else None)


@pytest.mark.parametrize("offered", [["h2"], ["http/1.0"], ["h2", "spdy/3", "HTTP/1.1"]])
@within(30)
async def test_no_common_protocol_is_an_alert_and_breaks_no_other_connection(
    pki: Pki, offered: list[str]
) -> None:
    good = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)))
    bad = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)))
    bad.set_alpn_protocols(offered)
    identity = pki.identity(speaks_http=True)
    ours, peer = pki.dial(None, context=good)
    innocent = await admit(ours, identity, peer)
    ours, refused_peer = pki.dial(None, context=bad)
    refused = await refuse(ours, identity, refused_peer)
    assert "alert no application protocol" in refused.alert
    assert repr(offered[0]) in refused.reason
    assert "expected 'http/1.1'" in refused.reason
    await peer.send(b"hello")
    assert await drained(innocent, 5) == b"hello"
    ours, peer = pki.dial(None, context=good)
    await admit(ours, identity, peer)


@within(30)
async def test_newest_version_is_taken_when_older_ones_are_allowed(pki: Pki) -> None:
    context = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)), "1.3")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    ours, peer = pki.dial(None, context=context)
    await admit(ours, pki.identity(version="1.2"), peer)
    assert peer.tls.version() == "TLSv1.3"


@pytest.mark.parametrize(
    "cipher",
    [
        pytest.param("AES128-GCM-SHA256", id="no forward secrecy"),
        pytest.param("ECDHE-ECDSA-AES256-SHA384", id="CBC"),
        pytest.param("ECDHE-ECDSA-AES128-SHA", id="CBC and SHA-1"),
        pytest.param("DHE-RSA-AES256-GCM-SHA384", id="finite-field Diffie-Hellman"),
        pytest.param("ECDHE-ECDSA-NULL-SHA", id="no encryption"),
        pytest.param("AECDH-AES256-SHA", id="anonymous"),
    ],
)
@within(30)
async def test_weak_cipher_of_tls_1_2_is_refused(pki: Pki, cipher: str) -> None:
    context = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)), "1.2")
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    ours, peer = pki.dial(None, context=context)
    refused = await refuse(ours, pki.identity(version="1.2"), peer)
    assert refused.reason == "no shared cipher"
    assert "HANDSHAKE_FAILURE" in refused.alert


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(rsa_key(2048), id="RSA"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
@within(30)
async def test_our_own_svid_may_have_any_of_these_keys(pki: Pki, key: Key, version: str) -> None:
    below_root = pki.root.intermediate()
    issued = below_root.sign(replace(pki.root.leaf(), key=key), below_root)
    svid = replace(pki.root.svid(), chain=issued.chain, private_key=issued.key)
    identity = server_identity(svid, {pki.root.trust_domain: pki.root.bundle}, version)
    pair = await pki.admit(identity, pki.root.sign(pki.root.leaf(TRAEFIK)), version)
    # The peer trusts the root only: we sent the intermediate along.
    assert pair.peer.tls.getpeercert(binary_form=True) == svid.leaf.public_bytes(Encoding.DER)


# No resumption: a resumed session would skip the decision about the peer.


@pytest.mark.parametrize("how", ["tickets", "session ID"])
@within(30)
async def test_tls_1_2_never_resumes_for_a_peer_that_tries(pki: Pki, how: str) -> None:
    identity = pki.identity(version="1.2")
    context = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)), "1.2")
    if how == "session ID":
        context.options |= ssl.OP_NO_TICKET
    session, streams = None, []
    for _ in range(3):
        ours, peer = pki.dial(None, session=session, context=context)
        # Kept: OpenSSL forgets the session of a connection that is dropped.
        streams.append(await admit(ours, identity, peer))
        assert peer.tls.session_reused is False
        session = peer.tls.session
        assert session is not None
        assert not session.has_ticket
        assert session.id == b""


@within(30)
async def test_tls_1_3_never_resumes_for_a_peer_that_tries(pki: Pki) -> None:
    identity = pki.identity()
    context = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)))
    session, streams = None, []
    for _ in range(3):
        ours, peer = pki.dial(None, session=session, context=context)
        stream = await admit(ours, identity, peer)
        streams.append(stream)
        # Tickets, if there are any, come after the handshake and before the first answer.
        assert stream.send(b"hello") == 5
        assert await peer.receive_exactly(5) == b"hello"
        assert peer.tls.session_reused is False
        session = peer.tls.session
        assert session is not None


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_session_of_an_earlier_identity_is_worth_nothing(
    pki: Pki, version: str, closing: ExitStack
) -> None:
    """A server with our key, of somebody who forgot about tickets: its sessions do not help."""
    svid = pki.root.svid()
    careless = SSL.Context(SSL.TLS_SERVER_METHOD)
    careless.use_certificate(svid.leaf)
    careless.use_privatekey(svid.private_key)
    context = pki.context(pki.root.sign(pki.root.leaf(TRAEFIK)), version)
    ours, peer = pki.dial(None, context=context)
    connection = SSL.Connection(careless, ours)
    connection.set_accept_state()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.handshake)
        while True:
            try:
                connection.do_handshake()
                break
            except SSL.WantReadError:
                await trio.lowlevel.wait_readable(ours)
    connection.send(b"hello")
    assert await peer.receive_exactly(5) == b"hello"
    session = peer.tls.session
    assert session is not None
    assert session.has_ticket
    identity = server_identity(svid, {pki.root.trust_domain: pki.root.bundle}, version)
    ours, peer = pki.dial(None, session=session, context=context)
    stream = await admit(ours, identity, peer)
    assert peer.tls.session_reused is False
    assert str(stream.peer) == OURS


@within(30)
async def test_renegotiation_is_refused(pki: Pki) -> None:
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate(issued.chain[0])
    context.use_privatekey(issued.key)
    ours, wire = tcp_ends(pki.closing)
    peer = SSL.Connection(context, wire.sock)
    peer.set_connect_state()

    async def shake() -> None:
        while True:
            try:
                peer.do_handshake()
                return
            except SSL.WantReadError:
                await trio.lowlevel.wait_readable(wire.sock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake)
        stream = await handshake(ours, pki.identity(version="1.2"), 20)
    assert peer.renegotiate()
    with pytest.raises(SSL.WantReadError):
        peer.do_handshake()
    await trio.lowlevel.wait_readable(ours)
    # Ours answers when it reads, and goes on reading.
    assert stream.drain(BUFFER) == (0, False)
    with pytest.raises(SSL.Error, match="no renegotiation"):
        await shake()


# One connection's trouble is its own.


@within(60)
async def test_refused_peers_leave_other_connections_alone(pki: Pki) -> None:
    """All connections share a context, and all of the process one queue of OpenSSL's errors."""
    identity = pki.identity()
    innocent = await pki.admit(identity, pki.root.sign(pki.root.leaf(TRAEFIK)))
    for case in REFUSED:
        issue = case.values[0]
        await pki.refuse(identity, issue(pki.root))  # type: ignore[operator]
        assert innocent.ours.drain(BUFFER) == (0, False)
    await pki.refuse(identity, None)
    assert innocent.ours.drain(BUFFER) == (0, False)
    ours, wire = tcp_ends(pki.closing)
    await wire.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeError):
        await handshake(ours, identity, 20)
    assert innocent.ours.drain(BUFFER) == (0, False)
    await innocent.peer.send(b"still here")
    assert await drained(innocent.ours, 10) == b"still here"
    assert innocent.ours.send(b"so are we") == 9
    assert await innocent.peer.receive_exactly(9) == b"so are we"


ODD_NAMES = [
    # cryptography raises UnsupportedGeneralNameType for these, which is no ValueError.
    pytest.param(san_of(0xA5, b"\xa1\x03\x0c\x01a"), id="ediPartyName"),
    pytest.param(san_of(0xA3, b"\x30\x00"), id="x400Address"),
    pytest.param(san_of(0x86, b"spiffe://example.org/\xc3\xa9"), id="URI that is no ASCII"),
    pytest.param(san_of(0x86, b"spiffe://example.org/a\0b"), id="NUL in the URI"),
    pytest.param(san_of(0x86, b""), id="empty URI"),
    pytest.param(san_of(0x82, b"spiffe://example.org/a"), id="the ID as a DNS name"),
    pytest.param(san_of(0x81, b"spiffe://example.org/a"), id="the ID as a mail address"),
]


@pytest.mark.parametrize("san", ODD_NAMES)
@within(30)
async def test_name_that_a_parser_stumbles_over_costs_only_its_own_connection(
    pki: Pki, san: bytes
) -> None:
    identity = pki.identity()
    innocent = await pki.admit(identity, pki.root.sign(pki.root.leaf(TRAEFIK)))
    refused = await pki.refuse(identity, odd_leaf(pki.root, san))
    assert refused.reason
    assert "ALERT" in refused.alert
    # An exception of the verify callback would come out of whichever connection is next.
    assert innocent.ours.drain(BUFFER) == (0, False)
    after = await pki.admit(identity, pki.root.sign(pki.root.leaf(TRAEFIK)))
    await after.peer.send(b"hello")
    assert await drained(after.ours, 5) == b"hello"


class ForgingWire(Wire):
    """Puts other bytes in the place of the peer's certificate, which TLS 1.2 does not encrypt.

    No TLS library would present a certificate that it cannot read; an attacker would.
    """

    before = after = b""

    async def send(self, data: bytes) -> None:
        await super().send(data.replace(self.before, self.after))


async def _refuse_forged(pki: Pki, identity: ServerIdentity, issued: Issued, der: bytes) -> Refused:
    ours, wire = tcp_ends(pki.closing)
    wire.__class__ = ForgingWire
    assert isinstance(wire, ForgingWire)
    wire.before, wire.after = issued.chain[0].public_bytes(Encoding.DER), der
    return await refuse(ours, identity, Peer(wire, pki.context(issued, "1.2")))


@within(60)
async def test_certificate_of_any_bytes_costs_only_its_own_connection(pki: Pki) -> None:
    identity = pki.identity(version="1.2")
    innocent = await pki.admit(identity, pki.root.sign(pki.root.leaf(TRAEFIK)), "1.2")
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    good = issued.chain[0].public_bytes(Encoding.DER)
    random = Random(4)
    reasons = set()
    for _ in range(300):
        der = bytearray(good)
        for _ in range(random.choice((1, 1, 2, 4))):
            der[random.randrange(4, len(der))] = random.randrange(256)
        if der == good:
            continue
        refused = await _refuse_forged(pki, identity, issued, bytes(der))
        assert refused.reason
        assert "ALERT" in refused.alert
        reasons.add(refused.reason)
        assert innocent.ours.drain(BUFFER) == (0, False)
    assert len(reasons) > 10  # they were not all refused for one and the same thing
    await innocent.peer.send(b"hello")
    assert await drained(innocent.ours, 5) == b"hello"


@within(30)
async def test_peers_that_shake_hands_at_once_are_told_apart(pki: Pki) -> None:
    identity = pki.identity()
    verdicts: dict[int, str] = {}

    async def one(number: int) -> None:
        leaf = pki.root.leaf(f"/workload/{number}")
        good = number % 2 == 0
        issued = (pki.root if good else pki.foreign).sign(leaf)
        if good:
            verdicts[number] = str((await pki.admit(identity, issued)).ours.peer)
        else:
            verdicts[number] = (await pki.refuse(identity, issued)).claimed

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(one, number)
    for number, verdict in verdicts.items():
        claimed = f"spiffe://example.org/workload/{number}"
        assert verdict == (claimed if number % 2 == 0 else repr(claimed))
    assert len(verdicts) == 40


# Rotation.


@within(30)
async def test_two_identities_serve_side_by_side(pki: Pki) -> None:
    old, new = pki.identity(), pki.identity()
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    pairs = [(one, await pki.admit(one, issued)) for one in (old, new, old, new)]
    for identity, pair in pairs:
        leaf = pair.peer.tls.getpeercert(binary_form=True)
        assert leaf == identity.svid.leaf.public_bytes(Encoding.DER)
    for number, (_, pair) in enumerate(pairs):
        await pair.peer.send(b"%d" % number)
        assert await drained(pair.ours, 1) == b"%d" % number


@within(30)
async def test_authority_that_left_the_bundle_is_not_trusted_by_the_next_identity(
    pki: Pki,
) -> None:
    leaving = OddAuthority(name="leaving")
    issued = leaving.sign(leaving.leaf(TRAEFIK))
    old = pki.identity(leaving)
    pair = await pki.admit(old, issued)
    new = pki.identity()
    refused = await pki.refuse(new, issued)
    assert BY_THE_RULES in refused.reason
    _assert_alert(refused, "1.3", "UNKNOWN_CA")
    # The old connection goes on, and the old identity still is what it was.
    await pair.peer.send(b"hello")
    assert await drained(pair.ours, 5) == b"hello"
    assert pair.ours.send(b"hello") == 5
    assert await pair.peer.receive_exactly(5) == b"hello"
    await pki.admit(old, issued)


@within(30)
async def test_federated_trust_domain_that_left_is_not_trusted_by_the_next_identity(
    pki: Pki,
) -> None:
    issued = pki.foreign.sign(pki.foreign.leaf("/billing"))
    await pki.admit(pki.identity(), issued)
    alone = server_identity(pki.root.svid(), {pki.root.trust_domain: pki.root.bundle}, "1.3")
    refused = await pki.refuse(alone, issued)
    assert "no trust bundle for trust domain other.org" in refused.reason


# The stream.


async def _pair(pki: Pki, version: str = "1.3") -> Pair:
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    return await pki.admit(pki.identity(version=version), issued, version)


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_bytes_are_the_same_after_many_records(pki: Pki, version: str) -> None:
    pair = await _pair(pki, version)
    data = bytes(range(256)) * 4096
    for size in (1, 100, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1, len(data)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.peer.send, data[:size])
            assert await drained(pair.ours, size) == data[:size]


@within(30)
async def test_drain_takes_no_more_than_fits_and_leaves_the_rest(pki: Pki) -> None:
    pair = await _pair(pki)
    data = b"ab" * RECORD_BYTES
    await pair.peer.send(data)
    buffer = memoryview(bytearray(RECORD_BYTES))
    got = b""
    while len(got) < len(data):
        # Whatever a full buffer had no room for still makes the socket readable.
        await trio.lowlevel.wait_readable(pair.ours.sock)
        count, ended = pair.ours.drain(buffer)
        assert count <= RECORD_BYTES
        assert not ended
        got += bytes(buffer[:count])
    assert got == data
    assert pair.ours.drain(buffer) == (0, False)


@within(30)
async def test_drain_of_nothing_is_no_end(pki: Pki) -> None:
    pair = await _pair(pki)
    assert pair.ours.drain(BUFFER) == (0, False)


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES - 1, RECORD_BYTES, 2 * RECORD_BYTES])
@within(30)
async def test_close_notify_is_the_end_and_comes_after_all_bytes(
    pki: Pki, size: int, version: str
) -> None:
    # Full records are the case that is easily lost: the end is read together with them, and no
    # event of the socket tells of it afterwards.
    pair = await _pair(pki, version)
    await pair.peer.send(b"x" * size)
    await pair.peer.send_end()
    assert await drained_to_the_end(pair.ours) == b"x" * size
    assert pair.ours.drain(BUFFER) == (0, True)


@pytest.mark.parametrize("how", ["end", "reset"])
@within(30)
async def test_end_without_close_notify_is_a_broken_connection(pki: Pki, how: str) -> None:
    pair = await _pair(pki)
    await pair.peer.send(b"half a requ")
    assert await drained(pair.ours, 11) == b"half a requ"
    getattr(pair.peer.wire, how)()
    await trio.lowlevel.wait_readable(pair.ours.sock)
    for _ in range(2):
        with pytest.raises((EOFError, ConnectionError)):
            pair.ours.drain(BUFFER)


@within(30)
async def test_record_that_was_tampered_with_breaks_the_connection(pki: Pki) -> None:
    pair = await _pair(pki)
    await pair.peer.wire.send(b"\x17\x03\x03\x00\x20" + b"\0" * 32)
    await trio.lowlevel.wait_readable(pair.ours.sock)
    with pytest.raises(ConnectionError, match="decryption failed"):
        pair.ours.drain(BUFFER)
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        await pair.peer.receive()


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_after_our_end_the_peers_bytes_still_arrive(pki: Pki, version: str) -> None:
    pair = await _pair(pki, version)
    assert pair.ours.send(b"answer") == 6
    assert pair.ours.send_end() is True
    assert await pair.peer.receive_all() == b"answer"
    for _ in range(3):
        await pair.peer.send(b"more")
        assert await drained(pair.ours, 4) == b"more"
    await pair.peer.send_end()
    assert await drained_to_the_end(pair.ours) == b""


@pytest.mark.parametrize("version", ["1.3", "1.2"])
@within(30)
async def test_after_the_peers_end_our_bytes_still_arrive(pki: Pki, version: str) -> None:
    pair = await _pair(pki, version)
    await pair.peer.send(b"request")
    await pair.peer.send_end()
    assert await drained(pair.ours, 7) == b"request"
    assert await drained_to_the_end(pair.ours) == b""
    assert pair.ours.send(b"answer") == 6
    assert pair.ours.send_end() is True
    assert await pair.peer.receive_all() == b"answer"


@within(30)
async def test_send_gives_what_fitted_and_goes_on_where_it_stopped(pki: Pki) -> None:
    pair = await _pair(pki)
    data = bytes(range(251)) * (64 * 1024)
    sent = 0
    # Until nothing fits: the system finds some more room while it is asked.
    while count := pair.ours.send(memoryview(data)[sent : sent + 256 * 1024]):
        sent += count
    assert 0 < sent < len(data)

    async def rest() -> None:
        nonlocal sent
        while sent < len(data):
            await trio.lowlevel.wait_writable(pair.ours.sock)
            # Another object with the same bytes, as the relay does it.
            sent += pair.ours.send(bytes(data[sent : sent + 100_000]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rest)
        assert await pair.peer.receive_exactly(len(data)) == data


@within(30)
async def test_end_waits_for_room_when_the_socket_is_full(pki: Pki) -> None:
    pair = await _pair(pki)
    sent = 0
    while (count := pair.ours.send(b"x" * RECORD_BYTES)) == RECORD_BYTES:
        sent += count
    # The record that was begun has to be completed before anything else.
    received = 0
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            left = RECORD_BYTES
            while left:
                await trio.lowlevel.wait_writable(pair.ours.sock)
                left -= pair.ours.send(b"x" * left)
            while not pair.ours.send_end():
                await trio.lowlevel.wait_writable(pair.ours.sock)

        nursery.start_soon(finish)
        received = len(await pair.peer.receive_all())
    assert received == sent + RECORD_BYTES


@within(30)
async def test_end_that_does_not_fit_is_tried_again(pki: Pki) -> None:
    pair = await _pair(pki)
    assert pair.ours.send(b"x") == 1
    assert await pair.peer.receive() == b"x"  # and what the handshake left behind
    junk = 0
    with suppress(BlockingIOError):
        while True:  # past TLS, so that no record is begun
            junk += pair.ours.sock.send(b"\0" * 65536)
    assert pair.ours.send_end() is False
    assert pair.ours.send_end() is False
    await pair.peer.wire.receive_exactly(junk)
    while not pair.ours.send_end():
        await trio.lowlevel.wait_writable(pair.ours.sock)
    assert await pair.peer.receive() == b""


@within(30)
async def test_sending_to_a_peer_that_is_gone_is_a_broken_connection(pki: Pki) -> None:
    pair = await _pair(pki)
    pair.peer.wire.reset()
    await trio.lowlevel.wait_readable(pair.ours.sock)
    with pytest.raises(ConnectionError):
        pair.ours.send(b"x" * RECORD_BYTES)
    with pytest.raises(ConnectionError):
        pair.ours.drain(BUFFER)


@within(30)
async def test_peer_sees_a_cut_when_we_drop_the_connection(pki: Pki) -> None:
    pair = await _pair(pki)
    assert pair.ours.send(b"half an ans") == 11
    pair.ours.sock.close()
    assert await pair.peer.receive_exactly(11) == b"half an ans"
    with pytest.raises(Cut):
        await pair.peer.receive()


@within(30)
async def test_peer_may_update_its_keys(pki: Pki) -> None:
    openssl = shutil.which("openssl")
    if openssl is None or b"OpenSSL" not in subprocess.check_output([openssl, "version"]):
        pytest.skip("needs the command openssl, which can ask for a key update")
    issued = pki.root.sign(pki.root.leaf(TRAEFIK))
    pem = str(issued.write(pki.folder, "openssl"))
    listener = pki.closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    client = subprocess.Popen(
        [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-cert", pem, "-key", pem],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    pki.closing.enter_context(client)
    pki.closing.callback(client.kill)
    assert client.stdin is not None
    assert client.stdout is not None
    stdin, stdout = client.stdin, client.stdout
    ours = pki.closing.enter_context((await trio.to_thread.run_sync(listener.accept))[0])
    ours.setblocking(False)
    stream = await handshake(ours, pki.identity(), 20)
    for number in range(3):
        stdin.write(b"K\n")  # a new key for the peer, and one for us, please
        stdin.flush()
        line = b"hello %d\n" % number

        def seen(word: bytes = b"KEYUPDATE") -> None:
            while word not in stdout.readline():
                pass

        await trio.to_thread.run_sync(seen, abandon_on_cancel=True)
        stdin.write(line)
        stdin.flush()
        assert await drained(stream, len(line)) == line
        assert stream.send(line) == len(line)
        await trio.to_thread.run_sync(seen, line, abandon_on_cancel=True)


def test_host_without_writable_and_executable_memory_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    def refuse_memory(*_: object) -> None:
        raise MemoryError("Cannot allocate write+execute memory for ffi.callback()")

    monkeypatch.setattr(SSL.Context, "set_verify", refuse_memory)
    issued = authority.svid()
    with pytest.raises(HostError) as caught:
        server_identity(issued, {authority.bundle.trust_domain: authority.bundle}, "1.3")
    assert "MemoryDenyWriteExecute=no" in (caught.value.hint or "")
