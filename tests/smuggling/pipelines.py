"""Cases: more than one request on a connection, and backends that answer in odd ways.

RFC 9112 9 (Connection Management). Each request is decided on its own and answered in its turn; a
body is never read as a request, the body of a denied request least of all.
"""

from __future__ import annotations

from tests.smuggling.case import (
    BAD,
    DENIED,
    HOST,
    NOTHING,
    OK,
    PULL,
    SEES_MODELS,
    SILENT,
    TOO_LARGE,
    VERSION_LINE,
    Case,
    Request,
    accepted,
    chat,
    chunked,
    denied,
    models,
    refused,
    request,
    sees_chat,
    sized,
)

SEES_VERSION = Request(b"GET", b"/api/version")
VERSION = request(VERSION_LINE, HOST)
PULL_LINE = b"POST /api/pull HTTP/1.1"
PULL_CHUNKS = request(
    PULL_LINE,
    HOST,
    b"Transfer-Encoding: chunked",
    body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(models()), models()),
)
PULL_HIDES = request(PULL_LINE, HOST, b"Content-Length: %d" % len(models()), body=models())
UNTIL = OK | {NOTHING}  # served, unless the gate ends the connection at the refusal before it

PIPELINES = (
    accepted("pipeline: ten", models() * 10, *[SEES_MODELS] * 10),
    accepted(
        "pipeline: three kinds",
        models() + sized(b"hello") + VERSION,
        SEES_MODELS,
        sees_chat(b"hello"),
        SEES_VERSION,
    ),
    Case("pipeline: allowed, denied", models() + PULL, (OK, DENIED), (SEES_MODELS,)),
    Case(
        "pipeline: denied, allowed",
        request(b"GET /api/ps HTTP/1.1", HOST) + models(),
        (DENIED, OK),
        (SEES_MODELS,),
    ),
    Case(
        "pipeline: denied with a body, allowed",
        PULL + models(),
        (DENIED, OK),
        (SEES_MODELS,),
    ),
    Case(
        "pipeline: ten, every second one denied",
        (models() + PULL) * 5,
        (OK, DENIED) * 5,
        (SEES_MODELS,) * 5,
    ),
    Case(
        "pipeline: allowed, bad, allowed",
        models() + models(b"X : y") + models(),
        (OK, BAD),
        (SEES_MODELS,),
        ends=True,
    ),
    Case(
        "pipeline: allowed, then garbage",
        models() + b"\0\0\0\0\r\n\r\n" + models(),
        (OK, BAD),
        (SEES_MODELS,),
        ends=True,
    ),
    Case(
        "pipeline: allowed, then half a head",
        models() + models()[:20],
        (OK, SILENT),
        (SEES_MODELS,),
    ),
    Case(
        "pipeline: allowed, then half a body",
        models() + chat(b"Content-Length: 10", body=b"hello"),
        (OK, SILENT),
        (SEES_MODELS,),
        begun=sees_chat(b"hello"),
    ),
    refused("pipeline: bad, allowed", models(b"X : y") + models()),
    refused(
        "pipeline: too large, allowed",
        chat(b"Content-Length: 99999999999999") + models() * 3,
        TOO_LARGE,
    ),
    denied("pipeline: denied, its body is a request", PULL_HIDES),
    denied("pipeline: denied, its chunk is a request", PULL_CHUNKS),
    Case(
        "pipeline: denied, its body is a request, then allowed",
        PULL_HIDES + VERSION,
        (DENIED, OK),
        (SEES_VERSION,),
    ),
    Case(
        "pipeline: denied, its chunk is a request, then allowed",
        PULL_CHUNKS + VERSION,
        (DENIED, UNTIL),
        (SEES_VERSION,),
    ),
    Case(
        "pipeline: denied, its body is cut off",
        request(PULL_LINE, HOST, b"Content-Length: 1000", body=models()),
        (DENIED,),
    ),
    Case(
        "pipeline: denied, its chunks are bad",
        request(PULL_LINE, HOST, b"Transfer-Encoding: chunked", body=b"+5\r\n" + models()),
        (DENIED,),
    ),
    Case(
        "pipeline: denied, a megabyte that is requests",
        request(
            PULL_LINE,
            HOST,
            b"Content-Length: %d" % (len(models()) * 18_000),
            body=models() * 18_000,
        )
        + VERSION,
        (DENIED | TOO_LARGE, UNTIL),
        (SEES_VERSION,),
    ),
)

ANSWERS = (
    accepted("answer: chunked", models() * 3, *[SEES_MODELS] * 3, style="chunked"),
    Case(
        "answer: early, a request as body",
        sized(PULL) + models(),
        (OK, UNTIL),
        (sees_chat(PULL), SEES_MODELS),
        begun=sees_chat(PULL),
        style="early",
    ),
    Case(
        "answer: early, a request as chunk",
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(PULL), PULL)) + models(),
        (OK, UNTIL),
        (sees_chat(PULL), SEES_MODELS),
        begun=sees_chat(PULL),
        style="early",
    ),
    Case(
        "answer: early, the body never ends",
        chat(b"Content-Length: 1000", body=PULL),
        (OK,),
        begun=sees_chat(PULL),
        style="early",
    ),
    Case(
        "answer: the backend closes",
        models() + PULL + models(),
        (OK, DENIED, OK),
        (SEES_MODELS,) * 2,
        style="closing",
    ),
    # A second answer that nobody asked for must not become the answer to the next request.
    Case(
        "answer: twice",
        models() + VERSION,
        (OK, OK | {502}),
        (SEES_MODELS, SEES_VERSION),
        style="twice",
    ),
    Case(
        "answer: twice, then what is denied",
        models() + PULL,
        (OK, DENIED | {502}),
        (SEES_MODELS,),
        style="twice",
    ),
)

CASES = (*PIPELINES, *ANSWERS)
