"""The model server: connected within the deadline, or a reason that a person can act on."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from sidecar.adapters.backend import begin, connect, finish
from sidecar.core.address import Address
from sidecar.core.errors import BackendError
from tests.adapters.deadlines import within
from tests.fake_backend import EchoBackend


async def echoed(sock: socket.socket) -> bytes:
    """Use a socket as the relay does: without blocking."""
    assert sock.getblocking() is False
    assert sock.send(b"hello") == 5
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(5)


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@within(20)
async def test_tcp_backend_is_connected(backend: EchoBackend) -> None:
    with await connect(Address.parse(backend.address), 10) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert await echoed(sock) == b"hello"


@within(20)
async def test_backend_that_speaks_and_resets_at_once_was_reached(closing: ExitStack) -> None:
    server = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = Address.parse(f"127.0.0.1:{server.getsockname()[1]}")
    sock, _ = begin(address)
    with sock:
        accepted, _peer = server.accept()
        accepted.sendall(b"hello")
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
        # As where the reset comes before it is looked whether connecting has worked.
        await finish(sock, errno.EINPROGRESS, address, 10)
        assert sock.recv(10) == b"hello"
        with pytest.raises(ConnectionResetError):
            sock.recv(10)


@within(20)
async def test_ipv6_backend_is_connected(closing: ExitStack) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = closing.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    with await connect(Address.parse(f"[::1]:{server.getsockname()[1]}"), 10) as sock:
        accepted = closing.enter_context(server.accept()[0])
        assert accepted.getpeername() == sock.getsockname()


@within(20)
async def test_unix_backend_is_connected(folder: Path) -> None:
    server = EchoBackend(folder / "backend.sock")
    try:
        with await connect(Address.parse(server.address), 10) as sock:
            assert sock.family == socket.AF_UNIX
            assert await echoed(sock) == b"hello"
    finally:
        server.close()


async def failure(address: str, seconds: float = 10) -> BackendError:
    """Fail to connect, and leave no descriptor behind."""
    before = descriptors()
    with pytest.raises(BackendError) as caught:
        await connect(Address.parse(address), seconds)
    assert descriptors() == before
    assert address in caught.value.message
    return caught.value


@within(20)
async def test_refused_connection_is_told_with_a_hint(closing: ExitStack) -> None:
    bound = closing.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
    error = await failure(f"127.0.0.1:{bound.getsockname()[1]}")
    assert "Connection refused" in error.message
    assert "is the model server running" in (error.hint or "")


@within(20)
async def test_absent_unix_socket_is_told(folder: Path) -> None:
    error = await failure(f"unix:{folder}/absent.sock")
    assert "No such file or directory" in error.message


@within(20)
async def test_unix_socket_that_nobody_serves_any_more_is_told(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folder / "gone.sock"))
    error = await failure(f"unix:{folder}/gone.sock")
    assert "Connection refused" in error.message


@within(20)
async def test_file_that_is_no_socket_is_told(folder: Path) -> None:
    (folder / "file").write_bytes(b"")
    error = await failure(f"unix:{folder}/file")
    assert "cannot be reached" in error.message


@within(20)
async def test_unix_path_that_is_too_long_is_told(folder: Path) -> None:
    error = await failure(f"unix:{folder}/{'x' * 200}")
    assert "cannot be reached" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to anything")
@within(20)
async def test_unix_socket_without_permission_is_told(folder: Path) -> None:
    server = EchoBackend(folder / "backend.sock")
    (folder / "backend.sock").chmod(0)
    try:
        error = await failure(server.address)
    finally:
        server.close()
    assert "Permission denied" in error.message


linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a full queue refuses instead of letting wait"
)


def full_unix_backlog(closing: ExitStack, path: Path) -> socket.socket:
    """A server that does not accept, and as many in its queue as fit."""
    server = closing.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(str(path))
    server.listen(1)
    while True:
        sock = closing.enter_context(socket.socket(socket.AF_UNIX))
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except OSError:
            return server


@linux_only
@within(20)
async def test_full_unix_backlog_is_waited_for(closing: ExitStack, folder: Path) -> None:
    server = full_unix_backlog(closing, folder / "busy.sock")
    connected: list[socket.socket] = []

    async def dial() -> None:
        sock = await connect(Address.parse(f"unix:{folder}/busy.sock"), 15)
        connected.append(closing.enter_context(sock))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert connected == []
        closing.enter_context(server.accept()[0])
    assert connected[0].getpeername() == str(folder / "busy.sock")


@linux_only
@within(20)
async def test_full_unix_backlog_is_waited_for_no_longer_than_the_deadline(
    closing: ExitStack, folder: Path
) -> None:
    full_unix_backlog(closing, folder / "busy.sock")
    error = await failure(f"unix:{folder}/busy.sock", 0.1)
    assert "did not answer within 0.1 s" in error.message


@linux_only
@within(20)
async def test_tcp_backend_that_does_not_answer_is_waited_for_no_longer_than_the_deadline(
    closing: ExitStack,
) -> None:
    server = closing.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    waiting = []
    for _ in range(8):  # one more than the queue holds is not answered any more
        sock = closing.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
        waiting.append(sock)
    error = await failure(address, 0.2)
    assert error.message == f"backend {address} did not answer within 0.2 s"


@linux_only
@within(20)
async def test_cancelled_connect_leaves_no_descriptor(closing: ExitStack, folder: Path) -> None:
    full_unix_backlog(closing, folder / "busy.sock")
    before = descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect, Address.parse(f"unix:{folder}/busy.sock"), 15)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert descriptors() == before + 1
        nursery.cancel_scope.cancel()
    assert descriptors() == before


def test_backend_on_loopback_is_reached_without_waiting(closing: ExitStack) -> None:
    listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = Address.parse(f"127.0.0.1:{listener.getsockname()[1]}")
    sock, code = begin(address)
    closing.enter_context(sock)
    assert code == (0 if sys.platform == "linux" else code)
