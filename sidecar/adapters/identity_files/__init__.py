"""The files of an identity that something else writes: what stands there, and when it changes."""

from sidecar.adapters.identity_files.reading import IdentityPaths
from sidecar.adapters.identity_files.source import IdentityFiles, look_once

__all__ = ["IdentityFiles", "IdentityPaths", "look_once"]
