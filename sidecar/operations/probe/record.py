"""What a probe has seen so far: a report that grows, and whoever watches it grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import trio

from sidecar.core.probe.report import FaultError, Phase, ProbeReport, ProbeRequest

OnPhase = Callable[[Phase], None]
OnBody = Callable[[bytes], None]


@dataclass(slots=True)
class Record:
    """One probe; `at` is the phase that it is in."""

    request: ProbeRequest
    on_phase: OnPhase
    on_body: OnBody
    report: ProbeReport
    at: str = ""

    def know(self, **news: Any) -> None:
        """Take something into the report."""
        self.report = replace(self.report, **news)

    @contextmanager
    def phase(self, name: str) -> Iterator[list[str]]:
        """Time one phase; the list takes what there is to say of it."""
        self.at = name
        started, says, ok = trio.current_time(), list[str](), False
        try:
            yield says
            ok = True
        except FaultError:
            raise
        except BaseException:
            says.append("interrupted")  # by Ctrl-C, or because the time for all is over
            raise
        finally:
            self.over(Phase(name, trio.current_time() - started, ok, tuple(says)))

    def over(self, phase: Phase) -> None:
        """Take a phase that is over into the report, and tell of it."""
        self.at = phase.name
        self.know(phases=(*self.report.phases, phase))
        self.on_phase(phase)
