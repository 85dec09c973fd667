"""JWT bundles: which JWK Sets are taken, whose they are, and the files that they go to."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import AgentProtocolError
from sidecar.core.files_config import CertFilesTable, FileName
from sidecar.core.jwt_bundle import (
    MAX_BUNDLE_BYTES,
    JwtBundles,
    RawJwtBundles,
    checked_jwks,
    is_jwks,
    jwt_bundle_plan,
    jwt_bundles,
)
from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.toml_tables import FileMode, FilePath

OWN = TrustDomain("example.org")
OTHER = TrustDomain("other.org")
EC = {"kty": "EC", "kid": "one", "crv": "P-256", "x": "eA", "y": "eQ"}
RSA = {"kty": "RSA", "kid": "two", "n": "bg", "e": "AQAB"}


def jwks(*keys: object, **members: object) -> bytes:
    return json.dumps({"keys": list(keys), **members}).encode()


def without(key: dict[str, Any], name: str) -> dict[str, Any]:
    return {one: value for one, value in key.items() if one != name}


# One JWK Set.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jwks(EC), id="one key"),
        pytest.param(jwks(EC, RSA), id="two keys"),
        pytest.param(jwks(), id="no key: nobody is trusted"),
        pytest.param(json.dumps({"keys": [EC]}, indent=4).encode(), id="indented, as SPIRE does"),
        pytest.param(jwks({**EC, "use": "jwt-svid"}), id="use of a SPIFFE bundle"),
        pytest.param(jwks({**RSA, "use": "sig", "alg": "RS256"}), id="use of RFC 7517"),
        pytest.param(jwks({**EC, "own": {"d": 1}}), id="a member that we do not know"),
        pytest.param(jwks({"kty": "NEW", "kid": "a"}), id="a type that we do not know"),
        pytest.param(jwks(EC, spiffe_sequence=1), id="members of a SPIFFE bundle"),
    ],
)
def test_set_of_public_keys_is_given_as_it_came(data: bytes) -> None:
    assert checked_jwks(data) is data
    assert is_jwks(data)


def test_set_without_keys_as_spire_writes_it_becomes_one_that_readers_take() -> None:
    assert json.loads(checked_jwks(b'{"keys": null}')) == {"keys": []}
    assert not is_jwks(b'{"keys": null}')


NO_JWKS = [
    pytest.param(b"", "not a JSON object", id="nothing"),
    pytest.param(b"null", "not a JSON object", id="null"),
    pytest.param(b"[]", "not a JSON object", id="a list"),
    pytest.param(json.dumps([EC]).encode(), "not a JSON object", id="a list of keys"),
    pytest.param(b'{"keys": [', "not a JSON object", id="cut off"),
    pytest.param(jwks(EC) + b"{}", "not a JSON object", id="more behind it"),
    pytest.param(b"\xef\xbb\xbf" + jwks(EC), "not a JSON object", id="a byte order mark"),
    pytest.param(b'{"keys": "\xff"}', "not a JSON object", id="not UTF-8"),
    pytest.param(b"-----BEGIN CERTIFICATE-----", "not a JSON object", id="PEM"),
    pytest.param(b"\x30\x82\x01\x01", "not a JSON object", id="DER"),
    pytest.param(b'{"keys":' + b"[" * 9000 + b"]" * 9000 + b"}", "not a JSON", id="deep"),
    pytest.param(b"{}", "no list of keys", id="no keys"),
    pytest.param(json.dumps(EC).encode(), "no list of keys", id="one key, no set"),
    pytest.param(b'{"keys": {}}', "no list of keys", id="keys is an object"),
    pytest.param(b'{"keys": "x"}', "no list of keys", id="keys is text"),
    pytest.param(b'{"Keys": []}', "no list of keys", id="keys in capitals"),
    pytest.param(jwks("x"), "not a JSON object", id="a key is text"),
    pytest.param(jwks([EC]), "not a JSON object", id="a key is a list"),
    pytest.param(jwks(None), "not a JSON object", id="a key is null"),
    pytest.param(jwks(EC, {}), "without kty", id="an empty key"),
    pytest.param(jwks(without(EC, "kty")), "without kty", id="no kty"),
    pytest.param(jwks(without(EC, "kid")), "without kid", id="no kid"),
    pytest.param(jwks({**EC, "kid": ""}), "without kid", id="kid is empty"),
    pytest.param(jwks({**EC, "kid": 1}), "without kid", id="kid is a number"),
    pytest.param(jwks({**EC, "kty": None}), "without kty", id="kty is null"),
    *(
        pytest.param(jwks(EC, {**RSA, name: "c2VjcmV0"}), "not a public one", id=f"member {name}")
        for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
    ),
    pytest.param(jwks({"kty": "oct", "kid": "a"}), "not a public one", id="a shared secret"),
    pytest.param(jwks({**EC, "d": None}), "not a public one", id="d is null"),
    pytest.param(jwks({**EC, "use": "x509-svid"}), "another use", id="a key for X.509-SVIDs"),
    pytest.param(jwks({**EC, "use": "enc"}), "another use", id="a key for encryption"),
    pytest.param(jwks({**EC, "use": ["sig"]}), "another use", id="use is a list"),
    pytest.param(jwks({**EC, "own": "x" * MAX_BUNDLE_BYTES}), "expected at most", id="too long"),
]


@pytest.mark.parametrize(("data", "reason"), NO_JWKS)
def test_what_is_no_set_of_public_keys_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        checked_jwks(data)
    assert "c2VjcmV0" not in str(caught.value)
    assert not is_jwks(data)


@settings(deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(json.loads(checked_jwks(data))["keys"], list)


# One message.


def message(**bundles: bytes) -> RawJwtBundles:
    """Bundles by trust domain; `_` stands for a dot."""
    named = {f"spiffe://{name.replace('_', '.')}": data for name, data in bundles.items()}
    return RawJwtBundles(named)


def test_every_bundle_is_that_of_its_trust_domain() -> None:
    raw = message(example_org=jwks(EC), other_org=jwks(RSA))
    assert jwt_bundles(raw, OWN) == JwtBundles({OWN: jwks(EC), OTHER: jwks(RSA)})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(RawJwtBundles({}), "no JWT bundle of our own", id="empty"),
        pytest.param(message(other_org=jwks(EC)), "no JWT bundle of our own", id="others' only"),
        pytest.param(message(example_org=b""), "example.org: not a JSON", id="ours is empty"),
        pytest.param(
            message(example_org=jwks({**EC, "d": "x"}), other_org=jwks(EC)),
            "example.org: a key is not a public one",
            id="ours holds a private key",
        ),
        pytest.param(
            RawJwtBundles({"spiffe://example.org/": jwks(EC)}), "no JWT bundle", id="ours by a path"
        ),
    ],
)
def test_message_without_our_own_bundle_is_refused_as_a_whole(
    raw: RawJwtBundles, reason: str
) -> None:
    with pytest.raises(AgentProtocolError, match=reason):
        jwt_bundles(raw, OWN)


@pytest.mark.parametrize(
    ("key", "data", "note"),
    [
        pytest.param("spiffe://other.org", b"junk", "other.org left out: not a JSON", id="junk"),
        pytest.param("spiffe://Other.org", jwks(EC), "left out: a trust domain is", id="capitals"),
        pytest.param("spiffe://other.org/a", jwks(EC), "left out: a trust domain is", id="a path"),
        pytest.param("", jwks(EC), "left out", id="no trust domain"),
        pytest.param("../evil", jwks(EC), "left out", id="a path of a file"),
        pytest.param("example.org", jwks(RSA), "second JWT bundle of example.org", id="ours twice"),
    ],
)
def test_bad_bundle_costs_only_its_own_trust_domain(key: str, data: bytes, note: str) -> None:
    raw = RawJwtBundles({"spiffe://example.org": jwks(EC), key: data, "good.org": jwks(RSA)})
    found = jwt_bundles(raw, OWN)
    assert found.bundles == {OWN: jwks(EC), TrustDomain("good.org"): jwks(RSA)}
    assert len(found.notes) == 1
    assert note in found.notes[0]


# The files.


def table(**changes: Any) -> CertFilesTable:
    values: dict[str, Any] = {"jwt_bundle": FileName("bundle.json"), **changes}
    return CertFilesTable(FilePath("certs"), **values)


FOUND = JwtBundles({OWN: jwks(EC), OTHER: jwks(RSA)}, ("a note",))


def test_our_bundle_goes_to_the_file_of_the_configuration() -> None:
    plan = jwt_bundle_plan(FOUND, OWN, table())
    assert [(one.name, one.mode, one.content) for one in plan.files] == [
        ("bundle.json", 0o644, jwks(EC))
    ]
    assert plan.notes == ("a note",)


def test_ours_is_that_of_our_trust_domain_whichever_it_is() -> None:
    plan = jwt_bundle_plan(FOUND, OTHER, table(federated_bundles=True))
    assert [(one.name, one.content) for one in plan.files] == [
        ("bundle.json", jwks(RSA)),
        ("bundle.example.org.json", jwks(EC)),
    ]


def test_each_federated_trust_domain_has_a_file_of_its_own() -> None:
    mode = FileMode(0o640)
    plan = jwt_bundle_plan(FOUND, OWN, table(federated_bundles=True, certificate_mode=mode))
    assert [(one.name, one.mode, one.content) for one in plan.files] == [
        ("bundle.json", 0o640, jwks(EC)),
        ("bundle.other.org.json", 0o640, jwks(RSA)),
    ]


def test_name_that_no_disk_takes_is_left_out_and_said() -> None:
    long = TrustDomain("a" * 244)
    found = JwtBundles({OWN: jwks(EC), OTHER: jwks(RSA), long: jwks(EC)})
    plan = jwt_bundle_plan(found, OWN, table(federated_bundles=True))
    assert [one.name for one in plan.files] == ["bundle.json", "bundle.other.org.json"]
    assert "too long" in plan.notes[0]
    fits = JwtBundles({OWN: jwks(EC), TrustDomain("a" * 243): jwks(EC)})
    assert len(jwt_bundle_plan(fits, OWN, table(federated_bundles=True)).files) == 2


def test_values_do_not_show_their_content() -> None:
    assert "kty" not in repr((FOUND, message(example_org=jwks(EC))))
    assert "kty" not in repr(jwt_bundle_plan(FOUND, OWN, table()))
