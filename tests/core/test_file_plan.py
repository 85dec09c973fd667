"""The files of one generation: names, modes and bytes of every layout, and no key in a repr."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sidecar.core.file_plan import NAME_MAX, FilePlan, file_plan
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid
from tests.adapters.certificates import OddAuthority, bundle_of
from tests.ca import Authority, Key, rsa_key
from tests.plans import LAYOUTS, bundles, cert_files, content, modes, plan

Certificates = list[x509.Certificate]
NOW = datetime.now(UTC)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def partner() -> Authority:
    """Another trust domain, after ours in the alphabet."""
    return Authority("partner.example")


@pytest.fixture(scope="module")
def middle(authority: Authority) -> Authority:
    """An intermediate of ours."""
    return authority.intermediate()


@pytest.fixture(scope="module")
def svid(authority: Authority, middle: Authority) -> X509Svid:
    """An SVID with an intermediate in its chain."""
    issued = middle.sign(authority.leaf(), middle)
    return X509Svid(
        SpiffeId.parse("spiffe://example.org/workload/model-server"), issued.chain, issued.key
    )


def certificates(planned: FilePlan, name: str) -> Certificates:
    """What is in one file; an empty one has none."""
    pem = content(planned)[name]
    return x509.load_pem_x509_certificates(pem) if pem else []


def of(*authorities: Authority) -> Certificates:
    return [one.certificate for one in authorities]


# Names and modes.


def test_names_and_modes_are_those_of_spiffe_helper_with_the_key_for_the_owner_only(
    authority: Authority,
) -> None:
    assert modes(plan(authority)) == {
        "svid.pem": 0o644,
        "svid_key.pem": 0o600,
        "svid_bundle.pem": 0o644,
    }


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        pytest.param({}, ["svid.pem", "svid_key.pem", "svid_bundle.pem"], id="spiffe-helper"),
        pytest.param({"layout": "kubernetes"}, ["tls.crt", "tls.key", "ca.crt"], id="kubernetes"),
        pytest.param(
            {"certificate": "a", "private_key": "b", "bundle": "c"}, ["a", "b", "c"], id="own names"
        ),
        pytest.param(
            {"layout": "kubernetes", "bundle": "roots.pem"},
            ["tls.crt", "tls.key", "roots.pem"],
            id="one own name",
        ),
        pytest.param(
            {"combined": "both.pem"},
            ["svid.pem", "svid_key.pem", "svid_bundle.pem", "both.pem"],
            id="combined",
        ),
        pytest.param(
            {"federated_bundles": True},
            [
                "svid.pem",
                "svid_key.pem",
                "svid_bundle.pem",
                "svid_bundle.other.org.pem",
                "svid_bundle.partner.example.pem",
            ],
            id="federated",
        ),
        pytest.param(
            {"layout": "kubernetes", "combined": "both.pem", "federated_bundles": True},
            [
                "tls.crt",
                "tls.key",
                "ca.crt",
                "both.pem",
                "ca.other.org.crt",
                "ca.partner.example.crt",
            ],
            id="all of them",
        ),
        pytest.param(
            {"jwt_bundle": "jwks.json"},
            ["svid.pem", "svid_key.pem", "svid_bundle.pem"],
            id="a JWT bundle is of no generation",
        ),
    ],
)
def test_files_are_those_of_the_layout(
    authority: Authority,
    foreign: Authority,
    partner: Authority,
    keys: dict[str, Any],
    names: list[str],
) -> None:
    planned = plan(authority, partner, foreign, **keys)
    assert [file.name for file in planned.files] == names
    assert planned.notes == ()
    assert (planned.certificate, planned.private_key) == (names[0], names[1])
    keyed = dict(zip(("certificate", "private_key", "bundle"), names, strict=False))
    if "combined" in keys:
        keyed["combined"] = keys["combined"]
    assert planned.names == keyed


@pytest.mark.parametrize(("public", "secret"), [(0o644, 0o600), (0o640, 0o400), (0o444, 0o640)])
@layouts
def test_modes_are_as_configured_and_nothing_with_a_key_has_that_of_a_certificate(
    authority: Authority, foreign: Authority, layout: str, public: int, secret: int
) -> None:
    keys = LAYOUTS[layout] | {"certificate_mode": public, "key_mode": secret}
    planned = plan(authority, foreign, **keys)
    for file in planned.files:
        assert file.mode == (secret if b"PRIVATE" in file.content else public)
    assert b"PRIVATE" in content(planned)[planned.private_key]


@pytest.mark.parametrize(
    ("bundle", "name"),
    [
        pytest.param("ca.crt", "ca.other.org.crt", id="before the suffix"),
        pytest.param("roots", "roots.other.org", id="without a suffix"),
        pytest.param("a.b.pem", "a.b.other.org.pem", id="before the last suffix"),
        pytest.param("roots.", "roots.other.org.", id="an empty suffix"),
    ],
)
def test_federated_bundle_is_named_after_ours(
    authority: Authority, foreign: Authority, bundle: str, name: str
) -> None:
    planned = plan(authority, foreign, bundle=bundle, federated_bundles=True)
    assert planned.files[-1].name == name


@pytest.mark.parametrize(
    ("letters", "written"),
    [
        pytest.param(NAME_MAX - 16, True, id="just short enough"),
        pytest.param(NAME_MAX - 15, False, id="one letter too long"),
        pytest.param(255, False, id="the longest trust domain that there may be"),
    ],
)
def test_federated_bundle_whose_name_no_disk_takes_is_left_out_and_noted(
    authority: Authority, foreign: Authority, letters: int, written: bool
) -> None:
    long = TrustDomain.parse("a" * letters)
    known = {**bundles(authority, foreign), long: TrustBundle(long, (foreign.certificate,))}
    planned = file_plan(
        authority.svid(), known, cert_files(federated_bundles=True), datetime.now(UTC)
    )
    assert len(planned.files) == 4 + written
    assert all(len(file.name) <= NAME_MAX for file in planned.files)
    assert "svid_bundle.other.org.pem" in content(planned)
    if written:
        assert planned.notes == ()
    else:
        (note,) = planned.notes
        assert str(long) in note
        assert "too long" in note


# What is in them.


@layouts
def test_chain_is_written_leaf_first_and_whole_or_its_rest_in_the_bundle(
    authority: Authority, svid: X509Svid, middle: Authority, layout: str
) -> None:
    planned = plan(authority, svid=svid, **LAYOUTS[layout])
    apart = LAYOUTS[layout].get("intermediates_in_bundle", False)
    rest = list(svid.chain[1:])
    assert rest == of(middle)
    chain, bundle = planned.names["certificate"], planned.names["bundle"]
    assert certificates(planned, chain) == [svid.leaf, *([] if apart else rest)]
    assert certificates(planned, bundle) == [authority.certificate, *(rest if apart else [])]


def test_intermediates_come_after_our_authorities(
    authority: Authority, svid: X509Svid, middle: Authority
) -> None:
    newer = Authority("example.org")
    known = {authority.trust_domain: bundle_of(authority, newer)}
    planned = file_plan(svid, known, cert_files(intermediates_in_bundle=True), NOW)
    assert certificates(planned, "svid.pem") == [svid.leaf]
    assert certificates(planned, "svid_bundle.pem") == of(authority, newer, middle)


def test_chain_without_intermediates_adds_none(authority: Authority) -> None:
    svid = authority.svid()
    assert content(plan(authority, svid=svid, intermediates_in_bundle=True)) == content(
        plan(authority, svid=svid)
    )


def test_bundle_is_written_in_its_order(authority: Authority) -> None:
    newer = Authority("example.org")
    for order in ((authority, newer), (newer, authority)):
        known = {authority.trust_domain: bundle_of(*order)}
        planned = file_plan(authority.svid(), known, cert_files(), NOW)
        assert certificates(planned, "svid_bundle.pem") == of(*order)


@layouts
def test_keys_are_in_no_other_file_than_their_own(
    authority: Authority, foreign: Authority, layout: str
) -> None:
    planned = plan(authority, foreign, **LAYOUTS[layout])
    secret = {planned.names["private_key"], planned.names.get("combined")} - {None}
    assert {name for name, pem in content(planned).items() if b"PRIVATE" in pem} == secret


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
    pem = content(plan(authority, svid=svid))["svid_key.pem"]
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert pem.count(b"BEGIN") == 1
    assert load_pem_private_key(pem, None).public_key() == svid.leaf.public_key()


@pytest.mark.parametrize("apart", [False, True])
def test_combined_file_is_key_and_chain(authority: Authority, svid: X509Svid, apart: bool) -> None:
    planned = plan(authority, svid=svid, combined="both.pem", intermediates_in_bundle=apart)
    files = content(planned)
    assert files["both.pem"] == files["svid_key.pem"] + files["svid.pem"]
    assert files["both.pem"].count(b"BEGIN") == (2 if apart else 3)
    assert certificates(planned, "both.pem")[0] == svid.leaf
    assert modes(planned)["both.pem"] == 0o600


@layouts
def test_plan_names_the_two_files_that_must_be_a_pair(authority: Authority, layout: str) -> None:
    planned = plan(authority, **LAYOUTS[layout])
    key = load_pem_private_key(content(planned)[planned.private_key], None)
    leaf = certificates(planned, planned.certificate)[0]
    assert key.public_key() == leaf.public_key()


@pytest.mark.parametrize("layout", ["spiffe-helper", "federated"])
def test_empty_bundle_gives_an_empty_file(
    authority: Authority, foreign: Authority, layout: str
) -> None:
    known = {
        authority.trust_domain: TrustBundle(authority.trust_domain, ()),
        foreign.trust_domain: TrustBundle(foreign.trust_domain, ()),
    }
    files = content(file_plan(authority.svid(), known, cert_files(**LAYOUTS[layout]), NOW))
    public = {pem for name, pem in files.items() if "bundle" in name}
    assert public == {b""}


# Federation.


def test_nothing_of_others_is_written_unless_asked_for(
    authority: Authority, foreign: Authority, partner: Authority
) -> None:
    svid = authority.svid()
    assert plan(authority, foreign, partner, svid=svid) == plan(authority, svid=svid)


def test_each_federated_bundle_holds_its_own_authorities_only(
    authority: Authority, foreign: Authority, partner: Authority
) -> None:
    planned = plan(authority, foreign, partner, federated_bundles=True)
    assert certificates(planned, "svid_bundle.pem") == of(authority)
    assert certificates(planned, "svid_bundle.other.org.pem") == of(foreign)
    assert certificates(planned, "svid_bundle.partner.example.pem") == of(partner)


def test_ours_is_the_trust_domain_of_the_svid_whatever_comes_first(
    authority: Authority, foreign: Authority
) -> None:
    planned = plan(foreign, authority, federated_bundles=True)
    assert certificates(planned, "svid_bundle.pem") == of(foreign)
    assert certificates(planned, "svid_bundle.example.org.pem") == of(authority)


def test_merged_bundle_holds_all_of_them_ours_first(
    authority: Authority, foreign: Authority, partner: Authority
) -> None:
    planned = plan(authority, partner, foreign, unsafe_merge_federated=True)
    assert len(planned.files) == 3
    assert certificates(planned, "svid_bundle.pem") == of(authority, foreign, partner)


@layouts
def test_bundles_are_merged_in_no_other_way(
    authority: Authority, foreign: Authority, partner: Authority, layout: str
) -> None:
    planned = plan(authority, foreign, partner, **LAYOUTS[layout])
    for file in planned.files:
        if file.name not in (planned.names["private_key"], planned.names.get("combined")):
            issuers = {one.issuer for one in x509.load_pem_x509_certificates(file.content)}
            assert len(issuers) == 1, f"{file.name} mixes trust domains"


# Expired authorities.


@pytest.fixture
def old() -> Authority:
    return OddAuthority(name="old", not_after=timedelta(hours=-1))


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        pytest.param({}, True, id="kept as the agent sends them"),
        pytest.param({"omit_expired_authorities": True}, False, id="left out"),
    ],
)
def test_expired_authorities_are_left_out_if_asked_for(
    authority: Authority, old: Authority, keys: dict[str, Any], kept: bool
) -> None:
    newer = OddAuthority(name="newer")
    known = {authority.trust_domain: bundle_of(newer, old, authority)}
    planned = file_plan(authority.svid(), known, cert_files(**keys), NOW)
    wanted = of(newer, old, authority) if kept else of(newer, authority)
    assert certificates(planned, "svid_bundle.pem") == wanted


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        pytest.param(timedelta(seconds=-1), True, id="one second before"),
        pytest.param(timedelta(seconds=1), False, id="one second after"),
    ],
)
def test_authority_leaves_when_its_time_comes(
    authority: Authority, later: timedelta, kept: bool
) -> None:
    ending = OddAuthority(name="ending")
    known = {authority.trust_domain: bundle_of(authority, ending)}
    now = ending.certificate.not_valid_after_utc + later
    table = cert_files(omit_expired_authorities=True)
    planned = file_plan(authority.svid(), known, table, now)
    wanted = of(authority, ending) if kept else of(authority)
    assert certificates(planned, "svid_bundle.pem") == wanted


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        pytest.param({"federated_bundles": True}, "svid_bundle.other.org.pem", id="apart"),
        pytest.param({"unsafe_merge_federated": True}, "svid_bundle.pem", id="merged"),
    ],
)
def test_expired_authorities_of_others_are_left_out_too(
    authority: Authority, foreign: Authority, keys: dict[str, Any], name: str
) -> None:
    gone = OddAuthority("other.org", "gone", not_after=timedelta(hours=-1))
    known = dict(bundles(authority)) | {gone.trust_domain: bundle_of(gone, foreign)}
    for omit in (False, True):
        table = cert_files(**keys, omit_expired_authorities=omit)
        found = certificates(file_plan(authority.svid(), known, table, NOW), name)
        assert foreign.certificate in found
        assert (gone.certificate in found) is not omit


def test_trust_domain_of_expired_authorities_keeps_its_file(authority: Authority) -> None:
    """Readers have its path in their configuration."""
    gone = OddAuthority("other.org", "gone", not_after=timedelta(hours=-1))
    planned = plan(authority, gone, federated_bundles=True, omit_expired_authorities=True)
    assert content(planned)["svid_bundle.other.org.pem"] == b""


# As a value.


@layouts
def test_same_identity_gives_the_same_plan(
    authority: Authority, foreign: Authority, partner: Authority, layout: str
) -> None:
    svid = authority.svid()
    keys = LAYOUTS[layout]
    assert plan(authority, foreign, partner, svid=svid, now=NOW, **keys) == plan(
        authority, partner, foreign, svid=svid, now=NOW, **keys
    )


@layouts
def test_content_is_in_no_repr(authority: Authority, foreign: Authority, layout: str) -> None:
    planned = plan(authority, foreign, **LAYOUTS[layout])
    shown = repr(planned)
    assert "BEGIN" not in shown
    assert planned.private_key in shown
    for pem in content(planned).values():
        assert pem.decode().splitlines()[1] not in shown
