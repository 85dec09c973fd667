"""`demo`: the main job on embedded parts."""

from __future__ import annotations

import sys

import click
import trio

from sidecar.demo.show import show


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave it running and print commands to try.")
def demo_command(keep: bool) -> None:
    """Show the main job on embedded parts, in under 30 seconds."""
    try:
        sys.exit(0 if trio.run(show, keep) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
