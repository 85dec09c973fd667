"""Where peers connect: both families by one address, a Unix socket, sockets by their names."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.client import connect, receive_exactly
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

GUARD_SECONDS = 30.0
needs_ipv6 = pytest.mark.skipif(
    sys.platform == "linux" and not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here"
)
Configure = Callable[..., Path]


@pytest.fixture
def configure(folder: Path, agent: AgentProcess, backend: EchoBackend) -> Configure:
    """Write a configuration that listens on `address`, a TOML value."""

    def write(address: str, more: str = "") -> Path:
        config = write_config(folder, agent.path, backend.address, more=more)
        config.write_text(config.read_text().replace('"127.0.0.1:0"', address, 1))
        return config

    return write


@pytest.fixture
def stopping() -> Iterator[Callable[[Daemon], Daemon]]:
    with ExitStack() as stack:

        def stop_at_the_end(daemon: Daemon) -> Daemon:
            stack.callback(lambda: daemon.process.returncode is None and daemon.stop())
            return daemon

        yield stop_at_the_end


def echoes(tls: ssl.SSLSocket) -> None:
    tls.sendall(b"hello")
    assert receive_exactly(tls, 5) == b"hello"


def dial_path(path: Path, context: ssl.SSLContext) -> ssl.SSLSocket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(GUARD_SECONDS)
    sock.connect(str(path))
    return context.wrap_socket(sock)


@needs_ipv6
def test_one_address_serves_both_families_and_names_peers_by_their_own(
    configure: Configure, traefik: ssl.SSLContext, stopping: Callable[[Daemon], Daemon]
) -> None:
    config = configure('"[::]:0"')
    command = [sys.executable, "-m", "sidecar", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "[::]:0 (IPv6 and IPv4)" in done.stdout

    daemon = stopping(Daemon(config))
    six, four = daemon.wait_for("ready")["listening"]
    port = int(six.removeprefix("[::]:"))
    assert four == f"0.0.0.0:{port}"
    for host, shown in (("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")):
        with connect((host, port), traefik) as tls:
            echoes(tls)
        assert daemon.wait_for("connection closed")["address"].startswith(shown)
        with socket.create_connection((host, port), GUARD_SECONDS) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(100)
        assert daemon.wait_for("peer refused")["address"].startswith(shown)


def test_peers_of_this_host_come_by_a_unix_socket(
    configure: Configure,
    folder: Path,
    traefik: ssl.SSLContext,
    stopping: Callable[[Daemon], Daemon],
) -> None:
    path = folder / "peers.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    config = configure(f'["unix:{path}", "127.0.0.1:0"]')
    daemon = stopping(Daemon(config))
    tcp, unix = sorted(daemon.wait_for("ready")["listening"])
    assert unix == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with dial_path(path, traefik) as tls:
        echoes(tls)
    assert daemon.wait_for("connection closed")["address"] == unix
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(path))
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.recv(100)
    assert daemon.wait_for("peer refused")["address"] == unix
    with connect(("127.0.0.1", int(tcp.rpartition(":")[2])), traefik) as tls:
        echoes(tls)

    second = stopping(Daemon(config))
    assert second.wait() == 1
    assert any("another process does" in line for line in second.raw)
    assert daemon.stop() == 0
    # The sandbox may forbid to remove the file; whoever starts next takes it over.
    after = stopping(Daemon(config))
    after.wait_for("ready")
    with dial_path(path, traefik) as tls:
        echoes(tls)
    assert "Traceback" not in "".join(daemon.raw)


# Descriptors from 3 on, for this very process, as systemd does it.
_HAND_OVER = """
import os, sys
names, config = sys.argv[1], sys.argv[2]
os.environ.update(LISTEN_FDS=str(names.count(":") + 1), LISTEN_FDNAMES=names)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "sidecar", "run", "--config", config])
"""


def activated(config: Path, **sockets: socket.socket) -> Daemon:
    """Start a daemon with sockets by their names."""
    popen = subprocess.Popen
    wanted = list(range(3, 3 + len(sockets)))

    def place() -> None:
        kept = [os.dup(sock.fileno()) for sock in sockets.values()]
        high = [os.dup2(number, 200 + at) for at, number in enumerate(kept)]
        for number, to in zip(high, wanted, strict=True):
            os.dup2(number, to, inheritable=True)

    def start(_: list[str], **options: object) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", _HAND_OVER, ":".join(sockets), str(config)]
        return popen(argv, **options, pass_fds=wanted, preexec_fn=place)  # type: ignore[call-overload,no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", start)
        return Daemon(config)


def listening(folder: Path, name: str) -> socket.socket:
    if name.startswith("unix"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(folder / name))
        sock.listen()
        return sock
    return socket.create_server(("127.0.0.1", 0))


def test_each_table_gets_the_sockets_that_it_names(
    configure: Configure,
    folder: Path,
    traefik: ssl.SSLContext,
    stopping: Callable[[Daemon], Daemon],
) -> None:
    config = configure(
        '"systemd"', '[admin]\naddress = "systemd:admin"\n[health]\naddress = "systemd:health"\n'
    )
    with ExitStack() as stack:
        sockets = {
            name: stack.enter_context(listening(folder, name))
            for name in ("peers", "health", "unix-peers", "admin")
        }
        daemon = stopping(activated(config, **sockets))
        daemon.wait_for("ready")
        with connect(sockets["peers"].getsockname(), traefik) as tls:
            echoes(tls)
        with dial_path(folder / "unix-peers", traefik) as tls:
            echoes(tls)
        for name, page in (("admin", "/status"), ("health", "/readyz")):
            host, port = sockets[name].getsockname()
            with urllib.request.urlopen(f"http://{host}:{port}{page}", timeout=60) as answer:
                body = answer.read()
            assert body == b"ok\n" if name == "health" else json.loads(body)["status"]
        command = [sys.executable, "-m", "sidecar", "status", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 78
        assert "[admin] is systemd:admin, which names no address" in done.stderr
        assert daemon.stop() == 0
        assert (folder / "unix-peers").exists()  # the manager's, not ours


@pytest.mark.parametrize(
    ("address", "said"),
    [("0.0.0.0", "[admin] is not served on 0.0.0.0:"), (None, "no socket for 'systemd:admin'")],
    ids=["other hosts reach it", "not there"],
)
def test_admin_socket_that_is_not_as_it_has_to_be_is_refused(
    configure: Configure,
    stopping: Callable[[Daemon], Daemon],
    address: str | None,
    said: str,
) -> None:
    config = configure('"systemd:peers"', '[admin]\naddress = "systemd:admin"\n')
    with ExitStack() as stack:
        sockets = {"peers": stack.enter_context(socket.create_server(("127.0.0.1", 0)))}
        if address:
            sockets["admin"] = stack.enter_context(socket.create_server((address, 0)))
        daemon = stopping(activated(config, **sockets))
        assert daemon.wait() == 1
        assert said in "".join(daemon.raw)
