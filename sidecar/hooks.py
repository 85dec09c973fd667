"""Story: new files are in place, and whoever uses them hears of it.

    file_keeper      publishes, and tells of the publication
    hooks            for each hook, one after the other: which publication is due, and when
    after_rotation   does the hook's action once
    hooks            one log line; the result; when it is tried again

Each hook goes its own way, so that a command that hangs holds up nobody else's. Only the newest
publication of the same files counts: a newer one takes the place of one that waits for a retry, at
once, and of what came while an action was running only the newest is done.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import trio

from sidecar.adapters.after_rotation import Done, perform
from sidecar.adapters.clock import read_clocks
from sidecar.core.after_rotation import Hook, HookResult, Publication
from sidecar.core.backoff import Backoff
from sidecar.core.errors import HookError
from sidecar.core.identity_state import Clocks

log = structlog.get_logger()

_AGAIN = Backoff(first=1.0, cap=60.0)
Subject = tuple[str, ...]


@dataclass(slots=True)
class _Due:
    """A publication that a hook has not done yet."""

    publication: Publication
    attempt: int = 1
    at: float = float("-inf")  # trio's time


@dataclass(slots=True)
class _Agenda:
    """What one hook has still to do."""

    hook: Hook
    due: dict[Subject, _Due] = field(default_factory=dict)
    given_up: dict[Subject, Publication] = field(default_factory=dict)
    news: trio.Event = field(default_factory=trio.Event)

    def add(self, publication: Publication) -> None:
        """Put a publication in the place of any older one of the same files."""
        self.due[publication.subject] = _Due(publication)
        self.given_up.pop(publication.subject, None)
        self.news.set()

    def done(self, due: _Due) -> None:
        """Strike out what went well, unless something newer has taken its place meanwhile."""
        if self.due[due.publication.subject] is due:
            del self.due[due.publication.subject]

    def failed(self, due: _Due) -> float | None:
        """Give the seconds until the next try, or None if there is none for this publication."""
        subject = due.publication.subject
        if self.due[subject] is not due:
            return 0.0  # what is newer starts over
        if due.attempt > self.hook.retries:
            del self.due[subject]
            self.given_up[subject] = due.publication
            return None
        delay = _AGAIN.delay(due.attempt - 1, random.uniform(0.5, 1.0))
        due.attempt += 1
        due.at = trio.current_time() + delay
        return delay

    async def next(self) -> _Due:
        """Wait for what is due first."""
        while True:
            self.news = trio.Event()
            first = min(self.due.values(), key=lambda due: due.at, default=None)
            if first is not None and first.at <= trio.current_time():
                return first
            with trio.move_on_at(first.at if first else float("inf")):
                await self.news.wait()


class Hooks:
    """All hooks of a configuration, whose relative paths begin in `directory`."""

    def __init__(
        self,
        hooks: Sequence[Hook],
        directory: Path | str,
        on_result: Callable[[HookResult], None] = lambda _: None,
    ) -> None:
        self._on_result = on_result
        self._directory = Path(directory)
        self._agendas = [_Agenda(hook) for hook in hooks]
        self._results: dict[str, HookResult] = {}

    @property
    def results(self) -> Mapping[str, HookResult]:
        """Give how the last attempt of each hook went, by the hook's name."""
        return self._results

    def tell(self, publication: Publication) -> None:
        """Hear of new files; returns at once. Called in trio's thread."""
        for agenda in self._agendas:
            if publication.kind in agenda.hook.on:
                agenda.add(publication)

    def again(self) -> None:
        """Begin anew with what was given up: somebody has mended it, and says so."""
        for agenda in self._agendas:
            for publication in list(agenda.given_up.values()):
                agenda.add(publication)

    async def run(self) -> None:
        """Do what is due, for ever."""
        async with trio.open_nursery() as nursery:
            for agenda in self._agendas:
                nursery.start_soon(self._follow, agenda)
            await trio.sleep_forever()

    async def run_once(self) -> bool:
        """Do what is due now, with retries; tell whether all of it went well in the end."""
        async with trio.open_nursery() as nursery:
            for agenda in self._agendas:
                nursery.start_soon(self._clear, agenda)
        return not any(agenda.given_up for agenda in self._agendas)

    async def _follow(self, agenda: _Agenda) -> None:
        while True:
            await self._attempt(agenda, await agenda.next())

    async def _clear(self, agenda: _Agenda) -> None:
        while agenda.due:
            await self._attempt(agenda, await agenda.next())

    async def _attempt(self, agenda: _Agenda, due: _Due) -> None:
        """Do an action once, and see to what comes after it."""
        hook, began = agenda.hook, read_clocks()
        try:
            done = await perform(hook.action, due.publication.environment(), self._directory)
        except HookError as exc:
            result = _result(hook, due, began, exc.message)
            retry_seconds = agenda.failed(due)
            if retry_seconds is None:
                result = replace(result, gives_up=True)
            _say_failed(result, exc.hint, retry_seconds)
        else:
            result = _result(hook, due, began)
            agenda.done(due)
            _say_done(result, done)
        self._results[hook.name] = result
        self._on_result(result)


def _result(hook: Hook, due: _Due, began: Clocks, reason: str = "") -> HookResult:
    now = read_clocks()
    seconds = round(now.monotonic - began.monotonic, 3)
    return HookResult(hook.name, str(hook.action), now.wall, due.attempt, seconds, reason)


def _say_done(result: HookResult, done: Done) -> None:
    log.info(
        "after rotation done",
        hook=result.hook,
        action=result.action,
        attempt=result.attempt,
        seconds=result.seconds,
        result=done.result,
        **({"output": done.output} if done.output else {}),
    )


def _say_failed(result: HookResult, hint: str | None, retry_seconds: float | None) -> None:
    said = {
        "hook": result.hook,
        "action": result.action,
        "attempt": result.attempt,
        "reason": result.reason,
        "hint": hint,
    }
    if retry_seconds is None:
        log.error("after rotation gave up", **said)
    else:
        log.warning("after rotation failed", **said, retry_seconds=round(retry_seconds, 1))
