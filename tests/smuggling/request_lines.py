"""Cases: the three words of a request line, what stands between them, and the version.

RFC 9112 3 (Request Line), 2.3 (HTTP Version). Who splits it at other characters, or takes another
version for 1.1, reads another request.
"""

from __future__ import annotations

from tests.smuggling.case import (
    BAD,
    DENIED,
    HOST,
    METHOD,
    NOTHING,
    OK,
    PULL,
    SEES_MODELS,
    VERSION,
    Case,
    accepted,
    models,
    refused,
    request,
)


def _line(name: str, line: bytes, statuses: frozenset[int] = BAD) -> Case:
    return refused(f"request line: {name}", request(line, HOST) + PULL, statuses)


REQUEST_LINES = (
    _line("lower case method", b"get /v1/models HTTP/1.1", METHOD | VERSION),
    _line("mixed case method", b"Get /v1/models HTTP/1.1", METHOD | VERSION),
    _line("no method", b" /v1/models HTTP/1.1"),
    _line("no target", b"GET HTTP/1.1"),
    _line("empty target", b"GET  HTTP/1.1"),
    _line("no version", b"GET /v1/models", VERSION),
    _line("empty version", b"GET /v1/models ", VERSION),
    _line("two spaces before the target", b"GET  /v1/models HTTP/1.1"),
    _line("two spaces before the version", b"GET /v1/models  HTTP/1.1"),
    _line("space behind the version", b"GET /v1/models HTTP/1.1 "),
    _line("tab before the target", b"GET\t/v1/models HTTP/1.1"),
    _line("tab before the version", b"GET /v1/models\tHTTP/1.1"),
    _line("tab behind the version", b"GET /v1/models HTTP/1.1\t"),
    _line("vertical tab before the target", b"GET\x0b/v1/models HTTP/1.1"),
    _line("form feed before the version", b"GET /v1/models\x0cHTTP/1.1"),
    _line("no-break space before the version", b"GET /v1/models\xa0HTTP/1.1"),
    _line("four words", b"GET /v1/models HTTP/1.1 HTTP/1.1"),
    _line("two targets", b"GET /v1/models /api/pull HTTP/1.1"),
    _line("space in the target", b"POST /api/pull /v1/models HTTP/1.1"),
    _line("NUL in the method", b"GE\0T /v1/models HTTP/1.1"),
    _line("NUL in the target", b"GET /v1/models\0/x HTTP/1.1"),
    _line("NUL in the version", b"GET /v1/models HTTP/1.1\0"),
    _line("control character in the target", b"GET /v1/models\x01 HTTP/1.1"),
    _line("delete in the target", b"GET /v1/models\x7f HTTP/1.1"),
    _line("non-ASCII in the target", b"GET /v1/models/\xc3\xa9 HTTP/1.1"),
    _line("non-ASCII in the query", b"GET /v1/models?q=\xc3\xa9 HTTP/1.1"),
    _line("non-ASCII in the method", b"G\xc3\x89T /v1/models HTTP/1.1"),
    _line("colon in the method", b"GET: /v1/models HTTP/1.1", METHOD | VERSION),
    _line("quotes around the target", b'GET "/v1/models" HTTP/1.1'),
    _line("fragment", b"GET /v1/models#/api/pull HTTP/1.1"),
    _line("folded", b"GET /v1/models\r\n HTTP/1.1"),
    _line("a header line first", b"X: y\r\nGET /v1/models HTTP/1.1"),
    _line("PROXY protocol first", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /v1/models HTTP/1.1"),
    _line("a method that begins with another one", b"GETGET /v1/models HTTP/1.1", METHOD | VERSION),
    _line("long method", b"G" * 5000 + b" /v1/models HTTP/1.1", METHOD | VERSION),
    _line("a response", b"HTTP/1.1 200 OK"),
)

VERSIONS = (
    _line("HTTP/0.9", b"GET /v1/models HTTP/0.9", VERSION),
    _line("HTTP/1.2", b"GET /v1/models HTTP/1.2", VERSION),
    _line("HTTP/1.9", b"GET /v1/models HTTP/1.9", VERSION),
    _line("HTTP/2.0", b"GET /v1/models HTTP/2.0", VERSION),
    _line("HTTP/2", b"GET /v1/models HTTP/2", VERSION),
    _line("HTTP/3.0", b"GET /v1/models HTTP/3.0", VERSION),
    _line("HTTP/1", b"GET /v1/models HTTP/1", VERSION),
    _line("HTTP/1.", b"GET /v1/models HTTP/1.", VERSION),
    _line("HTTP/1.01", b"GET /v1/models HTTP/1.01", VERSION),
    _line("HTTP/01.1", b"GET /v1/models HTTP/01.1", VERSION),
    _line("HTTP/1.10", b"GET /v1/models HTTP/1.10", VERSION),
    _line("HTTP/1.1.1", b"GET /v1/models HTTP/1.1.1", VERSION),
    _line("HTTP/11", b"GET /v1/models HTTP/11", VERSION),
    _line("HTTP/1,1", b"GET /v1/models HTTP/1,1", VERSION),
    _line("HTTP/+1.1", b"GET /v1/models HTTP/+1.1", VERSION),
    _line("HTTP / 1.1", b"GET /v1/models HTTP / 1.1", VERSION),
    _line("http/1.1", b"GET /v1/models http/1.1", VERSION),
    _line("HTTPS/1.1", b"GET /v1/models HTTPS/1.1", VERSION),
    _line("RTSP/1.0", b"GET /v1/models RTSP/1.0", VERSION),
    _line("ICE/1.0", b"SOURCE /v1/models ICE/1.0", VERSION | METHOD),
    _line("letter behind", b"GET /v1/models HTTP/1.1x", VERSION),
    _line("full-width digits", b"GET /v1/models HTTP/\xef\xbc\x91.\xef\xbc\x91", VERSION),
    refused("version: HTTP/0.9 simple request", b"GET /v1/models\r\n\r\n" + PULL, VERSION),
    refused("version: HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4", VERSION),
    accepted(
        "version: HTTP/1.0",
        request(b"GET /v1/models HTTP/1.0", HOST),
        SEES_MODELS,
    ),
    Case(
        "version: nothing behind HTTP/1.0",
        request(b"GET /v1/models HTTP/1.0", HOST) + models() + PULL,
        (OK,),
        (SEES_MODELS,),
        ends=True,
    ),
    Case(
        "version: HTTP/1.0 with keep-alive",
        request(b"GET /v1/models HTTP/1.0", HOST, b"Connection: keep-alive") + PULL,
        (OK, DENIED | {NOTHING}),
        (SEES_MODELS,),
    ),
    Case(
        "version: HTTP/1.0 without Host",
        request(b"GET /v1/models HTTP/1.0") + PULL,
        (OK,),
        (SEES_MODELS,),
        ends=True,
    ),
)

CASES = (*REQUEST_LINES, *VERSIONS)
