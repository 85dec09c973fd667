"""Cases: the inside of a chunked body, sizes, extensions, line ends, trailers.

RFC 9112 7.1 (Chunked Transfer Coding). The head is on its way when a chunk turns out bad, so the
backend may see such a request begin; it must never see it end, nor anything behind it.
"""

from __future__ import annotations

from tests.smuggling.case import (
    BAD,
    DENIED,
    EITHER,
    NOTHING,
    OK,
    PULL,
    SEES_MODELS,
    SILENT,
    SPOOFED,
    TOO_LARGE,
    Case,
    accepted,
    chunked,
    models,
    sees_chat,
    sized,
)

END = b"0\r\n\r\n"
HELLO = b"5\r\nhello\r\n"


def _bad(name: str, raw: bytes, begun: bytes = b"") -> Case:
    """A body that is refused in the middle; PULL behind it must stay unread."""
    answers = (TOO_LARGE,)
    return Case(
        f"chunk {name}", chunked(raw + END + PULL), answers, begun=sees_chat(begun), ends=True
    )


def _bad_end(name: str, raw: bytes) -> Case:
    """A body that is refused behind its last byte."""
    raw = chunked(HELLO + raw + PULL)
    return Case(f"chunk end: {name}", raw, (BAD,), begun=sees_chat(b"hello"), ends=True)


def _open_end(name: str, raw: bytes, begun: bytes = b"hello") -> Case:
    """A body whose end never comes."""
    raw = chunked(HELLO + raw)
    return Case(f"chunk end: {name}", raw, (SILENT,), begun=sees_chat(begun))


def _endless(name: str, size: bytes) -> Case:
    """A chunk of so many bytes that all that is sent lies inside of it."""
    sent = b"hello\r\n" + END + PULL
    raw = chunked(size + b"\r\n" + sent)
    return Case(f"chunk size: {name}", raw, (SILENT | TOO_LARGE,), begun=sees_chat(sent))


def _either(name: str, raw: bytes, body: bytes = b"hello") -> Case:
    """Allowed by the standard: refused, or forwarded as these bytes and followed by nothing."""
    return Case(
        f"chunk {name}",
        chunked(raw) + PULL,
        (EITHER | TOO_LARGE, DENIED | {NOTHING}),
        (sees_chat(body),),
        begun=sees_chat(body),
    )


def _ignored(name: str, raw: bytes) -> Case:
    """A spelling that must be read as this body, and of which nothing goes on."""
    return Case(f"chunk {name}", chunked(raw) + PULL, (OK, DENIED), (sees_chat(b"hello"),))


SIZES = (
    accepted("chunk: one", chunked(HELLO + END), sees_chat(b"hello")),
    accepted("chunk: none", chunked(END), sees_chat(b"")),
    accepted(
        "chunk: many", chunked(b"1\r\nh\r\n" * 300 + HELLO + END), sees_chat(b"h" * 300 + b"hello")
    ),
    accepted("chunk: upper case", chunked(b"A\r\n0123456789\r\n" + END), sees_chat(b"0123456789")),
    accepted("chunk: lower case", chunked(b"a\r\n0123456789\r\n" + END), sees_chat(b"0123456789")),
    accepted(
        "chunk: a request as body",
        chunked(b"%x\r\n%s\r\n" % (len(PULL), PULL) + END),
        sees_chat(PULL),
    ),
    accepted(
        "chunk: chunks as body",
        chunked(b"5\r\n" + END + b"\r\n" + END),
        sees_chat(END),
    ),
    _either("size: one leading zero", b"05\r\nhello\r\n" + END),
    _either("size: sixteen digits", b"0000000000000005\r\nhello\r\n" + END),
    _either("size: seventeen digits", b"00000000000000005\r\nhello\r\n" + END),
    _either("size: a thousand zeros", b"0" * 1000 + b"5\r\nhello\r\n" + END),
    _either("size: last chunk of many zeros", HELLO + b"00000\r\n\r\n"),
    _bad("size: digits without end", b"0" * 100_000),
    _bad("size: plus", b"+5\r\nhello\r\n"),
    _bad("size: minus", b"-5\r\nhello\r\n"),
    _bad("size: minus zero", b"-0\r\n\r\n"),
    _bad("size: minus one", b"-1\r\n"),
    _bad("size: 0x", b"0x5\r\nhello\r\n"),
    _bad("size: 0X of the last chunk", b"0X0\r\n\r\n"),
    _bad("size: underscore as in Python", b"1_0\r\n0123456789012345\r\n"),
    _bad("size: letter behind f", b"g\r\n0123456789012345\r\n"),
    _bad("size: h for hexadecimal", b"5h\r\nhello\r\n"),
    _bad("size: decimal point", b"5.0\r\nhello\r\n"),
    _bad("size: comma", b"5,5\r\nhello\r\n"),
    _bad("size: quotes", b'"5"\r\nhello\r\n'),
    _bad("size: empty", b"\r\nhello\r\n"),
    _bad("size: empty with an extension", b";a=b\r\nhello\r\n"),
    _bad("size: space before", b" 5\r\nhello\r\n"),
    _bad("size: tab before", b"\t5\r\nhello\r\n"),
    _ignored("size: space after", b"5 \r\nhello\r\n" + END),
    _ignored("size: tab after", b"5\t\r\nhello\r\n" + END),
    _ignored("size: space after that of the last chunk", HELLO + b"0  \r\n\r\n"),
    _bad("size: space inside", b"1 0\r\n0123456789\r\n"),
    _bad("size: NUL after", b"5\0\r\nhello\r\n"),
    _bad("size: NUL before", b"\x005\r\nhello\r\n"),
    _bad("size: vertical tab after", b"5\x0b\r\nhello\r\n"),
    _bad("size: no-break space after", b"5\xa0\r\nhello\r\n"),
    _bad("size: full-width digit", b"\xef\xbc\x95\r\nhello\r\n"),
    _bad("size: CRLF before", b"\r\n5\r\nhello\r\n"),
    _endless("over the limit of a body", b"40000000"),
    _endless("2^31", b"80000000"),
    _bad("size: 2^32 + 5", b"100000005\r\nhello\r\n"),
    _bad("size: 2^63 - 1", b"7fffffffffffffff\r\nhello\r\n"),
    _bad("size: 2^63", b"8000000000000000\r\nhello\r\n"),
    _bad("size: 2^64 - 1", b"ffffffffffffffff\r\nhello\r\n"),
    _bad("size: 2^64 - 5", b"fffffffffffffffb\r\nhello\r\n"),
    _bad("size: 2^64", b"10000000000000000\r\n\r\n"),
    _bad("size: 2^64 + 5", b"10000000000000005\r\nhello\r\n"),
    _bad("size: 2^128 + 5", b"100000000000000000000000000000005\r\nhello\r\n"),
)

LINES = (
    _bad("line: bare LF behind the size", b"5\nhello\r\n"),
    _bad("line: bare CR behind the size", b"5\rhello\r\n"),
    _bad("line: CR CR LF behind the size", b"5\r\r\nhello\r\n"),
    _bad("line: LF CR behind the size", b"5\n\rhello\r\n"),
    _bad("line: nothing behind the data", b"5\r\nhello", b"hello"),
    _bad("line: bare LF behind the data", b"5\r\nhello\n", b"hello"),
    _bad("line: bare CR behind the data", b"5\r\nhello\r", b"hello"),
    _bad("line: LF CR behind the data", b"5\r\nhello\n\r", b"hello"),
    _bad("line: CR CR LF behind the data", b"5\r\nhello\r\r\n", b"hello"),
    _bad("line: two letters behind the data", b"5\r\nhelloXX", b"hello"),
    _bad("line: space behind the data", b"5\r\nhello \r\n", b"hello"),
    _bad("line: data longer than its size", b"5\r\nhello world\r\n", b"hello"),
    _bad("line: data shorter than its size", b"7\r\nhello\r\n", b"hello\r\n"),
    _bad("line: empty line between chunks", HELLO + b"\r\n" + HELLO, b"hello"),
)

EXTENSIONS = (
    _ignored("extension: a name", b"5;ext\r\nhello\r\n" + END),
    _ignored("extension: a value", b"5;a=b\r\nhello\r\n" + END),
    _ignored("extension: a quoted value", b'5;a="b"\r\nhello\r\n' + END),
    _ignored("extension: two", b"5;a=b;c=d\r\nhello\r\n" + END),
    _ignored("extension: of the last chunk", HELLO + b"0;a=b\r\n\r\n"),
    _ignored("extension: empty", b"5;\r\nhello\r\n" + END),
    _ignored("extension: space before", b"5 ;a=b\r\nhello\r\n" + END),
    _ignored("extension: space inside", b"5; a = b\r\nhello\r\n" + END),
    _either("extension: sixteen KiB", b"5;" + b"a" * 16384 + b"\r\nhello\r\n" + END),
    _either(
        "extension: one of a hundred bytes per byte",
        (b"1;%b\r\nh\r\n" % (b"a" * 100)) * 400 + END,
        b"h" * 400,
    ),
    _bad("extension: open quote", b'5;a="b\r\nhello\r\n'),
    _bad("extension: open quote, closed behind the data", b'5;a="\r\nhello\r\n";b\r\n'),
    _bad("extension: bare LF", b"5;a\nhello\r\n"),
    _bad("extension: bare LF, then the line goes on", b"5;a\nb\r\nhello\r\n"),
    _bad("extension: bare LF right behind the semicolon", b"5;\nxx\r\nhello\r\n"),
    _bad("extension: bare CR", b"5;a\rb\r\nhello\r\n"),
    _bad("extension: NUL", b"5;a\0b\r\nhello\r\n"),
    _bad("extension: control character", b"5;a\x01b\r\nhello\r\n"),
    _bad("extension: quoted bare LF", b'5;a="\n"\r\nhello\r\n'),
    _bad("extension: quoted CRLF", b'5;a="\r\nhello\r\n"\r\n'),
    _bad("extension: no semicolon", b"5 a=b\r\nhello\r\n"),
    _bad("extension: of the last chunk, bare LF", HELLO + b"0;a\n\r\n", b"hello"),
)

TRAILERS = (
    *(
        _either(f"trailer: {name}", HELLO + b"0\r\n" + field + b"\r\n\r\n")
        for name, field in (
            ("harmless", b"X-Checksum: abc"),
            ("Content-Length", b"Content-Length: 100"),
            ("Transfer-Encoding", b"Transfer-Encoding: chunked"),
            ("Host", b"Host: 127.0.0.1"),
            ("X-Spiffe-Id", b"X-Spiffe-Id: " + SPOOFED),
            ("Connection", b"Connection: close"),
            ("Authorization", b"Authorization: Bearer " + SPOOFED),
            ("Expect", b"Expect: 100-continue"),
            ("a hundred", b"\r\n".join([b"X: y"] * 100)),
            ("sixty KiB", b"\r\n".join([b"X: " + b"y" * 1000] * 60)),
        )
    ),
    _bad_end("request line for a trailer", b"0\r\n"),
    _bad_end("trailer without a colon", b"0\r\nX\r\n\r\n"),
    _bad_end("trailer without a name", b"0\r\n: y\r\n\r\n"),
    _bad_end("trailer, space before colon", b"0\r\nX : y\r\n\r\n"),
    _bad_end("trailer, leading space", b"0\r\n X: y\r\n\r\n"),
    _bad_end("trailer, folded", b"0\r\nX: y\r\n z\r\n\r\n"),
    _bad_end("trailer, bare LF", b"0\r\nX: y\n\r\n"),
    _bad_end("trailer, bare LF inside", b"0\r\nX: y\nZ: a\r\n\r\n"),
    _bad_end("trailer, bare CR inside", b"0\r\nX: y\rZ: a\r\n\r\n"),
    _bad_end("trailer, NUL", b"0\r\nX: \0\r\n\r\n"),
    _bad_end("trailer, control character", b"0\r\nX: \x01\r\n\r\n"),
    _bad_end("LF LF", b"0\n\n"),
    _bad_end("CRLF LF", b"0\r\n\n"),
    _bad_end("LF CRLF", b"0\n\r\n"),
    _bad_end("CR CR", b"0\r\r"),
    _bad_end("CRLF CR", b"0\r\n\r"),
    _bad_end("spaces for an empty line", b"0\r\n \r\n\r\n"),
    _bad_end("two letters for an empty line", b"0\r\nXX"),
    _open_end("no last chunk", b""),
    _open_end("last chunk without line end", b"0"),
    _open_end("last chunk without empty line", b"0\r\n"),
    _open_end("half an empty line", b"0\r\n\r"),
    _open_end("trailer without empty line", b"0\r\nX: y\r\n"),
    _open_end("size only", b"5\r\n"),
    _open_end("in the middle of a chunk", b"5\r\nhel", b"hellohel"),
)

SEQUENCES = (
    Case(
        "chunk sequence: chunked, then what is denied",
        chunked(HELLO + END) + PULL,
        (OK, DENIED),
        (sees_chat(b"hello"),),
    ),
    accepted(
        "chunk sequence: chunked, sized, chunked",
        chunked(HELLO + END) + sized(END) + chunked(HELLO + HELLO + END) + models(),
        sees_chat(b"hello"),
        sees_chat(END),
        sees_chat(b"hellohello"),
        SEES_MODELS,
    ),
    Case(
        "chunk sequence: a second last chunk",
        chunked(HELLO + END + END) + PULL,
        (OK, BAD),
        (sees_chat(b"hello"),),
        ends=True,
    ),
)

CASES = (*SIZES, *LINES, *EXTENSIONS, *TRAILERS, *SEQUENCES)
