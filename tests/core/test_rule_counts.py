"""Counts by rule: statuses are one of few words, rules of the policy stay, others are bounded."""

from __future__ import annotations

import pytest

from sidecar.core.rule_counts import MAX_RULES, NO_RULE, OTHER_RULES, Finished, RuleCounts, Rules


def served(rule: str = "a", status: int = 200) -> Finished:
    return Finished(rule, status, seconds=2.0, first_byte_seconds=0.2, served=True)


def counts(rules: Rules, name: str) -> RuleCounts:
    return dict(rules.items())[name]


def names(rules: Rules) -> set[str]:
    return {name for name, _ in rules.items()}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(200, "200", id="known"),
        pytest.param(429, "429", id="known, ours"),
        pytest.param(299, "2xx", id="unknown"),
        pytest.param(599, "5xx", id="the last one of HTTP"),
        pytest.param(0, "none", id="no answer"),
        pytest.param(99, "other", id="below"),
        pytest.param(600, "other", id="above"),
        pytest.param(-1, "other", id="negative"),
    ],
)
def test_status_is_one_of_few_words(status: int, code: str) -> None:
    rules = Rules(["a"])
    rules.finished(served(status=status))
    assert dict(counts(rules, "a").codes) == {(code, "answered"): 1}


def test_times_are_of_what_was_served() -> None:
    rules = Rules(["a"])
    rules.finished(served())
    rules.finished(Finished("a", 429, seconds=0.001, outcome="refused"))
    rules.finished(
        Finished("a", 0, seconds=3.0, outcome="cut", served=True)
    )  # before the first byte
    of_a = counts(rules, "a")
    assert (of_a.duration.count, of_a.duration.total_seconds) == (2, 5.0)
    assert (of_a.first_byte.count, of_a.first_byte.total_seconds) == (1, 0.2)
    assert dict(of_a.codes) == {
        ("200", "answered"): 1,
        ("429", "refused"): 1,
        ("none", "cut"): 1,
    }


def test_request_that_no_rule_decided_has_none() -> None:
    rules = Rules(["a"])
    rules.finished(Finished(None, 403, seconds=0.001))
    rules.finished(Finished(None, 200, seconds=0.001, served=True))  # an answer of our own
    assert dict(counts(rules, NO_RULE).codes) == {("403", "answered"): 1, ("200", "answered"): 1}
    assert not counts(rules, NO_RULE).duration.count


def test_rule_that_went_while_its_request_ran_keeps_its_counts() -> None:
    rules = Rules(["a"])
    rules.finished(served())
    rules.replace(["b"])
    rules.finished(served())
    assert counts(rules, "a").codes["200", "answered"] == 2


def test_request_of_a_rule_that_had_none_and_went_is_among_the_others() -> None:
    rules = Rules(["a"])
    rules.replace(["b"])
    rules.finished(served("a"))
    assert names(rules) == {OTHER_RULES}


def test_rules_that_went_are_dropped_when_there_are_too_many() -> None:
    rules = Rules()
    for number in range(MAX_RULES + 1):
        rules.replace([f"rule-{number}", "kept"])
        rules.finished(served(f"rule-{number}"))
        rules.finished(served("kept"))
        rules.finished(Finished(None, 403, seconds=0.0))
    assert len(names(rules)) <= MAX_RULES + 2
    assert {"kept", NO_RULE, f"rule-{MAX_RULES}"} <= names(rules)
    assert counts(rules, "kept").codes["200", "answered"] == MAX_RULES + 1


def test_policy_with_many_rules_keeps_all_of_its_own() -> None:
    many = [f"rule-{number}" for number in range(2 * MAX_RULES)]
    rules = Rules(many)
    for name in many:
        rules.finished(served(name))
    rules.replace(many)
    assert names(rules) == set(many)
    assert OTHER_RULES not in names(rules)


def test_names_that_come_and_go_never_add_up() -> None:
    rules = Rules()
    for number in range(10 * MAX_RULES):
        rules.replace([f"rule-{number}"])
        rules.finished(served(f"rule-{number}"))
    assert len(names(rules)) <= MAX_RULES + 1
