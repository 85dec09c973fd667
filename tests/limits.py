"""A pytest plugin: no test hangs the suite, and child processes start with default signals.

Three limits, each for what escapes the one before:

1. pytest-timeout (pyproject.toml): after 120 s SIGALRM fails the test, with the stacks of all
   threads in its report, and the next test begins.
2. `faulthandler`, 30 s later: its thread in C writes all stacks to standard error and ends the
   process. For code that lets no signal handler run, and for a teardown that hangs after its test
   has failed, where pytest-timeout has stopped counting.
3. `tests.deadline`, which scripts/test runs the whole suite under.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Generator
from types import FrameType

import pytest

AFTER_THE_TIMEOUT = 30.0  # seconds
AT_THE_END = 60.0  # seconds from the last test to the end of the process
_IGNORED_BY_PYTHON = {"SIGPIPE", "SIGXFSZ", "SIGXFZ"}  # subprocess restores these in its children

_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    default_signals()
    assert sys.__stderr__ is not None
    config.stash[_stderr] = os.dup(sys.__stderr__.fileno())  # pytest captures what comes later


def default_signals() -> None:
    """Let child processes start with no signal ignored or blocked.

    A shell starts what a script puts into the background with SIGINT and SIGQUIT ignored, `nohup`
    ignores SIGHUP, and every program inherits that from the one before. A handler is not inherited:
    SIGINT gets the one that Python starts with, the others one that does nothing.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            continue
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        elif signal.Signals(number).name not in _IGNORED_BY_PYTHON:
            signal.signal(number, _do_nothing)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _count_for(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Count on for the teardown: here pytest and pytest-timeout stop, to make room for pdb."""
    if isinstance(node, pytest.Item) and not node.config.getoption("usepdb"):
        _count_for(node)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the process although a thread of a test runs on; xdist ends its workers by itself."""
    if not hasattr(session.config, "workerinput"):
        _end_after(session.config, AT_THE_END)


def _count_for(item: pytest.Item) -> None:
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout"))
    _end_after(item.config, seconds + AFTER_THE_TIMEOUT)


def _end_after(config: pytest.Config, seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_stderr])
