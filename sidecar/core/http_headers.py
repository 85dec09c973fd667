"""Which headers go on: a head is written anew for the other side, never copied.

Gets a parsed head and what we know ourselves (who the peer is, where it came from), gives the
bytes of the head for the backend or for the peer. What a client says of identities is removed in
every spelling before ours is set; what belongs to one connection stays on it, and so does what
steers a model server.
Specification: RFC 9110 (HTTP Semantics) 7.2 (Host), 7.6.1 (Connection), 7.6.3 (Via); RFC 9112
(HTTP/1.1) 6 (Message Body); RFC 6454 4 (Origin of a URI); X-Forwarded-Client-Cert as Envoy writes
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sidecar.core.cors import is_same_origin
from sidecar.core.http_head import Headers, RequestHead, ResponseHead, connection_options
from sidecar.core.presets import steers

# What one connection's ends say to each other (RFC 9110 7.6.1), and what frames a message: the
# framing is ours on each side.
_OF_ONE_CONNECTION = frozenset(
    {
        b"connection",
        b"content-length",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# What only we may say to the backend.
_OURS = frozenset({b"x-spiffe-id", b"x-forwarded-client-cert", b"x-request-id", b"host", b"expect"})
# Many servers read `_` as `-`, and some every sign: X.Spiffe_Id would speak for X-Spiffe-Id.
_PLAIN = bytes(byte if chr(byte).isalnum() and byte < 128 else ord("-") for byte in range(256))
_FORWARDED = frozenset({b"forwarded", b"x-real-ip"})
# What a rule's `trusted_proxy` may tell of those behind it.
_FROM_PROXY = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What the backend is told of one request beside the request itself."""

    host: str  # the authority it is addressed by
    peer: str  # the peer's SPIFFE ID
    client_certificate: str  # value of X-Forwarded-Client-Cert
    remote_ip: str
    request_id: str
    trusted_proxy: bool
    drop_origin: bool = False  # when CORS is ours, the backend need not judge it, too
    # Of those that steer a model server, as `plain_pattern`.
    pass_headers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Extras:
    """What is added to every answer; headers of the same names from the backend are replaced."""

    headers: tuple[tuple[str, str], ...] = ()
    replaces: frozenset[bytes] = frozenset()


def client_certificate(by: str, certificate_hash: str, uri: str) -> str:
    """Give the value of X-Forwarded-Client-Cert: our ID, the SHA-256 of the leaf, the peer's ID."""
    return f"By={by};Hash={certificate_hash};URI={uri}"


def head_for_backend(head: RequestHead, forwarding: Forwarding) -> bytes:
    """Write the request's head for the backend."""
    dropped = connection_options(head.headers)
    if not passes_origin(head, forwarding):
        dropped |= {b"origin"}
    lines = [
        f"{head.method} {head.path}{head.query} HTTP/1.1".encode(),
        b"host: " + forwarding.host.encode(),
    ]
    for name, value in head.headers:
        if name not in dropped and _goes_to_backend(name, forwarding):
            lines.append(name + b": " + value)
    lines += [
        b"via: 1.%d spiffe-sidecar" % head.minor,
        b"x-spiffe-id: " + forwarding.peer.encode(),
        b"x-forwarded-client-cert: " + forwarding.client_certificate.encode(),
        b"x-request-id: " + forwarding.request_id.encode(),
        *_forwarded(head, forwarding, dropped),
    ]
    if head.length is None:
        lines.append(b"transfer-encoding: chunked")
    elif head.length or head.get(b"content-length") is not None:
        lines.append(b"content-length: %d" % head.length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def plain_name(name: str) -> str:
    """Return a header's name as servers read it that take any sign for `-`, in lower case."""
    return name.lower().encode().translate(_PLAIN).decode()


def plain_pattern(text: str) -> str:
    """Return what `pass_headers` says, as `plain_name`; a star at the end stays one."""
    return plain_name(text.removesuffix("*")) + "*" * text.endswith("*")


def passes_origin(head: RequestHead, forwarding: Forwarding) -> bool:
    """Tell whether an Origin goes to the backend, which then judges it.

    That of a page on the host that the peer asked for does not: the backend would hold it against
    the Host that we write, and find another origin.
    """
    origins = head.values(b"origin")
    if not origins or forwarding.drop_origin:
        return False
    hosts = [head.host]
    if forwarding.trusted_proxy and b"x-forwarded-host" not in connection_options(head.headers):
        told = b",".join(head.values(b"x-forwarded-host"))
        hosts += [host.strip(b" \t") for host in told.split(b",")]
    return not all(
        any(is_same_origin(origin.decode("latin-1"), host.decode("latin-1")) for host in hosts)
        for origin in origins
    )


def _goes_to_backend(name: bytes, forwarding: Forwarding) -> bool:
    plain = name.translate(_PLAIN)
    if plain in _OF_ONE_CONNECTION or plain in _OURS or plain in _FROM_PROXY:
        return False
    if plain in _FORWARDED or plain.startswith(b"x-forwarded-"):
        return forwarding.trusted_proxy and plain == name
    return not _steers(plain) or _is_passed(plain.decode(), forwarding.pass_headers)


def _is_passed(plain: str, patterns: frozenset[str]) -> bool:
    return plain in patterns or any(
        pattern.endswith("*") and plain.startswith(pattern[:-1]) for pattern in patterns
    )


# The bound is for names that a peer makes up.
@lru_cache(maxsize=1024)
def _steers(plain: bytes) -> bool:
    return steers(plain.decode())


def _forwarded(head: RequestHead, forwarding: Forwarding, dropped: frozenset[bytes]) -> list[bytes]:
    """Give X-Forwarded-For, -Proto and -Host: a trusted proxy's, or what we see ourselves."""
    told = {
        name: b", ".join(value for field, value in head.headers if field == name)
        for name in _FROM_PROXY
        if forwarding.trusted_proxy and name not in dropped
    }
    before, host = told.get(b"x-forwarded-for"), told.get(b"x-forwarded-host") or head.host
    ip = forwarding.remote_ip.encode()
    return [
        b"x-forwarded-for: " + (before + b", " + ip if before else ip),
        b"x-forwarded-proto: " + (told.get(b"x-forwarded-proto") or b"https"),
        *([b"x-forwarded-host: " + host] if host else []),
    ]


def head_for_peer(
    head: ResponseHead, request: RequestHead, request_id: str, extras: Extras, *, closes: bool
) -> bytes:
    """Write the head of the backend's answer for the peer."""
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += _kept(head.headers, extras)
    if head.is_interim:
        return b"\r\n".join(lines) + b"\r\n\r\n"
    lines.append(b"x-request-id: " + request_id.encode())
    lines += [f"{name.lower()}: {value}".encode("latin-1") for name, value in extras.headers]
    lines += _length_lines(head, request)
    if closes:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _kept(headers: Headers, extras: Extras) -> list[bytes]:
    dropped = connection_options(headers) | extras.replaces | {b"x-request-id"}
    return [
        name + b": " + value
        for name, value in headers
        if name not in dropped and name not in _OF_ONE_CONNECTION
    ]


def _length_lines(head: ResponseHead, request: RequestHead) -> list[bytes]:
    announced = next((value for name, value in head.headers if name == b"content-length"), None)
    if announced is not None and head.status != 204:
        return [b"content-length: " + announced]
    if head.length is None and request.minor == 1:
        return [b"transfer-encoding: chunked"]
    return []
