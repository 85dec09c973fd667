"""HCL 1 as spiffe-helper reads it: what hashicorp/hcl makes of the same text, and clear errors."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.helper_conf import Number
from sidecar.core.toml_tables import ProblemsError
from sidecar.operations.hcl import parse_hcl

FILE = "helper.conf"


def document(text: str) -> dict[str, Any]:
    return parse_hcl(text, FILE).document


def refusal(text: str) -> str:
    with pytest.raises(ProblemsError) as refused:
        document(text)
    (problem,) = refused.value.problems
    assert problem.file == FILE
    return str(problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="nothing"),
        pytest.param("# only\n/* comments */", {}, id="only comments"),
        pytest.param('a = "x"', {"a": "x"}, id="no line end at the end"),
        pytest.param('a = "x"\r\nb = "y"\r\n', {"a": "x", "b": "y"}, id="line ends of Windows"),
        pytest.param('\ta\t=\n"x"', {"a": "x"}, id="white space anywhere"),
        pytest.param('a = "x" b = "y"', {"a": "x", "b": "y"}, id="two on a line"),
        pytest.param('a = "x",\nb = "y",', {"a": "x", "b": "y"}, id="commas between keys"),
        pytest.param('"a" = "x"', {"a": "x"}, id="key in quotes"),
        pytest.param('a-b.c_d1 = "x"', {"a-b.c_d1": "x"}, id="key of all characters"),
        pytest.param('clé = "x"', {"clé": "x"}, id="key that is not ASCII"),
        pytest.param('true_name = "x"', {"true_name": "x"}, id="key that begins with a word"),
        pytest.param("a = true\nb = false", {"a": True, "b": False}, id="switches"),
        pytest.param('a = "true"', {"a": "true"}, id="no switch in quotes"),
        pytest.param(
            '# a\n// b\n/* c\n" */ a = "x" # d\nb = "y" // e\nc /* f */ = "z"',
            {"a": "x", "b": "y", "c": "z"},
            id="comments of three kinds",
        ),
        pytest.param(
            'a = "x # y // z /* w */"', {"a": "x # y // z /* w */"}, id="none in a string"
        ),
        pytest.param("a = []", {"a": []}, id="empty list"),
        pytest.param('a = ["x", "y",]', {"a": ["x", "y"]}, id="list with a comma at the end"),
        pytest.param(
            'a = [\n {b="x", c=["y"]}, # d\n {\n  b = "z"\n  c = []\n }\n]',
            {"a": [{"b": "x", "c": ["y"]}, {"b": "z", "c": []}]},
            id="list of objects with lists",
        ),
        pytest.param('a {\n b = "x"\n}', {"a": {"b": "x"}}, id="block"),
        pytest.param('a = { b = "x" }', {"a": {"b": "x"}}, id="object"),
        pytest.param("a {}", {"a": {}}, id="empty block"),
    ],
)
def test_text_is_read(text: str, expected: dict[str, Any]) -> None:
    assert document(text) == expected


@pytest.mark.parametrize(
    "text", ["0644", "644", "-1", "0", "0x1A4", "6.4", "1e3", "99999999999999999999"]
)
def test_number_stays_as_it_is_written(text: str) -> None:
    value = document(f"a = {text}\nb = 1")["a"]
    assert isinstance(value, Number)
    assert value == text


def test_text_in_quotes_is_no_number() -> None:
    assert not isinstance(document('a = "0644"')["a"], Number)


@pytest.mark.parametrize(
    ("string", "value"),
    [
        pytest.param(r"\"a b\"", '"a b"', id="quotes"),
        pytest.param(r"\\\\host\\c", r"\\host\c", id="backslashes"),
        pytest.param(r"\\\"", '\\"', id="backslash before a quote"),
        pytest.param(r"\\n", r"\n", id="backslash before a letter"),
        pytest.param(r"\a\b\f\n\r\t\v", "\a\b\f\n\r\t\v", id="control characters"),
        pytest.param(r"\x41\101\u00e9\U0001F600", "AA\xe9\U0001f600", id="numbers"),
        pytest.param(r"\xc3\xa9\303\251", "éé", id="bytes of UTF-8"),
        pytest.param("é\t'", "é\t'", id="as they are"),
        pytest.param("$HOME $(x) 5$ %{http_code}", "$HOME $(x) 5$ %{http_code}", id="of others"),
        pytest.param("${X:-y} $${z}", "${X:-y} $${z}", id="interpolation is not touched"),
        pytest.param(r'${f("a b", "\n")} \"', r'${f("a b", "\n")} "', id="nor its quotes"),
        pytest.param("${a{b{c}}d}", "${a{b{c}}d}", id="nor its braces"),
        pytest.param("${a\nb}", "${a\nb}", id="nor its line ends"),
    ],
)
def test_string_is_read(string: str, value: str) -> None:
    assert document(f'a = "{string}"\nb = "z"') == {"a": value, "b": "z"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("<<EOF\none\n  two\nEOF\n", "one\n  two\n", id="plain"),
        pytest.param('<<E\nE2\n\\n "\nE\n', 'E2\n\\n "\n', id="nothing is an escape"),
        pytest.param("<<-EOF\n  one\n    two\n  EOF\n", "one\n  two\n", id="indented"),
        pytest.param("<<-EOF\none\n  EOF\n", "one\n", id="indented less than its anchor"),
        pytest.param("<<-EOF\n    x\none\n  EOF\n", "    x\none\n", id="one line of them less"),
        pytest.param("<<EOF\nEOF\n", "", id="empty"),
        pytest.param("<<EOF\r\none\r\nEOF\r\n", "one\n", id="line ends of Windows"),
    ],
)
def test_heredoc_is_read(text: str, value: str) -> None:
    assert document(f'a = {text}b = "z"') == {"a": value, "b": "z"}


def test_key_that_is_there_twice_counts_as_in_hcl_and_is_told() -> None:
    read = parse_hcl(
        'a = "x"\nb = [1]\nc { d = "x" }\nz = "1"\na = "y"\nb = [2]\nc { e = "y" }\na = "z"', FILE
    )
    assert read.document == {"a": "z", "b": ["1", "2"], "c": {"d": "x", "e": "y"}, "z": "1"}
    assert sorted(read.repeated) == ["a", "b", "c"]


def test_key_that_is_there_once_is_not_told() -> None:
    assert parse_hcl('a = [{b = "x"}, {b = "y"}]', FILE).repeated == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('a = "x"\nb = = "y"', "line 2, column 5: found '=', expected a value", id="="),
        pytest.param(
            'a = "x"\n\nb = certs',
            "line 3, column 5: found 'certs', expected a value\n"
            '    hint: text stands in double quotes: cert_dir = "certs"',
            id="text without quotes",
        ),
        pytest.param(
            "a = 'x'", 'line 1, column 5: found "\'", expected a value', id="single quotes"
        ),
        pytest.param("a = True", "line 1, column 5: found 'True', expected a value", id="True"),
        pytest.param('a = trueb = "x"', "column 5: found 'trueb', expected a value", id="trueb"),
        pytest.param("a = null", "line 1, column 5: found 'null', expected a value", id="null"),
        pytest.param('a = "x"; b = "y"', "line 1, column 8: found ';', expected a key", id=";"),
        pytest.param('a "x"', "line 1, column 3: found '\"x\"', expected = or {", id="no ="),
        pytest.param('a b = "x"', "line 1, column 3: found 'b', expected = or {", id="label"),
        pytest.param(
            '= "x"', "line 1, column 1: found '=', expected a key or the end", id="no key"
        ),
        pytest.param('{"a": "x"}', "line 1, column 1: found '{', expected a key", id="JSON"),
        pytest.param("a", "found the end of the file, expected = or {", id="key alone"),
        pytest.param("a =", "found the end of the file, expected a value", id="no value"),
        pytest.param(
            'a = "x\nb = "y"',
            "line 1, column 5: found a string that does not end",
            id="open string",
        ),
        pytest.param(
            'a = "x\0"', "line 1, column 5: found a string that does not end", id="NUL in a string"
        ),
        pytest.param(
            'a = "${x"', "line 1, column 5: found a string that does not end", id="open {"
        ),
        pytest.param(
            'a = "x"\nb = "\\q"', "line 2, column 5: found a bad escape in a string", id="escape"
        ),
        pytest.param('a = "\\x4"', "column 5: found a bad escape in a string", id="short escape"),
        pytest.param('a = "\\777"', "column 5: found a bad escape in a string", id="no byte"),
        pytest.param('a = "\\xff"', "column 5: found a bad escape in a string", id="not UTF-8"),
        pytest.param('a = "\\ud800"', "column 5: found a bad escape in a string", id="surrogate"),
        pytest.param('a = "\\U00110000"', "found a bad escape in a string", id="no character"),
        pytest.param(
            'a = "x"\n/* b',
            "line 2, column 1: found a comment that does not end",
            id="open comment",
        ),
        pytest.param(
            "a = <<EOF\nx\nEOF", "line 1, column 5: found a heredoc that does not end", id="heredoc"
        ),
        pytest.param(
            'a = ["x" "y"]', "column 10: found '\"y\"', expected ] or a comma", id="comma"
        ),
        pytest.param(
            'a = ["x"', "found the end of the file, expected ] or a comma", id="open list"
        ),
        pytest.param(
            'a {\n b = "x"\n', "found the end of the file, expected a key or }", id="block"
        ),
        pytest.param('\ufeffa = "x"', "line 1, column 1: found '\\ufeff'", id="byte order mark"),
    ],
)
def test_text_that_is_not_hcl_is_refused_with_its_place(text: str, message: str) -> None:
    assert message in refusal(text)
