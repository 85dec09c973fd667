"""The network as a probe meets it: names, addresses, each way not to connect, plain words."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.adapters.probing import (
    ConnectError,
    Place,
    UnknownNameError,
    connect,
    knock,
    own_end,
    plain_words,
    resolve,
)
from sidecar.core.address import Address
from sidecar.core.probe.faults import ConnectEnd
from tests.adapters.deadlines import within
from tests.probe_peers import OddServer, hang_up, plain_http, says

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a full queue refuses instead of letting wait"
)


def local(port: int) -> Place:
    return Place(socket.AF_INET, ("127.0.0.1", port))


async def end_of(place: Place, seconds: float = 10) -> ConnectEnd:
    with pytest.raises(ConnectError) as caught:
        await connect(place, seconds)
    assert caught.value.reason
    return caught.value.end


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@within(20)
async def test_address_is_not_looked_up() -> None:
    assert [str(one) for one in await resolve("192.0.2.1", 6701)] == ["192.0.2.1:6701"]
    assert [str(one) for one in await resolve("2001:db8::1", 6701)] == ["[2001:db8::1]:6701"]


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("192.0.2.1", False), ("fe80::1%lo0", False)],
)
def test_loopback_is_known(host: str, is_loopback: bool) -> None:
    assert Place(socket.AF_INET6, (host, 6701)).is_loopback is is_loopback
    assert Place(socket.AF_UNIX, "/agent.sock").is_loopback


@within(20)
async def test_name_has_its_addresses_once_each() -> None:
    places = await resolve("localhost", 6701)
    assert len(set(places)) == len(places)
    assert {str(one) for one in places} <= {"127.0.0.1:6701", "[::1]:6701"}


@within(20)
async def test_name_that_no_resolver_takes_is_told() -> None:
    with pytest.raises(UnknownNameError):  # a label has 63 characters at most; nobody is asked
        await resolve("a" * 64 + ".example", 6701)


@within(20)
async def test_connection_is_open_and_does_not_block(closing: ExitStack) -> None:
    listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    sock = closing.enter_context(await connect(local(listener.getsockname()[1]), 10))
    accepted, peer = listener.accept()
    closing.enter_context(accepted)
    assert not sock.getblocking()
    assert own_end(sock) == f"127.0.0.1:{peer[1]}"


@within(20)
async def test_port_where_nobody_listens_refuses() -> None:
    assert await end_of(local(closed_port())) is ConnectEnd.REFUSED


@linux_only
@within(20)
async def test_address_that_does_not_answer_is_waited_for_no_longer_than_the_deadline(
    closing: ExitStack,
) -> None:
    server = closing.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
    for _ in range(8):
        sock = closing.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
    assert await end_of(local(server.getsockname()[1]), 0.2) is ConnectEnd.TIMEOUT


@pytest.mark.parametrize(
    ("number", "end"),
    [
        (errno.ECONNREFUSED, ConnectEnd.REFUSED),
        (errno.ETIMEDOUT, ConnectEnd.TIMEOUT),
        (errno.ENETUNREACH, ConnectEnd.NO_ROUTE),
        (errno.EHOSTUNREACH, ConnectEnd.NO_ROUTE),
        (errno.EADDRNOTAVAIL, ConnectEnd.NO_ROUTE),
        (errno.EPERM, ConnectEnd.NOT_PERMITTED),
        (errno.EACCES, ConnectEnd.NOT_PERMITTED),
        (errno.ECONNRESET, ConnectEnd.RESET),
        (errno.EMFILE, ConnectEnd.OTHER),
    ],
)
def test_what_the_system_says_is_one_of_few_ends(number: int, end: ConnectEnd) -> None:
    error = ConnectError.of(OSError(number, os.strerror(number)))
    assert (error.end, error.reason) == (end, os.strerror(number).lower())
    assert ConnectError.of(OSError("no number")).end is ConnectEnd.OTHER


@within(20)
async def test_knock_tells_why_nobody_is_at_a_socket(folder: Path, closing: ExitStack) -> None:
    path = folder / "agent.sock"
    address = Address.parse(f"unix:{path}")
    absent = await knock(address, 5)
    assert absent is not None
    assert absent.end is ConnectEnd.REFUSED
    listener = closing.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    left_over = await knock(address, 5)
    assert left_over is not None
    assert left_over.reason != absent.reason
    listener.listen()
    assert await knock(address, 5) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any socket")
@within(20)
async def test_knock_tells_that_a_socket_is_not_for_us(folder: Path, closing: ExitStack) -> None:
    listener = closing.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(folder / "agent.sock"))
    listener.listen()
    (folder / "agent.sock").chmod(0)
    failed = await knock(Address.parse(f"unix:{folder}/agent.sock"), 5)
    assert failed is not None
    assert failed.end is ConnectEnd.NOT_PERMITTED


@within(20)
async def test_plain_server_is_heard(closing: ExitStack) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    server = closing.enter_context(OddServer(plain_http(answer)))
    assert await plain_words(local(server.port), "models:6701", 3) == answer


@within(20)
async def test_flood_of_words_is_cut(closing: ExitStack) -> None:
    server = closing.enter_context(OddServer(says(b"x" * 1_000_000)))
    assert 0 < len(await plain_words(local(server.port), "models:6701", 3)) <= 8192


@within(20)
async def test_server_that_hangs_up_and_one_that_is_gone_have_said_nothing(
    closing: ExitStack,
) -> None:
    server = closing.enter_context(OddServer(hang_up))
    assert await plain_words(local(server.port), "models:6701", 3) == b""
    assert await plain_words(local(closed_port()), "models:6701", 3) == b""
