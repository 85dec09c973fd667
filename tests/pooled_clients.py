"""Pooling HTTP clients in a process of their own, and the model server that they ask.

`PooledClients` is the handle in a test; `python -m tests.pooled_clients WHAT ...` is the child.
Each client is an `httpx.AsyncClient` as an application has it: it keeps connections, dials again
when it is told to, and does not ask twice. Half of the clients ask for streams, two at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509

from sidecar.core.svid import serial_text

PER_SECOND = 20.0  # requests of one client
EVENTS = 4  # of one stream
EVENT_SECONDS = 0.02
_GUARD_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    """One request that was answered: by which client, on which connection, and when (wall)."""

    client: int
    port: int  # of the client's end: one connection
    serial: str  # of the certificate that the daemon presented on it
    begun: float
    seconds: float


@dataclass(frozen=True)
class Asked:
    """All that the clients have asked."""

    requests: list[Request]
    failed: list[str]


class PooledClients:
    """A process of `count` clients, from the first answer to each until the `with` block ends."""

    def __init__(self, url: str, folder: Path, pem: Path, authority: Path, count: int) -> None:
        self._results = folder / "asked.json"
        arguments = [url, str(pem), str(authority), str(count), str(self._results)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pooled_clients", "clients", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> PooledClients:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"all are answered\n"
        return self

    def __exit__(self, *_fault: object) -> None:
        try:
            self.process.communicate(timeout=_GUARD_SECONDS)  # the end of its input is its end
        finally:
            self.process.kill()
            self.process.wait()

    def asked(self) -> Asked:
        """What became of it, once it has ended."""
        read = json.loads(self._results.read_text())
        return Asked([Request(**one) for one in read["requests"]], read["failed"])


# The child: clients.


class Client:
    """One application."""

    def __init__(self, number: int, url: str, context: ssl.SSLContext) -> None:
        self._number, self._url = number, url
        self._http = httpx.AsyncClient(verify=context, timeout=_GUARD_SECONDS, trust_env=False)
        self.requests: list[Request] = []
        self.failed: list[str] = []
        self.is_answered = asyncio.Event()
        self._streams = number % 2 == 1

    async def run(self, stop: asyncio.Event) -> None:
        """Ask at a steady pace until the end."""
        at_a_time = 2 if self._streams else 1
        async with self._http:
            await asyncio.gather(
                *(self._ask(stop, PER_SECOND / at_a_time) for _ in range(at_a_time))
            )

    async def _ask(self, stop: asyncio.Event, per_second: float) -> None:
        due = time.monotonic() + (self._number * 0.618034 % 1) / per_second
        while not stop.is_set():
            # What could not be asked in time is left out: no burst after a pause.
            due = max(due + 1 / per_second, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            try:
                await self._one_request()
            except (httpx.HTTPError, AssertionError) as exc:
                self.failed.append(f"client {self._number} at {time.time():.6f}: {exc!r}")
            self.is_answered.set()

    async def _one_request(self) -> None:
        begun, clock = time.time(), time.monotonic()
        path = "/v1/stream" if self._streams else "/v1/small"
        content = b'{"model": "m"}'
        async with self._http.stream("POST", self._url + path, content=content) as answer:
            port, serial = _connection(answer)
            body = b"".join([part async for part in answer.aiter_bytes()])
        assert answer.status_code == 200, f"{answer.status_code}: {body[:200]!r}"
        assert is_whole(body), f"{len(body)} bytes came"
        seconds = time.monotonic() - clock
        self.requests.append(Request(self._number, port, serial, begun, seconds))


def _connection(answer: httpx.Response) -> tuple[int, str]:
    """Our port, and the daemon's serial, as long as the connection is there."""
    network = answer.extensions["network_stream"]
    certificate = network.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return network.get_extra_info("client_addr")[1], _serial(certificate)


@lru_cache
def _serial(der: bytes) -> str:
    return serial_text(x509.load_der_x509_certificate(der))


async def ask(url: str, pem: str, authority: str, count: str, results: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(authority)
    context.load_cert_chain(pem)
    clients = [Client(number, url, context) for number in range(int(count))]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(stop))
        for client in clients:
            await client.is_answered.wait()
        print("all are answered", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        stop.set()
    asked: dict[str, Any] = {
        "requests": [asdict(one) for client in clients for one in client.requests],
        "failed": [one for client in clients for one in client.failed],
    }
    Path(results).write_text(json.dumps(asked))


# The child: the model server.

_SMALL = b"x" * 136
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n"


def is_whole(body: bytes) -> bool:
    """Tell whether an answer ends with the digest of what is before it."""
    return body[-64:] == hashlib.sha256(body[:-64]).hexdigest().encode()


class ModelServer(asyncio.Protocol):
    """One connection: a small answer, or events."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._received = transport, b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.startswith(b"GET "):  # how the backend is
            self._received = b""
            self._transport.write(_HEAD % (b"text/plain", b"Content-Length: 0"))
        if not self._received.endswith(b'{"model": "m"}'):
            return
        streams, self._received = b" /v1/stream " in self._received, b""
        if streams:
            framing = b"Transfer-Encoding: chunked"
            self._transport.write(_HEAD % (b"text/event-stream", framing))
            self._said = b""
            self._speak()
        else:
            length = b"Content-Length: %d" % (len(_SMALL) + 64)
            digest = hashlib.sha256(_SMALL).hexdigest().encode()
            self._transport.write(_HEAD % (b"application/json", length) + _SMALL + digest)

    def _speak(self) -> None:
        if self._transport.is_closing():
            return
        event = b"data: %d\n\n" % time.monotonic_ns()
        self._said += event
        if self._said.count(b"\n\n") < EVENTS:
            asyncio.get_running_loop().call_later(EVENT_SECONDS, self._speak)
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        else:
            event += hashlib.sha256(self._said).hexdigest().encode()
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))


async def serve(port: str) -> None:
    server = await asyncio.get_running_loop().create_server(ModelServer, "127.0.0.1", int(port))
    await server.serve_forever()


_PARTS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"clients": ask, "model": serve}

if __name__ == "__main__":
    asyncio.run(_PARTS[sys.argv[1]](*sys.argv[2:]))
