"""`status`: how the running daemon is."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from sidecar.cli.edge import EX_CONFIG, config_option, fail
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.operations.status import admin_address, ask, show_status, watch_status


@click.command("status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="The JSON of /status, as it came.")
@click.option("--watch", is_flag=True, help="A screen that shows it anew every second.")
def status_command(config_file: Path, as_json: bool, watch: bool) -> None:
    """Show how the running daemon is.

    Exit status 0: ready; 1: not ready, or no answer; 78: the configuration has no [admin].
    """
    if as_json and watch:
        raise click.UsageError("--json and --watch are two things: one answer, or a screen")
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch is for a terminal; --json is for programs")
    try:
        address = admin_address(config_file)
        if as_json:
            answer = ask(address)
            click.echo(answer.data, nl=False)
            sys.exit(0 if answer.report.ready else 1)
        show = watch_status if watch else show_status
        sys.exit(0 if show(address, Console()) else 1)
    except ConfigError as exc:
        fail(exc, EX_CONFIG)
    except SidecarError as exc:
        fail(exc, 1)
    except KeyboardInterrupt:
        sys.exit(130)
