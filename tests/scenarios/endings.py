"""What ends connections that are open, and answers that run while it does.

A `Place` is a daemon in one of both modes, its agent and its model server. A cause makes a
`Victim`: how that peer connects, and how its end is brought about. Shared by
`test_connections_follow_identity.py` and `tests.bench_endings`.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.adapters.certificates import bundle_of
from tests.ca import Authority, Issued
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.http_backend import Call, HttpBackend
from tests.http_client import CUTS, HttpPeer, request
from tests.scenarios.peer import dial

OURS = f"spiffe://example.org{TRAEFIK}"
FOREIGNER = f"spiffe://other.org{TRAEFIK}"
OTHER_PATH = "/workload/other"
OTHER = f"spiffe://example.org{OTHER_PATH}"
LONG = timedelta(hours=1)
SHORT = timedelta(seconds=3)
DENIED_GRACE_SECONDS = 1
# A guard against hanging; nothing is measured by it.
GUARD_SECONDS = 30.0
_PAUSE_SECONDS = 0.02


def policy(mode: str, *peers: str, endpoints: str = '"*"') -> str:
    """A policy that admits these peers."""
    names = ", ".join(f'"{peer}"' for peer in peers)
    rule = f'[[allow]]\nname = "peers"\npeers = [{names}]\n'
    return rule if mode == "stream" else f"{rule}endpoints = [{endpoints}]\n"


@dataclass
class Place:
    """A daemon and all around it; its trust bundles hold three authorities, and two may leave."""

    mode: str
    folder: Path
    authority: Authority
    leaving: Authority  # another one of our own trust domain
    foreign: Authority
    agent: AgentProcess
    backend: HttpBackend
    daemon: Daemon

    # What ends and does not end connections.

    def serve_with(
        self, life: timedelta = LONG, *, leaving: bool = True, foreign: bool = True
    ) -> datetime:
        """Rotate the daemon's identity; gives when it expires."""
        svid = self.authority.svid(not_after=life)
        ours = (self.authority, self.leaving) if leaving else (self.authority,)
        self.agent.send(svid, bundle_of(*ours), [self.foreign.bundle] if foreign else [])
        self.daemon.wait_for("identity rotated", serial=svid.serial)
        return svid.not_after

    def publish(self, *peers: str, endpoints: str = '"*"') -> float:
        """Put a policy in force; gives the time before."""
        before, text = time.monotonic(), policy(self.mode, *peers, endpoints=endpoints)
        path = self.folder / "policy.toml"
        if path.read_text() != text:
            new = path.with_name("new")
            new.write_text(text)
            new.rename(path)
            self.daemon.wait_for("policy loaded", asked_by="file")
        return before

    def restore(self) -> None:
        """Let all peers in again."""
        self.publish(OURS, FOREIGNER, OTHER)
        self.serve_with()

    # Peers.

    def issued(
        self, path: str = TRAEFIK, life: timedelta = LONG, signer: Authority | None = None
    ) -> Issued:
        signer = signer or self.authority
        return signer.sign(replace(signer.leaf(path), not_after=life))

    def context(self, issued: Issued | None = None) -> ssl.SSLContext:
        """What a peer presents."""
        return client_context(self.authority, issued or self.issued(), self.folder)

    def dial(self, context: ssl.SSLContext) -> HttpPeer:
        return HttpPeer(self.daemon.address, context)

    def serves(self, context: ssl.SSLContext) -> bool:
        """Connect and ask; False when it is refused, in whatever way, and nobody is asked."""
        target = f"/v1/{secrets.token_hex(8)}"
        head = b""
        with suppress(*CUTS), dial(self.daemon.address, context) as tls:
            tls.sendall(request("GET", target))
            head = tls.recv(12)
        if head == b"HTTP/1.1 200":
            return True
        assert head in (b"", b"HTTP/1.1 403", b"HTTP/1.1 503"), head
        assert target not in [call.target for call in self.backend.calls]
        return False

    # The model server, and the log.

    def next_call(self, target: str) -> Call:
        """The next request for `target`; others are let go."""
        while (call := self.backend.next_call()).target != target:
            pass
        return call

    def line(self, event: str, **fields: Any) -> dict[str, Any]:
        """A line of the log, also one that was written before the last that was found."""
        for line in self.daemon.lines(event):
            if fields.items() <= line.items():
                return line
        return self.daemon.wait_for(event, **fields)


@contextmanager
def running_place(
    authority: Authority,
    mode: str,
    *,
    grace: float = 0,
    max_age: float = 0,
    unix: bool = False,
) -> Iterator[Place]:
    """Run a place; `grace` is that of every reason."""
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        folder = Path(name)
        leaving, foreign = Authority(authority.trust_domain.name), Authority("other.org")
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), bundle_of(authority, leaving), [foreign.bundle])
        agent.start()
        with HttpBackend(folder / "model.sock" if unix else None) as backend:
            table = f"""[connections]
expiry_grace_seconds = {grace}
revoked_grace_seconds = {grace}
max_age_seconds = {max_age}
"""
            config = write_config(folder, agent.path, backend.address, mode=mode, more=table)
            denied = f"denied_grace_seconds = {DENIED_GRACE_SECONDS}\n[listener]"
            config.write_text(config.read_text().replace("[listener]", denied))
            (folder / "policy.toml").write_text(policy(mode, OURS, FOREIGNER, OTHER))
            daemon = Daemon(config)
            try:
                assert daemon.address  # the policy is watched before it listens
                yield Place(mode, folder, authority, leaving, foreign, agent, backend, daemon)
            finally:
                died = daemon.process.poll() is not None
                daemon.stop()
                if agent.runs():
                    agent.stop()
        assert "Traceback" not in "".join(daemon.raw)
        assert not died


class Running:
    """An answer that runs: the model server speaks, the peer reads, until it is cut or finished."""

    def __init__(
        self, place: Place, context: ssl.SSLContext, target: str = "/held/running"
    ) -> None:
        self.peer = place.dial(context)
        self.address = self.peer.address
        self.peer.sendall(request("GET", target))
        self._call = place.next_call(target)
        self._call.begin_stream()
        self.peer.until(b"\r\n\r\n")
        self.spoken = self.received = b""
        self.read_at = self.over_at = 0.0  # the last byte, and the end, on the monotonic clock
        self.is_complete = self.was_announced = False
        self.backend_saw = ""  # how the model server learned that nobody reads any more
        self._finish, self._has_read = threading.Event(), threading.Condition()
        self._threads = [threading.Thread(target=one) for one in (self._speak, self._read)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_fault: object) -> None:
        self._finish.set()
        self.wait()
        self.peer.sock.close()
        self._call.close()

    def wait(self) -> None:
        """Wait until it is over, in whatever way."""
        for thread in self._threads:
            thread.join(GUARD_SECONDS)
            assert not thread.is_alive(), "it runs on"

    def wait_until_read(self, moment: float) -> None:
        """Wait until something has come at that time or later."""
        with self._has_read:
            came = self._has_read.wait_for(
                lambda: self.read_at >= moment or self.over_at, GUARD_SECONDS
            )
            assert came
        assert self.read_at >= moment, "it is over"

    def finish(self) -> None:
        """Let the model server come to its end; the peer must have got all of it."""
        self._finish.set()
        self.wait()
        assert self.is_complete, f"cut after {len(self.received)} bytes"
        assert _payload(self.received) == _payload(self.spoken)

    def assert_cut(self) -> None:
        """It looks cut, from both sides, and what came of it is what was said."""
        self.wait()
        assert not self.is_complete
        assert not self.was_announced, "what was cut must not look complete"
        assert self.backend_saw in ("BrokenPipeError", "ConnectionResetError")
        assert _payload(self.spoken).startswith(_payload(self.received))

    def _speak(self) -> None:
        number = 0
        try:
            while not self._finish.wait(_PAUSE_SECONDS):
                number += 1
                text = f"{number} {'x' * (number % 50)}"
                self.spoken += b"%x\r\ndata: %b\n\n\r\n" % (len(text) + 8, text.encode())
                self._call.event(text)
            self._call.end_stream()
            self._call.release()
        except OSError as exc:
            self.backend_saw = type(exc).__name__

    def _read(self) -> None:
        try:
            while data := self.peer.take(65536):
                with self._has_read:
                    self.received, self.read_at = self.received + data, time.monotonic()
                    self._has_read.notify_all()
                if self.received.endswith(b"\r\n0\r\n\r\n"):
                    self.is_complete = True
                    break
            else:
                self.was_announced = True
        except CUTS:
            pass
        with self._has_read:
            self.over_at = time.monotonic()
            self._has_read.notify_all()


def _payload(chunked: bytes) -> bytes:
    """What is in the chunks; of the last one as much as is there."""
    payload = b""
    while b"\r\n" in chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        payload, chunked = payload + chunked[: int(size, 16)], chunked[int(size, 16) + 2 :]
    return payload


# The causes.


@dataclass(frozen=True)
class Victim:
    """A peer and its end: `strike` brings it about, and gives a time at which it had not come."""

    context: ssl.SSLContext
    strike: Callable[[], float]


Cause = Callable[[Place], Victim]


def _monotonic(moment: datetime) -> float:
    return time.monotonic() + (moment - datetime.now(UTC)).total_seconds()


def peer_expires(place: Place) -> Victim:
    issued = place.issued(life=SHORT)
    moment = _monotonic(issued.chain[0].not_valid_after_utc)
    return Victim(place.context(issued), lambda: moment)


def rule_goes(place: Place) -> Victim:
    return Victim(place.context(), lambda: place.publish(FOREIGNER, OTHER))


def authority_goes(place: Place) -> Victim:
    def strike() -> float:
        before = time.monotonic()
        place.serve_with(leaving=False)
        return before

    return Victim(place.context(place.issued(signer=place.leaving)), strike)


def federation_goes(place: Place) -> Victim:
    def strike() -> float:
        before = time.monotonic()
        place.serve_with(foreign=False)
        return before

    return Victim(place.context(place.issued(signer=place.foreign)), strike)


def own_svid_expires(place: Place) -> Victim:
    def strike() -> float:
        expires = place.serve_with(SHORT)
        place.agent.kill()
        return _monotonic(expires)

    return Victim(place.context(), strike)


def denied_for_good(place: Place) -> Victim:
    def strike() -> float:
        before = time.monotonic()
        place.agent.deny()
        return before + DENIED_GRACE_SECONDS

    return Victim(place.context(), strike)


def comes_of_age(max_age: float) -> Cause:
    """The peer connects after this and not before."""

    def cause(place: Place) -> Victim:
        moment = time.monotonic() + max_age
        return Victim(place.context(), lambda: moment)

    return cause
