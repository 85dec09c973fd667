"""The part of Traefik: an mTLS client on the standard library's OpenSSL, not on ours."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.core.svid import serial_text
from tests.ca import Authority, Issued


def client_context(
    trusted: Authority, issued: Issued | None, folder: Path, version: str = "1.3"
) -> ssl.SSLContext:
    """A context that presents `issued` (or nothing) and trusts one authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # an SVID has no host name; serials are what tests compare
    wanted = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = wanted
    context.load_verify_locations(cadata=trusted.certificate.public_bytes(Encoding.DER))
    if issued is not None:
        context.load_cert_chain(issued.write(folder, f"client-{id(issued)}"))
    return context


def connect(
    address: tuple[str, int], context: ssl.SSLContext, seconds: float = 10
) -> ssl.SSLSocket:
    """Connect and finish our side of the handshake."""
    sock = socket.create_connection(address, seconds)
    try:
        return context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def server_serial(tls: ssl.SSLSocket) -> str:
    """The serial of the certificate that the server presented, as the daemon logs it."""
    der = tls.getpeercert(binary_form=True)
    assert der is not None
    return serial_text(x509.load_der_x509_certificate(der))


def receive_exactly(tls: ssl.SSLSocket | socket.socket, count: int) -> bytes:
    """Receive `count` bytes; fewer mean that the other side ended."""
    parts = bytearray()
    while len(parts) < count and (data := tls.recv(min(65536, count - len(parts)))):
        parts += data
    return bytes(parts)


def refusal(address: tuple[str, int], context: ssl.SSLContext) -> str:
    """Connect, send a request, and tell how the server refused: an alert's name or "closed"."""
    try:
        with connect(address, context) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\n\r\n")
            data = tls.recv(1)
    except ssl.SSLError as exc:
        return exc.reason or "SSL error"
    except ConnectionError as exc:
        return type(exc).__name__
    assert data == b"", "the server answered a peer that it had to refuse"
    return "closed"
