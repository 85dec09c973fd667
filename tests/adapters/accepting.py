"""A process that accepts with few descriptors; what it accepts it echoes.

`python -m tests.adapters.accepting`: prints the port, then its log as JSON lines on stderr.
"""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack

import trio

from sidecar.adapters.binding import bind, listen
from sidecar.adapters.listener import accept_forever
from sidecar.core.address import Address
from sidecar.logs import configure_logs

DESCRIPTORS = 40


async def echo(sock: socket.socket, _address: str) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def accept() -> None:
    sockets = bind([Address.parse("127.0.0.1:0")], ExitStack())
    print(listen(sockets)[0], flush=True)
    async with trio.open_nursery() as nursery:
        await accept_forever(sockets[0], echo, nursery)


if __name__ == "__main__":
    configure_logs("json", "info")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    trio.run(accept)
