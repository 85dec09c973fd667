"""Figures of a flood: `.venv/bin/python -m tests.bench_flood`. Linux; asserts nothing.

Streams of a token every 20 ms go through the real daemon in mode `http`, first quiet, then while
it refuses thousands of handshakes (TLS as it should be, authority unknown) and holds connections
that never begin one. What each token takes from the model server to the peer, how long a good new
connection takes to its first answer, how many lines the log has, and memory.

The flood comes from processes that are nice: on other hosts they would not take our CPU time,
either. FLOODERS=8 makes it one of fewer connections at a time. PROFILE=file writes where the
daemon's time went. PASSES=1 tells the CPU time of each pass of the daemon's scheduler, which is
what a token waits for at most, whatever else the machine does; it costs some time itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.cli import main as main_command
from tests.bench_http import (
    _AT,
    SMALL,
    STREAMED,
    Reader,
    Way,
    percentile,
    running,
    selecting,
    start_sidecar,
)
from tests.ca import Authority
from tests.client import client_context, connect
from tests.conftest import TRAEFIK
from tests.fake_agent import AgentProcess
from tests.scenarios.peer import free_port, silent, until_it_listens

STREAMS = 16
QUIET_SECONDS = 10.0
REFUSED = 5000
HALF_OPEN = 200
FLOODERS = int(os.environ.get("FLOODERS", "32"))  # connections of the flood at a time
FLOOD_PROCESSES = 2
NEWCOMER_SECONDS = 0.25  # from one good new connection to the next one
NICE = 10
WATCHED = any(map(os.environ.get, ("PASSES", "PROFILE")))


# The processes around.


def flood(port: int, folder: Path, count: int, threads: int) -> None:
    """Be refused so many times, and tell how."""
    os.nice(NICE)
    context = context_of(folder, "foreign")
    ends: Counter[str] = Counter()
    left = iter(range(count))

    def work() -> None:
        for _ in left:
            try:
                with connect(("127.0.0.1", port), context, 60) as tls:
                    ends["answered" if tls.recv(1) else "closed"] += 1
            except (OSError, ssl.SSLError) as exc:
                ends[getattr(exc, "reason", None) or type(exc).__name__] += 1

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps(ends))


def newcomers(port: int, folder: Path) -> None:
    """Connect, ask and leave, again and again until the input ends; tell how long each took."""
    context = context_of(folder, "traefik")
    over, seconds, failed = threading.Event(), [], 0

    def hear() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=hear, daemon=True).start()
    while not over.wait(NEWCOMER_SECONDS):
        begun = time.perf_counter()
        try:
            with connect(("127.0.0.1", port), context, 20) as tls:
                reader = Reader(tls)
                reader.ask(SMALL)
                while not reader.complete:
                    reader.read()
        except (OSError, ssl.SSLError):
            failed += 1
        else:
            seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds, "failed": failed}))


def context_of(folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "authority.pem")
    context.load_cert_chain(folder / f"{name}.pem")
    return context


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench_flood", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# The daemon.


class Passes(trio.abc.Instrument):
    """The CPU time of each pass of the scheduler, to a file at the end: when, and how long."""

    def __init__(self) -> None:
        self._begun = time.thread_time()
        self.passes: list[tuple[float, float]] = []

    def after_io_wait(self, timeout: float) -> None:
        self._begun = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self.passes.append((time.monotonic(), time.thread_time() - self._begun))


def run_watched(config: Path) -> None:
    """Be the daemon, and watch its scheduler."""
    run, watcher = trio.run, Passes()
    trio.run = partial(run, instruments=[watcher])  # type: ignore[assignment]
    try:
        main_command(["run", "--config", str(config)])
    finally:
        config.with_name("passes.json").write_text(json.dumps(watcher.passes))


@dataclass
class Site:
    """The daemon with all that it needs."""

    folder: Path
    way: Way
    phases: list[tuple[str, float, float]] = field(default_factory=list)  # name, begin, end

    @property
    def port(self) -> int:
        return self.way.address[1]

    def log_lines(self) -> list[str]:
        return (self.folder / "sidecar.log").read_text().splitlines()

    def memory(self) -> str:
        status = Path(f"/proc/{self.way.pid}/status").read_text()
        sizes = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Vm"))
        return f"{int(sizes['VmRSS'].split()[0]) / 1024:.0f} MiB"


@contextmanager
def sites() -> Iterator[Site]:
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="sc-")))
        authority, foreign = Authority("example.org"), Authority("other.org")
        issued = authority.sign(authority.leaf(TRAEFIK))
        issued.write(folder, "traefik")
        foreign.sign(foreign.leaf(TRAEFIK)).write(folder, "foreign")
        (folder / "authority.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        port = free_port()
        command = [sys.executable, "-m", "tests.bench_http", "--model-server", str(port)]
        parts.enter_context(running(command, port, folder / "model.log"))
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), authority.bundle)
        agent.start()
        parts.callback(agent.stop)
        own = free_port()
        command = start_sidecar(folder, authority, f"127.0.0.1:{port}", own)
        config = folder / "sidecar.toml"
        text = config.read_text().replace("refusals_per_second = 0", "")
        if WATCHED:
            text += "[sandbox]\nenabled = false\n"  # it could not write down what it saw
        config.write_text(text)
        phases: list[tuple[str, float, float]] = []
        parts.callback(show_passes, folder / "passes.json", phases)  # when the daemon has ended
        pid = parts.enter_context(daemon(command, own, folder / "sidecar.log"))
        context = client_context(authority, issued, folder)
        yield Site(folder, Way("sidecar", ("127.0.0.1", own), context, pid), phases)


def show_passes(file: Path, phases: list[tuple[str, float, float]]) -> None:
    if not file.exists():
        return
    passes = json.loads(file.read_text())
    for name, begin, end in phases:
        print(f"  passes, {name}: {shown([cpu for at, cpu in passes if begin <= at <= end])}")


@contextmanager
def daemon(command: list[str], port: int, log: Path) -> Iterator[int]:
    """The daemon, ended so that a profile is written and the log is whole."""
    if os.environ.get("PASSES"):
        command = [command[0], "-m", "tests.bench_flood", "--daemon", command[-1]]
    elif profile := os.environ.get("PROFILE"):
        command = [command[0], "-m", "cProfile", "-o", profile, *command[1:]]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            until_it_listens(port)
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGINT)
            process.wait(30)
            lines = log.read_text().splitlines()
            left_out = [json.loads(one) for one in lines if '"lines left out"' in one]
            refused = sum('"peer refused"' in one for one in lines)
            print(
                f"  log in the end: {len(lines)} lines, {refused} of refused peers and "
                f"{sum(one['lines'] for one in left_out)} told to be left out"
            )


# The streams.


@dataclass
class Streams:
    """Streams that go on for ever, and the seconds that each token took."""

    readers: list[Reader]
    seen: dict[Reader, int] = field(default_factory=dict)

    def watch(self, seconds: float, until: threading.Event | None = None) -> list[float]:
        """Take tokens for so long, or until something is over.

        Those that were sent while nobody watched have waited for us.
        """
        tokens: list[float] = []
        first = time.monotonic_ns()
        end = time.perf_counter() + seconds
        with selecting(self.readers) as wait:
            for reader in self.readers:
                if reader not in self.seen:
                    self._ask(reader)
            while time.perf_counter() < end and not (until and until.is_set()):
                for reader in wait(0.1):
                    reader.read()
                    now = time.monotonic_ns()
                    for event in _AT.finditer(reader.body, self.seen[reader]):
                        if int(event[1]) >= first:
                            tokens.append((now - int(event[1])) / 1e9)
                        self.seen[reader] = event.end()
                    if reader.complete:
                        self._ask(reader)
        return tokens

    def _ask(self, reader: Reader) -> None:
        reader.ask(STREAMED)
        self.seen[reader] = 0


def measure(what: str, site: Site, streams: Streams, until: threading.Event | None = None) -> float:
    """Watch streams and newcomers; print what came out, give p99 of the tokens."""
    coming = child("--newcomers", site.port, site.folder)
    begun, cpu, lines = time.monotonic(), site.way.cpu_seconds(), len(site.log_lines())
    tokens = streams.watch(600 if until else QUIET_SECONDS, until)
    seconds = time.monotonic() - begun
    site.phases.append((what, begun, begun + seconds))
    cpu, lines = site.way.cpu_seconds() - cpu, len(site.log_lines()) - lines
    memory = site.memory()
    came = json.loads(coming.communicate("")[0])
    print(f"{what}, {seconds:.1f} s:")
    print(f"  {len(tokens)} tokens of {STREAMS} streams: {shown(tokens)}")
    print(f"  {len(came['seconds'])} new connections, {came['failed']} failed, each to its answer:")
    print(f"    {shown(came['seconds'])}")
    print(
        f"  log: {lines} lines; CPU: {100 * cpu / seconds:.0f} % of a core; memory: {memory}",
        flush=True,
    )
    return percentile(tokens, 99)


def shown(seconds: list[float]) -> str:
    p50, p99 = (1000 * percentile(seconds, at) for at in (50, 99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, slowest {1000 * max(seconds):.1f} ms"


@contextmanager
def flooding(site: Site) -> Iterator[threading.Event]:
    """Flood; the event is set when all were refused."""
    over, threads = threading.Event(), FLOODERS // FLOOD_PROCESSES
    arguments = "--flood", site.port, site.folder, REFUSED // FLOOD_PROCESSES, threads
    floods = [child(*arguments) for _ in range(FLOOD_PROCESSES)]
    ends: Counter[str] = Counter()

    def wait() -> None:
        for one in floods:
            ends.update(json.loads(one.communicate()[0]))
        over.set()

    waiting = threading.Thread(target=wait)
    with silent(site.way.address, HALF_OPEN):
        waiting.start()
        yield over
        waiting.join()
    print(f"  the flood of {FLOODERS} at a time ended: {dict(ends)}")


def main() -> None:
    print(f"load before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} CPUs")
    with sites() as site, ExitStack() as held:
        readers = [Reader(held.enter_context(site.way.open())) for _ in range(STREAMS)]
        streams = Streams(readers)
        streams.watch(3.0)  # warm
        quiet = measure("quiet", site, streams)
        with flooding(site) as over:
            loud = measure("flood", site, streams, over)
        measure("quiet again", site, streams)
        print(f"p99 of the streams in the flood is {loud / quiet:.1f} times that of quiet")
        for reader in readers:
            assert isinstance(reader.sock, socket.socket)
            reader.sock.close()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--flood", port, folder, count, threads]:
            flood(int(port), Path(folder), int(count), int(threads))
        case ["--daemon", config]:
            run_watched(Path(config))
        case ["--newcomers", port, folder]:
            newcomers(int(port), Path(folder))
        case _:
            main()
