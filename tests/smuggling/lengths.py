"""Cases: Content-Length, its spellings, and bodies that are longer or shorter than it says.

RFC 9112 6.2 (Content-Length), 6.3 (Message Body Length). A length that one parser reads as
another number, or not at all, makes the rest of the body the next request.
"""

from __future__ import annotations

from tests.smuggling.case import (
    BAD,
    DENIED,
    EITHER,
    OK,
    PULL,
    SEES_MODELS,
    SILENT,
    TOO_LARGE,
    Case,
    Request,
    accepted,
    chat,
    either,
    models,
    refused,
    sees_chat,
    sized,
)


def _length(name: str, value: bytes, body: bytes = b"hello") -> Case:
    raw = chat(b"Content-Length:" + value, body=body + PULL)
    return refused(f"length: {name}", raw, TOO_LARGE)


def _length_name(name: str, field: bytes) -> Case:
    raw = chat(field, b"X-Then: 1", body=PULL)
    return refused(f"length: {name}", raw)


LENGTHS = (
    accepted("length: right", sized(b"hello"), sees_chat(b"hello")),
    accepted("length: a request as body", sized(PULL), sees_chat(PULL)),
    accepted(
        "length: name in upper case",
        chat(b"CONTENT-LENGTH:5", body=b"hello"),
        sees_chat(b"hello"),
    ),
    either(
        "length: white space around it",
        chat(b"Content-Length: \t5\t ", body=b"hello"),
        sees_chat(b"hello"),
    ),
    _length("leading zero", b" 05"),
    _length("twenty leading zeros", b" 000000000000000000005"),
    _length("plus", b" +5"),
    _length("minus", b" -5"),
    _length("minus zero", b" -0", b""),
    _length("plus zero", b" +0", b""),
    _length("hexadecimal", b" 0x5"),
    _length("hexadecimal digits", b" a", b"0123456789"),
    _length("octal of Python", b" 0o5"),
    _length("underscore as in Python", b" 1_0", b"0123456789"),
    _length("decimal point", b" 5.0"),
    _length("exponent", b" 5e0"),
    _length("space inside", b" 5 5"),
    _length("list of equals", b" 5, 5"),
    _length("list of two", b" 5, 6"),
    _length("list without space", b" 5,5"),
    _length("trailing comma", b" 5,"),
    _length("leading comma", b" ,5"),
    _length("semicolon", b" 5;"),
    _length("quotes", b' "5"'),
    _length("empty", b"", b""),
    _length("white space only", b" \t", b""),
    _length("a word", b" five"),
    _length("vertical tab", b" \x0b5"),
    _length("form feed", b" 5\x0c"),
    _length("NUL after", b" 5\0"),
    _length("NUL before", b" \x005"),
    _length("no-break space", b"\xa05"),
    _length("superscript two", b" \xb2", b"he"),
    _length("full-width digit", b" \xef\xbc\x95"),
    _length("Arabic-Indic digit", b" \xd9\xa5"),
    _length("bare CR", b" 5\r"),
    _length("bare CR inside", b" 5\r0"),
    _length("bare LF inside", b" 5\n0"),
    _length("folded", b" 5\r\n 0"),
    _length("folded, empty first line", b"\r\n 5"),
    _length("over the limit of a body", b" 1073741824"),
    _length("2^31 + 5", b" 2147483653"),
    _length("2^32 + 5", b" 4294967301"),
    _length("2^63 + 5", b" 9223372036854775813"),
    _length("2^64 + 5", b" 18446744073709551621"),
    _length("2^128 + 5", b" 340282366920938463463374607431768211461"),
    _length("a thousand digits", b" " + b"9" * 1000),
    refused("length: twice, equal", chat(*[b"Content-Length: 5"] * 2, body=b"hello" + PULL)),
    refused(
        "length: twice, different",
        chat(b"Content-Length: 5", b"Content-Length: 0", body=b"hello" + PULL),
    ),
    refused(
        "length: twice, far apart and in other letters",
        chat(b"Content-Length: 5", *[b"X: y"] * 40, b"cONTENT-lENGTH: 6", body=b"hello" + PULL),
    ),
    refused(
        "length: twice, one empty", chat(b"Content-Length: 5", b"Content-Length:", body=b"hello")
    ),
    _length_name("space before colon", b"Content-Length : %d" % len(PULL)),
    _length_name("tab before colon", b"Content-Length\t: %d" % len(PULL)),
    _length_name("NUL in the name", b"Content-Length\0: %d" % len(PULL)),
    _length_name("space in the name", b"Content Length: %d" % len(PULL)),
    _length_name("leading space", b" Content-Length: %d" % len(PULL)),
    _length_name("soft hyphen in the name", b"Content\xc2\xadLength: %d" % len(PULL)),
    Case(
        "length: underscore",
        chat(b"Content-Length: 5", b"Content_Length: 0", body=b"hello"),
        (EITHER,),
        (sees_chat(b"hello"),),
    ),
    Case(
        "length: underscore only",
        chat(b"Content_Length: %d" % len(PULL), body=PULL),
        (EITHER, DENIED),
        (sees_chat(b""),),
    ),
    Case("length: none", chat(body=PULL), (OK, DENIED), (sees_chat(b""),)),
    Case("length: zero", sized(b"") + PULL, (OK, DENIED), (sees_chat(b""),)),
    Case("length: too short", sized(b"hello") + PULL, (OK, DENIED), (sees_chat(b"hello"),)),
    Case(
        "length: too short, rest is no request",
        sized(b"hello") + b" world\r\n\r\n",
        (OK, BAD),
        (sees_chat(b"hello"),),
        ends=True,
    ),
    Case(
        "length: too long",
        chat(b"Content-Length: 100", body=b"hello"),
        (SILENT,),
        begun=sees_chat(b"hello"),
    ),
    Case(
        "length: one byte too long",
        chat(b"Content-Length: %d" % (len(PULL) + 1), body=PULL),
        (SILENT,),
        begun=sees_chat(PULL),
    ),
    either(
        "length: GET with a request as body",
        models(b"Content-Length: %d" % len(PULL), body=PULL),
        Request(b"GET", b"/v1/models", PULL),
    ),
    Case(
        "length: GET with length 0",
        models(b"Content-Length: 0") + PULL,
        (OK, DENIED),
        (SEES_MODELS,),
    ),
)

CASES = LENGTHS
