"""A model server that does what a test says, and tells what came of it.

Threads and blocking sockets, and h11, which the code under test does not use. Each request
becomes a `Call`. By default it is told back what it looked like; `routes` gives a path another
answer, and below `/held/` nothing is answered: there the test has the word, through `next_call`.
"""

from __future__ import annotations

import hashlib
import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h11

BLOCK = hashlib.sha256(b"block").digest() * 2048  # 64 KiB
HELD = "/held/"
_RESET = struct.pack("ii", 1, 0)
_SECONDS = 20


class Call:
    """One request, and the say over its answer."""

    def __init__(
        self, sock: socket.socket, parser: h11.Connection, head: h11.Request, connection: int
    ) -> None:
        self.sock, self._parser = sock, parser
        self.connection = connection  # 1 for the first that was opened
        self.method, self.target = head.method.decode(), head.target.decode()
        self.headers = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
        self.received = 0  # bytes of the body
        self.complete = False
        self.is_over = False  # nothing more is read or sent on this connection
        self.released = threading.Event()

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for field, value in self.headers if field == name]

    # Reading.

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, to its end."""
        if self._parser.they_are_waiting_for_100_continue:
            self._sendall(self._parser.send(h11.InformationalResponse(status_code=100, headers=[])))
        while not self.complete:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                self._parser.receive_data(self.sock.recv(65536))
            elif isinstance(event, h11.Data):
                self.received += len(event.data)
                yield bytes(event.data)
            else:
                self.complete = True

    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces())

    def read_body(self, count: int) -> bytes:
        """The next bytes of the body; fewer than `count` when it ends."""
        data = b""
        for piece in self.pieces():
            data += piece
            if len(data) >= count:
                break
        return data

    def wait_gone(self, seconds: float = _SECONDS) -> str:
        """Wait until the connection is gone, whatever else comes; "end" or the error's name."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            raise AssertionError(f"still there after {seconds} s") from None
        except OSError as exc:
            return type(exc).__name__
        return "end"

    # Answering.

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._sendall(data)

    def answer(self, status: int = 200, body: bytes = b"", *headers: str) -> None:
        """A whole answer with its length."""
        self.head(status, f"Content-Length: {len(body)}", *headers)
        self._sendall(body)

    def head(self, status: int, *headers: str) -> None:
        """The head of an answer."""
        lines = [f"HTTP/1.1 {status} As-The-Test-Says", *headers]
        self._sendall("\r\n".join(lines).encode() + b"\r\n\r\n")

    def begin_stream(self) -> None:
        """The head of a stream of events."""
        self.head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked")

    def event(self, data: str) -> None:
        """One event of a stream, as one chunk."""
        payload = f"data: {data}\n\n".encode()
        self._sendall(b"%x\r\n%b\r\n" % (len(payload), payload))

    def end_stream(self) -> None:
        """The end of a stream."""
        self._sendall(b"0\r\n\r\n")

    def push(self, size: int) -> int | None:
        """Send `size` bytes of blocks; gives where there was no room for a second, if ever."""
        stalled_at = None
        for pushed in range(0, size, len(BLOCK)):
            if stalled_at is None and not select.select([], [self.sock], [], 1.0)[1]:
                stalled_at = pushed
            self._sendall(BLOCK)
        return stalled_at

    # Ending.

    def release(self) -> None:
        """Go on with the next request of this connection."""
        self.released.set()

    def close(self) -> None:
        """End both directions, as a server does that is done."""
        self.is_over = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.released.set()

    def reset(self) -> None:
        """Drop the connection with a reset."""
        self.is_over = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()
        self.released.set()

    def _sendall(self, data: bytes | None) -> None:
        self.sock.sendall(data or b"")


Handler = Callable[[Call], None]


def tell(call: Call) -> None:
    """Answer with what the request looked like."""
    digest = hashlib.sha256()
    for piece in call.pieces():
        digest.update(piece)
    told = {
        "method": call.method,
        "target": call.target,
        "headers": call.headers,
        "received": call.received,
        "sha256": digest.hexdigest(),
    }
    call.head(200, f"Content-Length: {len(json.dumps(told))}", "Content-Type: application/json")
    if call.method != "HEAD":
        call.send(json.dumps(told).encode())


def _hold(call: Call) -> None:
    call.released.wait(60)


class HttpBackend:
    """The model server; a context manager."""

    def __init__(self, unix_path: Path | None = None) -> None:
        if unix_path is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(unix_path))
            self._listener.listen(128)
            self.address = f"unix:{unix_path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.routes: dict[str, Handler] = {HELD: _hold}
        self.changed = threading.Condition()
        self.calls: list[Call] = []
        self.connections = 0
        self._taken = 0
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> HttpBackend:
        return self

    def __exit__(self, *_fault: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and drop every connection."""
        with suppress(OSError):  # macOS refuses shutdown of a listening socket
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.changed:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for call in self.calls:
                call.released.set()

    def next_call(self, seconds: float = _SECONDS) -> Call:
        """Wait for the next request that the test has not seen yet."""
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.calls) > self._taken, seconds)
            assert came, f"no request within {seconds} s"
            self._taken += 1
            return self.calls[self._taken - 1]

    def forget(self) -> None:
        """Count what came so far as seen."""
        with self.changed:
            self._taken = len(self.calls)

    def untaken(self) -> list[str]:
        """Method and target of every request that the test has not seen yet."""
        with self.changed:
            return [f"{call.method} {call.target}" for call in self.calls[self._taken :]]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self.changed:
            self.connections += 1
            number = self.connections
            self._sockets.add(sock)
        try:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError, h11.RemoteProtocolError):  # many tests are about their being cut
                self._converse(sock, number)
        finally:
            with self.changed:
                self._sockets.discard(sock)
            sock.close()

    def _converse(self, sock: socket.socket, number: int) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while (head := _next_head(sock, parser)) is not None:
            call = Call(sock, parser, head, number)
            with self.changed:
                self.calls.append(call)
                self.changed.notify_all()
            self._handler(call.path)(call)
            if call.is_over:
                return
            call.body()
            parser.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            parser.send(h11.EndOfMessage())
            parser.start_next_cycle()

    def _handler(self, path: str) -> Handler:
        fitting = [route for route in self.routes if path.startswith(route)]
        return self.routes[max(fitting, key=len)] if fitting else tell


def _next_head(sock: socket.socket, parser: h11.Connection) -> h11.Request | None:
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        parser.receive_data(sock.recv(65536))
