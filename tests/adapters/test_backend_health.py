"""Whether the model server answers: the truth, asked for no more often than it is needed."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sidecar.adapters.backend_health import BackendHealth, HealthPath
from sidecar.core.address import Address
from tests.adapters.deadlines import within

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NEVER = 1e9  # real deadlines are useless where the clock jumps
Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


class Server:
    """A model server; `behaviour` is what it does with a request."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.heads: list[bytes] = []
        self.open = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.open += 1
        try:
            async with stream:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    data = await stream.receive_some()
                    if not data:
                        return
                    head += data
                self.heads.append(head)
                await self.behaviour(stream)
        except trio.BrokenResourceError:
            return  # whoever asked has heard enough
        finally:
            self.open -= 1

    async def all_left(self) -> None:
        """Wait until no connection is open any more."""
        while self.open:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def say(answer: bytes, stream: trio.SocketStream) -> None:
    await stream.send_all(answer)


async def start(nursery: trio.Nursery, server: Server) -> Address:
    listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
    return Address.parse(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")


def health(
    nursery: trio.Nursery,
    address: Address,
    path: str = "/api/version",
    *,
    host: str = "",
    heard: Callable[[], float] = lambda: -math.inf,
    tell: Callable[[str | None], None] = lambda _: None,
) -> BackendHealth:
    """What asks with a deadline of 5 s, running."""
    one = BackendHealth(HealthPath(address, host or str(address), path), 5, heard, tell)
    nursery.start_soon(one.run)
    return one


@within(20)
async def test_backend_that_answers_is_well(nursery: trio.Nursery) -> None:
    server = Server(partial(say, OK))
    address = await start(nursery, server)
    assert await health(nursery, address, "/v?a=b", host="models:1").reason_against() is None
    line, *fields = server.heads[0].decode().lower().split("\r\n")
    assert line == "get /v?a=b http/1.1"
    assert "host: models:1" in fields


@pytest.mark.parametrize("status", [200, 204, 299])
@within(20)
async def test_statuses_that_are_well(nursery: trio.Nursery, status: int) -> None:
    server = Server(partial(say, OK.replace(b"200", b"%d" % status)))
    assert await health(nursery, await start(nursery, server)).reason_against() is None


@pytest.mark.parametrize("status", [301, 302, 304, 400, 401, 403, 404, 429, 500, 502, 503])
@within(20)
async def test_statuses_that_are_not_well(nursery: trio.Nursery, status: int) -> None:
    answer = OK.replace(b"200", b"%d" % status).replace(b"\r\n\r\n", b"\r\nLocation: /\r\n\r\n")
    server = Server(partial(say, answer))
    reason = await health(nursery, await start(nursery, server)).reason_against()
    assert reason == f"the backend answers {status} to its health path"
    assert len(server.heads) == 1, "no other place was asked"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 2", id="half a head"),
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="a length that is none"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, id="a head without end"),
        pytest.param(b"\x16\x03\x01\x00\x01\x01", id="TLS"),
    ],
)
@within(20)
async def test_answers_that_are_none(nursery: trio.Nursery, answer: bytes) -> None:
    reason = await health(
        nursery, await start(nursery, Server(partial(say, answer)))
    ).reason_against()
    assert reason is not None
    assert reason.startswith("the backend does not answer: ")


@within(20)
async def test_backend_that_is_down_is_told_without_its_address(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    reason = await health(nursery, Address.parse(f"127.0.0.1:{port}")).reason_against()
    assert reason == f"the backend does not answer: {os.strerror(errno.ECONNREFUSED)}"
    path = tmp_path / "model.sock"
    gone = Address.parse(f"unix:{path}")
    reason = await health(nursery, gone, "/", host="localhost").reason_against()
    assert reason == f"the backend does not answer: {os.strerror(errno.ENOENT)}"


@within(20)
async def test_backend_on_a_unix_socket_is_asked(nursery: trio.Nursery, folder: Path) -> None:
    server = Server(partial(say, OK))
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(folder / "model.sock"))
    sock.listen()
    nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(sock)])
    address = Address.parse(f"unix:{folder}/model.sock")
    assert await health(nursery, address, "/", host="localhost").reason_against() is None
    assert b"localhost" in server.heads[0]


@within(20)
async def test_proxy_of_the_environment_is_not_asked(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = Server(partial(say, OK))
    assert await health(nursery, await start(nursery, server)).reason_against() is None


@within(20)
async def test_long_body_is_not_waited_for(nursery: trio.Nursery) -> None:
    async def without_end(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65536)

    server = Server(without_end)
    assert await health(nursery, await start(nursery, server)).reason_against() is None
    await server.all_left()


# Those who ask.


@within(20)
async def test_many_at_once_make_one_question(nursery: trio.Nursery) -> None:
    now = trio.Event()

    async def wait_and_say(stream: trio.SocketStream) -> None:
        await now.wait()
        await stream.send_all(OK)

    server = Server(wait_and_say)
    asked, answers = health(nursery, await start(nursery, server)), []

    async def ask() -> None:
        answers.append(await asked.reason_against())

    async with trio.open_nursery() as asking:
        for _ in range(50):
            asking.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert answers == []
        now.set()
    assert answers == [None] * 50
    assert len(server.heads) == 1


@within(NEVER)
async def test_answer_is_good_for_a_moment_only(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # the kernel takes a moment to deliver
    server = Server(partial(say, OK))
    asked = health(nursery, await start(nursery, server))
    for times in (1, 2, 3):
        for _ in range(5):
            assert await asked.reason_against() is None
        assert len(server.heads) == times
        await trio.sleep(1.1)
    server.behaviour = partial(say, OK.replace(b"200", b"500"))
    assert "answers 500" in (await asked.reason_against() or "")
    server.behaviour = partial(say, OK)
    assert "answers 500" in (await asked.reason_against() or ""), "bad news is no older than good"
    await trio.sleep(1.1)
    assert await asked.reason_against() is None


@within(20)
async def test_asker_that_leaves_does_not_take_the_answer_from_others(
    nursery: trio.Nursery,
) -> None:
    now, told = trio.Event(), list[str | None]()

    async def wait_and_say(stream: trio.SocketStream) -> None:
        await now.wait()
        await stream.send_all(OK.replace(b"200", b"503"))

    server = Server(wait_and_say)
    asked = health(nursery, await start(nursery, server), tell=told.append)
    async with trio.open_nursery() as asking:
        asking.start_soon(asked.reason_against)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(server.heads) == 1
        asking.cancel_scope.cancel()
    now.set()
    assert "answers 503" in (await asked.reason_against() or "")
    assert len(server.heads) == 1
    assert len(told) == 1, "an answer that came after its asker had left counts as any other"


@within(NEVER)
async def test_what_requests_find_is_a_reason_to_ask(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    told: list[str | None] = []
    autojump_clock.autojump_threshold = 0.05
    server = Server(partial(say, OK))
    asked = health(nursery, await start(nursery, server), tell=told.append)
    asked.used(well=True)
    await trio.sleep(2)
    assert told == [], "that is what was taken for granted"
    server.behaviour = partial(say, OK.replace(b"200", b"503"))
    for _ in range(100):
        asked.used(well=False)
    await trio.sleep(2)
    assert [one is None for one in told] == [False]
    asked.used(well=False)
    await trio.sleep(2)
    assert len(told) == 1, "it is known"
    server.behaviour = partial(say, OK)
    asked.used(well=True)
    await trio.sleep(2)
    assert [one is None for one in told] == [False, True]
    assert len(server.heads) == 2


@within(NEVER)
async def test_report_takes_an_older_answer_than_readiness(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    server = Server(partial(say, OK))
    asked = health(nursery, await start(nursery, server))
    for _ in range(8):
        assert await asked.reason_against(5) is None
        await trio.sleep(0.6)
    assert len(server.heads) == 1
    assert await asked.reason_against() is None
    assert len(server.heads) == 2


# A backend that is busy.


@pytest.mark.parametrize("last", [0.0, 4.0])
@within(NEVER)
async def test_backend_whose_bytes_come_may_answer_late(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, last: float
) -> None:
    server = Server(silence)
    heard = trio.current_time() + 60
    asked = health(nursery, await start(nursery, server), heard=lambda: heard - last)
    autojump_clock.autojump_threshold = 0.05
    await trio.sleep(60)
    begun = trio.current_time()
    assert await asked.reason_against() is None
    assert trio.current_time() - begun < 1, "a probe of Kubernetes waits no longer"


@within(NEVER)
async def test_backend_whose_last_byte_is_old_is_late(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(silence)
    heard = trio.current_time()
    asked = health(nursery, await start(nursery, server), heard=lambda: heard)
    autojump_clock.autojump_threshold = 0.05
    await trio.sleep(5.1)
    assert await asked.reason_against() == "the backend does not answer within 5 s"


@within(NEVER)
async def test_backend_whose_bytes_begin_while_it_is_asked_is_well(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(silence)
    begun = trio.current_time()
    asked = health(
        nursery,
        await start(nursery, server),
        heard=lambda: begun + 3 if trio.current_time() >= begun + 3 else -math.inf,
    )
    autojump_clock.autojump_threshold = 0.05
    assert await asked.reason_against() is None


@within(20)
async def test_bytes_do_not_outweigh_a_backend_that_says_no(nursery: trio.Nursery) -> None:
    server = Server(partial(say, OK.replace(b"200", b"503")))
    asked = health(nursery, await start(nursery, server), heard=trio.current_time)
    assert await asked.reason_against() == "the backend answers 503 to its health path"


# A backend that lets us wait.


async def silence(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def drip(stream: trio.SocketStream) -> None:
    for byte in OK * 100:
        await stream.send_all(bytes([byte]))
        await trio.sleep(4)


async def drip_interim_answers(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"HTTP/1.1 103 Hints\r\n\r\n")
        await trio.sleep(4)


@pytest.mark.parametrize("behaviour", [silence, drip, drip_interim_answers])
@within(NEVER)
async def test_backend_that_lets_us_wait_has_a_deadline(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, behaviour: Behaviour
) -> None:
    server = Server(behaviour)
    asked = health(nursery, await start(nursery, server))
    autojump_clock.autojump_threshold = 0.05
    begun = trio.current_time()
    reason = await asked.reason_against()
    assert reason is not None
    assert "does not answer" in reason
    assert trio.current_time() - begun < 15


@within(30)
async def test_questions_leave_no_descriptor_behind(nursery: trio.Nursery) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    server = Server(partial(say, OK))
    address = await start(nursery, server)
    assert await health(nursery, address).reason_against() is None
    await server.all_left()
    before = descriptors()
    for _ in range(20):
        assert await health(nursery, address).reason_against() is None
    await server.all_left()
    assert descriptors() == before
