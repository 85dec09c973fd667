"""`check`: what is wrong with a configuration and its policy."""

from __future__ import annotations

from pathlib import Path

import click

from sidecar.cli.edge import checked_config, config_option
from sidecar.operations.check import summary, warnings


@click.command("check")
@config_option
def check_command(config_file: Path) -> None:
    """Validate configuration and policy, all problems at once; warn of what is likely a slip."""
    checked = checked_config(config_file)
    click.echo(f"{config_file}: fine")
    for line in summary(checked):
        click.echo(f"  {line}")
    for warning in warnings(checked):
        click.echo(f"warning: {warning}", err=True)
