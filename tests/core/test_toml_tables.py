"""TOML tables: one pass from text to domain values, and a problem for all that does not fit."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from sidecar.core.errors import ConfigError
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.toml_tables import (
    FileMode,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    shown,
    unknown_key,
)


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One field of each kind."""

    name: str
    peer: SpiffeId | None = None
    peers: tuple[SpiffeId, ...] = ()
    words: tuple[str, ...] = ("a",)
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    kind: Literal["a", "b"] = "a"
    on: bool = False


def read(text: str) -> tuple[Sample | None, list[Problem]]:
    problems: list[Problem] = []
    table = load_toml(text, "f.toml")
    return read_table(Sample, table, "f.toml", "[sample]", problems), problems


def test_defaults_are_those_of_the_struct() -> None:
    assert read('name = "n"') == (Sample(name="n"), [])


def test_text_becomes_domain_values_in_the_same_pass() -> None:
    peer = SpiffeId.parse("spiffe://e.org/a")
    sample, problems = read('name = "n"\npeer = "spiffe://e.org/a"\npeers = ["spiffe://e.org/a"]')
    assert not problems
    assert sample == Sample(name="n", peer=peer, peers=(peer,))


def test_one_text_stands_for_a_list_of_one() -> None:
    sample, _ = read('name = "n"\npeers = "spiffe://e.org/a"')
    assert sample is not None
    assert sample.peers == (SpiffeId.parse("spiffe://e.org/a"),)


def test_empty_list_means_not_set_where_not_set_is_a_choice() -> None:
    assert read('name = "n"\npeers = []') == (Sample(name="n"), [])


def test_empty_text_means_not_set_where_not_set_is_a_choice() -> None:
    sample, problems = read('name = "n"\npeer = ""')
    assert not problems
    assert sample == Sample(name="n", peer=None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("name = 3", "a string", id="number for text"),
        pytest.param("name = true", "a string", id="boolean for text"),
        pytest.param("peer = 3", "a string", id="number for an ID"),
        pytest.param('peer = "x"', "a SPIFFE ID: it does not start with spiffe://", id="no ID"),
        pytest.param("words = []", "at least one entry", id="empty list"),
        pytest.param("peers = [3]", "a string", id="number in a list"),
        pytest.param("count = 0", "an integer, at least 1 and at most 9", id="too low"),
        pytest.param("count = 10", "an integer, at least 1 and at most 9", id="too high"),
        pytest.param("count = 1.0", "an integer, at least 1 and at most 9", id="float for int"),
        pytest.param("count = true", "an integer, at least 1 and at most 9", id="bool for int"),
        pytest.param("share = 0", "a number, above 0 and at most 1", id="bound not included"),
        pytest.param("share = nan", "a number, above 0 and at most 1", id="not a number"),
        pytest.param("share = inf", "a number, above 0 and at most 1", id="infinite"),
        pytest.param("share = false", "a number, above 0 and at most 1", id="bool for float"),
        pytest.param('kind = "c"', "'a' or 'b'", id="none of the choices"),
        pytest.param("kind = 1", "'a' or 'b'", id="number for a choice"),
        pytest.param("on = 1", "true or false", id="number for a boolean"),
        pytest.param('on = "yes"', "true or false", id="text for a boolean"),
        pytest.param("on = []", "true or false", id="list for a boolean"),
    ],
)
def test_problem_says_what_the_key_takes(line: str, expected: str) -> None:
    text = line if line.startswith("name") else f'name = "n"\n{line}'
    sample, problems = read(text)
    assert sample is None
    assert [problem.expected for problem in problems] == [expected]
    assert problems[0].where == f"[sample] {line.split(maxsplit=1)[0]}"


def test_every_bad_entry_of_a_list_is_told() -> None:
    _, problems = read('name = "n"\npeers = ["x", "spiffe://e.org/a", "y"]')
    assert [problem.found for problem in problems] == ["'x'", "'y'"]


def test_missing_key_and_unknown_key_are_told_together() -> None:
    _, problems = read("nam = 1")
    assert [problem.found for problem in problems] == ["the unknown key 'nam'", "nothing"]
    assert problems[0].hint == "did you mean 'name'?"


@pytest.mark.parametrize("value", [3, "text", [], [{}], None, True])
def test_what_is_no_table_is_refused(value: object) -> None:
    problems: list[Problem] = []
    assert read_table(Sample, value, "f.toml", "[sample]", problems) is None
    assert [problem.expected for problem in problems] == ["a table"]


def test_earlier_problems_do_not_spoil_a_good_table() -> None:
    problems = [Problem("f.toml", "", "x", "y")]
    assert read_table(Sample, {"name": "n"}, "f.toml", "[sample]", problems) is not None
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("key", "near"),
    [
        pytest.param("adress", "address", id="letter missing"),
        pytest.param("addresss", "address", id="letter twice"),
        pytest.param("adderss", "address", id="letters swapped"),
        pytest.param("modes", "mode", id="plural"),
        pytest.param("x", None, id="nothing near"),
        pytest.param("", None, id="empty key"),
    ],
)
def test_nearest_key_is_offered(key: str, near: str | None) -> None:
    problem = unknown_key("f.toml", "[t]", key, ["address", "mode"])
    assert problem.hint == (near and f"did you mean {near!r}?")
    assert problem.expected == "one of address, mode"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        pytest.param("0644", 0o644, id="everybody reads"),
        pytest.param("0600", 0o600, id="owner only"),
        pytest.param("640", 0o640, id="three digits"),
        pytest.param("0400", 0o400, id="read only"),
    ],
)
def test_mode_is_octal(text: str, mode: int) -> None:
    assert FileMode.parse(text) == mode


@pytest.mark.parametrize(
    "text", ["", "0645", "0646", "0620", "0700", "2644", "9", "0b1", "rw", "-1"]
)
def test_mode_that_lets_others_write_or_anybody_execute_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="octal mode"):
        FileMode.parse(text)


def test_toml_that_cannot_be_read_says_where() -> None:
    with pytest.raises(ProblemsError) as refused:
        load_toml("a = 1\nb = [1,\n", "f.toml")
    (problem,) = refused.value.problems
    assert problem.file == "f.toml"
    assert "syntax error" in problem.found


def test_problems_are_a_configuration_error_of_one_line_each() -> None:
    error = ProblemsError([Problem("f.toml", "[t] k", "1", "2"), Problem("g.toml", "", "3", "4")])
    assert isinstance(error, ConfigError)
    assert error.message == "f.toml: [t] k: found 1, expected 2\ng.toml: found 3, expected 4"


def test_found_value_never_begins_a_line_of_its_own_and_is_cut() -> None:
    assert shown("a\nerror: b") == r"'a\nerror: b'"
    assert len(shown("x" * 5000)) < 250
