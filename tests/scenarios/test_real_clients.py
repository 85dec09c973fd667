"""The clients that people use, through the real daemon: each does what its users do.

Each is a program of its own in tests/clients; curl is one already. Where plain HTTP is what a
client speaks best, it speaks it to a tunnel that presents the SVID for it.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import clients
from tests.ca import Authority
from tests.conftest import TRAEFIK
from tests.http_backend import Call
from tests.http_client import Site, running_site

PROGRAMS = Path(clients.__file__).parent
MAX_BODY_BYTES = 300_000  # more than a post, less than an upload
TOKENS = ["Good", "morning", "to you"]
PIECES, PIECE, PAUSE = 30, bytes(50_000), 0.06  # of an upload, as in tests/clients


@dataclass
class Said:
    """What a client said of one answer; a token has no status."""

    status: int
    version: str
    body: bytes


@dataclass
class Results:
    """What a client has said so far, by the name of the step."""

    heard: Callable[[], None]  # called for each token, so that the next can be sent
    version: str = ""
    steps: dict[str, Said] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Take a line of a client's output, as tests/clients says."""
        step, rest = line.rstrip("\n").split(" ", 1)
        if step == "version":
            self.version = rest
            return
        status, version, body = rest.split(" ")
        said = Said(int(status), version, base64.b64decode(body))
        if step == "token":
            self.tokens.append(said.body.decode())
            self.heard()
        else:
            self.steps[step] = said


@dataclass
class Place:
    """The site, what a client presents, and a stream that waits for its reader."""

    site: Site
    folder: Path
    go_on: SimpleQueue[None]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.site.address[1]}"


@pytest.fixture(scope="module")
def place(authority: Authority) -> Iterator[Place]:
    """One site for all clients; its SVID has a name that they can verify."""
    policy = f'endpoints = ["*"]\nmax_body_bytes = {MAX_BODY_BYTES}\n'
    go_on: SimpleQueue[None] = SimpleQueue()

    def stream(call: Call) -> None:
        call.body()
        call.begin_stream()
        for token in TOKENS:
            call.event(token)
            go_on.get(timeout=30)  # until the client has it
        call.end_stream()

    with running_site(authority, policy=policy) as site:
        assert site.address
        site.agent.send(authority.svid(dns=("localhost",)), authority.bundle)
        site.daemon.wait_for("identity rotated")
        site.backend.routes["/stream"] = stream
        folder = site.folder / "client"
        folder.mkdir()
        issued = authority.sign(authority.leaf(TRAEFIK))
        pem = [certificate.public_bytes(Encoding.PEM) for certificate in issued.chain]
        (folder / "cert.pem").write_bytes(b"".join(pem))
        private = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key.pem").write_bytes(private)
        (folder / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        yield Place(site, folder, go_on)


@contextmanager
def tunnel(place: Place) -> Iterator[str]:
    """Take plain connections and pass them on over mTLS; gives the URL."""
    context = ssl.create_default_context(cafile=f"{place.folder}/ca.pem")
    context.load_cert_chain(f"{place.folder}/cert.pem", f"{place.folder}/key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ending: SimpleQueue[Callable[[], None]] = SimpleQueue()

        async def handle(near: trio.SocketStream) -> None:
            tcp = await trio.open_tcp_stream(*place.site.address)
            far = trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True)
            async with near, far, trio.open_nursery() as both:
                both.start_soon(up, near, far)
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for data in far:
                        await near.send_all(data)
                    await near.send_eof()

        async def up(near: trio.SocketStream, far: trio.SSLStream[trio.SocketStream]) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in near:
                    # What the daemon no longer reads is read on here, or the client would not
                    # get to read its answer.
                    with suppress(trio.BrokenResourceError):
                        await far.send_all(data)
                await far.aclose()

        async def serve() -> None:
            with trio.CancelScope() as scope:
                token = trio.lowlevel.current_trio_token()
                ending.put(lambda: token.run_sync_soon(scope.cancel))
                own = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                await trio.serve_listeners(handle, [own])

        thread = threading.Thread(target=trio.run, args=(serve,))
        thread.start()
        end = ending.get()
        try:
            yield f"http://localhost:{port}"
        finally:
            end()
            thread.join(20)
            assert not thread.is_alive()


# How each client is run.

Run = Callable[[list[str], Results], None]


def program(command: list[str], arguments: list[str], results: Results) -> None:
    """Run a program of tests/clients."""
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GOTOOLCHAIN": "local"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                results.take(line)
            errors = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 0, errors


def curl(arguments: list[str], results: Results) -> None:
    """Let curl do what the programs do; HTTP/2 preferred, by ALPN or by Upgrade."""
    url, *folders = arguments
    output = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
    results.version = " ".join(output.stdout.split()[:2])
    options = ["-sSN", "--http2", "--noproxy", "*", "--max-time", "60"]
    for folder in folders:
        options += ["--cacert", f"{folder}/ca.pem"]
        options += ["--cert", f"{folder}/cert.pem", "--key", f"{folder}/key.pem"]
    command = ["curl", *options]
    told = ["-w", "\n%{http_code} HTTP/%{http_version}\n"]
    body = "x" * 100_000

    def take(step: str, said: str) -> None:
        answer, status = said.rstrip("\n").rsplit("\n", 1)
        code, version = status.split()
        results.steps[step] = Said(int(code), version, answer.encode())

    def ask(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], input=body, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    post = ["-H", "Content-Type: text/plain", "--data-binary", "@-"]
    take("get", ask(*told, f"{url}/get?x=1"))
    # One process, so that the connection can be kept.
    kept = ["-o", "/dev/null", f"{url}/kept", "--next", *options, *told]
    take("post", ask(*kept, *post, "-H", "Expect:", f"{url}/post"))
    expect = ["-H", "Expect: 100-continue", "--expect100-timeout", "60"]
    take("expect", ask(*told, *post, *expect, f"{url}/expect"))
    with subprocess.Popen(
        [*command, "-d", "{}", f"{url}/stream"], stdout=subprocess.PIPE, text=True
    ) as stream:
        assert stream.stdout is not None
        for line in stream.stdout:
            if line.startswith("data: "):
                results.tokens.append(line.removeprefix("data: ").strip())
                results.heard()
    chunked = ["-X", "POST", "-T", "-", "-H", "Expect:", f"{url}/upload"]
    with subprocess.Popen(
        [*command, *told, *chunked], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as upload:
        assert upload.stdin is not None
        assert upload.stdout is not None
        with suppress(BrokenPipeError):
            for _ in range(PIECES):
                time.sleep(PAUSE)
                upload.stdin.write(PIECE)
                upload.stdin.flush()
            upload.stdin.close()
        take("upload", upload.stdout.read().decode())


def language(name: str, *command: str) -> Run:
    """Run what `command` runs, or skip where it is not."""

    def run(arguments: list[str], results: Results) -> None:
        if shutil.which(command[0]) is None:
            pytest.skip(f"no {name} here ({command[0]})")
        program(list(command), arguments, results)

    return run


def library(name: str) -> Run:
    """Run a library of Python, or skip where it is not."""

    def run(arguments: list[str], results: Results) -> None:
        if find_spec(name) is None:
            pytest.skip(f"the package {name} is not here")
        program([sys.executable, str(PROGRAMS / "client.py"), name], arguments, results)

    return run


JAVA = language("Java", "java", "-XX:TieredStopAtLevel=1", str(PROGRAMS / "Client.java"))
GO = language("Go", "go", "run", str(PROGRAMS / "client.go"))
NODE = language("Node", "node", str(PROGRAMS / "client.mjs"))
CLIENTS = {
    "Java, plain": (JAVA, "plain"),
    "Java": (JAVA, "TLS"),
    "Go": (GO, "TLS"),
    "Node's fetch, plain": (NODE, "plain"),
    "Node's https": (NODE, "TLS"),
    "curl, plain": (curl, "plain"),
    "curl": (curl, "TLS"),
    "aiohttp": (library("aiohttp"), "TLS"),
    "httpx": (library("httpx"), "TLS"),
    "requests": (library("requests"), "TLS"),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_client_gets_its_answers(
    name: str, place: Place, record_property: Callable[[str, object], None]
) -> None:
    run, how = CLIENTS[name]
    results = Results(functools.partial(place.go_on.put, None))
    before = len(place.site.daemon.lines("request"))
    if how == "plain":
        with tunnel(place) as url:
            run([url], results)
    else:
        run([place.url, str(place.folder)], results)
    record_property("client", results.version)

    said = results.steps
    assert said["get"].status == 200
    assert json.loads(said["get"].body)["target"] == "/get?x=1"
    for step in ("post", *(["expect"] if "expect" in said else [])):
        assert said[step].status == 200, step
        assert json.loads(said[step].body)["received"] == 100_000, step
    assert results.tokens == TOKENS
    assert {answer.version for answer in said.values()} <= {"HTTP/1.1", "-"}

    # In the middle of a slow upload, with the reason, and not a broken connection.
    assert said["upload"].status == 413
    assert b"max_body_bytes" in said["upload"].body or b"300000" in said["upload"].body
    place.site.daemon.wait_for("request", path="/upload", status=413)
    lines = place.site.daemon.lines("request")[before:]
    assert {line["status"] for line in lines} == {200, 413}
    kept = ("/kept", "/post") if run is curl else ("/get", "/post", "/stream")
    # A fetch that begins right after another may find the connection of that one still in use.
    most = 2 if "fetch" in name else 1
    assert len({line["address"] for line in lines if line["path"] in kept}) <= most
