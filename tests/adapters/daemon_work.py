"""What a daemon does long after its start, as steps for `confined`: Python's own, and ours."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import grpc
import trio

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.service_manager import notifier
from tests.ca import Authority
from tests.plans import plan


def _import(name: str) -> None:
    assert name not in sys.modules
    importlib.import_module(name)


def _traceback() -> str:
    """Give a line of Python's source, which a traceback reads when it is shown."""
    try:
        json.loads("{")
    except ValueError:
        return "source" if "self.scan_once(s, idx)" in traceback.format_exc() else "no source"
    return "no error"


def _publish(directory: str) -> str:
    """Publish two generations, and count what is there."""
    authority = Authority("example.org")
    files = CertFiles(Path(directory))
    for _ in range(2):
        files.publish(plan(authority))
    files.close()
    return str(files.current())


def _watch(path: str) -> str:
    """Hear of a file that is replaced, and read the new one."""
    return trio.run(_hear, Path(path))


async def _hear(path: Path) -> str:
    with FileChanges(path) as changes:
        new = path.with_suffix(".new")
        new.write_text("replaced")
        new.rename(path)
        with trio.fail_after(20):
            await changes.wait()
    return path.read_text()


def _connect_agent(path: str) -> None:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        grpc.channel_ready_future(channel).result(20)


def _notify(path: str) -> str | None:
    return notifier({"NOTIFY_SOCKET": path}).ready()


def _thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append("ran"))
    thread.start()
    thread.join(20)
    return trio.run(_in_worker, found)


async def _in_worker(found: list[str]) -> str:
    return await trio.to_thread.run_sync(found.pop)


STEPS: dict[str, Callable[..., object]] = {
    "import": _import,
    "traceback": _traceback,
    "user": lambda: pwd.getpwuid(0).pw_name,
    "random": lambda: len(os.urandom(8)),
    "threads": _thread,
    "publish": _publish,
    "watch": _watch,
    "connect agent": _connect_agent,
    "notify": _notify,
}
