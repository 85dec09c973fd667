"""spiffe-sidecar: puts a loopback model server into a SPIFFE trust domain."""

__version__ = "0.1.0"
