"""A model server's socket, as the README has it: folder and umask say who may connect."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

# A model server as far as it matters: it binds the path, sets no mode, and is killed.
_BIND = """
import os, signal, socket, sys
os.umask(int(sys.argv[2], 8))
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
os.kill(os.getpid(), signal.SIGKILL)
"""


def bound(path: Path, umask: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BIND, str(path), umask]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def group() -> int:
    """A group of ours that is not the one that files get by themselves."""
    if os.geteuid() == 0:
        return 54321
    others = [one for one in os.getgroups() if one != os.getegid()]
    if not others:
        pytest.skip("needs a second group")
    return others[0]


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o755), ("007", 0o770)])
def test_socket_has_the_folders_group_and_the_umasks_mode(
    folder: Path, group: int, umask: str, mode: int
) -> None:
    os.chown(folder, -1, group)
    folder.chmod(0o2750)
    bound(folder / "model.sock", umask)
    made = (folder / "model.sock").stat()
    assert (made.st_gid, stat.S_IMODE(made.st_mode)) == (group, mode)


def test_file_of_a_server_that_was_killed_is_in_the_way_until_it_is_removed(folder: Path) -> None:
    path = folder / "model.sock"
    assert bound(path, "007").returncode == -9
    with socket.socket(socket.AF_UNIX) as knocking, pytest.raises(ConnectionRefusedError):
        knocking.connect(str(path))
    assert "Address already in use" in bound(path, "007").stderr
    path.unlink()
    assert bound(path, "007").returncode == -9
