"""Story: one peer's HTTP connection, each request decided on its own.

    core.http_gate   bytes -> one request
    admission        identity, peer, policy, size and rate of this moment -> a rule, or why not
    mode             a slot of this peer under that rule
    backend_link     connects, only now
    relay            moves the request and its answer through the gate -> traffic
    connection       writes one log line, and begins anew

A request that is not admitted is told why in the dialect of its path. What was decided for one
request is never used for the next one: policy, identity and the peer's own SVID may have changed.
"""

from sidecar.http_mode.mode import HttpMode

__all__ = ["HttpMode"]
