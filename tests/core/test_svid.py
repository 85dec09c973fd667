"""X.509-SVIDs and bundles from DER: what is cut apart, what is a key, and what is refused."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from sidecar.core.errors import PeerError
from sidecar.core.identity_state import Clocks, IdentityState, Standing
from sidecar.core.peer import SvidVerifier
from sidecar.core.svid import (
    Bundles,
    PrivateKey,
    TrustBundle,
    certificates,
    is_over,
    private_key,
    same_bundles,
    seconds_left,
    uri_sans,
)
from tests.ca import Authority, rsa_key

DER = Encoding.DER


def pkcs8(key: PrivateKey | ed448.Ed448PrivateKey | x25519.X25519PrivateKey) -> bytes:
    return key.private_bytes(DER, PrivateFormat.PKCS8, NoEncryption())


def long_form(certificate: bytes, size: int) -> bytes:
    """The same SEQUENCE with its length in `size` bytes, which DER forbids when fewer do."""
    content = certificate[4:]
    return b"\x30" + bytes([0x80 | size]) + len(content).to_bytes(size, "big") + content


def test_no_bytes_hold_no_certificate() -> None:
    assert certificates(b"") == ()


def test_certificates_come_out_in_the_order_they_came_in(authority: Authority) -> None:
    chain = [authority.svid().leaf, authority.certificate, authority.svid().leaf]
    assert certificates(b"".join(one.public_bytes(DER) for one in chain)) == tuple(chain)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_certificate_that_comes_again_is_read_again(authority: Authority, count: int) -> None:
    one = authority.certificate.public_bytes(DER)
    assert certificates(one * count) == (authority.certificate,) * count


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x30", id="one byte"),
        pytest.param(b"\x00", id="zero"),
        pytest.param(b"\x30\x00", id="empty sequence"),
        pytest.param(b"\x30\x80\x00\x00", id="indefinite length"),
        pytest.param(b"\x30\x81", id="length missing"),
        pytest.param(b"\x30\x82\x01", id="length cut"),
        pytest.param(b"\x30\x84\xff\xff\xff\xff", id="four gigabytes announced"),
        pytest.param(b"\x30\x85\x00\x00\x00\x00\x01\x00", id="length of five bytes"),
        pytest.param(b"\x30\xff" + b"\x00" * 200, id="reserved length"),
        pytest.param(b"\x31\x02\x05\x00", id="a set"),
        pytest.param(b"\x04\x02\x30\x00", id="an octet string"),
        pytest.param(b"-----BEGIN CERTIFICATE-----\n", id="PEM"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b"\x00" * 64, id="zeros"),
    ],
)
def test_bytes_that_are_no_certificate_are_refused(authority: Authority, data: bytes) -> None:
    good = authority.certificate.public_bytes(DER)
    for der in (data, good + data, data + good):
        with pytest.raises(ValueError, match=r"."):
            certificates(der)


def test_every_truncation_is_refused(authority: Authority) -> None:
    good = authority.certificate.public_bytes(DER)
    two = good * 2
    whole = {0, len(good), len(two)}
    for end in set(range(len(two) + 1)) - whole:
        with pytest.raises(ValueError, match=r"."):
            certificates(two[:end])


@pytest.mark.parametrize("size", [3, 4])
def test_length_in_more_bytes_than_needed_is_refused(authority: Authority, size: int) -> None:
    good = authority.certificate.public_bytes(DER)
    assert long_form(good, 2) == good
    with pytest.raises(ValueError, match=r"."):
        certificates(long_form(good, size))


def test_garbage_inside_a_sequence_is_refused(authority: Authority) -> None:
    good = authority.certificate.public_bytes(DER)
    with pytest.raises(ValueError, match=r"."):
        certificates(good[:4] + b"\xff" * (len(good) - 4))


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
        pytest.param(rsa_key(2048), id="RSA"),
    ],
)
def test_key_of_its_leaf_is_read(authority: Authority, key: PrivateKey) -> None:
    svid = authority.svid(key=key)
    assert private_key(pkcs8(key), svid.leaf).public_key() == svid.leaf.public_key()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="another P-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
        pytest.param(rsa_key(2048), id="RSA"),
    ],
)
def test_key_of_another_certificate_is_refused(authority: Authority, key: PrivateKey) -> None:
    with pytest.raises(ValueError, match="does not belong"):
        private_key(pkcs8(key), authority.svid().leaf)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        pytest.param(ed448.Ed448PrivateKey.generate(), "Ed448", id="Ed448"),
        pytest.param(x25519.X25519PrivateKey.generate(), "X25519", id="X25519 cannot sign"),
    ],
)
def test_kind_of_key_that_we_do_not_serve_with_is_named(
    authority: Authority, key: ed448.Ed448PrivateKey | x25519.X25519PrivateKey, kind: str
) -> None:
    with pytest.raises(ValueError, match=f"a key of type {kind}"):
        private_key(pkcs8(key), authority.svid().leaf)


def test_bytes_that_are_no_key_are_refused_without_showing_them(authority: Authority) -> None:
    svid = authority.svid()
    good = pkcs8(svid.private_key)
    for bad in (b"", b"secret", good[:-1], good[1:], good + b"\x00", good + good, b"\x00" * 138):
        with pytest.raises(ValueError, match=r".") as refused:
            private_key(bad, svid.leaf)
        assert "secret" not in str(refused.value)
        assert good.hex()[40:80] not in str(refused.value)


def test_encrypted_key_is_refused(authority: Authority) -> None:
    svid = authority.svid()
    encrypted = svid.private_key.private_bytes(
        DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    with pytest.raises((ValueError, TypeError)):
        private_key(encrypted, svid.leaf)


def test_svid_tells_of_its_leaf(authority: Authority) -> None:
    svid = authority.svid()
    assert svid.leaf is svid.chain[0]
    assert svid.not_after == svid.leaf.not_valid_after_utc
    assert svid.not_after.tzinfo is UTC
    assert int(svid.serial, 16) == svid.leaf.serial_number
    assert svid.serial == svid.serial.upper()


def test_neither_key_nor_certificate_is_in_a_repr(authority: Authority) -> None:
    svid = authority.svid(hint="internal")
    assert isinstance(svid.private_key, ec.EllipticCurvePrivateKey)
    assert str(svid.private_key.private_numbers().private_value) not in repr(svid)
    assert "Key" not in repr(svid)
    assert "Certificate" not in repr(svid)
    assert "Certificate" not in repr(authority.bundle)
    assert str(svid.spiffe_id.path) in repr(svid)


@pytest.mark.parametrize(
    ("uris", "dns"),
    [
        pytest.param((), (), id="no names"),
        pytest.param((), ("a.example.org",), id="no URI"),
        pytest.param(("spiffe://e.org/a",), (), id="one"),
        pytest.param(("spiffe://e.org/a", "https://x"), ("a.example.org",), id="two, in order"),
        pytest.param(("not a URI\n",), (), id="whatever they say"),
    ],
)
def test_uri_names_are_given_as_they_are(
    authority: Authority, uris: tuple[str, ...], dns: tuple[str, ...]
) -> None:
    assert uri_sans(authority.svid(uris=uris, dns=dns).leaf) == list(uris)


def test_rsa_key_is_read_whatever_its_size_because_the_verifier_judges(
    authority: Authority,
) -> None:
    key = private_key(pkcs8(rsa_key(1024)), authority.svid(key=rsa_key(1024)).leaf)
    assert isinstance(key, rsa.RSAPrivateKey)


def test_certificate_of_another_version_is_refused(authority: Authority) -> None:
    good = authority.certificate.public_bytes(DER)
    version = good.index(b"\xa0\x03\x02\x01\x02")
    with pytest.raises((ValueError, x509.InvalidVersion)):
        certificates(good[: version + 4] + b"\x07" + good[version + 5 :])


# The end of a validity belongs to it (RFC 5280 4.1.2.5), whoever asks.

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(("after", "over"), [(timedelta(0), False), (MICROSECOND, True)])
def test_all_that_look_at_an_end_agree(authority: Authority, after: timedelta, over: bool) -> None:
    svid = authority.svid()
    moment = Clocks(svid.not_after + after, 0.0)
    verifier = SvidVerifier({authority.trust_domain: authority.bundle})
    try:
        verifier.verify(svid.chain, moment.wall)
        refused = False
    except PeerError:
        refused = True
    standing = Standing(svid.not_after, connected=True)
    assert is_over(svid.not_after, moment.wall) is over
    assert refused is over
    assert standing.may_serve(moment, 0.0) is not over
    assert (standing.state(moment) is IdentityState.EXPIRED) is over
    assert (seconds_left(svid.not_after, moment.wall) <= 0) is over
    assert (standing.seconds_to_change(moment, 0.0) == float("inf")) is over


def test_bundles_are_the_same_in_whatever_order(authority: Authority, foreign: Authority) -> None:
    ours, newer = authority.certificate, Authority("example.org").certificate

    def bundles(*authorities: x509.Certificate) -> Bundles:
        one = TrustBundle(authority.trust_domain, authorities)
        return {authority.trust_domain: one, foreign.trust_domain: foreign.bundle}

    assert same_bundles(bundles(ours, newer), bundles(newer, ours))
    assert not same_bundles(bundles(ours, newer), bundles(ours))
    assert not same_bundles(bundles(ours), {authority.trust_domain: authority.bundle})
