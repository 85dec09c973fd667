"""Between whom the story plays: the agent, and the directory of certificate files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sidecar.adapters.cert_files import CertFiles
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.identity_update import SvidChoice


@dataclass(frozen=True, slots=True)
class JwtFiles:
    """Where JWT-SVIDs and JWT bundles come from, which are ours, and where they go."""

    endpoint: WorkloadEndpoint
    choice: SvidChoice
    files: CertFiles
    directory: Path  # that of `files`
