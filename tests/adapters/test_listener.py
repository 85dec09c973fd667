"""The listening sockets: what cannot be bound says why, what is accepted is handed over."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from sidecar.adapters.binding import bind, listen
from sidecar.adapters.listener import accept_forever, keepalive_option
from sidecar.core.address import Address
from sidecar.core.errors import ListenError
from tests.adapters.accepting import DESCRIPTORS
from tests.adapters.deadlines import within

LOOPBACK = Address.parse("127.0.0.1:0")


def bind_all(closing: ExitStack, *texts: str) -> list[socket.socket]:
    return bind([Address.parse(text) for text in texts], closing)


@pytest.fixture
def taken(closing: ExitStack) -> Callable[[str], int]:
    """A port on which somebody listens."""

    def take(host: str = "127.0.0.1") -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        other = closing.enter_context(socket.create_server((host, 0), family=family))
        return int(other.getsockname()[1])

    return take


# Binding.


def test_port_in_use_is_told_with_a_hint(taken: Callable[[], int]) -> None:
    port = taken()
    with pytest.raises(ListenError, match=f"127.0.0.1:{port}: Address already in use") as caught:
        bind([Address.parse(f"127.0.0.1:{port}")], ExitStack())
    assert "another process has the port" in (caught.value.hint or "")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS lets the more special address win")
def test_port_that_another_has_on_one_address_is_not_ours_on_all(
    taken: Callable[[], int],
) -> None:
    with pytest.raises(ListenError, match="already in use"):
        bind([Address.parse(f"0.0.0.0:{taken()}")], ExitStack())


def test_address_of_another_host_is_told_with_a_hint() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:6701") as caught:
        bind([Address.parse("192.0.2.1:6701")], ExitStack())
    assert "no interface" in (caught.value.hint or "")


def test_low_port_without_privileges_is_told_with_a_hint() -> None:
    become = "os.setgid(65534); os.setuid(65534)" if os.geteuid() == 0 else ""
    code = f"""
import os
from contextlib import ExitStack
from sidecar.adapters.binding import bind
from sidecar.core.address import Address
from sidecar.core.errors import ListenError
{become}
try:
    bind([Address.parse("127.0.0.1:1")], ExitStack())
except ListenError as exc:
    print(exc.message, exc.hint)
else:
    print("bound")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    if done.stdout == "bound\n":
        pytest.skip("this system lets everybody have low ports")
    assert "cannot listen on 127.0.0.1:1: Permission denied" in done.stdout
    assert "below 1024" in done.stdout


def test_all_addresses_are_bound_or_none(closing: ExitStack, taken: Callable[[], int]) -> None:
    free = bind_all(closing, "127.0.0.1:0")[0]
    port = free.getsockname()[1]
    free.close()
    good, bad = f"127.0.0.1:{port}", f"127.0.0.1:{taken()}"
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(ListenError):
        bind([Address.parse(good), Address.parse(bad)], ExitStack())
    assert len(os.listdir("/dev/fd")) == before
    bind_all(closing, good)


def test_port_that_another_took_between_binding_and_listening_is_told(
    closing: ExitStack,
) -> None:
    """Two daemons may both bind, as long as neither listens; the second to listen has lost."""
    first = bind_all(closing, "127.0.0.1:0")
    port = first[0].getsockname()[1]
    try:
        second = bind_all(closing, f"127.0.0.1:{port}")
    except ListenError:
        return  # a system on which it shows at once
    assert listen(first) == [f"127.0.0.1:{port}"]
    with pytest.raises(ListenError, match=f"127.0.0.1:{port}: Address already in use") as caught:
        listen(second)
    assert "another process has the port" in (caught.value.hint or "")


def test_port_of_a_connection_that_lingers_can_be_bound_again(closing: ExitStack) -> None:
    """After a restart, connections of the daemon before are in TIME_WAIT."""
    sock = bind_all(closing, "127.0.0.1:0")[0]
    listen([sock])
    with socket.create_connection(sock.getsockname()) as peer:
        sock.setblocking(True)
        accepted, _ = sock.accept()
        accepted.close()  # we close first, so the port lingers on our side
        assert peer.recv(1) == b""
    port = sock.getsockname()[1]
    sock.close()
    again = bind_all(closing, f"127.0.0.1:{port}")
    assert listen(again) == [f"127.0.0.1:{port}"]


def test_nobody_is_kept_waiting_before_we_listen(closing: ExitStack) -> None:
    sock = bind_all(closing, "127.0.0.1:0")[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname(), 5)
    listen([sock])
    socket.create_connection(sock.getsockname(), 5).close()


def test_port_0_gives_the_port_that_was_chosen(closing: ExitStack) -> None:
    sockets = bind_all(closing, "127.0.0.1:0", "127.0.0.1:0")
    addresses = listen(sockets)
    assert len(set(addresses)) == 2
    for address in addresses:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), 5).close()


needs_ipv6 = pytest.mark.skipif(
    not os.path.exists("/proc/net/if_inet6") and sys.platform == "linux", reason="no IPv6 here"
)


@needs_ipv6
def test_ipv6_address_is_shown_in_brackets(closing: ExitStack) -> None:
    sock = bind_all(closing, "[::1]:0")[0]
    port = sock.getsockname()[1]
    assert listen([sock]) == [f"[::1]:{port}"]
    socket.create_connection(("::1", port), 5).close()


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@needs_ipv6
def test_all_of_ipv6_alone_is_all_of_ipv4_as_well(closing: ExitStack) -> None:
    sock = bind_all(closing, "[::]:0")[0]
    port = sock.getsockname()[1]
    assert listen([sock]) == [f"[::]:{port}", f"0.0.0.0:{port}"]
    assert answers("127.0.0.1", port)
    assert answers("::1", port)


@needs_ipv6
@pytest.mark.parametrize("order", [1, -1], ids=["IPv4 first", "IPv6 first"])
@pytest.mark.parametrize("ipv4", ["0.0.0.0", "127.0.0.1", "127.0.0.2"])
def test_ipv4_address_beside_all_of_ipv6_is_the_only_one(
    closing: ExitStack, ipv4: str, order: int
) -> None:
    with ExitStack() as before:
        port = bind_all(before, "[::]:0")[0].getsockname()[1]
    texts = [f"{ipv4}:{port}", f"[::]:{port}"][::order]
    assert listen(bind_all(closing, *texts)) == texts
    assert answers("::1", port)
    assert answers("127.0.0.1", port) is (ipv4 != "127.0.0.2")


@needs_ipv6
def test_ipv4_on_another_port_takes_nothing_from_ipv6(closing: ExitStack) -> None:
    sockets = bind_all(closing, "127.0.0.1:0", "[::]:0")
    assert len(listen(sockets)) == 3
    assert answers("127.0.0.1", sockets[1].getsockname()[1])


@needs_ipv6
def test_one_ipv6_address_is_that_one_alone(closing: ExitStack) -> None:
    sock = bind_all(closing, "[::1]:0")[0]
    listen([sock])
    assert not answers("127.0.0.1", sock.getsockname()[1])


@needs_ipv6
def test_ipv4_address_that_is_written_as_ipv6_is_listened_on(closing: ExitStack) -> None:
    sock = bind_all(closing, "[::ffff:127.0.0.1]:0")[0]
    port = sock.getsockname()[1]
    assert listen([sock]) == [f"127.0.0.1:{port}"]
    assert answers("127.0.0.1", port)


@needs_ipv6
def test_ipv6_port_in_use_is_told(taken: Callable[[str], int]) -> None:
    port = taken("::1")
    with pytest.raises(ListenError, match=rf"\[::1\]:{port}: Address already in use"):
        bind([Address.parse(f"[::1]:{port}")], ExitStack())


# Accepting.


class Doorway:
    """Accepts in the background; `met` holds what the handler was called with."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.met: list[tuple[socket.socket, str]] = []
        self.changed = trio.Condition()
        self.accepting = trio.CancelScope()

    async def run(self, nursery: trio.Nursery) -> None:
        with self.accepting:
            await accept_forever(self.sock, self.handle, nursery)

    async def handle(self, sock: socket.socket, address: str) -> None:
        with sock:
            async with self.changed:
                self.met.append((sock, address))
                self.changed.notify_all()
            await trio.sleep_forever()

    async def wait_for(self, count: int) -> None:
        async with self.changed:
            while len(self.met) < count:
                await self.changed.wait()


@pytest.fixture
def doorway(closing: ExitStack, nursery: trio.Nursery) -> Doorway:
    sock = bind_all(closing, "127.0.0.1:0")[0]
    listen([sock])
    doorway = Doorway(sock)
    nursery.start_soon(doorway.run, nursery)
    return doorway


@within(20)
async def test_accepted_socket_is_ready_for_use(doorway: Doorway) -> None:
    with socket.create_connection(doorway.sock.getsockname()) as peer:
        await doorway.wait_for(1)
        sock, address = doorway.met[0]
        assert address == "{}:{}".format(*peer.getsockname())
        assert sock.getblocking() is False
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        option = keepalive_option(socket)
        assert option is not None
        assert sock.getsockopt(socket.IPPROTO_TCP, option) == 60


@within(20)
async def test_connections_outlive_the_accepting(doorway: Doorway) -> None:
    with socket.create_connection(doorway.sock.getsockname()) as peer:
        await doorway.wait_for(1)
        doorway.accepting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        sock = doorway.met[0][0]
        peer.sendall(b"hello")
        await trio.lowlevel.wait_readable(sock)
        assert sock.recv(5) == b"hello"


@within(20)
async def test_peers_that_left_before_they_were_accepted_do_not_matter(doorway: Doorway) -> None:
    # No await in here: all of them come and go before anything is accepted.
    for number in range(20):
        peer = socket.create_connection(doorway.sock.getsockname())
        if number % 2:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
    with socket.create_connection(doorway.sock.getsockname()) as peer:
        mine = "{}:{}".format(*peer.getsockname())
        while mine not in [address for _, address in doorway.met]:
            await doorway.wait_for(len(doorway.met) + 1)


@within(20)
async def test_socket_that_takes_no_options_costs_one_connection_and_not_the_listener(
    closing: ExitStack, folder: Path
) -> None:
    """macOS refuses options of a socket whose peer has already gone (EINVAL).

    Linux does not, so a Unix socket stands in here: it refuses the options of TCP.
    """
    sock = closing.enter_context(socket.socket(socket.AF_UNIX))
    sock.setblocking(False)
    sock.bind(str(folder / "door"))
    sock.listen()
    doorway, fault = Doorway(sock), ""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(doorway.run, nursery)
            for _ in range(3):
                peer = closing.enter_context(socket.socket(socket.AF_UNIX))
                peer.connect(str(folder / "door"))
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        fault = str(group.exceptions)
    gc.collect()  # an accepted socket that was lost shows here and not in another test
    assert fault == ""


def test_accepting_goes_on_after_the_descriptors_ran_out() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.adapters.accepting"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        host, _, port = process.stdout.readline().rpartition(":")
        address = (host, int(port))
        with ExitStack() as crowd:
            peers = [
                crowd.enter_context(socket.create_connection(address, 10))
                for _ in range(DESCRIPTORS + 10)
            ]
            said = json.loads(process.stderr.readline())
            assert said["event"] == "cannot accept"
            assert said["level"] == "error"
            assert said["reason"] == "Too many open files"
            # Those who are in are served all the same.
            peers[0].sendall(b"hello")
            assert peers[0].recv(5) == b"hello"
        with socket.create_connection(address, 10) as late:
            late.sendall(b"hello")
            assert late.recv(5) == b"hello"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


# The option that Linux and macOS name differently.


def test_linux_and_macos_are_both_asked_for_keepalive_after_a_minute() -> None:
    assert keepalive_option(SimpleNamespace(TCP_KEEPIDLE=4, TCP_KEEPINTVL=5)) == 4
    assert keepalive_option(SimpleNamespace(TCP_KEEPALIVE=16)) == 16
    # macOS with a newer Python knows both names; either will do, but one it must be.
    assert keepalive_option(SimpleNamespace(TCP_KEEPALIVE=16, TCP_KEEPIDLE=16)) == 16
    assert keepalive_option(SimpleNamespace()) is None
