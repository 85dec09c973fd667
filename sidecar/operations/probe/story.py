"""The story of one probe, from our own identity to the last byte of the answer."""

from __future__ import annotations

import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import ServerIdentity
from sidecar.core.checked import Checked
from sidecar.core.probe.answer import Ends
from sidecar.core.probe.faults import too_slow
from sidecar.core.probe.notes import all_notes
from sidecar.core.probe.peer import unexpected_id
from sidecar.core.probe.report import FaultError, OwnIdentity, Phase, ProbeReport, ProbeRequest
from sidecar.operations.probe.asking import ask, settle
from sidecar.operations.probe.own_identity import source_of, take_identity
from sidecar.operations.probe.record import OnBody, OnPhase, Record
from sidecar.operations.probe.way import connected, places, shaken
from sidecar.operations.probe.words import said_of_identity, said_of_peer


def _nobody(_said: object) -> None:
    """Let it pass: nobody watches."""


async def probe(
    request: ProbeRequest,
    source: Checked | ServerIdentity,
    *,
    on_phase: OnPhase = _nobody,
    on_body: OnBody = _nobody,
) -> ProbeReport:
    """Ask, and tell how it went; with a `Checked` its identity is taken first."""
    record = Record(request, on_phase, on_body, ProbeReport(request.target))
    with trio.move_on_after(request.total_seconds) as whole:
        try:
            await _all(record, source)
        except FaultError as exc:
            record.know(fault=exc.fault)
    if whole.cancelled_caught:
        record.know(fault=too_slow(request.total_seconds, record.at))
    record.know(notes=all_notes(record.report, read_clocks().wall))
    return record.report


async def _all(record: Record, source: Checked | ServerIdentity) -> None:
    identity = await _identity(record, source)
    sock, place = await connected(record, await places(record))
    with sock:
        done = await shaken(record, sock, place, identity)
        ends = Ends(identity.svid.spiffe_id, done.peer)
        _check_expected(record, ends)
        done.stream.silence_seconds = record.request.silence_seconds
        if record.request.target.is_handshake_only:
            await settle(record, done.stream, ends)
        else:
            await ask(record, done.stream, ends)


async def _identity(record: Record, source: Checked | ServerIdentity) -> ServerIdentity:
    """Take our identity, if it is not there yet."""
    with record.phase("identity") as says:
        where = source_of(source) if isinstance(source, Checked) else "the caller"
        says.append(f"from {where}")
        identity = source
        if isinstance(identity, Checked):
            identity = await take_identity(identity, record.request.connect_seconds)
        svid = identity.svid
        own = OwnIdentity(
            spiffe_id=str(svid.spiffe_id),
            serial=svid.serial,
            not_before=svid.leaf.not_valid_before_utc,
            not_after=svid.not_after,
            source=where,
            trust_domains=tuple(map(str, sorted(identity.bundles))),
        )
        record.know(identity=own)
        says[:] = said_of_identity(own, read_clocks().wall)
    return identity


def _check_expected(record: Record, ends: Ends) -> None:
    """Hold the proven peer against who was meant, before it gets a byte."""
    expect, own = record.request.expect, ends.own.trust_domain
    peer = record.report.peer
    assert peer is not None
    is_meant = any(pattern.matches(ends.peer) for pattern in expect)
    is_meant = is_meant or (not expect and ends.peer.trust_domain == own)
    says = said_of_peer(peer, expect, own, read_clocks().wall)
    record.over(Phase("peer", None, is_meant, says))
    if not is_meant:
        raise FaultError(unexpected_id(ends.peer, expect, own))
