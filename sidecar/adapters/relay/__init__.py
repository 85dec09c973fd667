"""Bytes between peer and backend: the hot loop.

Gets the two ends of an admitted connection, moves bytes both ways, and counts them in a
`Traffic`: in mode `stream` until both have ended, in mode `http` for one request and its answer.
Knows no identity and no policy. Back-pressure: a direction that cannot be written stops reading.

The connections' life is trio's; only the bytes are not. A task and a nursery for each direction
would cost 8 KiB an idle connection and a coroutine switch a chunk, so all connections share one
selector, one task waits for it, and what is ready is moved by plain calls that never wait.
"""

from sidecar.adapters.relay.exchange import (
    ExchangeBrokenError,
    PeerCutError,
    PeerLeftError,
    SilenceError,
    Waited,
)
from sidecar.adapters.relay.loop import Relay
from sidecar.adapters.relay.pair import PeerStream, Traffic

__all__ = [
    "ExchangeBrokenError",
    "PeerCutError",
    "PeerLeftError",
    "PeerStream",
    "Relay",
    "SilenceError",
    "Traffic",
    "Waited",
]
