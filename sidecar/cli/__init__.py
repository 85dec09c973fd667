"""The edge: arguments in, exit codes out. One module a command, or a few that are alike."""

from __future__ import annotations

import click

from sidecar import __version__
from sidecar.cli.commands import (
    check_command,
    convert_command,
    demo,
    explain_command,
    fetch_command,
    status_command,
)
from sidecar.cli.daemon import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spiffe-sidecar")
def main() -> None:
    """Put a loopback model server into a SPIFFE trust domain."""


for command in (
    run,
    check_command,
    fetch_command,
    status_command,
    explain_command,
    demo,
    convert_command,
):
    main.add_command(command)
