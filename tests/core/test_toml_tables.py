"""TOML tables: one pass from text to domain values, and a problem for all that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import pytest

from sidecar.core.errors import ConfigError
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.toml_tables import (
    FileMode,
    FilePath,
    KeyMode,
    Name,
    Problem,
    ProblemsError,
    load_toml,
    read_table,
    read_tables,
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
    files: Mapping[TrustDomain, FilePath] = msgspec.field(default_factory=dict)


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


# A table whose keys are the user's own.


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('files = { "e.org" = "a", "f.org" = "b" }', id="inline"),
        pytest.param('[files]\n"e.org" = "a"\n"f.org" = "b"', id="a table"),
        pytest.param('files."e.org" = "a"\nfiles."f.org" = "b"', id="dotted keys"),
    ],
)
def test_keys_of_ones_own_become_domain_values_too(text: str) -> None:
    sample, problems = read(f'name = "n"\n{text}')
    assert not problems
    assert sample is not None
    assert sample.files == {TrustDomain("e.org"): "a", TrustDomain("f.org"): "b"}


def test_no_keys_of_ones_own_are_the_default() -> None:
    assert read('name = "n"\nfiles = {}') == (Sample(name="n"), [])


@pytest.mark.parametrize(
    ("value", "where", "expected"),
    [
        pytest.param("3", "[sample] files", "a table", id="number"),
        pytest.param('["a"]', "[sample] files", "a table", id="list"),
        pytest.param('{ "e.org" = 3 }', "[sample] files 'e.org'", "a string", id="bad value"),
        pytest.param('{ "e.org" = "" }', "[sample] files 'e.org'", "a path", id="empty value"),
        pytest.param('{ e = { org = "a" } }', "[sample] files 'e'", "a string", id="no quotes"),
    ],
)
def test_bad_value_of_a_key_of_ones_own_is_located(value: str, where: str, expected: str) -> None:
    sample, (problem,) = read(f'name = "n"\nfiles = {value}')
    assert sample is None
    assert (problem.where, problem.expected) == (where, expected)


@pytest.mark.parametrize("key", ["", "E.org", "e org", "spiffe://e.org/a", "x" * 256])
def test_bad_key_of_ones_own_is_located(key: str) -> None:
    sample, (problem,) = read(f'name = "n"\nfiles = {{ "{key}" = "a" }}')
    assert sample is None
    assert problem.where == "[sample] files: key"
    assert problem.found == shown(key)


def test_every_bad_entry_of_a_table_is_told() -> None:
    _, problems = read('name = "n"\nfiles = { "E" = 1, "f" = 2, "g" = "a" }')
    assert [problem.where for problem in problems] == [
        "[sample] files: key",
        "[sample] files 'E'",
        "[sample] files 'f'",
    ]


# Tables of which there may be several.


def read_all(text: str) -> tuple[list[Sample], list[Problem]]:
    problems: list[Problem] = []
    document = load_toml(text, "f.toml")
    return read_tables(Sample, "sample", document, "f.toml", problems), problems


def test_tables_are_read_in_their_order() -> None:
    samples, problems = read_all('[[sample]]\nname = "b"\n[[sample]]\nname = "a"')
    assert not problems
    assert [one.name for one in samples] == ["b", "a"]


def test_no_tables_are_none() -> None:
    assert read_all("") == ([], [])


def test_problem_says_in_which_table_it_is() -> None:
    samples, problems = read_all(
        '[[sample]]\nname = 1\n[[sample]]\nname = "a"\n[[sample]]\nname = "b"\ncount = 0'
    )
    assert [one.name for one in samples] == ["a"]
    assert [problem.where for problem in problems] == ["[[sample]] #1 name", "[[sample]] #3 count"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('[sample]\nname = "a"', id="one bracket"),
        pytest.param("sample = 3", id="number"),
        pytest.param('sample = "a"', id="text"),
    ],
)
def test_one_table_where_several_may_be_is_told_how_to_write_it(text: str) -> None:
    samples, (problem,) = read_all(text)
    assert samples == []
    assert (problem.where, problem.expected) == ("[sample]", "a list of tables")
    assert problem.hint == "write [[sample]] with two brackets"


def test_what_is_no_table_among_tables_is_refused() -> None:
    samples, (problem,) = read_all('sample = [{ name = "a" }, 3]')
    assert [one.name for one in samples] == ["a"]
    assert (problem.where, problem.expected) == ("[[sample]] #2", "a table")


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


@pytest.mark.parametrize("text", ["0644", "0604", "0601", "0660", "0700"])
def test_key_is_for_its_owner_and_may_be_read_by_a_group(text: str) -> None:
    assert KeyMode.parse("0640") == 0o640
    with pytest.raises(ValueError, match='at most "0640"'):
        KeyMode.parse(text)


@pytest.mark.parametrize("text", ["0000", "0040", "0200", "0240", "0044", "000"])
@pytest.mark.parametrize("kind", [FileMode, KeyMode])
def test_mode_with_which_the_owner_cannot_read_is_refused(kind: type[FileMode], text: str) -> None:
    with pytest.raises(ValueError, match="octal mode"):
        kind.parse(text)


@pytest.mark.parametrize("text", ["", " ", "\t", "a\nb", "a\0b", "\u2028", "\x1b[1m"])
def test_name_that_would_break_a_line_is_refused(text: str) -> None:
    assert Name.parse("a b") == "a b"
    with pytest.raises(ValueError, match="expected printable"):
        Name.parse(text)


@pytest.mark.parametrize("text", ["", "\0", "a\0"])
def test_path_that_no_system_takes_is_refused(text: str) -> None:
    assert FilePath.parse("a b/ä\n") == "a b/ä\n"
    with pytest.raises(ValueError, match="expected a path"):
        FilePath.parse(text)


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
