"""Warnings about a policy: each about what is certain, and none about what is only unusual."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.config import Config, parse_config
from sidecar.core.endpoint import METHODS, BadPathError, Endpoint, RequestPath
from sidecar.core.policy import PeerPattern, Policy, Rule
from sidecar.core.policy_file import Mode, parse_policy
from sidecar.core.policy_lint import (
    PolicyWarning,
    covers_endpoint,
    covers_peer,
    lint,
    policy_warnings,
)
from sidecar.core.presets import HEALTH_PATHS, PRESETS, SERVED_BY
from sidecar.core.spiffe_id import SpiffeId, TrustDomain

bounded = settings(max_examples=500, deadline=None, derandomize=True, database=None)
DOMAINS = frozenset({TrustDomain("e.org"), TrustDomain("f.org")})


def rule(kind: str, name: str, peers: list[str], **keys: str) -> str:
    """One table of a policy file; other keys are TOML."""
    texts = ", ".join(f'"{peer}"' for peer in peers)
    lines = [f"[[{kind}]]", f'name = "{name}"', f"peers = [{texts}]"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in keys.items())]) + "\n"


def allow(name: str, peers: list[str], *endpoints: str, **keys: str) -> str:
    texts = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    return rule("allow", name, peers, endpoints=f"[{texts}]", **keys)


def warnings(text: str, **known: str | frozenset[TrustDomain]) -> list[tuple[str, str]]:
    """Give rule and text of each warning."""
    found = lint(parse_policy(text, "policy.toml"), **known)  # type: ignore[arg-type]
    assert all(one.hint for one in found)
    return [(one.rule, one.text) for one in found]


def test_policy_that_is_shipped_has_no_warning() -> None:
    text = allow("traefik", ["spiffe://e.org/workload/traefik"], "preset:ollama", "GET /api/ps")
    text += rule("deny", "retired", ["spiffe://e.org/workload/old-*"])
    assert warnings(text, health_path="/api/version", trust_domains=DOMAINS) == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(allow("a", ["spiffe://e.org/*"], "preset:ollama"), id="one segment, no rate"),
        pytest.param(allow("a", ["spiffe://e.org/a/**"], "GET /a"), id="everything below a path"),
        pytest.param(
            allow("a", ["spiffe://e.org/a"], "GET /a") + rule("deny", "d", ["spiffe://f.org/**"]),
            id="deny of a whole trust domain",
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/a"], "GET /a", trusted_proxy="true"), id="one proxy"
        ),
        pytest.param(allow("a", ["spiffe://e.org/a"], "POST /health"), id="other method of health"),
        pytest.param(allow("a", ["spiffe://e.org/a"], "GET /{any}"), id="capture for one segment"),
        pytest.param(
            allow("a", ["spiffe://e.org/a"], "GET /{any...}"), id="capture for everything"
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/a"], "GET /a") + rule("deny", "d", ["spiffe://e.org/a/**"]),
            id="deny of what is below",
        ),
    ],
)
def test_what_may_be_meant_is_no_warning(text: str) -> None:
    assert warnings(text, health_path="/api/version", trust_domains=DOMAINS) == []


# First rule, second rule: does the first one leave anything to the second?

ANY = "spiffe://e.org/**"
ONE = "spiffe://e.org/a"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(allow("a", [ONE], "GET /x"), allow("b", [ONE], "GET /x"), id="the same"),
        pytest.param(allow("a", [ANY], "GET /x"), allow("b", [ONE], "GET /x"), id="more peers"),
        pytest.param(
            allow("a", ["spiffe://e.org/a*"], "GET /x"),
            allow("b", ["spiffe://e.org/a-*"], "GET /x"),
            id="wider star",
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/*/**"], "GET /x"),
            allow("b", ["spiffe://e.org/a/b/**"], "GET /x"),
            id="rest below a star",
        ),
        pytest.param(
            allow("a", [ONE], "GET /x", "POST /y"), allow("b", [ONE], "POST /y"), id="one of two"
        ),
        pytest.param(
            allow("a", [ONE], "preset:vllm"), allow("b", [ONE], "POST /v1/messages"), id="of preset"
        ),
        pytest.param(allow("a", [ONE], "GET /x"), allow("b", [ONE], "HEAD /x"), id="HEAD by GET"),
        pytest.param(
            allow("a", [ONE], "GET /m/{x...}"), allow("b", [ONE], "GET /m/{y}/z"), id="rest"
        ),
        pytest.param(allow("a", [ONE], "*"), allow("b", [ONE], "DELETE /x"), id="all"),
        pytest.param(
            allow("a", [ONE], "GET /x") + allow("c", [ANY], "POST /y"),
            allow("b", [ONE], "GET /x", "POST /y"),
            id="two rules share it",
        ),
        pytest.param(
            allow("a", [ONE], "GET /x") + rule("deny", "d", ["spiffe://e.org/old/**"]),
            allow("b", [ONE, "spiffe://e.org/old/x"], "GET /x"),
            id="the other peers are denied",
        ),
    ],
)
def test_rule_that_earlier_ones_leave_nothing_is_unreachable(first: str, second: str) -> None:
    texts = [text for name, text in warnings(first + second) if name == "b"]
    assert len(texts) == 1
    assert texts[0].startswith("it never decides: rules before it allow all of it ('a'")
    assert "never decides" not in str(warnings(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(allow("a", [ONE], "GET /x"), allow("b", [ANY], "GET /x"), id="fewer peers"),
        pytest.param(
            allow("a", ["spiffe://f.org/**"], "GET /x"),
            allow("b", [ANY], "GET /x"),
            id="other trust domain",
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/a-*"], "GET /x"),
            allow("b", ["spiffe://e.org/a*"], "GET /x"),
            id="narrower star",
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/*"], "GET /x"),
            allow("b", [ANY], "GET /x"),
            id="star, then rest",
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/*/**"], "GET /x"),
            allow("b", [ANY], "GET /x"),
            id="rest of two segments, then of one",
        ),
        pytest.param(
            allow("a", ["spiffe://e.org/a/**"], "GET /x"),
            allow("b", [ONE], "GET /x"),
            id="rest below, then itself",
        ),
        pytest.param(allow("a", [ONE], "GET /x"), allow("b", [ONE], "POST /x"), id="other method"),
        pytest.param(allow("a", [ONE], "HEAD /x"), allow("b", [ONE], "GET /x"), id="GET by HEAD"),
        pytest.param(allow("a", [ONE], "GET /x"), allow("b", [ONE], "GET /x/"), id="slash at end"),
        pytest.param(allow("a", [ONE], "GET /x"), allow("b", [ONE], "GET /X"), id="case"),
        pytest.param(
            allow("a", [ONE], "GET /m/x"), allow("b", [ONE], "GET /m/{y}"), id="one name, then any"
        ),
        pytest.param(
            allow("a", [ONE], "GET /m/{y}"), allow("b", [ONE], "GET /m/{y...}"), id="one, then rest"
        ),
        pytest.param(
            allow("a", [ONE], "GET /{y...}"), allow("b", [ONE], "GET /x/"), id="rest has no empty"
        ),
        pytest.param(
            allow("a", [ONE], "GET /{y...}"), allow("b", [ONE], "GET /"), id="rest is no root"
        ),
        pytest.param(
            allow("a", [ONE], "GET /m/{x...}"),
            allow("b", [ONE], "GET /m"),
            id="rest needs a segment",
        ),
        pytest.param(
            allow("a", [ONE], "*"),
            allow("b", [ONE], "GET /v1/models/{model...}"),
            id="encoded slashes pass a capture and not '*'",
        ),
        pytest.param(
            allow("a", [ONE], "GET /x"), allow("b", [ONE], "GET /x", "GET /y"), id="one of two left"
        ),
        pytest.param(
            allow("a", [ONE], "GET /x"),
            allow("b", [ONE, "spiffe://e.org/b"], "GET /x"),
            id="one peer of two left",
        ),
        pytest.param(
            allow("a", [ONE], "GET /x") + allow("c", ["spiffe://e.org/b"], "GET /y"),
            allow("b", [ONE], "GET /x", "GET /y"),
            id="what is left is another peer's",
        ),
        pytest.param(
            rule("allow", "a", [ANY]), allow("b", [ONE], "GET /x"), id="first without endpoints"
        ),
        pytest.param(
            allow("a", [ONE], "GET /x") + rule("deny", "d", ["spiffe://e.org/old/x/y"]),
            allow("b", ["spiffe://e.org/old/**"], "GET /x"),
            id="some of its peers are denied",
        ),
    ],
)
def test_rule_that_may_decide_something_is_not_called_unreachable(first: str, second: str) -> None:
    assert "never decides" not in str(warnings(first + second))


def test_rule_whose_peers_are_all_denied_is_unreachable() -> None:
    text = allow("a", ["spiffe://e.org/old/x", "spiffe://f.org/x"], "GET /x")
    denied = rule("deny", "d", ["spiffe://e.org/old/*"]) + rule("deny", "e", ["spiffe://f.org/**"])
    assert warnings(text + denied) == [("a", "it never decides: deny rules name all its peers")]
    assert warnings(text + rule("deny", "d", ["spiffe://e.org/old/*"])) == []


def test_rule_that_comes_later_takes_nothing() -> None:
    text = allow("a", [ONE], "GET /x") + allow("b", ["spiffe://e.org/*"], "GET /x")
    assert warnings(text) == []


def test_rule_without_endpoints_is_told() -> None:
    ((name, text),) = warnings(rule("allow", "a", [ONE]))
    assert name == "a"
    assert text.startswith("it has no endpoints: its peers get an answer to GET /health")
    assert warnings(rule("allow", "a", [ONE], endpoints="[]")) == [(name, text)]


def test_star_for_all_endpoints_is_told() -> None:
    ((_, text),) = warnings(allow("a", [ONE], "GET /x", "*"))
    assert text.startswith("'*' allows every endpoint")


def test_health_among_the_endpoints_is_told() -> None:
    ((_, text),) = warnings(allow("a", [ONE], "GET /x", "GET /health"))
    assert text.startswith("'GET /health' never reaches the backend")


@pytest.mark.parametrize(
    ("preset", "health_path"),
    [
        pytest.param("vllm", "/api/version", id="vLLM's, where Ollama answers"),
        pytest.param("vllm", "/v1/health", id="vLLM's, where llama-server answers"),
        pytest.param("ollama", "/health", id="Ollama's, where vLLM or llama-server answer"),
        pytest.param("ollama", "/version", id="Ollama's, where vLLM answers"),
        pytest.param("ollama", "/ping?x=1", id="the query does not matter"),
        pytest.param("ollama-native", "/health", id="Ollama's own interface"),
    ],
)
def test_preset_of_another_product_than_the_backends_is_told(preset: str, health_path: str) -> None:
    text = allow("a", [ONE], f"preset:{preset}")
    ((_, told),) = warnings(text, health_path=health_path)
    assert told.startswith(f"'preset:{preset}' is for ")
    assert health_path.partition("?")[0] in told
    assert warnings(text) == []


@pytest.mark.parametrize(
    ("preset", "health_path"),
    [
        pytest.param("ollama", "/api/version", id="Ollama's"),
        pytest.param("vllm", "/health", id="vLLM's"),
        pytest.param("openai", "/api/version", id="many serve OpenAI's"),
        pytest.param("openai", "/health", id="vLLM does, too"),
        pytest.param("anthropic", "/v1/health", id="and llama-server"),
        pytest.param("vllm", "/healthz", id="path that tells nothing"),
        pytest.param("ollama", "/", id="path that several have"),
        pytest.param("ollama", "/health/", id="other path"),
    ],
)
def test_preset_that_the_backend_may_serve_is_no_warning(preset: str, health_path: str) -> None:
    assert warnings(allow("a", [ONE], f"preset:{preset}"), health_path=health_path) == []


def test_endpoints_written_one_by_one_are_of_no_product() -> None:
    text = allow("a", [ONE], *map(str, PRESETS["vllm"]))
    assert warnings(text, health_path="/api/version") == []


def test_each_preset_has_its_products_and_health_paths_name_known_ones() -> None:
    assert SERVED_BY.keys() == PRESETS.keys()
    known = frozenset().union(*SERVED_BY.values())
    assert all(products and products <= known for products in HEALTH_PATHS.values())


def test_peers_of_another_trust_domain_are_told_once_each() -> None:
    text = allow("a", [ONE, "spiffe://x.org/a", "spiffe://x.org/b", "spiffe://y.org/a"], "GET /x")
    text += rule("deny", "d", ["spiffe://z.org/a"])
    assert warnings(text, trust_domains=DOMAINS) == [
        ("d", "z.org is not our trust domain, e.org, f.org"),
        ("a", "x.org is not our trust domain, e.org, f.org"),
        ("a", "y.org is not our trust domain, e.org, f.org"),
    ]


def test_trust_domains_that_are_not_known_are_not_spoken_of() -> None:
    text = allow("a", ["spiffe://x.org/a"], "GET /x")
    assert warnings(text, trust_domains=frozenset()) == warnings(text) == []


@pytest.mark.parametrize("peer", ["spiffe://e.org/**", "spiffe://e.org/a/*", "spiffe://e.org/a-*"])
def test_proxy_that_is_trusted_by_a_pattern_is_told(peer: str) -> None:
    told = warnings(allow("a", [ONE, peer], "GET /x", trusted_proxy="true"))
    assert told[-1][1].startswith(f"trusted_proxy for {peer}: ")
    assert told[:-1] == warnings(allow("a", [ONE, peer], "GET /x"))


@pytest.mark.parametrize("mode", ["http", "stream"])
def test_rule_for_a_whole_trust_domain_is_told(mode: Mode) -> None:
    policy = parse_policy(rule("allow", "a", [ONE, ANY, "spiffe://f.org/**"]), "p", mode)
    found = [one for one in lint(policy, mode=mode) if "admits every workload" in one.text]
    assert [one.text.split()[0] for one in found] == [ANY, "spiffe://f.org/**"]
    assert "spiffe://f.org/workload/**" in found[1].hint


def test_in_mode_stream_peers_alone_make_a_rule_unreachable() -> None:
    text = rule("allow", "a", ["spiffe://e.org/a*"]) + rule("allow", "b", [ONE])
    policy = parse_policy(text + rule("allow", "c", [ONE, "spiffe://e.org/b"]), "p", "stream")
    assert [(one.rule, one.text) for one in lint(policy, mode="stream")] == [
        ("b", "it never decides: rules before it allow all of it ('a')")
    ]


CONFIG = """
[listener]
address = "127.0.0.1:0"
[policy]
file = "policy.toml"
[backend]
address = "127.0.0.1:11434"
"""


def beside(config: str, policy: str) -> list[str]:
    """The first words of each warning about a policy beside a configuration."""
    known = parse_config(CONFIG + config, "sidecar.toml")
    assert isinstance(known, Config)
    read = parse_policy(policy, "policy.toml", known.backend.mode)
    return [" ".join(one.text.split()[:2]) for one in policy_warnings(read, known)]


OUR_ID = '[workload_api]\nspiffe_id = "spiffe://e.org/model-server"\n'


@pytest.mark.parametrize(
    ("config", "policy", "expected"),
    [
        pytest.param(
            "", allow("a", [ONE], "preset:vllm"), ["'preset:vllm' is"], id="Ollama's path is used"
        ),
        pytest.param(
            'health_path = "/health"\n', allow("a", [ONE], "preset:vllm"), [], id="vLLM's path"
        ),
        pytest.param('mode = "stream"\n', rule("allow", "a", [ONE]), [], id="stream"),
        pytest.param("", rule("allow", "a", [ONE]), ["it has"], id="http, no endpoints"),
        pytest.param(
            OUR_ID, allow("a", ["spiffe://f.org/a"], "GET /"), ["f.org is"], id="not our domain"
        ),
        pytest.param(
            OUR_ID + 'hint = "x"\n', allow("a", ["spiffe://e.org/a"], "GET /"), [], id="ours"
        ),
        pytest.param(
            'mode = "stream"\n' + OUR_ID,
            rule("allow", "a", ["spiffe://f.org/a"]),
            ["f.org is"],
            id="not our domain, stream",
        ),
        pytest.param(
            '[workload_api]\nspiffe_id = ""\n',
            allow("a", [ONE], "GET /") + allow("b", ["spiffe://f.org/a"], "GET /"),
            [],
            id="our domain is not known",
        ),
    ],
)
def test_configuration_tells_what_is_known(config: str, policy: str, expected: list[str]) -> None:
    assert beside(config, policy) == expected


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("health_path", HEALTH_PATHS)
def test_health_path_that_a_hint_proposes_ends_the_warning(preset: str, health_path: str) -> None:
    policy = parse_policy(allow("a", [ONE], f"preset:{preset}"), "policy.toml")
    for found in lint(policy, health_path=health_path):
        proposed = found.hint.split('"')[1]
        assert not lint(policy, health_path=proposed)


def test_all_warnings_are_given_in_the_order_of_the_rules() -> None:
    text = allow("a", [ANY], "*", trusted_proxy="true") + allow("b", [ONE], "GET /health")
    assert [name for name, _ in warnings(text)] == ["a", "a", "a", "b", "b"]


def test_warning_shows_rule_text_and_hint() -> None:
    assert str(PolicyWarning("a", "found", "do")) == "rule 'a': found\n    hint: do"


# What is called covered is covered: of everything that the one matches, the other misses nothing.

pattern_segments = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "a*b", "*a*"])
patterns = st.builds(
    lambda path, rest: PeerPattern.parse("/".join(["spiffe://e.org", *path, *rest])),
    st.lists(pattern_segments, max_size=2),
    st.sampled_from([["**"], ["*"], ["a"], ["b"]]),
)
peers = st.builds(
    lambda path: SpiffeId.parse("/".join(["spiffe://e.org", *path])),
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab", "abb"]), min_size=1, max_size=4),
)
endpoint_segments = st.lists(st.sampled_from(["a", "b", "{x}"]), max_size=2)
endpoints = st.one_of(
    st.just(Endpoint.parse("*")),
    st.builds(
        lambda method, path, last: Endpoint.parse(f"{method} /{'/'.join([*path, last])}"),
        st.sampled_from(["GET", "HEAD", "POST"]),
        endpoint_segments,
        st.sampled_from(["a", "b", "", "{x}", "{x...}"]),
    ),
)
paths = st.builds(
    lambda parts: "/" + "/".join(parts),
    st.lists(st.sampled_from(["a", "b", "c", "a%2Fb", "%61", "a%2Eb", ""]), max_size=3),
)
methods = st.sampled_from(METHODS)


@given(patterns, patterns, peers)
@bounded
def test_pattern_that_covers_another_names_all_its_peers(
    wide: PeerPattern, narrow: PeerPattern, peer: SpiffeId
) -> None:
    if covers_peer(wide, narrow) and narrow.matches(peer):
        assert wide.matches(peer)


@given(endpoints, endpoints, methods, paths)
@bounded
def test_endpoint_that_covers_another_names_all_its_requests(
    wide: Endpoint, narrow: Endpoint, method: str, raw: str
) -> None:
    try:
        path = RequestPath.parse(raw)
    except BadPathError:
        return
    if covers_endpoint(wide, narrow) and narrow.matches(method, path):
        assert wide.matches(method, path)


@given(patterns)
@bounded
def test_pattern_covers_itself_and_is_covered_by_the_rest_of_its_trust_domain(
    pattern: PeerPattern,
) -> None:
    assert covers_peer(pattern, pattern)
    assert covers_peer(PeerPattern.parse("spiffe://e.org/**"), pattern)


@given(endpoints)
@bounded
def test_endpoint_covers_itself(endpoint: Endpoint) -> None:
    assert covers_endpoint(endpoint, endpoint)


rules = st.builds(
    lambda peers, endpoints: (tuple(peers), tuple(endpoints)),
    st.lists(patterns, min_size=1, max_size=2),
    st.lists(endpoints, max_size=3),
)
named = st.lists(rules, max_size=4).map(
    lambda found: tuple(Rule(str(at), *one) for at, one in enumerate(found))
)


@given(named, st.lists(patterns, max_size=2), st.lists(st.tuples(peers, methods, paths)))
@bounded
def test_rule_that_is_called_unreachable_never_decides(
    allowing: tuple[Rule, ...],
    denied: list[PeerPattern],
    requests: list[tuple[SpiffeId, str, str]],
) -> None:
    policy = Policy(allowing, (Rule("deny", tuple(denied)),))
    unreachable = {one.rule for one in lint(policy) if one.text.startswith("it never decides")}
    for peer, method, path in requests:
        decision = policy.decide_request(peer, method, path)
        assert decision.rule is None or decision.rule.name not in unreachable
        assert policy.decide(peer).rule not in unreachable


@given(named, st.lists(patterns, max_size=2), st.lists(peers))
@bounded
def test_rule_that_is_called_unreachable_in_mode_stream_admits_nobody(
    allowing: tuple[Rule, ...], denied: list[PeerPattern], asking: list[SpiffeId]
) -> None:
    policy = Policy(allowing, (Rule("deny", tuple(denied)),))
    found = lint(policy, mode="stream")
    unreachable = {one.rule for one in found if one.text.startswith("it never decides")}
    assert all(policy.decide(peer).rule not in unreachable for peer in asking)
