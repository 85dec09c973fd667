"""`policy.toml`: what is read; and every problem at once, where it is and how to mend it."""

from __future__ import annotations

import pytest

from sidecar.core.endpoint import Endpoint
from sidecar.core.policy import RuleLimits
from sidecar.core.policy_file import Mode, parse_policy
from sidecar.core.presets import PRESETS
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.toml_tables import Problem, ProblemsError

ALLOW = '[[allow]]\nname = "traefik"\npeers = ["spiffe://e.org/traefik"]\n'


def problems(text: str, mode: Mode = "http") -> tuple[Problem, ...]:
    with pytest.raises(ProblemsError) as refused:
        parse_policy(text, "policy.toml", mode)
    assert all(problem.file == "policy.toml" for problem in refused.value.problems)
    return refused.value.problems


def allow(**keys: str) -> str:
    """An [[allow]] table; each value is TOML, an empty one leaves the key out."""
    keys = {"name": '"traefik"', "peers": '["spiffe://e.org/traefik"]', **keys}
    return "[[allow]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value)


def test_rules_are_read_in_their_order() -> None:
    policy = parse_policy(
        allow()
        + allow(name='"apps"', peers='["spiffe://e.org/app/*", "spiffe://f.org/**"]')
        + '[[deny]]\nname = "old"\npeers = ["spiffe://e.org/app/old-*"]\n',
        "policy.toml",
    )
    assert [rule.name for rule in policy.allow] == ["traefik", "apps"]
    assert [str(peer) for peer in policy.allow[1].peers] == [
        "spiffe://e.org/app/*",
        "spiffe://f.org/**",
    ]
    assert [rule.name for rule in policy.deny] == ["old"]
    assert policy.decide(SpiffeId.parse("spiffe://e.org/app/new")).rule == "apps"
    assert policy.decide(SpiffeId.parse("spiffe://e.org/app/old-1")).rule == "old"


def test_one_peer_needs_no_list() -> None:
    policy = parse_policy(allow(peers='"spiffe://e.org/traefik"'), "policy.toml")
    assert [str(peer) for peer in policy.allow[0].peers] == ["spiffe://e.org/traefik"]


def test_a_table_called_allow_with_one_bracket_is_explained() -> None:
    (problem,) = problems(ALLOW.replace("[[allow]]", "[allow]"))
    assert problem.where == "[allow]"
    assert problem.hint == "write [[allow]] with two brackets"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty file"),
        pytest.param("# nothing yet\n", id="comment only"),
        pytest.param("allow = []", id="empty list"),
        pytest.param("allow = []\ndeny = []", id="two empty lists"),
        pytest.param(ALLOW.replace("allow", "deny"), id="deny rules only"),
    ],
)
def test_policy_that_admits_nobody_is_refused_with_an_example(text: str) -> None:
    (problem,) = problems(text)
    assert problem.found == "no [[allow]] rule"
    assert "peers" in (problem.hint or "")


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        pytest.param(allow(name=""), "[[allow]] #1 name", "nothing", id="no name"),
        pytest.param(allow(name='""'), "[[allow]] #1 name", "''", id="empty name"),
        pytest.param(allow(name='" \\t"'), "[[allow]] #1 name", r"' \t'", id="blank name"),
        pytest.param(allow(name="3"), "[[allow]] #1 name", "3", id="number as a name"),
        pytest.param(allow(name='["a"]'), "[[allow]] #1 name", "['a']", id="list as a name"),
        pytest.param(allow(peers=""), "[[allow]] #1 peers", "nothing", id="no peers"),
        pytest.param(allow(peers="[]"), "[[allow]] #1 peers", "an empty list", id="empty peers"),
        pytest.param(allow(peers='""'), "[[allow]] #1 peers", "''", id="empty peer"),
        pytest.param(allow(peers="[3]"), "[[allow]] #1 peers", "3", id="number as a peer"),
        pytest.param(allow(peers="true"), "[[allow]] #1 peers", "True", id="boolean as peers"),
        pytest.param(allow(peers='[["x"]]'), "[[allow]] #1 peers", "['x']", id="list in a list"),
        pytest.param(allow(peers='{a = "x"}'), "[[allow]] #1 peers", "{'a': 'x'}", id="table"),
        pytest.param(allow(peers='["*"]'), "[[allow]] #1 peers", "'*'", id="star for everybody"),
        pytest.param(
            allow(peers='["spiffe://*/a"]'),
            "[[allow]] #1 peers",
            "'spiffe://*/a'",
            id="star as a trust domain",
        ),
        pytest.param(ALLOW + "[[allow]]\n[[deny]]\n", "[[allow]] #2 name", "nothing", id="second"),
        pytest.param(ALLOW + "[[deny]]\n", "[[deny]] #1 peers", "nothing", id="deny"),
        pytest.param(ALLOW + 'deny = "x"', "[[allow]] #1", "the unknown key 'deny'", id="inside"),
        pytest.param('deny = "x"\n' + ALLOW, "[deny]", "one table", id="deny is no list"),
        pytest.param("allow = [3]", "[[allow]] #1", "3", id="list of numbers"),
        pytest.param("Allow = []\n" + ALLOW, "", "the unknown key 'Allow'", id="case of a table"),
        pytest.param(
            allow(methods='["GET"]'), "[[allow]] #1", "the unknown key 'methods'", id="unread key"
        ),
        pytest.param(ALLOW * 2, "name = 'traefik'", "two rules of that name", id="name twice"),
        pytest.param(
            ALLOW + allow(peers="[]"),
            "name = 'traefik'",
            "two rules of that name",
            id="name twice and another problem of one",
        ),
        pytest.param(
            ALLOW + ALLOW.replace("allow", "deny"),
            "name = 'traefik'",
            "two rules of that name",
            id="name twice over both kinds",
        ),
    ],
)
def test_bad_rule_is_refused_and_located(text: str, where: str, found: str) -> None:
    assert (where, found) in [(problem.where, problem.found) for problem in problems(text)]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        pytest.param(ALLOW.replace("peers", "peer"), "did you mean 'peers'?", id="key"),
        pytest.param(ALLOW.replace("name", "nmae"), "did you mean 'name'?", id="letters swapped"),
        pytest.param(ALLOW + "[[alow]]", "did you mean 'allow'?", id="table"),
        pytest.param("[[dney]]\n" + ALLOW, "did you mean 'deny'?", id="table, letters swapped"),
        pytest.param(allow(endpoint='["*"]'), "did you mean 'endpoints'?", id="one endpoint"),
        pytest.param(allow(Endpoints='["*"]'), "did you mean 'endpoints'?", id="capital letter"),
        pytest.param(
            allow(request_per_second="1"), "did you mean 'requests_per_second'?", id="one request"
        ),
        pytest.param(
            allow(max_concurrent_requests="1"), "did you mean 'concurrent_requests'?", id="maximum"
        ),
        pytest.param(allow(max_body="1"), "did you mean 'max_body_bytes'?", id="no unit"),
        pytest.param(allow(trust_proxy="true"), "did you mean 'trusted_proxy'?", id="other form"),
        pytest.param(allow(burts="1"), "did you mean 'burst'?", id="burst, letters swapped"),
        pytest.param("zzz = 1\n" + ALLOW, None, id="nothing near"),
    ],
)
def test_unknown_key_comes_with_the_nearest_known_one(text: str, hint: str | None) -> None:
    assert hint in [one.hint for one in problems(text) if one.found.startswith("the unknown key")]


def test_all_problems_are_told_at_once() -> None:
    text = (
        'version = 1\n[[allow]]\nname = "a"\npeers = ["spiffe://*/a", "x", "spiffe://e.org/a"]\n'
        '[[allow]]\nname = ""\npeers = []\n[[deny]]\nnam = "b"\npeers = ["spiffe://e.org/b/"]\n'
    )
    assert [problem.where for problem in problems(text)] == [
        "",
        "[[allow]] #1 peers",
        "[[allow]] #1 peers",
        "[[allow]] #2 name",
        "[[allow]] #2 peers",
        "[[deny]] #1",
        "[[deny]] #1 name",
        "[[deny]] #1 peers",
    ]


def test_a_bad_rule_hides_no_other_problem_of_it() -> None:
    places = [problem.where for problem in problems(allow(name='""', peers="[]"))]
    assert places == ["[[allow]] #1 name", "[[allow]] #1 peers"]


def test_syntax_error_says_line_and_column() -> None:
    (problem,) = problems(ALLOW + "[[allow\n")
    assert "line 4, column 8" in problem.found


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x = " + "9" * 5000, id="a number past Python's limit"),
        pytest.param("x = " + "[" * 5000, id="brackets nested past Python's limit"),
        pytest.param("a = 1\na = 2", id="key twice"),
        pytest.param("[[allow]]\n[allow]", id="table and list of one name"),
        pytest.param("a = 2020-13-01", id="impossible date"),
        pytest.param('a = "\x00"', id="control character"),
    ],
)
def test_text_that_is_no_toml_is_a_problem_and_never_a_traceback(text: str) -> None:
    (problem,) = problems(text)
    assert problem.where == ""


# What is about single requests: endpoints, limits and the trusted proxy.


def test_rule_without_these_keys_allows_nothing_and_limits_nothing() -> None:
    (rule,) = parse_policy(ALLOW, "policy.toml").allow
    assert (rule.endpoints, rule.presets, rule.limits) == ((), (), RuleLimits())
    assert rule.trusted_proxy is False


def test_every_key_is_read() -> None:
    text = allow(
        endpoints='["preset:ollama", "GET /api/ps"]',
        requests_per_second="2.5",
        burst="20",
        concurrent_requests="8",
        max_body_bytes="1048576",
        trusted_proxy="true",
    )
    (rule,) = parse_policy(text, "policy.toml").allow
    assert rule.endpoints == (*PRESETS["ollama"], Endpoint.parse("GET /api/ps"))
    assert rule.presets == ("ollama",)
    assert rule.limits == RuleLimits(2.5, 20, 8, 1048576)
    assert rule.trusted_proxy is True


@pytest.mark.parametrize(
    ("value", "texts", "presets"),
    [
        pytest.param("[]", [], [], id="empty list"),
        pytest.param('"*"', ["*"], [], id="star without a list"),
        pytest.param('"GET /a"', ["GET /a"], [], id="one without a list"),
        pytest.param('["GET /b", "GET /a"]', ["GET /b", "GET /a"], [], id="order as written"),
        pytest.param('["GET /a", "GET /a"]', ["GET /a"], [], id="twice is once"),
        pytest.param(
            '["GET /v1/models", "preset:anthropic"]',
            [
                "GET /v1/models",
                "GET /v1/models/{model...}",
                "POST /v1/messages",
                "POST /v1/messages/count_tokens",
            ],
            ["anthropic"],
            id="preset beside an endpoint of it",
        ),
        pytest.param(
            '["preset:anthropic", "preset:anthropic"]',
            [str(one) for one in PRESETS["anthropic"]],
            ["anthropic"],
            id="preset twice",
        ),
    ],
)
def test_endpoints_are_read_in_their_order(
    value: str, texts: list[str], presets: list[str]
) -> None:
    (rule,) = parse_policy(allow(endpoints=value), "policy.toml").allow
    assert [str(one) for one in rule.endpoints] == texts
    assert list(rule.presets) == presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written(name: str) -> None:
    (rule,) = parse_policy(allow(endpoints=f'["preset:{name}"]'), "policy.toml").allow
    assert (rule.endpoints, rule.presets) == (PRESETS[name], (name,))


@pytest.mark.parametrize(
    ("key", "value", "limits"),
    [
        pytest.param("requests_per_second", "0.001", RuleLimits(0.001, 1), id="lowest rate"),
        pytest.param("requests_per_second", "10", RuleLimits(10.0, 10), id="rate, an integer"),
        pytest.param(
            "requests_per_second", "1000000", RuleLimits(1e6, 1_000_000), id="highest rate"
        ),
        pytest.param(
            "concurrent_requests", "1", RuleLimits(concurrent_requests=1), id="one at once"
        ),
        pytest.param("max_body_bytes", "0", RuleLimits(max_body_bytes=0), id="no body at all"),
        pytest.param(
            "max_body_bytes", "1099511627776", RuleLimits(max_body_bytes=1 << 40), id="largest body"
        ),
    ],
)
def test_limit_at_its_bounds_is_read(key: str, value: str, limits: RuleLimits) -> None:
    (rule,) = parse_policy(allow(**{key: value}), "policy.toml").allow
    assert rule.limits == limits


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("endpoints", '""', id="empty endpoint"),
        pytest.param("endpoints", '[""]', id="empty endpoint in a list"),
        pytest.param("endpoints", "3", id="number as endpoints"),
        pytest.param("endpoints", "[3]", id="number as an endpoint"),
        pytest.param("endpoints", "true", id="boolean as endpoints"),
        pytest.param("endpoints", '[["GET /a"]]', id="list in a list"),
        pytest.param("endpoints", '{GET = "/a"}', id="table as endpoints"),
        pytest.param("endpoints", '["/a"]', id="no method"),
        pytest.param("endpoints", '["GET"]', id="no path"),
        pytest.param("endpoints", '["GET a"]', id="no slash"),
        pytest.param("endpoints", '["get /a"]', id="method in small letters"),
        pytest.param("endpoints", '["TRACE /a"]', id="method that is never served"),
        pytest.param("endpoints", '["* /a"]', id="star as a method"),
        pytest.param("endpoints", '["GET /a?b=c"]', id="query"),
        pytest.param("endpoints", '["GET /a/*"]', id="star as a segment"),
        pytest.param("endpoints", '["GET /a/../b"]', id="two dots"),
        pytest.param("endpoints", '["GET /a%2Fb"]', id="escape"),
        pytest.param("endpoints", '["**"]', id="two stars"),
        pytest.param("endpoints", '["GET /a", "b"]', id="second of two"),
        pytest.param("endpoints", '["preset:"]', id="preset without a name"),
        pytest.param("endpoints", '["preset:all"]', id="preset that there is not"),
        pytest.param("endpoints", '["Preset:ollama"]', id="preset with a capital"),
        pytest.param("endpoints", '["GET preset:ollama"]', id="preset with a method"),
        pytest.param("endpoints", '["preset:*"]', id="preset of a star"),
        pytest.param("requests_per_second", "0", id="rate of nothing"),
        pytest.param("requests_per_second", "0.0", id="rate of nothing, with a point"),
        pytest.param("requests_per_second", "0.0009", id="rate of next to nothing"),
        pytest.param("requests_per_second", "1e-320", id="rate that nothing can be divided by"),
        pytest.param("requests_per_second", "-1", id="negative rate"),
        pytest.param("requests_per_second", "nan", id="rate that is no number"),
        pytest.param("requests_per_second", "inf", id="infinite rate"),
        pytest.param("requests_per_second", "1000001", id="rate too high"),
        pytest.param("requests_per_second", '"10"', id="rate as a string"),
        pytest.param("requests_per_second", '"10/s"', id="rate with a unit"),
        pytest.param("requests_per_second", '""', id="empty rate"),
        pytest.param("requests_per_second", "true", id="boolean as a rate"),
        pytest.param("requests_per_second", "[10]", id="list as a rate"),
        pytest.param("concurrent_requests", "0", id="no request at once"),
        pytest.param("concurrent_requests", "-1", id="negative number at once"),
        pytest.param("concurrent_requests", "1.5", id="one and a half at once"),
        pytest.param("concurrent_requests", "1000001", id="too many at once"),
        pytest.param("concurrent_requests", '"8"', id="number at once as a string"),
        pytest.param("concurrent_requests", '""', id="empty number at once"),
        pytest.param("concurrent_requests", "true", id="boolean as a number at once"),
        pytest.param("max_body_bytes", "-1", id="negative body"),
        pytest.param("max_body_bytes", "1.5", id="fraction of a byte"),
        pytest.param("max_body_bytes", "1099511627777", id="body too large"),
        pytest.param("max_body_bytes", '"1MB"', id="body with a unit"),
        pytest.param("max_body_bytes", '""', id="empty body"),
        pytest.param("max_body_bytes", "false", id="boolean as a body"),
        pytest.param("trusted_proxy", '"true"', id="proxy as a string"),
        pytest.param("trusted_proxy", '""', id="empty proxy"),
        pytest.param("trusted_proxy", "1", id="number as a proxy"),
        pytest.param("trusted_proxy", '["spiffe://e.org/a"]', id="list of proxies"),
    ],
)
def test_bad_value_is_one_problem_and_located(key: str, value: str) -> None:
    (problem,) = problems(allow(**{key: value}))
    assert problem.where == f"[[allow]] #1 {key}"
    assert problem.expected


@pytest.mark.parametrize(
    "burst",
    [
        pytest.param("0", id="of nothing"),
        pytest.param("-1", id="negative"),
        pytest.param("1.5", id="fraction"),
        pytest.param("1000001", id="too many"),
        pytest.param('"20"', id="string"),
        pytest.param('""', id="empty"),
        pytest.param("true", id="boolean"),
    ],
)
def test_bad_burst_is_refused_beside_a_rate(burst: str) -> None:
    (problem,) = problems(allow(requests_per_second="10", burst=burst))
    assert problem.where == "[[allow]] #1 burst"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("burst", "1", id="alone"),
        pytest.param("concurrent_requests", "3", id="beside another limit"),
        pytest.param("endpoints", '["*"]', id="beside endpoints"),
    ],
)
def test_burst_without_a_rate_would_limit_nothing_and_is_refused(key: str, value: str) -> None:
    (problem,) = problems(allow(**{key: value, "burst": "20"}))
    assert (problem.where, problem.found) == ("[[allow]] #1 burst", "no rate")
    assert "requests_per_second" in problem.expected


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        pytest.param("preset:olama", "preset:ollama", id="letter missing"),
        pytest.param("preset:OLLAMA", "preset:ollama", id="capitals"),
        pytest.param("preset: ollama", "preset:ollama", id="space"),
        pytest.param("preset:ollama_native", "preset:ollama-native", id="underscore"),
        pytest.param("presets:openai", "preset:openai", id="many presets"),
        pytest.param("vllm", "preset:vllm", id="name alone"),
        pytest.param("preset:antropic", "preset:anthropic", id="another letter missing"),
        pytest.param("get /a", "GET /a", id="method in small letters"),
        pytest.param("GET /a/*", "{name...}", id="star"),
        pytest.param("GET /a?b", "query", id="query"),
    ],
)
def test_typo_in_an_endpoint_comes_with_what_was_meant(entry: str, hint: str) -> None:
    (problem,) = problems(allow(endpoints=f'["{entry}"]'))
    assert problem.found == repr(entry)
    assert hint in (problem.hint or "")


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("nope", id="a word"),
        pytest.param("GET", id="a method"),
        pytest.param("/a", id="a path"),
        pytest.param("*all*", id="stars"),
        pytest.param("preset:", id="preset without a name"),
        pytest.param("preset:gpt", id="preset of another name"),
    ],
)
def test_what_resembles_no_preset_is_not_taken_for_one(entry: str) -> None:
    (problem,) = problems(allow(endpoints=f'["{entry}"]'))
    assert "preset:" not in (problem.hint or "")


def test_preset_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    (problem,) = problems(allow(endpoints='["preset:zzzz"]'))
    assert problem.hint is None
    for name in PRESETS:
        assert name in problem.expected


def test_each_bad_endpoint_of_a_list_is_a_problem() -> None:
    found = [one.found for one in problems(allow(endpoints='["a b", "GET /a", "preset:zzzz"]'))]
    assert found == ["'a b'", "'preset:zzzz'"]


KEYS = [
    pytest.param("endpoints", '["GET /a"]', id="endpoints"),
    pytest.param("endpoints", "[]", id="empty endpoints"),
    pytest.param("endpoints", '["preset:olama"]', id="bad endpoints"),
    pytest.param("requests_per_second", "1", id="requests_per_second"),
    pytest.param("burst", "1", id="burst"),
    pytest.param("concurrent_requests", "1", id="concurrent_requests"),
    pytest.param("max_body_bytes", "1", id="max_body_bytes"),
    pytest.param("trusted_proxy", "false", id="trusted_proxy"),
    pytest.param("pass_headers", '["X-Session-ID"]', id="pass_headers"),
]


@pytest.mark.parametrize(("key", "value"), KEYS)
def test_deny_rule_is_about_peers_alone(key: str, value: str) -> None:
    for mode in ("http", "stream"):
        text = allow(name='"old"', **{key: value}).replace("[[allow]]", "[[deny]]")
        (problem,) = problems(ALLOW + text, mode)
        assert problem.where == f"[[deny]] #1 {key}"
        assert problem.expected == "name and peers only"
    if key == "endpoints":
        assert "[[allow]]" in (problem.hint or "")


@pytest.mark.parametrize(("key", "value"), KEYS)
def test_what_mode_stream_cannot_enforce_is_refused_in_it(key: str, value: str) -> None:
    (problem,) = problems(allow(**{key: value}), "stream")
    assert problem.where == f"[[allow]] #1 {key}"
    assert 'mode = "http"' in (problem.hint or "")


def test_mode_stream_reads_names_and_peers_as_ever() -> None:
    text = ALLOW + '[[deny]]\nname = "old"\npeers = "spiffe://e.org/old"\n'
    policy = parse_policy(text, "policy.toml", "stream")
    assert [rule.name for rule in (*policy.allow, *policy.deny)] == ["traefik", "old"]
    assert policy.decide(SpiffeId.parse("spiffe://e.org/traefik")).allowed
    assert not policy.decide(SpiffeId.parse("spiffe://e.org/old")).allowed


def test_mode_stream_finds_the_other_problems_too() -> None:
    text = allow(peers="[]", burst="1", brust="1") + "[[deny]]\n"
    assert {problem.where for problem in problems(text, "stream")} == {
        "[[allow]] #1",
        "[[allow]] #1 burst",
        "[[allow]] #1 peers",
        "[[deny]] #1 name",
        "[[deny]] #1 peers",
    }


def test_all_problems_of_these_keys_are_told_at_once() -> None:
    text = allow(
        name="",
        endpoints='["preset:olama", "get /a"]',
        requests_per_second="0",
        burst="0",
        concurrent_requests='""',
        max_body_bytes="-1",
        trusted_proxy="3",
    )
    assert sorted(problem.where.removeprefix("[[allow]] #1 ") for problem in problems(text)) == [
        "burst",
        "concurrent_requests",
        "endpoints",
        "endpoints",
        "max_body_bytes",
        "name",
        "requests_per_second",
        "trusted_proxy",
    ]


# Headers that steer a model server.


@pytest.mark.parametrize(
    ("value", "names"),
    [
        pytest.param("", set(), id="none"),
        pytest.param("[]", set(), id="empty list"),
        pytest.param(
            '["X-Session-ID", "x_conversation_id"]', {"x-session-id", "x-conversation-id"}, id="two"
        ),
        pytest.param('"X-Override-Priority"', {"x-override-priority"}, id="one, of a pattern"),
        pytest.param(
            '["X-Override-*", "X_Amzn_SageMaker_Sess*"]',
            {"x-override-*", "x-amzn-sagemaker-sess*"},
            id="patterns",
        ),
    ],
)
def test_rule_names_the_headers_that_it_passes(value: str, names: set[str]) -> None:
    policy = parse_policy(allow(pass_headers=value), "policy.toml")
    assert policy.allow[0].pass_headers == names


@pytest.mark.parametrize(
    "name",
    [
        *("Accept", "X-Spiffe-Id", "X-Request-Id", "X-Session-Ids", "X-Override", "", "*", "X-*"),
        *("X-Override*", "X-Session-Id*", "X-Override-Rid: 1", "X-Override-Priorit\u00e9"),
        *("Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Via", "Origin"),
        *("X_Spiffe_Id", "X-Forwarded-Client-Cert", "X-Forwarded-For", "Forwarded", "X-Real-IP"),
    ],
)
def test_header_that_is_not_held_back_needs_no_passing(name: str) -> None:
    (problem,) = problems(allow(pass_headers=f'["X-Session-ID", "{name}"]'))
    assert problem.where == "[[allow]] #1 pass_headers"
    assert problem.found == repr(name)
    assert "x-conversation-id" in problem.expected


@pytest.mark.parametrize("mode", ["http", "stream"])
def test_least_connections_of_all_rules_that_name_a_peer_hold_in_both_modes(mode: Mode) -> None:
    text = """
[[allow]]
name = "first"
peers = ["spiffe://e.org/a"]
[[allow]]
name = "all"
peers = ["spiffe://e.org/*"]
connections = 7
[[allow]]
name = "narrow"
peers = ["spiffe://e.org/a"]
connections = 3
"""
    policy = parse_policy(text, "p", mode)
    of = {name: policy.decide(SpiffeId.parse(f"spiffe://e.org/{name}")) for name in "ab"}
    assert [(one.rule, one.connections) for one in of.values()] == [("first", 3), ("all", 7)]
