"""The daemon, and what lives in it: `python -m tests.watched_daemon run --config FILE`.

SIGUSR2 has it write a line `alive`: how many there are of the objects that come with a connection,
an update or a reload, its threads and its descriptors. With UNCOLLECTED=1 the garbage collector is
off, and what stays is in a cycle. A daemon must not lean on the collector: it comes to old objects
seldom, and does not know that a TLS connection of a few hundred bytes holds 30 KiB of OpenSSL's.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections import Counter
from types import FrameType

from OpenSSL import SSL

from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.lifelines import Lifeline
from sidecar.adapters.tls import ServerIdentity, TlsStream
from sidecar.adapters.workload_api.stream import AgentStream
from sidecar.cli import main
from sidecar.core.config import Config
from sidecar.core.errors import SidecarError
from sidecar.core.http_gate import HttpGate
from sidecar.core.policy import Policy

KINDS = (
    SSL.Context,
    SSL.Connection,
    ServerIdentity,
    TlsStream,
    Lifeline,
    HttpGate,
    Policy,
    Config,
    SidecarError,
    AgentStream,
    FileChanges,
)


def tell(_number: int, _frame: FrameType | None) -> None:
    """Write the line."""
    alive = Counter(
        kind.__name__ for one in gc.get_objects() for kind in KINDS if isinstance(one, kind)
    )
    counts = {kind.__name__: alive[kind.__name__] for kind in KINDS}
    counts |= {"threads": threading.active_count(), "descriptors": len(os.listdir("/dev/fd"))}
    os.write(2, json.dumps({"event": "alive", "level": "debug", "counts": counts}).encode() + b"\n")


if __name__ == "__main__":
    if os.environ.get("UNCOLLECTED"):
        gc.disable()
    signal.signal(signal.SIGUSR2, tell)
    main(sys.argv[1:])
