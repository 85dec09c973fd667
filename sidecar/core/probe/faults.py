"""What kept a probe from an answer -> the hop that failed, and what to do.

Gets what an adapter met (how a connection failed, what a server said) and gives a `Fault`. One
place for them, so that each remedy is written once and what looks alike is told apart here. Who
the peer is, is the business of `peer`; what its answer means, of `answer`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence

from sidecar.core.probe.report import Fault, Hop
from sidecar.core.probe.target import ProbeTarget
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.status import printable

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[^\r\n]*")
_SERVER = re.compile(rb"\r\nserver:[ \t]*([^\r\n]{1,80})", re.IGNORECASE)
# TLS alerts that are about a certificate; `internal_error` is what many a callback's no becomes.
_ABOUT_CERTIFICATES = ("certificate", "unknown ca", "access denied", "internal error")
# What comes later is of the answer.
_HOP_OF_PHASE = {
    "identity": Hop.IDENTITY,
    "name": Hop.NAME,
    "connect": Hop.CONNECT,
    "handshake": Hop.TLS,
}


class ConnectEnd(enum.StrEnum):
    """How an attempt to connect failed."""

    REFUSED = "refused"
    TIMEOUT = "timeout"
    NO_ROUTE = "no_route"
    NOT_PERMITTED = "not_permitted"
    RESET = "reset"
    OTHER = "other"


class HandshakeEnd(enum.StrEnum):
    """How a handshake failed, as far as the connection tells."""

    NOT_TLS = "not_tls"
    SILENT = "silent"
    CLOSED = "closed"
    ALERT = "alert"
    OWN_SVID = "own_svid"
    NOT_TRUSTED = "not_trusted"  # by us
    PROTOCOL = "protocol"


def not_resolved(host: str, reason: str) -> Fault:
    """Give the fault of a name that has no address."""
    hint = "is it spelled right, and does this host's DNS or /etc/hosts know it? or use the address"
    message = f"the name {host} has no address: {printable(reason)}"
    return Fault(Hop.NAME, "not_resolved", message, hint)


def not_connected(target: ProbeTarget, end: ConnectEnd, attempts: Sequence[str]) -> Fault:
    """Give the fault of a connection that did not come about; `attempts` say all that was tried."""
    message = "; ".join(attempts)
    return Fault(Hop.CONNECT, end.value, message, _connect_hint(target, end))


def _connect_hint(target: ProbeTarget, end: ConnectEnd) -> str:
    port = target.port
    usual = "" if port != 443 else "; no port was given, and a sidecar's is mostly 6701"
    if end is ConnectEnd.REFUSED:
        return (
            f"the host is there, but nothing listens on port {port}: on it, is the sidecar running "
            "(`spiffe-sidecar status --config FILE`; without an SVID it does not listen), and does "
            f"[listener] address name this port, and 0.0.0.0 or this address{usual}"
        )
    if end is ConnectEnd.TIMEOUT:
        return (
            f"is the host up and awake, is it the right address, and does no firewall on the way, "
            f"or on it, drop port {port}{usual}"
        )
    if end is ConnectEnd.NO_ROUTE:
        return (
            "this host has no way there: is the network or VPN up, and the address right? "
            "on a Mac, may this program use the local network (Privacy & Security)?"
        )
    if end is ConnectEnd.NOT_PERMITTED:
        return "this host itself forbids it: look at its firewall's rules for outgoing connections"
    return f"something takes connections on port {port} and drops them: a proxy, a firewall?"


def plain_http(target: ProbeTarget, said: bytes, *, on_loopback: bool) -> Fault:
    """Give the fault of a server that speaks HTTP without TLS; `said` is its answer."""
    message = f"PLAIN TEXT: {target.where} speaks HTTP without TLS{_shown_server(said)}"
    sidecar = f"probe the sidecar's port of {target.host}, mostly 6701"
    if on_loopback:
        hint = (
            f"on loopback a model server is where it belongs, and only this host asks it: {sidecar}"
        )
        return Fault(Hop.TLS, "plain_http", message, hint)
    message += ", and answers whoever asks, without identity and policy"
    hint = (
        "if that is the model server, take it off the network: bind it to 127.0.0.1 (Ollama: "
        f"OLLAMA_HOST=127.0.0.1:11434), and {sidecar}"
    )
    return Fault(Hop.TLS, "plain_http", message, hint)


def speaks_http(said: bytes) -> bool:
    """Tell whether a server's bytes are an answer in plain HTTP."""
    return _STATUS_LINE.match(said) is not None


def serves_http(said: bytes) -> bool:
    """Tell whether a server takes plain HTTP: many a TLS server says 400 to it in plain text."""
    status = _STATUS_LINE.match(said)
    return status is not None and status[1] != b"400"


def _shown_server(said: bytes) -> str:
    if b"Ollama is running" in said:
        return " (it says 'Ollama is running')"
    server = _SERVER.search(said)
    if server:
        return f" (it calls itself {server[1].decode('latin-1')!r})"
    status = _STATUS_LINE.match(said)
    return f" (it answers {status[0][:80].decode('latin-1')!r})" if status else ""


def not_tls(target: ProbeTarget, said: bytes) -> Fault:
    """Give the fault of a server that answers a TLS greeting with something else."""
    message = f"{target.where} does not speak TLS: it says {said[:40]!r}"
    hint = "is that the sidecar's port? [listener] address in its configuration says which one is"
    return Fault(Hop.TLS, "not_tls", message, hint)


def handshake_silent(target: ProbeTarget, seconds: float) -> Fault:
    """Give the fault of a server that takes a connection and says nothing."""
    message = f"{target.where} took the connection, and did not finish a handshake in {seconds:g} s"
    hint = (
        "is that a TLS port at all? if it is the sidecar's: its host may be overloaded, or a "
        "firewall between lets small packets through only"
    )
    return Fault(Hop.TLS, "silent", message, hint)


def handshake_closed(target: ProbeTarget, reason: str) -> Fault:
    """Give the fault of a server that ends the connection instead of a handshake."""
    message = f"{target.where} ended the connection during the handshake: {printable(reason)}"
    hint = (
        "a sidecar without a valid identity does so: look at its `spiffe-sidecar status` and log; "
        "otherwise it is not a TLS port, or a proxy in between has nobody behind it"
    )
    return Fault(Hop.TLS, "closed", message, hint)


def handshake_alert(target: ProbeTarget, words: str) -> Fault:
    """Give the fault of a server that refuses our greeting."""
    message = f"{target.where} refused the handshake before it showed a certificate: {words}"
    hint = (
        "it speaks TLS, but not as we do (TLS 1.2 or 1.3, AEAD ciphers), or it does not know the "
        "name: is it a sidecar?"
    )
    return Fault(Hop.TLS, "alert", printable(message), hint)


def handshake_failed(target: ProbeTarget, words: str) -> Fault:
    """Give the fault of a handshake that OpenSSL cannot go on with."""
    message = f"no handshake with {target.where}: {printable(words)}"
    return Fault(Hop.TLS, "protocol", message, "it speaks TLS in a way that no sidecar does")


def own_svid_refused(own: SpiffeId, words: str) -> Fault:
    """Give the fault of a server that answers our SVID with a TLS alert."""
    if any(one in words for one in _ABOUT_CERTIFICATES):
        what = f"the peer refused our SVID {own} with a TLS alert: {printable(words)}"
    else:
        what = f"the peer ended the connection after the handshake with a TLS alert: {words}"
    return Fault(Hop.OWN_SVID, "alert", printable(what), _alert_hint(own, words))


def _alert_hint(own: SpiffeId, words: str) -> str:
    log = "its log has the reason (a sidecar's: 'peer refused')"
    if "expired" in words:
        return f"compare the clocks of both hosts; {log}"
    # A sidecar cannot choose its alert: what it says is the same for all of these.
    return (
        f"does it trust {own.trust_domain}: is its agent of the same trust domain, or federated "
        f"with it, and is its trust bundle fresh? are the clocks of both hosts right? {log}"
    )


def closed_after_handshake(reason: str, own: SpiffeId, *, asked: bool) -> Fault:
    """Give the fault of a connection that ended after the handshake, before any answer."""
    message = f"the peer took the handshake and ended the connection before any byte: {reason}"
    hint = (
        f"in mode stream a sidecar does so when its policy does not name {own} or when its model "
        "server cannot be reached, in either mode when it has too many connections: its log says "
        "which ('peer refused' or 'backend unreachable')"
    )
    if not asked:
        hint = f"the peer did not ask for our certificate, so it is no sidecar; else: {hint}"
    return Fault(Hop.OWN_SVID, "closed", printable(message), hint)


def not_http(target: ProbeTarget, reason: str) -> Fault:
    """Give the fault of an answer that is no HTTP/1.1."""
    message = f"what came back is no HTTP/1.1 answer: {printable(reason)}"
    hint = f"a sidecar in mode stream carries anything; tls://{target.where} probes the handshake"
    return Fault(Hop.ANSWER, "not_http", message, hint)


def broke_off(reason: str, size: int) -> Fault:
    """Give the fault of an answer that was begun and not finished."""
    message = f"the answer broke off after {size} bytes of its body: {printable(reason)}"
    hint = (
        "did the model server end, or the sidecar (a restart, a rule taken away, an SVID that "
        "expired)? the sidecar's log has a line with this request's ID"
    )
    return Fault(Hop.ANSWER, "broke_off", message, hint)


def silent(seconds: float, size: int | None) -> Fault:
    """Give the fault of an answer that does not come, or not on."""
    began = "no byte of an answer" if size is None else f"no more of the answer after {size} bytes"
    hint = (
        "is the model server loading a model, or busy? --timeout waits longer; a sidecar ends the "
        "wait itself after first_byte of [timeouts] (600 s), and within an answer between_bytes"
    )
    return Fault(Hop.ANSWER, "silent", f"{began} within {seconds:g} s", hint)


def request_stuck(seconds: float, sent: int, size: int) -> Fault:
    """Give the fault of a request that the peer does not take."""
    message = f"the peer took {sent} of {size} bytes of the request and no more for {seconds:g} s"
    return Fault(Hop.ANSWER, "request_stuck", message, "is the model server reading what it gets?")


def too_slow(seconds: float, at: str) -> Fault:
    """Give the fault of a probe that was not done in the time for all of it; `at` is its phase."""
    message = f"not done within {seconds:g} s; it was at: {at}"
    return Fault(_HOP_OF_PHASE.get(at, Hop.ANSWER), "too_slow", message, "--max-time waits longer")
