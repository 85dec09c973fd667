"""A stand-in for `docker exec NAME PROGRAM ...` into SPIRE's image: no shell, no other program.

FAKE_DOCKER is a folder with one JSON file a container: {"running": true, "socket": PATH}, where
PATH is the state of a `FakeSpireServer`. Texts and exit statuses are those of Docker 27.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

SPIRE_SERVER = "/opt/spire/bin/spire-server"
PROGRAM = Path(__file__)


def docker(folder: Path, name: str, *, running: bool = True, socket: Path | None = None) -> str:
    """Make a container; gives the command prefix."""
    (folder / f"{name}.json").write_text(json.dumps({"running": running, "socket": str(socket)}))
    return shlex.join([sys.executable, "-IS", str(PROGRAM), "exec", name, SPIRE_SERVER])


def _end(status: int, text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return status


def main(arguments: list[str]) -> int:  # noqa: RET503 - execve does not return
    if arguments[0] != "exec":
        return _end(1, f"docker: '{arguments[0]}' is not a docker command.")
    if arguments[1].startswith("-"):
        return _end(1, "the input device is not a TTY")
    _, name, program, *words = arguments
    file = Path(os.environ["FAKE_DOCKER"], f"{name}.json")
    if not file.exists():
        return _end(1, f"Error response from daemon: No such container: {name}")
    container = json.loads(file.read_text())
    if not container["running"]:
        return _end(1, f"Error response from daemon: container {'4f' * 32} is not running")
    if program != SPIRE_SERVER:
        reason = f'exec: "{program}": stat {program}: no such file or directory: unknown'
        return _end(
            127,
            f"OCI runtime exec failed: exec failed: unable to start container process: {reason}",
        )
    os.chdir("/")
    server = Path(__file__).with_name("fake_spire_server.py")
    # Nothing of the host's environment is in there.
    inside = {"FAKE_SPIRE_SOCKET": container["socket"]}
    os.execve(sys.executable, [sys.executable, "-IS", str(server), *words], inside)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
