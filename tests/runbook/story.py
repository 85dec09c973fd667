"""Two machines, what has to be there before the page begins, and the page's blocks run on them.

What the page leaves to a person (copy a folder, move a file) is a method here. After each block the
model server is looked for from both sides: on loopback it is there, and nowhere else.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tests.host_tree import make_checkout
from tests.runbook import model_server
from tests.runbook.boot import PERSON
from tests.runbook.machine import Done, Machine, connect, reaches, wait_until
from tests.runbook.page import PAGE, ROOT, Block, read_page
from tests.runbook.platform import DOMAIN, PLATFORM_IP, TRUSTED, Platform, put_spire_agent

HOST_IP = "192.168.50.26"
SIDECAR = f"{HOST_IP}:6701"
HOST_FOLDER = "mac-studio"
_SIDECAR = "sudo /opt/spiffe-sidecar/venv/bin/spiffe-sidecar"
_CONFIG = "--config /etc/spiffe-sidecar/sidecar.toml"
_STUCK_SECONDS = 120
_INSTALLED = ("/opt", "/etc", "/var/lib", "/var/db", "/var/log", "/Library", "/usr/local")
_JOURNAL = "/var/log/journal"
_BACKUPS = {
    f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
}


@dataclass(frozen=True, slots=True)
class Step:
    """A block of the page, and what came of it."""

    block: Block
    done: Done

    @property
    def out(self) -> str:
        return self.done.out


class RunningAnswer:
    """An answer whose first token has come. If it is held back somewhere, it never comes."""

    def __init__(self, client: subprocess.Popen[str], go: Path) -> None:
        self._client, self._go = client, go
        self._stuck = threading.Timer(_STUCK_SECONDS, client.kill)
        self._stuck.start()
        assert client.stdout is not None
        self._first = client.stdout.readline()

    def end(self) -> Done:
        """Let the model server go on, and wait for the client's end."""
        self._go.touch()
        try:
            rest, error = self._client.communicate(timeout=_STUCK_SECONDS)
        finally:
            self._stuck.cancel()
            self._go.unlink()
        return Done(self._client.returncode, self._first + rest, error)


class Story:
    """The page, being followed: `begin`, and always `end`."""

    def __init__(self, folder: Path, places: tuple[str, ...]) -> None:
        blocks = read_page(PAGE.read_text(encoding="utf-8"))
        self._left = [block for block in blocks if block.place in places]
        self._is_mac = "mac" in places
        self._folder = folder
        self._stack = ExitStack()
        self._secrets: list[str] = []
        self._outputs: list[str] = []
        self._logs = folder / "logs"
        self._logs.mkdir()

    def begin(self) -> None:
        """Make the machines and what has to be there."""
        etc = {"pip.conf": "[global]\nno-index = true\nfind-links = /srv/wheels\n"}
        names = f"127.0.0.1 localhost\n{PLATFORM_IP} {DOMAIN}\n"
        folder, enter = self._folder, self._stack.enter_context
        try:
            platform = enter(Machine(folder / "platform", {"hosts": names}))
            self.host = enter(Machine(folder / "host", etc, is_mac=self._is_mac))
            connect(platform, PLATFORM_IP, self.host, HOST_IP)
            self.platform = Platform(platform, self._logs)
            self._prepare_host()
        except BaseException:
            self._stack.close()
            raise

    def end(self) -> None:
        """Switch them off."""
        self._stack.close()

    def follow(self, section: str) -> Step:
        """Run the next block of the page, which is in this section."""
        assert self._left, "the page has no more blocks"
        block = self._left.pop(0)
        assert block.section.startswith(section), f"left out: {block}"
        if block.place == "client":
            return Step(block, self._checked(block, self.ask(block.text).end()))
        machine = self.platform.machine if block.place == "platform" else self.host
        return Step(block, self._checked(block, machine.run(block.text)))

    def skip(self, section: str) -> None:
        """Leave a block to the other story."""
        assert self._left.pop(0).section.startswith(section)

    def repeat(self, step: Step, number: int) -> Done:
        """Run one command of a block again."""
        machine = self.platform.machine if step.block.place == "platform" else self.host
        command = shlex.join(step.block.commands()[number])
        return self._checked(replace(step.block, text=command), machine.run(command))

    def ask(self, text: str) -> RunningAnswer:
        """Ask as a client; the first token is there, and the model server does not go on yet."""
        client = self.platform.machine.open(text, environment={"CURL_CA_BUNDLE": TRUSTED})
        return RunningAnswer(client, self.host.at(model_server.GO))

    def ends(self) -> None:
        """Check that the page ends here, too, and that nothing has shown a join token."""
        assert not self._left, f"left out: {self._left}"
        for secret in self._secrets:
            assert not any(secret in text for text in self._outputs)

    def _checked(self, block: Block, done: Done) -> Done:
        self._outputs.append(done.all)
        # A transcript: pytest shows it of a story that fails, and of any with -s.
        print(f"\n== {PAGE.name}:{block.line}, {block.place}\n{block.text}\n{done.all}")
        assert done.status == 0, f"status {done.status}{self._said()}"
        self.backend_stays_on_loopback()
        return done

    def backend_stays_on_loopback(self) -> None:
        """Look for the model server from both machines."""
        port = model_server.ADDRESS.rpartition(":")[2]
        looking = "for ip in {}; do (exec 3<>/dev/tcp/$ip/{}) 2>/dev/null && echo $ip; done; true"
        here = self.host.run(looking.format(f"127.0.0.1 {HOST_IP}", port))
        there = self.platform.machine.run(looking.format(HOST_IP, port))
        assert (here.out, there.out) == ("127.0.0.1\n", ""), f"{here}, {there}"

    # What the page leaves to the reader.

    def copy_host_folder(self) -> None:
        """`scp -rp mac-studio ...`, over what is there."""
        token = self.platform.machine.checkout(f"{HOST_FOLDER}/join-token").read_text().strip()
        self._secrets.append(token)
        target = self.host.checkout(HOST_FOLDER)
        shutil.copytree(self.platform.machine.checkout(HOST_FOLDER), target, dirs_exist_ok=True)
        for path in (target, *target.iterdir()):
            os.chown(path, PERSON, PERSON)

    # What is asked about it.

    def model_server_saw(self) -> list[str]:
        """Give the requests that reached the model server."""
        return (self._logs / f"{model_server.__name__}.log").read_text().splitlines()

    def sidecar(self, command: str) -> Done:
        """Run a command of the installed sidecar."""
        return self.host.run(f"{_SIDECAR} {command} {_CONFIG}")

    def status(self) -> str:
        """What the sidecar says about itself."""
        return self.sidecar("status").out

    def wait_until_ready(self) -> None:
        """Wait for the sidecar to be ready."""
        wait_until(lambda: not self.sidecar("status").status, "ready", self._said)

    def log(self) -> str:
        """What the sidecar has written to its log."""
        files = ("/var/log/journal/spiffe-sidecar.service", "/var/log/spiffe-sidecar/sidecar.log")
        found = [self.host.at(file) for file in files if self.host.at(file).exists()]
        return "".join(file.read_text() for file in found)

    def account_of_sidecar(self) -> int:
        """Give the uid that the sidecar runs under."""
        done = self.host.run(
            "stat -c %u /proc/$(ss -ltnpH sport = :6701 | sed 's/.*pid=//; s/,.*//')", root=True
        )
        return int(done.out)

    def tree(self) -> set[str]:
        """Every path in the folders of the host that an installer may write to."""
        found: set[str] = set()
        for folder in _INSTALLED:
            root = self.host.at(folder)
            for parent, folders, files in os.walk(root):
                inside = Path(folder, Path(parent).relative_to(root))
                found.update(str(inside / name) for name in (*folders, *files))
        # The system's own: its journal, and the backups of its lists of accounts.
        return {path for path in found if not path.startswith(_JOURNAL) and path not in _BACKUPS}

    def _said(self) -> str:
        files = [*self.host.at(_JOURNAL).glob("*.service")]
        files += self.host.at("/var/log/spiffe-sidecar").glob("*")
        texts = [f"\n== {file.name}\n{file.read_text()[-4000:]}" for file in files]
        return self.platform.said() + "".join(texts)

    def _take_real_packages(self, checkout: Path) -> None:
        """Instead of a lock that leads to the packages of the tests: slower, and by network."""
        shutil.copy(ROOT / "requirements.txt", checkout)
        shutil.rmtree(checkout / "wheels")
        words = ("pip", "download", "--quiet", "--require-hashes", "--only-binary=:all:")
        command = [sys.executable, "-m", *words, "-r", f"{ROOT}/requirements.txt"]
        subprocess.run([*command, "-d", f"{checkout}/wheels"], check=True)

    def _prepare_host(self) -> None:
        """A checkout of its own, which installs quickly and without a network."""
        checkout = make_checkout(self._folder / "checkout")
        if os.environ.get("FULL"):
            self._take_real_packages(checkout)
        shutil.copytree(ROOT / "launchd", checkout / "launchd")
        shutil.copytree(checkout / "wheels", self.host.at("/srv/wheels"))
        for path in checkout.iterdir():
            if path.is_dir():
                shutil.copytree(path, self.host.checkout(path.name), dirs_exist_ok=True)
            else:
                shutil.copy(path, self.host.checkout(path.name))
        put_spire_agent(self.host, f"{ROOT}/spire-agent")
        log = self._logs / f"{model_server.__name__}.log"
        self.host.start(sys.executable, "-m", model_server.__name__, model_server.GO, log=log)
        wait_until(lambda: reaches(self.host, model_server.ADDRESS), "a model server", self._said)
