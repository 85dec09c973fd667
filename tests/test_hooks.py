"""The story of hooks: the newest files are told of, again if that failed, and never twice.

The actions are real ones. Trio's clock is held by most tests, so that a retry comes when a test
says so and at no other time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock

from sidecar import hooks as story
from sidecar.core.after_rotation import (
    Action,
    CommandAction,
    Hook,
    HookResult,
    Publication,
    SignalAction,
    TouchAction,
)
from sidecar.core.files_config import Kind
from sidecar.hooks import Hooks
from tests.adapters.deadlines import until, within

Line = dict[str, Any]
DONE, FAILED, GAVE_UP = "after rotation done", "after rotation failed", "after rotation gave up"
# As long as the longest delay before a retry.
CAP = 60
X509: frozenset[Kind] = frozenset({"x509"})
JWT: frozenset[Kind] = frozenset({"jwt"})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the hooks log."""
    capture = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    monkeypatch.setattr(story, "log", logger)
    return capture.entries  # type: ignore[return-value]


def publication(number: int = 1, kind: Kind = "x509", file: str = "svid") -> Publication:
    return Publication(
        kind=kind,
        directory="/certs",
        files={"file": f"/certs/{file}"},
        spiffe_id="spiffe://example.org/a",
        expires=datetime(2030, 1, 1, tzinfo=UTC),
        generation=f"generation-{number}",
    )


def shell(script: str) -> CommandAction:
    return CommandAction(("/bin/sh", "-c", script))


# Tells whom it works for, then takes until there is a file `go-GENERATION`, or a minute.
SLOW = """
echo "$SPIFFE_SIDECAR_GENERATION" >> ran
turns=0
until [ -e "go-$SPIFFE_SIDECAR_GENERATION" ] || [ $turns -gt 3000 ]; do
    turns=$((turns + 1))
    sleep 0.02
done
"""


class Story:
    """Hooks at work, their folder and their log."""

    def __init__(self, folder: Path, lines: list[Line], *hooks: Hook) -> None:
        self.folder, self.lines = folder, lines
        self.hooks = Hooks(hooks, folder)

    def tell(self, number: int = 1, kind: Kind = "x509", file: str = "svid") -> None:
        self.hooks.tell(publication(number, kind, file))

    def said(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    async def until_said(self, event: str, times: int = 1) -> Line:
        """Wait until a line was logged so many times, and no more; give the last one."""
        await until(lambda: len(self.said(event)) >= times, f"{event}: {self.lines}")
        assert len(self.said(event)) == times
        return self.said(event)[-1]

    @property
    def ran(self) -> list[str]:
        """The generations that a command was run for."""
        path = self.folder / "ran"
        return path.read_text().split() if path.exists() else []

    async def until_ran(self, *numbers: int) -> None:
        expected = [f"generation-{number}" for number in numbers]
        await until(lambda: len(self.ran) >= len(expected), f"{expected}, ran {self.ran}")
        assert self.ran == expected

    def let_go(self, number: int) -> None:
        (self.folder / f"go-generation-{number}").touch()

    def result(self, hook: str) -> HookResult:
        return self.hooks.results[hook]


Begin = Callable[..., Story]


@pytest.fixture
def begin(nursery: trio.Nursery, tmp_path: Path, lines: list[Line]) -> Begin:
    """Start hooks that run until the test ends."""

    def start(*hooks: Hook) -> Story:
        started = Story(tmp_path, lines, *hooks)
        nursery.start_soon(started.hooks.run)
        return started

    return start


async def nothing_happens(story: Story) -> None:
    """Let every task go as far as it can, and see that no line is added."""
    before = list(story.lines)
    await trio.testing.wait_all_tasks_blocked()
    assert story.lines == before


# ----- What goes well


@within(60)
async def test_touch_is_done_and_said(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "watched").touch()
    os.utime(tmp_path / "watched", (1000, 1000))
    before = datetime.now(UTC)
    story = begin(Hook("traefik", TouchAction("watched")))
    story.tell()
    line = await story.until_said(DONE)
    assert line.pop("seconds") >= 0
    assert line == {
        "event": DONE,
        "log_level": "info",
        "hook": "traefik",
        "action": "touch of watched",
        "attempt": 1,
        "result": "touched",
    }
    assert (tmp_path / "watched").stat().st_mtime > 1000
    await until(lambda: "traefik" in story.hooks.results)
    result = story.result("traefik")
    assert (result.hook, result.action, result.attempt) == ("traefik", "touch of watched", 1)
    assert (result.ok, result.reason, result.gives_up) == (True, "", False)
    assert before - timedelta(seconds=1) < result.at <= datetime.now(UTC)


@within(60)
async def test_command_is_told_of_the_publication_and_its_output_is_logged(begin: Begin) -> None:
    story = begin(Hook("x", shell('echo "$SPIFFE_SIDECAR_GENERATION of $SPIFFE_SIDECAR_KIND"')))
    story.tell(7)
    line = await story.until_said(DONE)
    assert (line["action"], line["result"]) == ("command /bin/sh", "exit status 0")
    assert line["output"] == "generation-7 of x509"


@within(60)
async def test_signal_is_sent(begin: Begin, tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        (tmp_path / "pid").write_text(f"{program.pid}\n")
        story = begin(Hook("x", SignalAction("pid", "SIGUSR1")))
        story.tell()
        line = await story.until_said(DONE)
        assert line["result"] == f"SIGUSR1 sent to {program.pid}"
        status = await trio.to_thread.run_sync(program.wait)
        assert status == -signal.SIGUSR1
    finally:
        program.kill()
        program.wait()


@within(60)
async def test_what_was_told_before_the_start_is_done(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line]
) -> None:
    story = Story(tmp_path, lines, Hook("x", shell('echo "$SPIFFE_SIDECAR_GENERATION"')))
    story.tell(1)
    story.tell(2)
    nursery.start_soon(story.hooks.run)
    assert (await story.until_said(DONE))["output"] == "generation-2"
    story.tell(3)
    assert (await story.until_said(DONE, 2))["output"] == "generation-3"


@within(60)
async def test_without_hooks_there_are_no_lines(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line]
) -> None:
    story = Story(tmp_path, lines)
    nursery.start_soon(story.hooks.run)
    story.tell()
    await trio.testing.wait_all_tasks_blocked()
    assert story.lines == []
    assert story.hooks.results == {}
    assert len(nursery.child_tasks) == 1  # it runs on, as with hooks


# ----- Kinds of files


async def test_hook_hears_of_its_own_kinds_only(begin: Begin, mock_clock: MockClock) -> None:
    one, other = Hook("x509", shell(""), X509), Hook("jwt", shell(""), JWT)
    story = begin(one, other, Hook("both", shell(""), X509 | JWT))
    story.tell(kind="jwt")
    await story.until_said(DONE, 2)
    assert {line["hook"] for line in story.lines} == {"jwt", "both"}
    story.tell(kind="x509")
    await story.until_said(DONE, 4)
    assert {line["hook"] for line in story.lines[2:]} == {"x509", "both"}
    await nothing_happens(story)


async def test_hook_for_both_kinds_is_done_once_for_the_newest_of_each(
    begin: Begin, mock_clock: MockClock
) -> None:
    both = Hook("both", shell('echo "$SPIFFE_SIDECAR_KIND $SPIFFE_SIDECAR_GENERATION"'), X509 | JWT)
    story = begin(both)
    for number, kind in enumerate(("x509", "jwt", "x509", "jwt"), start=1):
        story.tell(number, kind)  # type: ignore[arg-type]
    await story.until_said(DONE, 2)
    assert {line["output"] for line in story.lines} == {"x509 generation-3", "jwt generation-4"}
    await nothing_happens(story)


async def test_each_of_several_files_of_a_kind_is_done_for_its_newest(
    begin: Begin, mock_clock: MockClock
) -> None:
    story = begin(Hook("x", shell('echo "$SPIFFE_SIDECAR_FILE $SPIFFE_SIDECAR_GENERATION"'), JWT))
    for number, file in enumerate(("vault.jwt", "nats.jwt", "vault.jwt"), start=1):
        story.tell(number, "jwt", file)
    await story.until_said(DONE, 2)
    assert {line["output"] for line in story.lines} == {
        "/certs/vault.jwt generation-3",
        "/certs/nats.jwt generation-2",
    }
    await nothing_happens(story)


async def test_kind_that_fails_holds_up_no_other_kind(begin: Begin, mock_clock: MockClock) -> None:
    story = begin(Hook("both", shell('[ "$SPIFFE_SIDECAR_KIND" = jwt ]'), X509 | JWT))
    story.tell(kind="x509")
    await story.until_said(FAILED)
    story.tell(kind="jwt")
    await story.until_said(DONE)
    assert len(story.said(FAILED)) == 1  # and the other kind's retry is still to come
    mock_clock.jump(CAP)
    assert (await story.until_said(FAILED, 2))["attempt"] == 2


# ----- What fails


async def test_failure_is_said_and_tried_again(
    begin: Begin, tmp_path: Path, mock_clock: MockClock
) -> None:
    story = begin(Hook("traefik", TouchAction("watched")))
    story.tell()
    line = await story.until_said(FAILED)
    assert 0.5 <= line.pop("retry_seconds") <= 1
    assert line.pop("hint")
    reason = f"{tmp_path / 'watched'}: no such file"
    assert line == {
        "event": FAILED,
        "log_level": "warning",
        "hook": "traefik",
        "action": "touch of watched",
        "attempt": 1,
        "reason": reason,
    }
    await until(lambda: "traefik" in story.hooks.results)
    result = story.result("traefik")
    assert (result.ok, result.reason, result.gives_up) == (False, reason, False)
    (tmp_path / "watched").touch()
    await nothing_happens(story)
    mock_clock.jump(CAP)
    assert (await story.until_said(DONE))["attempt"] == 2
    await until(lambda: story.result("traefik").ok)
    mock_clock.jump(10 * CAP)
    await nothing_happens(story)


async def test_delays_grow_up_to_a_minute_and_are_as_said(
    begin: Begin, mock_clock: MockClock
) -> None:
    story = begin(Hook("x", TouchAction("missing"), retries=12))
    story.tell()
    for attempt in range(1, 13):
        line = await story.until_said(FAILED, attempt)
        assert line["attempt"] == attempt
        longest = min(60, 2 ** (attempt - 1))
        assert longest / 2 <= line["retry_seconds"] <= longest
        await trio.testing.wait_all_tasks_blocked()
        left = trio.lowlevel.current_statistics().seconds_to_next_deadline
        assert left == pytest.approx(line["retry_seconds"], abs=0.06)  # the line is rounded
        mock_clock.jump(CAP)
    assert (await story.until_said(GAVE_UP))["attempt"] == 13
    assert len({line["retry_seconds"] / 60 for line in story.said(FAILED)[6:]}) > 1  # jitter


async def test_hook_that_fails_too_often_is_given_up_until_the_next_publication(
    begin: Begin, tmp_path: Path, mock_clock: MockClock
) -> None:
    story = begin(Hook("x", TouchAction("watched"), retries=2))
    story.tell(1)
    for attempt in (1, 2):
        await story.until_said(FAILED, attempt)
        mock_clock.jump(CAP)
    line = await story.until_said(GAVE_UP)
    assert line.pop("hint")
    assert line == {
        "event": GAVE_UP,
        "log_level": "error",
        "hook": "x",
        "action": "touch of watched",
        "attempt": 3,
        "reason": f"{tmp_path / 'watched'}: no such file",
    }
    await until(lambda: story.result("x").gives_up)
    assert not story.result("x").ok
    (tmp_path / "watched").touch()
    mock_clock.jump(100 * CAP)
    await nothing_happens(story)
    story.tell(2)
    assert (await story.until_said(DONE))["attempt"] == 1
    assert len(story.said(FAILED)) == 2
    await until(lambda: story.result("x").ok)
    assert not story.result("x").gives_up


async def test_hook_that_was_given_up_begins_anew_when_somebody_asks(
    begin: Begin, tmp_path: Path
) -> None:
    story = begin(Hook("x", TouchAction("watched"), retries=0))
    story.tell(1)
    await story.until_said(GAVE_UP)
    (tmp_path / "watched").touch()
    story.hooks.again()
    assert (await story.until_said(DONE))["attempt"] == 1
    story.hooks.again()  # nothing is left to do
    await nothing_happens(story)
    assert len(story.said(DONE)) == 1


async def test_hook_without_retries_is_given_up_at_once(
    begin: Begin, mock_clock: MockClock
) -> None:
    story = begin(Hook("x", TouchAction("missing"), retries=0))
    story.tell()
    assert (await story.until_said(GAVE_UP))["attempt"] == 1
    assert story.said(FAILED) == []


async def test_command_that_fails_says_why(begin: Begin, mock_clock: MockClock) -> None:
    story = begin(Hook("x", shell("echo working; echo no such unit >&2; exit 5")))
    story.tell()
    line = await story.until_said(FAILED)
    assert line["reason"] == "exit status 5; it said: working | no such unit"


# ----- What is newer


async def test_newer_publication_takes_the_place_of_a_retry_at_once(
    begin: Begin, mock_clock: MockClock
) -> None:
    works_for_3 = 'echo "$SPIFFE_SIDECAR_GENERATION"; [ $SPIFFE_SIDECAR_GENERATION = generation-3 ]'
    story = begin(Hook("x", shell(works_for_3)))
    story.tell(1)
    await story.until_said(FAILED)
    mock_clock.jump(CAP)
    assert (await story.until_said(FAILED, 2))["attempt"] == 2
    story.tell(2)
    line = await story.until_said(FAILED, 3)
    assert (line["attempt"], line["reason"][-12:]) == (1, "generation-2")
    story.tell(3)
    line = await story.until_said(DONE)
    assert (line["attempt"], line["output"]) == (1, "generation-3")
    mock_clock.jump(10 * CAP)
    await nothing_happens(story)


async def test_running_command_ends_first_and_only_the_newest_follows(
    begin: Begin, mock_clock: MockClock
) -> None:
    story = begin(Hook("x", shell(SLOW)))
    story.tell(1)
    await story.until_ran(1)
    for number in (2, 3, 4):
        story.tell(number)
    await nothing_happens(story)
    story.let_go(1)
    await story.until_said(DONE)
    await story.until_ran(1, 4)
    story.let_go(4)
    await story.until_said(DONE, 2)
    assert [line["attempt"] for line in story.lines] == [1, 1]
    await nothing_happens(story)
    assert story.ran == ["generation-1", "generation-4"]


@pytest.mark.parametrize("retries", [0, 5])
async def test_failure_of_what_is_out_of_date_is_not_tried_again(
    begin: Begin, mock_clock: MockClock, retries: int
) -> None:
    works_for_2 = SLOW + '[ "$SPIFFE_SIDECAR_GENERATION" = generation-2 ]'
    story = begin(Hook("x", shell(works_for_2), retries=retries))
    story.tell(1)
    await story.until_ran(1)
    story.tell(2)
    story.let_go(1)
    story.let_go(2)
    line = await story.until_said(DONE)
    assert line["attempt"] == 1
    assert story.ran == ["generation-1", "generation-2"]
    assert [(line["event"], line["attempt"]) for line in story.lines] == [(FAILED, 1), (DONE, 1)]
    assert story.said(FAILED)[0]["retry_seconds"] == 0
    mock_clock.jump(10 * CAP)
    await nothing_happens(story)


async def test_command_that_hangs_holds_up_no_other_hook(
    begin: Begin, tmp_path: Path, mock_clock: MockClock
) -> None:
    (tmp_path / "watched").touch()
    hanging = Hook("hangs", shell(SLOW))
    story = begin(hanging, Hook("touch", TouchAction("watched")), Hook("true", shell("")))
    story.tell(1)
    await story.until_said(DONE, 2)
    await story.until_ran(1)
    story.tell(2)
    await story.until_said(DONE, 4)
    assert {line["hook"] for line in story.lines} == {"touch", "true"}
    assert story.ran == ["generation-1"]


@within(60)
async def test_shutdown_ends_a_running_command(tmp_path: Path, lines: list[Line]) -> None:
    script = f"echo $$ > number; {SLOW}"
    story = Story(tmp_path, lines, Hook("x", shell(script)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(story.hooks.run)
        story.tell(1)
        await story.until_ran(1)
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "number").read_text()), 0)
    assert lines == []


# ----- Once


async def once(tmp_path: Path, lines: list[Line], *hooks: Hook, told: tuple[Kind, ...]) -> bool:
    story = Story(tmp_path, lines, *hooks)
    for kind in told:
        story.tell(kind=kind)
    return await story.hooks.run_once()


GOOD: Action = shell("")
BAD: Action = shell("exit 1")


@within(60)
@pytest.mark.parametrize(
    ("hooks", "told", "well"),
    [
        pytest.param([], ["x509"], True, id="no hook"),
        pytest.param([Hook("a", BAD, retries=0)], [], True, id="nothing told"),
        pytest.param([Hook("a", BAD, JWT, 0)], ["x509"], True, id="nothing due"),
        pytest.param([Hook("a", GOOD)], ["x509"], True, id="good"),
        pytest.param([Hook("a", BAD, retries=0)], ["x509"], False, id="bad"),
        pytest.param([Hook("a", GOOD), Hook("b", BAD, retries=0)], ["x509"], False, id="one bad"),
        pytest.param(
            [Hook("a", shell('[ "$SPIFFE_SIDECAR_KIND" = jwt ]'), X509 | JWT, 0)],
            ["x509", "jwt"],
            False,
            id="one kind bad",
        ),
    ],
)
async def test_once_tells_whether_all_went_well(
    tmp_path: Path, lines: list[Line], hooks: list[Hook], told: list[Kind], well: bool
) -> None:
    assert await once(tmp_path, lines, *hooks, told=tuple(told)) is well
    due = sum(kind in hook.on for hook in hooks for kind in told)
    assert len(lines) == due


async def test_once_has_retries(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line], mock_clock: MockClock
) -> None:
    outcomes: list[bool] = []
    patient = Hook("patient", TouchAction("late"), retries=3)
    story = Story(tmp_path, lines, patient, Hook("hopeless", BAD, retries=1), Hook("good", GOOD))
    story.tell()

    async def run_once() -> None:
        outcomes.append(await story.hooks.run_once())

    nursery.start_soon(run_once)
    await story.until_said(FAILED, 2)
    await story.until_said(DONE)
    (tmp_path / "late").touch()
    mock_clock.jump(CAP)
    await until(lambda: bool(outcomes), "the end")
    assert outcomes == [False]
    assert {line["hook"]: line["attempt"] for line in story.said(DONE)} == {"good": 1, "patient": 2}
    assert [line["hook"] for line in story.said(GAVE_UP)] == ["hopeless"]
    assert {name: result.ok for name, result in story.hooks.results.items()} == {
        "patient": True,
        "hopeless": False,
        "good": True,
    }


@within(60)
async def test_hook_that_was_given_up_and_went_well_since_is_well(
    tmp_path: Path, lines: list[Line]
) -> None:
    story = Story(tmp_path, lines, Hook("x", TouchAction("late"), retries=0))
    story.tell(1)
    assert not await story.hooks.run_once()
    (tmp_path / "late").touch()
    story.tell(2)
    assert await story.hooks.run_once()
