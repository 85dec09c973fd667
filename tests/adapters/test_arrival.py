"""Whether sent bytes are at the other side, on Linux and by macOS' way; and the reset."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
import trio

from sidecar.adapters.relay.arrival import is_broken, reset_on_close, unacknowledged
from tests.adapters.deadlines import within
from tests.adapters.tls_ends import tcp_ends


def fill(sock: socket.socket) -> int:
    """Send until neither kernel takes more."""
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except BlockingIOError:
        return sent


@within(30)
async def test_bytes_count_until_the_other_kernel_has_them(closing: ExitStack) -> None:
    ours, other = tcp_ends(closing)
    sent = fill(ours)
    left = unacknowledged(ours)
    assert 0 < left < sent
    await other.receive_exactly(sent)
    while unacknowledged(ours):  # acknowledgements come by themselves
        await trio.sleep(0.001)


@within(30)
async def test_nothing_is_expected_of_a_broken_connection(closing: ExitStack) -> None:
    ours, other = tcp_ends(closing)
    fill(ours)
    other.reset()
    await trio.lowlevel.wait_readable(ours)
    assert is_broken(ours)
    assert unacknowledged(ours) == 0


def test_unix_socket_has_no_way_between_kernels() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        ours.setblocking(False)
        fill(ours)
        assert unacknowledged(ours) == 0


class _Mac(socket.socket):
    """As macOS counts: SO_NWRITE, which Linux does not have."""

    def getsockopt(self, level: int, option: int, *_more: int) -> int:  # type: ignore[override]
        assert (level, option) == (socket.SOL_SOCKET, 0x1024)
        return 4711


def test_macos_counts_by_a_socket_option(closing: ExitStack) -> None:
    ours, _other = tcp_ends(closing)
    with _Mac(fileno=ours.detach()) as mac:
        assert unacknowledged(mac, "darwin") == 4711


@pytest.mark.parametrize("reset", [True, False])
@within(30)
async def test_closing_sends_a_reset_where_it_was_asked_for(
    closing: ExitStack, reset: bool
) -> None:
    ours, other = tcp_ends(closing)
    ours.send(b"all")
    if reset:
        reset_on_close(ours)
    ours.close()
    assert await other.receive_exactly(3) == b"all"
    if reset:
        with pytest.raises(ConnectionResetError):
            await other.receive()
    else:
        assert await other.receive() == b""
