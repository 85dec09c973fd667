"""Cases: the lines of a head, Host, and how much a head may hold.

RFC 9112 2.2 (Message Parsing), 5 (Field Syntax); RFC 9110 7.2 (Host and :authority). Where one
parser ends a line and the next one does not, a header turns into two.
"""

from __future__ import annotations

from tests.smuggling.case import (
    BAD,
    CHAT,
    HEAD_TOO_LARGE,
    HOST,
    MODELS,
    OK,
    PULL,
    SEES_MODELS,
    SILENT,
    Case,
    accepted,
    denied,
    models,
    refused,
    request,
    sees_chat,
    sized,
)


def _field(name: str, *fields: bytes) -> Case:
    return refused(f"field: {name}", models(*fields) + PULL)


def _fine(name: str, *fields: bytes) -> Case:
    return accepted(f"field: {name}", models(*fields), SEES_MODELS)


LINE_ENDS = (
    refused("line end: bare LF everywhere", models().replace(b"\r\n", b"\n")),
    refused("line end: bare CR everywhere", models().replace(b"\r\n", b"\r") + b"\r\n\r\n"),
    refused("line end: LF CR everywhere", models().replace(b"\r\n", b"\n\r") + b"\r\n\r\n"),
    refused("line end: bare LF behind the request line", MODELS + b"\n" + HOST + b"\r\n\r\n"),
    refused("line end: bare LF behind a field", models(b"X: y\nZ: a")),
    refused("line end: bare LF, then the empty line", models(b"X: y\n")),
    refused("line end: LF LF ends the head", MODELS + b"\r\n" + HOST + b"\n\n" + PULL),
    refused("line end: CRLF LF ends the head", MODELS + b"\r\n" + HOST + b"\r\n\n" + PULL),
    refused("line end: LF CRLF ends the head", MODELS + b"\r\n" + HOST + b"\n\r\n" + PULL),
    refused("line end: CR CR ends the head", MODELS + b"\r\n" + HOST + b"\r\r" + PULL),
    refused("line end: bare CR behind a field", models(b"X: y\rZ: a")),
    refused("line end: CR CR LF behind a field", models(b"X: y\r")),
    refused("line end: bare CR in the request line", b"GET /v1/models\rHTTP/1.1\r\n" + PULL),
    refused("line end: space in the empty line", request(MODELS, HOST, b" ") + PULL),
    refused("line end: a head inside of a value", models(b"X: y\n\n" + PULL)),
    accepted("line end: CRLF before the request line", b"\r\n" + models(), SEES_MODELS),
    accepted("line end: two CRLF before the request line", b"\r\n\r\n" + models(), SEES_MODELS),
    Case(
        "line end: a thousand CRLF before the request line",
        b"\r\n" * 1000 + models(),
        (SILENT,),  # who sees only empty lines has nothing to answer
        ends=True,
    ),
    refused("line end: CRLF LF before the request line", b"\r\n\n" + models()),
    refused("line end: CRLF CR before the request line", b"\r\n\r" + models()),
    refused("line end: LF before the request line", b"\n" + models()),
    refused("line end: CR before the request line", b"\r" + models()),
    refused("line end: NUL before the request line", b"\0" + models()),
    refused("line end: space before the request line", b" " + models()),
    refused("line end: byte order mark first", b"\xef\xbb\xbf" + models()),
    Case(
        "line end: CRLF between two requests",
        sized(b"hello") + b"\r\n" + models(),
        (OK, OK),
        (sees_chat(b"hello"), SEES_MODELS),
    ),
    Case(
        "line end: LF between two requests",
        sized(b"hello") + b"\n" + PULL,
        (OK, BAD),
        (sees_chat(b"hello"),),
        ends=True,
    ),
)

FIELDS = (
    _fine("no white space", b"X:y"),
    _fine("white space around the value", b"X: \t y \t "),
    _fine("empty value", b"X:"),
    _fine("non-ASCII value", b"X: caf\xc3\xa9 \xff"),
    _fine("tab inside of the value", b"X: a\tb"),
    _fine("every character that a name may have", b"!#$%&'*+-.^`|~09AZaz: y"),
    _fine("digits for a name", b"1: y"),
    _field("folded with a space", b"X: y\r\n z"),
    _field("folded with a tab", b"X: y\r\n\tz"),
    _field("folded, then a colon", b"X: y\r\n Z: a"),
    _field("folded Host", b"X: y\r\n Host: 127.0.0.1"),
    refused("field: folded first line", MODELS + b"\r\n " + HOST + b"\r\n\r\n"),
    _field("space before colon", b"X : y"),
    _field("tab before colon", b"X\t: y"),
    _field("leading space", b" X: y"),
    _field("leading tab", b"\tX: y"),
    _field("no colon", b"X"),
    _field("no name", b": y"),
    _field("colon only", b":"),
    _field("space in the name", b"X Y: z"),
    *(
        _field(f"{name} in the name", b"X" + byte + b"Y: z")
        for name, byte in (
            ("NUL", b"\0"),
            ("control character", b"\x01"),
            ("vertical tab", b"\x0b"),
            ("bare CR", b"\r"),
            ("bare LF", b"\n"),
            ("delete", b"\x7f"),
            ("non-ASCII", b"\xc3\xa9"),
            ("no-break space", b"\xa0"),
            ("double quote", b'"'),
            ("parenthesis", b"("),
            ("comma", b","),
            ("slash", b"/"),
            ("semicolon", b";"),
            ("equals sign", b"="),
            ("at sign", b"@"),
            ("bracket", b"["),
            ("brace", b"{"),
            ("backslash", b"\\"),
        )
    ),
    *(
        _field(f"{name} in the value", b"X: y" + byte + b"z")
        for name, byte in (
            ("NUL", b"\0"),
            ("control character 1", b"\x01"),
            ("backspace", b"\x08"),
            ("vertical tab", b"\x0b"),
            ("form feed", b"\x0c"),
            ("escape", b"\x1b"),
            ("control character 31", b"\x1f"),
            ("delete", b"\x7f"),
        )
    ),
)


def _host(name: str, *hosts: bytes) -> Case:
    return refused(f"Host: {name}", request(MODELS, *hosts) + PULL, frozenset({400, 421}))


HOSTS = (
    _host("none"),
    _host("twice, equal", HOST, HOST),
    _host("twice, different", HOST, b"Host: 127.0.0.1"),
    _host("twice, the second in other letters", HOST, b"hOST: 127.0.0.1"),
    _host("twice, the second empty", HOST, b"Host:"),
    _host("empty", b"Host:"),
    _host("white space only", b"Host: \t "),
    _host("space before colon", b"Host : models.example.org"),
    _host("list", b"Host: models.example.org, 127.0.0.1"),
    _host("two names", b"Host: models.example.org 127.0.0.1"),
    _host("user name", b"Host: admin@models.example.org"),
    _host("user name and password", b"Host: a:b@models.example.org"),
    _host("path", b"Host: models.example.org/api/pull"),
    _host("query", b"Host: models.example.org?x"),
    _host("fragment", b"Host: models.example.org#x"),
    _host("scheme", b"Host: http://models.example.org"),
    _host("backslash", b"Host: models.example.org\\x"),
    _host("port is a word", b"Host: models.example.org:http"),
    _host("port is negative", b"Host: models.example.org:-1"),
    _host("port of six digits", b"Host: models.example.org:100000"),
    _host("two ports", b"Host: models.example.org:1:2"),
    _host("colon only", b"Host: :80"),
    _host("open bracket", b"Host: [::1"),
    _host("bracket in the middle", b"Host: a[::1]"),
    _host("percent sign", b"Host: models%2eexample.org"),
    _host("non-ASCII", b"Host: mod\xc3\xa9ls.example.org"),
    _host("NUL", b"Host: models.example.org\0.x"),
    _host("comma first", b"Host: ,models.example.org"),
    _host("quotes", b'Host: "models.example.org"'),
    _host("underscore for a name", b"H_ost: models.example.org"),
    _host("only X-Forwarded-Host", b"X-Forwarded-Host: models.example.org"),
    accepted("Host: with a port", request(MODELS, b"Host: models.example.org:6701"), SEES_MODELS),
    accepted("Host: IPv6", request(MODELS, b"Host: [::1]:6701"), SEES_MODELS),
    accepted("Host: last", request(MODELS, b"X: y", HOST), SEES_MODELS),
    accepted("Host: with X-Forwarded-Host", models(b"X-Forwarded-Host: 127.0.0.1"), SEES_MODELS),
)

SIZES = (
    refused("head: one long value", models(b"X: " + b"y" * 40_000), HEAD_TOO_LARGE),
    refused("head: one long name", models(b"X" * 40_000 + b": y"), HEAD_TOO_LARGE),
    refused(
        "head: long target",
        request(b"GET /v1/models?" + b"q" * 40_000 + b" HTTP/1.1", HOST),
        HEAD_TOO_LARGE | {414},
    ),
    refused("head: many fields over the limit", models(*[b"X: yyyyyyyyyy"] * 4000), HEAD_TOO_LARGE),
    refused(
        "head: limit reached without an end", MODELS + b"\r\nX: " + b"y" * 32_800, HEAD_TOO_LARGE
    ),
    refused("head: limit reached without a line end", b"G" * 33_000, HEAD_TOO_LARGE | {414}),
    refused("head: nearly a thousand fields", models(*[b"X: y"] * 990), HEAD_TOO_LARGE),
    accepted("head: as many fields as are read", models(*[b"X: y"] * 199), SEES_MODELS),
    accepted("head: thirty KiB", models(b"X: " + b"y" * 30_000), SEES_MODELS),
    Case("head: cut in the request line", b"GET /v1/mod", (SILENT,)),
    Case("head: cut in a field", MODELS + b"\r\n" + HOST, (SILENT,)),
    Case("head: cut before its last byte", models()[:-1], (SILENT,)),
    Case("head: cut behind what would be a head", models()[:-2] + b"X: y\r\n", (SILENT,)),
    Case("head: nothing at all", b"", (SILENT,)),
    refused("head: TLS inside of TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n"),
    refused("head: SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    denied("head: chat without its target", request(CHAT.replace(b"/v1/chat/", b"/"), HOST)),
)

CASES = (*LINE_ENDS, *FIELDS, *HOSTS, *SIZES)
