"""Near misses: what differs is named, and a match is never called a miss nor a miss a match."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sidecar.core.endpoint import METHODS, Endpoint, RequestPath
from sidecar.core.near_miss import Miss, endpoint_miss, peer_miss
from sidecar.core.policy import PeerPattern
from sidecar.core.spiffe_id import SpiffeId

bounded = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def of_peer(pattern: str, peer: str) -> Miss | None:
    return peer_miss(PeerPattern.parse(pattern), SpiffeId.parse(peer))


def of_request(endpoint: str, request: str) -> Miss | None:
    method, _, path = request.partition(" ")
    return endpoint_miss(Endpoint.parse(endpoint), method, RequestPath.parse(path))


@pytest.mark.parametrize(
    ("pattern", "peer", "text"),
    [
        pytest.param(
            "spiffe://e.org/a/b",
            "spiffe://f.org/a/b",
            "the peer's trust domain is f.org, not e.org",
            id="other trust domain, same path",
        ),
        pytest.param(
            "spiffe://e.org/workload/traefik",
            "spiffe://e.org/workload/treafik",
            "the peer has 'treafik' in place of 'traefik'",
            id="letters swapped",
        ),
        pytest.param(
            "spiffe://e.org/workload/traefik",
            "spiffe://e.org/workload/grafana",
            "the peer has 'grafana' in place of 'traefik'",
            id="another workload",
        ),
        pytest.param(
            "spiffe://e.org/workload/traefik",
            "spiffe://e.org/Workload/traefik",
            "the peer has 'Workload' in place of 'workload': upper and lower case matter",
            id="case",
        ),
        pytest.param(
            "spiffe://e.org/App-*",
            "spiffe://e.org/app-1",
            "the peer has 'app-1' in place of 'App-*': upper and lower case matter",
            id="case before a star",
        ),
        pytest.param(
            "spiffe://e.org/workload/*",
            "spiffe://e.org/workload/a/b",
            "the peer's path has 3 segments, the pattern's 2; "
            "'**' at the end takes all that is below",
            id="star crosses no slash",
        ),
        pytest.param(
            "spiffe://e.org/workload/traefik",
            "spiffe://e.org/workload",
            "the peer's path has 1 segment, the pattern's 2",
            id="a segment less",
        ),
        pytest.param(
            "spiffe://e.org/workload/**",
            "spiffe://e.org/workload",
            "the peer's path has 1 segment, the pattern's 2 or more; '**' stands for one at least",
            id="rest is not nothing",
        ),
        pytest.param(
            "spiffe://e.org/worklaod/**",
            "spiffe://e.org/workload/a/b",
            "the peer has 'workload' in place of 'worklaod'",
            id="slip in front of a rest",
        ),
        pytest.param(
            "spiffe://e.org/worklaod/**",
            "spiffe://e.org/workload/a",
            "the peer has 'workload' in place of 'worklaod'",
            id="slip in front of a rest of one",
        ),
    ],
)
def test_near_miss_of_a_peer_says_what_differs(pattern: str, peer: str, text: str) -> None:
    miss = of_peer(pattern, peer)
    assert miss is not None
    assert miss.text == text
    assert miss.is_near


@pytest.mark.parametrize(
    ("pattern", "peer", "text"),
    [
        pytest.param(
            "spiffe://e.org/a/b",
            "spiffe://f.org/a/c",
            "the peer's trust domain is f.org, not e.org",
            id="other trust domain, other path",
        ),
        pytest.param(
            "spiffe://e.org/a/b",
            "spiffe://e.org/x/y",
            "the peer has 'x' in place of 'a' and 'y' in place of 'b'",
            id="all segments",
        ),
        pytest.param(
            "spiffe://e.org/a",
            "spiffe://e.org/x/y",
            "the peer's path has 2 segments, the pattern's 1",
            id="number and text",
        ),
        pytest.param(
            "spiffe://e.org/a",
            "spiffe://e.org/a/b/c",
            "the peer's path has 3 segments, the pattern's 1; "
            "'**' at the end takes all that is below",
            id="two segments more",
        ),
        pytest.param(
            "spiffe://e.org/**",
            "spiffe://e.org",
            "the peer's ID has no path, and no pattern names a trust domain itself",
            id="trust domain itself",
        ),
    ],
)
def test_far_miss_of_a_peer_says_what_differs(pattern: str, peer: str, text: str) -> None:
    miss = of_peer(pattern, peer)
    assert miss is not None
    assert miss.text == text
    assert not miss.is_near


@pytest.mark.parametrize(
    ("endpoint", "request_line", "text"),
    [
        pytest.param("GET /api/tags", "POST /api/tags", "the method is POST here", id="method"),
        pytest.param("HEAD /api/tags", "GET /api/tags", "the method is GET here", id="GET of HEAD"),
        pytest.param(
            "POST /v1/messages", "POST /v1/messages/", "the path ends in a slash here", id="slash"
        ),
        pytest.param("GET /v1/", "GET /v1", "the path ends in a slash there", id="no slash"),
        pytest.param(
            "POST /v1/messages", "POST /V1/Messages", "upper and lower case differ", id="case"
        ),
        pytest.param(
            "GET /V1/models/{name}", "GET /v1/models/Qwen", "upper and lower case differ", id="case"
        ),
        pytest.param(
            "POST /v1/chat/completions",
            "POST /v1/chat%2Fcompletions",
            "the path has an escaped slash or dot in 'chat%2Fcompletions', "
            "which is no slash between two segments",
            id="escaped slash between segments",
        ),
        pytest.param(
            "GET /v1.0/models",
            "GET /v1%2E0/models",
            "the path has an escaped slash or dot in 'v1%2E0', "
            "which only {name} and {name...} take",
            id="escaped dot",
        ),
        pytest.param(
            "*",
            "GET /v1/models/a%2fb",
            "the path has an escaped slash or dot in 'a%2fb', which only {name} and {name...} take",
            id="escaped slash under the star",
        ),
        pytest.param(
            "GET /v1/models/{model}",
            "GET /v1/models/hf.co/org/name:7b",
            "{model} stands for one segment; a name with slashes needs {model...}",
            id="model name with slashes",
        ),
        pytest.param(
            "POST /v1/chat/completions",
            "POST /chat/completions",
            "the path lacks /v1 in front",
            id="v1 is missing",
        ),
        pytest.param(
            "GET /v1/models/{model...}",
            "GET /models/a/b",
            "the path lacks /v1 in front",
            id="v1 is missing, with a name",
        ),
        pytest.param(
            "POST /v1/messages",
            "POST /v1/v1/messages",
            "the path has /v1 in front here",
            id="v1 twice",
        ),
        pytest.param(
            "POST /api/chat",
            "POST /ollama/api/chat",
            "the path has /ollama in front here",
            id="what a proxy should have stripped",
        ),
        pytest.param(
            "POST /api/chat",
            "POST /host/ollama/api/chat",
            "the path has /host/ollama in front here",
            id="two segments in front",
        ),
        pytest.param(
            "POST /v1/chat/completions",
            "POST /v1/chat/completion",
            "the path has 'completion' in place of 'completions'",
            id="one letter less",
        ),
        pytest.param(
            "POST /api/show",
            "POST /api/pull",
            "the path has 'pull' in place of 'show'",
            id="another word",
        ),
        pytest.param(
            "POST /v1/chat/completions",
            "POST /v1/completions",
            "the path lacks the segment 'chat' here",
            id="segment is missing inside",
        ),
        pytest.param(
            "POST /v1/embeddings",
            "POST /v1/text/embeddings",
            "the path has the segment 'text' more here",
            id="segment too many inside",
        ),
        pytest.param(
            "GET /v1/models",
            "POST /v1/models/",
            "the method is POST here, and the path ends in a slash here",
            id="method and slash",
        ),
    ],
)
def test_near_miss_of_a_request_says_what_differs(
    endpoint: str, request_line: str, text: str
) -> None:
    miss = of_request(endpoint, request_line)
    assert miss is not None
    assert miss.text == text
    assert miss.is_near


@pytest.mark.parametrize(
    ("endpoint", "request_line"),
    [
        pytest.param("GET /v1/models", "GET /api/tags", id="another path"),
        pytest.param("GET /v1/models", "GET /", id="root"),
        pytest.param("GET /", "GET /v1/models", id="endpoint of the root"),
        pytest.param("POST /api/show", "DELETE /api/delete", id="other method and word"),
        pytest.param("POST /api/show", "POST /a/b/c/d/e", id="longer path"),
        pytest.param("GET /v1/models/{model}", "GET /x/y/a/b", id="capture, another path"),
        pytest.param("GET /{any}/show", "GET /a/b/c/show", id="capture in front takes one"),
        pytest.param("GET /", "GET /a/b/", id="root and a slash at the end"),
        pytest.param(
            "POST /v1/chat/completions", "GET /v1/completions", id="other method, segment missing"
        ),
        pytest.param("GET /v1/models/{model...}", "GET /x/y/z", id="rest of another path"),
        pytest.param("*", "PROPFIND /x", id="method that nobody allows"),
    ],
)
def test_something_else_is_no_near_miss(endpoint: str, request_line: str) -> None:
    miss = of_request(endpoint, request_line)
    assert miss is not None
    assert not miss.is_near


@pytest.mark.parametrize(
    ("endpoint", "requests"),
    [
        pytest.param(
            "POST /v1/chat/completions",
            [
                "GET /v1/chat/completions",
                "POST /v1/completions",
                "POST /v1/chat/other",
                "POST /api/x",
            ],
            id="method, segment, other segment, other path",
        ),
        pytest.param(
            "GET /api/tags",
            ["GET /api/tag", "GET /api/ps", "POST /api/tag", "POST /api/ps"],
            id="path before method and path",
        ),
        pytest.param(
            "GET /api/tags", ["GET /api/tag", "GET /api/ps"], id="similar word before another"
        ),
    ],
)
def test_likelier_mistakes_are_nearer(endpoint: str, requests: list[str]) -> None:
    misses = [of_request(endpoint, one) for one in requests]
    distances = [miss.distance for miss in misses if miss]
    assert distances == sorted(distances)
    assert len(distances) == len(requests)
    assert distances[0] < distances[-1]


# What is a miss is asked of the policy's own values.

words = st.sampled_from(["a", "b", "ab", "aB", "v1", "models"])
patterns = st.builds(
    lambda domain, path, rest: PeerPattern.parse("/".join([f"spiffe://{domain}", *path, *rest])),
    st.sampled_from(["e.org", "f.org"]),
    st.lists(words | st.sampled_from(["*", "a*"]), max_size=2),
    st.sampled_from([["**"], ["*"], ["a"]]),
)
peers = st.builds(
    lambda domain, path: SpiffeId.parse("/".join([f"spiffe://{domain}", *path])),
    st.sampled_from(["e.org", "f.org"]),
    st.lists(words, max_size=4),
)
endpoints = st.just(Endpoint.parse("*")) | st.builds(
    lambda method, path, last: Endpoint.parse(f"{method} /{'/'.join([*path, last])}"),
    st.sampled_from(METHODS),
    st.lists(words | st.just("{x}"), max_size=3),
    st.sampled_from(["a", "v1", "", "{x}", "{x...}"]),
)
paths = st.builds(
    lambda parts, end: RequestPath.parse("/" + "/".join([*parts, end])),
    st.lists(words | st.sampled_from(["a%2Fb", "%61", "a%2Eb"]), max_size=4),
    st.sampled_from(["", "a", "ab", "models", "a%2Fb"]),
)
methods = st.sampled_from([*METHODS, "PROPFIND"])


@given(patterns, peers)
@bounded
def test_peer_is_missed_when_the_pattern_does_not_match(
    pattern: PeerPattern, peer: SpiffeId
) -> None:
    miss = peer_miss(pattern, peer)
    assert (miss is None) == pattern.matches(peer)
    assert miss is None or (miss.text and miss.text.isprintable())


@given(endpoints, methods, paths)
@bounded
def test_request_is_missed_when_the_endpoint_does_not_match(
    endpoint: Endpoint, method: str, path: RequestPath
) -> None:
    miss = endpoint_miss(endpoint, method, path)
    assert (miss is None) == endpoint.matches(method, path)
    assert miss is None or (miss.text and miss.text.isprintable())


@st.composite
def named(draw: st.DrawFn) -> tuple[Endpoint, str]:
    """An endpoint and a path that it names."""
    endpoint = draw(endpoints.filter(lambda one: one.method != "*"))
    parts = [draw(words) if one.startswith("{") else one for one in endpoint.segments]
    if endpoint.takes_rest:
        parts += draw(st.lists(words, max_size=2))
    return endpoint, "/" + "/".join(parts)


@given(named(), st.sampled_from(METHODS))
@bounded
def test_other_method_of_the_same_path_is_always_near(
    found: tuple[Endpoint, str], method: str
) -> None:
    endpoint, path = found
    miss = endpoint_miss(endpoint, method, RequestPath.parse(path))
    if method not in endpoint.methods():
        assert miss == Miss(1, f"the method is {method} here")


@given(named(), st.sampled_from(["/{}/", "/proxy/{}", "/v1/{}", "/{}/x"]), st.booleans())
@bounded
def test_slip_in_a_path_that_is_named_is_always_near(
    found: tuple[Endpoint, str], slip: str, swap_case: bool
) -> None:
    endpoint, path = found
    slipped = path.swapcase() if swap_case else slip.format(path[1:])
    assume("//" not in slipped and endpoint.segments[0] != "")
    if endpoint.segments[0].startswith("{"):
        return  # a capture in front takes what is put in front: another path altogether
    miss = endpoint_miss(endpoint, endpoint.method, RequestPath.parse(slipped))
    assert miss is None or miss.is_near
