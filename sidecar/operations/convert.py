"""`convert`: spiffe-helper's configuration -> ours.

Reads the one file and nothing else: it needs neither agent nor spiffe-helper, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sidecar.core.address import ENDPOINT_VARIABLE
from sidecar.core.conversion import Conversion, conversion
from sidecar.core.helper_conf import Note, helper_conf
from sidecar.operations.check import read_file
from sidecar.operations.hcl import parse_hcl


def convert(path: Path, environment: Mapping[str, str]) -> Conversion:
    """Convert a file; raise `ConfigError` if it cannot be read, or with all its problems."""
    hcl = parse_hcl(read_file(path), path.name)
    conf = helper_conf(hcl.document, path.name)
    done = conversion(conf, path.name, environment.get(ENDPOINT_VARIABLE, ""))
    twice = "there more than once: lists are joined, of other values the last one counts"
    repeated = tuple(Note(key, twice) for key in hcl.repeated)
    return replace(done, notes=(*repeated, *done.notes))
