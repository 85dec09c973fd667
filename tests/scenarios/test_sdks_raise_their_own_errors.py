"""Whoever is refused reads why in the exception that their SDK is known for.

First the bodies alone, from a plain server, for every status that we give; then the daemon, with
real clients on real mTLS before it and a model server behind it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import anthropic
import openai
import pytest

from sidecar.core.refusal import Refusal, refusal_body, refusal_headers
from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import free_port
from tests.sdk_clients import (
    MODEL,
    TEXT,
    Answer,
    AnsweringServer,
    Asked,
    Call,
    ModelServer,
    anthropic_calls,
    anthropic_client,
    openai_calls,
    openai_client,
)

SdkError = openai.APIStatusError | anthropic.APIStatusError
ME = f"spiffe://example.org{TRAEFIK}"
STRANGER = "spiffe://example.org/workload/somebody-else"


def refused(call: Call) -> SdkError:
    """Call, and give the error that the SDK raised for an answer."""
    try:
        said = call()
    except (openai.APIStatusError, anthropic.APIStatusError) as exc:
        return exc
    raise AssertionError(f"not refused: {said!r}")


# The bodies alone.


class Refusing(AnsweringServer):
    """Refuses whatever comes, as the daemon does; `reads` False: as if it read no path."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.reads = True
        super().__init__(self._refuse)

    def _refuse(self, asked: Asked) -> Answer:
        path = asked.path if self.reads else ""
        anthropic_version = self.reads and "anthropic-version" in asked.headers
        body = refusal_body(self.refusal, path, anthropic_version, "r-42")
        headers = refusal_headers(self.refusal, path, anthropic_version, "r-42")
        headers += [("Content-Length", str(len(body))), ("X-Request-Id", "r-42")]
        return Answer(self.refusal.status, headers, [body])


REFUSALS = [
    (400, openai.BadRequestError, anthropic.BadRequestError),
    (403, openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    (404, openai.NotFoundError, anthropic.NotFoundError),
    (408, openai.APIStatusError, anthropic.RequestTimeoutError),
    (413, openai.APIStatusError, anthropic.ContentTooLargeError),
    (417, openai.APIStatusError, anthropic.APIStatusError),
    (421, openai.APIStatusError, anthropic.APIStatusError),
    (429, openai.RateLimitError, anthropic.RateLimitError),
    (431, openai.APIStatusError, anthropic.RequestHeaderFieldsTooLargeError),
    (500, openai.InternalServerError, anthropic.InternalServerError),
    (502, openai.InternalServerError, anthropic.InternalServerError),
    (503, openai.InternalServerError, anthropic.ServiceUnavailableError),
    (504, openai.InternalServerError, anthropic.GatewayTimeoutError),
    (505, openai.InternalServerError, anthropic.InternalServerError),
]
each_of_openai = pytest.mark.parametrize(
    ("status", "expected"), [pytest.param(row[0], row[1], id=str(row[0])) for row in REFUSALS]
)
each_of_anthropic = pytest.mark.parametrize(
    ("status", "expected"), [pytest.param(row[0], row[2], id=str(row[0])) for row in REFUSALS]
)
each_reading = pytest.mark.parametrize(
    "reads", [pytest.param(True, id="path known"), pytest.param(False, id="path unknown")]
)
MESSAGE = f"this request of {ME} was refused for a reason; change it, or ask for a rule"


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    """A server that refuses; a test sets why."""
    server = Refusing(Refusal(403, "as_the_test_says", MESSAGE))
    yield server
    server.close()


@each_reading
@each_of_openai
def test_openai_sdk_raises_its_own_error_with_our_message(
    refusing: Refusing, status: int, expected: type[Exception], reads: bool
) -> None:
    refusing.reads = reads
    refusing.refusal = Refusal(status, "as_the_test_says", MESSAGE, 7)
    with openai_client(refusing.url) as client:
        for name, call in openai_calls(client).items():
            exc = refused(call)
            assert type(exc) is expected, name
            assert isinstance(exc, openai.APIStatusError)
            assert str(exc) == f"Error code: {status} - {MESSAGE}"
            assert exc.code == "as_the_test_says"
            assert exc.param is None
            assert exc.type is not None
            assert exc.request_id == "r-42"
            assert exc.response.headers["retry-after"] == "7"


@each_reading
@each_of_anthropic
def test_anthropic_sdk_raises_its_own_error_with_our_message(
    refusing: Refusing, status: int, expected: type[Exception], reads: bool
) -> None:
    refusing.reads = reads
    refusing.refusal = Refusal(status, "as_the_test_says", MESSAGE, 7)
    with anthropic_client(refusing.url) as client:
        calls = anthropic_calls(client)
        calls["GET /v1/models"] = lambda: str(client.models.list())
        for name, call in calls.items():
            exc = refused(call)
            assert type(exc) is expected, name
            assert isinstance(exc, anthropic.APIStatusError)
            assert str(exc).startswith(f"Error code: {status} - ")
            assert MESSAGE in str(exc)
            assert exc.api_message == MESSAGE
            assert exc.error_code == "as_the_test_says"
            assert exc.type is not None
            assert exc.request_id == "r-42"
            assert exc.response.headers["retry-after"] == "7"


def test_refusal_without_a_time_tells_none(refusing: Refusing) -> None:
    with openai_client(refusing.url) as client:
        exc = refused(openai_calls(client)["POST /v1/responses"])
    assert "retry-after" not in exc.response.headers


# The daemon.

OPEN = """
endpoints = ["POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages"]
"""
OTHERS = f"""
[[allow]]
name = "rule-of-others"
peers = ["{STRANGER}"]
endpoints = ["*"]
"""


@pytest.fixture
def model() -> Iterator[ModelServer]:
    """A model server."""
    server = ModelServer()
    yield server
    server.close()


class Clients:
    """Both SDKs on one daemon."""

    def __init__(
        self, daemon: Daemon, context: ssl.SSLContext, max_retries: int = 0, prompt: str = "Hello"
    ) -> None:
        url = "https://{}:{}".format(*daemon.address)
        self.openai = openai_client(url, context, max_retries)
        self.anthropic = anthropic_client(url, context, max_retries)
        self.calls = openai_calls(self.openai, prompt) | anthropic_calls(self.anthropic, prompt)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_fault: object) -> None:
        self.openai.close()
        self.anthropic.close()

    def all_refused(self) -> Iterator[SdkError]:
        """Make every call; give what it raised."""
        for call in self.calls.values():
            yield refused(call)


def check(exc: SdkError, status: int, code: str) -> None:
    """The status, our code, a message in the text, and nothing that is not for this peer."""
    assert exc.status_code == status
    if isinstance(exc, openai.APIStatusError):
        assert exc.code == code
        assert len(str(exc)) > len(f"Error code: {status} - ")
    else:
        assert exc.error_code == code
        assert exc.api_message
        assert exc.api_message in str(exc)
    assert exc.request_id
    assert exc.request_id == exc.response.headers["x-request-id"]
    for secret in ("somebody-else", "rule-of-others", "127.0.0.1", "Errno", "/tmp", ".py"):
        assert secret not in str(exc)


def test_sdks_get_their_answers(
    launch: Launch,
    model: ModelServer,
    traefik: ssl.SSLContext,
    record_property: Callable[[str, object], None],
) -> None:
    for name in ("anthropic", "openai", "httpx", "httpx2"):
        record_property("client", f"{name} {metadata.version(name)}")
    daemon = launch(backend_address=model.address, mode="http", policy=OPEN)
    with Clients(daemon, traefik) as clients:
        for name, call in clients.calls.items():
            assert call() == TEXT, name
    assert [asked.method for asked in model.asked] == ["POST"] * len(clients.calls)
    # They have kept connections: openai ends one with a stream, which it does not read to its end.
    assert len({line["address"] for line in daemon.lines("request")}) < len(clients.calls)


def test_model_names_with_slashes_and_colons_get_through(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    policy = 'endpoints = ["GET /v1/models", "POST /v1/responses"]'
    daemon = launch(backend_address=model.address, mode="http", policy=policy)
    with Clients(daemon, traefik) as clients:
        assert [one.id for one in clients.openai.models.list()] == [MODEL]
        clients.calls["POST /v1/responses"]()
    assert MODEL.encode() in model.asked[-1].body


def test_words_come_out_of_the_sdks_as_the_model_says_them(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    daemon = launch(backend_address=model.address, mode="http", policy=OPEN)
    with Clients(daemon, traefik) as clients:
        model.hold()
        chunks = clients.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        words = (chunk.choices[0].delta.content or "" for chunk in chunks)
        said = next(word for word in words if word)
        assert TEXT.startswith(said)
        model.go_on()
        assert said + "".join(words) == TEXT
        model.hold()
        with clients.anthropic.messages.stream(
            model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "Hello"}]
        ) as stream:
            said = next(iter(stream.text_stream))
            assert TEXT.startswith(said)
            model.go_on()
            assert said + "".join(stream.text_stream) == TEXT


def test_peer_that_no_rule_names(
    launch: Launch, model: ModelServer, authority: Authority, folder: Path
) -> None:
    daemon = launch(backend_address=model.address, mode="http", policy=OPEN)
    nobody = "/workload/nobody"
    context = client_context(authority, authority.sign(authority.leaf(nobody)), folder)
    with Clients(daemon, context) as clients:
        for exc in clients.all_refused():
            assert isinstance(exc, openai.PermissionDeniedError | anthropic.PermissionDeniedError)
            check(exc, 403, "peer_not_admitted")
            assert f"spiffe://example.org{nobody}" in str(exc)
            assert ME not in str(exc)
    assert model.connections == 0


def test_sdk_that_trusts_somebody_else_does_not_talk_to_us(
    launch: Launch, model: ModelServer, authority: Authority, foreign: Authority, folder: Path
) -> None:
    daemon = launch(backend_address=model.address, mode="http", policy=OPEN)
    context = client_context(foreign, authority.sign(authority.leaf(TRAEFIK)), folder)
    with Clients(daemon, context) as clients:
        for call in clients.calls.values():
            with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)) as caught:
                call()
            assert "certificate verify failed" in str(caught.value.__cause__)
    assert model.connections == 0


def test_endpoint_that_no_rule_allows(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    policy = 'endpoints = ["GET /v1/models"]' + OTHERS
    daemon = launch(backend_address=model.address, mode="http", policy=policy)
    with Clients(daemon, traefik) as clients:
        for exc in clients.all_refused():
            assert isinstance(exc, openai.PermissionDeniedError | anthropic.PermissionDeniedError)
            assert exc.type == "permission_error"
            check(exc, 403, "endpoint_not_allowed")
            assert f"POST {exc.request.url.path}" in str(exc)
            line = daemon.wait_for("request", request_id=exc.request_id)
            assert (line["decision"], line["status"], line["peer"]) == ("refused", 403, ME)
        assert [one.id for one in clients.openai.models.list()] == [MODEL]
    assert [asked.path for asked in model.asked] == ["/v1/models"]


def test_head_that_is_too_long(launch: Launch, model: ModelServer, traefik: ssl.SSLContext) -> None:
    daemon = launch(backend_address=model.address, mode="http", policy=OPEN + OTHERS)
    long = {"X-Long": "x" * 40_000}
    with Clients(daemon, traefik) as clients:
        one = clients.openai.with_options(default_headers=long)
        other = clients.anthropic.with_options(default_headers=long)
        for call in (openai_calls(one) | anthropic_calls(other)).values():
            exc = refused(call)
            check(exc, 431, "head_too_large")
            if isinstance(exc, anthropic.APIStatusError):
                assert isinstance(exc, anthropic.RequestHeaderFieldsTooLargeError)
    assert model.asked == []


def test_peer_that_asks_too_often(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    policy = f"{OPEN}\nrequests_per_second = 0.01\nburst = 2\n{OTHERS}"
    daemon = launch(backend_address=model.address, mode="http", policy=policy)
    with Clients(daemon, traefik) as clients:
        assert clients.calls["POST /v1/responses"]() == TEXT
        assert clients.calls["POST /v1/messages"]() == TEXT
        for exc in clients.all_refused():
            assert isinstance(exc, openai.RateLimitError | anthropic.RateLimitError)
            assert exc.type == "rate_limit_error"
            check(exc, 429, "rate_limited")
            assert 1 <= int(exc.response.headers["retry-after"]) <= 100
    assert len(model.asked) == 2


def test_sdks_that_try_again_are_let_in_after_the_time_that_they_were_told(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    policy = f"{OPEN}\nrequests_per_second = 1\nburst = 1\n"
    daemon = launch(backend_address=model.address, mode="http", policy=policy)
    with Clients(daemon, traefik, max_retries=1) as clients:
        for name in ("POST /v1/responses", "POST /v1/responses", "POST /v1/messages"):
            assert clients.calls[name]() == TEXT
    assert len(model.asked) == 3
    daemon.wait_for("request", status=429)


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(2_000, id="a little too long"),
        pytest.param(4_000_000, id="more than any buffer holds"),
    ],
)
def test_body_that_is_too_long(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext, length: int
) -> None:
    policy = f"{OPEN}\nmax_body_bytes = 1000\n{OTHERS}"
    daemon = launch(backend_address=model.address, mode="http", policy=policy)
    with Clients(daemon, traefik, prompt="x" * length) as clients:
        for exc in clients.all_refused():
            check(exc, 413, "body_too_large")
            if isinstance(exc, anthropic.APIStatusError):
                assert isinstance(exc, anthropic.ContentTooLargeError)
    assert model.asked == []


def test_model_server_that_does_not_run(launch: Launch, traefik: ssl.SSLContext) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    daemon = launch(backend_address=address, mode="http", policy=OPEN + OTHERS)
    with Clients(daemon, traefik) as clients:
        for exc in clients.all_refused():
            assert isinstance(exc, openai.InternalServerError | anthropic.InternalServerError)
            check(exc, 502, "backend_unreachable")
            assert str(port) not in str(exc)


def test_model_server_that_says_nothing(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    daemon = launch(
        backend_address=model.address,
        mode="http",
        policy=OPEN + OTHERS,
        more="[timeouts]\nfirst_byte = 0.5",
    )
    model.hold()
    with Clients(daemon, traefik) as clients:
        for name in ("POST /v1/chat/completions", "POST /v1/messages"):
            exc = refused(clients.calls[name])
            check(exc, 504, "backend_silent")
            if isinstance(exc, anthropic.APIStatusError):
                assert isinstance(exc, anthropic.GatewayTimeoutError)
                assert exc.type == "timeout_error"


def test_model_server_that_has_no_place_left(
    launch: Launch, model: ModelServer, traefik: ssl.SSLContext
) -> None:
    daemon = launch(
        backend_address=model.address,
        mode="http",
        policy=OPEN + OTHERS,
        more="[limits]\nconcurrent_requests = 1\nqueued_requests = 0",
    )
    model.hold()
    with (
        Clients(daemon, traefik) as clients,
        Clients(daemon, traefik) as others,
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(clients.calls["POST /v1/responses"])
        try:
            model.wait_until_asked(1)
            for exc in others.all_refused():
                assert isinstance(exc, openai.InternalServerError | anthropic.InternalServerError)
                if isinstance(exc, anthropic.APIStatusError):
                    assert isinstance(exc, anthropic.ServiceUnavailableError)
                    assert exc.type == "overloaded_error"
                check(exc, 503, "busy")
                assert int(exc.response.headers["retry-after"]) >= 1
        finally:
            model.go_on()
        assert running.result() == TEXT
    assert len(model.asked) == 1
