"""How soon connections end: `.venv/bin/python -m tests.bench_endings [rounds]`. Asserts nothing.

For each ending, in both modes and with graces of 0 and 2 s, seconds after its moment (the file was
replaced, the agent was told, the SVID expired):

no new     until the last new request passed, on a kept connection or a new one
idle       until a connection that waits was closed
cut        until a running answer was cut, beside the grace that it has

"-" where there is nothing to measure: a peer that loses an endpoint may wait on, and at a certain
age only the connection ends, in mode `http` after its answer.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product

from tests.ca import Authority
from tests.http_client import CUTS, request
from tests.scenarios.endings import (
    FOREIGNER,
    OTHER,
    OURS,
    Cause,
    Place,
    Running,
    Victim,
    authority_goes,
    comes_of_age,
    denied_for_good,
    federation_goes,
    own_svid_expires,
    peer_expires,
    rule_goes,
    running_place,
)
from tests.scenarios.peer import dial

MAX_AGE_SECONDS = 2
_PROBE_SECONDS = 0.002
# How long nothing must pass after the end before it is believed.
_QUIET_SECONDS = 1.0


def endpoint_goes(place: Place) -> Victim:
    def strike() -> float:
        return place.publish(OURS, FOREIGNER, OTHER, endpoints='"GET /nothing"')

    return Victim(place.context(), strike)


CAUSES: list[tuple[str, Cause]] = [
    ("the peer's SVID expires", peer_expires),
    ("its rule is taken away", rule_goes),
    ("the bundle loses its authority", authority_goes),
    ("its trust domain is no longer federated", federation_goes),
    ("our SVID expires, the agent is dead", own_svid_expires),
    ("the agent denies us for good", denied_for_good),
]


class Probes:
    """New requests without a pause; `passed` is when the last one began that was answered.

    Each way has passed once when the `with` block begins.
    """

    def __init__(self, place: Place, context: ssl.SSLContext) -> None:
        self._place, self._context = place, context
        self.passed: dict[str, float] = {}
        self._stop = threading.Event()
        # A stream is one answer: what is asked on a kept one, nobody sees.
        ways = [self._on_new_ones, self._on_a_kept_one][: 2 if place.mode == "http" else 1]
        self._threads = [threading.Thread(target=way) for way in ways]

    def __enter__(self) -> Probes:
        for thread in self._threads:
            thread.start()
        while len(self.passed) < len(self._threads):
            time.sleep(_PROBE_SECONDS)
        return self

    def __exit__(self, *_fault: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _on_new_ones(self) -> None:
        while not self._stop.wait(_PROBE_SECONDS):
            with suppress(*CUTS), dial(self._place.daemon.address, self._context) as tls:
                self._ask(tls, "new")

    def _on_a_kept_one(self) -> None:
        while not self._stop.wait(_PROBE_SECONDS):
            with suppress(*CUTS), dial(self._place.daemon.address, self._context) as tls:
                while self._ask(tls, "kept") and not self._stop.wait(_PROBE_SECONDS):
                    pass

    def _ask(self, tls: ssl.SSLSocket, way: str) -> bool:
        begun = time.monotonic()
        tls.sendall(request("GET", "/v1/probe"))
        answer = tls.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            return False
        self.passed[way] = begun
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += tls.recv(65536)
        return b"connection: close" not in head.lower()


@dataclass
class Row:
    """What came of one ending in all rounds: seconds after its moment, or nothing to measure."""

    name: str
    mode: str
    grace: float
    cuts: bool = True
    new_ones_pass: bool = False
    idle_stays: bool = False
    no_new: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        cells = [f"{max(cell):.3f}" if cell else "-" for cell in (self.no_new, self.idle, self.cut)]
        grace = f"{self.grace:g}" if self.cuts else "no end"
        return f"{self.name:42}{self.mode:8}{grace:>6}" + "".join(f"{cell:>9}" for cell in cells)


def measure(place: Place, cause: Cause, row: Row) -> None:
    victim = cause(place)
    with (
        place.dial(victim.context) as idle,
        Running(place, victim.context) as running,
        Probes(place, victim.context) as probes,
    ):
        moment, closed = victim.strike(), list[float]()

        def wait() -> None:
            idle.rest()
            closed.append(time.monotonic())

        waiting = threading.Thread(target=wait)
        waiting.start()
        if row.cuts:
            running.wait()
            row.cut.append(running.over_at - moment)
        else:
            running.wait_until_read(moment + _QUIET_SECONDS)
        time.sleep(_QUIET_SECONDS)
        if row.idle_stays:
            idle.sock.shutdown(socket.SHUT_RDWR)
        waiting.join()
        if not row.idle_stays:
            row.idle.append(closed[0] - moment)
    if not row.new_ones_pass:
        row.no_new.append(max(0.0, max(probes.passed.values()) - moment))


def rows() -> Iterator[tuple[Row, Cause, float]]:
    """Each row, what ends it, and the age that is allowed."""
    for name, cause in CAUSES:
        for mode, grace in product(("http", "stream"), (0.0, 2.0)):
            yield Row(name, mode, grace), cause, 0
    for grace in (0.0, 2.0):
        yield Row("its endpoint is taken away", "http", grace, idle_stays=True), endpoint_goes, 0
    old, name = comes_of_age(MAX_AGE_SECONDS), f"max_age_seconds = {MAX_AGE_SECONDS}"
    yield Row(name, "http", 0, cuts=False, new_ones_pass=True), old, MAX_AGE_SECONDS
    yield Row(name, "stream", 0, new_ones_pass=True), old, MAX_AGE_SECONDS


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    authority = Authority("example.org")
    heads = "".join(f"{head:>9}" for head in ("no new", "idle", "cut"))
    print(f"{'ending':42}{'mode':8}{'grace':>6}{heads}   (the slowest of {rounds})")
    for row, cause, max_age in rows():
        for _ in range(rounds):
            with running_place(authority, row.mode, grace=row.grace, max_age=max_age) as place:
                measure(place, cause, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
