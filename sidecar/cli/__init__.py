"""The edge: arguments in, exit codes out. One module a command, or a few that are alike."""

from __future__ import annotations

import os
import signal
from importlib import import_module

import click

from sidecar import __version__

# A command's module is loaded when it is asked for: `check` waits for no gRPC, and a daemon carries
# no screens.
_COMMANDS = {
    "run": "run:run_command",
    "check": "check:check_command",
    "fetch": "fetch:fetch_command",
    "status": "status:status_command",
    "explain": "explain:explain_command",
    "probe": "probe:probe_command",
    "doctor": "doctor:doctor_command",
    "traefik": "traefik:traefik_command",
    "demo": "demo:demo_command",
    "convert": "convert:convert_command",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"sidecar.cli.{module}"), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spiffe-sidecar")
def main() -> None:
    """Put a loopback model server into a SPIFFE trust domain."""
    if os.getpid() == 1:
        # To process 1, in a container, the kernel delivers no signal that it has no handler for:
        # an init container that waits for its identity could not be stopped.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
