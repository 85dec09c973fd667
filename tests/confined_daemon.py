"""The real `spiffe-sidecar run`, confined by its configuration, made to try files and to say so.

`python -m tests.confined_daemon CONFIG STEPS [UID]`: all is as in the daemon (arguments, checks,
what is bound and made before, the sandbox, the log on standard error) up to the moment at which it
would begin its work. Instead it tries the steps of `tests.adapters.confined` and prints, in JSON,
"ok", what each one found, or the name of the error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar import supervisor
from sidecar.adapters.sandbox import python_needs
from sidecar.cli import main as cli
from tests.adapters.confined import STEPS, attempt
from tests.log_lines import Line


@dataclass(frozen=True)
class Tried:
    """What became of the steps, and what was logged."""

    outcomes: list[str]
    log: list[Line]

    @property
    def confined(self) -> Line:
        """The line about the sandbox."""
        (line,) = [one for one in self.log if one["event"] == "confined"]
        return line

    @property
    def not_allowed(self) -> list[str]:
        """What is named as not allowed."""
        event = "path not allowed by the sandbox"
        return [one["reason"] for one in self.log if one["event"] == event]

    def own(self, name: str) -> list[str]:
        """What the configuration, and not Python or the system, has allowed."""
        system = {str(one) for one in (*python_needs().read, *python_needs().write)}
        ours = {str(Path(file).parent) for file in (__file__, supervisor.__file__)}
        return [one for one in self.confined[name] or [] if one not in system | ours]


def attempt_in_daemon(config: Path, *steps: list[str], uid: int | None = None) -> Tried:
    """Start the daemon of a configuration that logs in JSON, and have it try the steps."""
    arguments = [str(config), json.dumps(steps), *([] if uid is None else [str(uid)])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.confined_daemon", *arguments],
        capture_output=True,
        timeout=110,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return Tried(json.loads(done.stdout), lines)


def main() -> None:
    config, steps, *uid = sys.argv[1:]
    if uid:
        python_needs()  # while the files of this Python can be read
        os.setgroups([])
        os.setgid(int(uid[0]))
        os.setuid(int(uid[0]))

    async def run(*_: Any) -> None:
        outcomes = [attempt(STEPS[name], *rest) for name, *rest in json.loads(steps)]
        print(json.dumps(outcomes), flush=True)

    supervisor.run = run  # type: ignore[assignment]
    cli(["run", "--config", config])


if __name__ == "__main__":
    main()
