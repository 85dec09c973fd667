"""A stand-in for Traefik: `python -m tests.runbook.fake_traefik DIRECTORY ADDRESS PEM SVIDS`.

Ends the client's TLS with PEM, finds router, service and transport for the asked name in the files
of DIRECTORY, and carries the bytes over mTLS, with the SVID in SVIDS, to a server whose chain and
SPIFFE ID are as the transport says. Of the configuration it reads what decides that, and no more.
"""

from __future__ import annotations

import ssl
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from tests.printed_yaml import read_yaml

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a name leads."""

    url: str
    spiffe_ids: list[str]


def find_route(directory: Path, name: str) -> Route | None:
    """Find the first router for a name."""
    for file in sorted(directory.glob("*.yml")):
        http = read_yaml(file.read_text())["http"]
        for router in http["routers"].values():
            if f"Host(`{name}`)" in router["rule"]:
                balancer: dict[str, Any] = http["services"][router["service"]]["loadBalancer"]
                transport = http["serversTransports"][balancer["serversTransport"]]
                return Route(balancer["servers"][0]["url"], transport["spiffe"]["ids"])
    return None


async def dial(route: Route, svids: Path) -> trio.SSLStream[trio.SocketStream]:
    """Connect to the server of a route; raises if it is another one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(svids / "svid_bundle.pem")
    context.load_cert_chain(svids / "svid.pem", svids / "svid_key.pem")
    where = urlsplit(route.url)
    tcp = await trio.open_tcp_stream(where.hostname or "", where.port or 443)
    tls = trio.SSLStream(tcp, context, https_compatible=True)
    await tls.do_handshake()
    names = tls.getpeercert().get("subjectAltName", ())
    if not any(("URI", spiffe_id) in names for spiffe_id in route.spiffe_ids):
        raise OSError(f"found {names}, expected {route.spiffe_ids}")
    return tls


async def serve(tcp: trio.SocketStream, directory: Path, pem: Path, svids: Path) -> None:
    """Serve one client."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    async with trio.SSLStream(tcp, context, server_side=True, https_compatible=True) as client:
        try:
            await client.do_handshake()
            route = find_route(directory, asked[0] or "")
            if route is None:
                await client.send_all(_NOT_FOUND)
            else:
                await _through(client, route, svids)
        except _GONE:
            print("a client went", flush=True)


async def _through(client: trio.SSLStream[trio.SocketStream], route: Route, svids: Path) -> None:
    try:
        server = await dial(route, svids)
    except (OSError, *_GONE) as exc:
        print(f"no way to {route.url}: {exc}", flush=True)
        await client.send_all(_BAD_GATEWAY)
        return
    async with server, trio.open_nursery() as nursery:
        for source, target in ((client, server), (server, client)):
            nursery.start_soon(_carry, source, target, nursery.cancel_scope)


async def _carry(source: trio.abc.Stream, target: trio.abc.Stream, both: trio.CancelScope) -> None:
    """Carry bytes until one side ends, and with it the other."""
    try:
        while data := await source.receive_some():
            await target.send_all(data)
    except _GONE:
        pass  # it went in the middle
    both.cancel()


async def main() -> None:
    directory, address, pem, svids = sys.argv[1:]
    host, _, port = address.rpartition(":")
    handler = partial(serve, directory=Path(directory), pem=Path(pem), svids=Path(svids))
    await trio.serve_tcp(handler, int(port), host=host)


if __name__ == "__main__":
    trio.run(main)
