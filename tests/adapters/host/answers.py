"""A stand-in for running programs: recorded answers, by the program and its arguments."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.adapters.host.command import Output
from sidecar.core.diagnosis.finding import Unknown


class Recorded:
    """Answers as the real programs do; what is not recorded is not installed."""

    def __init__(self, answers: Mapping[str, Output | str]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def __call__(self, *argv: str) -> Output | Unknown:
        line = " ".join(argv)
        self.asked.append(line)
        for known, answer in self._answers.items():
            if line.startswith(known):
                return Output(0, answer) if isinstance(answer, str) else answer
        return Unknown(f"there is no {argv[0]} on this host")
