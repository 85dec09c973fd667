"""A probe on a screen, and as JSON.

Gets phases as they end and the report at last, gives lines with a tone each: what colour that is,
and whether there is any, is the terminal's business. Nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from sidecar.core.probe.report import Hop, Phase, ProbeReport, ProbeRequest
from sidecar.core.status import printable
from sidecar.operations.probe.words import duration

_WHERE = {
    Hop.IDENTITY: "our own identity, before anything was sent",
    Hop.NAME: "this host's resolver",
    Hop.CONNECT: "the way to the peer",
    Hop.TLS: "the peer's port",
    Hop.PEER: "the peer's identity",
    Hop.OWN_SVID: "the peer's opinion of our SVID",
    Hop.POLICY: "the sidecar's policy",
    Hop.LIMITS: "the sidecar's limits",
    Hop.SIDECAR: "the sidecar",
    Hop.BACKEND: "the model server behind the sidecar",
    Hop.ANSWER: "the answer, on its way back",
}
_NAME_WIDTH = 10
_TIME_WIDTH = 9
_INDENT = " " * (2 + _NAME_WIDTH + 2 + _TIME_WIDTH + 2)


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `tone` is "", "good", "bad", "note" or "faint"."""

    text: str
    tone: str = ""


def opening(request: ProbeRequest) -> Line:
    """Say what is about to be done."""
    what = "handshake with" if request.target.is_handshake_only else request.method
    return Line(f"{what} {request.target}")


def phase_lines(phase: Phase) -> Iterator[Line]:
    """Give the lines of one phase."""
    mark = "  " if phase.ok else "x "
    took = "" if phase.seconds is None else duration(phase.seconds)
    first, *more = phase.says or ("failed",)
    begin = f"{mark}{phase.name:<{_NAME_WIDTH}}  {took:>{_TIME_WIDTH}}  "
    yield Line(printable(begin + first), "" if phase.ok else "bad")
    for text in more:
        yield Line(_INDENT + printable(text), "faint")


def closing(report: ProbeReport) -> Iterator[Line]:
    """Give the verdict, with the hop and the remedy if it is a bad one."""
    yield Line("")
    for note in report.notes:
        yield Line(f"note: {printable(note)}", "note")
    fault = report.fault
    if fault is None:
        yield Line(_success(report), "good")
        return
    yield Line(f"FAILED at {_WHERE[fault.hop]}: {printable(fault.message)}", "bad")
    if fault.hint:
        yield Line(f"hint: {printable(fault.hint)}")


def one_line(number: int, report: ProbeReport) -> Line:
    """Give one of many probes in one line."""
    took = duration(_on_the_way(report))
    if report.fault is not None:
        told = f"FAILED at {_WHERE[report.fault.hop]}: {report.fault.message}"
        return Line(printable(f"{number:>4}  {took:>{_TIME_WIDTH}}  {told}"), "bad")
    status = report.answer.status if report.answer else "handshake"
    serial = report.peer.serial if report.peer else ""
    return Line(f"{number:>4}  {took:>{_TIME_WIDTH}}  {status}, peer's serial {serial}")


def many(reports: list[ProbeReport]) -> Iterator[Line]:
    """Sum many probes up."""
    good = [one for one in reports if one.ok]
    yield Line("")
    if good:
        times = sorted(map(_on_the_way, good))
        shown = (duration(times[at]) for at in (0, len(times) // 2, -1))
        fastest, middle, slowest = shown
        yield Line(f"fastest {fastest}, middle {middle}, slowest {slowest}")
    verdict = f"{len(good)} of {len(reports)} went well"
    yield Line(verdict, "good" if len(good) == len(reports) else "bad")


def _on_the_way(report: ProbeReport) -> float:
    """Give the time without the agent's: many probes are for what is between the hosts."""
    return report.seconds - sum(
        phase.seconds or 0.0 for phase in report.phases if phase.name == "identity"
    )


def as_json(report: ProbeReport) -> dict[str, Any]:
    """Give a report for programs; no text in it holds a control character."""
    told: dict[str, Any] = msgspec.to_builtins(report, enc_hook=str)
    for phase in told["phases"]:
        del phase["says"]
    return {
        "url": str(report.target),
        "ok": report.ok,
        "seconds": report.seconds,
        **{name: told[name] for name in told if name != "target"},
    }


def _success(report: ProbeReport) -> str:
    what = f"{report.answer.status} from" if report.answer else "handshake with"
    peer = report.peer.spiffe_id if report.peer else ""
    return f"ok: {what} {peer} in {duration(report.seconds)}"
