"""Whoever does not read makes the other side wait; nothing piles up in the daemon."""

from __future__ import annotations

import hashlib
import select
import ssl
import threading

from tests.client import receive_exactly
from tests.scenarios.backends import BLOCK, Deaf, Pushing
from tests.scenarios.conftest import Launch
from tests.scenarios.memory import resident_mib
from tests.scenarios.peer import HalfCloser, dial, read_to_end

MIB = 2**20
SIZE = 200 * MIB
GROWTH_MIB = 30


def _digest(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        digest.update(BLOCK)
    return digest.hexdigest()


def test_peer_that_does_not_read_an_answer(launch: Launch, traefik: ssl.SSLContext) -> None:
    backend = Pushing(SIZE)
    daemon = launch(backend_address=backend.address)
    address = daemon.address
    before = resident_mib(daemon.process.pid)
    with dial(address, traefik) as tls:
        assert backend.stalled.wait(60), "the backend was never made to wait"
        assert backend.stalled_at < SIZE / 4
        stalled = resident_mib(daemon.process.pid)
        ended = read_to_end(tls)
    after = resident_mib(daemon.process.pid)
    print(f"\nresident memory {before:.0f} -> {stalled:.0f} (stalled) -> {after:.0f} MiB")
    assert ended.clean
    assert ended.received == SIZE
    assert ended.digest == _digest(SIZE)
    assert stalled - before < GROWTH_MIB
    assert after - before < GROWTH_MIB
    backend.close()


def test_backend_that_does_not_read_a_question(launch: Launch, traefik: ssl.SSLContext) -> None:
    backend = Deaf()
    daemon = launch(backend_address=backend.address)
    stalled = threading.Event()
    with HalfCloser(daemon.address, traefik) as peer:
        before = resident_mib(daemon.process.pid)

        def push() -> None:
            for _ in range(SIZE // len(BLOCK)):
                if not select.select([], [peer.sock], [], 1.0)[1]:
                    stalled.set()
                peer.sendall(BLOCK)
            peer.send_end()

        pusher = threading.Thread(target=push)
        pusher.start()
        assert stalled.wait(60), "the peer was never made to wait"
        growth = resident_mib(daemon.process.pid) - before
        backend.listen.set()
        pusher.join(60)
        answer = peer.recv(32)
    assert answer.hex() == _digest(SIZE)
    assert growth < GROWTH_MIB
    backend.close()


def test_stalled_stream_does_not_hold_up_another(launch: Launch, traefik: ssl.SSLContext) -> None:
    backend = Pushing(SIZE)
    daemon = launch(backend_address=backend.address)
    with dial(daemon.address, traefik):
        assert backend.stalled.wait(60)
        with dial(daemon.address, traefik) as other:
            assert receive_exactly(other, 4 * MIB) == BLOCK * (4 * MIB // len(BLOCK))
    backend.close()
