"""The files of one generation: names, modes and bytes, and no key in a repr."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sidecar.core.file_plan import FileModes, FileNames, FilePlan, file_plan
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.svid import TrustBundle, X509Svid
from tests.ca import Authority, Key, rsa_key


@pytest.fixture
def svid(authority: Authority) -> X509Svid:
    """An SVID with an intermediate in its chain."""
    middle = authority.intermediate()
    issued = middle.sign(authority.leaf(), middle)
    return X509Svid(
        SpiffeId.parse("spiffe://example.org/workload/model-server"), issued.chain, issued.key
    )


@pytest.fixture
def bundle(authority: Authority) -> TrustBundle:
    newer = Authority("example.org")
    return TrustBundle(authority.trust_domain, (authority.certificate, newer.certificate))


def planned(svid: X509Svid, bundle: TrustBundle) -> FilePlan:
    return file_plan(svid, bundle, FileNames(), FileModes())


def test_names_and_modes_are_those_of_spiffe_helper_with_the_key_for_the_owner_only(
    svid: X509Svid, bundle: TrustBundle
) -> None:
    assert [(file.name, file.mode) for file in planned(svid, bundle).files] == [
        ("svid.pem", 0o644),
        ("svid_key.pem", 0o600),
        ("svid_bundle.pem", 0o644),
    ]


def test_names_and_modes_can_be_chosen(svid: X509Svid, bundle: TrustBundle) -> None:
    names = FileNames("tls.crt", "tls.key", "ca.crt")
    plan = file_plan(svid, bundle, names, FileModes(0o640, 0o400))
    assert [(file.name, file.mode) for file in plan.files] == [
        ("tls.crt", 0o640),
        ("tls.key", 0o400),
        ("ca.crt", 0o640),
    ]


def test_chain_is_written_leaf_first_and_whole(svid: X509Svid, bundle: TrustBundle) -> None:
    certificate, _, _ = planned(svid, bundle).files
    assert x509.load_pem_x509_certificates(certificate.content) == list(svid.chain)


def test_bundle_is_written_in_its_order(svid: X509Svid, bundle: TrustBundle) -> None:
    _, _, authorities = planned(svid, bundle).files
    assert x509.load_pem_x509_certificates(authorities.content) == list(bundle.authorities)


def test_chain_and_bundle_hold_no_key(svid: X509Svid, bundle: TrustBundle) -> None:
    certificate, _, authorities = planned(svid, bundle).files
    assert b"PRIVATE" not in certificate.content + authorities.content


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(None, id="ECDSA"),
        pytest.param(rsa_key(2048), id="RSA"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
def test_key_is_written_unencrypted_in_pkcs8(authority: Authority, key: Key | None) -> None:
    svid = authority.svid(key=key)
    _, private_key, _ = planned(svid, authority.bundle).files
    assert private_key.content.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert private_key.content.count(b"BEGIN") == 1
    loaded = load_pem_private_key(private_key.content, None)
    assert loaded.public_key() == svid.leaf.public_key()


def test_plan_names_the_two_files_that_must_be_a_pair(svid: X509Svid, bundle: TrustBundle) -> None:
    plan = planned(svid, bundle)
    assert {plan.certificate, plan.private_key} <= {file.name for file in plan.files}
    assert (plan.certificate, plan.private_key) == ("svid.pem", "svid_key.pem")


def test_empty_bundle_gives_an_empty_file(svid: X509Svid, authority: Authority) -> None:
    _, _, authorities = planned(svid, TrustBundle(authority.trust_domain, ())).files
    assert authorities.content == b""


def test_same_identity_gives_the_same_plan(svid: X509Svid, bundle: TrustBundle) -> None:
    assert planned(svid, bundle) == planned(svid, bundle)


def test_content_is_in_no_repr(svid: X509Svid, bundle: TrustBundle) -> None:
    plan = planned(svid, bundle)
    assert "BEGIN" not in repr(plan)
    assert "svid_key.pem" in repr(plan)
