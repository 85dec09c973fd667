"""Client -> Traefik -> sidecar -> model server, with the real Traefik on the files as printed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from sidecar.core.svid import X509Svid
from tests.ca import Authority
from tests.conftest import TRAEFIK as TRAEFIK_PATH
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.http_backend import HELD, Call, HttpBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import free_port
from tests.traefik import DOMAIN, Traefik, needs_traefik, printed, version

pytestmark = needs_traefik
BOTH = pytest.mark.parametrize("variant", ["spiffe", "files"])
ROTATIONS = 50 if os.environ.get("FULL") else 3
# What would be something else in YAML, TOML or a template of Go's; a space would in a URL.
AGENT, CERTIFICATES, DYNAMIC = "an agent.sock", "{{spiffe}}: \"#é'", "{{ nonsense }} \\# %d"


@dataclass
class Site:
    """All that stands behind the client."""

    traefik: Traefik
    sidecar: Daemon
    agents: tuple[AgentProcess, AgentProcess]  # the sidecar's and Traefik's
    helper: Daemon | None = None

    def rotate(self, authority: Authority) -> X509Svid:
        """Give both ends new SVIDs; when this returns, each has been told."""
        ours, theirs = authority.svid(), authority.svid(TRAEFIK_PATH)
        self.agents[1].send(theirs, authority.bundle)
        if self.helper is not None:
            self.helper.wait_for("after rotation done", 30, hook="traefik")
        self.agents[0].send(ours, authority.bundle)
        self.sidecar.wait_for("identity rotated", serial=ours.serial)
        return theirs


class Scene:
    """Starts what a test is about, and ends it."""

    def __init__(self, folder: Path, authority: Authority, launch: Launch) -> None:
        self.folder, self.authority, self.launch = folder, authority, launch
        self.stack = ExitStack()
        self.model = self.stack.enter_context(HttpBackend())

    def sidecar(self, port: int = 0) -> Daemon:
        """A sidecar that lets Traefik through to the model server."""
        policy = 'endpoints = ["*"]\n'
        where = self.model.address
        daemon = self.launch(backend_address=where, mode="http", policy=policy, port=port)
        # Of a test that fails, pytest shows what was printed.
        self.stack.callback(lambda: print("".join(daemon.raw)))
        return daemon

    def second_sidecar(self, agent: Path, port: int) -> Daemon:
        """Another one, of the same ID."""
        folder = self.folder / "second"
        folder.mkdir()
        config = write_config(folder, agent, self.model.address, mode="http")
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with (folder / "policy.toml").open("a") as file:
            file.write('endpoints = ["*"]\n')
        daemon = Daemon(config)
        self.stack.callback(daemon.stop)
        return daemon

    def agent(self, svid: X509Svid, authority: Authority) -> AgentProcess:
        """Traefik's agent."""
        agent = AgentProcess(self.folder / AGENT)
        agent.send(svid, authority.bundle)
        self.stack.callback(agent.start().stop)
        return agent

    def traefik(
        self,
        variant: str,
        *servers: str,
        server_id: str = "/workload/model-server",
        every: str = "10s",
    ) -> tuple[Traefik, Daemon | None]:
        """Traefik on what the command prints for these servers, with its helper if it needs one."""
        port = free_port()
        dynamic = self.folder / DYNAMIC / "model-server.yml"
        options = ["--version", version(), "--name", "null", "--variant", variant]
        options += ["--domain", DOMAIN]
        options += [word for server in servers for word in ("--server", server)]
        options += ["--spiffe-id", f"spiffe://example.org{server_id}"]
        options += ["--listen", f"127.0.0.1:{port}", "--dynamic-file", str(dynamic)]
        options += ["--agent-socket", f"unix:{self.folder}/{quote(AGENT)}"]
        options += ["--certificates", f"{self.folder}/{CERTIFICATES}"]
        config = self.folder / "sidecar.toml"
        static = self.folder / "static.yml"
        static.write_text(printed(config, *options, "--part", "static"))
        dynamic.parent.mkdir()
        text = printed(config, *options)
        assert '"10s"\n' in text
        dynamic.write_text(text.replace('interval: "10s"', f'interval: "{every}"'))
        helper = None
        if variant == "files":
            toml = self.folder / "helper.toml"
            text = printed(config, *options, "--part", "helper")
            toml.write_text(text + '\n[log]\nformat = "json"\n')
            helper = Daemon(toml)
            self.stack.callback(helper.stop)
            helper.wait_for("after rotation done", 30, hook="traefik")
        traefik = self.stack.enter_context(Traefik(static, port))
        traefik.until_it_routes()
        return traefik, helper


@pytest.fixture
def scene(folder: Path, authority: Authority, launch: Launch) -> Iterator[Scene]:
    one = Scene(folder, authority, launch)
    with one.stack:
        yield one


@pytest.fixture
def site(
    request: pytest.FixtureRequest, scene: Scene, agent: AgentProcess, authority: Authority
) -> Site:
    """One sidecar behind Traefik, everything as it should be."""
    sidecar = scene.sidecar()
    theirs = scene.agent(authority.svid(TRAEFIK_PATH), authority)
    server = "{}:{}".format(*sidecar.address)
    traefik, helper = scene.traefik(request.getfixturevalue("variant"), server)
    return Site(traefik, sidecar, (agent, theirs), helper)


@contextmanager
def asking_without_end(traefik: Traefik) -> Iterator[list[str]]:
    """Ask from several clients until the block ends; the list is what went wrong.

    POST is what Go does not send again on another connection. It has no body, because Go's proxy
    now and then drops a request whose answer begins as soon as the last byte of its body is out:
    its server has closed the body before its client has seen that it ended.
    """
    faults: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with traefik.client() as client:
            while not over.is_set():
                try:
                    answer = client.post("/v1/chat/completions")
                    if answer.status_code != httpx.codes.OK:
                        faults.append(f"{answer.status_code} {answer.text}")
                except httpx.HTTPError as exc:
                    faults.append(repr(exc))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield faults
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


@BOTH
def test_nothing_fails_through_rotations_and_each_new_svid_is_used(
    site: Site, scene: Scene, authority: Authority, variant: str
) -> None:
    with streaming(site.traefik, scene.model) as (call, pieces):
        call.event("one")  # the next one comes only after the client has this one
        assert next(pieces) == b"data: one\n\n", variant
        with asking_without_end(site.traefik) as faults:
            for _ in range(ROTATIONS):
                theirs = site.rotate(authority)
                site.sidecar.wait_for("request", 30, serial=theirs.serial, status=200)
        assert faults == []
        for word in ("two", "three"):
            call.event(word)
            assert next(pieces) == f"data: {word}\n\n".encode()
        call.end_stream()
        assert list(pieces) == []
    assert site.traefik.complaints() == []


@contextmanager
def streaming(traefik: Traefik, model: HttpBackend) -> Iterator[tuple[Call, Iterator[bytes]]]:
    """A request that the test answers, event by event, and the pieces that the client gets."""
    model.forget()
    begun: list[Call] = []

    def begin() -> None:
        while not (call := model.next_call()).path.startswith(HELD):
            pass  # somebody asks for its health
        call.body()
        call.begin_stream()
        begun.append(call)

    thread = threading.Thread(target=begin)
    thread.start()
    with (
        traefik.client() as client,
        client.stream("POST", f"{HELD}stream") as answer,
    ):
        thread.join(20)
        assert answer.headers["content-type"] == "text/event-stream"
        yield begun[0], answer.iter_raw()
        begun[0].close()


@BOTH
def test_sidecar_of_another_id_gets_no_request(
    scene: Scene, agent: AgentProcess, authority: Authority, variant: str
) -> None:
    del agent
    sidecar = scene.sidecar()
    scene.agent(authority.svid(TRAEFIK_PATH), authority)
    server = "{}:{}".format(*sidecar.address)
    traefik, _ = scene.traefik(variant, server, server_id="/workload/another")
    with traefik.client() as client:
        answer = client.post("/v1/chat/completions")
    assert answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    assert scene.model.calls == []
    assert sidecar.lines("request") == []


@pytest.mark.parametrize(
    ("path", "status", "event"),
    [
        pytest.param("/workload/another", 403, "request", id="an ID that policy does not admit"),
        pytest.param("", 0, "peer refused", id="another trust domain"),
    ],
)
def test_traefik_of_another_id_is_refused(
    scene: Scene,
    agent: AgentProcess,
    authority: Authority,
    foreign: Authority,
    path: str,
    status: int,
    event: str,
) -> None:
    del agent
    sidecar = scene.sidecar()
    if path:
        scene.agent(authority.svid(path), authority)
    else:
        # It trusts ours, and is not trusted.
        theirs = scene.agent(foreign.svid(TRAEFIK_PATH), foreign)
        theirs.send(foreign.svid(TRAEFIK_PATH), foreign.bundle, [authority.bundle])
    traefik, _ = scene.traefik("spiffe", "{}:{}".format(*sidecar.address))
    with traefik.client() as client:
        answer = client.post("/v1/chat/completions")
    assert answer.status_code == status or (not status and answer.status_code >= 500)
    sidecar.wait_for(event)
    assert scene.model.calls == []


def test_server_that_is_down_is_taken_out_until_it_is_back(
    scene: Scene, agent: AgentProcess, authority: Authority
) -> None:
    first, port = scene.sidecar(), free_port()
    scene.agent(authority.svid(TRAEFIK_PATH), authority)
    other = f"127.0.0.1:{port}"
    traefik, _ = scene.traefik("spiffe", "{}:{}".format(*first.address), other, every="200ms")
    traefik.wait_for("Health check failed", other)
    with traefik.client() as client:
        assert [client.get("/v1/models").status_code for _ in range(20)] == [200] * 20
        second = scene.second_sidecar(agent.path, port)
        until(lambda: bool(client.get("/v1/models") and second.lines("request")), "never asked")
        assert first.stop() == 0
        traefik.wait_for("Health check failed", "{}:{}".format(*first.address))
        assert [client.get("/v1/models").status_code for _ in range(20)] == [200] * 20


def until(done: Callable[[], bool], otherwise: str) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
