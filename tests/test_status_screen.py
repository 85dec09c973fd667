"""`status`: what a person sees of each state, at 80 columns, and how the daemon is asked."""

from __future__ import annotations

import gc
import io
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from sidecar.adapters.admin import Page
from sidecar.core.address import Address
from sidecar.core.errors import ConfigError
from sidecar.core.readiness import report
from sidecar.core.status import FilesStatus, RefusalStatus, Status, to_json
from sidecar.operations.screen_text import ago, size, span
from sidecar.operations.status import (
    NotReachableError,
    admin_address,
    ask,
    show_status,
)
from sidecar.operations.status_screen import not_reachable, screen
from tests.admin_site import AdminSite
from tests.statuses import (
    AGENT,
    BACKEND,
    FILES,
    HOOK,
    IDENTITY,
    JWT_SVID,
    NOW,
    PEER,
    POLICY,
    REFUSAL,
    TRAEFIK,
    but,
    helping,
    serving,
)
from tests.statuses import ago as before

WIDTH = 80
WELL = serving(
    files=FILES,
    jwt_svids=(JWT_SVID,),
    hooks=(HOOK,),
    peers=(PEER,),
    refusals=(REFUSAL,),
)
SHOWN = """\
spiffe-sidecar 0.1.0, mode http, pid 4711, up 3 h 12 min

ready     yes
identity  spiffe://ravenhelm.local/workload/model-server
          ████████████████████░░░░░░░░░░  41 min of 1 h left
          until 2026-03-01 14:01:11Z, next rotation in 11 min
          serial 2AAA66E7D1C04B5F9A3E
          trust bundles of ravenhelm.local, partner.example
agent     ready for 3 h, agent connected, 7 rotations
files     generation-42 in /opt/spiffe-sidecar/certs, published 19 min ago
JWT-SVID  vault.jwt for vault: 4 min left
hook      nginx ok 19 min ago, in 0.012 s
          SIGHUP to the process in /run/nginx.pid
listener  0.0.0.0:6701
backend   127.0.0.1:11434 up for 3 h
policy    policy.toml: 3 allow, 1 deny, loaded 2 h ago
load      12 of 4096 connections, 3 requests running, 1 queued
peer      spiffe://ravenhelm.local/workload/traefik
          12 open, 48211 requests (3 running, 1 queued, 17 refused), 9.4 MiB in,
          697 MiB out

refused    from                 who, and why
4 min ago  192.168.50.77:50912  claims 'spiffe://other.org/x', 3 times
                                no trust bundle for trust domain other.org
"""


def rendered(status: Status, *, only_ascii: bool = False) -> str:
    """What is on the screen, without colours."""
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
    console.print(screen(report(status), only_ascii=only_ascii))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= WIDTH
    return "".join(f"{line.rstrip()}\n" for line in lines)


def test_all_of_a_daemon_that_is_well() -> None:
    assert rendered(WELL) == SHOWN


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        pytest.param(
            serving(
                identity=None,
                listening=(),
                agent=but(
                    AGENT, state="starting", connected=False, serving=False, reason="refused"
                ),
            ),
            ["ready     no", "          starting: no SVID yet: refused", "identity  none"],
            id="starting",
        ),
        pytest.param(
            serving(
                agent=but(AGENT, state="agent_lost", connected=False, reason="connection refused")
            ),
            [
                "ready     yes",
                "warnings  agent_lost: agent lost: connection refused",
                "agent     agent_lost for 3 h, agent not connected, 7 rotations",
            ],
            id="agent away",
        ),
        pytest.param(
            serving(
                agent=but(AGENT, state="denied", denied=True, connected=False, reason="no entry")
            ),
            ["ready     no", "          denied: there is no identity for us: no entry"],
            id="denied",
        ),
        pytest.param(
            serving(
                at=NOW + timedelta(minutes=42),
                agent=but(AGENT, state="expired", connected=False, serving=False),
            ),
            [
                "          expired: our SVID expired at 2026-03-01T14:01:11Z",
                "          ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  expired 1 min ago",
                "          until 2026-03-01 14:01:11Z, next rotation was due 31 min ago",
            ],
            id="expired",
        ),
        pytest.param(
            serving(backend=but(BACKEND, reason="it answers 500", since=before(seconds=90))),
            [
                "          backend_down: it answers 500",
                "backend   127.0.0.1:11434 DOWN for 1 min 30 s",
                "          it answers 500",
            ],
            id="backend down",
        ),
        pytest.param(
            serving(backend=but(BACKEND, checked_at=None, since=None)),
            ["backend   127.0.0.1:11434 not asked yet"],
            id="backend not asked",
        ),
        pytest.param(
            serving(policy=but(POLICY, problems=("typo", "another"), refused_at=before(minutes=2))),
            [
                "warnings  bad_policy: the old one is in force: typo (and 1 more)",
                "          a newer one was REFUSED 2 min ago, the old one is in force",
                "            typo",
                "            another",
            ],
            id="bad policy",
        ),
        pytest.param(
            serving(draining=True, listening=()),
            ["          draining: stopping: no new connections"],
            id="draining",
        ),
        pytest.param(
            serving(agent=but(AGENT, updates_discarded=1, reason="bad key")),
            [
                "agent     ready for 3 h, agent connected, 7 rotations, 1 update discarded",
                "          bad key",
            ],
            id="update discarded",
        ),
        pytest.param(
            helping(files=but(FILES, error="disk full", failed_at=before(seconds=5))),
            [
                "spiffe-sidecar 0.1.0, mode helper, pid 4711, up 3 h 12 min",
                "          FAILED 5 s ago: disk full",
            ],
            id="files failed",
        ),
        pytest.param(
            helping(files=FilesStatus(directory="/certs")),
            ["files     none yet in /certs"],
            id="no files yet",
        ),
        pytest.param(
            helping(jwt_svids=(but(JWT_SVID, expires=None, error="denied"),)),
            ["JWT-SVID  vault.jwt for vault: none yet", "          not refreshed: denied"],
            id="no JWT-SVID yet",
        ),
        pytest.param(
            helping(jwt_svids=(but(JWT_SVID, expires=before(minutes=3)),)),
            ["JWT-SVID  vault.jwt for vault: expired 3 min ago"],
            id="JWT-SVID expired",
        ),
        pytest.param(
            helping(hooks=(but(HOOK, at=None),)), ["hook      nginx not done yet"], id="hook, never"
        ),
        pytest.param(
            helping(hooks=(but(HOOK, reason="no such process", attempt=4),)),
            [
                "hook      nginx FAILED 19 min ago, attempt 4",
                "          SIGHUP to the process in /run/nginx.pid: no such process",
            ],
            id="hook failed",
        ),
        pytest.param(
            helping(hooks=(but(HOOK, reason="no such process", attempt=11, gave_up=True),)),
            ["hook      nginx gave up 19 min ago, attempt 11"],
            id="hook gave up",
        ),
        pytest.param(
            serving(peers=(but(PEER, connections=0, running=0, queued=0, refused=0),)),
            ["          gone 2 s ago, 48211 requests, 9.4 MiB in, 697 MiB out"],
            id="peer that is away",
        ),
        pytest.param(
            serving(peers=tuple(but(PEER, name=f"{TRAEFIK}-{n}") for n in range(40))),
            [f"peer      {TRAEFIK}-11", "          and 28 more peers"],
            id="many peers",
        ),
        pytest.param(
            serving(refusals=(but(REFUSAL, peer=TRAEFIK, proven=True, times=1),)),
            [f"4 min ago  192.168.50.77:50912  {TRAEFIK}"],
            id="proven peer refused",
        ),
        pytest.param(
            serving(refusals=(but(REFUSAL, peer="", times=1, reason="http request"),)),
            [
                "4 min ago  192.168.50.77:50912  claims nothing",
                "                                http request",
            ],
            id="peer without a certificate",
        ),
    ],
)
def test_trouble_is_shown(status: Status, lines: list[str]) -> None:
    shown = rendered(status).splitlines()
    missing = [line for line in lines if line not in shown]
    assert not missing, "\n".join(shown)


@pytest.mark.parametrize(
    ("minutes_left", "cells"),
    [
        pytest.param(60, 30, id="new"),
        pytest.param(30, 15, id="half"),
        pytest.param(1, 0, id="nearly over"),
        pytest.param(90, 30, id="clock behind"),
    ],
)
def test_bar_is_the_life_that_is_left(minutes_left: int, cells: int) -> None:
    end = NOW + timedelta(minutes=minutes_left)
    identity = but(IDENTITY, not_before=end - timedelta(hours=1), not_after=end)
    shown = rendered(serving(identity=identity), only_ascii=True)
    assert f"          {'#' * cells}{'.' * (30 - cells)}  " in shown
    assert shown.isascii()


def test_certificate_without_a_life_breaks_nothing() -> None:
    assert "expired" in rendered(serving(identity=but(IDENTITY, not_before=NOW, not_after=NOW)))


EVIL = "[red]x[/red] \x1b[31m\x9b31m\r\n\u202e:smile: [link=http://evil]y[/link]"


def test_text_from_outside_is_shown_and_never_interpreted() -> None:
    # As of a daemon, or of somebody in its place, that does not make its texts printable.
    status = serving(
        identity=but(IDENTITY, spiffe_id=EVIL, serial=EVIL, trust_domains=(EVIL,)),
        agent=but(AGENT, source=EVIL, state=EVIL, reason=EVIL),
        files=but(FILES, directory=EVIL, generation=EVIL, error=EVIL),
        jwt_svids=(but(JWT_SVID, file=EVIL, audiences=(EVIL,), error=EVIL),),
        hooks=(but(HOOK, name=EVIL, action=EVIL, reason=EVIL),),
        backend=but(BACKEND, address=EVIL, reason=EVIL),
        policy=but(POLICY, file=EVIL, problems=(EVIL,)),
        peers=(but(PEER, name=EVIL),),
        refusals=(RefusalStatus(at=NOW, address=EVIL, peer=EVIL, reason=EVIL),),
        listening=(EVIL,),
        version=EVIL,
        mode=EVIL,
    )
    shown = rendered(status)
    assert "[red]x[/red]" in shown
    assert ":smile:" in shown
    assert shown.replace("\n", "").isprintable()
    assert rendered(serving(identity=but(IDENTITY, serial="A\nready     no"))).count("\nready") == 1


def test_nobody_there_is_said_with_its_reason() -> None:
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
    console.print(not_reachable(NOW, "[b]refused\x1b"))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == (
        "not reachable since 2026-03-01 13:20:11Z\n[b]refused\\x1b\n"
    )


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        (timedelta(), "0 s"),
        (timedelta(seconds=0.4), "0 s"),
        (timedelta(seconds=59.6), "1 min"),
        (timedelta(seconds=90), "1 min 30 s"),
        (timedelta(hours=1), "1 h"),
        (timedelta(hours=1, seconds=5), "1 h"),
        (timedelta(hours=25, minutes=30), "1 d 1 h"),
        (timedelta(days=400), "400 d"),
        (timedelta(minutes=-5), "5 min"),
    ],
)
def test_length_of_time_is_said_in_two_units(time: timedelta, shown: str) -> None:
    assert span(time) == shown


def test_what_has_just_been_was_not_ago() -> None:
    assert ago(NOW, NOW) == ago(NOW + timedelta(seconds=2), NOW) == "just now"
    assert ago(before(seconds=1), NOW) == "1 s ago"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (2**50, "1024.0 TiB")],
)
def test_bytes_are_said_in_their_unit(number: int, shown: str) -> None:
    assert size(number) == shown


# Where the daemon is asked.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("[admin]", "127.0.0.1:6703", id="left out"),
        pytest.param('[admin]\naddress = "127.0.0.1:9"', "127.0.0.1:9", id="TCP"),
        pytest.param('[admin]\naddress = "unix:/run/a.sock"', "unix:/run/a.sock", id="Unix"),
        pytest.param('[admin]\naddress = "[::1]:9"\n[listener]\nx = 1', "[::1]:9", id="IPv6"),
    ],
)
def test_address_is_found_in_a_file_that_need_not_be_right(
    tmp_path: Path, text: str, address: str
) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text(text)
    assert str(admin_address(config)) == address


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="no [admin]"),
        pytest.param("[admin", id="no TOML"),
        pytest.param('[admin]\naddress = "0.0.0.0:1"', id="every interface"),
        pytest.param('[admin]\naddress = "localhost:1"', id="a name"),
        pytest.param("[admin]\naddress = 1", id="a number"),
        pytest.param("admin = 1", id="no table"),
    ],
)
def test_address_that_cannot_be_asked_is_told(tmp_path: Path, text: str) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=r"sidecar\.toml"):
        admin_address(config)


def test_missing_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        admin_address(tmp_path / "sidecar.toml")


# Asking.

TCP = Address.parse("127.0.0.1:0")


def page(status: Status = WELL) -> Page:
    return Page(to_json(report(status)))


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_daemon_is_asked(folder: Path, kind: str) -> None:
    address = TCP if kind == "tcp" else Address(None, 0, f"{folder}/admin.sock")
    with AdminSite(address, page()) as site:
        answer = ask(site.address)
    assert answer.data == site.page.body
    assert answer.report == report(WELL)


def test_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with AdminSite(TCP, page()) as site:
        assert ask(site.address).report.ready


@pytest.mark.parametrize("status", [WELL, serving(draining=True)])
def test_status_is_shown_with_its_verdict(status: Status) -> None:
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
    with AdminSite(TCP, page(status)) as site:
        assert show_status(site.address, console) == (not status.draining)
    assert isinstance(console.file, io.StringIO)
    assert f"ready     {'no' if status.draining else 'yes'}" in console.file.getvalue()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(Page(b"<html>"), id="no JSON"),
        pytest.param(Page(b"{}"), id="another JSON"),
        pytest.param(Page(b"not here", "text/plain", 404), id="another server"),
        pytest.param(Page(to_json(report(WELL)), status=404), id="not at this path"),
        pytest.param(Page(to_json(report(WELL)) + b" " * 5_000_000), id="without end"),
    ],
)
def test_who_is_no_daemon_of_ours_is_told(wrong: Page) -> None:
    with AdminSite(TCP, wrong) as site, pytest.raises(NotReachableError):
        ask(site.address)


def complaint(address: str) -> tuple[str, str | None]:
    """Ask where nobody is; what the error says."""
    with warnings.catch_warnings():
        # httpx leaves a Unix socket that it could not connect to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            ask(Address.parse(address))
        except NotReachableError as exc:
            said = exc.message, exc.hint
        else:
            raise AssertionError("somebody answered")
        gc.collect()
    return said


def test_nobody_there_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"unix:{folder}/admin.sock"):
        message, hint = complaint(address)
        assert message.startswith(f"no answer from {address}: ")
        assert hint


def test_server_that_speaks_no_http_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NotReachableError):
            ask(Address.parse(f"127.0.0.1:{listening.getsockname()[1]}"))
        thread.join()


# The live screen, in a terminal of its own.

PROGRAM = """
import sys
from rich.console import Console
from sidecar.core.address import Address
from sidecar.operations.status import watch_status
sys.exit(0 if watch_status(Address.parse(sys.argv[1]), Console()) else 1)
"""
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process that watches, and what it has written to its terminal."""

    def __init__(self, address: Address) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(address)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "40"},
        )
        os.close(theirs)
        self.raw = b""
        self._seen = 0

    def read_until(self, text: str, seconds: float = 30) -> None:
        """Read until a text comes after the last one that was found."""
        end = time.monotonic() + seconds
        while True:
            shown = CONTROL.sub(b"", self.raw).decode(errors="replace")
            found = shown.find(text, self._seen)
            if found >= 0:
                self._seen = found + len(text)
                return
            assert time.monotonic() < end, f"no {text!r} in:\n{shown}"
            assert self._read(), f"it ended without {text!r}:\n{shown}"

    def read_all(self) -> None:
        """Read until the process has let go of the terminal."""
        while self._read():
            pass

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 30)[0]:
            raise AssertionError(f"it hangs: {self.raw!r}")
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux says so at the end
            return False
        self.raw += data
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        os.close(self._ours)


@contextmanager
def watching(address: Address) -> Iterator[Terminal]:
    terminal = Terminal(address)
    try:
        yield terminal
    finally:
        terminal.close()


def test_screen_lives_on_while_the_daemon_restarts(folder: Path) -> None:
    address = Address(None, 0, f"{folder}/admin.sock")
    with watching(address) as terminal:
        terminal.read_until("not reachable since")
        with AdminSite(address, page()) as site:
            terminal.read_until("ready     yes")
            site.page = page(serving(draining=True))
            terminal.read_until("draining")
        terminal.read_until("not reachable since")
        terminal.read_until("What it said last")
        with AdminSite(address, page()):
            terminal.read_until("ready     yes")
            terminal.process.send_signal(signal.SIGINT)
            terminal.read_all()
            assert terminal.process.wait(20) == 0


def test_daemon_that_is_away_at_the_end_is_not_ready(folder: Path) -> None:
    address = Address(None, 0, f"{folder}/admin.sock")
    with watching(address) as terminal:
        with AdminSite(address, page()):
            terminal.read_until("ready     yes")
        terminal.read_until("not reachable since")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_all()
        assert terminal.process.wait(20) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_screen_ends_well(number: signal.Signals) -> None:
    with AdminSite(TCP, page(serving(draining=True))) as site, watching(site.address) as terminal:
        terminal.read_until("ready     no")
        terminal.process.send_signal(number)
        terminal.read_all()
        assert terminal.process.wait(20) == 1
    assert b"Traceback" not in terminal.raw
    # It has left the screen of its own, shows the cursor again, and what it saw last stays.
    _, left, rest = terminal.raw.rpartition(b"\x1b[?1049l")
    assert left
    assert b"\x1b[?25h" in terminal.raw
    assert b"draining" in CONTROL.sub(b"", rest)
