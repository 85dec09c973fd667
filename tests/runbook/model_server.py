"""`python -m tests.runbook.model_server GO`: the demonstration's model server, at Ollama's port.

It stops after the first token of an answer until there is a file GO, and prints each request. So a
client that has a token before that file is there has not waited for the whole answer.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import h11
import trio

from sidecar.demo.model_server import ModelServer

ADDRESS = "127.0.0.1:11434"
GO = "/run/go-on"


class HeldModelServer(ModelServer):
    """Streams when it is told to."""

    def __init__(self, go: Path) -> None:
        super().__init__(seconds_per_token=0)
        self._go = go

    async def _respond(
        self, stream: trio.SocketStream, connection: h11.Connection, request: h11.Request
    ) -> None:
        print(request.method.decode(), request.target.decode(), flush=True)
        await super()._respond(stream, connection, request)

    async def _events(self) -> AsyncIterator[bytes]:
        first = True
        async for event in super()._events():
            yield event
            while first and not self._go.exists():
                await trio.sleep(0.01)
            first = False


async def main() -> None:
    host, _, port = ADDRESS.rpartition(":")
    await trio.serve_tcp(HeldModelServer(Path(sys.argv[1])).serve, int(port), host=host)


if __name__ == "__main__":
    trio.run(main)
