"""One machine, seen from outside: its files, and what is run in it.

Namespaces and an overlay take Linux, root, and a few programs of util-linux and iproute2; `missing`
says which of that is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.runbook import call
from tests.runbook.boot import NOT_ALLOWED, PERSON
from tests.runbook.page import ROOT
from tests.runbook.services import PATH

_PROGRAMS = ("unshare", "nsenter", "setpriv", "mount", "ip", "bash", "curl", "runuser", "useradd")
_SECONDS = 180
# Below their folders is all that a machine needs besides the system's own programs.
NEEDED = sorted({str(ROOT), sys.prefix, sys.base_prefix, sysconfig.get_path("purelib")})
# As sudo is set up everywhere: another account, and nothing of the caller's environment. What does
# it is a copy of setpriv(1) that belongs to root and says so in its mode.
_SUDO = """#!/bin/sh
user=0
[ "$1" != -n ] || shift
[ "$1" != -u ] || {{ user="$2"; shift 2; }}
[ "$1" != -- ] || shift
exec /usr/local/lib/sudo-program --reuid "$user" --regid "$user" --clear-groups \\
  env -i PATH="{path}" HOME=/root LANG="$LANG" SUDO_USER=person "$@"
"""


def missing() -> str:
    """Why there can be no machine here; empty if there can."""
    if sys.platform != "linux":
        return "takes the namespaces of Linux"
    if os.geteuid() != 0:
        return "takes root: namespaces, an overlay, accounts"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"there is no {', '.join(absent)} here"
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    if subprocess.run(unshare, capture_output=True, check=False).returncode:
        return "the kernel, or the container that we are in, allows no new namespaces"
    if _version_of_system_python() != sys.version_info[:2]:
        return "the packages of the tests are not for /usr/bin/python3, or it makes no environments"
    return ""


def _version_of_system_python() -> tuple[int, ...]:
    asked = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
    with suppress(OSError):
        command = ["/usr/bin/python3", "-I", "-c", asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return tuple(map(int, done.stdout.split()))
    return ()


class NoMachineError(RuntimeError):
    """The kernel, or the container that we are in, does not allow it."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of commands."""

    status: int
    out: str
    error: str

    @property
    def all(self) -> str:
        return self.out + self.error


class Machine:
    """Begins with nothing installed; a context manager."""

    def __init__(self, folder: Path, etc: Mapping[str, str], *, is_mac: bool = False) -> None:
        folder.mkdir()
        # Whoever may use sudo on a Mac is an admin, who may read logs.
        self._groups = "--groups=80" if is_mac else "--clear-groups"
        order = {"folder": str(folder), "needed": NEEDED, "etc": dict(etc), "is_mac": is_mac}
        self._process = subprocess.Popen(
            [
                # All of it ends with us, however we end.
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
                *(sys.executable, "-m", "tests.runbook.boot", json.dumps(order)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            reason = self._process.communicate(timeout=10)[1]
            allowed = self._process.returncode != NOT_ALLOWED
            raise RuntimeError(reason) if allowed else NoMachineError(reason)
        self.pid = int(line)
        self._others: list[subprocess.Popen[bytes]] = []
        self.program("sudo", _SUDO.format(path=PATH))
        setpriv = self.at("/usr/local/lib/sudo-program")
        shutil.copy(shutil.which("setpriv") or "", setpriv)
        setpriv.chmod(0o4755)
        if is_mac:
            self._managed("launchctl")
        else:
            self._managed("systemctl", "journalctl")
        # A checkout is the person's own; what is in it already is only read.
        os.chown(self.at(str(ROOT)), PERSON, PERSON)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_fault: object) -> None:
        for other in self._others:
            other.kill()
        self._process.kill()
        for other in self._others:
            other.wait()
        self._process.communicate()

    def at(self, path: str) -> Path:
        """Give the path of a file of the machine, for us; links in it must be relative."""
        return Path(f"/proc/{self.pid}/root{path}")

    def checkout(self, name: str) -> Path:
        """Give the path of a file in its checkout, for us."""
        return self.at(f"{ROOT}/{name}")

    def program(self, name: str, text: str) -> None:
        """Put a program of ours into the place of the system's, or before it."""
        if not name.startswith("/"):
            for folder in PATH.split(":"):
                self.at(f"{folder}/{name}").unlink(missing_ok=True)
        path = self.at(name if name.startswith("/") else f"/usr/bin/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def _managed(self, *names: str) -> None:
        """Have its service manager answer these programs."""
        for name in names:
            words = f"{sys.executable} -IS {call.__file__} {name}"
            self.program(name, f'#!/bin/sh\nexec {words} "$@"\n')

    def run(
        self, text: str, *, root: bool = False, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Have a shell run commands in the checkout, for the person or for root."""
        done = subprocess.run(
            [*self._entered(root, environment or {}), "bash", "-euo", "pipefail", "-c", text],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def open(
        self, text: str, *, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Have a shell begin with commands, for the person; what it prints is for the caller."""
        return subprocess.Popen(
            [*self._entered(False, environment or {}), "bash", "-euo", "pipefail", "-c", text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a program that runs as long as the machine does, for root."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*self._entered(True, {}), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._others.append(process)
        return process

    def ip(self, words: str) -> None:
        """Run `ip` in its network."""
        command = ["nsenter", "--target", str(self.pid), "--net", "ip", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoMachineError(f"ip {words}: {done.stderr}")

    def _entered(self, root: bool, environment: Mapping[str, str]) -> list[str]:
        account = "0" if root else str(PERSON)
        home = "/root" if root else "/home/person"
        variables = {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", **environment}
        return [
            *("nsenter", "--target", str(self.pid), "--mount", "--net", "--pid", "--root"),
            *("setpriv", "--reuid", account, "--regid", account, self._groups),
            *("env", "-i", f"--chdir={ROOT}", "PYTHONDONTWRITEBYTECODE=1"),
            *(f"{name}={value}" for name, value in variables.items()),
        ]


def connect(one: Machine, one_address: str, other: Machine, other_address: str) -> None:
    """Put a cable between two machines."""
    one.ip(f"link add cable0 type veth peer name cable0 netns {other.pid}")
    for machine, own, peer in (
        (one, one_address, other_address),
        (other, other_address, one_address),
    ):
        machine.ip(f"address add {own}/32 dev cable0")
        machine.ip("link set cable0 up")
        machine.ip(f"route add {peer}/32 dev cable0 src {own}")


def reaches(machine: Machine, address: str) -> bool:
    """Tell whether something listens there, as the machine sees it."""
    host, _, port = address.rpartition(":")
    return machine.run(f"exec 3<>/dev/tcp/{host}/{port}").status == 0


def wait_until(is_so: Callable[[], bool], what: str, said: Callable[[], str]) -> None:
    """Wait until something is so; `said` tells more if it does not come."""
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, f"not there: {what}\n{said()}"
        time.sleep(0.05)
