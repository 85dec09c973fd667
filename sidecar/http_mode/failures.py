"""What a peer is told, and the log says, of a request that was allowed and failed all the same."""

from __future__ import annotations

from sidecar.adapters.relay import SilenceError, Waited
from sidecar.core.refusal import Refusal

# Who let the others wait, in the words of a request's line.
OUTCOME_OF_SILENCE = {
    Waited.BODY: "refused",
    Waited.ANSWER: "backend_failed",
    Waited.REST: "backend_failed",
    Waited.READER: "cut",
}


def bad_gateway() -> Refusal:
    """Return what is told when there is no connection, or no answer on it."""
    text = "the model server cannot be reached or broke off; is it running?"
    return Refusal(502, "backend_unreachable", text)


def late(silence: SilenceError) -> Refusal:
    """Return what is told when nothing moved for too long."""
    seconds = silence.seconds
    if silence.waited is Waited.BODY:
        text = f"the request's body did not come: no byte for {seconds:g} s"
        return Refusal(408, "request_timeout", text)
    which = "first byte of an" if silence.waited is Waited.ANSWER else "further byte of its"
    text = f"the model server gave no {which} answer for {seconds:g} s"
    return Refusal(504, "backend_silent", text)
