"""`python -m sidecar` is `spiffe-sidecar`."""

from sidecar.cli import main

main(prog_name="spiffe-sidecar")
