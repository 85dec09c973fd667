"""Load: streams that must not lose a byte, and a stream of new connections beside them.

Threads and the standard library's TLS. Both stop at the first fault and keep it: whoever uses
them as a context gets it raised at the end.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from tests.client import receive_exactly, server_serial
from tests.scenarios.peer import dial

CHUNK_BYTES = 8192


class EchoLoad:
    """`count` connections that send, receive and compare until the end of the `with` block."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, count: int) -> None:
        self.echoed = 0  # bytes that came back as they were sent
        self.finished = 0  # connections that lived from the first byte to an announced end
        self.slowest = 0.0  # seconds that the slowest chunk took to come back
        self.faults: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._begun = threading.Barrier(count + 1)
        self._address, self._context = address, context
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(count)]

    def __enter__(self) -> EchoLoad:
        for thread in self._threads:
            thread.start()
        self._begun.wait(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if fault is None and self.faults:
            raise self.faults[0]

    def _run(self, number: int) -> None:
        try:
            with dial(self._address, self._context) as tls:
                self._talk(tls, number)
        except BaseException as exc:
            self.faults.append(exc)
            self._begun.abort()

    def _talk(self, tls: ssl.SSLSocket, number: int) -> None:
        chunk = hashlib.sha256(b"%d" % number).digest() * (CHUNK_BYTES // 32)
        self._exchange(tls, chunk)
        self._begun.wait(60)
        while not self._stop.is_set():
            self._exchange(tls, chunk)
            chunk = hashlib.sha256(chunk).digest() * (CHUNK_BYTES // 32)
        tls.unwrap()  # raises unless the daemon announces its end too, with no byte before it
        with self._lock:
            self.finished += 1

    def _exchange(self, tls: ssl.SSLSocket, chunk: bytes) -> None:
        begun = time.monotonic()
        tls.sendall(chunk)
        assert receive_exactly(tls, len(chunk)) == chunk
        with self._lock:
            self.echoed += len(chunk)
            self.slowest = max(self.slowest, time.monotonic() - begun)


@dataclass(frozen=True)
class Arrival:
    """One new connection: when it began, and the serial that the daemon presented."""

    began: float
    serial: str


class Arrivals:
    """One new connection after the other until the end of the `with` block."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.seen: list[Arrival] = []
        self._address, self._context = address, context
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(60)
        if fault is None and self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                with dial(self._address, self._context) as tls:
                    serial = server_serial(tls)
                    tls.sendall(b"new")
                    assert receive_exactly(tls, 3) == b"new"
                self.seen.append(Arrival(began, serial))
        except BaseException as exc:
            self._fault = exc
