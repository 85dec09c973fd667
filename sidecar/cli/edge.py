"""What all commands share: `--config`, a checked configuration, and the way out.

0 fine, 1 failed at run time, 2 usage, 78 configuration (EX_CONFIG; units do not restart on it).
Every message for a person goes through `fail`: what was found, what was expected, the hint.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from sidecar.core.checked import Checked
from sidecar.core.errors import ConfigError, HostError, SidecarError
from sidecar.core.status import printable
from sidecar.operations.check import check

EX_CONFIG = 78
# How long the end may wait for a reader of the log.
LAST_LINES_SECONDS = 2.0

config_option = click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="The configuration, sidecar.toml.",
)


def checked_config(config_file: Path) -> Checked:
    """Read and check configuration and policy, or end with what is wrong with them."""
    try:
        return check(config_file, os.environ)
    except ConfigError as exc:
        fail(exc, EX_CONFIG)
    except HostError as exc:
        fail(exc, 1)


def fail(error: SidecarError, code: int) -> NoReturn:
    """End with the error's message, and its hint if it has one."""
    # By new lines alone: what else ends one, and what a terminal acts on, came from outside.
    for line in error.message.rstrip("\n").split("\n"):
        shown = printable(line)
        click.echo(shown if line.startswith(" ") else f"error: {shown}", err=True)
    if error.hint:
        hint = "\n".join(map(printable, error.hint.split("\n")))
        click.echo(f"hint: {hint}", err=True)
    sys.exit(code)
