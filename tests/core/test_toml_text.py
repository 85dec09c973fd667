"""Lines of TOML that are written: whatever goes in comes back out of a TOML parser."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.toml_text import keys, off, quoted

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_string_comes_back_from_one_line(text: str) -> None:
    line = f"key = {quoted(text)}"
    assert "\n" not in line
    assert "\r" not in line
    assert tomllib.loads(line) == {"key": text}


@given(st.lists(TEXT, min_size=1))
def test_list_comes_back_however_long(items: list[str]) -> None:
    assert tomllib.loads("\n".join(keys(key=items))) == {"key": items}


@given(st.lists(TEXT, min_size=1))
def test_what_is_off_is_a_comment_line_by_line(items: list[str]) -> None:
    lines = keys(name=items[0] or "x", key=items)
    hidden = "\n".join(off(lines))
    assert tomllib.loads(hidden) == {}
    assert [line.removeprefix("# ") for line in hidden.split("\n")] == lines


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("a b", '"a b"', id="plain"),
        pytest.param('say "hi"', r'"say \"hi\""', id="quotes"),
        pytest.param("a\\b", r'"a\\b"', id="backslash"),
        pytest.param("a\nb\x7f", r'"a\u000ab\u007f"', id="control characters"),
        pytest.param("\U0001f600é", '"\U0001f600é"', id="not ASCII"),
    ],
)
def test_string_is_written_so_that_a_person_can_read_it(text: str, written: str) -> None:
    assert quoted(text) == written


def test_what_is_not_set_leaves_no_line() -> None:
    assert keys(a=None, b="", c=False, d=[], e=()) == []
    assert keys(a="x", b=True, c=["y"]) == ['a = "x"', "b = true", 'c = ["y"]']


def test_long_list_has_a_line_for_each_item() -> None:
    item = "x" * 60
    assert keys(key=[item, item]) == ["key = [", f'    "{item}",', f'    "{item}",', "]"]


def test_comment_that_is_one_stays_as_it_is() -> None:
    assert off(["# why", "a = 1"]) == ["# why", "# a = 1"]
