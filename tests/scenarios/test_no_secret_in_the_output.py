"""Whatever happens, no key, certificate or payload is in what the daemon writes to its terminal."""

from __future__ import annotations

import base64
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2

from sidecar.core.svid import X509Svid
from sidecar.demo.agent import x509_svid_response
from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import turned_away

PAYLOAD = b"the prompt is between the peer and the model server"


def _spellings(key: ec.EllipticCurvePrivateKey) -> set[str]:
    """The private number and the key's DER, as any careless line could show them."""
    number = key.private_numbers().private_value
    raw = number.to_bytes(32, "big")
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    spellings = {str(number), f"{number:x}", repr(raw)[2:-1], raw.hex(" "), raw.hex(":")}
    for data in (raw, der):
        for shift in range(3):  # base64 of data that something stands in front of
            spellings.add(base64.b64encode(b"\0" * shift + data).decode()[4:40])
    return spellings


def _shown(output: str, keys: list[ec.EllipticCurvePrivateKey]) -> list[str]:
    output = output.replace("\\n", "").replace("\n", "").lower()
    wanted = {
        "-----begin",
        "private key-----",
        PAYLOAD.decode(),
        base64.b64encode(PAYLOAD).decode(),
    }
    wanted |= set().union(*map(_spellings, keys))
    return [one for one in wanted if one.lower() in output]


def test_session_with_every_kind_of_trouble_at_level_debug(
    launch: Launch,
    agent: AgentProcess,
    backend: EchoBackend,
    authority: Authority,
    foreign: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    svids = [authority.svid() for _ in range(4)]
    keys = [svid.private_key for svid in svids]
    agent.send(svids[0], authority.bundle)
    daemon = launch(more='level = "debug"\n[cert_files]\ndirectory = "certs"')
    with connect(daemon.address, traefik) as tls:
        tls.sendall(PAYLOAD)
        assert receive_exactly(tls, len(PAYLOAD)) == PAYLOAD
        tls.unwrap()
    stranger = authority.sign(authority.leaf("/workload/stranger"))
    forged = foreign.sign(replace(foreign.leaf(), uris=("spiffe://example.org/workload/traefik",)))
    for issued in (stranger, forged, None):
        turned_away(daemon.address, client_context(authority, issued, folder))
    turned_away(daemon.address, None)
    for message in _bad_updates(svids[1:3], authority, foreign):
        agent.send_bytes(message)
        daemon.wait_for("update discarded")
    agent.send(svids[3], authority.bundle)
    daemon.wait_for("certificate files published", serial=svids[3].serial)
    (folder / "certs").rename(folder / "aside")
    (folder / "certs").write_text("in the way")
    agent.send(svids[0], authority.bundle)
    daemon.wait_for("certificate files not published")
    agent.deny()
    daemon.wait_for("identity denied")
    agent.kill()
    backend.close()
    turned_away(daemon.address, traefik)
    daemon.wait_for("backend unreachable")
    assert daemon.stop() == 0
    output = "".join(daemon.raw) + "".join(capfd.readouterr())
    assert len(output) > 2000
    assert not _shown(output, [key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)])


def _bad_updates(svids: list[X509Svid], authority: Authority, foreign: Authority) -> list[bytes]:
    """Updates that are discarded for different reasons, each with a whole key in it."""
    first, second = svids
    good = x509_svid_response([first], [authority.bundle])
    key = workload_pb2.X509SVIDResponse.FromString(good).svids[0].x509_svid_key

    def changed(**fields: bytes) -> bytes:
        response = workload_pb2.X509SVIDResponse.FromString(good)
        for name, value in fields.items():
            setattr(response.svids[0], name, value)
        return bytes(response.SerializeToString())

    return [
        x509_svid_response([replace(first, private_key=second.private_key)], [authority.bundle]),
        x509_svid_response([first], [foreign.bundle]),
        good[:-20],  # cut off
        changed(x509_svid=key),  # the key where the certificate belongs
        changed(bundle=key),
        changed(x509_svid_key=key[:-9]),
        changed(x509_svid_key=b"\x30\x03" + key),
        changed(x509_svid_key=key + key),
    ]
