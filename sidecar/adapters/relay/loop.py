"""One selector for all connections, and the one task that waits for it.

A connection's task registers its two sockets and sleeps; here they are served by plain calls,
and the call that finishes a connection wakes its task.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable

import trio

from sidecar.adapters.relay.exchange import Exchange
from sidecar.adapters.relay.pair import Pair, PeerStream, Traffic, Turn
from sidecar.adapters.relay.stream import Stream
from sidecar.core.http_gate import HttpGate
from sidecar.core.limits import Pace

# Rounds of the selector, and time, before other tasks (handshakes, the agent) get their turn.
_ROUNDS = 8
_ROUNDS_SECONDS = 0.005
# How often it is looked whether the last bytes of a connection have arrived.
_ARRIVAL_SECONDS = 0.005
# How long what was read before a cut may take to arrive.
_CUT_SECONDS = 1.0
# Silence is looked for this often within its limit, for all connections together.
_SWEEPS = 16
_PACE = Pace()


class Relay:
    """Moves the bytes of all connections; `run` is the one task that does it.

    `between_bytes` and `first_byte`, in seconds, may be changed, and hold at once; `pace` from the
    next look on.
    """

    def __init__(self, between_bytes: float, first_byte: float, pace: Pace = _PACE) -> None:
        self.between_bytes, self.first_byte, self.pace = between_bytes, first_byte, pace
        self._changed = trio.Event()
        self._turn = Turn(selectors.DefaultSelector())
        self._pairs: set[Pair] = set()

    def set_deadlines(self, between_bytes: float, first_byte: float) -> None:
        """Look for silence by other deadlines; running connections included."""
        self.between_bytes, self.first_byte = between_bytes, first_byte
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Serve every connection until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_silent_ones)
            nursery.start_soon(self._end_slow_ones)
            nursery.start_soon(self._settle_ending_ones)
            # Only epoll and kqueue, the defaults of Linux and macOS, have a descriptor to wait on.
            descriptor = self._turn.selector.fileno()  # type: ignore[attr-defined]
            while True:
                await trio.lowlevel.wait_readable(descriptor)
                await self._move()

    @property
    def heard_at(self) -> float:
        """Return when a backend last sent anything, on trio's clock."""
        return self._turn.heard

    async def _move(self) -> None:
        started = self._turn.now = trio.current_time()
        for _ in range(_ROUNDS):
            ready = self._turn.selector.select(0)
            if not ready:
                return
            for key, events in ready:
                pair, is_peer = key.data
                # One that has finished meanwhile does nothing, and what is no longer ready is
                # found out by reading.
                pair.handle(events, is_peer)
                if trio.current_time() - started > _ROUNDS_SECONDS:
                    await trio.lowlevel.checkpoint()
                    started = self._turn.now = trio.current_time()

    async def _end_silent_ones(self) -> None:
        while True:
            # Woken by a change: a sixteenth of a deadline of a day would be 90 minutes.
            with trio.move_on_after(min(self.between_bytes, self.first_byte) / _SWEEPS):
                await self._changed.wait()
            now = trio.current_time()
            for pair in tuple(self._pairs):
                seconds = self.first_byte if pair.waits_for_answer else self.between_bytes
                if not pair.moves_on_its_way() and pair.moved <= now - seconds:
                    pair.give_up(seconds)

    async def _end_slow_ones(self) -> None:
        before = trio.current_time()
        while True:
            await trio.sleep(self.pace.look_seconds)
            now = trio.current_time()
            for pair in tuple(self._pairs):
                if isinstance(pair, Exchange):
                    pair.hold_to(self.pace, now - before)
            before = now

    async def _settle_ending_ones(self) -> None:
        spent = 0.0
        while True:
            if not self._turn.ending:
                self._turn.news = trio.Event()
                await self._turn.news.wait()
            # However many there are, a tenth of the time goes to them.
            await trio.sleep(max(_ARRIVAL_SECONDS, 10 * spent))
            started = self._turn.now = trio.current_time()
            ending, self._turn.ending = self._turn.ending, set()
            for pair in ending:
                pair.handle(0, is_peer=False)
            spent = trio.current_time() - started

    async def relay(self, peer: PeerStream, backend: socket.socket, traffic: Traffic) -> None:
        """Move bytes until both sides have ended, one breaks, or none moves for too long."""
        self._turn.now = trio.current_time()
        stream = Stream(self._turn, peer, backend, traffic)
        await self._serve(stream, stream.watch)

    async def exchange(
        self,
        peer: PeerStream,
        backend: socket.socket,
        gate: HttpGate,
        begin: tuple[bytes, bytes],
        traffic: Traffic,
    ) -> None:
        """Move one admitted request and its answer through `gate`, until the answer is given.

        `begin` is what goes first: to the backend, and to the peer. Raises the gate's verdicts,
        `PeerLeftError`, `SilenceError`, and `ExchangeBrokenError` when the backend breaks.
        """
        self._turn.now = trio.current_time()
        exchange = Exchange(self._turn, peer, backend, gate, traffic)
        await self._serve(exchange, lambda: exchange.begin(*begin))

    async def _serve(self, pair: Pair, begin: Callable[[], None]) -> None:
        self._pairs.add(pair)
        try:
            begin()
            await trio.lowlevel.wait_task_rescheduled(pair.abort)
        except trio.Cancelled:
            with trio.move_on_after(_CUT_SECONDS) as scope:
                scope.shield = True
                await pair.flush()
            pair.reset_backend()
            raise
        finally:
            # Before the caller closes the sockets: their numbers will be used again.
            pair.stop_watching()
            self._pairs.discard(pair)
