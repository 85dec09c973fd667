"""The whole story on one machine: SPIRE server and agents, Traefik, the sidecar, a model server.

From `register-workload` to an answer that comes through Traefik token by token, and what happens
when the entries are removed. Root is needed. Set SPIRE_BIN to a folder with `spire-server` and
`spire-agent`, and TRAEFIK_BIN to Traefik, to run it. Where OLLAMA_BIN is set to `ollama` and
OLLAMA_MODEL to a model's GGUF file, that answers as well.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http_backend import Call, HttpBackend, tell
from tests.ollama import Ollama
from tests.traefik import DOMAIN
from tests.two_hosts import (
    SIDECAR,
    SIDECAR_UID,
    STRANGER_UID,
    TRAEFIK,
    TRAEFIK_UID,
    Hosts,
    Site,
    needed,
    running_hosts,
    running_site,
)

# Checks of `doctor` that do not depend on how this machine is set up.
EXAMINED = (
    *("agent.registration", "agent.workload_api", "identity", "policy", "backend"),
    *("listener.daemon", "listener.ready", "listener.handshake"),
)
FULL = bool(os.environ.get("FULL"))
VARIANTS = ["spiffe", "files"]
CHAT = "/v1/chat/completions"
QUESTION = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


class Model(HttpBackend):
    """A model server whose answers the test gives, piece by piece.

    It answers at once, so ask it without a body: Traefik (Go's ReverseProxy) now and then drops a
    request when the answer begins in the millisecond in which its body ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: queue.Queue[Call] = queue.Queue()
        self.routes[CHAT] = self._begin

    def _begin(self, call: Call) -> None:
        if call.method != "POST":  # `doctor` looks whether there is such a path
            tell(call)
            return
        call.body()
        call.begin_stream()
        self.answers.put(call)
        call.released.wait(60)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """One platform and one host for all tests of this file."""
    with running_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model()
    with model:
        yield model


@pytest.fixture(name="site", scope="module")
def _site(request: pytest.FixtureRequest, hosts: Hosts, model: Model) -> Iterator[Site]:
    """In the variant that the test says, and in the native one if it says nothing."""
    with running_site(hosts, getattr(request, "param", "spiffe"), model.address) as site:
        yield site


both = pytest.mark.parametrize("site", VARIANTS, indirect=True)
# What has nothing to do with how Traefik gets its SVID is shown in one of them, or FULL=1.
either = pytest.mark.parametrize("site", VARIANTS if FULL else VARIANTS[:1], indirect=True)


def _tokens(lines: Iterator[str]) -> Iterator[str]:
    """The data of a stream of events."""
    return (line.removeprefix("data: ") for line in lines if line)


@both
def test_answer_comes_token_by_token(site: Site, model: Model) -> None:
    with site.traefik.client() as client, client.stream("POST", CHAT) as answer:
        call = model.answers.get(timeout=30)
        call.event("0")
        tokens = _tokens(answer.iter_lines())
        for number in range(1, 6):
            # The one that comes is not held back until there is another one.
            assert next(tokens) == str(number - 1)
            call.event(str(number))
        call.end_stream()
        call.release()
        assert list(tokens) == ["5"]
    assert call.values("x-spiffe-id") == [TRAEFIK]
    assert call.values("host") == [model.address]
    assert call.values("x-forwarded-host") == [DOMAIN]


@both
def test_answer_outlives_rotations_at_both_ends(site: Site, model: Model) -> None:
    with site.traefik.client() as client, client.stream("POST", CHAT) as answer:
        call = model.answers.get(timeout=30)
        tokens = _tokens(answer.iter_lines())
        presented: set[str] = set()
        for number in range(3 if FULL else 2):
            site.sidecar.wait_for("identity rotated", 60)
            while len(presented) <= number:  # until Traefik has another one, too
                assert client.get("/api/version").status_code == 200
                presented |= {line["serial"] for line in site.sidecar.lines("request")}
            call.event(str(number))
            assert next(tokens) == str(number)
        call.end_stream()
        call.release()
        assert not list(tokens)


@either
def test_what_is_not_allowed_does_not_reach_the_model_server(site: Site, model: Model) -> None:
    model.forget()
    with site.traefik.client() as client:
        for method, path in (("POST", "/api/pull"), ("DELETE", "/api/delete"), ("GET", "/metrics")):
            answer = client.request(method, path)
            assert answer.status_code == 403
            assert f"not allowed for {TRAEFIK}" in answer.text
    assert set(model.untaken()) <= {"GET /api/version"}, "the health check's alone"


@either
def test_account_that_is_not_registered_is_nobody(site: Site, model: Model) -> None:
    hosts = site.hosts
    assert hosts.host.issues(STRANGER_UID) == hosts.platform.issues(STRANGER_UID) == []
    # Each account is somebody to the agent of its own host alone.
    assert hosts.host.issues(TRAEFIK_UID) == hosts.platform.issues(SIDECAR_UID) == []


@either
def test_both_hosts_are_told_that_all_is_well(site: Site, model: Model) -> None:
    probe = ("probe", site.url("/v1/models"), "--config", str(site.helper), "--json")
    probed = site.command(*probe, "--expect", SIDECAR, uid=TRAEFIK_UID)
    assert probed.returncode == 0, probed.stdout
    assert json.loads(probed.stdout)["peer"]["spiffe_id"] == SIDECAR
    status = site.command("status", "--config", str(site.config), "--json")
    assert json.loads(status.stdout)["ready"] is True
    examined = [word for name in EXAMINED for word in ("--only", name)]
    doctor = site.command("doctor", "--config", str(site.config), "--json", *examined)
    assert doctor.returncode == 0, doctor.stdout


@either
def test_probe_tells_who_is_not_the_one(site: Site, model: Model) -> None:
    probe = ("probe", site.url("/v1/models"), "--config", str(site.helper))
    mistaken = site.command(*probe, "--expect", f"{SIDECAR}-2", uid=TRAEFIK_UID)
    assert mistaken.returncode == 1
    assert f"the peer is {SIDECAR}, expected {SIDECAR}-2" in mistaken.stdout
    nobody = site.command(*probe, uid=STRANGER_UID)
    assert nobody.returncode == 1
    assert f"unix:uid:{STRANGER_UID}" in nobody.stdout


@either
def test_removed_entries_end_it_and_a_new_token_begins_it_again(site: Site, model: Model) -> None:
    hosts = site.hosts
    with site.traefik.client() as client:
        assert client.get("/v1/models").status_code == 200
        hosts.remove()
        try:
            (left,) = hosts.server.entries()
            assert left["spiffe_id"]["path"] == "/host/platform"
            site.sidecar.wait_for("state changed", 60, state="denied", serving=False)
            assert client.get("/v1/models").status_code in (500, 502, 503)
        finally:
            hosts.register()
        site.sidecar.wait_for("state changed", 60, state="ready", serving=True)
        deadline = time.monotonic() + 60
        while client.get("/v1/models").status_code != 200:  # until both ends have heard of it
            assert time.monotonic() < deadline


@pytest.fixture
def ollama(folder: Path) -> Iterator[Ollama]:
    """An Ollama that has the model."""
    binary = needed("OLLAMA_BIN", "the program `ollama`")
    weights = needed("OLLAMA_MODEL", "a model's GGUF file")
    server = Ollama(binary, folder)
    (folder / "Modelfile").write_text(f'FROM {weights}\nTEMPLATE "{{{{ .Prompt }}}}"\n')
    try:
        server.start()
        subprocess.run(
            [binary, "create", "tiny", "-f", folder / "Modelfile"],
            env={"OLLAMA_HOST": server.address, "HOME": str(folder)},
            capture_output=True,
            check=True,
        )
        yield server
    finally:
        server.stop()


def test_ollama_answers_in_the_way_of_each_api(hosts: Hosts, ollama: Ollama) -> None:
    with running_site(hosts, "spiffe", ollama.address) as site, site.traefik.client() as client:
        for path, limit in (
            (CHAT, "max_tokens"),
            ("/v1/messages", "max_tokens"),
            ("/v1/responses", "max_output_tokens"),
        ):
            # The most likely words and no others, so that no chance ends an answer early.
            question = {**QUESTION, limit: 20, "temperature": 0, "input": "Hello"}
            with client.stream("POST", path, json=question) as answer:
                assert answer.status_code == 200
                words = [line for line in _tokens(answer.iter_lines()) if '"delta"' in line]
            assert len(words) > 2, words
        assert client.post("/api/pull").status_code == 403
    assert not [one for one in ollama.arrived() if one.path == "/api/pull"]
