"""The clocks of this host, read together.

For the stories. A handshake reads the wall clock itself, at the moment of its verdict.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sidecar.core.identity_state import Clocks


def read_clocks() -> Clocks:
    """Read both clocks."""
    return Clocks(datetime.now(UTC), time.monotonic())
