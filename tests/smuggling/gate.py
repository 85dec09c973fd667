"""The gate under attack: the real daemon in mode `http`, a recording backend, and one bad peer.

`Gate.attack` makes one connection of its own for a case, sends its bytes in the pieces it is
told, reads the answers, and takes from the backend all that came of it.
"""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h11

from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.recording_backend import Conversation, RecordingBackend
from tests.scenarios.peer import HalfCloser
from tests.smuggling.case import NOTHING, Case

PEER = f"spiffe://example.org{TRAEFIK}"
MAX_BODY_BYTES = 16_777_216

_CONFIG = """
[workload_api]
socket = "unix:{agent}"
[listener]
address = "127.0.0.1:0"
[backend]
address = "{backend}"
mode = "http"
[policy]
file = "policy.toml"
[limits]
max_body_bytes = {max_body_bytes}
[log]
format = "json"
"""
_POLICY = f"""
[[allow]]
name = "traefik"
peers = ["{PEER}"]
trusted_proxy = {{trusted_proxy}}
endpoints = [
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/{{{{model...}}}}",
    "GET /api/version",
]
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the gate; what an answer of the backend tells of the request it is for."""

    status: int
    body: bytes

    def told(self) -> tuple[bytes, bytes]:
        """Method and target of the request that the backend answered with this."""
        told = json.loads(self.body)
        return told["method"].encode(), told["target"].encode("latin-1")


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that came of one case."""

    answers: list[Answer]
    conversations: list[Conversation]
    received: bytes
    ended_unasked: bool
    rest: bytes  # what came behind the last answer, and is none


class Gate:
    """The daemon, its backend, and the address where it takes peers."""

    def __init__(self, daemon: Daemon, backend: RecordingBackend, context: ssl.SSLContext) -> None:
        self.daemon, self.backend = daemon, backend
        self._address, self._context = daemon.address, context

    def connect(self) -> HalfCloser:
        """Connect as the peer that policy admits."""
        peer = HalfCloser(self._address, self._context)
        peer.sock.settimeout(10)
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    def attack(self, case: Case, pieces: Sequence[bytes]) -> Outcome:
        """Send the case's bytes on a connection of its own; give what came of them."""
        self.backend.style = case.style
        with self.connect() as peer:
            _send(peer, pieces)
            received, ended = _read(peer, case)
        answers, rest = read_answers(received, case)
        return Outcome(answers, self.backend.take(), received, ended, rest)


def _send(peer: HalfCloser, pieces: Sequence[bytes]) -> None:
    try:
        for piece in pieces:
            peer.sendall(piece)
    except (ConnectionError, ssl.SSLError):
        return  # it was refused before all of it was sent; the refusal is there to be read


def _read(peer: HalfCloser, case: Case) -> tuple[bytes, bool]:
    """Give all answers, and whether the gate ended the connection before we ended our side."""
    due = sum(NOTHING not in statuses for statuses in case.answers)
    received = bytearray()
    while case.ends or len(read_answers(bytes(received), case)[0]) < due:
        data = _receive(peer)
        if not data:
            return bytes(received), True
        received += data
    try:
        peer.send_end()
    except (ConnectionError, ssl.SSLError):
        return bytes(received), True
    while data := _receive(peer):
        received += data
    return bytes(received), False


def _receive(peer: HalfCloser) -> bytes:
    try:
        return peer.recv(65536)
    except (ConnectionError, ssl.SSLError):
        return b""


def read_answers(received: bytes, case: Case) -> tuple[list[Answer], bytes]:
    """Give the complete final answers, and the bytes behind them, as h11 reads them as a client."""
    answers: list[Answer] = []
    while received:
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        method = b"HEAD" if case.raw.startswith(b"HEAD ") else b"GET"
        client.send(h11.Request(method=method, target=b"/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(received)
        status, body, event = 0, b"", client.next_event()
        while not isinstance(event, h11.EndOfMessage):
            if event is h11.NEED_DATA:
                # Behind an interim answer the final one may be missing, and that is no rest.
                return answers, received if status else client.trailing_data[0]
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            event = client.next_event()
        answers.append(Answer(status, body))
        received = client.trailing_data[0]
    return answers, b""


@contextmanager
def running_gate(
    authority: Authority, *, trusted_proxy: bool = False, receive_buffer: int | None = None
) -> Iterator[Gate]:
    """Start agent, backend and daemon; the daemon must end without a traceback."""
    backend = RecordingBackend(receive_buffer)
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        folder = Path(name)
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), authority.bundle)
        agent.start()
        daemon = Daemon(_write(folder, agent.path, backend.address, trusted_proxy))
        peer = client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder)
        try:
            yield Gate(daemon, backend, peer)
        finally:
            daemon.stop()
            agent.stop()
            backend.close()
        assert "Traceback" not in "".join(daemon.raw)


def _write(folder: Path, agent: Path, backend: str, trusted_proxy: bool) -> Path:
    config = folder / "sidecar.toml"
    config.write_text(_CONFIG.format(agent=agent, backend=backend, max_body_bytes=MAX_BODY_BYTES))
    (folder / "policy.toml").write_text(_POLICY.format(trusted_proxy=str(trusted_proxy).lower()))
    return config
