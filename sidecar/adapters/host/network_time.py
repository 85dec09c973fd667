"""Whether the clock is set from the network. Linux: adjtimex(2); macOS: systemsetup.

Nobody is asked for the time: what the kernel, or the system's own settings, know of it is read.
"""

from __future__ import annotations

import ctypes
import sys

from sidecar.adapters.host.command import Output, Run
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import NetworkTime

_TIME_ERROR = 5  # what adjtimex(2) returns while nobody disciplines the clock
_TIMEX_BYTES = 512  # more than any system's struct timex


async def network_time(run: Run, platform: str = sys.platform) -> NetworkTime | Unknown:
    """Give whether it is."""
    if platform == "linux":
        return _adjtimex()
    output = await run("systemsetup", "-getusingnetworktime")
    return output if isinstance(output, Unknown) else mac_network_time(output)


def mac_network_time(output: Output) -> NetworkTime | Unknown:
    """Read `Network Time: On`, or the refusal to tell anybody but an administrator."""
    text = output.text.strip()
    if text == "Network Time: On":
        return NetworkTime(synchronised=True, how="it is set from the network")
    if text == "Network Time: Off":
        return NetworkTime(synchronised=False, how="it is not set from the network")
    return Unknown("systemsetup tells this only to an administrator", "run doctor with sudo")


def _adjtimex() -> NetworkTime | Unknown:
    libc = ctypes.CDLL(None, use_errno=True)
    # All zeros: `modes` 0 changes nothing.
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        return Unknown("the kernel does not say; in a container the host's clock is used")
    return linux_network_time(state)


def linux_network_time(state: int) -> NetworkTime:
    """Judge by what adjtimex(2) returned."""
    if state == _TIME_ERROR:
        how = "nobody sets it from the network, says the kernel"
        return NetworkTime(synchronised=False, how=how)
    return NetworkTime(synchronised=True, how="it is set from the network, says the kernel")
