"""A Linux host of its own: a tree of Debian, booted with its own systemd by systemd-nspawn.

What is written goes into memory, so the tree can be kept: NSPAWN_TREE names one, or FULL=1 has one
made below the user's cache, by debootstrap. It has no network but its own loopback.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spiffe-sidecar"
_SUITE = "bookworm"
_PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,iproute2"
_CLONE_NEWNET = 0x40000000
# systemd-nspawn lets containers do no more than it knows of; the kernel's sandbox is ours to try.
_LANDLOCK = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
# Guards against hanging; nothing is measured by them.
_BOOT_SECONDS, _COMMAND_SECONDS, _MAKE_SECONDS = 90, 300, 900


def find_tree() -> Path:
    """Give a tree to boot, or skip the test with the reason."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a booted host needs Linux and root")
    for program in ("systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here (Debian: systemd-container, util-linux)")
    if named := os.environ.get("NSPAWN_TREE"):
        return Path(named)
    if not os.environ.get("FULL"):
        pytest.skip("no tree to boot: NSPAWN_TREE names one, FULL=1 makes one by debootstrap")
    return _made_tree(CACHE / f"tree-{_SUITE}")


def _made_tree(tree: Path) -> Path:
    if (tree / "sbin/init").is_symlink():
        return tree
    if shutil.which("debootstrap") is None:
        pytest.skip("no tree to boot, and no debootstrap to make one")
    beside = tree.with_name(f"{tree.name}.{os.getpid()}")
    command: list[str | Path] = [
        "debootstrap",
        "--variant=minbase",
        f"--include={_PACKAGES}",
        _SUITE,
        beside,
    ]
    tree.parent.mkdir(parents=True, exist_ok=True)
    _or_skip(command, "debootstrap")
    beside.rename(tree)
    return tree


def find_wheels(python: Path) -> Path:
    """Give a folder with every locked wheel, made once by `pip download`."""
    ours = f"python3.{sys.version_info.minor}"
    if python.name != ours:
        pytest.skip(f"the tree has {python.name}, and wheels can be had for {ours} alone")
    lock = ROOT / "requirements.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    wheels = CACHE / f"wheels-{python.name}-{digest}"
    if not wheels.exists():
        beside = wheels.with_name(f"{wheels.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes"]
        _or_skip([*pip, "--only-binary=:all:", "-r", lock, "-d", beside], "pip download")
        beside.rename(wheels)
    return wheels


def _or_skip(command: Sequence[str | Path], name: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_MAKE_SECONDS
    )
    if done.returncode:
        pytest.skip(f"{name} failed:\n{(done.stdout + done.stderr)[-800:]}")


class Machine:
    """One booted host: commands in it, connections into it."""

    def __init__(self, tree: Path, folder: Path, binds: Mapping[Path, str]) -> None:
        mounts = [f"--bind={outside}:{inside}" for outside, inside in binds.items()]
        self._said = folder / "console"
        with self._said.open("wb") as console:
            self._process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", f"--directory={tree}"),
                    *("--volatile=overlay", "--private-network", "--link-journal=no"),
                    *("--register=no", "--keep-unit", f"--machine=sidecar-{os.getpid()}"),
                    *(f"--system-call-filter={_LANDLOCK}", *mounts),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self._leader = 0

    def boot(self) -> None:
        """Wait until it is up, or skip with what was said."""
        deadline = time.monotonic() + _BOOT_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.skip(f"it does not boot here:\n{self._said.read_text()[-800:]}")

    def _is_up(self) -> bool:
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return False
        self._leader = int(children[0]) if children else 0
        if not self._leader:
            return False
        return self.ask("systemctl", "is-system-running", "--wait").stdout.strip() in {
            "running",
            "degraded",
        }

    def ask(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in it, whatever comes of it."""
        return subprocess.run(
            [
                *("nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net"),
                *("--pid", "--cgroup", "--wd", "--", "env", "--ignore-environment"),
                *("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root", *command),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )

    def run(self, *command: str | Path) -> str:
        """Run a command that has to succeed; give what it printed."""
        done = self.ask(*command)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def until(self, unit: str, key: str, *values: str) -> str:
        """Wait until a property is one of these."""
        deadline = time.monotonic() + _COMMAND_SECONDS
        while (value := self.show(unit, key)) not in values:
            assert time.monotonic() < deadline, f"{unit}: {key} is {value}\n{self.journal(unit)}"
        return value

    def journal(self, unit: str) -> str:
        """What a unit, and systemd about it, wrote."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def connect(self, port: int) -> socket.socket:
        """A connection to its loopback: a thread of ours goes in for it."""
        connected: list[socket.socket | OSError] = []

        def go() -> None:
            with open(f"/proc/{self._leader}/ns/net") as network:
                libc = ctypes.CDLL(None, use_errno=True)
                assert libc.setns(network.fileno(), _CLONE_NEWNET) == 0
            try:
                connected.append(socket.create_connection(("127.0.0.1", port), 60))
            except OSError as exc:
                connected.append(exc)

        thread = threading.Thread(target=go)
        thread.start()
        thread.join()
        (result,) = connected
        if isinstance(result, OSError):
            raise result
        return result

    def close(self) -> None:
        """Power off."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
