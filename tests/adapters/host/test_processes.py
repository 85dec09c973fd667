from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.adapters.host.command import Output, run
from sidecar.adapters.host.processes import (
    is_sidecar,
    listener_of,
    mac_peer,
    mac_process,
    process_of,
)
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Process
from tests.adapters.host.answers import Recorded


def test_who_listens_is_who_called_listen(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        sock.listen()
        assert listener_of(str(folder / "s")) == (os.getpid(), os.geteuid())


def test_nobody_listens(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
    assert isinstance(listener_of(str(folder / "s")), Unknown)
    assert isinstance(listener_of(str(folder / "none")), Unknown)


def test_credentials_of_macos_are_read() -> None:
    """struct xucred: version, uid, number of groups, 16 groups."""
    xucred = struct.pack("=IIh2x16I", 0, 501, 2, 20, 12, *[0] * 14)
    assert len(xucred) == 76
    assert mac_peer(xucred, struct.pack("=i", 4711)) == (4711, 501)


async def test_own_process() -> None:
    own = await process_of(os.getpid(), run)
    assert own.uid == os.geteuid()
    assert own.name


async def test_a_process_that_is_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    found = await process_of(child.pid, run)
    assert (found.uid, found.name) == (None, "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(
            "  451 /opt/spire/bin/spire-agent\n", Process(9, 451, "spire-agent"), id="a path"
        ),
        pytest.param("    0 /Applications/My App/x y\n", Process(9, 0, "x y"), id="spaces"),
        pytest.param("", Process(9), id="no such process"),
        pytest.param("nonsense\n", Process(9), id="something else"),
    ],
)
def test_ps_of_macos_is_read(text: str, found: Process) -> None:
    assert mac_process(9, Output(0, text)) == found


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        pytest.param("python -m sidecar run --config x", True, id="module"),
        pytest.param("/opt/x/python /opt/x/bin/spiffe-sidecar run --config x", True, id="script"),
        pytest.param("python -m sidecar status --config x", False, id="another command of ours"),
        pytest.param("nginx run", False, id="another program"),
        pytest.param("", False, id="no process"),
    ],
)
async def test_a_sidecar_is_known_by_its_command_line(command: str, ours: bool) -> None:
    assert await is_sidecar(9, Recorded({"ps -o command=": command}), "darwin") is ours


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_on_linux_the_command_line_is_read_from_proc() -> None:
    assert not await is_sidecar(os.getpid(), run, "linux")
    code = "import sys; print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, "sidecar", "run"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # from here on it is itself
        assert await is_sidecar(child.pid, run, "linux")
        child.kill()
