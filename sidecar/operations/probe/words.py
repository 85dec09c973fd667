"""The lines that a phase of a probe has for people: what was seen, aligned by whoever shows it."""

from __future__ import annotations

from datetime import datetime

from sidecar.core.policy import PeerPattern
from sidecar.core.probe.report import Answer, Handshake, OwnIdentity, PeerCertificate
from sidecar.core.spiffe_id import TrustDomain
from sidecar.operations.screen_text import count, size, span


def said_of_identity(identity: OwnIdentity, now: datetime) -> tuple[str, ...]:
    """Say who we are."""
    return identity.spiffe_id, *_life(identity, now), f"from {identity.source}"


def said_of_handshake(handshake: Handshake) -> tuple[str, ...]:
    """Say what was agreed on."""
    parts = (handshake.version, handshake.cipher, handshake.group, handshake.alpn)
    return (", ".join(filter(None, parts)),)


def said_of_peer(
    peer: PeerCertificate, expect: tuple[PeerPattern, ...], own: TrustDomain, now: datetime
) -> tuple[str, ...]:
    """Say who is there, and who was expected."""
    wanted = " or ".join(map(str, expect)) or f"any ID of {own} (--expect narrows it)"
    return peer.spiffe_id, f"expected: {wanted}", *_life(peer, now)


def said_of_presented(peer: PeerCertificate, now: datetime) -> tuple[str, ...]:
    """Say what a certificate holds that was not accepted."""
    names = ", ".join(peer.names) or "no name"
    return f"presented: {names}", f"issued by {peer.issuer}", *_life(peer, now)


def said_of_answer(answer: Answer) -> tuple[str, ...]:
    """Say what came, and at which pace."""
    kind = f", {answer.content_type}" if answer.content_type else ""
    lines = [f"{size(answer.size)} {_pace(answer)}{kind}"]
    if answer.request_id:
        whose = "" if answer.is_echoed else " (not the one that was sent)"
        lines.append(f"request ID {answer.request_id}{whose}")
    return tuple(lines)


def _pace(answer: Answer) -> str:
    if answer.pieces < 2:
        return "at once"
    pieces = count(answer.pieces, "piece")
    gap = duration(answer.longest_gap_seconds)
    return f"as it came: {pieces} over {duration(answer.spread_seconds)}, longest gap {gap}"


def duration(seconds: float) -> str:
    """Give a time that was measured, in the unit that a person reads it in."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds:.0f} s"


def _life(one: OwnIdentity | PeerCertificate, now: datetime) -> tuple[str, ...]:
    left, whole = span(one.not_after - now), span(one.not_after - one.not_before)
    if now > one.not_after:
        shown = f"EXPIRED {left} ago"
    elif now < one.not_before:
        shown = f"NOT YET VALID, for {span(one.not_before - now)}"
    else:
        shown = f"{left} left of {whole}"
    return f"{shown}, until {one.not_after:%FT%TZ}", f"serial {one.serial}"
