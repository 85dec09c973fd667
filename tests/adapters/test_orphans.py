"""Orphans of commands are reaped, and no command's own exit status is taken by that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no containers")

# As process 1 of a container would: orphans of the children become children of ours.
PROGRAM = """
import ctypes, json, os, sys
from pathlib import Path

import trio

from sidecar.adapters.after_rotation import CHILDREN, perform
from sidecar.core.after_rotation import CommandAction
from sidecar.core.errors import HookError

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
said = []

async def command(script, seconds=30.0):
    for _ in range(8):
        try:
            done = await perform(CommandAction(("/bin/sh", "-c", script), seconds), {}, "/")
        except HookError as exc:
            said.append(exc.message)
        else:
            said.append(done.result)

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(CHILDREN.reap_orphans)
        async with trio.open_nursery() as commands:
            for script in (
                "true & true & exit 7",
                "(sleep 0.05 >/dev/null 2>&1 </dev/null &); exit 0",
                "true & kill -9 $$",
                "/nowhere & exit 3",
            ):
                commands.start_soon(command, script)
            commands.start_soon(command, "sleep 60 & sleep 60", 0.02)
        with trio.fail_after(30):
            while True:  # until no child is left, ended or not
                try:
                    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    break
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

trio.run(main)
print(json.dumps(sorted(said)))
"""


def test_orphans_are_reaped_and_commands_keep_their_exit_status() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {"exit status 7", "exit status 0", "killed by SIGKILL", "exit status 3"}
    said = json.loads(done.stdout)
    assert len(said) == 40
    late = [one for one in said if "so it was ended" in one]
    assert len(late) == 8
    rest = [one.partition(";")[0] for one in said if one not in late]
    assert {one: rest.count(one) for one in expected} == dict.fromkeys(expected, 8)
