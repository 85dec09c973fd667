"""What `probe` writes: a line for each phase as it ends, the answer's body, or JSON.

Runs the probe, because what it sees is shown as it sees it. Gives the exit status. Colour is for
a terminal alone, and nothing is told by it alone.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial

import click
import msgspec
import trio

from sidecar.core.checked import Checked
from sidecar.core.probe.report import Phase, ProbeReport, ProbeRequest
from sidecar.operations.probe import probe, screen
from sidecar.operations.probe.screen import Line

_COLOURS = {"good": "green", "bad": "red", "note": "yellow"}


def one(request: ProbeRequest, checked: Checked, *, with_body: bool) -> int:
    """Probe once, for a person; `with_body` gives stdout to the answer's body alone."""
    show = partial(_show, to_stderr=with_body)
    body = _BodyOut()

    def on_phase(phase: Phase) -> None:
        body.end_line()
        show(screen.phase_lines(phase))

    show([screen.opening(request)])
    on_body = body.write if with_body else _nothing
    report = trio.run(partial(probe, request, checked, on_phase=on_phase, on_body=on_body))
    show(screen.closing(report))
    return _status([report])


def one_as_json(request: ProbeRequest, checked: Checked) -> int:
    """Probe once, for a program."""
    report = trio.run(probe, request, checked)
    told = msgspec.json.encode(screen.as_json(report))
    click.echo(msgspec.json.format(told, indent=2))
    return _status([report])


def many(request: ProbeRequest, checked: Checked, times: int, interval: float) -> int:
    """Probe again and again; Ctrl-C ends it with what it came to so far."""
    reports: list[ProbeReport] = []

    def on_report(report: ProbeReport) -> None:
        reports.append(report)
        _show([screen.one_line(len(reports), report)])

    _show([screen.opening(request)])
    try:
        trio.run(_repeat, request, checked, times, interval, on_report)
    except KeyboardInterrupt:
        if not reports:
            raise
    _show(screen.many(reports))
    return _status(reports)


def many_as_json(request: ProbeRequest, checked: Checked, times: int, interval: float) -> int:
    """Probe again and again, with a line of JSON each."""
    reports: list[ProbeReport] = []

    def on_report(report: ProbeReport) -> None:
        reports.append(report)
        click.echo(msgspec.json.encode(screen.as_json(report)))

    trio.run(_repeat, request, checked, times, interval, on_report)
    return _status(reports)


async def _repeat(
    request: ProbeRequest,
    checked: Checked,
    times: int,
    interval: float,
    on_report: Callable[[ProbeReport], None],
) -> None:
    """Ask so often, each time with the identity of the moment."""
    for number in range(times):
        if number:
            await trio.sleep(interval)
        on_report(await probe(request, checked))


def _status(reports: list[ProbeReport]) -> int:
    return 0 if all(report.ok for report in reports) else 1


def _nothing(_data: bytes) -> None:
    """Let a body pass that nobody wants to see."""


class _BodyOut:
    """Writes a body as it came; on a terminal without what a terminal acts on."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_in_line = False

    def write(self, data: bytes) -> None:
        """Write a piece, at once."""
        out = sys.stdout.buffer
        if sys.stdout.isatty():
            shown = "".join(map(_harmless, self._decoder.decode(data)))
            data = shown.encode(sys.stdout.encoding or "utf-8", "backslashreplace")
            self._is_in_line = bool(data) and not data.endswith(b"\n")
        out.write(data)
        out.flush()

    def end_line(self) -> None:
        """Begin a new line on a terminal, where a body has left one unfinished."""
        if self._is_in_line:
            click.echo()
            self._is_in_line = False


def _harmless(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return ascii(character)[1:-1]


def _show(lines: Iterable[Line], *, to_stderr: bool = False) -> None:
    """Write lines, in colour on a terminal that wants it (no-color.org)."""
    colour = False if os.environ.get("NO_COLOR") else None
    encoding = (sys.stderr if to_stderr else sys.stdout).encoding or "utf-8"
    for line in lines:
        shown = line.text.encode(encoding, "backslashreplace").decode(encoding)
        text = click.style(shown, fg=_COLOURS.get(line.tone), dim=line.tone == "faint" or None)
        click.echo(text, err=to_stderr, color=colour)
