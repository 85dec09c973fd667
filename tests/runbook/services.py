"""Processes that are kept running, as systemd and launchd do: started under an account, told of by
their notices, started again when they fail.

Only what the runbook's story needs of that; what a unit says about confinement is not applied here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_STOP_SECONDS = 30
_START_SECONDS = 60
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Definition:
    """What a unit or a property list says."""

    command: tuple[str, ...]
    log: Path
    user: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    notifies: bool = False
    again_on_failure: bool = False
    again_after: float = 1
    final: frozenset[int] = frozenset()  # exit statuses after which it is not started again


class Service:
    """One service; every change of its state wakes up who waits in `changed`."""

    def __init__(self, name: str, changed: threading.Condition) -> None:
        self.name = name
        self.state = "inactive"
        self.result = "success"
        self.pid = self.status = self.restarts = 0
        self._changed = changed
        self._definition: Definition | None = None
        self._stopping = False
        self._generation = 0

    @property
    def detail(self) -> str:
        """Say more of its state, in the words of systemd."""
        if self.state == "activating":
            return "start" if self.pid else "auto-restart"
        return {"active": "running", "inactive": "dead"}.get(self.state, self.state)

    def start(self, definition: Definition, *, wait: bool) -> bool:
        """Start it if it does not run; tell, after waiting, whether it is up."""
        with self._changed:
            if not self.pid:
                self.restarts, self._stopping = 0, False
                self._definition = definition
                self._spawn()
            if wait:
                self._changed.wait_for(lambda: self.state != "activating", _START_SECONDS)
            return self.state in ("active", "activating")

    def stop(self) -> None:
        """End it, whatever it is doing, and wait until it has ended."""
        with self._changed:
            self._stopping = True
            self._generation += 1
            if self.pid:
                self._become("deactivating")
                os.kill(self.pid, signal.SIGTERM)
                if not self._changed.wait_for(lambda: not self.pid, _STOP_SECONDS):
                    os.kill(self.pid, signal.SIGKILL)
                    self._changed.wait_for(lambda: not self.pid, _STOP_SECONDS)
            self._become("inactive")

    def kill(self, number: int) -> bool:
        """Send a signal; tell whether there was somebody to send it to."""
        with self._changed:
            if self.pid:
                os.kill(self.pid, number)
            return bool(self.pid)

    def forget_failure(self) -> None:
        with self._changed:
            self.restarts, self.result = 0, "success"
            if self.state == "failed":
                self._become("inactive")

    def ended(self, status: int) -> None:
        """Take note of the end of its process; called with the lock held."""
        definition = self._definition
        assert definition is not None
        self.pid = 0
        self.status = os.waitstatus_to_exitcode(status)
        if self._stopping or not self.status:
            self._become("inactive")
            return
        self.result = "exit-code" if self.status > 0 else "signal"
        if not definition.again_on_failure or self.status in definition.final:
            self._become("failed")
            return
        self._become("activating")
        again = threading.Timer(definition.again_after, self._again, [self._generation])
        again.daemon = True
        again.start()

    def _again(self, generation: int) -> None:
        with self._changed:
            if generation == self._generation and not self.pid:
                self.restarts += 1
                self._spawn()

    def _spawn(self) -> None:
        definition = self._definition
        assert definition is not None
        environment = {"PATH": PATH, "LANG": "C.UTF-8", **definition.environment}
        if definition.notifies:
            environment["NOTIFY_SOCKET"] = self._listen()
        self._become("activating" if definition.notifies else "active")
        definition.log.parent.mkdir(parents=True, exist_ok=True)
        with definition.log.open("ab") as log:
            try:
                self.pid = subprocess.Popen(
                    definition.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=environment,
                    umask=0o077,
                    start_new_session=True,
                    user=definition.user or None,
                    group=definition.user or None,
                    extra_groups=[] if definition.user else None,
                ).pid
            except (OSError, ValueError, KeyError) as exc:
                log.write(f"{self.name}: cannot be started: {exc}\n".encode())
                self.result, self.status = "exit-code", 203
                self._become("failed")

    def _listen(self) -> str:
        path = f"/run/notices-{self.name}-{time.monotonic_ns()}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(path)
        os.chmod(path, 0o777)
        threading.Thread(target=self._hear, args=(sock,), daemon=True).start()
        return path

    def _hear(self, sock: socket.socket) -> None:
        states = {"READY=1": "active", "RELOADING=1": "reloading", "STOPPING=1": "deactivating"}
        while True:
            for line in sock.recv(4096).decode().splitlines():
                with self._changed:
                    if line in states and self.pid:
                        self._become(states[line])

    def _become(self, state: str) -> None:
        self.state = state
        self._changed.notify_all()


class Services:
    """All services of a machine, and the end of every process in it that nobody else waits for."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._all: dict[str, Service] = {}
        self._others: dict[int, int] = {}  # processes of `run`, with their exit status
        self._waiting: set[int] = set()
        threading.Thread(target=self._reap, daemon=True).start()

    def __getitem__(self, name: str) -> Service:
        with self.changed:
            return self._all.setdefault(name, Service(name, self.changed))

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> int:
        """Run a command to its end; gives its exit status."""
        with self.changed:
            child = start()  # kept: a Popen that is let go of takes the exit status of its child
            self._waiting.add(child.pid)
            self.changed.wait_for(lambda: child.pid in self._others, _START_SECONDS)
            self._waiting.remove(child.pid)
            child.returncode = os.waitstatus_to_exitcode(self._others.pop(child.pid))
            return child.returncode

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.05)
                continue
            with self.changed:
                if pid in self._waiting:
                    self._others[pid] = status
                for service in self._all.values():
                    if service.pid == pid:
                        service.ended(status)
                self.changed.notify_all()
