"""The daemon as a container has it: process 1, a read-only root, an account without a name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.doctor_host import usable_python

ROTATIONS = 6
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def can_unshare() -> bool:
    if os.geteuid() or shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_unshare(), reason="needs namespaces of its own")


class Contained(Daemon):
    """A daemon that is process 1 of its namespace; `prefix` goes before its command."""

    def __init__(self, config: Path, *prefix: str, python: str = sys.executable) -> None:
        popen = subprocess.Popen

        def start(command: list[str], **options: object) -> subprocess.Popen[str]:
            return popen([*UNSHARE, *prefix, *command], **options)  # type: ignore[call-overload,no-any-return]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", start)
            super().__init__(config, python=python)

    @property
    def outside(self) -> int:
        """The number of process 1 as we see it."""
        of_unshare = self.process.pid
        children = Path(f"/proc/{of_unshare}/task/{of_unshare}/children").read_text()
        return int(children.split()[0])

    def zombies(self) -> list[str]:
        """Which children of process 1 have ended and are still listed."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            state, parent = rest.split()[:2]
            if state == "Z" and int(parent) == self.outside:
                found.append(name)
        return found

    def end(self) -> int:
        os.kill(self.outside, signal.SIGTERM)
        return self.wait()


@pytest.fixture
def agent(folder: Path) -> Iterator[AgentProcess]:
    agent = AgentProcess(folder / "agent.sock")
    agent.start()
    yield agent
    agent.stop()


def helper(folder: Path, agent: AgentProcess, more: str) -> Path:
    config = folder / "sidecar.toml"
    config.write_text(
        f'[workload_api]\nsocket = "unix:{agent.path}"\n[cert_files]\ndirectory = "certs"\n'
        f'[log]\nformat = "json"\n{more}'
    )
    return config


def test_children_that_a_command_leaves_behind_are_reaped(
    folder: Path, agent: AgentProcess, authority: Authority
) -> None:
    hook = folder / "hook.sh"
    # The second orphan ends when the next rotation's has begun, at the latest.
    hook.write_text(
        "#!/bin/sh\n(sleep 0.3 >/dev/null 2>&1 </dev/null &)\n(true >/dev/null 2>&1 &)\nexit $1\n"
    )
    hook.chmod(0o755)
    tables = [
        f'[[after_rotation]]\nname = "{name}"\ncommand = ["{hook}", "{status}"]\nretries = 0\n'
        for name, status in (("good", 0), ("bad", 7))
    ]
    daemon = Contained(helper(folder, agent, "".join(tables)))
    try:
        for _ in range(ROTATIONS):
            agent.send(authority.svid(), authority.bundle)
            seen = {
                daemon.wait_for("after rotation done", hook="good")["result"],
                *(line["reason"] for line in daemon.lines("after rotation gave up")),
            }
            assert seen <= {"exit status 0", "exit status 7"}
        assert daemon.lines("after rotation gave up")
        assert daemon.lines("starting")[0]["pid"] == 1
        guard = time.monotonic() + 15
        while left := daemon.zombies():
            assert time.monotonic() < guard, left
            time.sleep(0.05)
    finally:
        assert daemon.end() == 0


def test_fetch_that_waits_for_an_identity_can_be_stopped(folder: Path, agent: AgentProcess) -> None:
    """To process 1 the kernel delivers no signal that it has no handler for."""
    config = helper(folder, agent, "")
    with subprocess.Popen(
        [*UNSHARE, sys.executable, "-m", "sidecar", "fetch", "--config", config, "--wait", "600"]
    ) as fetch:
        guard = time.monotonic() + 60
        while not agent.calls():
            assert time.monotonic() < guard
            time.sleep(0.05)
        children = Path(f"/proc/{fetch.pid}/task/{fetch.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        try:
            assert fetch.wait(30) == 128 + signal.SIGTERM
        finally:
            fetch.kill()


# As OpenShift has it: any number for an account, group 0, no home, and one volume to write to.
READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro /
mount -t tmpfs -o ro tmpfs /dev/shm
shift
exec setpriv --reuid 1000680000 --regid 0 --clear-groups --no-new-privs --bounding-set=-all \\
  --inh-caps=-all env -i PATH=/usr/bin:/bin "$@"
"""


def test_read_only_root_and_account_without_a_name_will_do(
    folder: Path, agent: AgentProcess, authority: Authority, backend: EchoBackend
) -> None:
    folder.chmod(0o755)
    python = usable_python(folder)
    certs = folder / "certs"
    certs.mkdir()
    certs.chmod(0o777)  # an emptyDir: root's, and anybody may write
    agent.path.chmod(0o777)
    agent.send(authority.svid(), authority.bundle)
    config = write_config(
        folder,
        agent.path,
        backend.address,
        more='[cert_files]\ndirectory = "certs"\n[health]\naddress = "127.0.0.1:0"\n',
    )
    prefix = ["--mount", "sh", "-c", READ_ONLY, "sh", str(certs)]
    daemon = Contained(config, *prefix, python=python)
    try:
        daemon.wait_for("certificate files in a shared directory")
        daemon.wait_for("certificate files published")
        (where,) = daemon.lines("answering health checks")[0]["listening"]
        assert daemon.lines("ready")
        with urllib.request.urlopen(f"http://{where}/readyz", timeout=60) as answer:
            assert answer.read() == b"ok\n"
        key = certs / "current" / "svid_key.pem"
        assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (1000680000, 0o600)
    finally:
        assert daemon.end() == 0
    assert not {line["event"] for line in daemon.log if line["level"] in ("error", "critical")}
    assert sorted(os.listdir(folder / "certs"))  # and nowhere else, as nothing else can be written

    # `check` and `fetch` as an init container has them.
    for command, said in (("check", "fine"), ("fetch", "svid_key.pem")):
        done = subprocess.run(
            [*UNSHARE, *prefix, python, "-m", "sidecar", command, "--config", config],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, said in done.stdout) == (0, True), done.stderr
