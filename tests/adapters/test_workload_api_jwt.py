"""The JWT part of the Workload API: whatever becomes of the agent, the answer is a value.

The agent is a process of its own and speaks real gRPC. The stream of bundles is followed by the
code that follows the X.509 one; what is tested there in all its ways is here only looked at.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
import trio
import trio.testing
from spiffe._proto import workload_pb2
from trio.testing import MockClock

from sidecar.adapters.workload_api import (
    ANSWER_SECONDS,
    JWT_BUNDLES_METHOD,
    JWT_SVID_METHOD,
    MAX_MESSAGE_BYTES,
    USELESS_SECONDS,
    JwtBundleStream,
    WorkloadApi,
    fetch_jwt_svids,
)
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.identity_event import Denied, Lost, Unreadable, Updated
from sidecar.core.jwt_bundle import RawJwtBundles
from sidecar.core.jwt_svid import RawJwtSvid
from sidecar.core.spiffe_id import SpiffeId
from sidecar.demo.agent import NO_IDENTITY, Answer
from sidecar.demo.jwt_issuer import JwtIssuer
from tests.adapters.deadlines import until, within
from tests.ca import Authority
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

ID = "spiffe://example.org/workload/model-server"
OTHER = "spiffe://example.org/workload/other"
# Deadlines of tests that move the clock themselves.
MOVED = 3 * USELESS_SECONDS


@pytest.fixture(scope="module")
def issuer() -> JwtIssuer:
    return JwtIssuer()


@pytest.fixture(scope="module")
def process() -> Iterator[AgentProcess]:
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        process = AgentProcess(Path(folder) / "agent.sock").start()
        yield process
        process.stop()


@pytest.fixture
def agent(process: AgentProcess, authority: Authority) -> AgentProcess:
    """One process for all these tests; it comes back from those that end it."""
    if not process.runs():
        process.start()
    process.send(authority.svid(), authority.bundle)
    process.deny_jwt_svids()
    process.answer_jwt_bundles(NO_IDENTITY)
    process.forget_calls()
    return process


@pytest.fixture
def endpoint(agent: AgentProcess) -> WorkloadEndpoint:
    return WorkloadEndpoint.parse(f"unix:{agent.path}")


@pytest.fixture
def issuing(agent: AgentProcess, issuer: JwtIssuer) -> AgentProcess:
    """An agent that issues our JWT-SVID."""
    agent.issue_jwt_svids(issuer, ID)
    return agent


async def fetch(endpoint: WorkloadEndpoint, *audiences: str) -> tuple[RawJwtSvid, ...]:
    """An answer, which must hold JWT-SVIDs."""
    answer = await fetch_jwt_svids(endpoint, audiences or ("vault",))
    assert isinstance(answer, tuple), answer
    return answer


def asked(agent: AgentProcess, count: int) -> bool:
    return len(agent.jwt_requests()) == count


# One question.


@pytest.mark.parametrize("spiffe_id", [None, ID])
@within(30)
async def test_question_has_audiences_and_id_as_they_were_asked_for(
    endpoint: WorkloadEndpoint, issuing: AgentProcess, spiffe_id: str | None
) -> None:
    wanted = SpiffeId.parse(spiffe_id) if spiffe_id else None
    answer = await fetch_jwt_svids(endpoint, ("vault", "spiffe://example.org/b", "ü"), wanted)
    assert isinstance(answer, tuple)
    assert issuing.jwt_requests() == [(["vault", "spiffe://example.org/b", "ü"], spiffe_id or "")]


@within(30)
async def test_answer_has_every_field_as_it_was_sent(
    endpoint: WorkloadEndpoint, agent: AgentProcess
) -> None:
    sent = workload_pb2.JWTSVIDResponse()
    sent.svids.add(spiffe_id=ID, svid="a.b.c", hint="internal")
    sent.svids.add(spiffe_id=OTHER, svid="d.e.f")
    agent.answer_jwt_svids(Answer(sent.SerializeToString()))
    assert await fetch(endpoint) == (
        RawJwtSvid(ID, "a.b.c", "internal"),
        RawJwtSvid(OTHER, "d.e.f", ""),
    )


@within(30)
async def test_answer_without_svids_is_an_answer(
    endpoint: WorkloadEndpoint, agent: AgentProcess
) -> None:
    agent.answer_jwt_svids(Answer(b""))
    assert await fetch(endpoint) == ()


@within(30)
async def test_answer_shows_no_token(endpoint: WorkloadEndpoint, issuing: AgentProcess) -> None:
    answer = await fetch(endpoint)
    for part in answer[0].token.split("."):
        assert part not in repr(answer)


@pytest.mark.parametrize("method", [JWT_SVID_METHOD, JWT_BUNDLES_METHOD])
@within(30)
async def test_security_header_is_sent(
    endpoint: WorkloadEndpoint, issuing: AgentProcess, method: str
) -> None:
    def ask_without() -> grpc.StatusCode:
        with grpc.insecure_channel(f"unix:{issuing.path}") as channel:
            call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
            with pytest.raises(grpc.RpcError) as caught:
                next(call(b"", timeout=10))
            return caught.value.code()

    # The agent insists on it, so the answer is the proof.
    assert await trio.to_thread.run_sync(ask_without) is grpc.StatusCode.INVALID_ARGUMENT
    await fetch(endpoint)


@within(30)
async def test_many_may_ask_at_once(endpoint: WorkloadEndpoint, issuing: AgentProcess) -> None:
    answers: list[RawJwtSvid] = []

    async def ask(audience: str) -> None:
        answers.extend(await fetch(endpoint, audience))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, str(number))
    assert len({answer.token for answer in answers}) == 10
    assert sorted(audiences for audiences, _ in issuing.jwt_requests()) == [
        [str(number)] for number in range(10)
    ]


# What the agent says instead of an answer.


@within(30)
async def test_denial_is_a_value(endpoint: WorkloadEndpoint, issuing: AgentProcess) -> None:
    issuing.deny_jwt_svids()
    assert await fetch_jwt_svids(endpoint, ("vault",)) == Denied("no identity issued")


@within(30)
async def test_id_that_is_not_ours_is_denied(
    endpoint: WorkloadEndpoint, issuing: AgentProcess
) -> None:
    answer = await fetch_jwt_svids(endpoint, ("vault",), SpiffeId.parse(OTHER))
    assert isinstance(answer, Denied)


@pytest.mark.parametrize(
    ("code", "useless"),
    [
        (grpc.StatusCode.CANCELLED, False),
        (grpc.StatusCode.UNAVAILABLE, False),
        (grpc.StatusCode.INTERNAL, False),
        (grpc.StatusCode.UNKNOWN, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, False),
        (grpc.StatusCode.UNAUTHENTICATED, False),
        (grpc.StatusCode.INVALID_ARGUMENT, True),
        (grpc.StatusCode.UNIMPLEMENTED, True),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@within(30)
async def test_failure_is_a_value(
    endpoint: WorkloadEndpoint, issuing: AgentProcess, code: grpc.StatusCode, useless: bool
) -> None:
    issuing.answer_jwt_svids(Answer(status=code, details="words of the agent"))
    answer = await fetch_jwt_svids(endpoint, ("vault",))
    assert answer == Lost(f"{code.name}: words of the agent", useless)


@within(30)
async def test_long_words_of_the_agent_are_cut(
    endpoint: WorkloadEndpoint, issuing: AgentProcess
) -> None:
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED):
        issuing.answer_jwt_svids(Answer(status=code, details="x" * 3000))
        answer = await fetch_jwt_svids(endpoint, ("vault",))
        assert isinstance(answer, Denied | Lost)
        assert len(answer.reason) < 600


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xff" * 20, id="garbage"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="a field longer than the message"),
        pytest.param(b"\x0a\x04\x12\x02\xff\xfe", id="text that is no UTF-8"),
        pytest.param(b'{"svids": []}', id="JSON"),
    ],
)
@within(30)
async def test_what_is_no_protobuf_is_unreadable(
    endpoint: WorkloadEndpoint, issuing: AgentProcess, garbage: bytes
) -> None:
    issuing.answer_jwt_svids(Answer(garbage))
    answer = await fetch_jwt_svids(endpoint, ("vault",))
    assert isinstance(answer, Unreadable)
    assert answer.reason.startswith(f"{len(garbage)} bytes that are no JWTSVIDResponse")


@within(60)
async def test_message_that_is_too_large_is_refused(
    endpoint: WorkloadEndpoint, issuing: AgentProcess
) -> None:
    sent = workload_pb2.JWTSVIDResponse()
    sent.svids.add(spiffe_id=ID, svid="x" * MAX_MESSAGE_BYTES)
    issuing.answer_jwt_svids(Answer(sent.SerializeToString()))
    answer = await fetch_jwt_svids(endpoint, ("vault",))
    assert isinstance(answer, Lost)
    assert answer.reason.startswith("RESOURCE_EXHAUSTED")


# The agent that is away.


@pytest.fixture(params=["no folder", "no socket", "a stale socket", "something else"])
def nobody(request: pytest.FixtureRequest, folder: Path) -> Iterator[WorkloadEndpoint]:
    """An endpoint without an agent."""
    path = folder / "agent.sock"
    other = None
    if request.param == "no folder":
        path = folder / "nowhere" / "agent.sock"
    elif request.param == "a stale socket":
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    elif request.param == "something else":
        other = EchoBackend(path)
    yield WorkloadEndpoint.parse(f"unix:{path}")
    if other:
        other.close()


@within(60)
async def test_absent_agent_is_a_value(nobody: WorkloadEndpoint) -> None:
    answer = await fetch_jwt_svids(nobody, ("vault",))
    assert isinstance(answer, Lost)
    assert not answer.useless


@within(60)
async def test_agent_that_is_restarted_answers_again(
    endpoint: WorkloadEndpoint, issuing: AgentProcess
) -> None:
    await fetch(endpoint)
    await trio.to_thread.run_sync(issuing.kill)
    assert isinstance(await fetch_jwt_svids(endpoint, ("vault",)), Lost)
    await trio.to_thread.run_sync(issuing.start)
    await fetch(endpoint)


@within(60)
async def test_agent_that_dies_over_the_question_is_lost(
    endpoint: WorkloadEndpoint, agent: AgentProcess
) -> None:
    agent.silence_jwt_svids()
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await fetch_jwt_svids(endpoint, ("vault",)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: len(agent.jwt_requests()) == 1, "the question")
        await trio.to_thread.run_sync(agent.kill)
    assert isinstance(answers[0], Lost)


# Deadline and cancellation.


@within(MOVED)
async def test_agent_that_never_answers_is_lost_after_the_deadline(
    endpoint: WorkloadEndpoint, agent: AgentProcess, mock_clock: MockClock
) -> None:
    agent.silence_jwt_svids()
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await fetch_jwt_svids(endpoint, ("vault",)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: len(agent.jwt_requests()) == 1, "the question")
        mock_clock.jump(ANSWER_SECONDS - 0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        mock_clock.jump(0.2)
    assert answers == [Lost(f"no answer from unix:{agent.path} in {ANSWER_SECONDS:g} s")]


def test_deadline_leaves_an_agent_time_to_attest_us() -> None:
    assert ANSWER_SECONDS == 60


@within(60)
async def test_question_can_be_cancelled_and_ends_for_the_agent_too(
    endpoint: WorkloadEndpoint, agent: AgentProcess, issuer: JwtIssuer
) -> None:
    agent.silence_jwt_svids()
    # More than the agent answers at a time: if they went on there would be no room for the last.
    for number in range(1, 41):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_jwt_svids, endpoint, ("vault",))
            await until(partial(asked, agent, number), "the question")
            nursery.cancel_scope.cancel()
    agent.issue_jwt_svids(issuer, ID)
    await fetch(endpoint)


@within(60)
async def test_question_to_a_hanging_agent_can_be_cancelled(
    endpoint: WorkloadEndpoint, issuing: AgentProcess
) -> None:
    os.kill(issuing.pid, signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_jwt_svids, endpoint, ("vault",))
            # Trio is free meanwhile, or this would never return.
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
    finally:
        os.kill(issuing.pid, signal.SIGCONT)
    await fetch(endpoint)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
@within(60)
async def test_questions_leave_no_thread_and_no_descriptor_behind(
    endpoint: WorkloadEndpoint, issuing: AgentProcess
) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/task")) + len(os.listdir("/proc/self/fd"))

    for _ in range(15):
        await fetch(endpoint)
    warm = held()  # gRPC keeps some of its own
    for _ in range(30):
        await fetch(endpoint)
    await until(lambda: held() <= warm + 5, "threads and sockets to end")


# The bundles.


@pytest.fixture
def follow(endpoint: WorkloadEndpoint) -> Iterator[Callable[[], JwtBundleStream]]:
    """Make streams; they are closed at the end."""
    streams: list[JwtBundleStream] = []

    def make() -> JwtBundleStream:
        streams.append(JwtBundleStream(endpoint))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


Follow = Callable[[], JwtBundleStream]
FIRST = {"spiffe://example.org": b'{"keys": []}'}
SECOND = {"spiffe://example.org": b"2", "spiffe://other.org": b"\x00\xff"}


async def bundles(stream: JwtBundleStream) -> dict[str, bytes]:
    """The next event, which must be a message."""
    event = await stream.next_event()
    assert isinstance(event, RawJwtBundles), event
    return dict(event.bundles)


async def until_bundles(stream: JwtBundleStream) -> dict[str, bytes]:
    """Take events up to the next message."""
    while True:
        event = await stream.next_event()
        if isinstance(event, RawJwtBundles):
            return dict(event.bundles)


@within(30)
async def test_every_message_is_given_as_it_was_sent_over_one_stream(
    follow: Follow, agent: AgentProcess
) -> None:
    agent.send_jwt_bundles(FIRST)
    stream = follow()
    assert await bundles(stream) == FIRST
    agent.send_jwt_bundles(SECOND)
    assert await bundles(stream) == SECOND
    agent.answer_jwt_bundles(Answer(b""))
    assert await bundles(stream) == {}
    assert agent.bundle_calls() == 1
    assert agent.calls() == 0  # it is another method's stream


@within(30)
async def test_event_shows_no_bundle(follow: Follow, agent: AgentProcess) -> None:
    agent.send_jwt_bundles(FIRST)
    assert "keys" not in repr(await follow().next_event())


@within(30)
async def test_what_is_no_protobuf_is_unreadable_and_the_stream_is_kept(
    follow: Follow, agent: AgentProcess
) -> None:
    agent.answer_jwt_bundles(Answer(b"\xff" * 20))
    stream = follow()
    event = await stream.next_event()
    assert isinstance(event, Unreadable)
    assert event.reason.startswith("20 bytes that are no JWTBundlesResponse")
    agent.send_jwt_bundles(FIRST)
    assert await bundles(stream) == FIRST
    assert agent.bundle_calls() == 1


@within(30)
async def test_denial_is_told_and_over_when_it_is_over(follow: Follow, agent: AgentProcess) -> None:
    stream = follow()
    for _ in range(2):  # we go on asking
        assert await stream.next_event() == Denied("no identity issued")
    agent.send_jwt_bundles(FIRST)
    assert await until_bundles(stream) == FIRST


@pytest.mark.parametrize("how", ["stop", "kill"])
@within(60)
async def test_agent_that_is_restarted_is_found_again(
    follow: Follow, agent: AgentProcess, how: str
) -> None:
    agent.send_jwt_bundles(FIRST)
    stream = follow()
    assert await bundles(stream) == FIRST
    await trio.to_thread.run_sync(getattr(agent, how))
    event = await stream.next_event()
    assert isinstance(event, Lost)
    assert not event.useless
    agent.send_jwt_bundles(SECOND)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, agent.start)
        assert await until_bundles(stream) == SECOND


@within(MOVED)
async def test_agent_without_this_method_is_hardly_ever_asked_again(
    follow: Follow, agent: AgentProcess, mock_clock: MockClock
) -> None:
    agent.answer_jwt_bundles(Answer(status=grpc.StatusCode.UNIMPLEMENTED, details="no"))
    stream = follow()
    assert await stream.next_event() == Lost("UNIMPLEMENTED: no", useless=True)
    found: list[dict[str, bytes]] = []

    async def ask() -> None:
        found.append(await bundles(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(USELESS_SECONDS - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert agent.bundle_calls() == 1
        agent.send_jwt_bundles(FIRST)
        mock_clock.jump(1.1)
    assert found == [FIRST]


@within(60)
async def test_streams_of_both_kinds_do_not_disturb_each_other(
    follow: Follow, agent: AgentProcess, endpoint: WorkloadEndpoint, authority: Authority
) -> None:
    agent.send_jwt_bundles(FIRST)
    stream, x509 = follow(), WorkloadApi(endpoint)
    assert isinstance(await x509.next_event(), Updated)
    assert await bundles(stream) == FIRST
    agent.answer_jwt_bundles(Answer(status=grpc.StatusCode.UNAVAILABLE, details="no bundles"))
    assert await stream.next_event() == Lost("UNAVAILABLE: no bundles")
    agent.send(authority.svid(hint="next"), authority.bundle)
    event = await x509.next_event()
    assert isinstance(event, Updated)
    assert event.update.svids[0].hint == "next"
    agent.deny()
    assert await x509.next_event() == Denied("no identity issued")
    agent.send_jwt_bundles(SECOND)
    assert await until_bundles(stream) == SECOND
    x509.close()


@within(60)
async def test_close_leaves_no_thread_behind(follow: Follow, agent: AgentProcess) -> None:
    def pumps() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "workload-api"]

    await until(lambda: not pumps(), "the threads of other tests to end")
    agent.send_jwt_bundles(FIRST)
    stream = follow()
    for _ in range(5):
        assert await bundles(stream) == FIRST
        assert len(pumps()) == 1
        stream.close()
        await until(lambda: not pumps(), "the thread to end")


# The agent of these tests.


@within(30)
async def test_tokens_of_the_agent_are_for_what_was_asked_and_for_its_time(
    endpoint: WorkloadEndpoint, agent: AgentProcess, issuer: JwtIssuer
) -> None:
    agent.issue_jwt_svids(issuer, ID, OTHER, hints=("a",), life=timedelta(seconds=90))
    first, second = await fetch(endpoint, "x", "y")
    assert (first.spiffe_id, first.hint) == (ID, "a")
    assert (second.spiffe_id, second.hint) == (OTHER, "")
    assert (await fetch(endpoint, "x", "y"))[0].token != first.token
