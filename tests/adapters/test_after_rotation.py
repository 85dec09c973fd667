"""What is done after a rotation, once: a signal to the right process, a command, a touch.

The commands are Python scripts. Each holds a lock for as long as one of its processes lives, so
that a test sees whether any is left, and an alarm ends it whatever the product does.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from watchdog.events import FileModifiedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from sidecar.adapters.after_rotation import Done, perform
from sidecar.adapters.after_rotation.command import GRACE_SECONDS, MAX_OUTPUT_BYTES
from sidecar.adapters.after_rotation.disk import on_disk
from sidecar.adapters.after_rotation.pid_file import SLACK_SECONDS, send_signal
from sidecar.adapters.after_rotation.processes import (
    Check,
    LinuxProcesses,
    Processes,
    PsProcesses,
    RunningProcess,
    processes_of_this_system,
)
from sidecar.core.after_rotation import CommandAction, Publication, SignalAction, TouchAction
from sidecar.core.errors import HookError
from sidecar.reading import PATIENCE_SECONDS
from tests.adapters.deadlines import until, within

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own means")
as_root = pytest.mark.skipif(
    not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root becomes somebody else"
)

PREAMBLE = """
import fcntl, json, os, signal, sys, time
held = open({lock!r}, "a")
fcntl.flock(held, fcntl.LOCK_SH)
signal.alarm(60)
def say(word):
    with open({said!r}, "a") as file:
        file.write(word + "\\n")
def child():
    if os.fork():
        return False
    signal.alarm(60)
    return True
def sleep():
    while True:
        time.sleep(60)
"""
IGNORE_SIGTERM = 'signal.signal(signal.SIGTERM, lambda *_: say("SIGTERM"))\n'


class Script:
    """A command; what its processes say goes into a file, beside what they print."""

    def __init__(self, folder: Path, body: str) -> None:
        self._lock, self._said = folder / "lock", folder / "said"
        preamble = PREAMBLE.format(lock=str(self._lock), said=str(self._said))
        self.argv = (sys.executable, "-c", preamble + body)

    def action(self, *arguments: str, timeout_seconds: float = 30) -> CommandAction:
        return CommandAction((*self.argv, *arguments), timeout_seconds)

    @property
    def said(self) -> list[str]:
        return self._said.read_text().splitlines() if self._said.exists() else []

    async def until_said(self, word: str, times: int = 1) -> None:
        await until(lambda: self.said.count(word) >= times, f"{word!r}, said {self.said}")

    @property
    def lives(self) -> bool:
        """Tell whether any process of it is left that has come so far as to take the lock."""
        with self._lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that the product starts."""
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(popen(*args, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def all_are_reaped(started: list[subprocess.Popen[bytes]]) -> bool:
    """Tell whether we were told of the end of each, so that none stays listed."""
    return all(process.returncode is not None for process in started)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Script]:
    return lambda body: Script(tmp_path, body)


async def run(
    action: CommandAction, folder: Path, environment: Mapping[str, str] | None = None
) -> Done:
    return await perform(action, environment or {}, folder)


async def refusal(action: CommandAction | TouchAction, folder: Path) -> HookError:
    with pytest.raises(HookError) as caught:
        await perform(action, {}, folder)
    return caught.value


class Attempt:
    """One `perform` in a task of its own, and how it ended."""

    def __init__(self, action: CommandAction, folder: Path) -> None:
        self._action, self._folder = action, folder
        self._scope = trio.CancelScope()
        self.error: HookError | None = None
        self.ended = trio.Event()

    async def run(self) -> None:
        with self._scope:
            try:
                await perform(self._action, {}, self._folder)
            except HookError as exc:
                self.error = exc
        self.ended.set()

    def cancel(self) -> None:
        self._scope.cancel()


# ----- A command: what it gets


ODD_ARGUMENTS = [
    pytest.param("two words", id="space"),
    pytest.param('it\'s "quoted" \\ `so`', id="quotes"),
    pytest.param("line\nline\r\n\ttab", id="newlines"),
    pytest.param("$HOME ${HOME} $(id) *.py ~ ; exit 1 | cat > x & # !", id="words of a shell"),
    pytest.param("", id="empty"),
    pytest.param("-", id="dash"),
    pytest.param("é 日本 \N{PILE OF POO}", id="beyond ASCII"),
    pytest.param("x" * 100_000, id="long"),
]


@within(60)
@pytest.mark.parametrize("argument", ODD_ARGUMENTS)
async def test_arguments_are_handed_over_as_they_are(
    script: Callable[[str], Script], tmp_path: Path, argument: str
) -> None:
    command = script("say(json.dumps(sys.argv[1:]))")
    await run(command.action("first", argument, "last"), tmp_path)
    assert json.loads(command.said[0]) == ["first", argument, "last"]


@within(60)
async def test_environment_is_ours_and_the_publications(
    script: Callable[[str], Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "a b\nc")
    monkeypatch.setenv("SPIFFE_SIDECAR_KIND", "somebody else's")
    publication = Publication(
        kind="x509",
        directory="/certs dir",
        files={"certificate": "/certs dir/svid.pem", "private_key": "/certs dir/svid_key.pem"},
        spiffe_id="spiffe://example.org/a",
        expires=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        serial="0a:ff",
        generation="generation-7",
    )
    command = script("say(json.dumps(dict(os.environ)))")
    await run(command.action(), tmp_path, publication.environment())
    got = json.loads(command.said[0])
    expected = {
        **os.environ,
        "SPIFFE_SIDECAR_KIND": "x509",
        "SPIFFE_SIDECAR_DIRECTORY": "/certs dir",
        "SPIFFE_SIDECAR_CERTIFICATE": "/certs dir/svid.pem",
        "SPIFFE_SIDECAR_PRIVATE_KEY": "/certs dir/svid_key.pem",
        "SPIFFE_SIDECAR_SPIFFE_ID": "spiffe://example.org/a",
        "SPIFFE_SIDECAR_EXPIRES": "2030-01-02T03:04:05Z",
        "SPIFFE_SIDECAR_SERIAL": "0a:ff",
        "SPIFFE_SIDECAR_GENERATION": "generation-7",
    }
    for one in (got, expected):
        one.pop("LC_CTYPE", None)  # Python itself sets it where there is no locale
    assert got == expected


@within(60)
async def test_command_is_cut_off_from_us(script: Callable[[str], Script], tmp_path: Path) -> None:
    ours, other = os.pipe()
    os.set_inheritable(ours, True)
    os.write(other, b"our own input")
    os.close(other)
    input_of_before = os.dup(0)
    os.dup2(ours, 0)
    try:
        command = script(
            "say(json.dumps([os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid(),"
            " sys.stdin.read(), os.getcwd()]))\n"
            "try:\n    os.fstat(int(sys.argv[1]))\nexcept OSError:\n    say('closed')"
        )
        await run(command.action(str(ours)), tmp_path)
    finally:
        os.dup2(input_of_before, 0)
        os.close(input_of_before)
        os.close(ours)
    assert json.loads(command.said[0]) == [True, True, "", str(tmp_path)]
    assert command.said[1] == "closed"


@within(60)
@pytest.mark.parametrize("name", ["PIPE", "TERM", "INT", "HUP"])
async def test_no_signal_is_ignored_in_a_command(tmp_path: Path, name: str) -> None:
    # Python ignores SIGPIPE, and a shell leaves ignored what was ignored when it began.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        action = CommandAction(("/bin/sh", "-c", f"kill -{name} $$; echo survived"))
        error = await refusal(action, tmp_path)
    assert error.message == f"killed by SIG{name}"


@within(60)
async def test_relative_program_begins_in_the_directory(tmp_path: Path) -> None:
    program = tmp_path / "hooks" / "reload"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$0"\n')
    program.chmod(0o755)
    done = await run(CommandAction(("hooks/reload",)), tmp_path)
    assert done == Done("exit status 0", str(program))


@within(60)
async def test_program_is_found_in_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "reload-it"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}:{os.environ['PATH']}")
    assert (await run(CommandAction(("reload-it",)), Path("/"))).output == "found"


# ----- A command: how it ends


@within(60)
async def test_what_a_command_prints_is_given(
    script: Callable[[str], Script], tmp_path: Path
) -> None:
    command = script(
        "os.write(1, b'one\\n'); os.write(2, b'two\\n'); os.write(1, b'caf\\xe9\\n\\n')"
    )
    assert await run(command.action(), tmp_path) == Done("exit status 0", "one\ntwo\ncaf\ufffd")


@within(60)
async def test_silent_command_has_no_output(tmp_path: Path) -> None:
    assert await run(CommandAction(("true",)), tmp_path) == Done("exit status 0")


@within(60)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param("sys.exit(3)", "exit status 3", id="silent"),
        pytest.param(
            "os.write(1, b'first\\n\\n'); os.write(2, b'  no such unit\\n'); sys.exit(5)",
            "exit status 5; it said: first | no such unit",
            id="with lines",
        ),
        pytest.param(
            "[print(i, flush=True) for i in range(9)]; sys.exit(255)",
            "exit status 255; it said: 6 | 7 | 8",
            id="the last lines only",
        ),
        pytest.param("print('x' * 9999); sys.exit(1)", "x" * 300, id="a long line"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL", id="SIGKILL"),
        pytest.param("os.kill(os.getpid(), 40)", "killed by signal 40", id="without a name"),
    ],
)
async def test_command_that_fails(
    script: Callable[[str], Script],
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
    body: str,
    message: str,
) -> None:
    if "40" in body and sys.platform != "linux":
        pytest.skip("this system has no real-time signals")
    error = await refusal(script(body).action(), tmp_path)
    assert error.message.endswith(message)
    assert len(error.message) < 400
    assert error.hint
    assert len(started) == 1
    assert all_are_reaped(started)


@within(60)
@pytest.mark.parametrize(
    ("name", "content", "mode", "said"),
    [
        pytest.param("no-such-program-of-ours", None, 0, "no such program in PATH", id="name"),
        pytest.param("/nowhere/program", None, 0, "no such program", id="path"),
        pytest.param("./missing", None, 0, "no such program", id="relative path"),
        pytest.param("./", None, 0, "no such program", id="folder"),
        pytest.param("./program", "#!/bin/sh\n", 0o644, "not executable", id="mode"),
        pytest.param("./program", "#!/nowhere/sh\n", 0o755, "cannot be started", id="interpreter"),
        pytest.param("./program", "no program", 0o755, "cannot be started", id="no program"),
    ],
)
async def test_command_that_cannot_be_started(
    tmp_path: Path, name: str, content: str | None, mode: int, said: str
) -> None:
    if content is not None:
        (tmp_path / "program").write_text(content)
        (tmp_path / "program").chmod(mode)
    error = await refusal(CommandAction((name, "secret")), tmp_path)
    assert error.message.startswith(f"command {name}")
    assert said in error.message
    assert "secret" not in error.message + str(error.hint)
    assert error.hint


@within(60)
async def test_directory_that_is_gone(tmp_path: Path) -> None:
    error = await refusal(CommandAction(("true",)), tmp_path / "gone")
    assert str(tmp_path / "gone") in error.message


# ----- A command: what it prints


@within(60)
async def test_end_of_a_long_output_is_kept(
    script: Callable[[str], Script], tmp_path: Path
) -> None:
    command = script("[print(i) for i in range(10_000)]")
    output = (await run(command.action(), tmp_path)).output
    assert output.startswith("...")
    assert output.endswith("\n9998\n9999")
    assert MAX_OUTPUT_BYTES - 10 < len(output) <= MAX_OUTPUT_BYTES + 3


@within(120)
async def test_flood_of_output_holds_up_nobody_and_is_not_kept(
    script: Callable[[str], Script], tmp_path: Path
) -> None:
    chunks = 300 * 16
    command = script(f"[os.write(1, bytes(65536)) for _ in range({chunks})]; print('the end')")
    turns = 0

    async def another_task() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(another_task)
            done = await run(command.action(timeout_seconds=100), tmp_path)
            nursery.cancel_scope.cancel()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert done.output.endswith("the end")
    assert len(done.output) <= MAX_OUTPUT_BYTES + 3
    assert turns > chunks / 2
    assert peak < 8 * 2**20


@within(60)
async def test_command_is_done_when_it_exits_whatever_it_leaves_running(
    script: Callable[[str], Script], tmp_path: Path
) -> None:
    command = script("if child():\n    say(str(os.getpid()))\n    sleep()\nprint('started')")
    done = await run(command.action(), tmp_path)
    assert done == Done("exit status 0", "started")
    await until(lambda: len(command.said) == 1, "the child's number")
    assert command.lives
    os.kill(int(command.said[0]), signal.SIGKILL)
    await until(lambda: not command.lives, "the child's end")


@within(60)
async def test_child_that_goes_on_printing_keeps_nobody(
    script: Callable[[str], Script], tmp_path: Path
) -> None:
    command = script(
        "if child():\n    while True:\n        os.write(1, b'x' * 4096)\n"
        "os.write(1, b'y' * 65536)"  # the pipe is full now, and the child in its midst
    )
    done = await run(command.action(), tmp_path)
    assert done.result == "exit status 0"
    await until(lambda: not command.lives, "the end of a child that nobody listens to")


# ----- A command that takes too long, or that nobody waits for any more

HANGING = [
    pytest.param("say('ready')\nsleep()", 1, id="hangs"),
    pytest.param("child()\nsay('ready')\nsleep()", 2, id="with a child"),
    pytest.param("say('ready')\nwhile True:\n    os.write(1, b'x' * 65536)", 1, id="floods"),
]
STUBBORN = [
    pytest.param(IGNORE_SIGTERM + "say('ready')\nsleep()", 1, id="ignores SIGTERM"),
    pytest.param(
        IGNORE_SIGTERM + "child()\nsay('ready')\nsleep()", 2, id="ignores it, and its child"
    ),
    pytest.param(
        f"if child():\n    {IGNORE_SIGTERM}    say('ready')\n    sleep()\nsleep()",
        1,
        id="child ignores it",
    ),
    pytest.param(
        IGNORE_SIGTERM
        + "null = os.open('/dev/null', os.O_WRONLY)\nos.dup2(null, 1)\nos.dup2(null, 2)\n"
        + "say('ready')\nsleep()",
        1,
        id="ignores it, and prints nowhere",
    ),
]
Stop = Callable[[Attempt, MockClock], None]


def run_out_of_time(_attempt: Attempt, clock: MockClock) -> None:
    clock.jump(30)


def cancel(attempt: Attempt, _clock: MockClock) -> None:
    attempt.cancel()


def check_end(attempt: Attempt, stop: Stop) -> None:
    """A late command is told; of one that nobody waits for there is nobody to tell."""
    if stop is run_out_of_time:
        assert attempt.error
        assert attempt.error.message.startswith("not done after 30 s")
        assert attempt.error.hint
    else:
        assert attempt.error is None


@pytest.mark.parametrize("stop", [run_out_of_time, cancel])
@pytest.mark.parametrize(("body", "processes"), HANGING)
async def test_command_is_ended_with_all_of_its_processes(
    script: Callable[[str], Script],
    tmp_path: Path,
    nursery: trio.Nursery,
    mock_clock: MockClock,
    started: list[subprocess.Popen[bytes]],
    body: str,
    processes: int,
    stop: Stop,
) -> None:
    command = script(body)
    attempt = Attempt(command.action(), tmp_path)
    nursery.start_soon(attempt.run)
    await command.until_said("ready", processes)
    stop(attempt, mock_clock)
    await until(attempt.ended.is_set, "the end")
    check_end(attempt, stop)
    assert all_are_reaped(started)
    await until(lambda: not command.lives, "the end of all processes")
    assert mock_clock.current_time() <= 30  # nobody had to wait for the grace to be over


@pytest.mark.parametrize("stop", [run_out_of_time, cancel])
@pytest.mark.parametrize(("body", "processes"), STUBBORN)
async def test_command_that_ignores_sigterm_is_killed(
    script: Callable[[str], Script],
    tmp_path: Path,
    nursery: trio.Nursery,
    mock_clock: MockClock,
    started: list[subprocess.Popen[bytes]],
    body: str,
    processes: int,
    stop: Stop,
) -> None:
    command = script(body)
    attempt = Attempt(command.action(), tmp_path)
    nursery.start_soon(attempt.run)
    await command.until_said("ready", processes)
    stop(attempt, mock_clock)
    await command.until_said("SIGTERM", processes)
    assert command.lives
    assert not attempt.ended.is_set()
    mock_clock.jump(GRACE_SECONDS)
    await until(attempt.ended.is_set, "the end")
    check_end(attempt, stop)
    assert all_are_reaped(started)
    await until(lambda: not command.lives, "the end of all processes")


@pytest.mark.parametrize("stop", [run_out_of_time, cancel])
@pytest.mark.parametrize("prints", [True, False], ids=["prints", "prints nowhere"])
async def test_command_may_clean_up_first(
    script: Callable[[str], Script],
    tmp_path: Path,
    nursery: trio.Nursery,
    mock_clock: MockClock,
    started: list[subprocess.Popen[bytes]],
    prints: bool,
    stop: Stop,
) -> None:
    nowhere = "null = os.open('/dev/null', os.O_WRONLY)\nos.dup2(null, 1)\nos.dup2(null, 2)\n"
    command = script(
        ("" if prints else nowhere)
        + "def end(*_):\n    say('SIGTERM')\n    print('x' * 100_000)\n"
        + "    while not os.path.exists('go'):\n        time.sleep(0.01)\n"
        + "    say('clean')\n    sys.exit(0)\n"
        + "signal.signal(signal.SIGTERM, end)\nsay('ready')\nsleep()"
    )
    attempt = Attempt(command.action(), tmp_path)
    nursery.start_soon(attempt.run)
    await command.until_said("ready")
    stop(attempt, mock_clock)
    await command.until_said("SIGTERM")
    (tmp_path / "go").touch()
    await until(attempt.ended.is_set, "the end")
    assert command.said[-1] == "clean"
    check_end(attempt, stop)
    assert all_are_reaped(started)


async def test_late_command_tells_what_it_said(
    script: Callable[[str], Script], tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    command = script("print('waiting for the lock', flush=True)\nsay('ready')\nsleep()")
    attempt = Attempt(command.action(timeout_seconds=0.5), tmp_path)
    nursery.start_soon(attempt.run)
    await command.until_said("ready")
    mock_clock.jump(0.5)
    await until(attempt.ended.is_set, "the end")
    assert attempt.error
    assert attempt.error.message == (
        "not done after 0.5 s, so it was ended; it said: waiting for the lock"
    )


@within(120)
async def test_cancellation_at_any_time_leaves_no_process(
    script: Callable[[str], Script], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    command = script("sleep()")

    async def cancel_after(turns: int, processes: int, scope: trio.CancelScope) -> None:
        await until(lambda: len(started) >= processes, "the start")
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    all_turns = (0, 1, 2, 3, 5, 8, 13, 21, 50, 100, 200, 500, 1000)
    for turns, is_started in itertools.product(all_turns, (False, True)):
        processes = len(started) + 1 if is_started else 0
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_after, turns, processes, scope)
                await run(command.action(), tmp_path)
        assert scope.cancelled_caught
        assert all_are_reaped(started)
        assert not command.lives
    assert len(started) >= len(all_turns)


# ----- A signal


TWINS = [
    pytest.param(LinuxProcesses(), id="Linux", marks=linux),
    pytest.param(LinuxProcesses(None), id="Linux without descriptors", marks=linux),
    pytest.param(PsProcesses(), id="ps"),
]


class Program:
    """A running program that tells the signals it gets, and its pid file."""

    def __init__(self, folder: Path, name: str = "a-program") -> None:
        self.pid_file = folder / "program.pid"
        link = folder / name
        link.symlink_to(os.path.realpath(sys.executable))
        body = (
            "import os, signal\nsignal.alarm(60)\n"
            "def tell(number, _):\n    os.write(1, f'{signal.Signals(number).name}\\n'.encode())\n"
            "for one in (signal.SIGHUP, signal.SIGUSR2):\n    signal.signal(one, tell)\n"
            "os.write(1, b'ready\\n')\n"
            "while True:\n    signal.pause()\n"
        )
        self._process = subprocess.Popen(
            [link, "-S", "-E", "-c", body], stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        assert self.next() == "ready"
        self.write(f"{self.pid}\n")

    def write(self, content: str | bytes) -> None:
        self.pid_file.write_bytes(content.encode() if isinstance(content, str) else content)

    def next(self) -> str:
        """Wait for the next word."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """End it without taking note of it, as a parent that does not look does."""
        self._process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> list[str]:
        """End it; give what it told and nobody has asked for."""
        self._process.kill()
        output, _ = self._process.communicate(timeout=20)
        return list(output.split())


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    running = Program(tmp_path)
    yield running
    running.close()


def reload(program: Program, process: str | None = None) -> SignalAction:
    return SignalAction(program.pid_file.name, process=process)


async def signal_refusal(action: SignalAction, folder: Path, processes: Processes) -> HookError:
    with pytest.raises(HookError) as caught:
        await send_signal(action, folder, processes)
    assert caught.value.hint
    assert str(folder / action.pid_file) in caught.value.message
    return caught.value


@within(60)
@pytest.mark.parametrize("processes", TWINS)
@pytest.mark.parametrize("process", [None, "a-program"])
async def test_signal_reaches_the_process(
    program: Program, tmp_path: Path, processes: Processes, process: str | None
) -> None:
    done = await send_signal(reload(program, process), tmp_path, processes)
    assert done == Done(f"SIGHUP sent to {program.pid}")
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"
    await send_signal(SignalAction("program.pid", "SIGUSR2"), tmp_path, processes)
    assert await trio.to_thread.run_sync(program.next) == "SIGUSR2"


@within(60)
async def test_twin_is_chosen_by_the_system(program: Program, tmp_path: Path) -> None:
    kind = LinuxProcesses if sys.platform == "linux" else PsProcesses
    assert isinstance(processes_of_this_system(), kind)
    done = await perform(SignalAction(str(program.pid_file)), {}, "/")
    assert done == Done(f"SIGHUP sent to {program.pid}")
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"


@within(60)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{}", id="number alone"),
        pytest.param("{}\n", id="line"),
        pytest.param("  {}\r\n", id="padded"),
        pytest.param("\t{} \n\n", id="empty line below"),
        pytest.param("{}\n/var/lib/data\n-1\n1\n" + "x" * 5000, id="PostgreSQL's lines below"),
    ],
)
async def test_number_is_alone_in_its_line(program: Program, tmp_path: Path, content: str) -> None:
    program.write(content.format(program.pid))
    await perform(reload(program), {}, tmp_path)
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"


@within(60)
async def test_pid_file_is_read_each_time(program: Program, tmp_path: Path) -> None:
    program.write("no number")
    with pytest.raises(HookError):
        await perform(reload(program), {}, tmp_path)
    program.write(str(program.pid))
    await perform(reload(program), {}, tmp_path)
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"


@within(60)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("\n", id="empty line"),
        pytest.param("0", id="our own group"),
        pytest.param("-{pid}", id="a group"),
        pytest.param("-1", id="everybody"),
        pytest.param("+{pid}", id="plus"),
        pytest.param("0{pid}", id="leading zero"),
        pytest.param("0x1f4", id="hexadecimal"),
        pytest.param("{pid}.0", id="fraction"),
        pytest.param("1_000", id="underscore"),
        pytest.param("{pid} {pid}", id="two numbers"),
        pytest.param("name\n{pid}\n", id="number in the second line"),
        pytest.param("\n" * 62 + "{pid}", id="number that is cut off"),
        pytest.param("pid: {pid}", id="word"),
        pytest.param("{pid}\0", id="NUL"),
        pytest.param("{pid}" + " " * 5000, id="too long"),
        pytest.param("\u0661\u0662\u0663", id="digits of another script"),
        pytest.param("\u00a0{pid}", id="space of another script"),
        pytest.param("2147483648", id="more than a number of a process"),
        pytest.param("9" * 60, id="far more"),
        pytest.param("1", id="init"),
        pytest.param(str(os.getpid()), id="ourselves"),
        pytest.param(str(os.getppid()), id="our parent"),
    ],
)
async def test_content_that_is_no_process_to_signal(
    program: Program, tmp_path: Path, content: str
) -> None:
    signalled: list[int] = []

    class Recorder:
        async def send(self, pid: int, number: signal.Signals, check: object) -> None:
            signalled.append(pid)

    program.write(content.replace("{pid}", str(program.pid)))
    await signal_refusal(reload(program), tmp_path, Recorder())
    assert signalled == []


@within(60)
async def test_process_1_is_signalled_if_it_is_the_one_that_is_named(
    program: Program, tmp_path: Path
) -> None:
    """In another container's namespace of processes the program itself is process 1."""
    signalled: list[int] = []

    class Recorder:
        async def send(self, pid: int, number: signal.Signals, check: Check) -> None:
            check(RunningProcess("nginx", time.time()))
            signalled.append(pid)

    program.write("1")
    await send_signal(reload(program, "nginx"), tmp_path, Recorder())
    assert signalled == [1]
    error = await signal_refusal(reload(program, "systemd"), tmp_path, Recorder())
    assert "'nginx', expected 'systemd'" in error.message
    assert signalled == [1]


@within(60)
@pytest.mark.parametrize(
    ("content", "found"),
    [("", "nothing"), ("-12\n", "'-12\\n'"), ("0", "'0'"), ("hvs.CAESIJ", "something else")],
)
async def test_content_is_shown_unless_it_may_be_a_secret(
    tmp_path: Path, content: str, found: str
) -> None:
    (tmp_path / "pid").write_text(content)
    error = await signal_refusal(SignalAction("pid"), tmp_path, processes_of_this_system())
    assert f"found {found}, expected" in error.message


@within(60)
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "folder on the way"])
async def test_pid_file_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "program.pid"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder on the way":
        path = path / "x"
        path.parent.write_text("a file")
    action = SignalAction(str(path.relative_to(tmp_path)))
    error = await signal_refusal(action, tmp_path, processes_of_this_system())
    reasons = {
        "missing": "no such file",
        "folder on the way": "Not a directory",
        "folder": "Is a directory",
    }
    assert reasons.get(kind, "not a regular file") in error.message


@within(60)
@pytest.mark.parametrize("processes", TWINS)
async def test_process_that_is_gone(program: Program, tmp_path: Path, processes: Processes) -> None:
    program.close()
    error = await signal_refusal(reload(program), tmp_path, processes)
    assert f"there is no process {program.pid}" in error.message


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="no way to wait and leave it listed")
@within(60)
@pytest.mark.parametrize("processes", TWINS)
async def test_process_that_has_ended_and_is_still_listed(
    program: Program, tmp_path: Path, processes: Processes
) -> None:
    program.end()
    error = await signal_refusal(reload(program), tmp_path, processes)
    assert f"there is no process {program.pid}" in error.message


@within(60)
@pytest.mark.parametrize("processes", TWINS)
async def test_process_of_another_name_is_not_signalled(
    program: Program, tmp_path: Path, processes: Processes
) -> None:
    for name in ("nginx", "a-progra", "a-program2", "A-program", str(tmp_path / "a-program")):
        error = await signal_refusal(reload(program, name), tmp_path, processes)
        assert f"is 'a-program', expected {name!r}" in error.message
    await send_signal(reload(program, "a-program"), tmp_path, processes)
    # Of the signals that were refused it would have told before.
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"


@within(60)
@pytest.mark.parametrize("processes", TWINS)
async def test_long_name_is_compared_as_far_as_the_system_keeps_it(
    tmp_path: Path, processes: Processes
) -> None:
    name = "prometheus-node-exporter"
    program = Program(tmp_path, name)
    try:
        await send_signal(reload(program, name), tmp_path, processes)
        assert await trio.to_thread.run_sync(program.next) == "SIGHUP"
        await signal_refusal(reload(program, "prometheus-n"), tmp_path, processes)
        await signal_refusal(reload(program, "prometheus-nose-exporter"), tmp_path, processes)
    finally:
        assert program.close() == []


@within(60)
@pytest.mark.parametrize("processes", TWINS)
async def test_process_that_began_after_the_file_was_written_is_not_signalled(
    program: Program, tmp_path: Path, processes: Processes
) -> None:
    long_ago = program.pid_file.stat().st_mtime - 1000
    os.utime(program.pid_file, (long_ago, long_ago))
    error = await signal_refusal(reload(program), tmp_path, processes)
    assert "after the file was written" in error.message
    assert "process = 'a-program'" in str(error.hint)
    # The hint helps.
    await send_signal(reload(program, "a-program"), tmp_path, processes)
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"
    assert program.close() == []


@linux
@within(60)
async def test_slack_between_the_start_and_the_file(program: Program, tmp_path: Path) -> None:
    processes = LinuxProcesses()
    started = processes.look(program.pid).started
    for early, refused in ((SLACK_SECONDS - 0.5, False), (SLACK_SECONDS + 0.5, True)):
        os.utime(program.pid_file, (started - early, started - early))
        if refused:
            await signal_refusal(reload(program), tmp_path, processes)
        else:
            await send_signal(reload(program), tmp_path, processes)
            assert await trio.to_thread.run_sync(program.next) == "SIGHUP"


@linux
@within(60)
async def test_twins_see_the_same(program: Program) -> None:
    for pid in (program.pid, os.getpid(), 1):
        one, other = LinuxProcesses().look(pid), await PsProcesses().look(pid)
        assert one.name == other.name
        # The test may be stopped between the answer of `ps` and the reading of it.
        assert one.started - 2 < other.started < one.started + 30
    assert LinuxProcesses().look(program.pid).name == "a-program"
    assert time.time() - 60 < LinuxProcesses().look(program.pid).started <= time.time()


@linux
@within(60)
@pytest.mark.parametrize("name", ["a) S 1 (b", "a b", "((", "))) Z 1"])
async def test_name_that_looks_like_what_follows_it(tmp_path: Path, name: str) -> None:
    program = Program(tmp_path, name)
    try:
        assert LinuxProcesses().look(program.pid).name == name
        await send_signal(reload(program, name), tmp_path)
        assert await trio.to_thread.run_sync(program.next) == "SIGHUP"
    finally:
        program.close()


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("nginx", "nginx", True),
        ("nginx", "nginx2", False),
        ("nginx2", "nginx", False),
        ("fifteen-letters", "fifteen-letters", True),
        ("fifteen-letters", "fifteen-letters-and-more", True),
        ("sixteen-letters!", "sixteen-letters!-and-more", True),
        ("seventeen-letters", "seventeen-letters-and-more", False),
        ("fourteen-chars", "fourteen-chars-and-more", False),
        ("fifteen-letters", "fifteen-letter", False),
        ("caf\udcc3", "café", False),
        ("fourteen-chars\udcc3", "fourteen-charsé", True),
    ],
)
def test_names_are_the_same(found: str, wanted: str, same: bool) -> None:
    assert RunningProcess(found, 0).is_named(wanted) is same


@pytest.mark.parametrize(
    ("answer", "name", "age"),
    [
        pytest.param("00:00 S nginx", "nginx", 0, id="just now"),
        pytest.param("   01:02 Ss   /usr/sbin/nginx\n", "nginx", 62, id="path"),
        pytest.param("01:00:00 S+ /Applications/My App/My App\n", "My App", 3600, id="spaces"),
        pytest.param("12-03:04:05 R x", "x", 12 * 86400 + 3 * 3600 + 4 * 60 + 5, id="days"),
        pytest.param("  123-00:00:00 ?Es -zsh", "-zsh", 123 * 86400, id="a login shell"),
    ],
)
async def test_answers_of_ps(
    monkeypatch: pytest.MonkeyPatch, answer: str, name: str, age: int
) -> None:
    monkeypatch.setattr(trio, "run_process", answering(answer))
    before = time.time()
    found = await PsProcesses().look(123)
    assert found.name == name
    assert before - age <= found.started <= time.time() - age


@within(60)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param("", "there is no process", id="nothing"),
        pytest.param("\n", "there is no process", id="empty line"),
        pytest.param("01:02 Z (nginx)\n", "there is no process", id="ended"),
        pytest.param("01:02 S \n", "cannot be signalled", id="no name"),
        pytest.param("- S nginx\n", "cannot be signalled", id="no time"),
        pytest.param("nginx", "cannot be signalled", id="something else"),
    ],
)
async def test_answers_of_ps_that_help_nobody(
    monkeypatch: pytest.MonkeyPatch, program: Program, tmp_path: Path, answer: str, reason: str
) -> None:
    monkeypatch.setattr(trio, "run_process", answering(answer))
    error = await signal_refusal(reload(program), tmp_path, PsProcesses())
    assert reason in error.message
    assert program.close() == []


def answering(answer: str) -> Callable[..., Any]:
    """A `ps` of another system."""

    async def run_process(argv: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(argv, 0, answer.encode())

    return run_process


@linux
@within(60)
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
async def test_kernel_or_sandbox_without_process_descriptors(
    program: Program, tmp_path: Path, number: int
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    await send_signal(reload(program), tmp_path, LinuxProcesses(refuse))
    assert await trio.to_thread.run_sync(program.next) == "SIGHUP"


@linux
@within(60)
async def test_process_that_was_looked_at_is_the_one_that_is_signalled(
    program: Program, tmp_path: Path
) -> None:
    def ends_meanwhile(_found: RunningProcess) -> None:
        program.close()  # from here on the number may become anybody's

    with pytest.raises(ProcessLookupError):
        await LinuxProcesses().send(program.pid, signal.SIGHUP, ends_meanwhile)


@linux
@within(60)
async def test_signal_goes_to_the_process_that_is_held_and_not_to_a_number(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Program(tmp_path / "other")
    try:
        # As if the number were another's by the time of the signal.
        processes = LinuxProcesses(lambda _pid: os.pidfd_open(other.pid))
        await send_signal(reload(program), tmp_path, processes)
        assert await trio.to_thread.run_sync(other.next) == "SIGHUP"
        assert program.close() == []
    finally:
        other.close()


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be an account without rights for a moment."""
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@as_root
@within(60)
@pytest.mark.parametrize("processes", TWINS)
async def test_process_of_another_user(tmp_path: Path, processes: Processes) -> None:
    program = Program(tmp_path)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program.pid_file = Path(folder, "program.pid")
        program.write(f"{program.pid}\n")
        program.pid_file.chmod(0o644)
        with somebody_else():
            error = await signal_refusal(reload(program), Path(folder), processes)
    assert f"uid 65534 may not signal process {program.pid}" in error.message
    assert program.close() == []


@as_root
@within(60)
async def test_pid_file_that_may_not_be_read(program: Program, tmp_path: Path) -> None:
    with somebody_else():
        error = await signal_refusal(reload(program), tmp_path, processes_of_this_system())
    assert "Permission denied" in error.message
    assert "65534" in str(error.hint)


# ----- A touch


class Seen(FileSystemEventHandler):
    """What a program that watches a folder hears."""

    def __init__(self) -> None:
        self.modified: set[str] = set()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileModifiedEvent):
            self.modified.add(os.path.realpath(os.fsdecode(event.src_path)))


@within(60)
async def test_touch_is_seen_by_who_watches(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.toml"
    path.write_text("content")
    os.utime(path, (1000, 1000))
    seen = Seen()
    observer = Observer()
    observer.schedule(seen, str(tmp_path))
    observer.start()
    try:
        before = time.time() - 1  # the disk's clock is a coarse one
        assert await perform(TouchAction("dynamic.toml"), {}, tmp_path) == Done("touched")
        await until(lambda: os.path.realpath(path) in seen.modified, "the watcher")
    finally:
        observer.stop()
        observer.join()
    assert before <= path.stat().st_mtime <= time.time() + 1
    assert path.read_text() == "content"


@within(60)
async def test_touch_follows_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("content")
    os.utime(target, (1000, 1000))
    link.symlink_to(target)
    await perform(TouchAction("link"), {}, tmp_path)
    assert target.stat().st_mtime > 1000


@within(60)
@pytest.mark.parametrize("path", ["missing", "folder/missing", "dangling", "file/below"])
async def test_touch_never_makes_a_file(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    error = await refusal(TouchAction(path), tmp_path)
    assert error.message.startswith(f"{tmp_path / path}: ")
    assert error.hint
    assert sorted(tmp_path.rglob("*")) == before


@as_root
@within(60)
async def test_touch_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.toml"
    path.touch()
    os.utime(path, (1000, 1000))
    with somebody_else():
        error = await refusal(TouchAction("dynamic.toml"), tmp_path)
    assert error.message == f"{path}: Permission denied"
    assert "uid 65534" in str(error.hint)
    assert path.stat().st_mtime == 1000


# ----- A disk that hangs


class Hanging:
    """A call on a file that does not return until it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        assert self.go_on.wait(60)
        return "read"


async def test_disk_that_hangs_is_left_behind_with_one_thread(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    call = Hanging()
    errors: list[HookError] = []

    async def attempt() -> None:
        with pytest.raises(HookError) as caught:
            await on_disk(call, str(tmp_path))
        errors.append(caught.value)

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            await until(lambda: call.calls > 0, "the call")
            await trio.testing.wait_all_tasks_blocked()
            # Other files have other threads, and while this one runs another call could begin.
            assert await on_disk(lambda: "read", str(tmp_path / "other")) == "read"
            mock_clock.jump(PATIENCE_SECONDS)
    assert len(errors) == 3
    assert all("did not answer" in error.message and error.hint for error in errors)
    assert call.calls == 1
    call.go_on.set()
    assert await on_disk(call, str(tmp_path)) == "read"


async def test_program_on_a_disk_that_hangs_holds_up_no_other(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    program = tmp_path / "program"
    os.mkfifo(program, 0o755)  # whoever opens it waits for a writer
    attempt = Attempt(CommandAction(("./program",)), tmp_path)
    nursery.start_soon(attempt.run)
    await trio.testing.wait_all_tasks_blocked()
    assert (await run(CommandAction(("true",)), tmp_path)).result == "exit status 0"
    assert not attempt.ended.is_set()
    mock_clock.jump(PATIENCE_SECONDS)
    await until(attempt.ended.is_set, "the end")
    assert attempt.error
    assert "did not answer" in attempt.error.message
    # Lets the thread that was left behind come to its end.
    os.close(os.open(program, os.O_WRONLY))


@within(60)
async def test_shutdown_does_not_wait_for_a_disk_that_hangs(tmp_path: Path) -> None:
    call = Hanging()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(on_disk, call, str(tmp_path))
        await until(lambda: call.calls == 1, "the call")
        nursery.cancel_scope.cancel()
    assert not call.go_on.is_set()
    call.go_on.set()
