"""A changed `sidecar.toml` holds for the next connection or request, and ends nothing that runs.

Figures of 10,000 reloads of the policy under load: `FULL=1 pytest -s` on this file.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.ca import Authority
from tests.client import connect
from tests.conftest import TRAEFIK
from tests.http_backend import Call, HttpBackend
from tests.http_client import CUTS, EVERYTHING, HttpPeer, Site, request, running_site
from tests.pooled_clients import PooledClients
from tests.scenarios.memory import resident_mib
from tests.scenarios.peer import own_address, silent
from tests.scenarios.test_pooled_clients_through_rotations import model_server

FULL = bool(os.environ.get("FULL"))
RELOADS, CLIENTS = (10_000, 8) if FULL else (200, 4)
BY_FILE = 20
GUARD_SECONDS = 30.0


class Configuration:
    """The configuration file of a site, in the hands of an operator."""

    def __init__(self, site: Site) -> None:
        self._daemon = site.daemon
        self.path = site.folder / "sidecar.toml"
        self.text = self.path.read_text()  # as it was at start

    def replace(self, text: str) -> None:
        """As editors and configuration tools do it."""
        new = self.path.with_name("sidecar.new")
        new.write_text(text)
        new.rename(self.path)

    def publish(self, text: str) -> list[str]:
        """Put a configuration in force; gives what is told to have changed."""
        if self.path.read_text() == text:
            return []
        self.replace(text)
        line = self._daemon.wait_for("configuration loaded", asked_by="file")
        changed: list[str] = line["changed"]
        return changed

    def refused(self) -> dict[str, Any]:
        return self._daemon.wait_for("configuration refused, the old one stays")

    def with_backend(self, keys: str, address: str = "") -> str:
        """Give the text with other keys in [backend]."""
        lines = self.text.splitlines()
        at = next(n for n, line in enumerate(lines) if line.startswith("mode = "))
        if address:
            lines[at - 1] = f'address = "{address}"'
        return "\n".join([*lines[: at + 1], keys, *lines[at + 1 :]]) + "\n"


class Stream:
    """An answer that runs on a connection of before the reload."""

    def __init__(self, site: Site, peer: HttpPeer) -> None:
        self.peer = peer
        peer.sendall(request("GET", "/held/long"))
        self.call = _next(site, "/held/long")
        self.call.begin_stream()
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")

    def runs(self) -> bool:
        self.call.event("still here")
        return self.peer.until(b"\n\n\r\n").endswith(b"data: still here\n\n\r\n")

    def finish(self) -> None:
        self.call.end_stream()
        self.call.release()
        assert self.peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"


def _next(site: Site, target: str) -> Call:
    """The next request for `target`; others are let go."""
    while (call := site.backend.next_call()).target != target:
        pass
    return call


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[tuple[Site, Configuration]]:
    with running_site(authority) as site:
        assert site.daemon.address  # the watch begins before it listens
        yield site, Configuration(site)


@pytest.fixture
def site(running: tuple[Site, Configuration]) -> Site:
    """One site for all; each test begins with the configuration of the start."""
    site, file = running
    file.publish(file.text)
    site.backend.routes = {"/held/": site.backend.routes["/held/"]}
    site.backend.forget()
    return site


@pytest.fixture
def file(site: Site, running: tuple[Site, Configuration]) -> Configuration:
    return running[1]


@pytest.fixture
def stream(site: Site) -> Iterator[Stream]:
    """An answer that runs before, during and after what a test does."""
    with site.dial() as peer:
        stream = Stream(site, peer)
        yield stream
        assert stream.runs()
        stream.finish()


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    """A connection of before the reload that waits for its next request."""
    with site.dial() as peer:
        assert peer.ask("GET", "/v1/models").get("connection") is None
        yield peer


# Each table, for who comes next.


def body_is_limited(site: Site) -> bool:
    with site.dial() as new:
        return [new.ask("POST", "/v1/x", body=b"x" * n).status for n in (4, 5)] == [200, 413]


def head_is_limited(site: Site) -> bool:
    with site.dial() as new:
        return new.ask("GET", "/v1/x", f"X-Long: {'x' * 2000}").status == 431


def one_request_at_a_time(site: Site) -> bool:
    with site.dial() as new:  # the stream that runs has the one place
        answer = new.ask("GET", "/v1/x")
        return answer.status == 503 and answer.get("retry-after") is not None


def idle_ends_soon(site: Site) -> bool:
    with site.dial() as new:
        return new.ask("GET", "/v1/x").status == 200 and new.rest() == (b"", True)


def head_has_to_come_soon(site: Site) -> bool:
    with site.dial() as new:
        new.sendall(b"GET /v1/x HTTP/1.1\r\n")
        return new.answer().status == 408


def handshake_has_to_come_soon(site: Site) -> bool:
    with silent(site.address, 1) as (address,):
        line = site.daemon.wait_for("peer refused", address=address)
        return "handshake" in str(line["reason"])


def one_handshake_at_a_time(site: Site) -> bool:
    with silent(site.address, 2) as (first, _):
        return bool(site.daemon.wait_for("peer refused", address=first))


def one_connection_at_a_time(site: Site) -> bool:
    with socket.create_connection(site.address, 20) as sock:
        own = own_address(sock)
        try:
            with site.context().wrap_socket(sock) as tls:
                tls.sendall(request("GET", "/v1/x"))
                assert tls.recv(1) == b""
        except CUTS:
            pass
    return bool(site.daemon.wait_for("peer refused", address=own, reason="too many connections"))


def age_is_limited(site: Site) -> bool:
    with site.dial() as new:
        return new.ask("GET", "/v1/x").status == 200 and new.rest() == (b"", True)


def pages_may_call(site: Site) -> bool:
    with site.dial() as new:
        answer = new.ask("GET", "/v1/x", "Origin: https://page.example")
        return answer.get("access-control-allow-origin") == "https://page.example"


def answers_have_the_header(site: Site) -> bool:
    with site.dial() as new:
        answers = [new.ask("GET", "/v1/x"), new.ask("GET", "/health")]
        return [one.get("x-frame-options") for one in answers] == ["DENY"] * 2


TABLES = [
    ("[limits]\nmax_body_bytes = 4", body_is_limited),
    ("[limits]\nmax_head_bytes = 1024", head_is_limited),
    ("[limits]\nconcurrent_requests = 1\nqueued_requests = 0", one_request_at_a_time),
    ("[limits]\nconcurrent_requests = 1\nqueue_seconds = 0.1", one_request_at_a_time),
    ("[timeouts]\nidle = 0.1", idle_ends_soon),
    ("[timeouts]\nrequest_head = 0.1", head_has_to_come_soon),
    ("[timeouts]\nhandshake = 0.1", handshake_has_to_come_soon),
    ("[connections]\nmaximum_handshakes = 1", one_handshake_at_a_time),
    ("[connections]\nmaximum = 1", one_connection_at_a_time),
    ("[connections]\nmax_age_seconds = 0.5", age_is_limited),
    ('[cors]\nallow_origins = ["https://page.example"]', pages_may_call),
    ('[response_headers]\nX-Frame-Options = "DENY"', answers_have_the_header),
]


@pytest.mark.parametrize(
    ("table", "holds"),
    [pytest.param(*row, id=row[0].splitlines()[-1]) for row in TABLES],
)
def test_table_holds_for_who_comes_next_and_the_running_answer_goes_on(
    table: str, holds: Callable[[Site], bool], site: Site, file: Configuration, stream: Stream
) -> None:
    assert file.publish(f"{file.text}{table}\n") == [table.splitlines()[0]]
    assert holds(site)
    assert stream.runs()


def test_silence_of_a_model_server_is_cut_by_the_new_timeout(
    site: Site, file: Configuration, peer: HttpPeer
) -> None:
    assert file.publish(f"{file.text}[timeouts]\nfirst_byte = 0.2\n") == ["[timeouts]"]
    with site.dial() as new:
        new.sendall(request("GET", "/held/silent"))
        assert new.answer().status == 504


def test_connect_gives_up_by_the_new_timeout(site: Site, file: Configuration) -> None:
    with ExitStack() as held:
        full = held.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # nobody accepts, and there is no room for more
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        text = file.with_backend("", address) + "[timeouts]\nbackend_connect = 0.2\n"
        assert file.publish(text) == ["[backend] address", "[timeouts]"]
        with site.dial() as new:
            assert new.ask("GET", "/v1/x").status == 502


def test_another_backend_for_who_comes_next(
    site: Site, file: Configuration, stream: Stream
) -> None:
    with HttpBackend() as other:
        assert file.publish(file.with_backend("", other.address)) == ["[backend] address"]
        with site.dial() as new:
            assert new.ask("GET", "/v1/new").status == 200
        assert other.untaken() == ["GET /v1/new"]
        assert site.backend.untaken() == []
        assert stream.runs()
        file.publish(file.text)
        with site.dial() as new:
            assert new.ask("GET", "/v1/back").status == 200
        assert site.backend.untaken() == ["GET /v1/back"]


def test_host_and_health_path_of_the_backend(
    site: Site, file: Configuration, stream: Stream
) -> None:
    text = file.with_backend('host = "models.example"\nhealth_path = "/healthy"')
    assert file.publish(text) == ["[backend] health_path", "[backend] host"]
    with site.dial() as new:
        assert dict(new.ask("GET", "/v1/x").json()["headers"])["host"] == "models.example"
        site.backend.forget()
        assert new.ask("GET", "/health").status == 200
    assert site.backend.untaken() == ["GET /healthy"]


def _is_refused(site: Site) -> bool:
    """Tell whether a new connection gets no answer at all."""
    try:
        with connect(site.address, site.context()) as tls:
            tls.sendall(request("GET", "/v1/x"))
            return tls.recv(1) == b""
    except CUTS:
        return True


def test_grace_of_who_is_revoked(site: Site, file: Configuration, stream: Stream) -> None:
    policy = site.folder / "policy.toml"
    before = policy.read_text()
    text = f"{file.text}[connections]\nrevoked_grace_seconds = 300\n"
    assert file.publish(text) == ["[connections]"]
    try:
        policy.write_text(before.replace("traefik", "other"))
        site.daemon.wait_for("policy loaded")
        assert stream.runs()
        with site.dial() as new:
            assert new.ask("GET", "/v1/x").status == 403
    finally:
        policy.write_text(before)
        site.daemon.wait_for("policy loaded")


def test_grace_after_the_agent_denies(site: Site, file: Configuration, stream: Stream) -> None:
    grace = "denied_grace_seconds = 0\n[listener]"
    text = file.text.replace("[listener]", grace)
    assert file.publish(text) == ["[workload_api] denied_grace_seconds"]
    site.agent.deny()
    try:
        site.daemon.wait_for("state changed", state="denied", serving=False)
        assert _is_refused(site)
        assert stream.runs()
    finally:
        site.agent.send(site.authority.svid(), site.authority.bundle)
        site.daemon.wait_for("state changed", state="ready", serving=True)


# Connections of before.


def test_kept_connection_ends_with_its_next_answer_and_not_before(
    site: Site, file: Configuration, peer: HttpPeer
) -> None:
    file.publish(f"{file.text}[limits]\nmax_body_bytes = 4\n")
    assert not peer.has_word(), "it is not ended by the reload"
    answer = peer.ask("GET", "/v1/x")
    assert (answer.status, answer.values("connection")) == (200, ["close"])
    assert peer.rest() == (b"", True)


def test_request_that_waits_for_its_turn_gets_one_when_there_is_room(
    site: Site, file: Configuration
) -> None:
    file.publish(f"{file.text}[limits]\nconcurrent_requests = 1\n")
    with site.dial() as first, site.dial() as waiting:
        stream = Stream(site, first)
        waiting.sendall(request("GET", "/v1/waits"))
        with site.dial("/workload/stranger") as stranger:
            assert stranger.ask("GET", "/v1/x").status == 403  # by now the other one waits
        assert "GET /v1/waits" not in site.backend.untaken()
        file.publish(f"{file.text}[limits]\nconcurrent_requests = 2\n")
        assert waiting.answer().status == 200
        assert stream.runs()
        stream.finish()


# What is refused, and what waits.

LIMIT = "[limits]\nmax_body_bytes = 4\n"
BAD = [
    pytest.param(lambda text: text + LIMIT + "max_head_bytes = 1\n", "1", id="a value"),
    pytest.param(
        lambda text: text + LIMIT + "max_boddy_bytes = 1\n", "max_body_bytes", id="a typo"
    ),
    pytest.param(lambda text: text + LIMIT + "[limit]\n", "limits", id="an unknown table"),
    pytest.param(lambda text: text + LIMIT + "[limits]\n", "syntax error", id="a table twice"),
    pytest.param(lambda text: text + LIMIT + '[cors]\nallow_origins = "x', "syntax", id="half"),
    pytest.param(
        lambda text: text.replace("[policy]", "[policies]") + LIMIT, "[policy]", id="no policy"
    ),
    pytest.param(
        lambda text: (
            text.replace('[backend]\naddress = "127.0.0.1', '[backend]\naddress = "10.0.0.1')
            + LIMIT
        ),
        "loopback",
        id="a backend elsewhere",
    ),
    pytest.param(lambda _: "", "[listener]", id="nothing"),
]


@pytest.mark.parametrize(("break_it", "problem"), BAD)
def test_bad_file_is_refused_as_a_whole_and_said_once(
    break_it: Callable[[str], str],
    problem: str,
    site: Site,
    file: Configuration,
    stream: Stream,
    peer: HttpPeer,
) -> None:
    bad = break_it(file.text)
    file.replace(bad)
    line = file.refused()
    assert (line["level"], line["asked_by"]) == ("error", "file")
    assert problem in " ".join(line["problems"])
    said = len(site.daemon.lines("configuration refused, the old one stays"))
    loaded = len(site.daemon.lines("configuration loaded"))
    file.replace(bad)  # the same again is no news
    for one in (peer, peer):
        answer = one.ask("POST", "/v1/x", body=b"12345")
        assert (answer.status, answer.get("connection")) == (200, None)
    assert stream.runs()
    file.publish(f"{file.text}[limits]\nmax_body_bytes = 3\n")
    assert len(site.daemon.lines("configuration refused, the old one stays")) == said
    assert len(site.daemon.lines("configuration loaded")) == loaded + 1


def test_keys_that_need_a_restart_are_named_and_the_others_hold(
    site: Site, file: Configuration, stream: Stream
) -> None:
    text = file.text.replace("refusals_per_second = 0", "refusals_per_second = 7")
    text = text.replace("[listener]\n", '[listener]\ntls_minimum_version = "1.2"\n')
    file.replace(text + LIMIT)
    line = site.daemon.wait_for("configuration needs a restart")
    assert line["level"] == "warning"
    assert set(line["keys"]) == {"[listener] tls_minimum_version", "[log] refusals_per_second"}
    assert site.daemon.wait_for("configuration loaded")["changed"] == ["[limits]"]
    assert body_is_limited(site)
    # Said again only when it is another list.
    said = len(site.daemon.lines("configuration needs a restart"))
    file.publish(text)
    file.publish(file.text + LIMIT)
    assert len(site.daemon.lines("configuration needs a restart")) == said


def test_sighup_reads_both_files_whether_they_changed_or_not(
    site: Site, file: Configuration, stream: Stream
) -> None:
    for _ in range(2):
        site.daemon.process.send_signal(signal.SIGHUP)
        line = site.daemon.wait_for("configuration loaded", asked_by="SIGHUP")
        assert line["changed"] == []
        site.daemon.wait_for("policy loaded", asked_by="SIGHUP")
    file.replace("nonsense")
    file.refused()
    for _ in range(2):  # who asks is answered
        site.daemon.process.send_signal(signal.SIGHUP)
        assert file.refused()["asked_by"] == "SIGHUP"
        site.daemon.wait_for("policy loaded", asked_by="SIGHUP")
    file.path.unlink()
    file.refused()
    site.daemon.process.send_signal(signal.SIGHUP)
    assert file.refused()["asked_by"] == "SIGHUP"
    file.path.write_text(file.text + LIMIT)
    site.daemon.wait_for("configuration loaded", asked_by="file")
    assert body_is_limited(site)


def test_reload_during_the_drain_is_ignored_with_a_line(authority: Authority) -> None:
    with running_site(authority) as site, site.dial() as peer:
        file, stream = Configuration(site), Stream(site, peer)
        site.daemon.process.terminate()
        site.daemon.wait_for("draining", connections=1)
        file.replace(file.text + LIMIT)
        (site.folder / "policy.toml").write_text("nonsense")
        for _ in range(2):
            site.daemon.process.send_signal(signal.SIGHUP)
            line = site.daemon.wait_for("reload ignored", reason="draining")
            assert (line["level"], line["asked_by"]) == ("warning", "SIGHUP")
            assert stream.runs()
        stream.finish()
        assert site.daemon.wait() == 0
        for event in ("configuration loaded", "policy refused, the old one stays"):
            assert not site.daemon.lines(event)


# Many of them.


def descriptors(pid: int) -> int:
    """How many files a process has open, as Linux and macOS tell it."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        shown = subprocess.run(["lsof", "-p", str(pid)], capture_output=True, text=True, check=True)
        return shown.stdout.count("\n")


def _policies(folder: Path) -> tuple[str, str]:
    """Two policies that let everybody do the same, and are not the same."""
    base = (folder / "policy.toml").read_text()
    names = "".join(
        f'[[deny]]\nname = "old-{n}"\npeers = ["spiffe://example.org/old/{n}"]\n' for n in range(20)
    )
    return base, base + names


def test_many_reloads_of_the_policy_under_load_cost_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    with running_site(authority, policy=EVERYTHING, more="") as site, model_server() as address:
        file, pid = Configuration(site), site.daemon.process.pid
        site.daemon.wait_for("ready")
        file.publish(file.with_backend("", address))
        policies = _policies(site.folder)
        pem = authority.sign(authority.leaf(TRAEFIK)).write(tmp_path, "pooled")
        trusted = tmp_path / "authority.pem"
        trusted.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        url = "https://{}:{}".format(*site.address)
        open_before = descriptors(pid)
        begun = time.monotonic()
        with PooledClients(url, tmp_path, pem, trusted, CLIENTS) as clients:
            memory = []
            for number in range(RELOADS):
                new = site.folder / "policy.new"
                new.write_text(policies[(number + 1) % 2])
                new.rename(site.folder / "policy.toml")
                if number >= BY_FILE:  # a change of the file alone waits until it is quiet
                    site.daemon.process.send_signal(signal.SIGHUP)
                asked_by = "file" if number < BY_FILE else "SIGHUP"
                site.daemon.wait_for("policy loaded", asked_by=asked_by)
                if number % (RELOADS // 20) == 0:
                    memory.append((number, resident_mib(pid)))
                    if FULL:
                        print(memory[-1], f"{time.monotonic() - begun:.0f} s", flush=True)
            seconds = time.monotonic() - begun
        asked = clients.asked()
        deadline = time.monotonic() + GUARD_SECONDS
        while (open_after := descriptors(pid)) > open_before:
            assert time.monotonic() < deadline, f"descriptors {open_before} -> {open_after}"
            time.sleep(0.05)
        assert not site.daemon.lines("policy refused, the old one stays")
        assert not asked.failed, f"{len(asked.failed)} failed, the first: {asked.failed[0]}"
        ports = {(one.client, one.port) for one in asked.requests}
    warm = [mib for done, mib in memory if done >= RELOADS // 4]
    print(
        f"\n{RELOADS} reloads of the policy in {seconds:.0f} s under {len(asked.requests)} "
        f"requests of {CLIENTS} clients on {len(ports)} connections: {len(asked.failed)} failed; "
        f"resident memory {memory[0][1]:.1f} MiB, after a quarter {warm[0]:.1f}, at the end "
        f"{warm[-1]:.1f}, at most {max(warm):.1f}; descriptors {open_before} -> {open_after}"
    )
    assert warm[-1] < warm[0] + 8, f"it grows: {memory}"
