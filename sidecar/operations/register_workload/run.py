"""One run from request to report, with the server behind a command prefix, and the clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.spire_server import SpireServer
from sidecar.operations.register_workload.report import as_json, lines, notes, warnings
from sidecar.operations.register_workload.request import Request
from sidecar.operations.register_workload.work import register


@dataclass(frozen=True, slots=True)
class Report:
    """What to tell, in both forms."""

    lines: list[str]
    json: dict[str, Any]
    warnings: list[str]
    notes: list[str]


def run(
    request: Request, prefix: tuple[str, ...], socket_path: str | None, timeout_seconds: float
) -> Report:
    """Do what is asked and give the report, or raise `RegistrationError`."""
    server = SpireServer(prefix, socket_path, timeout_seconds)
    outcome = register(request, server, read_clocks().wall.timestamp())
    # The clock is read again: the join token's time has run since.
    now = read_clocks().wall.timestamp()
    return Report(
        list(lines(outcome, server, now)),
        as_json(outcome, server, now),
        warnings(outcome),
        notes(outcome),
    )
