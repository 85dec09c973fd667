"""Memory of the daemon by time: `.venv/bin/python -m tests.bench_memory WHAT [COUNT]`.

Does the same thing COUNT times to the real daemon in mode `http`, with CLIENTS=32 connections that
a pool would keep, and prints its resident memory twenty times. Asserts nothing; the last line says
what it grew by after the first tenth. WATCH=1 adds what lives in it
(`tests.watched_daemon`).

    rotations    the agent sends another SVID; every client asks and dials again as it is told to
    reloads      another policy, by SIGHUP; every tenth time another configuration too
    mistakes     a policy with a mistake, which is refused, and then a good one
    connections  a client connects, asks once and leaves
    refused      handshakes of an authority that we do not know
    denied       requests that no rule names, on kept connections
    requests     requests that are answered, on kept connections
    admin        GET /status, /metrics and /readyz
    jwt          JWT-SVID, JWT bundles and a hook anew, by SIGUSR1
    stranger     a peer whom policy does not name asks
    malformed    what is no request: answered with 400
    left         a client leaves in the middle of an answer
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sidecar.demo.jwt_issuer import JwtIssuer
from tests.ca import Authority, Issued
from tests.client import client_context, connect
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.scenarios.memory import resident_mib
from tests.scenarios.peer import free_port, until_it_listens

CLIENTS = int(os.environ.get("CLIENTS", "32"))
SAMPLES = 20
_BODY = b'{"model": "m"}'
_ASK = b"POST %b HTTP/1.1\r\nHost: models.example.org\r\nContent-Length: 14\r\n\r\n" + _BODY
_LOG_LINES_KEPT = 2000


class Client:
    """One connection of a pool: asks, and dials again when it was told to."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self._address, self._context = address, context
        self._tls: ssl.SSLSocket | None = None

    def ask(self, path: bytes = b"/v1/small") -> int:
        """Ask once; give the status of the answer."""
        tls = self._tls = self._tls or connect(self._address, self._context, 60)
        tls.sendall(_ASK % path)
        data = b""
        while b"\r\n\r\n" not in data:
            data += _some(tls)
        head, _, body = data.partition(b"\r\n\r\n")
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += _some(tls)
        if b"connection: close" in fields:
            self.leave()
        return int(head.split()[1])

    def leave(self) -> None:
        """Close the connection."""
        if self._tls is not None:
            with suppress(OSError):
                self._tls.unwrap()
            self._tls.close()
            self._tls = None


def _some(tls: ssl.SSLSocket) -> bytes:
    data = tls.recv(65536)
    if not data:
        raise ConnectionError("it ended in the middle of an answer")
    return data


class Site:
    """The daemon with all that it needs."""

    def __init__(
        self, folder: Path, parts: ExitStack, clients: int, mode: str, *, watched: bool
    ) -> None:
        self.folder, self.number = folder, 0
        self.authority, foreign = Authority("example.org"), Authority("other.org")
        self.agent = AgentProcess(folder / "agent.sock")
        self.agent.send(self.authority.svid(), self.authority.bundle)
        self._issuer = JwtIssuer(7)
        self.agent.issue_jwt_svids(self._issuer, "spiffe://example.org/workload/sidecar")
        self.send_jwt_bundles()
        self.agent.start()
        parts.callback(self.agent.stop)
        port, self.admin = free_port(), free_port()
        command = [sys.executable, "-m", "tests.pooled_clients", "model", str(port)]
        self.model = model = parts.enter_context(subprocess.Popen(command))
        parts.callback(model.kill)
        until_it_listens(port)
        (folder / "certs").mkdir(mode=0o700)
        (folder / "touched").touch()
        more = f"""
[admin]
address = "127.0.0.1:{self.admin}"
[cert_files]
directory = "{folder}/certs"
jwt_bundle = "jwks.json"
[[jwt_svid]]
audience = "models"
file = "token"
[[after_rotation]]
name = "touched"
touch = "touched"
"""
        if watched:
            more += "[sandbox]\nenabled = false\n"  # it counts its descriptors
        backend = f"127.0.0.1:{port}"
        config = write_config(folder, self.agent.path, backend, mode=mode, more=more)
        self._policy = (folder / "policy.toml").read_text()
        if mode == "http":
            self._policy += 'endpoints = ["POST /v1/{r...}"]\n'
        self._config = config.read_text()
        self.rewrite()
        module = "tests.watched_daemon" if watched else "sidecar"
        self.daemon = Daemon(config, module=module)
        parts.callback(self.daemon.stop)
        self.daemon.wait_for("ready", 60)
        self.address = self.daemon.address
        self.pid = self.daemon.process.pid
        self.own = client_context(self.authority, self._issued(self.authority), folder)
        self.unknown = client_context(self.authority, self._issued(foreign), folder)
        stranger = self.authority.sign(self.authority.leaf("/workload/stranger"))
        self.stranger = client_context(self.authority, stranger, folder)
        self.clients = [Client(self.address, self.own) for _ in range(clients)]
        for client in self.clients:
            parts.callback(client.leave)
        self.pool = parts.enter_context(ThreadPoolExecutor(8))

    def _issued(self, authority: Authority) -> Issued:
        return authority.sign(authority.leaf(TRAEFIK))

    def rewrite(self) -> None:
        """Write another policy, and now and then another configuration."""
        self.number += 1
        name = f'[[deny]]\nname = "old"\npeers = ["spiffe://example.org/old/{self.number}"]\n'
        (self.folder / "policy.new").write_text(self._policy + name)
        (self.folder / "policy.new").rename(self.folder / "policy.toml")
        text = self._config + f"[timeouts]\nidle = {3600 + self.number // 10}\n"
        (self.folder / "sidecar.new").write_text(text)
        (self.folder / "sidecar.new").rename(self.folder / "sidecar.toml")

    def send_jwt_bundles(self) -> None:
        self.agent.send_jwt_bundles({"spiffe://example.org": self._issuer.jwks()})

    def every_client(self, path: bytes = b"/v1/small", status: int = 200) -> None:
        """Have every client ask, some at a time."""
        found = set(self.pool.map(lambda one: one.ask(path), self.clients))
        assert found == {status}, found

    def alive(self) -> dict[str, int]:
        """What lives in a watched daemon."""
        self.daemon.process.send_signal(signal.SIGUSR2)
        counts: dict[str, int] = self.daemon.wait_for("alive")["counts"]
        return counts

    def forget_log(self) -> None:
        """Keep the log of a long run small in this process."""
        with self.daemon._changed:
            gone = max(0, self.daemon._seen - _LOG_LINES_KEPT)
            del self.daemon.log[:gone]
            self.daemon._seen -= gone
            del self.daemon.raw[:-_LOG_LINES_KEPT]


# What is done, once.


def rotations(site: Site) -> None:
    svid = site.authority.svid()
    site.agent.send(svid, site.authority.bundle)
    site.daemon.wait_for("identity rotated", serial=svid.serial)
    site.every_client()
    site.every_client()  # on a connection of the new one


def reloads(site: Site) -> None:
    site.rewrite()
    site.daemon.process.send_signal(signal.SIGHUP)
    site.daemon.wait_for("policy loaded", asked_by="SIGHUP")
    site.clients[site.number % len(site.clients)].ask()


def mistakes(site: Site) -> None:
    (site.folder / "policy.new").write_text("[[allow]]\nnam = 1\n")
    (site.folder / "policy.new").rename(site.folder / "policy.toml")
    site.daemon.process.send_signal(signal.SIGHUP)
    site.daemon.wait_for("policy refused, the old one stays")
    reloads(site)


def connections(site: Site) -> None:
    client = Client(site.address, site.own)
    client.ask()
    client.leave()


def refused(site: Site) -> None:
    with suppress(OSError), connect(site.address, site.unknown, 60) as tls:
        tls.recv(1)


def denied(site: Site) -> None:
    assert site.clients[0].ask(b"/api/pull") == 403


def requests(site: Site) -> None:
    assert site.clients[0].ask() == 200


def stranger(site: Site) -> None:
    with connect(site.address, site.stranger, 60) as tls:
        tls.sendall(_ASK % b"/v1/small")
        tls.recv(65536)


def malformed(site: Site) -> None:
    with connect(site.address, site.own, 60) as tls:
        tls.sendall(b"no request\r\n\r\n")
        assert _some(tls).startswith(b"HTTP/1.1 400")


def left(site: Site) -> None:
    with connect(site.address, site.own, 60) as tls:
        tls.sendall(_ASK % b"/v1/stream")
        _some(tls)


def admin(site: Site) -> None:
    for path in (b"/status", b"/metrics", b"/readyz"):
        with socket.create_connection(("127.0.0.1", site.admin), 60) as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % path)
            while sock.recv(65536):
                pass


def jwt(site: Site) -> None:
    site.send_jwt_bundles()
    site.daemon.process.send_signal(signal.SIGUSR1)
    site.daemon.wait_for("JWT-SVID written")


THINGS: dict[str, tuple[Callable[[Site], None], int]] = {
    "rotations": (rotations, 5000),
    "reloads": (reloads, 5000),
    "mistakes": (mistakes, 2000),
    "connections": (connections, 50000),
    "refused": (refused, 20000),
    "denied": (denied, 20000),
    "requests": (requests, 50000),
    "stranger": (stranger, 20000),
    "malformed": (malformed, 20000),
    "left": (left, 5000),
    "admin": (admin, 5000),
    "jwt": (jwt, 1000),
}


@contextmanager
def sites(clients: int, mode: str = "http", *, watched: bool) -> Iterator[Site]:
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="sc-")))
        yield Site(folder, parts, clients, mode, watched=watched)


def main(what: str, count: int) -> None:
    do, watched = THINGS[what][0], bool(os.environ.get("WATCH"))
    with sites(CLIENTS, watched=watched) as site:
        site.every_client()
        begun, seen = time.monotonic(), []
        for number in range(count + 1):
            if number % max(1, count // SAMPLES) == 0:
                seen.append((number, resident_mib(site.pid)))
                seconds = time.monotonic() - begun
                print(f"{number:6} {what} {seconds:6.0f} s {seen[-1][1]:6.1f} MiB", flush=True)
                if watched:
                    print("      ", *(f"{kind} {n}" for kind, n in site.alive().items()))
                site.forget_log()
            if number < count:
                do(site)
    late = [mib for number, mib in seen if number >= count // 10]
    print(f"{count} {what}: {late[-1] - late[0]:+.1f} MiB after the first {count // 10}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else THINGS[sys.argv[1]][1])
