"""Figures of HTTP mode: `.venv/bin/python -m tests.bench_http [rounds]`. Linux; asserts nothing.

streams       what the way through the sidecar adds to each token of many streams, and whether
              what comes out of it is what the model server sent
round trip    what a small POST on a kept connection takes longer than directly
rate          small POSTs that 32 connections get through, and CPU time of the sidecar for each

Directly, through the sidecar and, where it is installed, through HAProxy in the same role: in
turn, so that all meet the same moods of the machine. The model server is a process of its own.
What a way adds has the TLS of this client in it, for the sidecar as for HAProxy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httptools
from cryptography.hazmat.primitives.serialization import Encoding

from tests.ca import Authority
from tests.client import client_context, connect
from tests.conftest import TRAEFIK
from tests.daemon import write_config
from tests.fake_agent import AgentProcess
from tests.scenarios.peer import free_port, until_it_listens

ROUNDS = 5
STREAMS = 64
TOKENS = 100  # of one stream in one round
TOKEN_SECONDS = 0.020
QUESTION_SECONDS = 0.002  # from the question of one stream to the next one's
ROUND_TRIPS = 1000  # in one round
CONNECTIONS = 32
RATE_SECONDS = 2.0

Socket = socket.socket | ssl.SSLSocket
Starter = Callable[[Path, Authority, str, int], list[str]]  # gives the command to run


# The model server.

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n"
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_EVENT = b'data: {"at":%019d,"choices":[{"delta":{"content":" %b"}}]}\n\n'
_END = b"data: [DONE] %d %b\n\n"


class ModelServer(asyncio.Protocol):
    """One connection: 200 bytes for a question, events for one with "stream" in it."""

    begun = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self.received = b""
        if b'"stream"' in body:
            self._begin_stream()
        else:
            self.transport.write(_ANSWER + b"x" * 200)

    def _begin_stream(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.left, self.digest = TOKENS, hashlib.sha256()
        self.transport.write(_STREAM)
        # Streams must not all speak at the same instant: the golden ratio spreads any number.
        ModelServer.begun += 1
        self.due = self.loop.time() - TOKEN_SECONDS * (ModelServer.begun * 0.618034 % 1)
        self._speak()

    def _speak(self) -> None:
        if self.transport.is_closing():
            return
        event = _EVENT % (time.monotonic_ns(), b"token" * 24)
        self.digest.update(event)
        self.left -= 1
        if self.left:
            self.due += TOKEN_SECONDS
            self.loop.call_at(self.due, self._speak)
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        else:
            event += _END % (TOKENS, self.digest.hexdigest().encode())
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))


async def serve_models(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(ModelServer, "127.0.0.1", port)
    await server.serve_forever()


# The ways to it.


@dataclass
class Way:
    """One way to the model server; without a context the direct one."""

    name: str
    address: tuple[str, int]
    context: ssl.SSLContext | None
    pid: int  # of the process whose CPU time counts

    @property
    def whose(self) -> str:
        return "the model server" if self.context is None else self.name

    def open(self) -> Socket:
        if self.context is None:
            sock: Socket = socket.create_connection(self.address, 20)
        else:
            sock = connect(self.address, self.context)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def cpu_seconds(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def ways() -> Iterator[list[Way]]:
    """All ways, working."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="sc-")))
        authority = Authority("example.org")
        context = client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder)
        port = free_port()
        command = [sys.executable, "-m", "tests.bench_http", "--model-server", str(port)]
        model = parts.enter_context(running(command, port, folder / "model.log"))
        backend = f"127.0.0.1:{port}"
        found = [Way("directly", ("127.0.0.1", port), None, model)]
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), authority.bundle)
        agent.start()
        parts.callback(agent.stop)
        starters: dict[str, Starter] = {"sidecar": start_sidecar}
        if shutil.which("haproxy"):
            starters["haproxy"] = start_haproxy
        for name, start in starters.items():
            port = free_port()
            command = start(folder, authority, backend, port)
            pid = parts.enter_context(running(command, port, folder / f"{name}.log"))
            found.append(Way(name, ("127.0.0.1", port), context, pid))
        yield found


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[int]:
    """A process that listens; what it logs goes to a file, as it would in service."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            until_it_listens(port)
            yield process.pid
        except BaseException:
            print(log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            process.kill()


def start_sidecar(folder: Path, _authority: Authority, backend: str, port: int) -> list[str]:
    config = write_config(folder, folder / "agent.sock", backend, mode="http")
    config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    with (folder / "policy.toml").open("a") as file:
        file.write('endpoints = ["preset:ollama"]\n')
    return [sys.executable, "-m", "sidecar", "run", "--config", str(config)]


def start_haproxy(folder: Path, authority: Authority, backend: str, port: int) -> list[str]:
    authority.sign(authority.leaf()).write(folder, "haproxy")
    (folder / "authority.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    config = folder / "haproxy.cfg"
    config.write_text(f"""
global
    nbthread 1
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    timeout connect 60s
    timeout client 300s
    timeout server 300s
frontend peers
    bind 127.0.0.1:{port} ssl crt {folder}/haproxy.pem ca-file {folder}/authority.pem \
verify required ssl-min-ver TLSv1.3 alpn http/1.1
    http-request deny unless {{ path_beg /v1/ }}
    http-request del-header x-spiffe-id
    http-request set-header x-request-id %[uuid]
    http-request set-header host {backend}
    default_backend model
backend model
    http-reuse always
    server model {backend}
""")
    return ["haproxy", "-db", "-f", str(config)]


# What is asked, and what comes back.


def question(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode().ljust(200)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: models.example.org\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


SMALL = question({"model": "m"})
STREAMED = question({"model": "m", "stream": True})


class Reader:
    """Reads the answers on one connection; `body` is what has come of the current one."""

    def __init__(self, sock: Socket) -> None:
        self.sock, self.body, self.complete = sock, b"", False
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, request: bytes) -> None:
        self.body, self.complete = b"", False
        self.sock.sendall(request)

    def read(self) -> None:
        try:
            data = self.sock.recv(65536)
        except ssl.SSLWantReadError:
            return  # a record of TLS itself, or a part of one
        if not data:
            raise ConnectionError("the connection ended in the middle of an answer")
        self._parser.feed_data(data)

    def on_status(self, _: bytes) -> None:
        assert self._parser.get_status_code() == 200, self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


@contextmanager
def selecting(readers: list[Reader]) -> Iterator[Callable[[float], list[Reader]]]:
    """Give a function that waits and gives the readers for which something has come."""
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            reader.sock.setblocking(False)
            selector.register(reader.sock, selectors.EVENT_READ, reader)
        yield lambda seconds: [key.data for key, _ in selector.select(seconds)]
        for reader in readers:
            reader.sock.setblocking(True)


# Streams.

_AT = re.compile(rb'data: \{"at":(\d{19}),[^\n]*\n\n')
_DONE = re.compile(rb"data: \[DONE\] (\d+) ([0-9a-f]{64})\n\n$")


@dataclass
class Streams:
    """What came out of one way in all rounds; seconds."""

    first: list[float] = field(default_factory=list)  # from the question to the first byte
    tokens: list[float] = field(default_factory=list)  # from the model server to us, the first too
    received: int = 0  # bytes of bodies
    damaged: int = 0  # streams that are not what the model server sent, byte by byte
    cpu: float = 0.0


def streams(all_ways: list[Way], rounds: int) -> None:
    with ExitStack() as held:
        opened = {
            way.name: [Reader(held.enter_context(way.open())) for _ in range(STREAMS)]
            for way in all_ways
        }
        results = {way.name: Streams() for way in all_ways}
        for _ in range(rounds):
            for way in all_ways:
                begun = way.cpu_seconds()
                stream_round(opened[way.name], results[way.name])
                results[way.name].cpu += way.cpu_seconds() - begun
    print(
        f"streams: {STREAMS} at a time, a token every {1000 * TOKEN_SECONDS:g} ms, {rounds} rounds"
    )
    floor = results[all_ways[0].name]
    for way in all_ways:
        result = results[way.name]
        show(f"{way.name}, first byte", result.first, floor.first)
        show(f"{way.name}, each token", result.tokens, floor.tokens)
        print(
            f"  {way.name}: {len(result.tokens)} tokens and {result.received} bytes, "
            f"{result.damaged} of {rounds * STREAMS} streams damaged, "
            f"{1e6 * result.cpu / len(result.tokens):.1f} µs of CPU time of {way.whose} a token"
        )


def stream_round(readers: list[Reader], result: Streams) -> None:
    unasked, running, due = list(readers), set(readers), time.perf_counter()
    asked: dict[Reader, float] = {}
    seen: dict[Reader, int] = {}  # bytes of the body whose events are counted
    with selecting(readers) as wait:
        while running:
            if unasked and time.perf_counter() >= due:
                reader = unasked.pop()
                due += QUESTION_SECONDS
                asked[reader] = time.perf_counter()
                reader.ask(STREAMED)
            for reader in wait(QUESTION_SECONDS / 2 if unasked else 20):
                reader.read()
                now = time.monotonic_ns()
                if reader.body and reader not in seen:
                    result.first.append(time.perf_counter() - asked[reader])
                    seen[reader] = 0
                for event in _AT.finditer(reader.body, seen.get(reader, 0)):
                    result.tokens.append((now - int(event[1])) / 1e9)
                    seen[reader] = event.end()
                if reader.complete:
                    running.discard(reader)
    result.received += sum(len(reader.body) for reader in readers)
    result.damaged += sum(not is_whole(reader.body) for reader in readers)


def is_whole(body: bytes) -> bool:
    end = _DONE.search(body)
    if end is None:
        return False
    events = body[: end.start()]
    digest = hashlib.sha256(events).hexdigest().encode()
    return len(_AT.findall(events)) == int(end[1]) and digest == end[2]


# Small requests.


def round_trip(all_ways: list[Way], rounds: int) -> None:
    seconds: dict[str, list[float]] = {way.name: [] for way in all_ways}
    with ExitStack() as held:
        readers = {way.name: Reader(held.enter_context(way.open())) for way in all_ways}
        for _ in range(rounds * ROUND_TRIPS):
            for name, reader in readers.items():
                begun = time.perf_counter()
                reader.ask(SMALL)
                while not reader.complete:
                    reader.read()
                seconds[name].append(time.perf_counter() - begun)
    print(f"round trip: POST of {len(SMALL)} bytes on a kept connection, an answer of 200")
    for name, values in seconds.items():
        show(name, values, seconds[all_ways[0].name])


def rate(all_ways: list[Way], rounds: int) -> None:
    print(f"rate: the same POST on {CONNECTIONS} connections, each after its answer")
    with ExitStack() as held:
        opened = {
            way.name: [Reader(held.enter_context(way.open())) for _ in range(CONNECTIONS)]
            for way in all_ways
        }
        done, cpu = dict.fromkeys(opened, 0), dict.fromkeys(opened, 0.0)
        for _ in range(rounds):
            for way in all_ways:
                begun = way.cpu_seconds()
                done[way.name] += rate_round(opened[way.name])
                cpu[way.name] += way.cpu_seconds() - begun
    seconds = rounds * RATE_SECONDS
    for way in all_ways:
        count, used = done[way.name], cpu[way.name]
        print(
            f"  {way.name}: {count / seconds:.0f} requests/s, {1e6 * used / count:.1f} µs of CPU "
            f"time of {way.whose} a request ({100 * used / seconds:.0f} % of a core)"
        )


def rate_round(readers: list[Reader]) -> int:
    count, end = 0, time.perf_counter() + RATE_SECONDS
    with selecting(readers) as wait:
        for reader in readers:
            reader.ask(SMALL)
        running = set(readers)
        while running:
            for reader in wait(20):
                reader.read()
                if not reader.complete:
                    continue
                if time.perf_counter() < end:
                    count += 1
                    reader.ask(SMALL)
                else:
                    running.discard(reader)
    return count


def show(what: str, seconds: list[float], floor: list[float]) -> None:
    text = f"  {what}: p50 {1000 * percentile(seconds, 50):.3f} ms"
    text += f", p99 {1000 * percentile(seconds, 99):.3f} ms"
    if seconds is not floor:
        for at in (50, 99):
            added = 1000 * (percentile(seconds, at) - percentile(floor, at))
            text += f", adds {added:+.3f}" if at == 50 else f" and {added:+.3f} ms"
    print(f"{text}, slowest {1000 * max(seconds):.3f} ms")


def percentile(values: list[float], at: int) -> float:
    return quantiles(values, n=100, method="inclusive")[at - 1]  # never beyond the slowest


def main() -> None:
    if sys.argv[1:2] == ["--model-server"]:
        asyncio.run(serve_models(int(sys.argv[2])))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with ways() as all_ways:
        for measure in (round_trip, rate, streams):
            measure(all_ways, rounds)


if __name__ == "__main__":
    main()
