"""A peer that speaks HTTP/1.1 over mTLS byte by byte, and the site that it visits.

`HttpPeer` sends what it is told, well-formed or not, and reads one answer after the other with
h11, or the bytes as they come. `Site` is a daemon in mode `http` with its agent and its model
server, for the tests of a module to share.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11

from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.http_backend import HttpBackend
from tests.scenarios.peer import HalfCloser, free_port, own_address, until_it_listens

CUTS = (ssl.SSLError, ConnectionError)
EVERYTHING = 'endpoints = ["*"]\ntrusted_proxy = true\n'


@dataclass
class Answer:
    """One answer, with the interim ones that came before it."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    version: str = ""

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for field, value in self.headers if field == name]

    def get(self, name: str) -> str | None:
        """The value of a header that comes once, or None."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str, target: str, *headers: str, body: bytes = b"", host: str = "models"
) -> bytes:
    """A request's bytes; with a body, its length is told."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class HttpPeer(HalfCloser):
    """One connection of a peer."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        super().__init__(address, context)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ahead = b""

    def __enter__(self) -> HttpPeer:
        return self

    @property
    def address(self) -> str:
        """Our end, as the daemon logs it."""
        return own_address(self.sock)

    def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> Answer:
        """Send a request and read its answer."""
        self.sendall(request(method, target, *headers, body=body))
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """Read one answer; raises when it is cut."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._ahead:  # nothing would mean the end
            parser.receive_data(self._ahead)
        answer = Answer()
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                parser.receive_data(self.recv(65536))
            else:
                _take(answer, event)
        self._ahead = parser.trailing_data[0]
        return answer

    def until(self, mark: bytes) -> bytes:
        """Read up to and with `mark`; what is behind it is left for later."""
        while mark not in self._ahead:
            data = self.recv(65536)
            assert data, f"ended before {mark!r}: {self._ahead[-200:]!r}"
            self._ahead += data
        found, mark, self._ahead = self._ahead.partition(mark)
        return found + mark

    def has_word(self) -> bool:
        """Tell whether something of an answer is there: a readable socket may hold less."""
        self.sock.setblocking(False)
        try:
            self._ahead += self.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self.sock.settimeout(20)
        return self._ahead != b""

    def take(self, most: int) -> bytes:
        """Read what is there, at most so many bytes; nothing at the announced end."""
        data = self._ahead or self.recv(65536)
        self._ahead = data[most:]
        return data[:most]

    def exactly(self, count: int) -> bytes:
        """Read so many bytes."""
        parts = bytearray()
        while len(parts) < count:
            data = self.take(count - len(parts))
            assert data, f"ended after {len(parts)} of {count} bytes"
            parts += data
        return bytes(parts)

    def rest(self) -> tuple[bytes, bool]:
        """All bytes to the end of the connection, and whether the end was announced."""
        data, self._ahead = bytearray(self._ahead), b""
        try:
            while more := self.recv(65536):
                data += more
        except CUTS:
            return bytes(data), False
        return bytes(data), True

    # The ways to leave.

    def leave(self, how: str) -> None:
        """Leave by "close" (FIN), "reset" (RST) or "close_notify", which ends TLS and not TCP."""
        if how == "close_notify":
            self.send_end()
            return
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def _take(answer: Answer, event: object) -> None:
    assert not isinstance(event, h11.ConnectionClosed), "ended without an answer"
    if isinstance(event, h11.InformationalResponse):
        answer.interim.append(event.status_code)
    elif isinstance(event, h11.Response):
        answer.status = event.status_code
        answer.version = event.http_version.decode()
        answer.headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    elif isinstance(event, h11.Data):
        answer.body += event.data


def new_id() -> str:
    """A value for X-Request-Id, by which the log's line is found."""
    return f"test-{secrets.token_hex(8)}"


def request_line(daemon: Daemon, request_id: str) -> dict[str, Any]:
    """The log's line of one request, also one that was written before the last that was found."""
    for line in daemon.lines("request"):
        if line.get("request_id") == request_id:
            return line
    return daemon.wait_for("request", request_id=request_id)


@dataclass
class Site:
    """A daemon in mode `http`, its agent, its model server, and whoever visits it."""

    folder: Path
    authority: Authority
    agent: AgentProcess
    backend: HttpBackend
    daemon: Daemon
    port: int

    @property
    def address(self) -> tuple[str, int]:
        """Where the daemon listens, once it does."""
        if self.port:
            until_it_listens(self.port)
            return "127.0.0.1", self.port
        return self.daemon.address

    def context(self, path: str = TRAEFIK) -> ssl.SSLContext:
        """What a peer presents."""
        issued = self.authority.sign(self.authority.leaf(path))
        return client_context(self.authority, issued, self.folder)

    def dial(self, path: str = TRAEFIK) -> HttpPeer:
        """Connect as a peer."""
        return HttpPeer(self.address, self.context(path))

    def line(self, request_id: str) -> dict[str, Any]:
        """The log's line of one request."""
        return request_line(self.daemon, request_id)


@contextmanager
def running_site(
    authority: Authority,
    *,
    policy: str = EVERYTHING,
    more: str = "",
    backend_table: str = "",
    style: str = "json",
) -> Iterator[Site]:
    """Run a site: `policy` is TOML after the allow rule, `more` at the end of `sidecar.toml`.

    Whatever a test does to the daemon, it ends without a traceback.
    """
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        folder = Path(name)
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), authority.bundle)
        agent.start()
        with HttpBackend() as backend:
            config = write_config(folder, agent.path, backend.address, more=more, mode="http")
            text = config.read_text().replace('mode = "http"', f'mode = "http"\n{backend_table}')
            # Only a log in JSON tells where the daemon listens.
            port = 0 if style == "json" else free_port()
            text = text.replace("127.0.0.1:0", f"127.0.0.1:{port}")
            config.write_text(text.replace('format = "json"', f'format = "{style}"'))
            with (folder / "policy.toml").open("a") as file:
                file.write(policy)
            daemon = Daemon(config)
            try:
                yield Site(folder, authority, agent, backend, daemon, port)
            finally:
                died = daemon.process.returncode is None and daemon.process.poll() is not None
                if daemon.process.returncode is None:
                    daemon.stop()
                agent.stop()
        failures = daemon.lines("connection failed")
        assert not failures, failures[0]["exception"]
        assert "Traceback" not in "".join(daemon.raw)
        assert not died
