"""Cases: identity headers that a peer makes up, in every spelling that a reader may accept.

The backend takes X-Spiffe-Id for our word. CGI, WSGI and others read "_" for "-" and letters of
either case as one name, so a header that only looks alike is as good as the real one.
"""

from __future__ import annotations

from tests.smuggling.case import (
    BAD,
    EITHER,
    HOST,
    MODELS,
    OK,
    PULL,
    SEES_MODELS,
    SPOOFED,
    Case,
    Request,
    accepted,
    chunked,
    either,
    models,
    refused,
    request,
    sees_chat,
    sized,
)

OURS = b"spiffe://example.org/workload/traefik"


def _removed(name: str, *fields: bytes) -> Case:
    return accepted(f"identity: {name}", models(*fields), SEES_MODELS)


def _refused(name: str, *fields: bytes) -> Case:
    return refused(f"identity: {name}", models(*fields) + PULL)


def _spelled(*names: bytes) -> tuple[Case, ...]:
    return tuple(_removed(f"named {name.decode()}", name + b": " + SPOOFED) for name in names)


CERT = b'By=spiffe://example.org/gate;URI="' + SPOOFED + b'"'

SPELLINGS = (
    *_spelled(
        b"X-Spiffe-Id",
        b"x-spiffe-id",
        b"X-SPIFFE-ID",
        b"x-SpIfFe-iD",
        b"X_Spiffe_Id",
        b"x_spiffe_id",
        b"X_SPIFFE_ID",
        b"X-Spiffe_Id",
        b"X_Spiffe-Id",
        b"X-Forwarded-Client-Cert",
        b"x-forwarded-client-cert",
        b"X_Forwarded_Client_Cert",
        b"X-Forwarded_Client-Cert",
        b"X_FORWARDED-CLIENT_CERT",
    ),
    _removed("twice", *[b"X-Spiffe-Id: " + SPOOFED] * 2),
    _removed("twice, in two spellings", b"X-Spiffe-Id: " + SPOOFED, b"x_spiffe_id: " + SPOOFED),
    _removed("a hundred times", *[b"X-Spiffe-Id: " + SPOOFED] * 100),
    _removed("first of all", b"X-Spiffe-Id: " + SPOOFED, b"X: y"),
    accepted(
        "identity: before Host",
        request(MODELS, b"X-Spiffe-Id: " + SPOOFED, HOST),
        SEES_MODELS,
    ),
    _removed("empty", b"X-Spiffe-Id:"),
    _removed("empty, underscores", b"X_Spiffe_Id:"),
    _removed("the peer's own", b"X-Spiffe-Id: " + OURS),
    _removed("list", b"X-Spiffe-Id: " + OURS + b", " + SPOOFED),
    _removed("no white space", b"X-Spiffe-Id:" + SPOOFED),
    _removed("tabs around", b"X-Spiffe-Id:\t" + SPOOFED + b"\t"),
    _removed("of Envoy, whole", b"X-Forwarded-Client-Cert: " + CERT),
    _removed("of Envoy, twice", *[b"X-Forwarded-Client-Cert: " + CERT] * 2),
    _removed("named by Connection", b"Connection: X-Spiffe-Id", b"X-Spiffe-Id: " + SPOOFED),
    # The hop-by-hop rule must take away the peer's header, not ours.
    _removed("ours named by Connection", b"Connection: X-Spiffe-Id"),
    _removed("ours named by Connection, other letters", b"Connection: close, x-spiffe-ID"),
    _removed("ours named by Connection, underscores", b"Connection: X_Spiffe_Id"),
    _removed("ours named by Keep-Alive", b"Keep-Alive: X-Spiffe-Id", b"Connection: Keep-Alive"),
)

HIDDEN = (
    _refused("space before colon", b"X-Spiffe-Id : " + SPOOFED),
    _refused("tab before colon", b"X-Spiffe-Id\t: " + SPOOFED),
    _refused("leading space", b" X-Spiffe-Id: " + SPOOFED),
    _refused("leading tab behind a field", b"X: y", b"\tX-Spiffe-Id: " + SPOOFED),
    _refused("behind a bare LF", b"X: y\nX-Spiffe-Id: " + SPOOFED),
    _refused("behind a bare CR", b"X: y\rX-Spiffe-Id: " + SPOOFED),
    _refused("behind CR CR LF", b"X: y\r\r\nX-Spiffe-Id: " + SPOOFED),
    _refused("behind a vertical tab", b"X: y\x0bX-Spiffe-Id: " + SPOOFED),
    _refused("NUL behind the name", b"X-Spiffe-Id\0: " + SPOOFED),
    _refused("NUL before the name", b"\0X-Spiffe-Id: " + SPOOFED),
    _refused("no-break space behind the name", b"X-Spiffe-Id\xa0: " + SPOOFED),
    _refused("en dashes", b"X\xe2\x80\x93Spiffe\xe2\x80\x93Id: " + SPOOFED),
    _refused("spaces for dashes", b"X Spiffe Id: " + SPOOFED),
    _refused("long s", b"X-\xc5\xbfpiffe-Id: " + SPOOFED),
    _refused("dotless i", b"X-Sp\xc4\xb1ffe-Id: " + SPOOFED),
    _refused("folded value", b"X-Spiffe-Id:\r\n " + SPOOFED),
    _refused("NUL in the value", b"X-Spiffe-Id: \0" + SPOOFED),
    either(
        "identity: in a trailer",
        chunked(b"5\r\nhello\r\n0\r\nX-Spiffe-Id: " + SPOOFED + b"\r\n\r\n"),
        sees_chat(b"hello"),
    ),
    either(
        "identity: in a trailer that is announced",
        chunked(
            b"5\r\nhello\r\n0\r\nX-Spiffe-Id: " + SPOOFED + b"\r\n\r\n", b"Trailer: X-Spiffe-Id"
        ),
        sees_chat(b"hello"),
    ),
    Case(
        "identity: in a chunk extension",
        chunked(b"5;X-Spiffe-Id=" + SPOOFED + b"\r\nhello\r\n0\r\n\r\n"),
        (EITHER,),
        (sees_chat(b"hello"),),
        begun=sees_chat(b"hello"),
    ),
    accepted(
        "identity: in the body",
        sized(b"X-Spiffe-Id: " + SPOOFED),
        sees_chat(b"X-Spiffe-Id: " + SPOOFED),
    ),
)

KEPT_ALIVE = (
    accepted(
        "identity: in the second request",
        models() + models(b"X-Spiffe-Id: " + SPOOFED) + models(b"X_Spiffe_Id: " + SPOOFED),
        *[SEES_MODELS] * 3,
    ),
    accepted(
        "identity: in the first request of two",
        models(b"X-Spiffe-Id: " + SPOOFED) + models(),
        *[SEES_MODELS] * 2,
    ),
    Case(
        "identity: behind a body",
        sized(b"hello") + models(b"X-Forwarded-Client-Cert: " + CERT),
        (OK, OK),
        (sees_chat(b"hello"), SEES_MODELS),
    ),
    Case(
        "identity: behind a body that is too short",
        sized(b"hello") + b"X-Spiffe-Id: " + SPOOFED + b"\r\n\r\n",
        (OK, BAD),
        (sees_chat(b"hello"),),
        ends=True,
    ),
)

# Names that a reader of "_" takes for what says how long a body is, or for hop-by-hop headers.
LOOK_ALIKES = tuple(
    Case(
        f"look-alike: {field.decode()}",
        models(field),
        (EITHER,),
        (Request(b"GET", b"/v1/models"),),
    )
    for field in (
        b"Content_Length: 100",
        b"content_length: 100",
        b"Transfer_Encoding: chunked",
        b"Transfer-_Encoding: chunked",
        b"Connection_: close",
        b"Proxy: http://127.0.0.1:1",
    )
)

CASES = (*SPELLINGS, *HIDDEN, *KEPT_ALIVE, *LOOK_ALIKES)
