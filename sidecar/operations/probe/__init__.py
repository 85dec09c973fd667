"""`probe`: one mTLS request with our own SVID, and the hop where it failed, if it did.

    own_identity   our SVID, once, from the agent or from files
    way            the name, one address after the other, the handshake that judges the peer
    story          is it the one who was meant? before anything is sent
    asking         one request, and the answer as it comes
    screen         all of it for people, and as JSON

For the command and for `doctor`. Gives a `ProbeReport` whatever happens, and raises nothing for
what it meets. Nothing of it is insecure: a peer that is not proven gets no byte of the request.
"""

from sidecar.operations.probe.own_identity import take_identity
from sidecar.operations.probe.story import probe

__all__ = ["probe", "take_identity"]
