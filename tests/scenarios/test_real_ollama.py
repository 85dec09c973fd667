"""The daemon before a real Ollama: what passes, what is refused, and what Ollama itself saw.

Set OLLAMA_BIN to the program `ollama` to run them. No model is loaded and no network is used.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.client import connect
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.ollama import Arrived, Ollama
from tests.scenarios.conftest import Launch

pytestmark = pytest.mark.skipif(
    "OLLAMA_BIN" not in os.environ, reason="OLLAMA_BIN is not set to the program `ollama`"
)
PUBLIC = "models.ravenhelm.dev"  # the name that Traefik passes on
CHAT = {"model": "nope", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
BLOB = f"sha256:{'0' * 64}"


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One kept connection; through the daemon with `context`, else plain HTTP."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        if context is None:
            self.http = http.client.HTTPConnection(*address, timeout=30)
        else:
            self.http = http.client.HTTPSConnection(*address, timeout=30, context=context)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_fault: object) -> None:
        self.http.close()

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        host: str = PUBLIC,
        chunks: Iterable[bytes] | None = None,
        **more: str,
    ) -> Answer:
        """Send a request, `body` as JSON or `chunks` as they are; `more` are headers."""
        data = json.dumps(body).encode() if body is not None else chunks
        headers = {"Host": host, "Content-Type": "application/json", **more}
        self.http.request(method, path, data, headers, encode_chunked=chunks is not None)
        got = self.http.getresponse()
        return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Ollama]:
    """Ollama, listening."""
    server = Ollama(Path(os.environ["OLLAMA_BIN"]).resolve(), tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def sidecar(launch: Launch, ollama: Ollama) -> Daemon:
    """The daemon before it, with the endpoints that it has for Ollama and no other."""
    return launch(
        backend_address=ollama.address, mode="http", policy='endpoints = ["preset:ollama"]\n'
    )


@pytest.fixture
def peer(sidecar: Daemon, traefik: ssl.SSLContext) -> Iterator[Client]:
    """The part of Traefik."""
    with Client(sidecar.address, traefik) as client:
        yield client


@pytest.fixture
def direct(ollama: Ollama) -> Iterator[Client]:
    """Somebody on this host, past the daemon."""
    with Client(("127.0.0.1", ollama.port)) as client:
        yield client


READABLE = ("/api/version", "/api/tags", "/v1/models")


@pytest.mark.parametrize("path", READABLE)
def test_the_public_name_that_ollama_refuses_is_rewritten(
    peer: Client, direct: Client, path: str
) -> None:
    refused = direct.ask("GET", path)
    assert (refused.status, refused.body) == (403, b"")
    through, plain = peer.ask("GET", path), direct.ask("GET", path, host="127.0.0.1")
    assert (through.status, through.json) == (200, plain.json)


# What a peer that is allowed to ask this model server is refused all the same: method, path and
# the dialect in which it is told so.
REFUSED = {
    "pull a model": ("POST", "/api/pull", "ollama"),
    "push a model": ("POST", "/api/push", "ollama"),
    "create a model": ("POST", "/api/create", "ollama"),
    "copy a model": ("POST", "/api/copy", "ollama"),
    "delete a model": ("DELETE", "/api/delete", "ollama"),
    "upload a blob": ("POST", f"/api/blobs/{BLOB}", "ollama"),
    "look for a blob": ("HEAD", f"/api/blobs/{BLOB}", "ollama"),
    "what runs": ("GET", "/api/ps", "ollama"),
    "what runs, spelled otherwise": ("GET", "/api/%70s", "ollama"),
    "whose host this is": ("POST", "/api/me", "ollama"),
    "sign out": ("POST", "/api/signout", "ollama"),
    "delete a key": ("DELETE", "/api/user/keys/a", "ollama"),
    "search the web": ("POST", "/api/experimental/web_search", "ollama"),
    "fetch from the web": ("POST", "/api/experimental/web_fetch", "ollama"),
    "recommended models": ("GET", "/api/experimental/model-recommendations", "ollama"),
    "state of the cloud": ("GET", "/api/status", "ollama"),
    "native generation": ("POST", "/api/generate", "ollama"),
    "native chat": ("POST", "/api/chat", "ollama"),
    "native embedding": ("POST", "/api/embed", "ollama"),
    "profiles": ("GET", "/debug/pprof/", "ollama"),
    "the root": ("GET", "/", "any"),
    "completions": ("POST", "/v1/completions", "openai"),
    "embeddings": ("POST", "/v1/embeddings", "openai"),
    "transcriptions": ("POST", "/v1/audio/transcriptions", "openai"),
    "another method": ("DELETE", "/v1/models", "openai"),
    "below the messages": ("POST", "/v1/messages/batches", "anthropic"),
}


def test_what_the_preset_does_not_name_never_reaches_ollama(
    peer: Client, sidecar: Daemon, ollama: Ollama
) -> None:
    for name, (method, path, dialect) in REFUSED.items():
        body = {"model": "nope"} if method in ("POST", "DELETE") else None
        answer = peer.ask(method, path, body)
        assert answer.status == 403, name
        if method != "HEAD":
            assert _dialect(answer) == dialect, name
    assert peer.ask("GET", "/api/version?last").status == 200
    assert ollama.arrived() == [Arrived("GET", "/api/version?last", 200)]
    sidecar.wait_for("request", path="/api/version")  # the last one: the others are there, too
    logged = [line for line in sidecar.lines("request") if line["decision"] == "refused"]
    assert [(line["method"], line["status"]) for line in logged] == [
        (method, 403) for method, _, _ in REFUSED.values()
    ]


def test_ollama_would_have_answered_most_of_them(direct: Client, ollama: Ollama) -> None:
    """The table above is of Ollama's own endpoints: without us they are open to whoever asks."""
    for name in ("what runs", "what runs, spelled otherwise", "state of the cloud", "the root"):
        method, path, _ = REFUSED[name]
        assert direct.ask(method, path, host="localhost").status == 200, name
    assert len(ollama.arrived()) == 4


# Paths that mean another endpoint after somebody has cleaned them up.
CROOKED = {
    "dots": "/api/tags/../ps",
    "dots behind a model": "/v1/models/a/../../../api/ps",
    "encoded dots": "/api/tags/%2e%2e/ps",
    "encoded dots behind a model": "/v1/models/%2e%2e/%2e%2e/api/ps",
    "encoded slashes and dots behind a model": "/v1/models/a%2f..%2f..%2f..%2fapi%2fps",
    "encoded slash": "/api%2fps",
    "two slashes": "//api/ps",
    "two slashes inside": "/api//ps",
    "backslash": "/v1/models/a\\..\\..\\api\\ps",
    "encoded twice": "/api/%2570s",
    "absolute form of somebody else": "http://127.0.0.1/api/ps",
}


def test_no_crooked_path_leads_to_a_refused_endpoint(peer: Client, ollama: Ollama) -> None:
    for name, path in CROOKED.items():
        answer = peer.ask("GET", path)
        assert answer.status in (400, 403, 404, 421), name
    reached = {line.path for line in ollama.arrived()}
    assert not [path for path in reached if not path.startswith("/v1/models/")]
    assert not [path for path in reached if path.endswith("/ps") or ".." in path]


UNKNOWN_MODEL = {
    "openai chat": ("/v1/chat/completions", CHAT, "openai"),
    "openai chat, streamed": ("/v1/chat/completions", CHAT | {"stream": True}, "openai"),
    "openai responses": ("/v1/responses", {"model": "nope", "input": "Hello"}, "openai"),
    "anthropic messages": ("/v1/messages", CHAT, "anthropic"),
    "ollama show": ("/api/show", {"model": "nope"}, "ollama"),
}


@pytest.mark.parametrize(
    ("path", "body", "dialect"), UNKNOWN_MODEL.values(), ids=UNKNOWN_MODEL.keys()
)
def test_unknown_model_is_ollamas_own_answer(
    peer: Client, direct: Client, ollama: Ollama, path: str, body: object, dialect: str
) -> None:
    through = peer.ask("POST", path, body)
    assert ollama.arrived() == [Arrived("POST", path, 404)]
    plain = direct.ask("POST", path, body, host="localhost")
    assert through.status == plain.status == 404
    assert _dialect(through) == _dialect(plain) == dialect
    assert b"model 'nope" in through.body
    assert _without_ids(through) == _without_ids(plain)
    assert through.headers["content-type"] == plain.headers["content-type"]


def test_page_of_an_allowed_origin_is_not_refused_by_ollama(
    launch: Launch, direct: Client, ollama: Ollama, traefik: ssl.SSLContext
) -> None:
    page, other = "https://pages.example.org", "https://other.example.org"
    daemon = launch(
        backend_address=ollama.address,
        mode="http",
        policy='endpoints = ["preset:ollama"]\n',
        more=f'[cors]\nallow_origins = ["{page}"]',
    )
    assert direct.ask("GET", "/api/tags", host="localhost", Origin=page).status == 403
    with Client(daemon.address, traefik) as browser:
        answer = browser.ask("GET", "/api/tags", Origin=page)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page)
        answer = browser.ask("GET", "/api/tags", Origin=other)
        assert "access-control-allow-origin" not in answer.headers


def test_question_in_chunks_arrives_whole(peer: Client, ollama: Ollama) -> None:
    data = json.dumps(CHAT).encode()
    chunks = [data[at : at + 7] for at in range(0, len(data), 7)]
    answer = peer.ask("POST", "/v1/chat/completions", chunks=chunks)
    assert answer.status == 404, "Ollama has read the model's name, so all before it"
    assert answer.json["error"]["message"] == "model 'nope' not found"
    assert peer.ask("GET", "/api/version").status == 200
    assert [line.status for line in ollama.arrived()] == [404, 200]


def test_body_is_asked_for_after_the_decision_and_once(
    sidecar: Daemon, ollama: Ollama, traefik: ssl.SSLContext
) -> None:
    body = json.dumps(CHAT).encode()
    fields = f"Host: {PUBLIC}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    with connect(sidecar.address, traefik) as tls:
        tls.sendall(f"POST /api/chat HTTP/1.1\r\n{fields}".encode())
        assert tls.recv(65536).startswith(b"HTTP/1.1 403 ")
    with connect(sidecar.address, traefik) as tls:
        tls.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode())
        assert tls.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        tls.sendall(body)
        assert tls.recv(65536).startswith(b"HTTP/1.1 404 "), "Ollama's own 100 is not passed on"
    assert ollama.arrived() == [Arrived("POST", "/v1/chat/completions", 404)]


@pytest.mark.parametrize("path", ["/api/version", "/api/tags"])
def test_head_is_answered_without_a_body(peer: Client, ollama: Ollama, path: str) -> None:
    head, get = peer.ask("HEAD", path), peer.ask("GET", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(get.body))
    assert ollama.arrived() == [Arrived("HEAD", path, 200), Arrived("GET", path, 200)]


def test_health_follows_ollama(
    peer: Client, sidecar: Daemon, ollama: Ollama, traefik: ssl.SSLContext
) -> None:
    assert peer.ask("GET", "/health").status == 200
    asked = ollama.arrived()
    assert asked == [Arrived("GET", "/api/version", 200)], "Ollama has no /health"

    ollama.stop()
    _until_health_is(503, peer)
    down = peer.ask("GET", "/api/tags")
    assert (down.status, _dialect(down)) == (502, "ollama")
    down = peer.ask("POST", "/v1/chat/completions", CHAT)
    assert (down.status, _dialect(down)) == (502, "openai")
    down = peer.ask("POST", "/v1/messages", CHAT)
    assert (down.status, _dialect(down)) == (502, "anthropic")

    ollama.start()
    with Client(sidecar.address, traefik) as another:
        _until_health_is(200, another)
        assert another.ask("GET", "/api/version").status == 200


def test_peer_that_no_rule_names_never_reaches_ollama(
    launch: Launch, ollama: Ollama, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    peers = ("spiffe://example.org/workload/another",)
    allowed = 'endpoints = ["preset:ollama"]\n'
    daemon = launch(backend_address=ollama.address, mode="http", policy=allowed, peers=peers)
    with Client(daemon.address, traefik) as stranger:
        for path in ("/api/version", "/health"):
            answer = stranger.ask("GET", path)
            assert (answer.status, _dialect(answer)) == (403, "ollama"), path
    assert ollama.arrived() == []


def _until_health_is(status: int, client: Client) -> None:
    """Ask again and again: what the daemon has just heard it says again for a second."""
    deadline = time.monotonic() + 20
    while client.ask("GET", "/health").status != status:
        assert time.monotonic() < deadline, f"the health does not become {status}"


def _dialect(answer: Answer) -> str:
    """Whose clients can read this error; "any" for those of OpenAI and of Anthropic."""
    assert answer.headers["content-type"].startswith("application/json")
    match answer.json:
        case {"type": "error", "error": {"type": str(), "message": str(), "param": _, "code": _}}:
            return "any"
        case {"type": "error", "error": {"type": str(), "message": str()}}:
            return "anthropic"
        case {"error": {"message": str(), "type": str(), "param": _, "code": _}}:
            return "openai"
        case {"error": str()}:
            return "ollama"
    return f"none: {answer.body!r}"


def _without_ids(answer: Answer) -> dict[str, Any]:
    return {key: value for key, value in answer.json.items() if key != "request_id"}
