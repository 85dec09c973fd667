"""One whole answer of the Workload API: raw fields -> `IdentityUpdate`, proven, or refused.

Gets the bytes of one message and `now`; gives the SVIDs and bundles in it, each SVID proven
(key, chain to its own bundle, ID, times), or raises `AgentProtocolError`: a message with a bad
mandatory part is discarded as a whole, a bad federated bundle costs only its own trust domain.
An authority that cannot be read costs no more than itself, in our own bundle too: what is
left out admits no peer, and the rest proves our SVID or the message is discarded all the same.
Then `choose` says which SVID is ours. Every message is complete: what is absent is gone.
Specification: Workload API 4.3 (Stream Responses) to 4.6, 5.2.1 (FetchX509SVID) and
8 (Default Identity).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from sidecar.core.errors import AgentProtocolError, SidecarError
from sidecar.core.peer import SvidVerifier
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import (
    Bundles,
    TrustBundle,
    X509Svid,
    authorities,
    certificates,
    first_of,
    private_key,
)


@dataclass(frozen=True, slots=True)
class RawSvid:
    """The fields of one `X509SVID` message; certificates and key in DER."""

    spiffe_id: str
    chain: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    bundle: bytes = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RawUpdate:
    """The fields of one `X509SVIDResponse` message, or files that say the same.

    `notes` say what was left out before it came here.
    """

    svids: tuple[RawSvid, ...]
    federated: Mapping[str, bytes] = field(repr=False)
    crls: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdentityUpdate:
    """The SVIDs and bundles of one message; `notes` say what of it was left out, and why."""

    svids: tuple[X509Svid, ...]
    bundles: Bundles = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SvidChoice:
    """Which of several SVIDs is ours: by ID, by hint, by both, or the first one."""

    spiffe_id: SpiffeId | None = None
    hint: str = ""

    def matches(self, svid: X509Svid) -> bool:
        """Tell whether `svid` is what the configuration asks for."""
        return self.spiffe_id in (None, svid.spiffe_id) and self.hint in ("", svid.hint)

    def __str__(self) -> str:
        wanted = [f"ID {self.spiffe_id}"] if self.spiffe_id else []
        wanted += [f"hint {self.hint!r}"] if self.hint else []
        return " and ".join(wanted) or "any ID"


def identity_update(raw: RawUpdate, now: datetime) -> IdentityUpdate:
    """Read and prove one message, or raise `AgentProtocolError` with the first fault."""
    if not raw.svids:
        raise AgentProtocolError("the update has no SVID")
    own: dict[TrustDomain, TrustBundle] = {}
    notes: list[str] = []
    svids = tuple(_svid(one, own, notes) for one in raw.svids)
    federated = _federated_bundles(raw.federated, own, notes)
    bundles = federated | own
    verifier = SvidVerifier(bundles)
    notes += verifier.notes
    for svid in svids:
        _prove(svid, verifier, now)
    if raw.crls:
        notes.append(f"{raw.crls} CRLs ignored: SVIDs are short-lived instead")
    return IdentityUpdate(svids, bundles, (*raw.notes, *notes))


def choose(update: IdentityUpdate, choice: SvidChoice) -> X509Svid | None:
    """Give the first SVID that fits, as Workload API 8 (Default Identity) and 5.2.1 ask."""
    return next((svid for svid in update.svids if choice.matches(svid)), None)


def usable_from(raw: RawUpdate, now: datetime) -> datetime | None:
    """Return when the next certificate of an update begins to be valid; None: all are by now."""
    begins = []
    for der in (der for svid in raw.svids for der in (svid.chain, svid.bundle)):
        with suppress(ValueError):
            begins += [one.not_valid_before_utc for one in authorities(der)[0]]
    return min((begin for begin in begins if begin > now), default=None)


def _svid(raw: RawSvid, bundles: dict[TrustDomain, TrustBundle], notes: list[str]) -> X509Svid:
    """Read one SVID, and its bundle into `bundles`."""
    for name in ("spiffe_id", "chain", "private_key", "bundle"):
        if not getattr(raw, name):
            raise AgentProtocolError(f"the mandatory field {name} is empty (SVID {_shown(raw)})")
    try:
        spiffe_id = SpiffeId.parse(raw.spiffe_id)
        chain = certificates(raw.chain)
        svid = X509Svid(spiffe_id, chain, private_key(raw.private_key, chain[0]), raw.hint)
        bundle = _bundle(spiffe_id.trust_domain, raw.bundle, notes)
    except Exception as exc:
        # Trust boundary: the DER parsers raise more than ValueError. Types and reasons only:
        # the message of a parser never holds key bytes, its input might.
        raise AgentProtocolError(f"SVID {_shown(raw)}: {_reason(exc)}") from exc
    known = bundles.setdefault(bundle.trust_domain, bundle)
    if set(known.authorities) != set(bundle.authorities):
        raise AgentProtocolError(f"two different bundles for trust domain {bundle.trust_domain}")
    return svid


def _prove(svid: X509Svid, verifier: SvidVerifier, now: datetime) -> None:
    try:
        proven = verifier.verify(svid.chain, now)
    except SidecarError as exc:
        raise AgentProtocolError(f"SVID {svid.spiffe_id}: {exc.message}") from exc
    if proven != svid.spiffe_id:
        raise AgentProtocolError(f"SVID {svid.spiffe_id}: its certificate says {proven}")


def _federated_bundles(
    raw: Mapping[str, bytes], own: Bundles, notes: list[str]
) -> dict[TrustDomain, TrustBundle]:
    bundles: dict[TrustDomain, TrustBundle] = {}
    for key, der in raw.items():
        try:
            trust_domain = TrustDomain.parse(key)
            bundle = _bundle(trust_domain, der, notes)
        except Exception as exc:  # as in _svid; here the fault stays with the foreign trust domain
            notes.append(f"federated bundle {key[:256]!r} left out: {_reason(exc)}")
            continue
        if trust_domain in own or trust_domain in bundles:
            notes.append(f"second bundle for trust domain {trust_domain} left out")
            continue
        bundles[trust_domain] = bundle
    return bundles


def _bundle(trust_domain: TrustDomain, der: bytes, notes: list[str]) -> TrustBundle:
    """Read one bundle; what of it cannot be read becomes a note, unless that is all of it."""
    read, unreadable = authorities(der)
    if unreadable and not read:
        raise ValueError(f"bundle: {unreadable[0]}")
    for text in first_of(unreadable):
        note = f"bundle of {trust_domain}: left out {text}"
        if note not in notes:
            notes.append(note)
    return TrustBundle(trust_domain, read)


def _shown(raw: RawSvid) -> str:
    return repr(raw.spiffe_id[:256])


def _reason(exc: Exception) -> str:
    return exc.message if isinstance(exc, SidecarError) else f"{type(exc).__name__}: {exc}"[:300]
