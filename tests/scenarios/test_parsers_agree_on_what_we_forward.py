"""Whoever reads what the gate sends on finds the same requests in it, with the same ends.

A gate that reads strictly is no help if it writes what others read in two ways. So the bytes that
the backend received go to h11, to HAProxy and to nginx. A last request is put behind them: whoever
sees an end elsewhere swallows a part of it, or finds more than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.ca import Authority
from tests.recording_backend import Reader, Seen
from tests.smuggling import proxies
from tests.smuggling.case import request
from tests.smuggling.cases import CASES
from tests.smuggling.gate import running_gate
from tests.smuggling.wire import read_strictly

LAST = request(b"GET /the-last-one HTTP/1.1", b"Host: x", b"Connection: close")
ReadBy = Callable[[bytes, int], list[Seen]]  # bytes, and how many answers to wait for
Found = list[tuple[bytes, bytes, bytes]]


@pytest.fixture(scope="module")
def forwarded(authority: Authority) -> dict[str, list[bytes]]:
    """What the backend received on each connection, by the case that it came of."""
    with running_gate(authority) as gate:
        outcomes = {
            case.id: gate.attack(case, [case.raw]) for case in CASES if case.forwarded or case.begun
        }
    return {
        name: [bytes(one.raw) for one in outcome.conversations if one.raw]
        for name, outcome in outcomes.items()
    }


@pytest.fixture(scope="module")
def haproxy() -> Iterator[ReadBy]:
    """HAProxy's reading."""
    if proxies.haproxy() is None:
        pytest.skip("no haproxy in PATH and no HAPROXY_BIN")
    with proxies.running_proxy(proxies.start_haproxy) as proxy:
        yield proxy.read


@pytest.fixture(scope="module")
def nginx() -> Iterator[ReadBy]:
    """The reading of nginx."""
    if proxies.nginx() is None:
        pytest.skip("no nginx in PATH and no NGINX_BIN")
    with proxies.running_proxy(proxies.start_nginx) as proxy:
        yield proxy.read


def test_enough_is_forwarded_to_disagree_on(forwarded: dict[str, list[bytes]]) -> None:
    assert sum(map(len, forwarded.values())) > 150


def test_h11_agrees(forwarded: dict[str, list[bytes]]) -> None:
    assert disagreements(forwarded, read_by_h11) == {}


def test_haproxy_agrees(forwarded: dict[str, list[bytes]], haproxy: ReadBy) -> None:
    assert disagreements(forwarded, haproxy) == {}


def test_nginx_agrees(forwarded: dict[str, list[bytes]], nginx: ReadBy) -> None:
    assert disagreements(forwarded, nginx) == {}


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"POST /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b", id="length left out"),
        pytest.param(
            b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nshort", id="too short"
        ),
        pytest.param(
            b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            id="no last chunk",
        ),
    ],
)
def test_a_gate_that_wrote_this_would_be_found(raw: bytes, haproxy: ReadBy, nginx: ReadBy) -> None:
    for read in (read_by_h11, haproxy, nginx):
        assert found(read(raw + LAST, 2)) != [
            (b"POST", b"/a", b""),
            (b"GET", b"/the-last-one", b""),
        ]


def read_by_h11(raw: bytes, _count: int) -> list[Seen]:
    reader = Reader()
    for _ in reader.feed(raw):
        pass
    return [seen for seen in reader.requests if seen.complete]


def found(requests: list[Seen]) -> Found:
    return [(one.method, one.target, bytes(one.body)) for one in requests]


def disagreements(
    forwarded: dict[str, list[bytes]], read: ReadBy
) -> dict[str, tuple[Found, Found]]:
    """What somebody finds who does not find what we do, by case."""
    differing = {}
    for name, connections in forwarded.items():
        for raw in connections:
            ours = read_strictly(raw)
            whole = all(one.complete for one in ours)
            expected = found([one for one in ours if one.complete])
            if whole:
                expected.append((b"GET", b"/the-last-one", b""))
            theirs = found(read(raw + LAST if whole else raw, len(expected)))
            if theirs != expected:
                differing[name] = (expected, theirs)
    return differing
