"""A process that goes into the sandbox and tries things there: nobody comes out of it again.

`python -m tests.adapters.confined PLAN`, JSON both ways. A plan has what `confine` takes and the
steps to try; of each step comes "ok", what it found, or the name of the error.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.adapters.sandbox import Allowed, confine, python_needs
from sidecar.adapters.sandbox.kernel import LinuxKernel, OtherKernel, kernel_of_this_system

_PR_GET_DUMPABLE = 3


class OlderKernel(LinuxKernel):
    """Our kernel as if its Landlock were older; error -1 and so on mean that it has none."""

    def __init__(self, abi: int) -> None:
        super().__init__()
        self._abi = abi

    def landlock_abi(self) -> int:
        if self._abi < 0:
            raise OSError(-self._abi, os.strerror(-self._abi))
        return self._abi


def run(plan: dict[str, Any], *steps: list[str]) -> dict[str, Any]:
    """Try the steps in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.adapters.confined", json.dumps({**plan, "steps": steps})],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def outcomes(plan: dict[str, Any], *steps: list[str]) -> list[str]:
    """Give what became of each step."""
    return list(run(plan, *steps)["outcomes"])


def attempt(step: Callable[..., object], *arguments: str) -> str:
    try:
        found = step(*arguments)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))
    return "ok" if found is None else str(found)


def _read(path: str) -> None:
    Path(path).read_bytes()


def _list(path: str) -> None:
    os.listdir(path)


def _stat(path: str) -> None:
    os.stat(path)


def _write(path: str) -> None:
    """Write to what is there."""
    with open(path, "r+b") as stream:
        stream.write(b"written")


def _create(path: str) -> None:
    with open(path, "xb"):
        pass


def _connect(host: str, port: str) -> None:
    socket.create_connection((host, int(port)), 20).close()


def _listen(port: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", int(port)))


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def _bind_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def _run(*argv: str) -> str:
    nowhere = subprocess.DEVNULL
    done = subprocess.run(argv, check=False, stdout=nowhere, stderr=nowhere)
    return f"status {done.returncode}"


def _crash() -> str:
    child = os.fork()
    if child == 0:
        os.abort()
    _, status = os.waitpid(child, 0)
    return "dumped" if os.WCOREDUMP(status) else f"signal {os.WTERMSIG(status)}"


def _core_limit() -> str:
    return str(resource.getrlimit(resource.RLIMIT_CORE))


def _dumpable() -> int:
    return int(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def _no_new_privileges() -> str:
    status = Path("/proc/self/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("NoNewPrivs:"))


STEPS: dict[str, Callable[..., object]] = {
    "read": _read,
    "list": _list,
    "stat": _stat,
    "write": _write,
    "create": _create,
    "truncate": lambda path: os.truncate(path, 0),
    "remove": os.unlink,
    "rename": os.rename,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "symlink": os.symlink,
    "mkfifo": os.mkfifo,
    "utime": os.utime,
    "connect": _connect,
    "listen": _listen,
    "connect unix": _connect_unix,
    "bind unix": _bind_unix,
    "run": _run,
    "crash": _crash,
    "core limit": _core_limit,
    "dumpable": _dumpable,
    "no new privileges": _no_new_privileges,
}


class Bystander:
    """A thread that ran before, and tries a step when it is asked."""

    def __init__(self) -> None:
        self._asked, self._done = threading.Event(), threading.Event()
        self._step: tuple[str, ...] = ()
        self._found = ""
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, *step: str) -> str:
        self._step = step
        self._asked.set()
        assert self._done.wait(20)
        return self._found

    def _run(self) -> None:
        self._asked.wait()
        self._found = attempt(STEPS[self._step[0]], *self._step[1:])
        self._done.set()


class Neighbour:
    """A shell that was started before, and is not in the sandbox."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        assert self.run(":") == "status 0"  # it is past its start

    def run(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho status $?\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()


def _in_new_thread(*step: str) -> str:
    return Bystander().ask(*step)


def _kernel(name: str | int) -> LinuxKernel | OtherKernel:
    if isinstance(name, int):
        return OlderKernel(name)
    return OtherKernel() if name == "other" else kernel_of_this_system()


def _allowed(plan: dict[str, Any]) -> Allowed | None:
    """Give what the plan allows, and what Python needs."""
    if plan.get("allowed") is None:
        return None
    paths = {
        name: tuple(Path(path) for path in plan["allowed"].get(name, ()))
        for name in ("read", "write", "append", "execute")
    }
    needs = python_needs()
    ports = [plan["allowed"].get(name) for name in ("listen", "connect")]
    listen, connect = (None if one is None else tuple(one) for one in ports)
    return Allowed(
        read=needs.read + paths["read"],
        write=needs.write + paths["write"],
        append=paths["append"],
        execute=paths["execute"],
        listen=listen,
        connect=connect,
    )


def main() -> None:
    plan = json.loads(sys.argv[1])
    if plan.get("daemon"):
        # Now: the folder of the tests is not for those in the sandbox.
        from tests.adapters import daemon_work

        STEPS.update(daemon_work.STEPS)
    allowed = _allowed(plan)
    if "uid" in plan:
        os.setgroups([])
        os.setgid(plan["uid"])
        os.setuid(plan["uid"])
    if "core limit" in plan:
        resource.setrlimit(resource.RLIMIT_CORE, tuple(plan["core limit"]))
    neighbour = Neighbour()
    before = Bystander() if plan.get("thread") else None
    answer: dict[str, Any] = {}
    if not plan.get("free"):
        done = confine(
            allowed,
            no_new_privileges=plan.get("no_new_privileges", True),
            kernel=_kernel(plan.get("kernel", "this")),
        )
        answer = dataclasses.asdict(done)
    steps: dict[str, Callable[..., str]] = {
        "in new thread": _in_new_thread,
        "neighbour runs": neighbour.run,
        "read of neighbour": lambda name: attempt(_read, f"/proc/{neighbour.pid}/{name}"),
    }
    if before:
        steps["in thread of before"] = before.ask
    answer["outcomes"] = [
        steps[name](*rest) if name in steps else attempt(STEPS[name], *rest)
        for name, *rest in plan["steps"]
    ]
    neighbour.close()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
