"""The search for secrets finds what it looks for, and lets the lines of every day pass."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.demo.jwt_issuer import JwtIssuer
from tests.ca import rsa_key
from tests.daemon import Daemon
from tests.redaction import SECRET_MARKER, SecretShownError, assert_redacted

KEYS: dict[str, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
    "RSA": rsa_key(2048),
}


def der(name: str) -> bytes:
    return KEYS[name].private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def pem(name: str) -> str:
    return (
        KEYS[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    )


TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly94In0.c2lnbmF0dXJl"


@pytest.mark.parametrize("name", KEYS)
def test_key_is_found_in_every_spelling(name: str) -> None:
    text = pem(name)
    spellings = [
        json.dumps({"event": "x", "key": text}),
        f"key={text!r}",
        text.splitlines()[1],  # the console prints lines as they are
        base64.b64encode(der(name)).decode(),
        base64.b64encode(der(name)).decode()[:40],
        base64.urlsafe_b64encode(b"\0" + der(name)).decode(),
    ]
    for spelling in spellings:
        with pytest.raises(SecretShownError):
            assert_redacted(["fine\n", spelling])


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("-----BEGIN EC PRIVATE KEY-----", id="PEM header"),
        pytest.param("-----BEGIN CERTIFICATE-----", id="PEM of a certificate"),
        pytest.param(f'{{"reason": "not accepted: {TOKEN}"}}', id="JWT"),
        pytest.param(TOKEN.rpartition(".")[0], id="JWT without its signature"),
        pytest.param("header Bearer sk-12345678", id="bearer token"),
        pytest.param('{"authorization": "sk-12345678"}', id="Authorization in JSON"),
        pytest.param("(b'Authorization', b'sk-12345678')", id="Authorization in a tuple"),
        pytest.param("Authorization: Basic dTpw", id="Authorization as it is sent"),
        pytest.param(f"path=/v1/models?key={SECRET_MARKER}", id="what a test marked"),
        pytest.param(f"key={SECRET_MARKER.lower()}", id="marked, in lower case"),
    ],
)
def test_secret_is_found_and_its_line_is_shown(line: str) -> None:
    with pytest.raises(SecretShownError) as caught:
        assert_redacted(["first\n", line, "last\n"])
    assert line in str(caught.value)
    assert "first" not in str(caught.value)


def test_jwt_svid_of_an_issuer_is_found() -> None:
    token = JwtIssuer().token("spiffe://example.org/x", ["vault"], timedelta(minutes=5))
    with pytest.raises(SecretShownError):
        assert_redacted([f"token={token}"])


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            '{"peer": "spiffe://example.org/workload/traefik", "serial": "2AAA66E7D1C04B5F9A3E"}',
            id="peer",
        ),
        pytest.param("fingerprint=" + "0123456789abcdef" * 4, id="fingerprint"),
        pytest.param("path=/" + "x" * 200, id="long path"),
        pytest.param('"path": "/v1/models/{model...}"', id="path"),
        pytest.param('"file": "/tmp/sc-AbC123/certs/svid_key.pem"', id="name of a key's file"),
        pytest.param("no token; is the Authorization header missing?", id="name of a header"),
        pytest.param("basic constraints say cA", id="word that begins credentials"),
    ],
)
def test_line_of_every_day_passes(line: str) -> None:
    assert_redacted([line])


def test_daemon_that_shows_a_secret_fails_its_test(tmp_path: Path) -> None:
    """Whoever ends a daemon hears of it: here one that quotes its own configuration."""
    config = tmp_path / f"{SECRET_MARKER}.toml"
    daemon = Daemon(config)  # there is no such file, and the message names it
    with pytest.raises(SecretShownError):
        daemon.wait()
