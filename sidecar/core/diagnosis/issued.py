"""What a source of identities answered, without its keys: what a child process may tell.

Gets the raw fields of one update and `now`; gives an `Answer` that says of each SVID whose it is,
how long it lives and whether it proves. Unlike `identity_update` it goes on after a fault, and it
judges proof and time apart, so that each fault has one name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sidecar.core.errors import SidecarError
from sidecar.core.identity_event import Denied, IdentityEvent, Lost, Updated
from sidecar.core.identity_update import RawSvid, RawUpdate
from sidecar.core.peer import SvidVerifier
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import (
    Bundles,
    Chain,
    TrustBundle,
    authorities,
    certificates,
    private_key,
    serial_text,
)


class Said(enum.StrEnum):
    """What kind of answer it was."""

    ISSUED = "issued"
    DENIED = "denied"
    UNREADABLE = "unreadable"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class IssuedSvid:
    """One SVID; `fault` says why it does not prove, and is empty if it does."""

    spiffe_id: str
    hint: str = ""
    serial: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class IssuedBundle:
    """One trust bundle: how many authorities are valid now, and until when the last one is."""

    trust_domain: str
    valid: int
    authorities: int
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer; `reason` is that of a denial or a fault."""

    said: Said
    reason: str = ""
    svids: tuple[IssuedSvid, ...] = ()
    bundles: tuple[IssuedBundle, ...] = ()


def answer(event: IdentityEvent, now: datetime) -> Answer:
    """Give what an event of a source says."""
    if isinstance(event, Updated):
        return _issued(event.update, now)
    if isinstance(event, Denied):
        return Answer(Said.DENIED, event.reason)
    said = Said.LOST if isinstance(event, Lost) and not event.useless else Said.UNREADABLE
    return Answer(said, event.reason)


def _issued(raw: RawUpdate, now: datetime) -> Answer:
    if not raw.svids:
        return Answer(Said.UNREADABLE, "an update without an SVID")
    bundles: dict[TrustDomain, TrustBundle] = {}
    faults: list[str] = []
    for key, der in [*_own_bundles(raw).items(), *raw.federated.items()]:
        try:
            trust_domain = TrustDomain.parse(key)
            read, unreadable = authorities(der)
            faults += [f"the bundle of {key[:256]!r}: {text}" for text in unreadable]
            if read or not unreadable:
                bundles.setdefault(trust_domain, TrustBundle(trust_domain, read))
        except Exception as exc:  # trust boundary: the parsers of DER raise more than ValueError
            faults.append(f"the bundle of {key[:256]!r} cannot be read: {_reason(exc)}")
    svids = tuple(_svid(one, bundles, now) for one in raw.svids)
    shown = tuple(_bundle(bundles[one], now) for one in sorted(bundles))
    return Answer(Said.ISSUED, "; ".join(faults), svids, shown)


def _own_bundles(raw: RawUpdate) -> Mapping[str, bytes]:
    """Give the bundle that came with each SVID, by the name of its trust domain."""
    found: dict[str, bytes] = {}
    for one in raw.svids:
        try:
            found.setdefault(str(SpiffeId.parse(one.spiffe_id).trust_domain), one.bundle)
        except SidecarError:
            continue  # told with the SVID itself
    return found


def _bundle(bundle: TrustBundle, now: datetime) -> IssuedBundle:
    valid = [
        one
        for one in bundle.authorities
        if one.not_valid_before_utc <= now <= one.not_valid_after_utc
    ]
    ends = [one.not_valid_after_utc for one in bundle.authorities]
    until = max(ends, default=None)
    return IssuedBundle(str(bundle.trust_domain), len(valid), len(bundle.authorities), until)


def _svid(raw: RawSvid, bundles: Bundles, now: datetime) -> IssuedSvid:
    try:
        spiffe_id, chain = SpiffeId.parse(raw.spiffe_id), certificates(raw.chain)
        leaf = chain[0]
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        serial = serial_text(leaf)
        private_key(raw.private_key, leaf)
    except Exception as exc:  # as above; never the input itself, it holds a key
        return IssuedSvid(raw.spiffe_id[:2048], raw.hint, fault=_reason(exc))
    fault = _fault(spiffe_id, chain, bundles, max(begin, min(now, end - timedelta(seconds=1))))
    return IssuedSvid(str(spiffe_id), raw.hint, serial, begin, end, fault)


def _fault(claimed: SpiffeId, chain: Chain, bundles: Bundles, at: datetime) -> str:
    """Prove a chain at a moment of its leaf's validity, whatever the time is now."""
    try:
        proven = SvidVerifier(bundles).verify(chain, at)
    except SidecarError as exc:
        return exc.message
    return "" if proven == claimed else f"its certificate says {proven}"


def _reason(exc: Exception) -> str:
    return exc.message if isinstance(exc, SidecarError) else f"{type(exc).__name__}: {exc}"[:300]
