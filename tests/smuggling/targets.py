"""Cases: request targets that mean one thing to the policy and another one to a model server.

RFC 9112 3.2 (Request Target), RFC 3986 6 (Normalization). The policy matches the path decoded
once; whatever decodes, cleans or splits differently behind it must not find another endpoint.
"""

from __future__ import annotations

from tests.smuggling.case import (
    DENIED,
    EITHER,
    HOST,
    METHOD,
    OK,
    PULL,
    Case,
    Request,
    accepted,
    chat,
    denied,
    either,
    refused,
    request,
    sees_chat,
)


def _get(target: bytes, host: bytes = HOST) -> bytes:
    return request(b"GET " + target + b" HTTP/1.1", host)


def _denied(name: str, target: bytes) -> Case:
    return denied(f"path: {name}", _get(target))


def _fine(name: str, target: bytes) -> Case:
    return accepted(f"path: {name}", _get(target), Request(b"GET", target))


def _open(name: str, target: bytes) -> Case:
    """A model's name like any other to us; it may go on as it came, and only so."""
    return either(f"path: {name}", _get(target), Request(b"GET", target), DENIED)


MODEL = b"/v1/models/"

ALLOWED = (
    _fine("model", MODEL + b"llama3:8b"),
    _fine("model with a slash", MODEL + b"library/llama3:8b"),
    _fine("model with dots", MODEL + b"qwen2.5..coder"),
    _fine("query", b"/v1/models?limit=5"),
    _fine("query with dots and slashes", b"/v1/models?x=/../../api/pull"),
    _fine("query with a question mark", b"/v1/models?x=?y"),
    _fine("empty query", b"/v1/models?"),
    _fine("encoded letters of a model", MODEL + b"llama%33"),
    _fine("encoded slash of a model", MODEL + b"library%2Fllama3"),
    _fine("encoded space of a model", MODEL + b"my%20model"),
    _open("encoded dot of a model", MODEL + b"qwen2%2e5"),
    _open("encoded letters outside of a model", b"/v1/m%6fdels"),
    _open("encoded query with line ends", b"/v1/models?x=%0d%0aHost:%20x"),
    _open("sub-delimiters", MODEL + b"a!$&'()*+,=@b"),
    _open("parameter of a model", MODEL + b"llama3;v=1"),
    _open("three dots", MODEL + b"..."),
    _open("dots and a parameter", MODEL + b"..;/..;/api/pull"),
    _open("encoded full-width dots", MODEL + b"%ef%bc%8e%ef%bc%8e%ef%bc%8fapi"),
    _open("encoded one-dot leader", MODEL + b"%e2%80%a4%e2%80%a4"),
    _open("encoded question mark", MODEL + b"llama3%3fx=1"),
    _open("encoded hash", MODEL + b"llama3%23x"),
    _open("encoded percent sign", MODEL + b"50%25"),
    _open("encoded colon", MODEL + b"llama3%3a8b"),
    _open("raw brackets", MODEL + b"[a]"),
    _open("trailing encoded space", MODEL + b"llama3%20"),
)

TRAVERSALS = (
    _denied("two dots", b"/v1/models/../../api/pull"),
    _denied("two dots to what is allowed", b"/v1/x/../models"),
    _denied("two dots at the end", b"/v1/models/.."),
    _denied("two dots first", b"/../v1/models"),
    _denied("one dot", b"/v1/./models"),
    _denied("one dot at the end", b"/v1/models/."),
    _denied("one dot in a model", MODEL + b"a/./b"),
    _denied("two dots in a model", MODEL + b"a/../b"),
    _denied("two dots behind the model", MODEL + b"a/../../../api/pull"),
    _denied("encoded dots", b"/v1/models/%2e%2e/%2e%2e/api/pull"),
    _denied("encoded dots in upper case", b"/v1/models/%2E%2E/%2E%2E/api/pull"),
    _denied("one of two dots encoded", b"/v1/models/.%2e/%2e./api/pull"),
    _denied("encoded dots at the end", MODEL + b"%2e%2e"),
    _denied("one encoded dot", MODEL + b"%2e"),
    _denied("encoded slashes", b"/v1/models/..%2f..%2fapi/pull"),
    _denied("encoded slashes in upper case", b"/v1/models/..%2F..%2Fapi%2Fpull"),
    _denied("encoded dots and slashes", b"/v1/models/%2e%2e%2f%2e%2e%2fapi%2fpull"),
    _denied("encoded slash at the end", MODEL + b"a%2f"),
    _denied("encoded slash first", MODEL + b"%2fa"),
    _denied("two encoded slashes", MODEL + b"a%2f%2fb"),
    _denied("encoded slash outside of a model", b"/v1%2fmodels"),
    _denied("encoded dot outside of a model", b"/v1/models%2e"),
    _denied("encoded slash for the model's", b"/v1/models%2fllama3"),
    _denied("encoded twice", MODEL + b"%252e%252e%252f%252e%252e%252fapi%252fpull"),
    _denied("slash encoded twice", MODEL + b"..%252f..%252fapi%252fpull"),
    _denied("encoded twice, the digits too", MODEL + b"%25%32e%25%32e%25%32fapi"),
    _denied("overlong, encoded twice", MODEL + b"%25c0%25ae%25c0%25ae/api"),
    _denied("encoded three times", MODEL + b"%25252e%25252e%25252fapi"),
    _denied("backslashes", b"/v1/models/..\\..\\api\\pull"),
    _denied("one backslash", MODEL + b"a\\b"),
    _denied("backslash for the first slash", b"\\v1/models"),
    _denied("encoded backslashes", MODEL + b"..%5c..%5capi%5cpull"),
    _denied("encoded backslash", MODEL + b"a%5cb"),
    _denied("overlong dots", MODEL + b"%c0%ae%c0%ae/%c0%ae%c0%ae/api/pull"),
    _denied("overlong slash", MODEL + b"..%c0%af..%c0%afapi"),
    _denied("overlong slash of three bytes", MODEL + b"..%e0%80%afapi"),
    _denied("half a character", MODEL + b"a%c3"),
    _denied("surrogate", MODEL + b"%ed%a0%80"),
    _denied("UTF-16 as IIS reads it", MODEL + b"%u002e%u002e%u002fapi"),
    _denied("two slashes", b"/v1//models"),
    _denied("two slashes first", b"//v1/models"),
    _denied("two slashes and a host", b"//models.example.org/v1/models"),
    _denied("two slashes in a model", MODEL + b"a//b"),
    _denied("two slashes for the model's", b"/v1/models//api/pull"),
    _denied("slash at the end", b"/v1/models/"),
    _denied("slash at the end of a model", MODEL + b"llama3/"),
    _denied("slash at the end of a version", b"/api/version/"),
    _denied("lone percent sign", MODEL + b"a%"),
    _denied("one hexadecimal digit", MODEL + b"a%2"),
    _denied("no hexadecimal digits", MODEL + b"a%zz"),
    _denied("sign for a hexadecimal digit", MODEL + b"a%+2e"),
    _denied("encoded NUL", MODEL + b"llama3%00"),
    _denied("encoded NUL behind what is allowed", b"/api/version%00/../pull"),
    _denied("encoded line end", MODEL + b"a%0d%0aX-Spiffe-Id:%20x"),
    _denied("encoded tab", MODEL + b"a%09b"),
    _denied("encoded escape", MODEL + b"a%1b[2J"),
    _denied("encoded delete", MODEL + b"a%7f"),
    _denied("encoded space behind", b"/api/version%20"),
    _denied("dot behind", b"/api/version."),
    _denied("semicolon behind", b"/api/version;x"),
    _denied("semicolon and traversal", b"/api/version;/../pull"),
    _denied("other letters", b"/V1/Models"),
    _denied("encoded letter of another case", b"/v1/%4dodels"),
    _denied("prefix of what is allowed", b"/v1/model"),
    _denied("what is allowed as prefix", b"/v1/modelsx"),
    _denied("what is allowed in the query", b"/api/pull?/v1/models"),
    _denied("what is allowed in a parameter", b"/api/pull;/v1/models"),
    _denied("what is allowed behind", b"/api/pull/v1/models"),
    _denied("encoded question mark outside", b"/api/version%3f/../pull"),
    _denied("root", b"/"),
    _denied("full-width slash outside", b"/v1%ef%bc%8fmodels"),
    _denied("zero-width space outside", b"/v1/models%e2%80%8b"),
)

FORMS = (
    accepted(
        "form: absolute",
        _get(b"http://models.example.org/v1/models"),
        Request(b"GET", b"/v1/models"),
    ),
    either(
        "form: absolute, https",
        _get(b"https://models.example.org/v1/models"),
        Request(b"GET", b"/v1/models"),
    ),
    either(
        "form: absolute, letters of both cases",
        _get(b"hTTp://MODELS.example.org/v1/models"),
        Request(b"GET", b"/v1/models"),
        DENIED,
    ),
    *(
        refused(f"form: {name}", _get(target) + PULL, frozenset({400, 421}))
        for name, target in (
            ("absolute, another host", b"http://127.0.0.1/v1/models"),
            ("absolute, another port", b"http://models.example.org:6701/v1/models"),
            ("absolute, user name", b"http://a@models.example.org/v1/models"),
            ("absolute, our host as user name", b"http://models.example.org@127.0.0.1/v1/models"),
            ("absolute, our host as prefix", b"http://models.example.org.evil.net/v1/models"),
            ("absolute, backslash", b"http://evil.net\\@models.example.org/v1/models"),
            ("absolute, no host", b"http:///v1/models"),
            ("absolute, one slash", b"http:/v1/models"),
            ("absolute, no slash", b"http:models.example.org/v1/models"),
            ("absolute, three slashes", b"http:///models.example.org/v1/models"),
            ("absolute, ftp", b"ftp://models.example.org/v1/models"),
            ("absolute, file", b"file:///v1/models"),
            ("absolute, ws", b"ws://models.example.org/v1/models"),
            ("absolute, unix socket", b"unix:/run/x.sock:/v1/models"),
            ("absolute, fragment", b"http://models.example.org/v1/models#x"),
            ("absolute, query for a path", b"http://models.example.org?/v1/models#"),
            ("absolute, encoded host", b"http://models%2eexample.org/v1/models"),
            ("absolute, fragment before our host", b"http://evil.net#@models.example.org/v1"),
            ("authority", b"models.example.org:443"),
            ("authority without a port", b"models.example.org"),
            ("relative", b"v1/models"),
            ("query only", b"?x=/v1/models"),
            ("dot first", b"./v1/models"),
            ("tilde first", b"~/v1/models"),
            ("javascript", b"javascript:alert(1)"),
        )
    ),
    denied("form: absolute without a path", _get(b"http://models.example.org")),
    denied("form: absolute, two slashes", _get(b"http://models.example.org//v1/models")),
    denied("form: absolute, two dots", _get(b"http://models.example.org/v1/x/../models")),
    denied("form: absolute, another endpoint", _get(b"http://models.example.org/api/pull")),
    refused(
        "form: absolute, no Host", request(b"GET http://models.example.org/v1/models HTTP/1.1")
    ),
    refused("form: asterisk", _get(b"*"), METHOD),
    Case("form: asterisk of OPTIONS", request(b"OPTIONS * HTTP/1.1", HOST) + PULL, (OK, DENIED)),
    Case(
        "form: asterisk of OPTIONS with a body",
        request(b"OPTIONS * HTTP/1.1", HOST, b"Content-Length: %d" % len(PULL), body=PULL),
        (OK,),
    ),
    Case(
        "form: absolute of OPTIONS without a path",
        request(b"OPTIONS http://models.example.org HTTP/1.1", HOST) + PULL,
        (OK, DENIED),
    ),
    denied("form: absolute for a path", _get(b"/http://models.example.org/v1/models")),
)

METHODS = (
    *(
        denied(
            f"method: {name} of what GET may",
            request(name.encode() + b" /v1/models HTTP/1.1", HOST, b"Content-Length: 0"),
            METHOD,
        )
        for name in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "PURGE", "QUERY", "X")
    ),
    denied("method: GET of what POST may", _get(b"/v1/chat/completions"), METHOD),
    Case(
        "method: HEAD of what GET may",
        request(b"HEAD /v1/models HTTP/1.1", HOST),
        (METHOD | EITHER,),
        (Request(b"HEAD", b"/v1/models"),),
    ),
    refused("method: TRACE", request(b"TRACE /v1/models HTTP/1.1", HOST), METHOD),
    denied("method: TRACK", request(b"TRACK /v1/models HTTP/1.1", HOST), METHOD),
    refused("method: CONNECT", request(b"CONNECT 127.0.0.1:11434 HTTP/1.1", HOST) + PULL, METHOD),
    refused("method: CONNECT of a path", request(b"CONNECT /v1/models HTTP/1.1", HOST), METHOD),
    *(
        accepted(
            f"method: {name} changes nothing",
            chat(name.encode() + b": DELETE", b"Content-Length: 2", body=b"{}"),
            sees_chat(b"{}"),
        )
        for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
    ),
    *(
        accepted(
            f"path: {name} changes nothing",
            chat(name.encode() + b": /api/pull", b"Content-Length: 2", body=b"{}"),
            sees_chat(b"{}"),
        )
        for name in ("X-Original-URL", "X-Rewrite-URL")
    ),
)

CASES = (*ALLOWED, *TRAVERSALS, *FORMS, *METHODS)
