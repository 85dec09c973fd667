"""No bytes of a peer make the backend see a request that was not decided on, or a second one.

Each case is sent whole, and once more in pieces: a verdict that depends on where TCP cuts is an
attack on somebody who cuts elsewhere.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from tests.ca import Authority
from tests.recording_backend import Seen
from tests.smuggling import identities
from tests.smuggling.case import NOTHING, PULL, SPOOFED, Case, Request, sized
from tests.smuggling.cases import CASES
from tests.smuggling.gate import PEER, Gate, Outcome, running_gate
from tests.smuggling.wire import read_strictly

# What the policy of `running_gate` allows, said once more and in another way.
ALLOWED = re.compile(
    rb"POST /v1/chat/completions|(GET|HEAD) (/v1/models(/.+)?|/api/version)", re.DOTALL
)
IDENTITY = {b"x-spiffe-id", b"x-forwarded-client-cert"}
ONE_BY_ONE_BYTES = 400  # a longer case is cut at random


@pytest.fixture(scope="module")
def gate(authority: Authority) -> Iterator[Gate]:
    """One daemon for all cases: what one leaves behind is the next one's to meet."""
    with running_gate(authority) as running:
        yield running


@pytest.fixture(scope="module")
def gate_of_a_trusted_proxy(authority: Authority) -> Iterator[Gate]:
    """One whose policy keeps what the peer forwards of others; identities are not among that."""
    with running_gate(authority, trusted_proxy=True) as running:
        yield running


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_sent_whole(case: Case, gate: Gate) -> None:
    check(case, gate.attack(case, [case.raw]))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_sent_in_pieces(case: Case, gate: Gate) -> None:
    check(case, gate.attack(case, pieces(case)))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in identities.CASES])
def test_sent_by_a_proxy_that_is_trusted_with_forwarded_headers(
    case: Case, gate_of_a_trusted_proxy: Gate
) -> None:
    check(case, gate_of_a_trusted_proxy.attack(case, [case.raw]))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="it tells what is not yet read")
def test_no_request_reaches_a_backend_that_waits_for_the_rest_of_the_one_before(
    authority: Authority,
) -> None:
    """The gate has taken a whole body and holds the end of it when the answer comes: from then on
    what the backend reads next must be that end, or nothing."""
    with running_gate(authority, receive_buffer=4096) as gate:
        for size in range(65_536, 12_000_000, 65_536):
            # Ever larger, until the gate must leave a part of it in the kernel.
            if not answered_before_the_body_is_read(gate, b"a" * size):
                return
    pytest.fail("the gate was never full")


def answered_before_the_body_is_read(gate: Gate, body: bytes) -> bool:
    """Tell whether the gate had taken the whole body when the backend answered."""
    gate.backend.style = "late"
    gate.backend.answer_now.clear()
    second = PULL * 8000
    with gate.connect() as peer:
        peer.sendall(sized(body))
        taken = is_read(peer.sock)
        gate.backend.answer_now.set()
        if b"connection: close" not in peer.recv(65536).lower():
            peer.sendall(sized(second))
            peer.sock.settimeout(2)
            with suppress(TimeoutError):  # a backend that took it for another's end is silent
                peer.recv(65536)
    for conversation in gate.backend.take():
        assert not conversation.reader.fault
        for seen in conversation.reader.requests:
            assert (seen.method, seen.target) == (b"POST", b"/v1/chat/completions")
            assert not seen.complete or seen.body in (body, second)
    return taken


def is_read(sock: socket.socket, seconds: float = 1) -> bool:
    """Tell whether the other side has taken all that was sent, as far as the kernel knows."""
    ours, theirs = f":{sock.getsockname()[1]:04X}", f":{sock.getpeername()[1]:04X}"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        queues = {(one[1][-5:], one[2][-5:]): one[4].split(":") for one in lines}
        if queues[ours, theirs][0] == queues[theirs, ours][1] == "00000000":  # to send, to read
            return True
    return False


def pieces(case: Case) -> list[bytes]:
    """A short case byte for byte, a longer one cut at a dozen places that its id draws."""
    raw = case.raw
    if len(raw) <= ONE_BY_ONE_BYTES:
        return [raw[at : at + 1] for at in range(len(raw))]
    draw = random.Random(case.id)
    cuts = sorted({0, len(raw), *(draw.randrange(len(raw)) for _ in range(12))})
    return [raw[begin:end] for begin, end in itertools.pairwise(cuts)]


def check(case: Case, outcome: Outcome) -> None:
    """All that must hold, whatever the case."""
    seen = requests_seen(outcome)
    for one in seen:
        check_decided(one)
        check_identity(one)
    complete = [Request(one.method, one.target, bytes(one.body)) for one in seen if one.complete]
    assert complete == list(case.forwarded[: len(complete)])
    for one in seen:
        if not one.complete:
            check_begun(case, one)
    check_answers(case, outcome, complete)


def requests_seen(outcome: Outcome) -> list[Seen]:
    """What the backend saw, on which two readers agree to the byte."""
    seen: list[Seen] = []
    for conversation in outcome.conversations:
        assert not conversation.reader.fault
        read = read_strictly(bytes(conversation.raw))
        ours = [(one.method, one.target, one.body, one.complete) for one in read]
        theirs = conversation.reader.requests
        assert ours == [(one.method, one.target, one.body, one.complete) for one in theirs]
        seen += read
    return seen


def check_decided(seen: Seen) -> None:
    path = unquote_to_bytes(seen.target.partition(b"?")[0])
    assert ALLOWED.fullmatch(seen.method + b" " + path), "policy denies this"
    segments = re.split(rb"[/\\]", path[1:])
    assert not {b"", b".", b".."} & set(segments), "another path to who cleans it"


def check_identity(seen: Seen) -> None:
    names = [name for name, _ in seen.headers if name.replace(b"_", b"-") in IDENTITY]
    assert sorted(names) == sorted(IDENTITY), "identity is ours to tell, and told once"
    assert seen.values(b"x-spiffe-id") == [PEER.encode()]
    assert not [value for _, value in seen.headers if SPOOFED in value]


def check_begun(case: Case, seen: Seen) -> None:
    begun = case.begun
    assert begun is not None, "this must not even begin"
    assert (seen.method, seen.target) == (begun.method, begun.target)
    assert begun.body.startswith(bytes(seen.body))


def check_answers(case: Case, outcome: Outcome, complete: list[Request]) -> None:
    assert outcome.rest == b"", "bytes behind the last answer"
    statuses = [answer.status for answer in outcome.answers]
    assert len(statuses) <= len(case.answers), statuses
    padded = statuses + [NOTHING] * (len(case.answers) - len(statuses))
    for status, allowed in zip(padded, case.answers, strict=True):
        assert status in allowed, statuses
    served = [answer.told() for answer in outcome.answers if answer.status == 200 and answer.body]
    if case.style != "early":  # there an answer comes before the request is complete
        assert served == [(one.method, one.target) for one in complete][: len(served)]
    assert not case.ends or outcome.ended_unasked, "the connection goes on behind a refusal"
