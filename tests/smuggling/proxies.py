"""HAProxy and nginx as second opinions: what they read in bytes, as they send it on.

Each is the real program, started on a socket of its own as a plain-text proxy in front of a
recording backend. Found as HAPROXY_BIN or NGINX_BIN, else in PATH. Their limits are wide, so that
nothing is missing from what they send on for any other reason than how they read it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.recording_backend import RecordingBackend, Seen

Popen = subprocess.Popen[bytes]

_HAPROXY = """
global
    tune.bufsize 262144
    tune.http.maxhdr 4000
defaults
    mode http
    timeout client 1s
    timeout http-request 1s
    timeout http-keep-alive 1s
    timeout server 2s
    timeout connect 10s
    option http-server-close
frontend peers
    bind unix@{folder}/proxy.sock
    default_backend models
backend models
    server model {backend}
"""
_NGINX = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    large_client_header_buffers 8 128k;
    client_max_body_size 0;
    client_header_timeout 1s;
    client_body_timeout 1s;
    keepalive_timeout 1s;
    ignore_invalid_headers off;
    underscores_in_headers on;
    server {{
        listen unix:{folder}/proxy.sock;
        location / {{
            proxy_pass http://{backend};
            proxy_http_version 1.1;
        }}
    }}
}}
"""


def haproxy() -> str | None:
    """Where HAProxy is, if it is."""
    return os.environ.get("HAPROXY_BIN") or shutil.which("haproxy")


def nginx() -> str | None:
    """Where nginx is, if it is; Debian keeps it where only root's PATH leads."""
    return os.environ.get("NGINX_BIN") or shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


class Proxy:
    """One of them, running; `read` is its opinion."""

    def __init__(self, path: Path, backend: RecordingBackend) -> None:
        self._path, self._backend = str(path), backend

    def listens(self) -> bool:
        """Tell whether somebody takes connections."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._path)
            return True
        return False

    def read(self, raw: bytes, count: int) -> list[Seen]:
        """Send the bytes of one connection; give the complete requests that come out.

        The end is sent once `count` answers are there: neither of them answers a peer that has
        ended before. If fewer come, they end it themselves after their timeouts.
        """
        received = b""
        with socket.socket(socket.AF_UNIX) as sock, suppress(ConnectionError):
            sock.settimeout(10)
            sock.connect(self._path)
            sock.sendall(raw)
            while received.count(b"HTTP/1.1 200 ") < count and (data := sock.recv(65536)):
                received += data
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        conversations = self._backend.take()
        return [seen for one in conversations for seen in one.reader.requests if seen.complete]


@contextmanager
def running_proxy(start: Callable[[Path, str], Popen]) -> Iterator[Proxy]:
    """Start one in a folder of its own, in front of a recording backend."""
    backend = RecordingBackend()
    # The name of a Unix socket has room for a short path only.
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        process = start(Path(name), backend.address)
        proxy = Proxy(Path(name) / "proxy.sock", backend)
        try:
            deadline = time.monotonic() + 10
            while not proxy.listens():
                assert process.poll() is None, "it died; it said why above"
                assert time.monotonic() < deadline, "it does not listen"
            yield proxy
        finally:
            process.terminate()
            process.wait(10)
            backend.close()


def start_haproxy(folder: Path, backend: str) -> Popen:
    """Start HAProxy in the foreground."""
    config = folder / "haproxy.cfg"
    config.write_text(_HAPROXY.format(folder=folder, backend=backend))
    return subprocess.Popen([haproxy() or "haproxy", "-db", "-f", str(config)])


def start_nginx(folder: Path, backend: str) -> Popen:
    """Start nginx in the foreground; as root its worker would leave for a user without rights."""
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(_NGINX.format(folder=folder, backend=backend, user=user))
    return subprocess.Popen(
        [nginx() or "nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)]
    )
