"""`python -m tests.deadline SECONDS COMMAND...`: run a command, and end all that it has started.

The command gets a process group of its own, which is killed when the command has ended or its time
is up. Then SIGABRT comes first: Python's faulthandler, which pytest enables, writes all stacks.
Exit status: the command's, as a shell gives it; 124 when time was up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

TIME_IS_UP = 124  # as timeout(1), which macOS does not have
LAST_WORDS_SECONDS = 5.0


def run(seconds: float, command: list[str]) -> int:
    """Run `command` for at most `seconds`; give its exit status."""
    group = 0
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            if group:
                os.killpg(group, number)
            else:
                early.append(number)

    # The group is not the terminal's, so that Ctrl-C reaches this process alone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    process = subprocess.Popen(command, process_group=0)
    group = process.pid
    for missed in early:
        pass_on(missed, None)
    try:
        status = process.wait(seconds)
        return status if status >= 0 else 128 - status
    except subprocess.TimeoutExpired:
        print(f"error: not done after {seconds:g} s: {' '.join(command)}", file=sys.stderr)
        os.killpg(group, signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS_SECONDS)
        return TIME_IS_UP
    finally:
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM when all are zombies
            os.killpg(group, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
