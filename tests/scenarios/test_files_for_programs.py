"""The configurations of `conf/` for other programs, with those programs: each takes every rotation.

nginx and PostgreSQL where they are installed; Traefik when TRAEFIK_BIN names its binary.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.core.svid import X509Svid, serial_text
from tests.ca import Authority
from tests.client import client_context
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess

CONF = Path(__file__).parents[2] / "conf"
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
INITDB = shutil.which("initdb")
POSTGRES = shutil.which("postgres")
TRAEFIK = os.environ.get("TRAEFIK_BIN", "")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(svid: X509Svid, presents: Callable[[], str], seconds: float = 30) -> None:
    """Ask until a program presents an SVID; it cannot tell us when it does."""
    deadline = time.monotonic() + seconds
    while (found := presents()) != svid.serial:
        assert time.monotonic() < deadline, f"{found} is presented, and not {svid.serial}"
        time.sleep(0.05)


@pytest.fixture
def helper(folder: Path, agent: AgentProcess) -> Iterator[Callable[..., Daemon]]:
    """Run a configuration of `conf/` with other values for some of its keys."""
    daemons: list[Daemon] = []

    def start(name: str, **values: str) -> Daemon:
        text = (CONF / f"files-for-{name}.toml").read_text(encoding="utf-8")
        for key, value in {"socket": f"unix:{agent.path}", **values}.items():
            text, count = re.subn(rf'^{key} = ".*"$', f'{key} = "{value}"', text, flags=re.M)
            assert count == 1, key
        config = folder / "helper.toml"
        config.write_text(text + '\n[log]\nformat = "json"\n')
        daemons.append(Daemon(config))
        return daemons[-1]

    yield start
    for daemon in daemons:
        assert daemon.stop() == 0


def presented(sock: socket.socket, context: ssl.SSLContext) -> str:
    """The serial of what the server presents; empty while it cannot be reached."""
    with closing(sock), context.wrap_socket(sock) as tls:
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return serial_text(x509.load_der_x509_certificate(der))


def rotate(agent: AgentProcess, authority: Authority) -> X509Svid:
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    return svid


@pytest.mark.skipif(not Path(NGINX).exists(), reason="no nginx on this host")
def test_nginx_presents_the_newest_svid(
    helper: Callable[..., Daemon],
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    port, certs = free_port(), folder / "spiffe"
    (folder / "nginx.conf").write_text(
        f"""
        pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
        events {{}}
        http {{
          access_log off;
          server {{
            listen 127.0.0.1:{port} ssl;
            ssl_protocols TLSv1.3;
            ssl_certificate {certs}/svid.pem;
            ssl_certificate_key {certs}/svid_key.pem;
            ssl_client_certificate {certs}/svid_bundle.pem;
            ssl_verify_client on;
          }}
        }}
        """
    )
    daemon = helper("nginx", directory=str(certs), pid_file=str(folder / "nginx.pid"))
    daemon.wait_for("certificate files published")
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    nginx = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        daemon.wait_for("after rotation done", 30, hook="nginx")
        for _ in range(3):
            svid = rotate(agent, authority)
            daemon.wait_for("after rotation done", hook="nginx")
            wait_for(
                svid,
                lambda: presented(socket.create_connection(("127.0.0.1", port)), traefik),
            )
    finally:
        nginx.terminate()
        nginx.wait(20)


@pytest.fixture
def postgres(folder: Path) -> tuple[Path, int]:
    """A cluster of PostgreSQL's, not started; it refuses to run as root."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to the account postgres")
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("no account postgres")
    if INITDB is None or POSTGRES is None:
        pytest.skip("no PostgreSQL on this host")
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    os.chown(data, account.pw_uid, account.pw_gid)
    command = [INITDB, "-D", str(data), "-A", "trust", "--no-sync"]
    subprocess.run(command, user="postgres", check=True, capture_output=True, cwd="/")
    return data, free_port()


def test_postgres_presents_the_newest_svid(
    helper: Callable[..., Daemon],
    agent: AgentProcess,
    authority: Authority,
    postgres: tuple[Path, int],
    folder: Path,
) -> None:
    (data, port), certs = postgres, folder / "spiffe"
    daemon = helper("postgres", directory=str(certs), pid_file=str(data / "postmaster.pid"))
    daemon.wait_for("certificate files published")
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "ssl": "on",
        "ssl_cert_file": str(certs / "svid.pem"),
        "ssl_key_file": str(certs / "svid_key.pem"),
        "ssl_ca_file": str(certs / "svid_bundle.pem"),
    }
    assert POSTGRES is not None
    command = [POSTGRES, "-D", str(data)]
    for key, value in settings.items():
        command += ["-c", f"{key}={value}"]
    server = subprocess.Popen(command, user="postgres", stderr=subprocess.DEVNULL, cwd="/")
    try:
        daemon.wait_for("after rotation done", 30, hook="postgres")
        for _ in range(3):
            svid = rotate(agent, authority)
            daemon.wait_for("after rotation done", hook="postgres")
            wait_for(svid, lambda: _postgres_presents(port, authority))
    finally:
        server.terminate()
        server.wait(20)


def _postgres_presents(port: int, authority: Authority) -> str:
    """Ask for TLS as its protocol does, and look at the certificate."""
    context = client_context(authority, None, Path("/"))
    try:
        sock = socket.create_connection(("127.0.0.1", port), 10)
    except ConnectionRefusedError:
        return ""
    sock.sendall(struct.pack("!ii", 8, 80877103))  # SSLRequest
    if sock.recv(1) != b"S":
        sock.close()
        return ""
    return presented(sock, context)


@pytest.mark.skipif(not TRAEFIK, reason="TRAEFIK_BIN names no binary of Traefik")
def test_traefik_presents_the_newest_svid_when_its_configuration_is_touched(
    helper: Callable[..., Daemon], agent: AgentProcess, authority: Authority, folder: Path
) -> None:
    backend = _MutualTls(authority, folder)
    port, certs = free_port(), folder / "spiffe"
    dynamic = folder / "dynamic" / "model-server.yml"
    dynamic.parent.mkdir()
    dynamic.write_text(
        f"""
http:
  routers:
    all: {{rule: "PathPrefix(`/`)", service: model-server}}
  services:
    model-server:
      loadBalancer:
        serversTransport: model-server
        servers: [{{url: "https://127.0.0.1:{backend.port}"}}]
  serversTransports:
    model-server:
      certificates: [{{certFile: {certs}/current/svid.pem, keyFile: {certs}/current/svid_key.pem}}]
      rootCAs: [{certs}/current/svid_bundle.pem]
      insecureSkipVerify: true
      peerCertURI: spiffe://example.org/workload/model-server
      maxIdleConnsPerHost: -1
"""
    )
    daemon = helper("traefik", directory=str(certs), touch=str(dynamic))
    daemon.wait_for("certificate files published")
    traefik = subprocess.Popen(
        [
            TRAEFIK,
            f"--entrypoints.web.address=127.0.0.1:{port}",
            f"--providers.file.filename={dynamic}",
            "--providers.file.watch=true",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(3):
            svid = rotate(agent, authority)
            daemon.wait_for("after rotation done", hook="traefik")
            wait_for(svid, lambda: _asked_by(port, backend))
    finally:
        traefik.terminate()
        traefik.wait(20)
        backend.close()


def _asked_by(port: int, backend: _MutualTls) -> str:
    """Send a request through Traefik; give the serial of what it presented to the backend."""
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while sock.recv(4096):
                pass
    except OSError:
        return ""
    return backend.last


class _MutualTls:
    """An HTTPS server that notes the serial of its client's certificate."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        issued = authority.sign(authority.leaf("/workload/model-server"))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(issued.write(folder, "backend"))
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(cadata=authority.certificate.public_bytes(Encoding.DER))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.last = ""
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    der = tls.getpeercert(binary_form=True)
                    assert der is not None
                    self.last = serial_text(x509.load_der_x509_certificate(der))
                    tls.recv(4096)
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            except ValueError:
                return
            except OSError:
                if self._listener.fileno() < 0:
                    return
