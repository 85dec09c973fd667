"""A child process that asks as the service user: the agent, and our own listener as a peer.

    python -I -m sidecar.operations.doctor.witness    `Question` on stdin, `Testimony` on stdout

The agent attests whoever asks it, so only a process of the service user's own uid hears what the
daemon hears. The private key that comes with the answer stays in the child: what it says is public.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import IdentityFiles, IdentityPaths
from sidecar.adapters.tls import ServerIdentity, server_identity
from sidecar.adapters.workload_api import WorkloadApi
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.diagnosis.backend import Streamed
from sidecar.core.diagnosis.issued import Answer, Said, answer
from sidecar.core.diagnosis.listener import EndToEnd
from sidecar.core.errors import SidecarError
from sidecar.core.identity_event import IdentityEvent, Updated
from sidecar.core.identity_update import SvidChoice, choose, identity_update
from sidecar.core.policy import PeerPattern
from sidecar.core.probe.report import ProbeReport, ProbeRequest, ProbeTarget
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.operations.doctor.asking import STREAM_SECONDS
from sidecar.operations.probe import probe

_ANSWER_SECONDS = 3.0
_REQUEST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be asked; paths are absolute, and what is empty is not asked."""

    endpoint: str
    certificate: str = ""
    private_key: str = ""
    bundle: str = ""
    federated: dict[str, str] = field(default_factory=dict)
    spiffe_id: str = ""
    hint: str = ""
    is_service_user: bool = False  # then our listener presents the SVID that is issued to us
    url: str = ""  # of our own listener
    streamed_url: str = ""
    streamed_body: str = ""


@dataclass(frozen=True, slots=True)
class Testimony:
    """What came of it."""

    answer: Answer
    end_to_end: EndToEnd | None = None
    streamed: Streamed | None = None


async def testify(question: Question) -> Testimony:
    """Ask the source of our identity, then the listener with what it gave."""
    event = await _event(question)
    if event is None:
        text = f"no answer within {_ANSWER_SECONDS:g} s"
        return Testimony(Answer(Said.LOST, text))
    said = answer(event, datetime.now(UTC))
    if not question.url or not isinstance(event, Updated):
        return Testimony(said)
    identity = _identity(event, question)
    if isinstance(identity, str):
        return Testimony(said, EndToEnd("identity", identity))
    report = await probe(_request(question, identity), identity)
    streamed = await _streamed(question, identity) if question.streamed_url else None
    return Testimony(said, _end_to_end(report), streamed)


async def _event(question: Question) -> IdentityEvent | None:
    source: IdentityFiles | WorkloadApi
    if question.certificate:
        paths = IdentityPaths(
            Path(question.certificate),
            Path(question.private_key),
            Path(question.bundle),
            {TrustDomain.parse(name): Path(file) for name, file in question.federated.items()},
        )
        source = IdentityFiles(paths, 1.0, FileChanges)
    else:
        source = WorkloadApi(WorkloadEndpoint.parse(question.endpoint))
    try:
        with trio.move_on_after(_ANSWER_SECONDS):
            return await source.next_event(_ANSWER_SECONDS)
    finally:
        source.close()
    return None


def _identity(event: Updated, question: Question) -> ServerIdentity | str:
    """Give what we present, or the reason why we have nothing to present."""
    wanted = SpiffeId.parse(question.spiffe_id) if question.spiffe_id else None
    choice = SvidChoice(wanted, question.hint)
    try:
        update = identity_update(event.update, datetime.now(UTC))
        svid = choose(update, choice)
        if svid is None:
            return f"no SVID with {choice}"
        return server_identity(svid, update.bundles, "1.2")
    except SidecarError as exc:
        return exc.message


def _request(question: Question, identity: ServerIdentity) -> ProbeRequest:
    # Another workload of this host has an SVID, too, and may have taken the port.
    own = identity.svid.spiffe_id if question.is_service_user or question.spiffe_id else None
    return ProbeRequest(
        ProbeTarget.parse(question.url),
        expect=(PeerPattern.parse(str(own)),) if own else (),
        connect_seconds=_REQUEST_SECONDS,
        silence_seconds=_REQUEST_SECONDS,
        total_seconds=1.5 * _REQUEST_SECONDS,
    )


def _end_to_end(report: ProbeReport) -> EndToEnd:
    peer = report.peer.spiffe_id if report.peer else ""
    status = report.answer.status if report.answer else 0
    fault = report.fault
    if fault is None:
        return EndToEnd(peer=peer, status=status)
    return EndToEnd(fault.hop.value, fault.message, fault.hint, peer, status)


async def _streamed(question: Question, identity: ServerIdentity) -> Streamed | None:
    request = ProbeRequest(
        ProbeTarget.parse(question.streamed_url),
        method="POST",
        headers=(("Content-Type", "application/json"),),
        body=question.streamed_body.encode(),
        connect_seconds=_REQUEST_SECONDS,
        total_seconds=STREAM_SECONDS,
    )
    report = await probe(request, identity)
    if report.fault is not None or report.answer is None:
        return None
    return Streamed(report.answer.pieces, report.answer.spread_seconds, "through the listener")


def main() -> None:
    """Read the question, print the testimony."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    testimony = trio.run(testify, question)
    sys.stdout.buffer.write(msgspec.json.encode(testimony))


if __name__ == "__main__":
    main()
