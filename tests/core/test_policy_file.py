"""`policy.toml`: what is read; and every problem at once, where it is and how to mend it."""

from __future__ import annotations

import pytest

from sidecar.core.policy_file import parse_policy
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.toml_tables import Problem, ProblemsError

ALLOW = '[[allow]]\nname = "traefik"\npeers = ["spiffe://e.org/traefik"]\n'


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ProblemsError) as refused:
        parse_policy(text, "policy.toml")
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
            allow(endpoints='["*"]'), "[[allow]] #1", "the unknown key 'endpoints'", id="unread key"
        ),
        pytest.param(ALLOW * 2, "name = 'traefik'", "two rules of that name", id="name twice"),
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
