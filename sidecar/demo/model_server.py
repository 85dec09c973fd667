"""A small model server: one canned answer, streamed word by word over SSE.

For the demonstration only. Speaks HTTP/1.1 in plain text on loopback, as Ollama and vLLM do, and
counts the requests that reach it. Its version says whom it was told to be talking to. Each event
carries the time it was sent (seconds on the monotonic clock of this host), from which the client
takes the latency.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import h11
import trio

ANSWER = """\
Nobody wrote a password for this conversation. The agent beside me vouched for this process, and
what it got is an identity that lives for seconds: a name, a certificate and a key that never
leaves memory unless somebody asks for files. You showed a certificate of your own, the sidecar
looked for your name in its policy, found it, and only then opened a connection to me. I listen on
loopback, in plain text, and know nothing of all this. While you read, the certificate that
opened this connection has already been replaced, more than once. You did not notice, because a
running answer keeps the connection it began on; whoever connects next meets the newest
certificate. Those who are not named are turned away before I hear of them: the one from our own
trust domain whom no rule mentions, the one whose authority we do not know although the name on
the badge is right, and the one who brought no certificate at all. When the agent falls silent we
go on until the certificate expires, and then we stop, because no identity means no service. That
is the whole idea, and it is a small one. Thank you for listening to the end of it."""


class ModelServer:
    """Serves connections of one listener; `requests` counts what reached it."""

    def __init__(self, seconds_per_token: float) -> None:
        self.tokens = ANSWER.split()
        self.requests = 0
        self._seconds_per_token = seconds_per_token

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection until it ends."""
        async with stream:
            connection = h11.Connection(h11.SERVER)
            try:
                while await self._one_request(stream, connection):
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, h11.ProtocolError):
                return  # the peer left, which a model server meets every day

    async def _one_request(self, stream: trio.SocketStream, connection: h11.Connection) -> bool:
        request = None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                return False
        assert request is not None
        self.requests += 1
        await self._respond(stream, connection, request)
        return connection.our_state is h11.DONE

    async def _respond(
        self, stream: trio.SocketStream, connection: h11.Connection, request: h11.Request
    ) -> None:
        streamed = request.target == b"/v1/chat/completions"
        kind = b"text/event-stream" if streamed else b"application/json"
        head = h11.Response(status_code=200, headers=[(b"content-type", kind)])
        await stream.send_all(connection.send(head) or b"")
        if streamed:
            async for event in self._events():
                await stream.send_all(connection.send(h11.Data(data=event)) or b"")
        else:
            names = (b"x-spiffe-id", b"x_spiffe_id")
            told = [value.decode() for name, value in request.headers if name in names]
            body = json.dumps({"version": "demo", "told": told}).encode()
            await stream.send_all(connection.send(h11.Data(data=body)) or b"")
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")

    async def _events(self) -> AsyncIterator[bytes]:
        due = trio.current_time()
        for number, token in enumerate(self.tokens):
            choice = {"index": 0, "delta": {"content": token + " "}}
            body = {"choices": [choice], "number": number, "sent": time.monotonic()}
            yield b"data: " + json.dumps(body).encode() + b"\n\n"
            due += self._seconds_per_token
            await trio.sleep_until(due)
        yield b"data: [DONE]\n\n"
