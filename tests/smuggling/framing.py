"""Cases: where a body ends, said by Transfer-Encoding, or by Content-Length too.

RFC 9112 6.1 (Transfer-Encoding), 6.3 (Message Body Length). CL.TE, TE.CL and TE.TE are the three
classes of request smuggling: of two parsers in a row, one believes the length, the other one the
coding, or one overlooks it.
"""

from __future__ import annotations

from tests.smuggling.case import (
    CODING,
    EITHER,
    PULL,
    Case,
    Request,
    accepted,
    chat,
    chunked,
    either,
    models,
    refused,
    request,
    sees_chat,
)

# Ends at once for who believes the coding; PULL is the rest of the body for who does not.
HIDDEN_BY_LENGTH = b"0\r\n\r\n" + PULL
# One chunk for who believes the coding; for who believes "Content-Length: 4", PULL is next.
HIDDEN_BY_CODING = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PULL), PULL)


def _cl_te(name: str, *coding: bytes) -> Case:
    length = b"Content-Length: %d" % len(HIDDEN_BY_LENGTH)
    return refused(f"CL.TE: {name}", chat(length, *coding, body=HIDDEN_BY_LENGTH), CODING)


def _te_cl(name: str, *coding: bytes) -> Case:
    raw = chat(*coding, b"Content-Length: 4", body=HIDDEN_BY_CODING)
    return refused(f"TE.CL: {name}", raw, CODING)


def _coding(name: str, *fields: bytes) -> Case:
    return refused(f"coding: {name}", chat(*fields, body=HIDDEN_BY_LENGTH), CODING)


TE = b"Transfer-Encoding: chunked"

BOTH = (
    _cl_te("plain", TE),
    _cl_te("upper case", b"TRANSFER-ENCODING: CHUNKED"),
    _cl_te("two codings", b"Transfer-Encoding: identity, chunked"),
    _cl_te("unknown coding", b"Transfer-Encoding: xchunked"),
    _cl_te("identity", b"Transfer-Encoding: identity"),
    _cl_te("empty", b"Transfer-Encoding:"),
    _cl_te("vertical tab", b"Transfer-Encoding: \x0bchunked"),
    _cl_te("two fields", TE, b"Transfer-Encoding: identity"),
    _cl_te("space before colon", b"Transfer-Encoding : chunked"),
    _cl_te("tab before colon", b"Transfer-Encoding\t: chunked"),
    _cl_te("leading space", b" Transfer-Encoding: chunked"),
    _cl_te("behind a bare LF", b"X: y\nTransfer-Encoding: chunked"),
    _cl_te("behind a bare CR", b"X: y\rTransfer-Encoding: chunked"),
    _cl_te("behind CR CR LF", b"X: y\r\r\nTransfer-Encoding: chunked"),
    _cl_te("folded value", b"Transfer-Encoding:\r\n chunked"),
    _cl_te("in a folded line", b"X: y\r\n Transfer-Encoding: chunked"),
    _cl_te("NUL in the name", b"Transfer-Encoding\0: chunked"),
    _cl_te("space in the name", b"Transfer Encoding: chunked"),
    _cl_te("no-break space in the name", b"Transfer-Encoding\xa0: chunked"),
    _cl_te("dotless i in the name", b"Transfer-Encod\xc4\xb1ng: chunked"),
    _cl_te("no colon", b"Transfer-Encoding chunked"),
    _cl_te("another line without a colon", b"chunked", TE),
    _te_cl("plain", TE),
    _te_cl("tab before the value", b"Transfer-Encoding:\tchunked"),
    _te_cl("no space", b"Transfer-Encoding:chunked"),
    _te_cl("Content-Length first", b"Content-Length: 4", TE),
    _te_cl("two fields", TE, b"Transfer-encoding: x"),
    _te_cl("identity last", b"Transfer-Encoding: chunked, identity"),
    _te_cl("trailing comma", b"Transfer-Encoding: chunked,"),
    refused("CL.TE: length 0", chat(b"Content-Length: 0", TE, body=HIDDEN_BY_LENGTH)),
    refused("CL.TE: on GET", models(b"Content-Length: 5", TE, body=HIDDEN_BY_LENGTH)),
    refused("CL.TE: length is a list", chat(b"Content-Length: 5, 5", TE, body=b"0\r\n\r\n")),
    refused("CL.TE: length is empty", chat(b"Content-Length:", TE, body=b"0\r\n\r\n")),
    Case(
        # Whoever maps "_" to "-" reads this as CL.TE, so at the backend it has no place.
        "CL.TE: underscore",
        chat(b"Content-Length: 5", b"Transfer_Encoding: chunked", body=b"0\r\n\r\n"),
        (EITHER,),
        (sees_chat(b"0\r\n\r\n"),),
    ),
)

CODINGS = (
    accepted("coding: chunked", chunked(b"5\r\nhello\r\n0\r\n\r\n"), sees_chat(b"hello")),
    either(
        "coding: letters of both cases",
        chat(b"tRANSFER-eNCODING: ChUnKeD", body=b"5\r\nhello\r\n0\r\n\r\n"),
        sees_chat(b"hello"),
    ),
    either(
        "coding: white space around the value",
        chat(b"Transfer-Encoding: \t chunked \t", body=b"5\r\nhello\r\n0\r\n\r\n"),
        sees_chat(b"hello"),
    ),
    _coding("xchunked", b"Transfer-Encoding: xchunked"),
    _coding("chunkedx", b"Transfer-Encoding: chunkedx"),
    _coding("chunk", b"Transfer-Encoding: chunk"),
    _coding("identity", b"Transfer-Encoding: identity"),
    _coding("gzip, chunked", b"Transfer-Encoding: gzip, chunked"),
    _coding("identity, chunked", b"Transfer-Encoding: identity, chunked"),
    _coding("chunked, identity", b"Transfer-Encoding: chunked, identity"),
    _coding("chunked, chunked", b"Transfer-Encoding: chunked, chunked"),
    _coding("leading comma", b"Transfer-Encoding: ,chunked"),
    _coding("trailing comma", b"Transfer-Encoding: chunked,"),
    _coding("space inside", b"Transfer-Encoding: chun ked"),
    _coding("double quotes", b'Transfer-Encoding: "chunked"'),
    _coding("single quotes", b"Transfer-Encoding: 'chunked'"),
    _coding("parameter", b"Transfer-Encoding: chunked;q=1"),
    _coding("semicolon", b"Transfer-Encoding: chunked;"),
    _coding("empty", b"Transfer-Encoding:"),
    _coding("white space only", b"Transfer-Encoding: \t "),
    _coding("vertical tab before", b"Transfer-Encoding: \x0bchunked"),
    _coding("vertical tab after", b"Transfer-Encoding: chunked\x0b"),
    _coding("form feed", b"Transfer-Encoding: \x0cchunked"),
    _coding("NUL after", b"Transfer-Encoding: chunked\0"),
    _coding("NUL inside", b"Transfer-Encoding: chun\0ked"),
    _coding("delete", b"Transfer-Encoding: chunked\x7f"),
    _coding("no-break space", b"Transfer-Encoding: chunked\xa0"),
    _coding("Kelvin sign", b"Transfer-Encoding: chun\xe2\x84\xaaed"),
    _coding("byte order mark", b"Transfer-Encoding: \xef\xbb\xbfchunked"),
    _coding("bare CR after", b"Transfer-Encoding: chunked\r"),
    _coding("bare LF before", b"Transfer-Encoding:\nchunked"),
    _coding("colon twice", b"Transfer-Encoding:: chunked"),
    _coding("folded", b"Transfer-Encoding: chunked\r\n , identity"),
    _coding("folded, empty first line", b"Transfer-Encoding:\r\n\tchunked"),
    _coding("twice", TE, TE),
    _coding("twice, second one unknown", TE, b"Transfer-Encoding: cow"),
    _coding("twice, first one unknown", b"Transfer-Encoding: cow", TE),
    _coding("twice, second one empty", TE, b"Transfer-Encoding:"),
    refused(
        "coding: HTTP/1.0",
        request(b"POST /v1/chat/completions HTTP/1.0", b"Host: x", TE, body=HIDDEN_BY_LENGTH),
        CODING,
    ),
    refused(
        "coding: HTTP/1.0 with keep-alive",
        request(
            b"POST /v1/chat/completions HTTP/1.0",
            b"Host: x",
            b"Connection: keep-alive",
            TE,
            body=HIDDEN_BY_LENGTH,
        ),
        CODING,
    ),
    Case(
        "coding: GET with chunks",
        models(TE, body=b"5\r\nhello\r\n0\r\n\r\n"),
        (EITHER,),
        (Request(b"GET", b"/v1/models", b"hello"),),
    ),
)


CASES = (*BOTH, *CODINGS)
