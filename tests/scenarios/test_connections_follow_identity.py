"""Connections follow identity, bundle, policy and clock: who is ended, who is cut, who is not.

Lower bounds only: a cut never comes before its grace is over. How soon after it comes is measured
by `tests.bench_endings`.
"""

from __future__ import annotations

import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import product

import pytest

from tests.ca import Authority
from tests.http_client import CUTS, HttpPeer, request
from tests.scenarios.endings import (
    FOREIGNER,
    GUARD_SECONDS,
    OTHER,
    OTHER_PATH,
    OURS,
    Cause,
    Place,
    Running,
    authority_goes,
    comes_of_age,
    denied_for_good,
    federation_goes,
    own_svid_expires,
    peer_expires,
    rule_goes,
    running_place,
)
from tests.scenarios.peer import strict

MODES = ("http", "stream")
GRACES = (0, 2)
# The clocks of certificates and of sleepers differ a little.
HAIR = 0.05

EXPIRED = "the peer's SVID has expired"
NOT_PROVEN = "not proven by the trust bundle of example.org: none of its authorities signed it"
UNUSABLE = "no valid identity of our own"
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")


class Places:
    """One place for all tests that leave it as it was, by mode and grace."""

    def __init__(self, authority: Authority, held: ExitStack) -> None:
        self._authority, self._held = authority, held
        self._places: dict[tuple[str, float], Place] = {}

    @contextmanager
    def borrowed(self, mode: str, grace: float) -> Iterator[Place]:
        if (mode, grace) not in self._places:
            running = running_place(self._authority, mode, grace=grace)
            self._places[mode, grace] = self._held.enter_context(running)
        place = self._places[mode, grace]
        yield place
        place.restore()


@pytest.fixture(scope="module")
def places(authority: Authority) -> Iterator[Places]:
    with ExitStack() as held:
        yield Places(authority, held)


def everywhere(act: Callable[[str, float], None]) -> None:
    """Do something in each mode with each grace, side by side: most of it is waiting."""

    def noted(mode: str, grace: float) -> None:
        try:
            act(mode, grace)
        except BaseException as exc:
            exc.add_note(f"in mode {mode} with a grace of {grace} s")
            raise

    with ThreadPoolExecutor(len(MODES) * len(GRACES)) as pool:
        for done in [pool.submit(noted, *where) for where in product(MODES, GRACES)]:
            done.result()


def ends(place: Place, cause: Cause, reason: str, grace: float) -> None:
    """Let a cause end a peer that waits and one that is being answered; look closely."""
    victim = cause(place)
    with (
        place.dial(victim.context) as idle,
        place.dial(victim.context) as fresh,
        Running(place, victim.context) as running,
    ):
        if place.mode == "http":
            assert idle.ask("GET", "/v1/models").status == 200
        moment = victim.strike()
        for one in (idle, fresh):
            assert one.rest() == (b"", place.mode == "http"), "a stream is cut, whatever it is at"
            assert time.monotonic() >= moment - HAIR
        assert not place.serves(victim.context)
        running.assert_cut()
        assert running.over_at >= moment + grace - HAIR
        assert grace == 0 or running.read_at >= moment, "a running answer goes on"
        _is_logged(place, running, reason)
        _is_told_of_the_idle_ones(place, running, [idle.address, fresh.address], grace)


def _is_logged(place: Place, running: Running, reason: str) -> None:
    told = f"cut: {reason}"
    if place.mode == "http":
        line = place.line("request", address=running.address, reason=told)
        assert (line["decision"], line["status"]) == ("allowed", 200)
        assert line["sent"] >= len(running.received)
        place.line("connection closed", address=running.address, end=reason)
    else:
        line = place.line("connection closed", address=running.address, end=told)
        assert line["sent"] >= len(running.received)


def _is_told_of_the_idle_ones(
    place: Place, running: Running, idle: list[str], grace: float
) -> None:
    closed = [line["address"] for line in place.daemon.lines("connection closed")]
    for address in idle:
        place.line("connection closed", address=address)
        if place.mode == "http" and grace:
            assert closed.index(address) < closed.index(running.address), "it need not wait"


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        pytest.param(peer_expires, EXPIRED, id="the peer's SVID expires"),
        pytest.param(rule_goes, "no allow rule names this peer", id="its rule is taken away"),
        pytest.param(authority_goes, NOT_PROVEN, id="the bundle loses its authority"),
        pytest.param(
            federation_goes, "no trust bundle for trust domain other.org", id="federation ends"
        ),
    ],
)
def test_peer_that_may_go_on_no_longer_is_ended_and_the_others_are_not(
    cause: Cause, reason: str, places: Places
) -> None:
    def here(mode: str, grace: float) -> None:
        with places.borrowed(mode, grace) as place:
            other = place.context(place.issued(OTHER_PATH))
            with Running(place, other, "/held/other") as untouched:
                ends(place, cause, reason, grace)
                assert place.serves(other)
                untouched.finish()

    everywhere(here)


@pytest.mark.parametrize(
    "cause",
    [
        pytest.param(own_svid_expires, id="it expires without an agent"),
        pytest.param(denied_for_good, id="the agent denies us for good"),
    ],
)
def test_daemon_that_loses_its_own_identity_ends_everybody(
    cause: Cause, authority: Authority
) -> None:
    def here(mode: str, grace: float) -> None:
        with running_place(authority, mode, grace=grace) as place:
            ends(place, cause, UNUSABLE, grace)
            if not place.agent.runs():
                place.agent.start()
            place.serve_with()
            assert place.serves(place.context())

    everywhere(here)


# What ends nothing, or not everything.


@pytest.mark.parametrize("mode", MODES)
def test_rotations_alone_end_nothing(mode: str, places: Places) -> None:
    with places.borrowed(mode, 0) as place:
        context = place.context()
        with place.dial(context) as idle, Running(place, context) as running:
            for _ in range(5):
                place.serve_with()
            if mode == "http":
                assert idle.ask("GET", "/v1/models").get("connection") == "close"
            running.finish()


@pytest.mark.parametrize("grace", GRACES)
def test_endpoint_that_is_taken_away_cuts_what_runs_there_and_nothing_else(
    grace: float, places: Places
) -> None:
    with places.borrowed("http", grace) as place:
        context = place.context()
        with (
            place.dial(context) as idle,
            Running(place, context, "/held/kept") as kept,
            Running(place, context, "/held/lost") as lost,
        ):
            assert idle.ask("GET", "/held-not/lost").status == 200
            before = place.publish(OURS, endpoints='"GET /held/kept", "GET /v1/{name}"')
            lost.assert_cut()
            assert lost.over_at >= before + grace - HAIR
            reason = "no rule for this peer names this endpoint"
            _is_logged(place, lost, reason)
            assert idle.ask("GET", "/v1/models").status == 200
            refused = idle.ask("GET", "/held-not/lost")
            assert (refused.status, refused.get("connection")) == (403, None)
            kept.finish()


def test_rule_that_comes_back_within_the_grace_saves_the_running_answer(places: Places) -> None:
    with places.borrowed("stream", 2) as place, Running(place, place.context()) as running:
        place.publish(FOREIGNER, OTHER)
        before = time.monotonic()
        place.publish(OURS, FOREIGNER, OTHER)
        running.wait_until_read(before + 2.5)
        running.finish()


# Age.


def test_age_ends_a_connection_of_mode_http_after_its_answer(authority: Authority) -> None:
    with running_place(authority, "http", max_age=2) as place:
        victim = comes_of_age(2)(place)
        with place.dial(victim.context) as idle, Running(place, victim.context) as running:
            moment = victim.strike()
            assert idle.rest() == (b"", True)
            assert time.monotonic() >= moment - HAIR
            place.line("connection closed", address=idle.address, end="max_age_seconds")
            running.finish()
            assert running.peer.rest() == (b"", True)
            place.line("connection closed", address=running.address, end="max_age_seconds")
            assert place.serves(victim.context)


def test_age_cuts_a_connection_of_mode_stream(authority: Authority) -> None:
    with running_place(authority, "stream", max_age=2) as place:
        victim = comes_of_age(2)(place)
        with place.dial(victim.context) as idle, Running(place, victim.context) as running:
            moment = victim.strike()
            running.assert_cut()
            assert running.over_at >= moment - HAIR
            assert idle.rest() == (b"", False)
            assert place.serves(victim.context)
            _is_logged(place, running, "max_age_seconds")


# Changes that meet what is just beginning.


class HalfwayThrough:
    """A peer that holds back the last flight of its handshake, and sends bytes along with it."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(address, GUARD_SECONDS)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = strict(context).wrap_bio(self._incoming, self._outgoing)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                self._incoming.write(self.sock.recv(65536))
            else:
                return

    def __enter__(self) -> HalfwayThrough:
        return self

    def __exit__(self, *_fault: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send what was held back, and `data` along with it."""
        self._tls.write(data)
        self.sock.sendall(self._outgoing.read())

    def go_on(self, data: bytes) -> bytes:
        """Send, and give all that comes until the end."""
        received = b""
        try:
            self.send(data)
            while data := self.sock.recv(65536):
                self._incoming.write(data)
            while data := self._tls.read(65536):
                received += data
        except CUTS:
            pass
        return received


@pytest.mark.parametrize(
    ("mode", "unix"),
    [
        pytest.param("http", True, id="http"),
        pytest.param("stream", False, id="stream"),
        pytest.param("stream", True, id="stream, a backend that is connected at once"),
    ],
)
def test_handshake_that_began_before_the_bundle_lost_its_authority_is_not_served(
    mode: str, unix: bool, authority: Authority
) -> None:
    with running_place(authority, mode, unix=unix) as place:
        stays, leaves = place.context(), place.context(place.issued(signer=place.leaving))
        for number in range(12):
            place.serve_with()
            with (
                HalfwayThrough(place.daemon.address, leaves) as late,
                HalfwayThrough(place.daemon.address, stays) as fine,
            ):
                place.serve_with(leaving=False)
                fine.send(request("GET", f"/v1/fine-{number}"))
                assert b" 200 " not in late.go_on(request("GET", f"/v1/late-{number}"))
                assert place.backend.next_call().target == f"/v1/fine-{number}"
        assert place.backend.untaken() == []


def test_request_never_passes_while_policy_says_no(places: Places) -> None:
    """Policy changes under connections that never rest: each request is decided by one policy."""
    with places.borrowed("http", 0) as place:
        begun = len(place.daemon.log)
        with Askers(place, 6) as askers:
            for _ in range(15):
                askers.wait_for("200")
                place.publish(FOREIGNER, OTHER)
                askers.wait_for("403")
                place.publish(OURS, FOREIGNER, OTHER)
            askers.wait_for("200")
        refusing = _when_it_refused(place, begun)
        assert len(refusing) == 15
        for line in place.daemon.log[begun:]:
            if line["event"] == "request" and line["decision"] == "allowed":
                at = _time(line) - line["seconds"]
                assert not any(since + 0.001 < at < until - 0.001 for since, until in refusing)


def _when_it_refused(place: Place, begun: int) -> list[tuple[float, float]]:
    loaded = [_time(line) for line in place.daemon.log[begun:] if line["event"] == "policy loaded"]
    return list(zip(loaded[::2], loaded[1::2], strict=True))


def _time(line: dict[str, object]) -> float:
    return datetime.fromisoformat(str(line["timestamp"])).timestamp()


class Askers:
    """Peers that ask without a pause, each on its connection, and dial again when it ends."""

    def __init__(self, place: Place, count: int) -> None:
        self._place, self._context = place, place.context()
        self._changed, self._seen = threading.Condition(), dict.fromkeys(range(count), "")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(count)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(GUARD_SECONDS)

    def wait_for(self, status: str) -> None:
        """Wait until all of them have been told so since now."""
        with self._changed:
            self._seen = dict.fromkeys(self._seen, "")
            told = self._changed.wait_for(
                lambda: set(self._seen.values()) == {status}, GUARD_SECONDS
            )
            assert told, self._seen

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            with suppress(*CUTS), self._place.dial(self._context) as peer:
                self._ask(peer, number)

    def _ask(self, peer: HttpPeer, number: int) -> None:
        while not self._stop.is_set():
            peer.sendall(request("GET", f"/v1/{secrets.token_hex(4)}"))
            head = peer.take(12)
            if not head:
                return
            status = head.decode().rpartition(" ")[2]
            with self._changed:
                self._seen[number] = status
                self._changed.notify_all()
            rest = peer.until(b"\r\n\r\n")
            peer.exactly(int(_LENGTH.search(rest)[1]))  # type: ignore[index]
            if b"connection: close" in rest.lower():
                return


def test_everybody_is_ended_however_many_there_are(places: Places) -> None:
    with places.borrowed("http", 2) as place, ExitStack() as held:
        context = place.context()
        peers = [held.enter_context(place.dial(context)) for _ in range(200)]
        other = held.enter_context(place.dial(place.context(place.issued(OTHER_PATH))))
        assert peers[-1].ask("GET", "/v1/models").status == 200
        place.publish(FOREIGNER, OTHER)
        assert [peer.rest() for peer in peers] == [(b"", True)] * 200
        assert other.ask("GET", "/v1/models").status == 200
        for peer in peers:
            place.line("connection closed", address=peer.address)
