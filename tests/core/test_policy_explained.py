"""Explanations: the verdict is the policy's, each rule has its part, near misses come first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.config import Config, parse_config
from sidecar.core.endpoint import METHODS, Endpoint
from sidecar.core.policy import PeerPattern, Policy, Rule
from sidecar.core.policy_explained import (
    Considered,
    Explanation,
    Request,
    explain_peer,
    explain_request,
    limits_in_words,
)
from sidecar.core.policy_file import parse_policy
from sidecar.core.spiffe_id import SpiffeId

bounded = settings(max_examples=400, deadline=None, derandomize=True, database=None)
TRAEFIK = "spiffe://e.org/workload/traefik"
POLICY = """
[[deny]]
name = "retired"
peers = ["spiffe://e.org/workload/old-*"]
[[allow]]
name = "apps"
peers = ["spiffe://e.org/app/*", "spiffe://e.org/workload/old-traefik"]
endpoints = ["preset:openai"]
[[allow]]
name = "traefik"
peers = ["spiffe://e.org/workload/traefik"]
endpoints = ["preset:ollama", "GET /api/ps"]
requests_per_second = 2.5
[[allow]]
name = "workloads"
peers = ["spiffe://e.org/workload/*"]
endpoints = ["GET /v1/models", "GET /api/name/{name}"]
[[allow]]
name = "monitoring"
peers = ["spiffe://e.org/monitoring"]
"""


def config(more: str = "", mode: str = "http") -> Config:
    text = (
        '[listener]\naddress = "127.0.0.1:0"\n[policy]\nfile = "p"\n'
        f'[backend]\naddress = "127.0.0.1:11434"\nmode = "{mode}"\n{more}'
    )
    read = parse_config(text, "sidecar.toml")
    assert isinstance(read, Config)
    return read


def asked(request: str, peer: str = TRAEFIK, policy: str = POLICY, more: str = "") -> Explanation:
    method, _, path = request.partition(" ")
    rules = parse_policy(policy, "policy.toml")
    return explain_request(rules, SpiffeId.parse(peer), Request(method, path), config(more))


def admitted(peer: str, mode: str = "http") -> Explanation:
    return explain_peer(parse_policy(POLICY, "p"), SpiffeId.parse(peer), config(mode=mode))


def parts(explanation: Explanation) -> list[tuple[str, str]]:
    return [(one.rule, one.outcome) for one in explanation.considered]


# Verdicts.


def test_allowed_request_tells_rule_endpoint_and_limits() -> None:
    assert asked("POST /v1/chat/completions").lines() == [
        "ALLOWED by rule 'traefik': POST /v1/chat/completions",
        "  peer      spiffe://e.org/workload/traefik",
        "  named by  spiffe://e.org/workload/traefik",
        "  endpoint  POST /v1/chat/completions",
        "  limits    2.5 requests a second and 3 at once, 192 running at a time, "
        "bodies of at most 104857600 bytes",
        "  browsers  the model server judges a page of another origin (Ollama: 403); [cors] is for "
        "such pages",
        "rules, in the order they are tried:",
        "  deny  'retired': names other peers; nearest spiffe://e.org/workload/old-*: "
        "the peer has 'traefik' in place of 'old-*'",
        "  allow 'apps': allows this request, but to other peers; nearest "
        "spiffe://e.org/workload/old-traefik: the peer has 'traefik' in place of 'old-traefik'",
        "  allow 'traefik': decides; spiffe://e.org/workload/traefik names the peer",
        "  allow 'workloads': not reached",
        "  allow 'monitoring': not reached",
    ]


def test_pages_of_other_origins_are_explained_where_the_model_server_judges_them() -> None:
    def told(request: str, more: str = "") -> bool:
        return any(
            "browsers  the model server" in line for line in asked(request, more=more).lines()
        )

    assert told("POST /v1/chat/completions")
    assert not told("POST /v1/chat/completions", '[cors]\nallow_origins = ["https://ui.example"]\n')
    assert not told("POST /api/pull")


def test_what_a_rule_passes_is_told() -> None:
    policy = POLICY.replace("requests_per", 'pass_headers = ["X-Session-ID"]\nrequests_per')
    lines = asked("POST /v1/chat/completions", policy=policy).lines()
    assert "  passes    x-session-id" in lines


def test_server_as_a_whole_is_answered_by_the_sidecar() -> None:
    assert asked("OPTIONS *").verdict == "ALLOWED by rule 'traefik': OPTIONS *"
    assert not asked("GET *").allowed
    assert not asked("OPTIONS *", peer="spiffe://e.org/stranger").allowed


def test_refused_request_tells_near_misses_before_the_rules() -> None:
    assert asked("POST /api/tags").lines() == [
        "REFUSED: POST /api/tags: no rule for this peer names this endpoint",
        "  peer      spiffe://e.org/workload/traefik",
        "near misses:",
        "  allow 'traefik' has GET /api/tags: the method is POST here",
        "rules, in the order they are tried:",
        "  deny  'retired': names other peers; nearest spiffe://e.org/workload/old-*: "
        "the peer has 'traefik' in place of 'old-*'",
        "  allow 'apps': names other peers; nearest spiffe://e.org/workload/old-traefik: "
        "the peer has 'traefik' in place of 'old-traefik'",
        "  allow 'traefik': names the peer, but none of its 9 endpoints names the request",
        "  allow 'workloads': names the peer, but none of its 2 endpoints names the request",
        "  allow 'monitoring': names other peers; nearest spiffe://e.org/monitoring: "
        "the peer's path has 2 segments, the pattern's 1",
    ]


def test_denied_peer_is_told_what_would_have_allowed_it() -> None:
    found = asked("GET /v1/models", "spiffe://e.org/workload/old-traefik")
    assert found.verdict == "REFUSED: GET /v1/models: denied by rule 'retired'"
    assert parts(found) == [
        ("retired", "decides"),
        ("apps", "beaten"),
        ("traefik", "other peers"),
        ("workloads", "beaten"),
        ("monitoring", "other peers"),
    ]
    assert found.considered[1].why == "would allow it, but deny 'retired' beats it"
    assert found.near_misses == ()


def test_denied_peer_is_not_told_of_rules_that_would_not_have_helped() -> None:
    found = asked("GET /api/ps", "spiffe://e.org/workload/old-traefik")
    assert ("apps", "other endpoints") in parts(found)
    assert "beaten" not in dict(parts(found)).values()


def test_stranger_is_told_the_nearest_patterns_first() -> None:
    found = asked("GET /v1/models", "spiffe://e.org/App/a")
    assert found.verdict == "REFUSED: GET /v1/models: no allow rule names this peer"
    assert found.near_misses == (
        "allow 'apps' has spiffe://e.org/app/*: "
        "the peer has 'App' in place of 'app': upper and lower case matter",
    )


def test_rule_without_endpoints_is_told_so() -> None:
    found = asked("GET /v1/models", "spiffe://e.org/monitoring")
    assert ("monitoring", "other endpoints") in parts(found)
    assert found.considered[-1].why == "names the peer, but it has no endpoints"


@pytest.mark.parametrize("request_line", ["GET /health", "HEAD /health"])
def test_health_is_answered_by_the_sidecar_for_every_peer_that_is_admitted(
    request_line: str,
) -> None:
    found = asked(request_line, "spiffe://e.org/monitoring")
    assert found.verdict == f"ALLOWED by rule 'monitoring': {request_line}"
    assert "the sidecar's own" in found.details[1]
    assert parts(found)[-1] == ("monitoring", "decides")


@pytest.mark.parametrize(
    ("request_line", "peer"),
    [
        pytest.param("GET /health", "spiffe://e.org/stranger", id="stranger"),
        pytest.param("GET /health", "spiffe://e.org/workload/old-1", id="denied peer"),
        pytest.param("POST /health", TRAEFIK, id="other method"),
        pytest.param("GET /health/", TRAEFIK, id="slash at the end"),
        pytest.param("GET /Health", TRAEFIK, id="case"),
        pytest.param("GET /%68ealth", TRAEFIK, id="escaped letter"),
        pytest.param("GET /v1/health", TRAEFIK, id="deeper"),
    ],
)
def test_what_is_not_our_health_is_left_to_the_rules(request_line: str, peer: str) -> None:
    assert not asked(request_line, peer).allowed


@pytest.mark.parametrize(
    ("request_line", "reason"),
    [
        pytest.param("get /v1/models", "a method is written in upper case", id="lower case"),
        pytest.param("CONNECT /v1/models", "CONNECT", id="CONNECT"),
        pytest.param("TRACE /v1/models", "TRACE", id="TRACE"),
        pytest.param("GET /v1/models#x", "fragment", id="fragment"),
        pytest.param("GET /v1/mod els", "request line", id="space"),
        pytest.param("GET /v1/modèles", "request line", id="beyond ASCII"),
        pytest.param("GET /v1/\udcff", "request line", id="no UTF-8"),
        pytest.param("GET v1/models", "not HTTP/1.1", id="no slash in front"),
        pytest.param("GET /a\r\nX-Spiffe-Id: b", "request line", id="line feed"),
    ],
)
def test_request_that_cannot_be_read_is_refused_before_any_rule(
    request_line: str, reason: str
) -> None:
    found = asked(request_line, policy=POLICY.replace('"GET /v1/models"', '"*"'))
    assert not found.allowed
    assert reason in found.verdict
    assert found.verdict.endswith("; no rule is asked")
    assert found.considered == ()
    assert not any(line.startswith("rules") for line in found.lines())


@pytest.mark.parametrize(
    ("request_line", "meant"),
    [
        pytest.param("GET //v1/models", "GET /v1/models", id="slash in front twice"),
        pytest.param("GET /v1//models", "GET /v1/models", id="slash inside twice"),
        pytest.param("get /v1/models", "GET /v1/models", id="method in lower case"),
    ],
)
def test_request_that_was_probably_meant_is_told_when_it_is_allowed(
    request_line: str, meant: str
) -> None:
    assert asked(request_line).near_misses == (f"allow 'traefik' allows {meant}",)


@pytest.mark.parametrize(
    "request_line",
    [
        pytest.param("GET //api/pull", id="merged, and still refused"),
        pytest.param("GET /v1/../v1/models", id="dots"),
        pytest.param("GET /v1/%252e/models", id="encoded twice"),
        pytest.param("GET /v1/%zz", id="broken escape"),
        pytest.param("post /v1/models", id="other method, and refused as such"),
    ],
)
def test_nothing_is_proposed_that_would_be_refused(request_line: str) -> None:
    found = asked(request_line)
    assert not found.allowed
    assert found.near_misses == ()


def test_near_misses_are_few_and_the_nearest_come_first() -> None:
    endpoints = ", ".join(f'"GET /v1/model{n}"' for n in range(9))
    policy = f'[[allow]]\nname = "a"\npeers = "{TRAEFIK}"\nendpoints = [{endpoints}, "GET /v1/x"]\n'
    near = asked("GET /v1/models", policy=policy).near_misses
    assert len(near) == 5
    assert all("model" in one for one in near)
    assert asked("GET /v1/y", policy=policy).near_misses[-1].endswith("'y' in place of 'model4'")


def test_a_browsers_preflight_is_explained_where_there_is_cors() -> None:
    cors = '[cors]\nallow_origins = ["https://a.org"]\n'
    assert any("preflight" in line for line in asked("OPTIONS /v1/models", more=cors).details)
    for request, more in [("OPTIONS /v1/models", ""), ("POST /v1/models", cors)]:
        assert not any("preflight" in line for line in asked(request, more=more).details)


# Peers without a request.


def test_admitted_peer_is_told_all_that_it_may_ask_for() -> None:
    found = admitted(TRAEFIK)
    assert found.verdict == f"ALLOWED by rule 'traefik': {TRAEFIK} is admitted"
    assert found.details[0].startswith("GET /health")
    assert found.details[1].startswith("by rule 'traefik', 2.5 requests a second")
    assert "  GET /api/ps" in found.details
    assert found.details[-1] == "  GET /api/name/{name}"
    assert "  POST /v1/completions" not in found.details


def test_in_mode_stream_an_admitted_peer_may_send_anything() -> None:
    found = admitted(TRAEFIK, mode="stream")
    assert found.allowed
    assert found.details == (
        'mode "stream": nobody looks into the bytes, so it may send any request',
    )


@pytest.mark.parametrize("mode", ["http", "stream"])
@pytest.mark.parametrize(
    ("peer", "verdict", "near"),
    [
        pytest.param("spiffe://e.org/workload/old-1", "denied by rule 'retired'", 0, id="denied"),
        pytest.param("spiffe://x.org/a/b", "no allow rule names this peer", 0, id="stranger"),
        pytest.param("spiffe://e.org", "no allow rule names this peer", 0, id="trust domain"),
        pytest.param(
            "spiffe://f.org/workload/traefik", "no allow rule names this peer", 2, id="elsewhere"
        ),
        pytest.param(
            "spiffe://e.org/monitorin", "no allow rule names this peer", 1, id="letter less"
        ),
    ],
)
def test_refused_peer_is_told_why(mode: str, peer: str, verdict: str, near: int) -> None:
    found = admitted(peer, mode)
    assert not found.allowed
    assert found.verdict == f"REFUSED: {peer}: {verdict}"
    assert found.details == ()
    assert len(found.near_misses) == near


# Limits.


@pytest.mark.parametrize(
    ("keys", "more", "words"),
    [
        pytest.param(
            "",
            "",
            "no rate, 192 running at a time, bodies of at most 104857600 bytes",
            id="none of its own",
        ),
        pytest.param(
            "requests_per_second = 0.2\nmax_body_bytes = 0\n",
            "",
            "0.2 requests a second and 1 at once, 192 running at a time, bodies of at most 0 bytes",
            id="burst of one at least, body of nothing",
        ),
        pytest.param(
            "requests_per_second = 10\nburst = 20\nconcurrent_requests = 8\nmax_body_bytes = 5\n",
            "",
            "10 requests a second and 20 at once, 8 running at a time, bodies of at most 5 bytes",
            id="all of its own",
        ),
        pytest.param(
            "concurrent_requests = 8\nmax_body_bytes = 5\n",
            "[limits]\nconcurrent_requests = 4\nmax_body_bytes = 3\n",
            "no rate, 3 running at a time, bodies of at most 3 bytes",
            id="the configuration has less",
        ),
    ],
)
def test_limits_are_those_that_hold(keys: str, more: str, words: str) -> None:
    text = f'[[allow]]\nname = "a"\npeers = "{TRAEFIK}"\nendpoints = "*"\n{keys}'
    (rule,) = parse_policy(text, "p").allow
    assert limits_in_words(rule, config(more)) == words


# The verdict is the policy's, whatever is asked of whatever policy.

HTTP, STREAM = config(), config(mode="stream")
words = st.sampled_from(["a", "b", "ab", "v1"])
patterns = st.builds(
    lambda path, rest: PeerPattern.parse("/".join(["spiffe://e.org", *path, *rest])),
    st.lists(words | st.just("*"), max_size=1),
    st.sampled_from([["**"], ["*"], ["a"], ["b"]]),
)
endpoints = st.sampled_from(
    ["*", "GET /a", "POST /a", "GET /a/{x}", "GET /{x...}", "HEAD /b", "GET /", "GET /health"]
).map(Endpoint.parse)
rules = st.lists(
    st.tuples(st.lists(patterns, max_size=2), st.lists(endpoints, max_size=3)), max_size=3
)
policies = st.builds(
    lambda allow, deny: Policy(
        tuple(Rule(f"a{n}", tuple(p), tuple(e)) for n, (p, e) in enumerate(allow)),
        tuple(Rule(f"d{n}", tuple(p)) for n, (p, _) in enumerate(deny)),
    ),
    rules,
    rules,
)
peers = st.lists(words, max_size=3).map(
    lambda path: SpiffeId.parse("/".join(["spiffe://e.org", *path]))
)
requests = st.builds(
    lambda method, parts: Request(method, "/" + "/".join(parts)),
    st.sampled_from([*METHODS, "PROPFIND"]),
    st.lists(st.sampled_from(["a", "b", "A", "a%2Fb", "..", "", "%zz", "health"]), max_size=3),
)


@given(policies, peers, requests)
@bounded
def test_verdict_on_a_request_is_the_policys(
    policy: Policy, peer: SpiffeId, request: Request
) -> None:
    found = explain_request(policy, peer, request, HTTP)
    decision = policy.decide_request(peer, request.method, request.path)
    admission = policy.decide(peer)
    if request.path == "/health" and request.method in ("GET", "HEAD"):
        assert found.allowed == admission.allowed
        return
    assert found.allowed == decision.allowed
    assert found.verdict.startswith("ALLOWED by rule" if decision.allowed else "REFUSED: ")
    decides = [one.rule for one in found.considered if one.outcome == "decides"]
    if decision.rule is not None:
        assert decides == [decision.rule.name]
        assert f"rule {decision.rule.name!r}" in found.verdict
        assert f"endpoint  {decision.endpoint}" in found.details
        assert found.near_misses == ()
    else:
        assert decides == ([] if admission.allowed or admission.rule is None else [admission.rule])
        assert found.verdict == f"REFUSED: {request}: {decision.reason}"


@given(policies, peers, st.sampled_from([HTTP, STREAM]))
@bounded
def test_verdict_on_a_peer_is_the_policys(policy: Policy, peer: SpiffeId, known: Config) -> None:
    found = explain_peer(policy, peer, known)
    decision = policy.decide(peer)
    assert found.allowed == decision.allowed
    decides = [one.rule for one in found.considered if one.outcome == "decides"]
    assert decides == ([] if decision.rule is None else [decision.rule])
    assert decision.rule is None or not found.near_misses


@given(policies, peers, requests)
@bounded
def test_every_rule_is_told_once_in_the_order_of_the_decision(
    policy: Policy, peer: SpiffeId, request: Request
) -> None:
    wanted = [("deny", rule.name) for rule in policy.deny]
    wanted += [("allow", rule.name) for rule in policy.allow]
    found = explain_request(policy, peer, request, HTTP)
    assert [(one.kind, one.rule) for one in found.considered] == wanted


@given(policies, peers, st.text(max_size=8), st.text(max_size=20))
@bounded
def test_no_text_of_a_request_breaks_a_line_or_the_terminal(
    policy: Policy, peer: SpiffeId, method: str, path: str
) -> None:
    found = explain_request(policy, peer, Request(method, f"/{path}"), HTTP)
    assert all(line.isprintable() for line in found.lines())


def test_rule_is_shown_with_its_kind_and_why() -> None:
    assert str(Considered("deny", "x", "decides", "why")) == "deny  'x': why"
