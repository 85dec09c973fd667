"""Forwarding: identities are ours, hop-by-hop fields stay, and all else goes on as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.http_head import RequestHead, parse_request, parse_response
from sidecar.core.http_headers import (
    Extras,
    Forwarding,
    client_certificate,
    head_for_backend,
    head_for_peer,
    passes_origin,
    plain_name,
)
from tests.fuzz import wire

bounded = settings(max_examples=300, deadline=None, derandomize=True, database=None)
US, APP = "spiffe://example.org/workload/model-server", "spiffe://example.org/app"
HASH = "0123456789abcdef" * 4
XFCC = f"By={US};Hash={HASH};URI={APP}"
FORWARDING = Forwarding(
    host="127.0.0.1:11434",
    peer=APP,
    client_certificate=XFCC,
    remote_ip="192.0.2.7",
    request_id="made-by-us",
    trusted_proxy=False,
)
FROM_PROXY = replace(FORWARDING, trusted_proxy=True)
HOST = b"models.example.org"
OURS = [
    (b"host", b"127.0.0.1:11434"),
    (b"via", b"1.1 spiffe-sidecar"),
    (b"x-spiffe-id", APP.encode()),
    (b"x-forwarded-client-cert", XFCC.encode()),
    (b"x-request-id", b"made-by-us"),
    (b"x-forwarded-for", b"192.0.2.7"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", HOST),
]


def request(*fields: bytes, line: bytes = b"GET /a?b HTTP/1.1", host: bytes = HOST) -> RequestHead:
    """A request with a Host."""
    return parse_request(b"\r\n".join((line, b"Host: " + host, *fields, b"", b"")))


def forwarded(
    *fields: bytes, forwarding: Forwarding = FORWARDING, line: bytes = b"GET /a?b HTTP/1.1"
) -> wire.Message:
    """Read what is written for the backend; strictly, and to its last byte."""
    written = head_for_backend(request(*fields, line=line), forwarding)
    message = wire.read_head(written, 0, strict=True)
    assert message is not None
    assert message.end == len(written)
    return message


def others(message: wire.Message) -> list[tuple[bytes, bytes]]:
    """Give the fields that are not ours, in their order."""
    names = {name for name, _ in OURS}
    return [(name, value) for name, value in message.headers if name not in names]


# To the backend.


def test_backend_is_told_who_asks_and_nothing_is_left_of_the_connection() -> None:
    message = forwarded(b"Accept: a/b", b"ACCEPT: c", b"X-Empty:", b"Cookie: \xe4;  b")
    assert message.line == b"GET /a?b HTTP/1.1"
    assert sorted(message.headers) == sorted(
        [*OURS, (b"accept", b"a/b"), (b"accept", b"c"), (b"x-empty", b""), (b"cookie", b"\xe4;  b")]
    )


def test_fields_go_on_in_their_order() -> None:
    fields = [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), (b"a_b", b"4")]
    assert others(forwarded(*(name + b": " + value for name, value in fields))) == fields


@pytest.mark.parametrize(
    ("line", "written"),
    [
        pytest.param(b"POST /v1/chat?a=%20b HTTP/1.1", b"POST /v1/chat?a=%20b", id="as it is"),
        pytest.param(b"GET /a? HTTP/1.1", b"GET /a?", id="empty query"),
        pytest.param(b"GET /%2e%2e/a HTTP/1.1", b"GET /%2e%2e/a", id="escapes"),
        pytest.param(b"GET http://models.example.org HTTP/1.1", b"GET /", id="absolute"),
        pytest.param(b"GET http://MODELS.example.org/a?b HTTP/1.1", b"GET /a?b", id="absolute, 2"),
        pytest.param(b"GET /a HTTP/1.0", b"GET /a", id="1.0 becomes 1.1"),
    ],
)
def test_request_line_is_written_anew(line: bytes, written: bytes) -> None:
    assert forwarded(line=line).line == written + b" HTTP/1.1"


@pytest.mark.parametrize(
    "host", [b"models.example.org", b"MODELS.example.org:443", b"[::1]:6701", b"localhost"]
)
def test_backend_is_addressed_as_it_wants_and_told_what_the_peer_wanted(host: bytes) -> None:
    head = request(host=host)
    for kept in (FORWARDING.host, host.decode()):
        written = head_for_backend(head, replace(FORWARDING, host=kept))
        message = wire.read_head(written, 0, strict=True)
        assert message is not None
        assert message.value(b"host") == kept.encode()
        assert message.value(b"x-forwarded-host") == host


IDENTITIES = [
    "X-Spiffe-Id",
    "x-spiffe-id",
    "X-SPIFFE-ID",
    "X_Spiffe_Id",
    "x_spiffe-id",
    "X-Spiffe_Id",
    "X.Spiffe.Id",
    "X-Spiffe.Id",
    "X~Spiffe!Id",
    "X-Forwarded-Client-Cert",
    "x-forwarded-client-cert",
    "X_FORWARDED_CLIENT_CERT",
    "X-Forwarded_Client-Cert",
    "X-Forwarded-Client.Cert",
    "X.Forwarded.Client.Cert",
    "X-Request_Id",
    "X_Request_Id",
    "X_Forwarded_For",
    "X-Forwarded_For",
    "X.Forwarded-For",
    "X_Forwarded_Proto",
    "X_Forwarded_Host",
    "X_Forwarded_Port",
    "X_Real_IP",
    "X-Real_IP",
]


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("forwarding", [FORWARDING, FROM_PROXY], ids=["peer", "trusted proxy"])
@pytest.mark.parametrize("times", [1, 2])
def test_nobody_else_speaks_of_identities_in_any_spelling(
    name: str, forwarding: Forwarding, times: int
) -> None:
    field = name.encode() + b": spiffe://example.org/workload/admin"
    message = forwarded(*[field] * times, forwarding=forwarding)
    assert sorted(message.headers) == sorted(OURS)


@pytest.mark.parametrize(
    "value",
    [
        b"By=spiffe://example.org/a;Hash=00;URI=spiffe://example.org/workload/admin",
        b'By=a;Hash=00;Subject="CN=x;y";URI=spiffe://example.org/b,By=c;Hash=11;URI=d',
        b"",
    ],
)
@pytest.mark.parametrize("forwarding", [FORWARDING, FROM_PROXY], ids=["peer", "trusted proxy"])
def test_client_certificate_is_the_one_that_we_saw(value: bytes, forwarding: Forwarding) -> None:
    message = forwarded(b"X-Forwarded-Client-Cert: " + value, forwarding=forwarding)
    assert message.value(b"x-forwarded-client-cert") == XFCC.encode()


def test_client_certificate_names_us_the_leaf_and_the_peer() -> None:
    assert client_certificate(US, HASH, APP) == f"By={US};Hash={HASH};URI={APP}"


ONE_CONNECTIONS = [
    b"Connection: keep-alive",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic eDp5",
    b"Proxy-Authenticate: Basic",
    b"TE: trailers",
    b"Trailer: X-A",
    b"Expect: 100-continue",
    b"Keep_Alive: timeout=5",
    b"Proxy_Connection: keep-alive",
    b"Transfer_Encoding: chunked",
    b"Content_Length: 5",
    b"content.length: 5",
]


@pytest.mark.parametrize("field", ONE_CONNECTIONS)
def test_what_is_said_on_one_connection_stays_there(field: bytes) -> None:
    assert others(forwarded(field)) == []


@pytest.mark.parametrize("field", [b"Up_Grade: x", b"X-TE: y", b"X-Connection: close", b"Tea: z"])
def test_names_that_only_resemble_go_on(field: bytes) -> None:
    name, _, value = field.partition(b": ")
    assert others(forwarded(field)) == [(name.lower(), value)]


@pytest.mark.parametrize(
    "connection",
    [
        pytest.param((b"Connection: X-A",), id="named"),
        pytest.param((b"Connection: x-a",), id="other case"),
        pytest.param((b"Connection: close,\tX-A ,y",), id="in a list"),
        pytest.param((b"Connection: y", b"Connection: X-A"), id="in the second field"),
    ],
)
def test_what_connection_names_stays_on_the_connection(connection: tuple[bytes, ...]) -> None:
    fields = (b"X-A: 1", *connection, b"x-a: 2", b"X-B: 3")
    assert others(forwarded(*fields)) == [(b"x-b", b"3")]


@pytest.mark.parametrize(
    "name",
    [
        b"Host",
        b"X-Spiffe-Id",
        b"X-Forwarded-Client-Cert",
        b"X-Request-Id",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Forwarded-Host",
        b"Content-Length",
    ],
)
@pytest.mark.parametrize("forwarding", [FORWARDING, FROM_PROXY], ids=["peer", "trusted proxy"])
def test_connection_cannot_name_away_what_is_ours(name: bytes, forwarding: Forwarding) -> None:
    fields = (b"Connection: " + name, b"X-Forwarded-For: 198.51.100.1", b"Content-Length: 3")
    message = forwarded(*fields, forwarding=forwarding)
    for field, value in OURS:
        told = message.value(field)
        assert told in (value, b"198.51.100.1, " + value)
    assert message.value(b"content-length") == b"3"


def test_connection_can_name_away_what_a_proxy_says() -> None:
    fields = (b"Connection: X-Forwarded-For", b"X-Forwarded-For: 198.51.100.1")
    message = forwarded(*fields, forwarding=FROM_PROXY)
    assert message.value(b"x-forwarded-for") == b"192.0.2.7"


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        pytest.param((), [], id="no body"),
        pytest.param((b"Content-Length: 0",), [(b"content-length", b"0")], id="empty body"),
        pytest.param((b"Content-Length: 5",), [(b"content-length", b"5")], id="fixed"),
        pytest.param(
            (b"Transfer-Encoding: ChunkeD",), [(b"transfer-encoding", b"chunked")], id="chunked"
        ),
        pytest.param(
            (b"Content-Length: 5", b"Content_Length: 9"), [(b"content-length", b"5")], id="two"
        ),
    ],
)
def test_framing_is_written_once(
    fields: tuple[bytes, ...], framing: list[tuple[bytes, bytes]]
) -> None:
    assert others(forwarded(*fields, line=b"POST / HTTP/1.1")) == framing


BEHIND_PROXY = (
    b"X-Forwarded-For: 198.51.100.1",
    b"X-Forwarded-For: 198.51.100.2, 198.51.100.3",
    b"X-Forwarded-Proto: http",
    b"X-Forwarded-Host: chat.example.org",
    b"X-Forwarded-Port: 80",
    b"X-Forwarded-Server: proxy",
    b"Forwarded: for=198.51.100.1",
    b"X-Real-Ip: 198.51.100.1",
)


def test_nobody_is_believed_whom_he_speaks_for() -> None:
    assert sorted(forwarded(*BEHIND_PROXY).headers) == sorted(OURS)


def test_trusted_proxy_is_believed_whom_it_speaks_for_and_is_added_itself() -> None:
    message = forwarded(*BEHIND_PROXY, forwarding=FROM_PROXY)
    told = b"198.51.100.1, 198.51.100.2, 198.51.100.3, 192.0.2.7"
    assert message.value(b"x-forwarded-for") == told
    assert message.value(b"x-forwarded-proto") == b"http"
    assert message.value(b"x-forwarded-host") == b"chat.example.org"
    assert others(message) == [
        (b"x-forwarded-port", b"80"),
        (b"x-forwarded-server", b"proxy"),
        (b"forwarded", b"for=198.51.100.1"),
        (b"x-real-ip", b"198.51.100.1"),
    ]


def test_trusted_proxy_that_says_nothing_leaves_it_to_us() -> None:
    fields = (b"X-Forwarded-For:", b"X-Forwarded-Proto: ", b"X-Forwarded-Host:")
    assert sorted(forwarded(forwarding=FROM_PROXY).headers) == sorted(OURS)
    assert sorted(forwarded(*fields, forwarding=FROM_PROXY).headers) == sorted(OURS)


@pytest.mark.parametrize("name", [b"Origin", b"origin", b"ORIGIN"])
def test_origin_goes_on_unless_it_is_ours_to_judge(name: bytes) -> None:
    field = name + b": https://chat.example.org"
    assert others(forwarded(field)) == [(b"origin", b"https://chat.example.org")]
    assert others(forwarded(field, forwarding=replace(FORWARDING, drop_origin=True))) == []


@pytest.mark.parametrize(
    ("fields", "trusted", "goes_on"),
    [
        pytest.param((b"Origin: https://models.example.org",), False, False, id="own host"),
        pytest.param((b"Origin: http://models.example.org",), False, False, id="TLS ends before"),
        pytest.param((b"Origin: https://models.example.org:8443",), False, True, id="other port"),
        pytest.param((b"Origin: null",), False, True, id="null"),
        pytest.param(
            (b"Origin: https://models.example.org", b"Origin: https://chat.example.org"),
            False,
            True,
            id="two",
        ),
        pytest.param(
            (b"Origin: https://chat.example.org", b"X-Forwarded-Host: chat.example.org"),
            False,
            True,
            id="host that a peer claims",
        ),
        pytest.param(
            (b"Origin: https://chat.example.org", b"X-Forwarded-Host: chat.example.org, inner"),
            True,
            False,
            id="host that a trusted proxy tells",
        ),
        pytest.param(
            (
                b"Origin: https://chat.example.org",
                b"X-Forwarded-Host: chat.example.org",
                b"Connection: X-Forwarded-Host",
            ),
            True,
            True,
            id="host that was for one connection",
        ),
    ],
)
def test_origin_of_the_host_that_was_asked_for_does_not_go_on(
    fields: tuple[bytes, ...], trusted: bool, goes_on: bool
) -> None:
    forwarding = replace(FORWARDING, trusted_proxy=trusted)
    message = forwarded(*fields, forwarding=forwarding)
    assert (b"origin" in message.names) is goes_on
    assert passes_origin(request(*fields), forwarding) is goes_on


@pytest.mark.parametrize(
    "name",
    [
        *("X-Conversation-Id", "X-data-parallel-rank", "X-Session-ID", "X-Vllm-Priority"),
        *("X-Override-Rid", "X-Override-Bootstrap-Host", "X-SMG-Routing-Key"),
        *("Endpoint-Load-Metrics-Format", "X-Amzn-SageMaker-Session-Id"),
    ],
)
def test_what_steers_a_model_server_stays_here_unless_a_rule_passes_it(name: str) -> None:
    spellings = (
        name,
        name.lower(),
        name.upper(),
        name.replace("-", "_"),
        name.replace("-", ".", 1),
    )
    fields = [spelling.encode() + b": 1" for spelling in spellings]
    for trusted in (False, True):
        held = replace(FORWARDING, trusted_proxy=trusted)
        assert others(forwarded(*fields, forwarding=held)) == []
        passing = replace(held, pass_headers=frozenset({plain_name(name.replace("-", "_"))}))
        assert len(others(forwarded(*fields, forwarding=passing))) == len(fields)
        begun = replace(held, pass_headers=frozenset({plain_name(name)[:-1] + "*"}))
        assert len(others(forwarded(*fields, forwarding=begun))) == len(fields)
        another = replace(held, pass_headers=frozenset({"x-override-zz*", "x-session"}))
        assert others(forwarded(*fields, forwarding=another)) == []
    for like in (
        f"X-My-{name}",
        f"{name}x" if "Override" not in name and "Amzn" not in name else "X-Over",
    ):
        assert len(others(forwarded(like.encode() + b": 1"))) == 1


def test_way_of_the_request_is_told() -> None:
    assert forwarded().values(b"via") == [b"1.1 spiffe-sidecar"]
    message = forwarded(b"Via: 1.1 a", b"Via: 1.0 b", line=b"GET /a HTTP/1.0")
    assert message.values(b"via") == [b"1.1 a", b"1.0 b", b"1.0 spiffe-sidecar"]


def test_backend_is_told_no_host_that_nobody_named() -> None:
    head = parse_request(b"GET / HTTP/1.0\r\n\r\n")
    message = wire.read_head(head_for_backend(head, FORWARDING), 0, strict=True)
    assert message is not None
    assert message.value(b"host") == FORWARDING.host.encode()
    assert message.value(b"x-forwarded-host") is None


NAMES = st.sampled_from([*IDENTITIES, "Connection", "X-A", "X-Forwarded-For", "Te", "Forwarded"])
VALUES = st.sampled_from(["a", "", "x-a", "x-spiffe-id, close", "spiffe://evil", ", ", "X-A,te"])


@bounded
@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.booleans())
def test_ours_are_there_once_whatever_else_is_said(
    fields: list[tuple[str, str]], trusted: bool
) -> None:
    forwarding = replace(FORWARDING, trusted_proxy=trusted)
    message = forwarded(
        *(f"{name}: {value}".encode() for name, value in fields), forwarding=forwarding
    )
    plain = [name.replace(b"_", b"-").replace(b".", b"-") for name in message.names]
    for name, value in OURS:
        assert plain.count(name) == 1
        told = message.value(name)
        assert told == value or (trusted and name.startswith(b"x-forwarded-") and told)
    assert not {b"connection", b"te"} & set(plain)
    assert message.value(b"x-spiffe-id") == APP.encode()
    assert message.value(b"x-forwarded-client-cert") == XFCC.encode()


# To the peer.

NONE = Extras()
HSTS = Extras(
    (("Strict-Transport-Security", "max-age=1"), ("Server", "\xe4")), frozenset({b"server"})
)


def answered(
    *fields: bytes,
    line: bytes = b"HTTP/1.1 200 OK",
    asked: bytes = b"GET / HTTP/1.1",
    extras: Extras = NONE,
    closes: bool = False,
) -> wire.Message:
    """Read what is written for the peer; strictly, and to its last byte."""
    raw = b"\r\n".join((line, *fields, b"", b""))
    head = parse_response(raw, to_head_request=asked.startswith(b"HEAD"))
    written = head_for_peer(head, request(line=asked), "the-id", extras, closes=closes)
    message = wire.read_head(written, 0, strict=True)
    assert message is not None
    assert message.end == len(written)
    return message


def test_peer_gets_the_answer_as_it_is_and_its_request_id() -> None:
    message = answered(
        b"Content-Length: 2", b"X-A: 1", b"Set-Cookie: a", b"set-cookie: b", b"X-Request-Id: other"
    )
    assert message.line == b"HTTP/1.1 200 OK"
    assert message.headers == [
        (b"x-a", b"1"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"x-request-id", b"the-id"),
        (b"content-length", b"2"),
    ]


@pytest.mark.parametrize(
    ("line", "written"),
    [
        pytest.param(b"HTTP/1.1 404 Not Found", b"HTTP/1.1 404 Not Found", id="reason"),
        pytest.param(b"HTTP/1.1 200", b"HTTP/1.1 200 ", id="no reason"),
        pytest.param(b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK", id="1.0 becomes 1.1"),
        pytest.param(b"HTTP/1.1 500 \xe4\tb", b"HTTP/1.1 500 \xe4\tb", id="odd reason"),
    ],
)
def test_status_line_is_written_anew(line: bytes, written: bytes) -> None:
    assert answered(line=line).line == written


@pytest.mark.parametrize("field", [*ONE_CONNECTIONS[:7], b"Upgrade: h2c"])
def test_what_the_backend_says_on_its_connection_stays_there(field: bytes) -> None:
    message = answered(field, b"Content-Length: 0")
    assert message.headers == [(b"x-request-id", b"the-id"), (b"content-length", b"0")]


def test_what_the_backend_names_in_connection_stays_there() -> None:
    message = answered(
        b"X-A: 1", b"Connection: x-b, X-A", b"X-B: 2", b"X-C: 3", b"Content-Length: 0"
    )
    assert [name for name, _ in message.headers] == [b"x-c", b"x-request-id", b"content-length"]


@pytest.mark.parametrize("closes", [False, True])
def test_peer_is_told_that_the_connection_closes(closes: bool) -> None:
    for connection in (b"Connection: close", b"Connection: keep-alive", b"X: y"):
        message = answered(connection, b"Content-Length: 0", closes=closes)
        assert message.value(b"connection") == (b"close" if closes else None)


def test_configured_headers_replace_those_of_the_backend() -> None:
    message = answered(
        b"Server: b", b"SERVER: c", b"X-Server: d", b"Content-Length: 0", extras=HSTS
    )
    assert message.values(b"server") == [b"\xe4"]
    assert message.values(b"strict-transport-security") == [b"max-age=1"]
    assert message.values(b"x-server") == [b"d"]


def test_header_can_be_taken_away_with_nothing_in_its_place() -> None:
    extras = Extras((), frozenset({b"access-control-allow-origin"}))
    message = answered(b"Access-Control-Allow-Origin: *", b"Vary: a", extras=extras)
    assert message.names[0] == b"vary"
    assert message.values(b"access-control-allow-origin") == []


LENGTH, CHUNKED = (b"content-length", b"7"), (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("asked", "status", "field", "framing"),
    [
        pytest.param(b"GET / HTTP/1.1", 200, b"Content-Length: 7", [LENGTH], id="length"),
        pytest.param(b"GET / HTTP/1.1", 200, b"Transfer-Encoding: chunked", [CHUNKED], id="chunks"),
        pytest.param(b"GET / HTTP/1.1", 200, b"X: y", [CHUNKED], id="until the end"),
        pytest.param(b"GET / HTTP/1.0", 200, b"Content-Length: 7", [LENGTH], id="1.0, length"),
        pytest.param(b"GET / HTTP/1.0", 200, b"Transfer-Encoding: chunked", [], id="1.0, chunks"),
        pytest.param(b"GET / HTTP/1.0", 200, b"X: y", [], id="1.0, until the end"),
        pytest.param(b"HEAD / HTTP/1.1", 200, b"Content-Length: 7", [LENGTH], id="HEAD, length"),
        pytest.param(b"HEAD / HTTP/1.1", 200, b"Transfer-Encoding: chunked", [], id="HEAD, chunks"),
        pytest.param(b"HEAD / HTTP/1.1", 200, b"X: y", [], id="HEAD, until the end"),
        pytest.param(b"GET / HTTP/1.1", 204, b"Content-Length: 7", [], id="204, length"),
        pytest.param(b"GET / HTTP/1.1", 204, b"Transfer-Encoding: chunked", [], id="204, chunks"),
        pytest.param(b"GET / HTTP/1.1", 204, b"X: y", [], id="204"),
        pytest.param(b"GET / HTTP/1.1", 304, b"Content-Length: 7", [LENGTH], id="304, length"),
        pytest.param(b"GET / HTTP/1.1", 304, b"X: y", [], id="304"),
        pytest.param(b"GET / HTTP/1.1", 205, b"Content-Length: 7", [LENGTH], id="205"),
    ],
)
def test_peer_is_told_the_length_in_its_own_framing(
    asked: bytes, status: int, field: bytes, framing: list[tuple[bytes, bytes]]
) -> None:
    message = answered(field, line=b"HTTP/1.1 %d X" % status, asked=asked)
    names = {b"content-length", b"transfer-encoding"}
    assert [(name, value) for name, value in message.headers if name in names] == framing


def test_interim_answer_is_its_own_head_and_nothing_of_ours() -> None:
    message = answered(
        b"Link: </a>", b"Connection: x-a", b"X-A: b", line=b"HTTP/1.1 103 Early Hints", extras=NONE
    )
    assert message.line == b"HTTP/1.1 103 Early Hints"
    assert message.headers == [(b"link", b"</a>")]
