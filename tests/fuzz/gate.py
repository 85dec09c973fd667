"""The fuzz target of the HTTP gate: any bytes are a conversation, and these things always hold.

Nothing is raised but `HttpError` and `BackendError`. What the backend got is exactly the admitted
requests, as a second parser finds them in the peer's bytes; not one byte of a refused one. What
the peer got is one answer for each request, in order, each ours or the backend's own. Our
identity headers are at the backend once and nobody else's. The gate holds a bounded number of
bytes. How the bytes were cut into pieces changes nothing.

It runs over tests/fuzz/corpus and under hypothesis with the other tests. Guided by coverage:

    pip install atheris
    python -m tests.fuzz.gate -max_len=2048 [other arguments of libFuzzer] tests/fuzz/corpus
"""

from __future__ import annotations

import importlib
import sys
import zlib

import h11

from tests.fuzz.driver import Backend, Driver, Exchange
from tests.fuzz.invariants import check
from tests.fuzz.script import Script


def run(data: bytes) -> None:
    """Play the script and check all that came of it; one in 32 in each way there is."""
    if zlib.crc32(data) & 31:
        check(play(Script.parse(data)))
    else:
        run_thoroughly(data)


def run_thoroughly(data: bytes) -> None:
    """Play the script as it is and byte by byte, and have h11 read all that came of it."""
    script = Script.parse(data)
    whole, cut = play(script), play(script.byte_by_byte())
    for driver in (whole, cut):
        check(driver)
        check_with_h11(driver)
    compare(whole, cut)


def play(script: Script) -> Driver:
    """Play the script."""
    return Driver(script.settings).play(script)


# How the bytes were cut.


def compare(whole: Driver, cut: Driver) -> None:
    """Check that the pieces made no difference but to how much went on before a breach."""
    for one, other in zip(whole.exchanges, cut.exchanges, strict=False):
        assert one.request == other.request
        assert str(one.backend_error) == str(other.backend_error)
        assert bool(one.peer_error) == bool(other.peer_error)
        if one.backend_error or one.peer_error:
            return
        assert (one.own, one.cut) == (other.own, other.cut)
        assert bool(one.backend) == bool(other.backend)
        if one.own and one.keeps != other.keeps:
            # A refused body that is not there yet is not waited for, unless it is short.
            assert one.request.length is None or one.request.wants_continue
            return
        assert one.keeps == other.keeps
    assert len(whole.exchanges) == len(cut.exchanges)
    assert str(whole.form_error) == str(cut.form_error)
    assert whole.state == cut.state


# Another reader.


def check_with_h11(driver: Driver) -> None:
    """Hold h11, as server and as client, to find the same requests and whole answers."""
    for backend in driver.backends:
        _check_requests_with_h11(backend)
    raw = bytes(driver.to_peer)
    for exchange in driver.exchanges:
        if exchange.keeps:
            raw = _check_answer_with_h11(raw, exchange)


def _check_requests_with_h11(backend: Backend) -> None:
    if not backend.sent:
        return  # to h11 this would be the end
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(bytes(backend.sent))
    for exchange in backend.exchanges:
        event = server.next_event()
        assert isinstance(event, h11.Request), event
        assert event.method.decode() == exchange.request.method
        assert event.target.decode() == exchange.request.path + exchange.request.query
        while type(event) is not h11.EndOfMessage:
            event = server.next_event()
            if event is h11.NEED_DATA:
                assert exchange is backend.exchanges[-1]
                return
        server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        server.send(h11.EndOfMessage())
        server.start_next_cycle()
    assert server.next_event() is h11.NEED_DATA


def _check_answer_with_h11(raw: bytes, exchange: Exchange) -> bytes:
    """Read one whole answer; give what is behind it."""
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    peer.send(h11.Request(method=exchange.request.method, target="/", headers=[("Host", "x")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(raw)
    event = peer.next_event()
    while type(event) is not h11.EndOfMessage:
        assert event is not h11.NEED_DATA
        event = peer.next_event()
    return peer.trailing_data[0]


def main() -> None:
    """Run under atheris, which is no dependency of ours: with the core imported anew for it."""
    import atheris  # type: ignore[import-untyped]

    for name in [name for name in sys.modules if name.startswith(("sidecar", "tests.fuzz"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["sidecar.core"]):
        target = importlib.import_module("tests.fuzz.gate")
    # By its first argument libFuzzer starts itself anew, for -merge and -fork.
    itself = f"{sys.executable} -m tests.fuzz.gate"
    atheris.Setup([itself, *sys.argv[1:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
