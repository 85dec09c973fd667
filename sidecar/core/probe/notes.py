"""What a probe has seen that is no fault, and yet worth a look.

Gets a report and the time, gives sentences: certificates that should have been renewed, a peer
that wants no certificate, an answer that somebody on the way has held back.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sidecar.core.probe.report import Answer, ProbeReport, old_share

# An agent renews at half life; past this share of it, it did not.
_OVERDUE_SHARE = 0.75
# An answer that took so long to begin and then came all at once was held back by somebody.
_SLOW_SECONDS = 2.0
_AT_ONCE_SHARE = 0.05
_STREAMS = ("text/event-stream", "application/x-ndjson")


def all_notes(report: ProbeReport, now: datetime) -> tuple[str, ...]:
    """Give all that is worth a look in a report."""
    return (*_certificates(report, now), *_peer(report), *_answer(report))


def _certificates(report: ProbeReport, now: datetime) -> Iterator[str]:
    for whose, one in (("our own SVID", report.identity), ("the peer's SVID", report.peer)):
        # Of what was refused the fault tells.
        is_proven = one is not None and (one is report.identity or report.handshake is not None)
        if one is None or not is_proven:
            continue
        share = old_share(one.not_before, one.not_after, now)
        if _OVERDUE_SHARE < share < 1:
            yield (
                f"{whose} is at {share:.0%} of its life, and an agent renews at half of it: "
                "is that agent still attested?"
            )


def _peer(report: ProbeReport) -> Iterator[str]:
    if report.handshake is not None and not report.handshake.asked:
        yield (
            "the peer did not ask for our certificate, so it takes connections from anybody: "
            "it is no sidecar"
        )


def _answer(report: ProbeReport) -> Iterator[str]:
    answer = report.answer
    if answer is None:
        return
    if 300 <= answer.status < 400:
        yield f"{answer.status} points elsewhere; the probe does not follow"
    wait = next((one.seconds for one in report.phases if one.name == "first byte"), None) or 0.0
    if _looks_held_back(answer, wait):
        yield (
            f"the answer is a stream, began after {wait:.1f} s and came all at once: is something "
            "on the way buffering it?"
        )


def _looks_held_back(answer: Answer, wait: float) -> bool:
    is_stream = answer.content_type.startswith(_STREAMS)
    return is_stream and wait > _SLOW_SECONDS and answer.spread_seconds < _AT_ONCE_SHARE * wait
