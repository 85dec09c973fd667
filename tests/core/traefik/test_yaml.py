"""The YAML that we print: it holds what it was given, whatever that looks like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.traefik.yaml import Noted, Value, document, quoted
from tests.printed_yaml import read_yaml

# Each would be something else without quotes, or in a template.
ODD = [
    "",
    " ",
    "on",
    "null",
    "~",
    "1e3",
    "0x10",
    "12:30:00",
    "2026-01-01",
    "- a",
    "a: b",
    "a #b",
    "&a",
    "*a",
    "!!str",
    "{a}",
    "[a]",
    "|",
    ">",
    "%a",
    "@a",
    "`a`",
    "'a'",
    'a"b',
    "a\\b",
    "\\n",
    "a\nb: c",
    "a\r\n",
    "\t",
    "\x00\x1b[31m\x7f",
    "\x85\x9f\xa0",
    "\u2028\u2029\ufeff",
    "é😀",
    "{{ .Env }}",
    "{{{{",
    "---",
    "...",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_text_is_held_as_value_key_and_item(text: str) -> None:
    values: dict[str, Value] = {"a": text, "b": [text, {"c": text}], "d": {text: {"e": text}}}
    assert read_yaml(document("head", values)) == values


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_scalar_stays_on_its_line_and_begins_no_template(text: str) -> None:
    written = quoted(text)
    assert written.isprintable()
    assert "{" not in written
    assert written[0] == written[-1] == '"'


TEXTS = st.text(max_size=20)
VALUES: st.SearchStrategy[Value] = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.integers(-(10**9), 10**9)),
    lambda inner: st.one_of(
        st.dictionaries(TEXTS, inner, min_size=1, max_size=3),
        # Of what stands in lists, Traefik has texts and mappings alone.
        st.lists(
            st.one_of(TEXTS, st.dictionaries(TEXTS, inner, min_size=1, max_size=3)), max_size=3
        ),
    ),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_whatever_is_printed_is_read_back(values: dict[str, Value]) -> None:
    assert read_yaml(document("head", values)) == values


def test_layout_is_what_a_person_would_write() -> None:
    written = document(
        "head\n\nmore",
        {
            "a": {"b": Noted("why\nand how", "c"), "yes": True, "seven": 7},
            "list": ["x", Noted("this one", {"url": "u", "weight": 1})],
            "none": {},
            "no-items": [],
        },
    )
    assert written == (
        "# head\n"
        "#\n"
        "# more\n"
        "a:\n"
        "  # why\n"
        "  # and how\n"
        '  b: "c"\n'
        '  "yes": true\n'
        "  seven: 7\n"
        "list:\n"
        '  - "x"\n'
        "  - # this one\n"
        '    url: "u"\n'
        "    weight: 1\n"
        "none: {}\n"
        "no-items: []\n"
    )


def test_comment_begins_no_template() -> None:
    assert document("{{ .Env }} {{{", {"a": 1}) == "# { { .Env }} { { {\na: 1\n"
