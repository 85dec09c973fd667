"""`convert`: a configuration of spiffe-helper as one of ours."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sidecar.cli.edge import EX_CONFIG, fail
from sidecar.core.errors import ConfigError
from sidecar.operations.convert import convert


@click.command("convert")
@click.argument(
    "helper_conf", type=click.Path(readable=False, path_type=Path), metavar="HELPER_CONF"
)
def convert_command(helper_conf: Path) -> None:
    """Print the sidecar.toml for a configuration of spiffe-helper, and on stderr what differs."""
    try:
        done = convert(helper_conf, os.environ)
    except ConfigError as exc:
        fail(exc, EX_CONFIG)
    click.echo(done.toml.encode(), nl=False)  # TOML is UTF-8, whatever the terminal is
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
