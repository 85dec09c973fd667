"""Who is at the other end: a certificate described, and what is wrong with it.

Gets what a server presented and the verifier's verdict, gives a `PeerCertificate` and a `Fault`
with the remedy. Never decides: that is the business of `peer`, and what it refused is only
described here, so that a person sees what stands there in place of a sidecar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from sidecar.core.errors import PeerError
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.peer import leaf_spiffe_id
from sidecar.core.policy import PeerPattern
from sidecar.core.probe.report import Fault, Hop, PeerCertificate
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.status import printable
from sidecar.core.svid import serial_text, uri_sans

_MAX_NAMES = 5
# Clocks of two hosts that differ by less than this are as good as clocks get.
_CLOCKS_APART = timedelta(minutes=5)


def peer_certificate(leaf: x509.Certificate) -> PeerCertificate:
    """Describe a certificate, proven or not; its names come from whoever made it."""
    return PeerCertificate(
        spiffe_id=_claimed(leaf),
        serial=serial_text(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        names=tuple(printable(name[:256]) for name in _names(leaf)[:_MAX_NAMES]),
        issuer=_issuer(leaf),
    )


def not_trusted(
    presented: PeerCertificate | None, reason: str, result: str, own: TrustDomain, now: datetime
) -> Fault:
    """Give the fault of a peer that we refuse; `reason` and `result` are the verifier's."""
    if presented is None:
        hint = "look at what it presents: `openssl s_client -connect HOST:PORT -showcerts`"
        return Fault(Hop.PEER, "no_certificate", f"certificate not accepted: {reason}", hint)
    if not presented.spiffe_id:
        return _no_svid(presented, reason)
    claims = f"the peer presents {presented.spiffe_id}, which we do not accept: {reason}"
    if result == HandshakeResult.NOT_VALID_NOW:
        return _not_valid_now(presented, claims, now)
    if result == HandshakeResult.UNKNOWN_TRUST_DOMAIN:
        hint = (
            f"our agent gave us no bundle of that trust domain: ours is {own}; if the two are "
            "meant to federate, both SPIRE servers need federatesWith and our entry names it"
        )
        return Fault(Hop.PEER, "unknown_trust_domain", claims, hint)
    if result == HandshakeResult.NOT_PROVEN:
        hint = (
            "an impostor, a SPIRE server that was set up anew, or an identity on one of both sides "
            f"that is old: compare the bundles (`spire-server bundle show`) and restart the agent "
            f"that lacks the authority; issued by {presented.issuer}"
        )
        return Fault(Hop.PEER, "not_proven", claims, hint)
    return Fault(
        Hop.PEER, "no_svid", claims, "a sidecar presents nothing but SVIDs: what is there?"
    )


def unexpected_id(found: SpiffeId, expect: Sequence[PeerPattern], own: TrustDomain) -> Fault:
    """Give the fault of a proven peer that is not the one who was meant."""
    if expect:
        wanted = " or ".join(map(str, expect))
        hint = (
            "is that the right host and port? if it is, the registration entry there has another "
            "ID than the one that you expect"
        )
    else:
        wanted, hint = f"any ID of {own}", f"if that is the one, add --expect {found}"
    message = f"the peer is {found}, expected {wanted}; nothing was sent to it"
    return Fault(Hop.PEER, "unexpected_id", message, hint)


def _no_svid(presented: PeerCertificate, reason: str) -> Fault:
    shown = ", ".join(presented.names) or "no name"
    issued = f"issued by {presented.issuer}"
    uris = [name for name in presented.names if name.startswith("URI:")]
    if presented.names and not uris:
        message = f"a web server's certificate and no SVID: for {shown}, {issued}"
        hint = (
            "the probe speaks to sidecars, which present SVIDs; a reverse proxy's own address is "
            "for curl or a browser: probe the sidecar behind it, https://HOST:6701/health"
        )
        return Fault(Hop.PEER, "web_certificate", message, hint)
    message = f"the peer's certificate is no SVID: {reason}; it is for {shown}, {issued}"
    return Fault(Hop.PEER, "no_svid", message, "is that a sidecar? its SVIDs come from an agent")


def _not_valid_now(presented: PeerCertificate, claims: str, now: datetime) -> Fault:
    if now < presented.not_before:
        early = presented.not_before - now
        hint = "the clock of this host is behind, or the peer's ahead: compare `date -u` on both"
        if early < _CLOCKS_APART:
            hint += "; it is a matter of moments"
        return Fault(Hop.PEER, "not_yet_valid", claims, hint)
    hint = (
        "the peer lives on an identity that is not renewed: on its host, is the agent running and "
        "attested (a join token is good once), and was its clock set after sleep? `spiffe-sidecar "
        "status` and `doctor` tell; or the clock of this host is ahead: compare `date -u`"
    )
    return Fault(Hop.PEER, "expired", claims, hint)


def _claimed(leaf: x509.Certificate) -> str:
    try:
        return str(leaf_spiffe_id(leaf))
    except PeerError:
        return ""


def _names(leaf: x509.Certificate) -> list[str]:
    """Give the names of a certificate, its URIs marked; those of its subject if it has no other."""
    try:
        names = [f"URI:{uri}" for uri in uri_sans(leaf)]
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names += extension.value.get_values_for_type(x509.DNSName)
        names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    except Exception:
        # Trust boundary: whatever the parsers of foreign certificates raise, it has no names.
        names = []
    return names or _attributes(lambda: leaf.subject, NameOID.COMMON_NAME)


def _issuer(leaf: x509.Certificate) -> str:
    words = _attributes(lambda: leaf.issuer, NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
    return printable(repr(", ".join(words)[:200])) if words else "an issuer without a name"


def _attributes(read: Callable[[], x509.Name], *oids: x509.ObjectIdentifier) -> list[str]:
    """Give what a name holds under these; nothing if it cannot be read."""
    try:
        name = read()
        return [str(one.value) for oid in oids for one in name.get_attributes_for_oid(oid)]
    except Exception:
        return []  # as above
