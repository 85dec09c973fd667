"""What always holds of a conversation through the gate, whatever the two sides have said.

Reads what the gate took a second time (`wire`), and holds what it gave against that: all that
went to the backend is an admitted request, whole or in part; all that went to the peer is an
answer of the backend or of ours. Nothing is left over on either side.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from tests.fuzz import wire
from tests.fuzz.driver import CLIENT_CERTIFICATE, PEER, REMOTE_IP, Driver, Exchange

# In a request that is refused, and in no other: it must never be seen at the backend.
MARKER = b"x7Refused"
_CONTINUE = b"HTTP/1.1 100 Continue"
_OURS_ONCE = (b"host", b"x-spiffe-id", b"x-forwarded-client-cert", b"x-request-id")
_FROM_PROXY = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
_NEVER_FORWARDED = {
    b"connection",
    b"expect",
    b"http2-settings",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"upgrade",
}
_OURS = {*_OURS_ONCE, *_FROM_PROXY, b"content-length", b"transfer-encoding"}
_NOT_KEPT = _OURS | _NEVER_FORWARDED
# What steers a model server, one of each kind.
_STEERING = {b"x-conversation-id", b"x-session-id", b"x-override-priority"}
_SIGN = re.compile(rb"[^0-9a-z]")
_FRAMING = {b"content-length", b"transfer-encoding"}


def check(driver: Driver) -> None:
    """Check what went to the backend, and what to the peer."""
    asked = _asked(driver)
    _check_backends(driver, asked)
    _check_marker(driver, asked)
    _check_answers(driver, asked)


# What the peer asked for, as it is read here.


def _asked(driver: Driver) -> list[wire.Message]:
    """Give the messages of all requests whose head the gate took."""
    raw, at, asked = bytes(driver.received), 0, []
    for exchange in driver.exchanges:
        at = wire.behind_empty_lines(raw, at)
        message = wire.read_request(raw, at)
        assert message is not None
        _check_understood(message, exchange)
        asked.append(message)
        at = message.end
    last = asked[-1] if asked else None
    assert all(message.complete for message in asked[:-1])
    at = wire.behind_empty_lines(raw, at)
    if driver.state == "head":
        assert last is None or last.complete
        assert b"\r\n\r\n" not in raw[at:], "a whole head, and no verdict"
        assert len(raw) - at < driver.settings.max_head_bytes
    if last is not None and driver.state in ("exchange", "skip"):
        assert not last.broken, "a broken body, and no verdict"
        assert last.complete == driver.gate.request_is_complete
    return asked


def _check_understood(message: wire.Message, exchange: Exchange) -> None:
    request = exchange.request
    method, target, version = message.line.split(b" ")
    assert method.decode() == request.method
    assert method.isalpha()
    assert method.isupper()
    if not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        scheme, _, rest = target.partition(b"://")
        assert scheme.lower() in (b"http", b"https")
        authority, slash, path = rest.partition(b"/")
        assert authority.lower() == request.host.lower()
        target = b"/" + path if slash else b"*" if method == b"OPTIONS" else b"/"
    assert target.decode() == request.path + request.query
    assert version == b"HTTP/1.%d" % request.minor
    if request.minor and message.value(b"host") is None:
        raise AssertionError("HTTP/1.1 without Host")
    if message.value(b"host") is not None:
        assert message.value(b"host") == request.host != b""
    length, coding = message.value(b"content-length"), message.value(b"transfer-encoding")
    assert length is None or (coding is None and length.isdigit())
    assert coding is None or (coding.lower() == b"chunked" and request.minor == 1)
    assert request.length == (None if coding else int(length or b"0"))
    assert tuple(message.headers) == request.headers
    assert request.wants_close == (b"close" in message.options() or request.minor == 0)


# What the backend got.


def _check_backends(driver: Driver, asked: Sequence[wire.Message]) -> None:
    found = {
        id(exchange): message for exchange, message in zip(driver.exchanges, asked, strict=True)
    }
    for backend in driver.backends:
        raw, at = bytes(backend.sent), 0
        for exchange in backend.exchanges:
            written = wire.read_request(raw, at, strict=True)
            assert written is not None
            _check_request(written, exchange, found[id(exchange)])
            at = written.end
            assert written.complete or exchange is backend.exchanges[-1]
        assert at == len(raw)


def _check_request(written: wire.Message, exchange: Exchange, asked: wire.Message) -> None:
    request = exchange.request
    target = request.path + request.query
    assert written.line == f"{request.method} {target} HTTP/1.1".encode()
    assert asked.body.startswith(written.body)
    if exchange.peer_error is None and exchange.backend_error is None:
        assert written.body == asked.body
        assert written.complete == asked.complete
    elif exchange.peer_error is not None:
        assert not written.complete
    _check_fields(written, exchange, asked)


def _check_fields(written: wire.Message, exchange: Exchange, asked: wire.Message) -> None:
    forwarding = exchange.forwarding
    plain = [_plain(name) for name in written.names]
    for name in _OURS_ONCE + _FROM_PROXY:
        if name == b"x-forwarded-host" and not exchange.request.host:
            continue  # HTTP/1.0 named none, and only a trusted proxy could tell
        assert plain.count(name) == written.names.count(name) == 1, name
    assert written.value(b"host") == forwarding.host.encode()
    assert written.value(b"x-spiffe-id") == PEER.encode()
    assert written.value(b"x-forwarded-client-cert") == CLIENT_CERTIFICATE.encode()
    assert written.value(b"x-request-id") == exchange.request_id.encode()
    addresses = (written.value(b"x-forwarded-for") or b"").split(b", ")
    assert addresses[-1] == REMOTE_IP.encode()
    if not forwarding.trusted_proxy:
        assert len(addresses) == 1
        assert written.value(b"x-forwarded-proto") == b"https"
        assert (written.value(b"x-forwarded-host") or b"") == exchange.request.host
    assert [name for name in plain if name in _FRAMING] == (
        [b"transfer-encoding"]
        if exchange.request.length is None
        else [b"content-length"] * (b"content-length" in asked.names)
    )
    _check_kept(written, exchange, asked)


def _check_kept(written: wire.Message, exchange: Exchange, asked: wire.Message) -> None:
    """All that the peer said and that is not for us goes on, in its order and unchanged."""
    named, trusted = asked.options(), exchange.forwarding.trusted_proxy
    kept = []
    for name, value in asked.headers:
        plain = _plain(name)
        if plain in _NOT_KEPT or name in named:
            continue
        of_proxy = plain in (b"forwarded", b"x-real-ip") or plain.startswith(b"x-forwarded-")
        if of_proxy and not (trusted and name == plain):
            continue
        if plain in _STEERING or (plain == b"origin" and _is_judged(asked, exchange)):
            continue
        kept.append((name, value))
    kept.append((b"via", b"1.%d spiffe-sidecar" % exchange.request.minor))
    assert [item for item in written.headers if item[0] not in _OURS] == kept


def _is_judged(asked: wire.Message, exchange: Exchange) -> bool:
    """Tell whether an Origin is not the backend's to judge."""
    if exchange.forwarding.drop_origin:
        return True
    hosts = [exchange.request.host]
    if exchange.forwarding.trusted_proxy and b"x-forwarded-host" not in asked.options():
        hosts += b",".join(asked.values(b"x-forwarded-host")).split(b",")
    own = {
        b"%b://%b" % (scheme, host.strip().lower())
        for host in hosts
        if host.strip()
        for scheme in (b"http", b"https")
    }
    return {origin.lower() for origin in asked.values(b"origin")} <= own


@functools.lru_cache(maxsize=10_000)
def _plain(name: bytes) -> bytes:
    """Give the name as the servers read it that take any sign for another."""
    return _SIGN.sub(b"-", name)


def _check_marker(driver: Driver, asked: Sequence[wire.Message]) -> None:
    raw = bytes(driver.received)
    admitted = [
        message
        for exchange, message in zip(driver.exchanges, asked, strict=True)
        if exchange.backend is not None
    ]
    if MARKER in raw and not any(MARKER in raw[one.start : one.end] for one in admitted):
        assert not any(MARKER in backend.sent for backend in driver.backends)


# What the peer got.


def _check_answers(driver: Driver, asked: Sequence[wire.Message]) -> None:
    raw, at = bytes(driver.to_peer), 0
    for exchange, message in zip(driver.exchanges, asked, strict=True):
        is_last = exchange is driver.exchanges[-1]
        ended = is_last and driver.state == "closed"
        at = _check_answer(raw, at, exchange, message, ended=ended)
        assert message.complete or not exchange.keeps
        assert exchange.keeps or (is_last and driver.state != "head")
    if driver.form_error is not None:
        last = wire.read_answer(raw, at, to_head=False, strict=True)
        assert last is not None
        assert wire.status_of(last) == driver.form_error.status
        assert last.complete
        assert last.value(b"connection") == b"close"
        at = last.end
    assert at == len(raw), raw[at:][:200]


def _check_answer(
    raw: bytes, at: int, exchange: Exchange, asked: wire.Message, *, ended: bool
) -> int:
    """Check the answer to one request; give where the next one begins."""
    interim, final, behind = _backend_said(exchange)
    if exchange.continued:
        interim = [_CONTINUE, *interim]
    to_head = exchange.request.method == "HEAD"
    given = None
    while (given := wire.read_answer(raw, at, to_head=to_head, strict=True, ended=ended)) and (
        wire.status_of(given) < 200
    ):
        assert interim, given.line
        assert given.line == interim.pop(0)
        at = given.end
    if exchange.own is not None:
        assert given is not None
        _check_own(given, exchange)
        return given.end
    if not exchange.begun:
        assert final is None or exchange.backend_error is not None
        assert not exchange.cut, "the peer got nothing at all"
        return at
    assert given is not None
    assert final is not None
    assert not interim
    _check_given(given, exchange, final)
    if exchange.cut or not given.complete:
        return given.end
    assert given.value(b"connection") == (None if exchange.keeps else b"close")
    whole = asked.complete and final.complete and not behind and not exchange.backend_ended
    last = final.line.startswith(b"HTTP/1.0") or b"close" in final.options()
    assert exchange.reusable == (whole and not last)
    return given.end


def _backend_said(exchange: Exchange) -> tuple[list[bytes], wire.Message | None, bool]:
    """Give the interim answers that may go on, the final one, and whether bytes are behind it."""
    raw, at = bytes(exchange.received), 0
    interim: list[bytes] = []
    to_head, ended = exchange.request.method == "HEAD", exchange.backend_ended
    try:
        while message := wire.read_answer(raw, at, to_head=to_head, ended=ended):
            status = wire.status_of(message)
            if status >= 200:
                return interim, message, message.end < len(raw)
            if status == 101:
                break
            if status != 100 and exchange.request.minor == 1:
                interim.append(_status_line(message))
            at = message.end
    except (wire.WireError, ValueError):
        assert exchange.backend_error is not None
    return interim, None, False


def _status_line(message: wire.Message) -> bytes:
    return b"HTTP/1.1" + message.line[8:12] + b" " + message.line[13:]


def _check_own(given: wire.Message, exchange: Exchange) -> None:
    assert exchange.own is not None
    assert wire.status_of(given) == exchange.own.status
    assert given.complete
    assert given.value(b"x-request-id") == exchange.request_id.encode()
    assert given.value(b"connection") == (None if exchange.keeps else b"close")
    assert given.body == (b"" if exchange.request.method == "HEAD" else exchange.own.body)


def _check_given(given: wire.Message, exchange: Exchange, final: wire.Message) -> None:
    """The backend's answer, and nothing of it changed but what is ours."""
    assert given.line == _status_line(final)
    assert final.body.startswith(given.body)
    assert given.value(b"x-request-id") == exchange.request_id.encode()
    if not exchange.cut:
        assert given.body == final.body
        assert given.complete == final.complete
        assert exchange.backend_error is None
        assert not final.broken
    assert given.value(b"content-length") is None or given.value(b"transfer-encoding") is None
    assert exchange.request.minor or b"transfer-encoding" not in given.names
    dropped = (_NEVER_FORWARDED - {b"expect"}) | _FRAMING | final.options()
    dropped |= exchange.extras.replaces | {b"x-request-id"}
    kept = [item for item in final.headers if item[0] not in dropped]
    ours = [(name.lower().encode(), value.encode()) for name, value in exchange.extras.headers]
    ours.append((b"x-request-id", exchange.request_id.encode()))
    framing = {*_FRAMING, b"connection"}
    assert sorted(item for item in given.headers if item[0] not in framing) == sorted(kept + ours)
