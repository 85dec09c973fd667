"""A configuration and its policy after all checks, as one value for whoever runs or explains it.

Neither `config` nor `policy_file`, because neither knows the other's file.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import Config, HelperConfig
from sidecar.core.policy import Policy


@dataclass(frozen=True, slots=True)
class Serving:
    """What a sidecar with a listener has besides; `policy_text` is what `policy` was read from."""

    config: Config
    policy: Policy
    policy_text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration that can be run; relative paths are below `directory`.

    `text` is what `config` was read from, in `file`.
    """

    config: HelperConfig
    endpoint: WorkloadEndpoint
    directory: str
    serving: Serving | None
    file: str
    text: str
