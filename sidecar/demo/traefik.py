"""The part of Traefik: an HTTP client over mTLS with an SVID of its own.

For the demonstration only. On purpose on the standard library's `ssl` and on httpx, and on
nothing of the sidecar's: what it sees is what any client sees.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.svid import TrustBundle, X509Svid

MODEL = "demo"


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """What a client needs on disk."""

    certificate: Path
    private_key: Path
    bundle: Path


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, and how long it was under way."""

    number: int
    text: str
    seconds: float


def write_client_files(folder: Path, name: str, svid: X509Svid, bundle: TrustBundle) -> ClientFiles:
    """Write certificate, key and bundle for one client."""
    files = ClientFiles(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.ca.pem")
    files.private_key.touch(mode=0o600)
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.private_key.write_bytes(key)
    files.certificate.write_bytes(svid.leaf.public_bytes(Encoding.PEM))
    files.bundle.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in bundle.authorities))
    return files


def client(base_url: str, trust: Path, own: ClientFiles | None) -> httpx.AsyncClient:
    """Make a client that trusts `trust` and presents `own`, or no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a SPIFFE ID is not a host name; `server_id` is compared
    context.load_verify_locations(trust)
    if own is not None:
        context.load_cert_chain(own.certificate, own.private_key)
    return httpx.AsyncClient(base_url=base_url, verify=context, trust_env=False, timeout=10)


def plain_client(base_url: str) -> httpx.AsyncClient:
    """Make a client that talks to the model server directly, to compare with."""
    return httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=10)


def server_id(response: httpx.Response) -> str:
    """Give the SPIFFE ID of the certificate that the server presented."""
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    names = tls.getpeercert().get("subjectAltName", ())
    return ", ".join(value for kind, value in names if kind == "URI")


async def tokens(response: httpx.Response) -> AsyncIterator[Token]:
    """Give the tokens of a streamed answer as they come."""
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        text = event["choices"][0]["delta"]["content"]
        yield Token(event["number"], text, time.monotonic() - event["sent"])


def chat() -> dict[str, object]:
    """Give the body of a chat request."""
    message = {"role": "user", "content": "What just happened?"}
    return {"model": MODEL, "stream": True, "messages": [message]}
