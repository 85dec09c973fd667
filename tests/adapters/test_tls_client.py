"""The client's side of a handshake: what is presented, who is believed, how it fails."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecar.adapters.tls import ServerIdentity, handshake, server_identity
from sidecar.adapters.tls.client import ClientHandshakeError, Shaken, client_handshake
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.probe.faults import HandshakeEnd
from tests.adapters.deadlines import until, within
from tests.adapters.tls_ends import tcp_ends
from tests.ca import Authority, Leaf, rsa_key
from tests.probe_peers import (
    Conduct,
    OddServer,
    hang_up,
    over_tls,
    read_on,
    reset,
    says,
    server_context,
)

TRAEFIK = "/workload/traefik"
Serve = Callable[[Conduct], socket.socket]


@pytest.fixture
def own(authority: Authority, foreign: Authority) -> ServerIdentity:
    """What we present, with the bundle of a federated trust domain beside our own."""
    bundles = {one.trust_domain: one.bundle for one in (authority, foreign)}
    return server_identity(authority.svid(TRAEFIK), bundles, "1.3")


@pytest.fixture
def serve(closing: ExitStack) -> Serve:
    """Run a server, and connect to it."""

    def dial(conduct: Conduct) -> socket.socket:
        server = closing.enter_context(OddServer(conduct))
        sock = closing.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        sock.setblocking(False)
        return sock

    return dial


async def shake(sock: socket.socket, own: ServerIdentity, seconds: float = 10) -> Shaken:
    return await client_handshake(sock, own, server_name="", speaks_http=True, seconds=seconds)


async def failure(
    sock: socket.socket, own: ServerIdentity, seconds: float = 10
) -> ClientHandshakeError:
    with pytest.raises(ClientHandshakeError) as caught:
        await shake(sock, own, seconds)
    return caught.value


# Who is believed, and what is presented.


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@within(20)
async def test_server_of_our_trust_domain_is_believed_and_sees_our_svid(
    own: ServerIdentity, serve: Serve, authority: Authority, folder: Path, version: str
) -> None:
    presented: list[bytes | None] = []

    def conduct(tls: ssl.SSLSocket) -> None:
        presented.append(tls.getpeercert(binary_form=True))
        tls.sendall(b"hello")
        read_on(tls)

    issued = authority.sign(authority.leaf())
    done = await shake(
        serve(over_tls(server_context(issued, folder, authority, version), conduct)), own
    )
    assert str(done.peer) == "spiffe://example.org/workload/model-server"
    assert done.leaf == issued.chain[0]
    assert done.agreed.version == f"TLSv{version}"
    assert done.agreed.cipher
    assert done.agreed.asked
    assert await done.stream.receive() == b"hello"
    assert presented == [own.svid.leaf.public_bytes(Encoding.DER)]


@within(20)
async def test_our_own_server_takes_it(
    own: ServerIdentity, identity: ServerIdentity, closing: ExitStack
) -> None:
    ours, wire = tcp_ends(closing)
    wire.sock.setblocking(False)
    peers: list[str] = []

    async def server() -> None:
        peers.append(str((await handshake(ours, identity, 10)).peer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        await shake(wire.sock, own)
    assert peers == ["spiffe://example.org/workload/traefik"]


@within(20)
async def test_intermediates_are_sent_and_taken(
    serve: Serve, authority: Authority, folder: Path
) -> None:
    below = authority.intermediate()
    ours = authority.svid(TRAEFIK)
    issued = below.sign(below.leaf(TRAEFIK), below)
    own = server_identity(
        replace(ours, chain=issued.chain, private_key=issued.key),
        {authority.trust_domain: authority.bundle},
        "1.3",
    )
    theirs = below.sign(below.leaf(), below)
    presented: list[bytes | None] = []

    def conduct(tls: ssl.SSLSocket) -> None:
        presented.append(tls.getpeercert(binary_form=True))  # and proven
        read_on(tls)

    done = await shake(serve(over_tls(server_context(theirs, folder, authority), conduct)), own)
    assert done.leaf == theirs.chain[0]
    await until(lambda: bool(presented), "the server's end of the handshake")
    assert presented == [issued.chain[0].public_bytes(Encoding.DER)]


@within(20)
async def test_server_that_wants_no_certificate_is_noticed(
    own: ServerIdentity, serve: Serve, authority: Authority, folder: Path
) -> None:
    context = server_context(authority.sign(authority.leaf()), folder, None)
    done = await shake(serve(over_tls(context, read_on)), own)
    assert not done.agreed.asked


@pytest.mark.parametrize(
    ("name", "speaks_http", "seen"),
    [
        pytest.param("models.example", True, ("models.example", "http/1.1"), id="a name, HTTP"),
        pytest.param("", False, (None, None), id="an address, no HTTP"),
    ],
)
@within(20)
async def test_name_and_protocol_are_told_to_a_proxy_that_chooses_by_them(
    own: ServerIdentity,
    serve: Serve,
    authority: Authority,
    folder: Path,
    name: str,
    speaks_http: bool,
    seen: tuple[str | None, str | None],
) -> None:
    context = server_context(authority.sign(authority.leaf()), folder, None)
    context.set_alpn_protocols(["http/1.1"])
    names: list[str | None] = []
    context.sni_callback = lambda _sock, told, _context: names.append(told)
    done = await client_handshake(
        serve(over_tls(context, read_on)),
        own,
        server_name=name,
        speaks_http=speaks_http,
        seconds=10,
    )
    assert (names[0] if names else None, done.agreed.alpn or None) == seen


# Who is not.

GOOD = Leaf(uris=("spiffe://example.org/workload/model-server",))
EXPIRED = replace(GOOD, not_before=timedelta(hours=-2), not_after=timedelta(hours=-1))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("leaf", "result"),
    [
        pytest.param(
            replace(GOOD, uris=(), dns=("localhost",)),
            HandshakeResult.BAD_CERTIFICATE,
            id="a name that would do elsewhere, and no ID",
        ),
        pytest.param(EXPIRED, HandshakeResult.NOT_VALID_NOW, id="expired"),
        pytest.param(
            replace(GOOD, extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
            HandshakeResult.UNSUPPORTED_CERTIFICATE,
            id="not for servers",
        ),
        pytest.param(
            replace(GOOD, extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,)),
            HandshakeResult.UNSUPPORTED_CERTIFICATE,
            id="for servers alone, which no SVID is",
        ),
        pytest.param(
            replace(GOOD, basic_constraints=x509.BasicConstraints(ca=True, path_length=None)),
            HandshakeResult.BAD_CERTIFICATE,
            id="an authority",
        ),
        pytest.param(
            replace(GOOD, uris=("spiffe://unknown.org/workload/model-server",)),
            HandshakeResult.UNKNOWN_TRUST_DOMAIN,
            id="a trust domain that nobody told us of",
        ),
        pytest.param(
            replace(GOOD, uris=("spiffe://other.org/workload/model-server",)),
            HandshakeResult.NOT_PROVEN,
            id="another trust domain's ID, by our authority",
        ),
        pytest.param(
            replace(GOOD, key=rsa_key(1024)), HandshakeResult.BAD_CERTIFICATE, id="a weak key"
        ),
    ],
)
@within(20)
async def test_server_that_is_not_proven_is_refused_and_gets_no_byte(
    own: ServerIdentity,
    serve: Serve,
    authority: Authority,
    folder: Path,
    version: str,
    leaf: Leaf,
    result: str,
) -> None:
    issued, got = authority.sign(leaf), list[str]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(issued.write(folder, "odd"))
    wanted = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = wanted

    def conduct(sock: socket.socket) -> None:
        try:
            with context.wrap_socket(sock, server_side=True) as tls:
                got.append(repr(tls.recv(1)))
        except ssl.SSLError as exc:
            got.append(f"alert: {exc.reason}")

    sock = serve(conduct)
    error = await failure(sock, own)
    sock.close()
    assert (error.end, error.result) == (HandshakeEnd.NOT_TRUSTED, result)
    if leaf.key is None:
        assert error.leaf == issued.chain[0]
    await until(lambda: bool(got), "the server's end of it")
    assert got[0].startswith("alert: ")


@within(20)
async def test_impostor_is_refused(own: ServerIdentity, serve: Serve, folder: Path) -> None:
    impostor = Authority("example.org")
    context = server_context(impostor.sign(impostor.leaf()), folder, None)
    error = await failure(serve(over_tls(context, read_on)), own)
    assert (error.end, error.result) == (HandshakeEnd.NOT_TRUSTED, HandshakeResult.NOT_PROVEN)


@within(20)
async def test_purpose_is_told_as_what_every_svid_is_made_for(
    own: ServerIdentity, serve: Serve, authority: Authority, folder: Path
) -> None:
    leaf = replace(GOOD, extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    context = server_context(authority.sign(leaf), folder, None)
    error = await failure(serve(over_tls(context, read_on)), own)
    assert error.message == "extendedKeyUsage lacks clientAuth or serverAuth"


# How it fails otherwise.


@pytest.mark.parametrize(
    ("conduct", "end"),
    [
        pytest.param(says(b"SSH-2.0-OpenSSH_9.9\r\n"), HandshakeEnd.NOT_TLS, id="another protocol"),
        pytest.param(hang_up, HandshakeEnd.CLOSED, id="the end"),
        pytest.param(reset, HandshakeEnd.CLOSED, id="a reset"),
        pytest.param(says(b"\x15\x03\x03\x00\x02\x02\x28"), HandshakeEnd.ALERT, id="an alert"),
        pytest.param(says(b"\x16\x03\x03\x00\x05garbage"), HandshakeEnd.PROTOCOL, id="odd TLS"),
    ],
)
@within(20)
async def test_what_a_server_does_in_place_of_a_handshake_is_told_apart(
    own: ServerIdentity, serve: Serve, conduct: Conduct, end: HandshakeEnd
) -> None:
    error = await failure(serve(conduct), own)
    assert error.end is end
    assert error.leaf is None


@within(20)
async def test_first_words_of_another_protocol_are_kept(own: ServerIdentity, serve: Serve) -> None:
    error = await failure(serve(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")), own)
    assert error.said == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    flood = await failure(serve(says(b"x" * 1_000_000)), own)
    assert len(flood.said) <= 512


@within(20)
async def test_silence_is_waited_for_no_longer_than_the_deadline(
    own: ServerIdentity, serve: Serve
) -> None:
    error = await failure(serve(read_on), own, 0.1)
    assert error.end is HandshakeEnd.SILENT


@within(20)
async def test_refusal_of_our_svid_is_told_from_a_refusal_of_our_greeting(
    own: ServerIdentity, serve: Serve, authority: Authority, foreign: Authority, folder: Path
) -> None:
    # Up to TLS 1.2 the server judges before the handshake ends.
    issued = authority.sign(authority.leaf())
    strict = server_context(issued, folder, foreign, "1.2")
    error = await failure(serve(over_tls(strict, read_on)), own)
    assert (error.end, error.message) == (HandshakeEnd.OWN_SVID, "unknown ca")
    odd = server_context(issued, folder, None, "1.2")
    odd.set_ciphers("AES128-GCM-SHA256")  # without forward secrecy
    error = await failure(serve(over_tls(odd, read_on)), own)
    assert error.end is HandshakeEnd.ALERT
    assert " alert " not in error.message
