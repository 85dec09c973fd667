"""The JSON of `spire-server`, good and bad."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.core.errors import RegistrationError
from sidecar.core.registration.answers import (
    read_agents,
    read_authorities,
    read_changed,
    read_entries,
    read_token,
)
from sidecar.core.registration.entries import Entry, Others, Selector
from sidecar.core.spiffe_id import SpiffeId
from tests.ca import Authority

TOKEN = "998a0493-c4d2-48e7-a0ad-0c3178b51d4c"
# As SPIRE 1.16 prints it.
ENTRY: dict[str, Any] = {
    "admin": False,
    "created_at": "1795289916",
    "dns_names": ["models.example.org"],
    "downstream": False,
    "expires_at": "0",
    "federates_with": [],
    "hint": "",
    "id": "1abd0f55",
    "jwt_svid_ttl": 0,
    "parent_id": {"path": "/host/mac", "trust_domain": "example.org"},
    "revision_number": "0",
    "selectors": [{"type": "unix", "value": "uid:451"}],
    "spiffe_id": {"path": "/w/a", "trust_domain": "example.org"},
    "store_svid": False,
    "x509_svid_ttl": 60,
}
AGENT = {
    "agent_version": "1.16.0",
    "attestation_type": "join_token",
    "banned": False,
    "can_reattest": False,
    "id": {"path": f"/spire/agent/join_token/{TOKEN}", "trust_domain": "example.org"},
    "selectors": [],
    "x509svid_expires_at": "1795293516",
    "x509svid_serial_number": "42",
}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def result(code: int, message: str, entry: object = ENTRY) -> bytes:
    status = {"code": code, "message": message}
    return encoded({"results": [{"entry": entry, "status": status}]})


def test_entries() -> None:
    (entry,) = read_entries(encoded({"entries": [ENTRY], "next_page_token": ""}))
    assert entry == Entry(
        "1abd0f55",
        SpiffeId.parse("spiffe://example.org/w/a"),
        SpiffeId.parse("spiffe://example.org/host/mac"),
        (Selector("unix", "uid:451"),),
        ("models.example.org",),
        60,
    )


def test_what_we_do_not_manage_is_read_to_be_kept() -> None:
    more = {
        "admin": True,
        "downstream": True,
        "expires_at": "1999999999",
        "federates_with": ["other.org"],
        "hint": "h",
        "jwt_svid_ttl": 70,
        "store_svid": True,
        "additional_attributes": {
            "disable_x509_svid_prefetch": True,
            "jwt_svid_include_jti": True,
        },
    }
    (entry,) = read_entries(encoded({"entries": [{**ENTRY, **more}]}))
    assert entry.others == Others(70, ("other.org",), "h", True, True, True, 1999999999, True, True)


def test_keys_that_an_older_version_lacks_have_their_defaults() -> None:
    least = {name: ENTRY[name] for name in ("id", "spiffe_id", "parent_id")}
    (entry,) = read_entries(encoded({"entries": [least]}))
    assert entry.others == Others()
    (entry,) = read_entries(encoded({"entries": [{**ENTRY, "additional_attributes": None}]}))
    assert entry.others == Others()


def test_done() -> None:
    entry = read_changed(result(0, "OK"), "entry create")
    assert entry is not None
    assert entry.id == "1abd0f55"
    deleted = encoded({"results": [{"id": "x", "status": {"code": 0, "message": "OK"}}]})
    assert read_changed(deleted, "entry delete") is None


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        pytest.param(3, "failed to convert entry: missing selector value", None, id="invalid"),
        pytest.param(5, "entry not found", "run this again", id="gone in the meantime"),
        pytest.param(6, "similar entry already exists", "run this again", id="made meanwhile"),
        pytest.param(7, "no", "administration", id="not allowed"),
    ],
)
def test_refusal_of_the_server_is_an_error_though_the_exit_status_is_0(
    code: int, message: str, hint: str | None
) -> None:
    with pytest.raises(RegistrationError) as raised:
        read_changed(result(code, message), "entry create")
    assert message in raised.value.message
    assert raised.value.message.startswith("entry create: ")
    assert (hint or "") in (raised.value.hint or "")


def test_refusal_shows_no_token_and_nothing_that_a_terminal_acts_on() -> None:
    message = f"cannot\r\nmake spiffe://example.org/spire/agent/join_token/{TOKEN}"
    with pytest.raises(RegistrationError) as raised:
        read_changed(result(13, message), "token")
    assert TOKEN not in raised.value.message
    assert "\n" not in raised.value.message


def test_one_command_has_one_result() -> None:
    with pytest.raises(RegistrationError, match="found 0"):
        read_changed(encoded({"results": []}), "entry create")


def test_agents() -> None:
    (agent,) = read_agents(encoded({"agents": [AGENT], "next_page_token": ""}))
    assert agent.expires_at == 1795293516
    assert (agent.banned, agent.can_reattest) == (False, False)
    assert agent.spiffe_id.path.endswith(TOKEN)


@pytest.mark.parametrize(("said", "read"), [(2**63 - 1, 253402300799), (-(2**63), 0)])
def test_times_that_no_calendar_has_are_the_nearest_that_one_has(said: int, read: int) -> None:
    (agent,) = read_agents(encoded({"agents": [{**AGENT, "x509svid_expires_at": str(said)}]}))
    assert agent.expires_at == read
    assert read_token(encoded({"expires_at": str(said), "value": TOKEN})).expires_at == read


def test_answer_that_is_nested_without_end() -> None:
    with pytest.raises(RegistrationError, match="not the JSON"):
        read_agents(b'{"x":' + b"[" * 1_000_000)


def test_token() -> None:
    token = read_token(encoded({"expires_at": "1795290516", "value": TOKEN}))
    assert (token.value, token.expires_at) == (TOKEN, 1795290516)


@pytest.mark.parametrize("value", ["", "a\nb", "ä"])
def test_token_that_is_none(value: str) -> None:
    with pytest.raises(RegistrationError, match="join token"):
        read_token(encoded({"expires_at": "1", "value": value}))


def test_authorities_are_the_certificates_of_the_bundle(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.ca.cert_pem.bytes())
    der = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    bundle = {
        "trust_domain": "example.org",
        "x509_authorities": [{"asn1": der, "tainted": False}, {"asn1": der}],
    }
    found = read_authorities(encoded(bundle))
    assert found.trust_domain == "example.org"
    assert x509.load_pem_x509_certificates(found.pem.encode()) == [certificate, certificate]
    assert max(len(line) for line in found.pem.splitlines()) == 64

    bundle["x509_authorities"] = [{"asn1": der, "tainted": True}, {"asn1": der}]
    found = read_authorities(encoded(bundle))
    assert len(x509.load_pem_x509_certificates(found.pem.encode())) == 1


@pytest.mark.parametrize(
    "authorities",
    [
        pytest.param([], id="none"),
        pytest.param([{"asn1": "", "tainted": True}], id="only tainted ones"),
        pytest.param([{"asn1": "AAAA"}], id="no certificate"),
        pytest.param([{"asn1": "!"}], id="no base64"),
    ],
)
def test_bundle_without_an_authority_is_refused(authorities: object) -> None:
    bundle = {"trust_domain": "example.org", "x509_authorities": authorities}
    with pytest.raises(RegistrationError, match=r"authority"):
        read_authorities(encoded(bundle))


@pytest.mark.parametrize("read", [read_entries, read_agents, read_token, read_authorities])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(f"Token: {TOKEN}\n".encode(), id="text"),
        pytest.param(f'["{TOKEN}"]'.encode(), id="other JSON"),
        pytest.param(b'{"value": "\xff"}', id="no UTF-8"),
    ],
)
def test_what_is_no_answer_is_refused_without_being_shown(read: Any, data: bytes) -> None:
    with pytest.raises(RegistrationError) as raised:
        read(data)
    assert TOKEN not in f"{raised.value.message}{raised.value.hint}"
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
