"""Every route of the model servers that we know, through the daemon, for a peer of each preset.

What a preset allows reaches the model server as it was asked for; what it does not allow is a
403, and the model server never hears of it. Each peer asks all on one connection.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ca import Authority
from tests.http_client import HttpPeer, Site, running_site
from tests.routes import ALL, ALLOWED, is_allowed

EVERYTHING, NOTHING = "everything", "nothing"
PEERS = [*ALLOWED, EVERYTHING, NOTHING]
# Each method and path once, however many products have it; some are served by none of them.
UNKNOWN = [("GET", "/nobody/has/this"), ("POST", "/"), ("PUT", "/v1/models"), ("DELETE", "/")]
ASKED = sorted({(route.method, route.example) for route in ALL}) + UNKNOWN
PATHS = {
    path: {route.path for route in ALL if route.example == path} for _, path in ASKED
}  # an example -> the paths by which it is listed
HEALTH = "/health"  # is answered by the daemon, to whoever is admitted


@pytest.fixture(scope="module")
def site(authority: Authority) -> Iterator[Site]:
    """A rule for each preset, one with "*" and one without endpoints, each for its own peer."""
    endpoints = {name: f'["preset:{name}"]' for name in ALLOWED}
    endpoints |= {EVERYTHING: '["*"]', NOTHING: "[]"}
    rules = "".join(
        f'[[allow]]\nname = "{name}"\npeers = ["spiffe://example.org/{name}"]\n'
        f"endpoints = {endpoints[name]}\ntrusted_proxy = true\n"
        for name in PEERS
    )
    with running_site(authority, policy=rules) as site:
        yield site


def arrived(site: Site, prefix: str) -> dict[str, tuple[str, str]]:
    """What reached the model server: request ID -> method and target, of one peer's requests."""
    with site.backend.changed:
        calls = list(site.backend.calls)
    found = [(call.values("x-request-id"), (call.method, call.target)) for call in calls]
    ours = [(ids[0], seen) for ids, seen in found if ids and ids[0].startswith(prefix)]
    assert len(dict(ours)) == len(ours), "a request arrived twice"
    return dict(ours)


def is_expected(name: str, method: str, path: str) -> bool:
    if name in (EVERYTHING, NOTHING):
        return name == EVERYTHING
    return any(is_allowed(name, method, listed) for listed in PATHS[path])


def ask(peer: HttpPeer, method: str, target: str, request_id: str) -> int:
    body = b"{}" if method == "POST" else b""
    answer = peer.ask(method, target, f"X-Request-Id: {request_id}", body=body)
    assert answer.get("x-request-id") == request_id
    assert answer.get("connection") is None, "a refusal costs nobody the connection"
    return answer.status


@pytest.mark.parametrize("name", PEERS)
def test_route_reaches_the_model_server_or_is_refused(name: str, site: Site) -> None:
    expected = {}
    with site.dial(f"/{name}") as peer:
        for number, (method, path) in enumerate(ASKED):
            request_id = f"{name}.{number}"
            # A query is not decided about, and arrives with the path.
            target = f"{path}?at=/api/tags" if number % 2 else path
            status = ask(peer, method, target, request_id)
            if path == HEALTH and method in ("GET", "HEAD"):
                assert status == 200
            elif is_expected(name, method, path):
                assert status == 200, f"{method} {target}"
                expected[request_id] = (method, target)
            else:
                assert status == 403, f"{method} {target}"
    assert arrived(site, f"{name}.") == expected
    assert bool(expected) == (name != NOTHING)


@pytest.mark.parametrize("name", ALLOWED)
def test_head_is_served_where_get_is_and_nowhere_else(name: str, site: Site) -> None:
    expected = {}
    with site.dial(f"/{name}") as peer:
        for number, path in enumerate(sorted(PATHS)):
            request_id = f"head-{name}.{number}"
            status = ask(peer, "HEAD", path, request_id)
            if is_expected(name, "HEAD", path):
                expected[request_id] = ("HEAD", path)
            assert status == (200 if path == HEALTH or request_id in expected else 403), path
    assert arrived(site, f"head-{name}.") == expected != {}


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/v1/models/../../api/pull", id="two dots"),
        pytest.param("/v1/models/%2e%2e/%2e%2e/api/pull", id="encoded dots"),
        pytest.param("/v1/models/..%2f..%2fapi%2fpull", id="encoded slashes"),
        pytest.param("/v1/models/%252e%252e/%252e%252e/api/pull", id="encoded twice"),
        pytest.param("/v1/models/%25252e%25252e/%25252e%25252e/api/pull", id="three times"),
        pytest.param("/v1/models/x/..;/..;/api/pull", id="parameters of a segment"),
        pytest.param("/v1/models/..%3b/..%3b/api/pull", id="encoded parameters"),
        pytest.param("/v1/models/..%5c..%5capi%5cpull", id="encoded backslashes"),
        pytest.param("/v1/models/..\\..\\api\\pull", id="backslashes"),
        pytest.param("/v1/models/%c0%ae%c0%ae/%c0%ae%c0%ae/api/pull", id="overlong dots"),
        pytest.param("/v1/models/x%00/../../../api/pull", id="NUL before dots"),
        pytest.param("//api/pull", id="two slashes"),
        pytest.param("/%2fapi/pull", id="a slash and an encoded one"),
        pytest.param("/api%2fpull", id="encoded slash"),
        pytest.param("/./api/pull", id="one dot"),
        pytest.param("/api/tags/../pull", id="up from an allowed path"),
        pytest.param("/api/tags;/../pull", id="semicolon"),
        pytest.param("/API/tags", id="other case"),
        pytest.param("/api//tags", id="two slashes in an allowed path"),
        pytest.param("/api%2ftags", id="encoded slash in an allowed path"),
        pytest.param("/api/tags/", id="slash at the end"),
        pytest.param("/api/tags%2f", id="encoded slash at the end"),
        pytest.param("/api/tags%20", id="space at the end"),
        pytest.param("/api/tags.", id="dot at the end"),
        pytest.param("/api/tags%2e", id="encoded dot at the end"),
        pytest.param("/api/tags%", id="percent sign at the end"),
        pytest.param("/api/pull?/api/tags", id="an allowed path as the query"),
        pytest.param("/api/pull%3f/api/tags", id="an allowed path as an encoded query"),
        pytest.param("http://models/api/pull", id="absolute form"),
        pytest.param("http://models//api/tags", id="absolute form, two slashes"),
        pytest.param("/v1/models/", id="no name of a model"),
        pytest.param("/v1/models//", id="no name of a model and two slashes"),
    ],
)
def test_disguised_path_is_refused_and_never_arrives(target: str, site: Site) -> None:
    site.backend.forget()
    with site.dial("/ollama") as peer:
        for method in ("GET", "HEAD", "POST"):
            assert ask(peer, method, target, "disguised") == 403
        assert ask(peer, "GET", "/api/tags", "honest") == 200
    # The daemon asks for the backend's health by itself, and leaves no ID.
    untaken = [one for one in site.backend.untaken() if one != "GET /api/version"]
    assert untaken == ["GET /api/tags"]


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("//api/pull", id="two slashes first"),
        pytest.param("/api//pull", id="two slashes"),
        pytest.param("/api/./pull", id="dot"),
        pytest.param("/api/../api/pull", id="two dots"),
        pytest.param("/api/%2e%2e/api/pull", id="encoded dots"),
        pytest.param("/api/..;/api/pull", id="dots with a parameter"),
        pytest.param("/api%2fpull", id="encoded slash"),
        pytest.param("/api/pull%2e", id="encoded dot"),
        pytest.param("/api%252fpull", id="encoded twice"),
        pytest.param("/api%5cpull", id="encoded backslash"),
        pytest.param("/api\\pull", id="backslash"),
        pytest.param("/api/pull%00", id="NUL"),
        pytest.param("/api/pull%", id="half an escape"),
        pytest.param("/api/pull%ff", id="not UTF-8"),
    ],
)
def test_star_lets_no_path_through_that_may_mean_another(target: str, site: Site) -> None:
    site.backend.forget()
    with site.dial(f"/{EVERYTHING}") as peer:
        for method in ("GET", "POST", "DELETE"):
            assert ask(peer, method, target, "disguised") == 403
        assert ask(peer, "POST", "/api/pull", "honest") == 200
    assert [one for one in site.backend.untaken() if one != "GET /api/version"] == [
        "POST /api/pull"
    ]
