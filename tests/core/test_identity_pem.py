"""PEM files become the raw update that the agent would have sent, or the reason why not.

Rows are what people have on their disks, and what a writer leaves there for a moment. No reason
holds any of the key, whatever is wrong with its file and in whichever place it was put.
"""

from __future__ import annotations

import base64
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.identity_pem import IdentityPem, raw_update
from sidecar.core.identity_update import RawUpdate, identity_update
from sidecar.core.spiffe_id import TrustDomain
from tests.adapters.certificates import odd_leaf, san_of
from tests.ca import Authority, Issued, rsa_key

OURS = "spiffe://example.org/workload/model-server"
OTHER = TrustDomain.parse("other.org")
PKCS8, OLD = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL
AUTHORITY, FOREIGN = Authority("example.org"), Authority("other.org")
NOTHING: Mapping[TrustDomain, bytes | str] = MappingProxyType({})


def certificates(*chain: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


def key_pem(key: Any, form: PrivateFormat = PKCS8, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, form, encryption))


def block(der: bytes, label: str = "CERTIFICATE") -> bytes:
    """Any bytes in PEM."""
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


@dataclass(frozen=True)
class Files:
    """The three files; a row of a table changes some of them."""

    issued: Issued
    certificate: bytes
    key: bytes
    bundle: bytes

    def with_certificate(self, content: bytes) -> Files:
        return replace(self, certificate=content)

    def with_key(self, content: bytes) -> Files:
        return replace(self, key=content)

    def with_bundle(self, content: bytes) -> Files:
        return replace(self, bundle=content)

    def combined(self, content: bytes) -> Files:
        """One file, given for certificate and key both."""
        return replace(self, certificate=content, key=content)

    def changed(self, change: Callable[[bytes], bytes]) -> Files:
        """The same done to all three files."""
        return Files(self.issued, change(self.certificate), change(self.key), change(self.bundle))

    def read(self, federated: Mapping[TrustDomain, bytes | str] = NOTHING) -> RawUpdate:
        return raw_update(IdentityPem(self.certificate, self.key, self.bundle, federated))


def files(issued: Issued | None = None, form: PrivateFormat = PKCS8) -> Files:
    """Good ones; `form` is that of the key."""
    issued = issued or AUTHORITY.sign(AUTHORITY.leaf())
    bundle = certificates(AUTHORITY.certificate)
    return Files(issued, certificates(*issued.chain), key_pem(issued.key, form), bundle)


def leaf(**changes: object) -> Issued:
    """A leaf with one thing changed."""
    return AUTHORITY.sign(replace(AUTHORITY.leaf(), **changes))  # type: ignore[arg-type]


def chain_of_three() -> Issued:
    upper = AUTHORITY.intermediate()
    lower = upper.intermediate()
    return lower.sign(AUTHORITY.leaf(), lower, upper)


# Good files.

PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
TEXT = b"Certificate:\n    Data:\n        Version: 3 (0x2)\n"
BAG = b"Bag Attributes\n    friendlyName: sidecar\nKey Attributes: <No Attributes>\n"
ED25519 = ed25519.Ed25519PrivateKey.generate()
GOOD = [
    pytest.param(files(), id="EC key, PKCS#8"),
    pytest.param(files(form=OLD), id="EC key, SEC1"),
    pytest.param(files(leaf(key=rsa_key(2048))), id="RSA key, PKCS#8"),
    pytest.param(files(leaf(key=rsa_key(2048)), OLD), id="RSA key, PKCS#1"),
    pytest.param(files(leaf(key=ED25519)), id="Ed25519 key"),
    pytest.param(
        (one := files(form=OLD)).with_key(PARAMETERS + one.key), id="SEC1, parameters first"
    ),
    pytest.param(files(chain_of_three()), id="chain with intermediates"),
    pytest.param(
        (one := files()).with_bundle(
            one.bundle + certificates(Authority("example.org").certificate)
        ),
        id="bundle of two authorities",
    ),
    pytest.param(files().changed(lambda pem: TEXT + BAG + pem), id="text before the PEM"),
    pytest.param(files().changed(lambda pem: pem + b"\n# made by hand\n"), id="text behind it"),
    pytest.param(
        (one := files(chain_of_three())).with_certificate(
            b"\n\n".join(TEXT + certificates(each) for each in one.issued.chain)
        ),
        id="text and empty lines between certificates",
    ),
    pytest.param(files().changed(lambda pem: pem.replace(b"\n", b"\r\n")), id="CRLF"),
    pytest.param(files().changed(lambda pem: pem.rstrip()), id="no newline at the end"),
    pytest.param(files().changed(lambda pem: b"\xef\xbb\xbf" + pem), id="byte order mark"),
    pytest.param((one := files()).combined(one.certificate + one.key), id="combined"),
    pytest.param((one := files()).combined(one.key + one.certificate), id="combined, key first"),
    pytest.param(
        (one := files(form=OLD)).combined(one.certificate + PARAMETERS + one.key),
        id="combined, SEC1 with parameters",
    ),
    pytest.param(
        (one := files(leaf(key=rsa_key(2048)), OLD)).combined(one.certificate + one.key),
        id="combined, PKCS#1",
    ),
    pytest.param(
        (one := files(chain_of_three())).combined(
            certificates(one.issued.chain[0]) + one.key + certificates(*one.issued.chain[1:])
        ),
        id="combined, key between leaf and intermediates",
    ),
]


@pytest.mark.parametrize("good", GOOD)
def test_good_files_say_what_the_agent_would_say(good: Files) -> None:
    raw = good.read()
    (svid,) = raw.svids
    assert (svid.spiffe_id, raw.federated, raw.notes) == (OURS, {}, ())
    assert svid.chain == b"".join(one.public_bytes(Encoding.DER) for one in good.issued.chain)
    update = identity_update(raw, datetime.now(UTC))
    assert update.svids[0].chain == good.issued.chain
    assert key_pem(update.svids[0].private_key) == key_pem(good.issued.key)
    assert AUTHORITY.certificate in update.bundles[AUTHORITY.trust_domain].authorities


def test_bundle_keeps_its_order_and_all_of_its_authorities() -> None:
    some = [Authority("example.org").certificate for _ in range(3)]
    wider = files().with_bundle(certificates(*some, AUTHORITY.certificate))
    (bundle,) = identity_update(wider.read(), datetime.now(UTC)).bundles.values()
    assert list(bundle.authorities) == [*some, AUTHORITY.certificate]


# Files that are refused, and the file that the reason names.

CERTIFICATE, KEY, BUNDLE, PAIR = "certificate: ", "private key: ", "bundle: ", "belong together"


def other_key() -> bytes:
    return key_pem(ec.generate_private_key(ec.SECP256R1()))


def public_key(one: Files) -> bytes:
    return one.issued.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_der(one: Files) -> bytes:
    return one.issued.key.private_bytes(Encoding.DER, PKCS8, NoEncryption())


def signing_request(one: Files) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(one.issued.key, SHA256()).public_bytes(Encoding.PEM)


def unheard_of_version(certificate: x509.Certificate) -> bytes:
    """A certificate that calls itself X.509 version 8."""
    der, version = certificate.public_bytes(Encoding.DER), b"\xa0\x03\x02\x01"
    at = der.index(version) + len(version)
    return block(der[:at] + b"\x07" + der[at + 1 :])


def odd_key(certificate: x509.Certificate, known: str, odd: str) -> bytes:
    """A certificate whose key is of a kind (by object identifier) that nobody can read."""
    der = certificate.public_bytes(Encoding.DER)
    assert bytes.fromhex(known) in der
    return block(der.replace(bytes.fromhex(known), bytes.fromhex(odd)))


CURVE = ("06082a8648ce3d030107", "06082a8648ce3d030108")
KEY_TYPE = ("06072a8648ce3d0201", "06072a8648ce3d0209")


def cut(pem: bytes) -> bytes:
    """As it looks while it is written."""
    return pem[: len(pem) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "blank": lambda _: b"\n \n",
    "garbage": lambda _: b"garbage",
    "binary garbage": lambda _: bytes(range(256)) * 40,
    "NULs, as after a crash": lambda pem: bytes(len(pem)),
    "cut in the middle": cut,
    "cut before the last line": lambda pem: pem[: pem.rindex(b"-----END")],
    "cut in the last line": lambda pem: pem.rstrip()[:-1],
    "first line missing": lambda pem: pem.partition(b"\n")[2],
    "only the first line": lambda pem: pem.partition(b"\n")[0] + b"\n",
    "one character missing": lambda pem: pem[:80] + pem[81:],
    "character that is no base64": lambda pem: pem[:80] + b"*" + pem[81:],
    "one line missing": lambda pem: pem[:28] + b"".join(pem[28:].splitlines(True)[2:]),
    "base64 without its frame": lambda pem: b"".join(pem.splitlines(True)[1:-1]),
    "UTF-16": lambda pem: pem.decode().encode("utf-16"),
    "other label": lambda pem: pem.replace(b"BEGIN ", b"BEGIN NO ").replace(b"END ", b"END NO "),
    "nothing in the frame": lambda pem: (
        pem[: pem.index(b"\n") + 1] + pem[pem.rindex(b"-----END") :]
    ),
}
REFUSED = [
    pytest.param(
        (one := files()).with_certificate(one.issued.chain[0].public_bytes(Encoding.DER)),
        CERTIFICATE,
        id="certificate in DER",
    ),
    pytest.param(
        (one := files()).with_certificate(
            pkcs7.serialize_certificates(list(one.issued.chain), Encoding.PEM)
        ),
        CERTIFICATE,
        id="certificate in PKCS#7",
    ),
    pytest.param(
        (one := files()).with_certificate(
            one.certificate.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE")
        ),
        CERTIFICATE,
        id="certificate in OpenSSL's own form",
    ),
    pytest.param((one := files()).with_certificate(one.key), CERTIFICATE, id="key for certificate"),
    pytest.param(
        (one := files()).with_certificate(signing_request(one)), CERTIFICATE, id="signing request"
    ),
    pytest.param(files(leaf(uris=())), CERTIFICATE, id="certificate without names"),
    pytest.param(
        files(leaf(uris=(), dns=("example.org",))), CERTIFICATE, id="certificate without URI SAN"
    ),
    pytest.param(
        files(odd_leaf(AUTHORITY, san_of(0x83, b"\x30\x00"))),
        "certificate",
        id="certificate with a name that cannot be read",
    ),
    pytest.param(
        (one := files()).with_certificate(unheard_of_version(one.issued.chain[0])),
        "certificate",
        id="certificate of version 8",
    ),
    pytest.param(
        (one := files()).with_certificate(odd_key(one.issued.chain[0], *CURVE)),
        "certificate",
        id="certificate for a curve that nobody knows",
    ),
    pytest.param(
        (one := files()).with_certificate(odd_key(one.issued.chain[0], *KEY_TYPE)),
        "certificate",
        id="certificate for a kind of key that nobody knows",
    ),
    pytest.param(
        (one := files()).with_certificate(one.certificate + cut(one.bundle)),
        CERTIFICATE,
        id="chain whose second certificate is cut",
    ),
    pytest.param(
        (one := files()).with_certificate(one.bundle + one.certificate),
        "certificate: .* order",
        id="leaf not first",
    ),
    pytest.param(files().with_key(other_key()), PAIR, id="key of another certificate"),
    pytest.param(
        files().with_key(key_pem(rsa_key(2048))), PAIR, id="key of another kind than the leaf's"
    ),
    pytest.param(files().with_key(key_pem(ed448.Ed448PrivateKey.generate())), PAIR, id="Ed448 key"),
    pytest.param(
        files().with_key(key_pem(x25519.X25519PrivateKey.generate())),
        PAIR,
        id="key that cannot sign",
    ),
    pytest.param(files().with_key(key_pem(dsa.generate_private_key(1024))), PAIR, id="DSA key"),
    pytest.param(
        (one := files()).with_key(key_pem(one.issued.key, password=b"secret")),
        "private key: encrypted",
        id="encrypted key",
    ),
    pytest.param(
        (one := files()).with_key(key_pem(one.issued.key, OLD, b"secret")),
        "private key: encrypted",
        id="encrypted key in the old form",
    ),
    pytest.param((one := files()).with_key(key_der(one)), KEY, id="key in DER"),
    pytest.param(
        (one := files()).with_key(key_pem(one.issued.key, PrivateFormat.OpenSSH)),
        KEY,
        id="key in OpenSSH's form",
    ),
    pytest.param((one := files()).with_key(one.certificate), KEY, id="certificate for key"),
    pytest.param((one := files()).with_key(public_key(one)), KEY, id="public key"),
    pytest.param(
        (one := files()).with_key(block(key_der(one), "EC PRIVATE KEY")), KEY, id="other form in it"
    ),
    pytest.param(
        (one := files()).with_key(block(key_der(one) + b"trailing", "PRIVATE KEY")),
        KEY,
        id="trailing bytes in the key",
    ),
    pytest.param((one := files()).with_bundle(one.key), BUNDLE, id="key for bundle"),
    pytest.param(
        (one := files()).with_bundle(AUTHORITY.certificate.public_bytes(Encoding.DER)),
        BUNDLE,
        id="bundle in DER",
    ),
    pytest.param(
        files().with_bundle(unheard_of_version(AUTHORITY.certificate)),
        BUNDLE,
        id="authority of version 8",
    ),
    pytest.param(
        (one := files()).with_bundle(one.bundle + cut(one.bundle)),
        BUNDLE,
        id="bundle whose second authority is cut",
    ),
    pytest.param(
        (one := files()).with_bundle(one.bundle + b"-----BEGIN CERTIFICATE-----\n"),
        BUNDLE,
        id="bundle whose second authority has only begun",
    ),
    pytest.param(
        (one := files()).with_bundle(one.bundle + b"-----BEG"),
        BUNDLE,
        id="bundle whose second authority has hardly begun",
    ),
    pytest.param(
        (one := files()).with_bundle(one.bundle + one.bundle.replace(b"-----END", b"----END")),
        BUNDLE,
        id="bundle whose second authority has no end",
    ),
    pytest.param(
        (one := files()).with_bundle(one.bundle.replace(b"-----END", b"----END") + one.bundle),
        BUNDLE,
        id="bundle whose first authority has no end",
    ),
    *(
        pytest.param(
            files().with_certificate(damage(files().certificate)),
            CERTIFICATE,
            id=f"certificate: {name}",
        )
        for name, damage in DAMAGES.items()
    ),
    *(
        pytest.param(files().with_key(damage(files().key)), KEY, id=f"key: {name}")
        for name, damage in DAMAGES.items()
    ),
    *(
        pytest.param(files().with_bundle(damage(files().bundle)), BUNDLE, id=f"bundle: {name}")
        for name, damage in DAMAGES.items()
    ),
]


@pytest.mark.parametrize(("bad", "expected"), REFUSED)
def test_bad_file_is_refused_and_named(bad: Files, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        bad.read()
    reason = str(error.value)
    assert "\n" not in reason
    assert len(reason) < 400


def test_two_uri_names_are_the_verifiers_business() -> None:
    """Nothing is chosen here: the proof of the SVID refuses it, as it does with the agent's."""
    two = files(leaf(uris=(OURS, "spiffe://example.org/other")))
    with pytest.raises(Exception, match="URI"):
        identity_update(two.read(), datetime.now(UTC))


# Federated bundles.


def test_odd_certificate_in_a_bundle_costs_no_more_than_itself() -> None:
    odd = b"-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"
    one = files()
    raw = one.with_bundle(odd + one.bundle).read({OTHER: odd + one.bundle})
    update = identity_update(raw, datetime.now(UTC))
    assert len(update.notes) == 2
    for note, trust_domain in zip(update.notes, ("example.org", OTHER), strict=True):
        assert note.startswith(f"bundle of {trust_domain}: left out certificate 1 of 2 (SHA-256")
    assert {len(bundle.authorities) for bundle in update.bundles.values()} == {1}
    with pytest.raises(ValueError, match=r"^bundle: "):
        one.with_bundle(odd).read()


def test_federated_bundle_is_taken() -> None:
    raw = files().read({OTHER: certificates(FOREIGN.certificate)})
    assert (list(raw.federated), raw.notes) == (["other.org"], ())
    update = identity_update(raw, datetime.now(UTC))
    assert update.bundles[OTHER] == FOREIGN.bundle


BAD_BUNDLES: list[Any] = [
    pytest.param(damage(certificates(FOREIGN.certificate)), id=name)
    for name, damage in DAMAGES.items()
]
BAD_BUNDLES += [
    pytest.param("partner.pem: No such file or directory", id="could not be read"),
    pytest.param(FOREIGN.certificate.public_bytes(Encoding.DER), id="DER"),
    pytest.param(unheard_of_version(FOREIGN.certificate), id="authority of version 8"),
    pytest.param(other_key(), id="a key"),
    pytest.param(
        certificates(FOREIGN.certificate) + cut(certificates(AUTHORITY.certificate)),
        id="second authority is cut",
    ),
]


@pytest.mark.parametrize("content", BAD_BUNDLES)
def test_bad_federated_bundle_costs_its_own_trust_domain(content: bytes | str) -> None:
    third = Authority("third.org")
    raw = files().read({OTHER: content, third.trust_domain: certificates(third.certificate)})
    assert list(raw.federated) == ["third.org"]
    (note,) = raw.notes
    assert "other.org" in note
    assert "\n" not in note
    update = identity_update(raw, datetime.now(UTC))
    assert set(update.bundles) == {AUTHORITY.trust_domain, third.trust_domain}
    assert note in update.notes


def test_every_bad_federated_bundle_is_noted() -> None:
    names = [TrustDomain.parse(f"partner-{number}.org") for number in range(5)]
    raw = files().read(dict.fromkeys(names, b""))
    assert raw.federated == {}
    assert [str(name) in note for name, note in zip(names, raw.notes, strict=True)] == [True] * 5


# Secrets.

PIECE = 12


def pieces(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, form: PrivateFormat) -> set[str]:
    """Each piece of the base64 of a key, and of its bytes in hexadecimal."""
    pem = key_pem(key, form).decode()
    body = "".join(pem.splitlines()[1:-1])
    digits = base64.b64decode(body).hex()
    return {text[at : at + PIECE] for text in (body, digits) for at in range(len(text) - PIECE)}


def all_that_is_said(error: Exception) -> str:
    """The error as a traceback would show it, with what it came from."""
    return f"{error!r}" + "".join(traceback.format_exception(error))


@st.composite
def mutations(draw: st.DrawFn, pem: bytes) -> bytes:
    """A key file with some damage: bytes lost, changed, put in; lines moved; ends cut off."""
    content = bytearray(pem)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(0, 80))
        match draw(st.sampled_from(("lose", "change", "put", "cut", "behead", "lines", "again"))):
            case "lose":
                del content[at : at + length]
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
            case "put":
                content[at:at] = draw(
                    st.sampled_from((b"\n", b"\n\n", b"-----", b": ", b"\0", b"="))
                )
            case "cut":
                del content[at:]
            case "behead":
                del content[:at]
            case "lines":
                lines = draw(st.permutations(bytes(content).splitlines(True)))
                content = bytearray(b"".join(lines))
            case _:
                content += content[at:]
    return bytes(content)


KEYS = [
    pytest.param(ec.generate_private_key(ec.SECP256R1()), PKCS8, id="EC"),
    pytest.param(ec.generate_private_key(ec.SECP256R1()), OLD, id="SEC1"),
    pytest.param(rsa_key(2048), PKCS8, id="RSA"),
    pytest.param(rsa_key(2048), OLD, id="PKCS#1"),
]


@pytest.mark.parametrize("place", ["private_key", "certificate", "bundle", "federated"])
@pytest.mark.parametrize(("key", "form"), KEYS)
def test_nothing_that_is_said_holds_a_piece_of_a_key(
    key: Any, form: PrivateFormat, place: str
) -> None:
    pem, secret = key_pem(key, form), pieces(key, form)
    beside = certificates(AUTHORITY.certificate)
    good = files(leaf(key=key), form) if place == "private_key" else files()

    @given(st.data())
    @settings(max_examples=80, deadline=None)
    def read(data: st.DataObject) -> None:
        bad: Any = data.draw(mutations(pem))
        if place != "private_key":
            # A certificate beside it: the reason is the parser's, not that there is none.
            before, after = data.draw(st.sampled_from(((b"", b""), (beside, b""), (b"", beside))))
            bad = before + bad + after
        fields: dict[str, Any] = {
            "certificate": good.certificate,
            "private_key": good.key,
            "bundle": good.bundle,
        }
        fields[place] = {OTHER: bad} if place == "federated" else bad
        said = repr(IdentityPem(**fields))
        try:
            raw = raw_update(IdentityPem(**fields))
        except ValueError as exc:
            said += all_that_is_said(exc)
        else:
            said += repr(raw) + "".join(raw.notes)
        found = {said[at : at + PIECE] for at in range(len(said))} & secret
        assert not found

    read()
