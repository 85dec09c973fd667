"""Cases: what a request asks of the connection itself, with Connection, Upgrade and Expect.

RFC 9110 7.6.1 (Connection), 7.8 (Upgrade), 10.1.1 (Expect). What belongs to the peer's connection
ends here: it must not take away what frames the message, nor turn the connection into another.
"""

from __future__ import annotations

from tests.smuggling.case import (
    DENIED,
    HOST,
    NOTHING,
    OK,
    PULL,
    SEES_MODELS,
    SILENT,
    Case,
    accepted,
    chat,
    chunked,
    denied,
    either,
    models,
    refused,
    request,
    sees_chat,
    sized,
)

PULL_LINE = b"POST /api/pull HTTP/1.1"

OPTIONS = (
    accepted("Connection: close", models(b"Connection: close"), SEES_MODELS),
    *(
        Case(
            f"Connection: nothing behind {value!r}",
            models(b"Connection: " + value.encode()) + models() + PULL,
            (OK,),
            (SEES_MODELS,),
            ends=True,
        )
        for value in ("close", "CLOSE", "x, close", "close, keep-alive", ",close,", "\tclose\t")
    ),
    Case(
        "Connection: nothing behind a second field's close",
        models(b"Connection: keep-alive", b"Connection: close") + PULL,
        (OK,),
        (SEES_MODELS,),
        ends=True,
    ),
    *(
        either(
            f"Connection: {name.decode()} of a sized body",
            chat(b"Connection: " + name, b"Content-Length: %d" % len(PULL), body=PULL),
            sees_chat(PULL),
        )
        for name in (b"Content-Length", b"close, content-length", b"Content-Type, Content-Length")
    ),
    either(
        "Connection: Transfer-Encoding of a chunked body",
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(PULL), PULL), b"Connection: Transfer-Encoding"),
        sees_chat(PULL),
    ),
    either("Connection: Host", models(b"Connection: Host"), SEES_MODELS),
    either("Connection: Authorization", models(b"Connection: authorization"), SEES_MODELS),
    either("Connection: empty", models(b"Connection:"), SEES_MODELS),
    either("Connection: commas", models(b"Connection: ,,,"), SEES_MODELS),
    either("Connection: quoted", models(b'Connection: "close"'), SEES_MODELS),
    either("Connection: ten thousand names", models(b"Connection: " + b"x," * 10_000), SEES_MODELS),
    accepted("Connection: names a header", models(b"Connection: X", b"X: " + b"y"), SEES_MODELS),
    accepted("hop by hop: Keep-Alive", models(b"Keep-Alive: timeout=5, max=9"), SEES_MODELS),
    accepted("hop by hop: Proxy-Connection", models(b"Proxy-Connection: close"), SEES_MODELS),
    accepted("hop by hop: TE", models(b"TE: trailers", b"Connection: TE"), SEES_MODELS),
    accepted("hop by hop: TE alone", models(b"TE: trailers, deflate"), SEES_MODELS),
    accepted("hop by hop: Trailer", models(b"Trailer: Content-Length"), SEES_MODELS),
    accepted(
        "hop by hop: Proxy-Authorization",
        models(b"Proxy-Authorization: Basic eDp5", b"Proxy-Authenticate: Basic"),
        SEES_MODELS,
    ),
)

WEBSOCKET = (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13")
SETTINGS = b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
NO_UPGRADE = frozenset({400, 403, 405, 426, 501})

UPGRADES = (
    refused(
        "upgrade: websocket",
        models(b"Connection: Upgrade", b"Upgrade: websocket", *WEBSOCKET) + PULL,
        NO_UPGRADE,
    ),
    *(
        Case(f"upgrade: {name}", raw + PULL, (OK, DENIED), (seen,))
        for name, raw, seen in (
            (
                "h2c",
                models(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", SETTINGS),
                SEES_MODELS,
            ),
            (
                "h2c of a request with a body",
                sized(PULL, b"Connection: Upgrade", b"Upgrade: h2c"),
                sees_chat(PULL),
            ),
            (
                "h2c of a request with chunks",
                chunked(b"2\r\n{}\r\n0\r\n\r\n", b"Connection: Upgrade", b"Upgrade: h2c"),
                sees_chat(b"{}"),
            ),
            ("TLS", models(b"Connection: Upgrade", b"Upgrade: TLS/1.2"), SEES_MODELS),
            ("to what we speak", models(b"Connection: Upgrade", b"Upgrade: HTTP/1.1"), SEES_MODELS),
            ("letters of both cases", models(b"cONNECTION: uPGRADE", b"uPGRADE: H2C"), SEES_MODELS),
            ("twice", models(b"Connection: Upgrade", *[b"Upgrade: h2c"] * 2), SEES_MODELS),
        )
    ),
    Case(
        "upgrade: not named by Connection",
        models(b"Upgrade: h2c") + PULL,
        (NO_UPGRADE | OK, DENIED | {NOTHING}),
        (SEES_MODELS,),
    ),
    Case(
        "upgrade: only named by Connection",
        models(b"Connection: Upgrade") + PULL,
        (NO_UPGRADE | OK, DENIED | {NOTHING}),
        (SEES_MODELS,),
    ),
    Case(
        "upgrade: settings only",
        models(SETTINGS) + PULL,
        (NO_UPGRADE | OK, DENIED | {NOTHING}),
        (SEES_MODELS,),
    ),
    Case(
        "upgrade: of the second request",
        models() + models(b"Connection: Upgrade", b"Upgrade: websocket", *WEBSOCKET) + PULL,
        (OK, NO_UPGRADE),
        (SEES_MODELS,),
        ends=True,
    ),
    refused(
        "upgrade: HTTP/2 without asking",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9,
        frozenset({400, 505}),
    ),
)

CONTINUE = b"Expect: 100-continue"
UNMET = frozenset({400, 417})

EXPECTATIONS = (
    accepted("Expect: body sent at once", sized(b"hello", CONTINUE), sees_chat(b"hello")),
    accepted(
        "Expect: letters of both cases",
        sized(b"hello", b"eXPECT: 100-Continue"),
        sees_chat(b"hello"),
    ),
    accepted(
        "Expect: chunks sent at once",
        chunked(b"5\r\nhello\r\n0\r\n\r\n", CONTINUE),
        sees_chat(b"hello"),
    ),
    accepted("Expect: a request as body", sized(PULL, CONTINUE), sees_chat(PULL)),
    accepted("Expect: two requests", sized(b"hello", CONTINUE) * 2, *[sees_chat(b"hello")] * 2),
    accepted("Expect: of a request without a body", models(CONTINUE), SEES_MODELS),
    accepted(
        "Expect: HTTP/1.0",
        request(
            b"POST /v1/chat/completions HTTP/1.0",
            HOST,
            CONTINUE,
            b"Content-Length: 5",
            body=b"hello",
        ),
        sees_chat(b"hello"),
    ),
    Case(
        "Expect: body never sent",
        chat(CONTINUE, b"Content-Length: 5"),
        (SILENT,),
        begun=sees_chat(b""),
    ),
    denied(
        "Expect: denied, body not sent", request(PULL_LINE, HOST, CONTINUE, b"Content-Length: 2")
    ),
    Case(
        "Expect: denied, body is a request that is denied too",
        request(PULL_LINE, HOST, CONTINUE, b"Content-Length: %d" % len(PULL), body=PULL),
        (DENIED, DENIED | {NOTHING}),
    ),
    # Who took the 403 for the end of the request would serve the body.
    denied(
        "Expect: denied, body is a request that is allowed",
        request(PULL_LINE, HOST, CONTINUE, b"Content-Length: %d" % len(models()), body=models()),
    ),
    Case("Expect: two", sized(b"hello", CONTINUE, CONTINUE), (UNMET | OK,), (sees_chat(b"hello"),)),
    *(
        Case(
            f"Expect: {value!r}",
            sized(b"hello", b"Expect: " + value.encode()) + PULL,
            (UNMET, DENIED | {NOTHING}),
        )
        for value in (
            "200-ok",
            "100-continue, 100-continue",
            "100-continue=x",
            "100",
            "x=y",
            "100-continue;x",
            "99-continue",
        )
    ),
    refused("Expect: NUL", sized(b"hello", CONTINUE + b"\0") + PULL, UNMET),
    refused("Expect: space before colon", sized(b"hello", b"Expect : 100-continue") + PULL, UNMET),
    Case("Expect: empty", sized(b"hello", b"Expect:"), (UNMET | OK,), (sees_chat(b"hello"),)),
    refused(
        "Expect: both lengths",
        chat(
            CONTINUE, b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + PULL
        ),
    ),
)

CASES = (*OPTIONS, *UPGRADES, *EXPECTATIONS)
