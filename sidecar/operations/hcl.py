"""HCL 1 text -> dictionary: the language of spiffe-helper's configuration.

Gets text; gives what it says, or raises `ProblemsError` with line and column. HCL 1 and not 2,
which reads `0644` as the decimal 644 and `${...}` in a string as an expression. Numbers stay text,
since one with a leading 0 is octal and the reader of a mode has to know. A key that stands there
twice counts as in HCL 1: lists are joined, objects merged, of other values the last one counts.
Left out are HCL's other form, JSON, and blocks with labels, for which spiffe-helper has no use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from sidecar.core.helper_conf import Number
from sidecar.core.toml_tables import Problem, ProblemsError

# What stands between ${ and } is kept as it is, quotes included; deeper than this, nobody nests.
_BRACES = r"[^{}\x00]*"
for _ in range(4):
    _BRACES = rf"(?:[^{{}}\x00]|\{{{_BRACES}\}})*"
_INTERPOLATION = rf"\$\{{{_BRACES}\}}"

_GRAMMAR = rf"""
start: entry*
entry: key ("=" value | table) ","?
key: IDENTIFIER -> identifier
   | STRING -> string
?value: STRING -> string
      | HEREDOC -> heredoc
      | NUMBER -> number
      | BOOL -> boolean
      | items
      | table
items: "[" (value ("," value)* ","?)? "]"
table: "{{" entry* "}}"

IDENTIFIER: /[^\W\d][\w.-]*/
BOOL.1: /(true|false)(?![\w.-])/
NUMBER: /-?(0[xX][0-9a-fA-F]+|[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?)/
STRING: /"({_INTERPOLATION}|\\[^\n\x00]|\$(?!\{{)|[^"\\$\n\x00])*"/
HEREDOC: /<<-?(?P<anchor>\w+)\n([^\n\x00]*\n)*?[ \t]*(?P=anchor)\n/

%ignore /[ \t\r\n]+/
%ignore /(#|\/\/)[^\n]*/
%ignore /\/\*(.|\n)*?\*\//
"""
_PART = re.compile(
    rf"(?P<kept>{_INTERPOLATION})|"
    r"\\(?:(?P<plain>[abfnrtv\\\"])|(?P<octal>[0-7]{3})|x(?P<byte>[0-9a-fA-F]{2})"
    r"|u(?P<rune>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<bad>.))"
)
_PLAIN = dict(zip('abfnrtv\\"', '\a\b\f\n\r\t\v\\"', strict=True))

_VALUE = {"STRING", "NUMBER", "BOOL"}
_WORDS = {
    "IDENTIFIER": "a key",
    "EQUAL": "=",
    "LBRACE": "{",
    "RBRACE": "}",
    "RSQB": "]",
    "COMMA": "a comma",
    "$END": "the end",
}
# What begins with a character and is wrong further on.
_BEGUN = {
    '"': ("a string that does not end on its line", 'a " at its end, and \\" for one inside'),
    "/": ("a comment that does not end", "*/"),
    "<": ("a heredoc that does not end", "its anchor alone on a line"),
}


@dataclass(frozen=True, slots=True)
class Hcl:
    """What a file says, and the keys that it says more than once."""

    document: dict[str, Any]
    repeated: tuple[str, ...] = ()


def parse_hcl(text: str, file: str) -> Hcl:
    """Read HCL 1, or raise `ProblemsError` with the first thing that is none."""
    values = _Values(file)
    parser = Lark(_GRAMMAR, parser="lalr", transformer=values)
    text = text.replace("\r\n", "\n")
    try:
        document = cast("dict[str, Any]", parser.parse(text))
    except UnexpectedInput as exc:
        raise ProblemsError([_problem(exc, file)]) from exc
    return Hcl(document, tuple(dict.fromkeys(values.repeated)))


class _Values(Transformer[Token, Any]):
    """Gives the value of each rule of the grammar; the names are the grammar's."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file
        self.repeated: list[str] = []

    def table(self, entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in entries:
            before = table.get(key)
            if key in table:
                self.repeated.append(key)
            if isinstance(before, list) and isinstance(value, list):
                table[key] = before + value
            elif isinstance(before, dict) and isinstance(value, dict):
                table[key] = before | value
            else:
                table[key] = value
        return table

    start = table

    def entry(self, pair: list[Any]) -> tuple[str, Any]:
        key, value = pair
        return key, value

    def items(self, values: list[Any]) -> list[Any]:
        return values

    def identifier(self, tokens: list[Token]) -> str:
        return str(tokens[0])

    def number(self, tokens: list[Token]) -> Number:
        return Number(tokens[0])

    def boolean(self, tokens: list[Token]) -> bool:
        return str(tokens[0]) == "true"

    def heredoc(self, tokens: list[Token]) -> str:
        """Give the lines up to the anchor; after `<<-` without the indentation of the anchor."""
        head, _, rest = tokens[0].partition("\n")
        anchor = head.lstrip("<").removeprefix("-")
        text = rest[: -len(anchor) - 1]
        if not head.startswith("<<-"):
            return text
        lines = text.split("\n")
        indent = lines[-1]
        if all(line.startswith(indent) for line in lines):
            return "\n".join(line.removeprefix(indent) for line in lines)
        return text.rstrip(" \t")

    def string(self, tokens: list[Token]) -> str:
        """Undo the escapes; hexadecimal and octal ones are bytes, and together have to be UTF-8."""
        token = tokens[0]
        try:
            return b"".join(_unescaped(token[1:-1])).decode()
        except ValueError as exc:
            where, expected = _where(token.line, token.column), "\\\\ for a backslash"
            found = "a bad escape in a string"
            raise ProblemsError([Problem(self._file, where, found, expected)]) from exc


def _unescaped(text: str) -> Iterable[bytes]:
    at = 0
    for part in _PART.finditer(text):
        yield text[at : part.start()].encode()
        at = part.end()
        digits = part["byte"] or part["rune"] or part["long"]
        if part["bad"]:
            raise ValueError(f"unknown escape {part[0]}")
        if part["kept"]:
            yield part["kept"].encode()
        elif part["plain"]:
            yield _PLAIN[part["plain"]].encode()
        elif part["octal"] or part["byte"]:
            yield bytes([int(digits, 16) if digits else int(part["octal"], 8)])
        else:
            yield chr(int(digits, 16)).encode()
    yield text[at:].encode()


def _where(line: int | None, column: int | None) -> str:
    return f"line {line}, column {column}"


def _problem(exc: UnexpectedInput, file: str) -> Problem:
    where = _where(exc.line, exc.column)
    wanted: set[str] = set()
    found = "the end of the file"
    if isinstance(exc, UnexpectedCharacters):
        if exc.char in _BEGUN:
            return Problem(file, where, *_BEGUN[exc.char])
        found, wanted = repr(exc.char), exc.allowed
    elif isinstance(exc, UnexpectedToken):
        found = found if exc.token.type == "$END" else repr(str(exc.token)[:64])
        wanted = exc.accepts
    hint = None
    words = [word for name, word in _WORDS.items() if name in wanted]
    if wanted >= _VALUE:
        words = ["a value", *(word for word in words if word != "{")]
        hint = 'text stands in double quotes: cert_dir = "certs"'
    return Problem(file, where, found, " or ".join(words), hint)
