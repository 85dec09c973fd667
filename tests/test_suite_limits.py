"""The suite itself: child processes get default signals, and nothing that hangs hangs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[1]
# Runs pytest as a script's `&` and `nohup` do, and with what else a parent can leave behind.
IGNORING = """
import os, signal, sys
for name in ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGCHLD"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
SHOWING = """
import signal, subprocess, sys

SHOW = '''
import signal
ignored = [one for one in signal.valid_signals() if signal.getsignal(one) is signal.SIG_IGN]
print(sorted(one.name for one in ignored), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
sys.exit(7)
'''

def test_child():
    child = [sys.executable, "-c", "import sys" + SHOW]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 7, "the exit status was lost"
    assert done.stdout == "['SIGPIPE', 'SIGXFSZ'] set()\\n" or sys.platform != "linux"

def test_child_can_be_interrupted():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == -signal.SIGTERM
"""
HANGING = """
import time, threading, pytest
from tests import limits

limits.AFTER_THE_TIMEOUT = 1.0

@pytest.fixture
def hanging():
    yield
    time.sleep(60)

def in_a_thread():
    time.sleep(60)

def test_hangs():
    threading.Thread(target=in_a_thread, daemon=True).start()
    time.sleep(60)

def test_next(): pass

def test_fails_and_its_teardown_hangs(hanging): assert not "failed"
"""


@pytest.fixture(name="pytest_on")
def _pytest_on(tmp_path: Path) -> Run:
    """Runs pytest on one file, by way of `before`, which Python is given first."""

    def run(text: str, *before: str) -> subprocess.CompletedProcess[str]:
        test = tmp_path / "test_inner.py"
        test.write_text(text)
        settings = tmp_path / "pytest.ini"
        settings.write_text("[pytest]\ntimeout = 1\naddopts = -p no:cacheprovider\n")
        options = ["-m", "pytest", "-v", "-p", "tests.limits", "-c", settings, test]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *before, *map(str, options)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_children_of_tests_start_with_default_signals(pytest_on: Run) -> None:
    done = pytest_on(SHOWING, "-c", IGNORING)
    assert done.returncode == 0, done.stdout


def test_what_hangs_is_ended_and_told(pytest_on: Run) -> None:
    done = pytest_on(HANGING)
    # The first failed alone, with the stacks of both threads; the last took the process with it.
    assert "test_hangs FAILED" in done.stdout
    assert "test_next PASSED" in done.stdout
    assert "test_fails_and_its_teardown_hangs FAILED" in done.stdout
    assert " in hanging" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("command", "seconds", "status"),
    [
        pytest.param("exit 3", 60, 3, id="done"),
        pytest.param("kill -TERM $$", 60, 143, id="killed"),
        pytest.param("wait", 0.5, 124, id="not done in time"),
    ],
)
def test_nothing_is_left_of_a_command(command: str, seconds: float, status: int) -> None:
    script = f"sleep 100 >/dev/null & echo $!; {command}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.deadline", str(seconds), "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert ("not done after" in done.stderr) == (status == 124)
    assert gone(int(done.stdout))


def gone(pid: int, seconds: float = 20) -> bool:
    """Wait until a process that is not our child has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_deadline_passes_signals_on() -> None:
    script = "trap 'echo heard; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    command = [sys.executable, "-m", "tests.deadline", "60", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "heard\n"
    assert process.returncode == 5
