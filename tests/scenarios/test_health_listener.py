"""[health]: for the kubelet and load balancers, from anywhere, and nothing but whether."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

from tests.ca import Authority
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.admin_visitor import admin_table
from tests.scenarios.conftest import Launch

GUARD_SECONDS = 30.0
HEALTH = '[health]\naddress = "0.0.0.0:0"\n'
# What a kubelet sends, a load balancer by HTTP/1.0, one by HTTP/1.1 with a name of its own.
PROBES = {
    "kubelet": "GET {path} HTTP/1.1\r\nHost: 10.1.2.3:8080\r\nUser-Agent: kube-probe/1.31\r\n"
    "Accept: */*\r\nConnection: close\r\n\r\n",
    "HTTP/1.0": "GET {path} HTTP/1.0\r\n\r\n",
    "by name": "GET {path}?deep=1 HTTP/1.1\r\nHost: model.example.org\r\n\r\n",
    "HEAD": "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n",
}


def health_port(daemon: Daemon) -> int:
    (where,) = daemon.wait_for("answering health checks")["listening"]
    return int(where.rpartition(":")[2])


def say(port: int, text: str, host: str = "127.0.0.1") -> tuple[int, str, str]:
    """Give status, head and body."""
    with socket.create_connection((host, port), GUARD_SECONDS) as sock:
        sock.sendall(text.encode())
        data = b""
        while part := sock.recv(65536):
            data += part
    head, _, body = data.decode().partition("\r\n\r\n")
    return int(head.split(" ")[1]), head, body


def probe(port: int, path: str, kind: str = "kubelet") -> tuple[int, str]:
    status, _, body = say(port, PROBES[kind].format(path=path))
    return status, body


def once(port: int, status: int) -> str:
    """Ask until this is the answer, which may be a second old; give its body."""
    guard = time.monotonic() + GUARD_SECONDS
    while (answer := probe(port, "/readyz"))[0] != status:
        assert time.monotonic() < guard, answer
        time.sleep(0.05)
    return answer[1]


def own_address() -> str:
    """An address of this host that is not loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
            return str(sock.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def test_probes_hear_whether_and_nothing_else(
    launch: Launch, backend: EchoBackend, folder: Path
) -> None:
    daemon = launch(more=HEALTH + admin_table(folder))
    port = health_port(daemon)
    daemon.wait_for("ready")
    for kind in PROBES:
        for path in ("/livez", "/readyz"):
            assert probe(port, path, kind) == (200, "" if kind == "HEAD" else "ok\n")
    assert say(port, PROBES["kubelet"].format(path="/livez"), own_address())[0] == 200
    for path in ("/", "/status", "/metrics", "/livez/", "//readyz", "/LIVEZ", "*"):
        status, _, body = say(port, PROBES["kubelet"].format(path=path))
        assert status == 404, path
        assert "example.org" not in body
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        text = f"{method} /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        status, head, _ = say(port, text)
        assert status == 405, method
        assert "Allow: GET, HEAD" in head
        assert "spiffe" not in head.lower()

    with ExitStack() as silent:  # whoever holds places is sent away for whoever asks
        for _ in range(300):
            sock = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"GET /li")
        assert probe(port, "/readyz") == (200, "ok\n")
    backend.close()
    assert once(port, 503) == "not ready\n"
    assert probe(port, "/livez") == (200, "ok\n")


def test_helper_is_ready_when_its_files_are_there(folder: Path, authority: Authority) -> None:
    agent = AgentProcess(folder / "agent.sock")
    agent.start()
    config = folder / "sidecar.toml"
    config.write_text(
        f'[workload_api]\nsocket = "unix:{agent.path}"\n[cert_files]\ndirectory = "certs"\n'
        f'[log]\nformat = "json"\n{HEALTH}'
    )
    daemon = Daemon(config)
    try:
        port = health_port(daemon)
        assert probe(port, "/livez") == (200, "ok\n")
        assert probe(port, "/readyz") == (503, "not ready\n")
        agent.send(authority.svid(), authority.bundle)
        daemon.wait_for("certificate files published")
        assert once(port, 200) == "ok\n"
    finally:
        assert daemon.stop() == 0
        agent.stop()
