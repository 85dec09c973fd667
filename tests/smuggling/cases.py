"""All cases, from the modules that each hold one family of them."""

from __future__ import annotations

from tests.smuggling import (
    chunks,
    connections,
    framing,
    heads,
    identities,
    lengths,
    pipelines,
    request_lines,
    targets,
)
from tests.smuggling.case import Case

CASES: tuple[Case, ...] = (
    *framing.CASES,
    *lengths.CASES,
    *chunks.CASES,
    *heads.CASES,
    *request_lines.CASES,
    *targets.CASES,
    *identities.CASES,
    *connections.CASES,
    *pipelines.CASES,
)
