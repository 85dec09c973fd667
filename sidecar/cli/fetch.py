"""`fetch`: the certificate files, once."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
import trio

from sidecar.cli.edge import EX_CONFIG, LAST_LINES_SECONDS, checked_config, config_option, fail
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.logs import configure_logs
from sidecar.operations.fetch import fetch


@click.command("fetch")
@config_option
@click.option(
    "--wait",
    type=click.FloatRange(0, 31_536_000),
    default=0,
    metavar="SECONDS",
    help="Try again for so long; without it, the first answer counts.",
)
@click.option(
    "--after-rotation",
    is_flag=True,
    help="Also do what [[after_rotation]] says; without it nobody is told.",
)
def fetch_command(config_file: Path, wait: float, after_rotation: bool) -> None:
    """Write the certificate files once, and exit.

    Exit status 0: they are there; 1: no identity, they cannot be written, or somebody who is to
    be told of them cannot be.
    """
    checked = checked_config(config_file)
    log = configure_logs(checked.config.log.format, "warning")
    try:
        published = trio.run(partial(fetch, checked, wait, after_rotation=after_rotation))
    except ConfigError as exc:
        fail(exc, EX_CONFIG)
    except SidecarError as exc:
        fail(exc, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        log.close(LAST_LINES_SECONDS)
    for done in published:
        click.echo(f"{done.spiffe_id}, until {done.expires:%FT%TZ}")
        for name, path in done.files.items():
            click.echo(f"  {name}: {path}")
