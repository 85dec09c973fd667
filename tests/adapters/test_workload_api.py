"""The SPIRE agent: whatever becomes of it, each event is one of four, and the stream comes back.

The rows of the fault table of `research/spiffe-client.md`, section 3, that are about transport;
those about content are in `tests/test_rotator.py`. The agent is a process of its own and speaks
real gRPC.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
import trio
import trio.testing
from spiffe._proto import workload_pb2
from trio.testing import MockClock

from sidecar.adapters.workload_api import (
    FIRST_ANSWER_SECONDS,
    MAX_MESSAGE_BYTES,
    METHOD,
    SECURITY_HEADER,
    USELESS_SECONDS,
    WorkloadApi,
    channel,
)
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.identity_event import Denied, IdentityEvent, Lost, Unreadable, Updated
from sidecar.core.svid import X509Svid
from sidecar.demo.agent import x509_svid_response
from tests.adapters.deadlines import until, within
from tests.ca import Authority
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

# Deadlines of tests that move the clock themselves.
MOVED = 3 * USELESS_SECONDS

Api = Callable[..., WorkloadApi]


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "agent.sock"


@pytest.fixture
def absent(path: Path, authority: Authority) -> Iterator[AgentProcess]:
    """An agent that is not there yet."""
    process = AgentProcess(path)
    process.send(authority.svid(), authority.bundle)
    yield process
    with suppress(BrokenPipeError, RuntimeError, ValueError):
        process.stop()


@pytest.fixture
def connect(path: Path) -> Iterator[Api]:
    """Make clients of the agent; they are closed at the end."""
    clients: list[WorkloadApi] = []

    def make(endpoint: str = f"unix:{path}") -> WorkloadApi:
        clients.append(WorkloadApi(WorkloadEndpoint.parse(endpoint)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


async def updated(api: WorkloadApi) -> Updated:
    """The next event, which must be an update."""
    event = await api.next_event()
    assert isinstance(event, Updated), event
    return event


async def lost(api: WorkloadApi) -> Lost:
    """The next event, which must be that the agent is away."""
    event = await api.next_event()
    assert isinstance(event, Lost), event
    return event


async def until_updated(api: WorkloadApi) -> list[IdentityEvent]:
    """Take events up to and with the next update."""
    events = [await api.next_event()]
    while not isinstance(events[-1], Updated):
        events.append(await api.next_event())
    return events


def hint_of(event: IdentityEvent) -> str:
    assert isinstance(event, Updated), event
    return event.update.svids[0].hint


def message(svid: X509Svid, authority: Authority) -> bytes:
    return x509_svid_response([svid], [authority.bundle])


# What an update is.


@within(30)
async def test_update_has_every_field_as_it_was_sent(
    connect: Api, agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    sent = workload_pb2.X509SVIDResponse()
    for number in range(2):
        svid = authority.svid(f"/workload/{number}", hint=f"hint {number}")
        sent.MergeFromString(x509_svid_response([svid], [authority.bundle], [foreign.bundle]))
    sent.crl.extend([b"one", b"two"])
    agent.send_bytes(sent.SerializeToString())
    update = (await updated(connect())).update
    assert [svid.spiffe_id for svid in update.svids] == [
        "spiffe://example.org/workload/0",
        "spiffe://example.org/workload/1",
    ]
    for got, want in zip(update.svids, sent.svids, strict=True):
        assert got.chain == want.x509_svid
        assert got.private_key == want.x509_svid_key
        assert got.bundle == want.bundle
        assert got.hint == want.hint
    assert update.federated == {"spiffe://other.org": sent.federated_bundles["spiffe://other.org"]}
    assert update.crls == 2


@within(30)
async def test_event_shows_no_key(connect: Api, agent: AgentProcess) -> None:
    event = await updated(connect())
    key = event.update.svids[0].private_key
    for shown in (repr(event), repr(event.update), repr(event.update.svids)):
        assert repr(key) not in shown
        assert repr(key[40:60])[2:-1] not in shown


@within(30)
async def test_next_update_comes_over_the_same_stream(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    api = connect()
    await updated(api)
    for number in range(5):
        agent.send(authority.svid(hint=str(number)), authority.bundle)
        assert hint_of(await api.next_event()) == str(number)
    assert agent.calls() == 1


@within(30)
async def test_update_without_svids_is_an_update(connect: Api, agent: AgentProcess) -> None:
    agent.send_bytes(b"")
    assert (await updated(connect())).update.svids == ()


@within(30)
async def test_security_header_is_sent(connect: Api, agent: AgentProcess, path: Path) -> None:
    def ask_without() -> grpc.StatusCode:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            method: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
            call = method(b"", timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            return caught.value.code()

    # The agent insists on it, so the update is the proof.
    assert await trio.to_thread.run_sync(ask_without) is grpc.StatusCode.INVALID_ARGUMENT
    assert SECURITY_HEADER == (("workload.spiffe.io", "true"),)
    await updated(connect())


# The agent comes and goes.


@within(30)
async def test_agent_that_is_absent_at_first_is_found_when_it_appears(
    connect: Api, absent: AgentProcess
) -> None:
    api = connect()
    event = await lost(api)
    assert not event.useless
    assert event.reason.startswith("UNAVAILABLE")
    # It is told once; then we knock without a word until somebody listens.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, absent.start)
        await updated(api)


@within(30)
async def test_folder_of_the_socket_may_be_absent_too(
    connect: Api, folder: Path, authority: Authority
) -> None:
    api = connect(f"unix:{folder}/later/agent.sock")
    await lost(api)
    (folder / "later").mkdir()
    late = AgentProcess(folder / "later" / "agent.sock")
    late.send(authority.svid(), authority.bundle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, late.start)
        await updated(api)
    late.stop()


@within(30)
async def test_stale_socket_is_no_agent(connect: Api, path: Path, absent: AgentProcess) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    api = connect()
    await lost(api)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, absent.start)
        await updated(api)


@within(30)
async def test_something_else_on_the_socket_is_no_agent(
    connect: Api, path: Path, absent: AgentProcess
) -> None:
    other = EchoBackend(path)
    try:
        api = connect()
        await lost(api)
        await lost(api)  # it listens, so it is asked again
    finally:
        other.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, absent.start)
        await until_updated(api)


@within(30)
async def test_stream_that_ends_cleanly_is_opened_again(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    api = connect()
    await updated(api)
    agent.fail(grpc.StatusCode.OK)
    assert await lost(api) == Lost("the agent ended the stream")
    agent.send(authority.svid(hint="back"), authority.bundle)
    assert hint_of((await until_updated(api))[-1]) == "back"


@pytest.mark.parametrize("how", ["stop", "kill"])
@within(60)
async def test_agent_that_is_restarted_is_found_again(
    connect: Api, agent: AgentProcess, authority: Authority, how: str
) -> None:
    api = connect()
    for number in range(2):
        await updated(api)
        await trio.to_thread.run_sync(getattr(agent, how))
        assert not (await lost(api)).useless
        agent.send(authority.svid(hint=str(number)), authority.bundle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, agent.start)
            # Nothing in between: a connect() that fails is no news.
            assert hint_of(await updated(api)) == str(number)
        agent.send(authority.svid(hint="next"), authority.bundle)


@within(MOVED)
async def test_agent_that_hangs_is_noticed_when_it_is_asked_again(
    connect: Api, agent: AgentProcess, mock_clock: MockClock
) -> None:
    mock_clock.rate = 1.0
    api = connect()
    await updated(api)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            events: list[IdentityEvent] = []

            async def ask() -> None:
                events.append(await api.next_event(ask_again_seconds=60))

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(61)  # time to ask again
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert events == []
            mock_clock.jump(FIRST_ANSWER_SECONDS)
        assert isinstance(events[0], Lost)
        assert f"no answer from unix:{agent.path}" in events[0].reason
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    await until_updated(api)


@within(60)
async def test_agent_that_hung_for_a_while_is_not_lost(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    api = connect()
    await updated(api)
    os.kill(agent.pid, signal.SIGSTOP)
    with trio.move_on_after(0.3) as pause:
        await api.next_event()
    assert pause.cancelled_caught
    os.kill(agent.pid, signal.SIGCONT)
    agent.send(authority.svid(hint="awake"), authority.bundle)
    assert hint_of(await updated(api)) == "awake"
    assert agent.calls() == 1


@within(MOVED)
async def test_agent_that_takes_long_to_answer_is_told_once_and_waited_for(
    connect: Api, agent: AgentProcess, authority: Authority, mock_clock: MockClock
) -> None:
    # SPIRE's agent attests a process before it answers, by plugins that may take their time.
    mock_clock.rate = 1.0
    agent.silence()
    api = connect()
    events: list[IdentityEvent] = []

    async def ask() -> None:
        events.append(await api.next_event(ask_again_seconds=30))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: agent.calls() == 1, "a call")
        mock_clock.jump(FIRST_ANSWER_SECONDS)
    seconds = f"{FIRST_ANSWER_SECONDS:g}"
    assert events == [Lost(f"no answer from unix:{agent.path} in {seconds} s, still waiting")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(100)
        assert len(events) == 1
        agent.send(authority.svid(hint="at last"), authority.bundle)
    assert hint_of(events[1]) == "at last"
    assert agent.calls() == 1, "it was cut"


@within(60)
async def test_agent_that_hangs_before_it_answers_is_found_by_keepalive(
    connect: Api, agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms")
    quick: dict[str, int] = {f"grpc.{name}": 300 for name in names}
    options = tuple((name, quick.get(name, value)) for name, value in channel._OPTIONS)
    assert [one for one in options if one[0] in quick] == list(quick.items())
    monkeypatch.setattr(channel, "_OPTIONS", options)
    agent.silence()
    api = connect()
    with trio.move_on_after(0) as scope:
        await api.next_event()
    assert scope.cancelled_caught
    await until(lambda: agent.calls() == 1, "a call")
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        event = await api.next_event()
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert isinstance(event, Lost)
    assert event.reason.startswith("UNAVAILABLE: ")


def test_keepalive_is_rarer_than_an_agent_of_spire_tolerates() -> None:
    # grpc-go: keepalive.EnforcementPolicy, MinTime 5 minutes, PermitWithoutStream false.
    options = dict(channel._OPTIONS)
    assert options["grpc.keepalive_time_ms"] > 5 * 60 * 1000
    assert not options.get("grpc.keepalive_permit_without_calls")


@within(MOVED)
async def test_agent_that_answered_once_may_be_silent_for_days(
    connect: Api, agent: AgentProcess, authority: Authority, mock_clock: MockClock
) -> None:
    api = connect()
    await updated(api)
    events: list[IdentityEvent] = []

    async def ask() -> None:
        events.append(await api.next_event())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(MOVED / 2)
        await trio.testing.wait_all_tasks_blocked()
        assert events == []
        agent.send(authority.svid(hint="new"), authority.bundle)
    assert hint_of(events[0]) == "new"
    assert agent.calls() == 1


@within(MOVED)
async def test_asking_again_opens_a_fresh_stream_without_a_word(
    connect: Api, agent: AgentProcess, mock_clock: MockClock
) -> None:
    api = connect()
    await updated(api)
    events: list[IdentityEvent] = []

    async def ask() -> None:
        events.append(await api.next_event(ask_again_seconds=60))

    for calls in (2, 3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(59)
            await trio.testing.wait_all_tasks_blocked()
            assert agent.calls() == calls - 1
            mock_clock.jump(1.1)
        assert isinstance(events[-1], Updated)
        assert agent.calls() == calls
    assert len(events) == 2


# What the agent says instead of an update.


@within(30)
async def test_denial_is_told_at_once_and_over_when_it_is_over(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    api = connect()
    await updated(api)
    agent.deny()
    for _ in range(3):  # we go on asking
        assert await api.next_event() == Denied("no identity issued")
    agent.send(authority.svid(hint="granted"), authority.bundle)
    events = await until_updated(api)
    assert hint_of(events[-1]) == "granted"
    assert all(isinstance(event, Denied) for event in events[:-1])


@within(30)
async def test_denial_may_be_the_first_answer(connect: Api, agent: AgentProcess) -> None:
    agent.deny()
    assert await connect().next_event() == Denied("no identity issued")


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.DATA_LOSS,
    ],
    ids=lambda code: code.name,
)
@within(30)
async def test_failure_that_may_pass_is_retried(
    connect: Api, agent: AgentProcess, authority: Authority, code: grpc.StatusCode
) -> None:
    api = connect()
    await updated(api)
    agent.fail(code, "words of the agent")
    for _ in range(2):
        assert await lost(api) == Lost(f"{code.name}: words of the agent")
    assert agent.calls() >= 2
    agent.send(authority.svid(hint="back"), authority.bundle)
    assert hint_of((await until_updated(api))[-1]) == "back"


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED],
    ids=lambda code: code.name,
)
@within(MOVED)
async def test_failure_that_will_not_pass_is_told_and_hardly_ever_retried(
    connect: Api,
    agent: AgentProcess,
    authority: Authority,
    code: grpc.StatusCode,
    mock_clock: MockClock,
) -> None:
    agent.fail(code, "no Workload API here")
    api = connect()
    assert await lost(api) == Lost(f"{code.name}: no Workload API here", useless=True)
    events: list[IdentityEvent] = []

    async def ask() -> None:
        events.append(await api.next_event())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(USELESS_SECONDS - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert agent.calls() == 1
        # The agent behind the address may be replaced one day.
        agent.send(authority.svid(hint="replaced"), authority.bundle)
        mock_clock.jump(1.1)
    assert hint_of(events[0]) == "replaced"
    assert agent.calls() == 2


@within(30)
async def test_long_words_of_the_agent_are_cut(connect: Api, agent: AgentProcess) -> None:
    api = connect()
    agent.fail(grpc.StatusCode.UNAVAILABLE, "x" * 3000)
    assert len((await lost(api)).reason) < 600
    agent.fail(grpc.StatusCode.PERMISSION_DENIED, "x" * 3000)
    events = [await api.next_event() for _ in range(2)]
    assert isinstance(events[-1], Denied)
    assert len(events[-1].reason) <= 500


NOT_PROTOBUF = [
    pytest.param(b"\xff" * 20, id="garbage"),
    pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="a field longer than the message"),
    pytest.param(b"\x0a\x05\x0a\x02\xff\xfe\x12", id="text that is no UTF-8"),
    pytest.param(b"\x0f", id="a wire type that does not exist"),
    pytest.param(b'{"svids": []}', id="JSON"),
]


@pytest.mark.parametrize("garbage", NOT_PROTOBUF)
@within(30)
async def test_what_is_no_protobuf_is_unreadable_and_the_stream_is_kept(
    connect: Api, agent: AgentProcess, authority: Authority, garbage: bytes
) -> None:
    api = connect()
    await updated(api)
    agent.send_bytes(garbage)
    event = await api.next_event()
    assert isinstance(event, Unreadable)
    assert event.reason.startswith(f"{len(garbage)} bytes that are no X509SVIDResponse")
    agent.send(authority.svid(hint="good"), authority.bundle)
    assert hint_of(await updated(api)) == "good"
    assert agent.calls() == 1


def padded(size: int) -> bytes:
    """A message of exactly so many bytes; most of it is one federated bundle."""
    response = workload_pb2.X509SVIDResponse()
    response.federated_bundles["spiffe://other.org"] = b"x" * (size - 100)
    missing = size - response.ByteSize()
    response.federated_bundles["spiffe://other.org"] += b"x" * missing
    data = response.SerializeToString()
    assert len(data) == size
    return data


@pytest.mark.parametrize("size", [5_000_000, MAX_MESSAGE_BYTES])
@within(60)
async def test_large_message_is_taken(connect: Api, agent: AgentProcess, size: int) -> None:
    agent.send_bytes(padded(size))
    update = (await updated(connect())).update
    assert len(update.federated["spiffe://other.org"]) > size - 200


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 17 * 1024 * 1024])
@within(60)
async def test_message_that_is_too_large_is_refused_and_the_next_good_one_taken(
    connect: Api, agent: AgentProcess, authority: Authority, size: int
) -> None:
    api = connect()
    await updated(api)
    agent.send_bytes(padded(size))
    event = await lost(api)
    assert event.reason.startswith("RESOURCE_EXHAUSTED")
    assert not event.useless
    agent.send(authority.svid(hint="good"), authority.bundle)
    assert hint_of((await until_updated(api))[-1]) == "good"


# Many updates.


def numbered(authority: Authority, count: int) -> list[bytes]:
    """Messages that differ in their hint only; each hint is a number."""
    response = workload_pb2.X509SVIDResponse()
    response.ParseFromString(message(authority.svid(), authority))
    messages = []
    for number in range(count):
        response.svids[0].hint = str(number)
        messages.append(response.SerializeToString())
    return messages


@within(60)
async def test_rotation_every_10_ms_is_followed_to_the_last(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    messages = numbered(authority, 300)
    api = connect()
    await updated(api)
    hints: list[int] = []

    async def rotate() -> None:
        for one in messages:
            agent.send_bytes(one)
            await trio.sleep(0.01)  # the pace, not a wait for anything

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rotate)
        while not hints or hints[-1] != 299:
            hints.append(int(hint_of(await api.next_event())))
    assert hints == sorted(hints)
    assert len(hints) == len(set(hints))
    assert len(hints) > 100, "most of them were never seen"
    assert agent.calls() == 1


@within(60)
async def test_who_was_busy_gets_the_newest_and_not_the_backlog(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    messages = numbered(authority, 300)
    api = connect()
    await updated(api)
    for one in messages:
        agent.send_bytes(one)
        await trio.sleep(0.002)  # the pace, not a wait for anything
    hints = [int(hint_of(await api.next_event()))]
    while hints[-1] != 299:
        hints.append(int(hint_of(await api.next_event())))
    assert len(hints) < 20


@within(60)
async def test_update_and_end_that_come_together_are_both_told(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    api = connect()
    await updated(api)
    # No await: trio hears of both at once.
    agent.send_and_end(authority.svid(hint="last"), authority.bundle)
    _join_pumps()
    assert hint_of(await api.next_event()) == "last"
    assert await lost(api) == Lost("the agent ended the stream")


def _join_pumps() -> None:
    """Wait, without letting trio run, until the streams' threads have ended."""
    for thread in pumps():
        thread.join(10)
        assert not thread.is_alive()


# Addresses.


@pytest.fixture
def forward(nursery: trio.Nursery, path: Path) -> Callable[[str], object]:
    """Make the agent reachable by TCP; gives the port."""

    async def start(host: str) -> int:
        async def handle(near: trio.SocketStream) -> None:
            far = await trio.open_unix_socket(str(path))
            async with near, far, trio.open_nursery() as both:
                both.start_soon(pump, near, far, both.cancel_scope)
                both.start_soon(pump, far, near, both.cancel_scope)

        async def pump(
            source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
        ) -> None:
            with suppress(trio.BrokenResourceError):
                async for data in source:
                    await sink.send_all(data)
            scope.cancel()

        async def serve(task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
            listeners = await trio.open_tcp_listeners(0, host=host)
            task_status.started(listeners[0].socket.getsockname()[1])
            await trio.serve_listeners(handle, listeners)

        return int(await nursery.start(serve))

    return start


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@within(30)
async def test_tcp_endpoint_serves_as_well(
    connect: Api,
    agent: AgentProcess,
    authority: Authority,
    forward: Callable[..., object],
    host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A proxy of the environment is no business of ours.
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    port = await forward(host)  # type: ignore[misc]
    shown = f"[{host}]" if ":" in host else host
    api = connect(f"tcp://{shown}:{port}")
    await updated(api)
    agent.send(authority.svid(hint="by TCP"), authority.bundle)
    assert hint_of(await updated(api)) == "by TCP"


@within(30)
async def test_absent_tcp_endpoint_is_waited_for(connect: Api) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        api = connect(f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        event = await lost(api)
    assert event.reason.startswith("UNAVAILABLE")


@pytest.mark.parametrize(
    "name",
    ["Application Support", "100%", "a%20b", "50%25", "what?", "number #1", "Schlüssel", "a:b;c=d"],
)
@within(30)
async def test_socket_may_be_in_a_folder_of_any_name(
    connect: Api, agent: AgentProcess, folder: Path, name: str
) -> None:
    (folder / name).symlink_to(folder)
    await updated(connect("unix:" + quote(f"{folder}/{name}/agent.sock")))


# Threads and cancellation.


def pumps() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "workload-api"]


@within(60)
async def test_close_leaves_no_thread_behind(connect: Api, agent: AgentProcess) -> None:
    await until(lambda: not pumps(), "the threads of other tests to end")
    api = connect()
    for _ in range(10):
        await updated(api)
        assert len(pumps()) == 1
        api.close()
        await until(lambda: not pumps(), "the thread to end")
    api.close()  # twice does no harm


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
@within(60)
async def test_streams_that_come_and_go_do_not_pile_up_threads(
    connect: Api, agent: AgentProcess
) -> None:
    api = connect()

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    async def some() -> None:
        for _ in range(15):
            await updated(api)
            api.close()
            await until(lambda: not pumps(), "the thread to end")

    await some()
    warm = threads()  # gRPC keeps some of its own
    await some()
    await until(lambda: threads() <= warm + 3, "the threads to end")


@within(60)
async def test_thread_ends_with_the_loop_even_if_nobody_closed(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    await until(lambda: not pumps(), "the threads of other tests to end")
    api = connect()

    def another_loop() -> None:
        trio.run(api.next_event)

    await trio.to_thread.run_sync(another_loop)
    assert len(pumps()) == 1
    agent.send(authority.svid(), authority.bundle)  # finds nobody to tell
    await until(lambda: not pumps(), "the thread to end")


@within(30)
async def test_waiting_can_be_cancelled_and_taken_up_again(
    connect: Api, agent: AgentProcess, authority: Authority
) -> None:
    api = connect()
    await updated(api)
    for number in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.next_event)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        agent.send(authority.svid(hint=str(number)), authority.bundle)
        assert hint_of(await updated(api)) == str(number)
    assert agent.calls() == 1


@within(30)
async def test_waiting_for_an_absent_agent_can_be_cancelled(connect: Api) -> None:
    api = connect()
    await lost(api)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.next_event)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@within(30)
async def test_waiting_for_a_hanging_agent_can_be_cancelled(
    connect: Api, agent: AgentProcess
) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        api = connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.next_event)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        api.close()
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    await until(lambda: not pumps(), "the thread to end")
