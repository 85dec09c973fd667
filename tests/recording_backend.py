"""A model server that keeps what reaches it: the raw bytes, and what h11 made of them.

Threads and blocking sockets, and a parser that the code under test does not use. Each complete
request gets a small JSON answer that says what it answers, so that an answer which came back to
the wrong request is seen; `style` is how it answers.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import h11

Style = Literal["plain", "chunked", "early", "late", "closing", "twice"]
_ROOM = 1 << 20  # bytes that h11 may hold before a head has to be complete


@dataclass(slots=True)
class Seen:
    """One request as it was read; without `complete` its end never came."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of a name in lower case."""
        return [value for field_name, value in self.headers if field_name.lower() == name]


class Reader:
    """h11 as a server that answers each request at once; gives its requests in their order."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.fault = ""  # why it reads no further
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_ROOM)

    def feed(self, data: bytes) -> Iterator[Seen]:
        """Read on; give a request when its head is there, and again when its end is."""
        if self.fault:
            return
        self._connection.receive_data(data)
        try:
            yield from self._events()
        except h11.RemoteProtocolError as exc:
            self.fault = str(exc)
        if self._connection.their_state is h11.MUST_CLOSE and self._connection.trailing_data[0]:
            self.fault = "bytes after the last request"

    def _events(self) -> Iterator[Seen]:
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.Request):
                headers = list(event.headers.raw_items())
                self.requests.append(Seen(event.method, event.target, headers))
                yield self.requests[-1]
            elif isinstance(event, h11.Data):
                self.requests[-1].body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.requests[-1].complete = True
                self._next_cycle()
                yield self.requests[-1]
            else:
                return

    def _next_cycle(self) -> None:
        self._connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        self._connection.send(h11.EndOfMessage())
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()


@dataclass(slots=True)
class Conversation:
    """One connection: its raw bytes, what h11 read in them, and whether it has ended."""

    origin: object
    raw: bytearray = field(default_factory=bytearray)
    reader: Reader = field(default_factory=Reader)
    ended: bool = False


class RecordingBackend:
    """Keeps every conversation, in the order in which the connections came."""

    def __init__(self, receive_buffer: int | None = None) -> None:
        self.style: Style = "plain"
        self.answer_now = threading.Event()  # what style "late" waits for
        self.conversations: list[Conversation] = []
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._place = self._listener.getsockname()
        self.address = f"127.0.0.1:{self._place[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening; conversations end when the other side ends them."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def take(self, seconds: float = 10) -> list[Conversation]:
        """Give what came since the last time, once every connection has ended.

        A connection of our own comes last: connections are accepted in their order, so when this
        one is there, all that were opened before it are.
        """
        with socket.create_connection(self._place, seconds) as last:
            own = last.getsockname()
            with self._changed:
                assert self._changed.wait_for(lambda: self._came(own), seconds)
        with self._changed:
            ended = self._changed.wait_for(
                lambda: all(one.ended for one in self.conversations), seconds
            )
            taken, self.conversations = self.conversations, []
        assert ended, f"still open: {[bytes(one.raw) for one in taken if not one.ended]}"
        return [one for one in taken if one.origin != own]

    def _came(self, origin: object) -> bool:
        return any(one.origin == origin for one in self.conversations)

    def _accept(self) -> None:
        while True:
            try:
                sock, origin = self._listener.accept()
            except OSError:
                return
            conversation = Conversation(origin)
            with self._changed:
                self.conversations.append(conversation)
                self._changed.notify_all()
            threading.Thread(target=self._serve, args=(sock, conversation), daemon=True).start()

    def _serve(self, sock: socket.socket, conversation: Conversation) -> None:
        with sock, suppress(OSError):  # a refused request's connection is often reset
            self._converse(sock, conversation)
        with self._changed:
            conversation.ended = True
            self._changed.notify_all()

    def _converse(self, sock: socket.socket, conversation: Conversation) -> None:
        while data := sock.recv(65536):
            conversation.raw += data
            for seen in conversation.reader.feed(data):
                if seen.complete != (self.style in ("early", "late")):
                    with suppress(OSError):  # whoever does not listen may still have spoken
                        self._answer(sock, seen)

    def _answer(self, sock: socket.socket, seen: Seen) -> None:
        if self.style == "late":
            self.answer_now.wait(10)
        sock.sendall(answer(seen, self.style))
        if self.style == "closing":
            sock.shutdown(socket.SHUT_WR)


def answer(seen: Seen, style: Style) -> bytes:
    """The answer to one request: JSON that says which."""
    told = {"method": seen.method.decode(), "target": seen.target.decode("latin-1")}
    body = json.dumps(told).encode()
    head = [b"HTTP/1.1 200 OK", b"Content-Type: application/json"]
    if style == "chunked":
        head.append(b"Transfer-Encoding: chunked")
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    else:
        head.append(b"Content-Length: %d" % len(body))
    if style == "closing":
        head.append(b"Connection: close")
    whole = b"\r\n".join(head) + b"\r\n\r\n" + (b"" if seen.method == b"HEAD" else body)
    return whole * 2 if style == "twice" else whole
