"""`register-workload`: a command of its own, because it runs next to the SPIRE server.

The report, and the JSON of `--json`, go to standard output; warnings, notes and errors to standard
error. With `--json` an error is JSON, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from sidecar import __version__
from sidecar.cli.edge import fail
from sidecar.core.errors import RegistrationError
from sidecar.core.host_layout import SERVICE_UID
from sidecar.operations.register_workload.request import (
    DEFAULT_PATH,
    DEFAULT_TOKEN_TTL,
    Options,
    RequestError,
    read_prefix,
    read_request,
)
from sidecar.operations.register_workload.run import run
from sidecar.operations.register_workload.work import UnfinishedError

_TTL = click.IntRange(0, 2**31 - 1)
_Command = Callable[..., None]

# In groups, as the help shows them; the decorators are applied from the last to the first.
_OPTIONS = (
    click.option("--trust-domain", required=True, metavar="TD", help="As in ravenhelm.local."),
    click.option(
        "--host",
        required=True,
        metavar="NAME",
        help="The other host; its agent gets the alias spiffe://TD/host/NAME, the entry's parent.",
    ),
    click.option(
        "--spire-server",
        default="spire-server",
        show_default=True,
        metavar="COMMAND",
        help='As in "docker exec NAME /opt/spire/bin/spire-server"; no shell runs it.',
    ),
    click.option("--socket-path", metavar="PATH", help="The server's socket, as it sees the path."),
    click.option(
        "--spiffe-id",
        metavar="ID",
        help=f"The sidecar's.  [default: spiffe://TD{DEFAULT_PATH}]",
    ),
    click.option(
        "--uid",
        type=int,
        metavar="N",
        help=f"The sidecar's account there.  [default for a new entry: {SERVICE_UID}]",
    ),
    click.option(
        "--selector",
        "selectors",
        multiple=True,
        metavar="TYPE:VALUE",
        help="Instead of --uid; several have to match together.",
    ),
    click.option("--dns", multiple=True, metavar="NAME", help="A DNS name in the SVID, too."),
    click.option("--no-dns", is_flag=True, help="Take away the DNS names that the entry has."),
    click.option(
        "--x509-svid-ttl",
        type=_TTL,
        metavar="SECONDS",
        help="Lifetime of the SVIDs; 0 leaves it to the server.",
    ),
    click.option("--traefik-id", metavar="ID", help="Also register Traefik, under this ID."),
    click.option(
        "--traefik-selector",
        "traefik_selectors",
        multiple=True,
        metavar="TYPE:VALUE",
        help="What its agent sees of Traefik, as docker:label:NAME:VALUE; several have to match.",
    ),
    click.option(
        "--traefik-parent", metavar="ID", help="The agent on Traefik's host, or its alias."
    ),
    click.option(
        "--generate-token",
        is_flag=True,
        help="Make a join token for the host's agent, into the file join-token (0600); a new one "
        "each time.",
    ),
    click.option(
        "--token-ttl",
        type=click.IntRange(1, 2**31 - 1),
        metavar="SECONDS",
        help=f"How long the token can be used.  [default: {DEFAULT_TOKEN_TTL}]",
    ),
    click.option(
        "--server-address",
        metavar="HOST[:PORT]",
        help="Where the other host reaches the SPIRE server; port 8081 unless given.",
    ),
    click.option(
        "--host-folder",
        type=click.Path(readable=False, path_type=Path),
        metavar="DIR",
        help="Write agent.conf and trust-bundle.pem there, to be copied to the other host.",
    ),
    click.option("--dry-run", is_flag=True, help="Show the commands, and change nothing."),
    click.option(
        "--remove", is_flag=True, help="Remove the entries that these options would have made."
    ),
    click.option(
        "--evict-agent", is_flag=True, help="With --remove: the host's agent has to go as well."
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0.1, 3600),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="For each command of spire-server.",
    ),
    click.option("--json", "as_json", is_flag=True, help="The report as JSON."),
)


def _with_options(command: _Command) -> _Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("register-workload", context_settings={"help_option_names": ["-h", "--help"]})
@_with_options
@click.version_option(__version__, prog_name="register-workload")
def register_workload(
    spire_server: str, socket_path: str | None, timeout: float, as_json: bool, **given: Any
) -> None:
    """Register the sidecar of another host, and if asked Traefik, on the SPIRE server.

    Run again, it changes nothing; an option with another value shows the difference and applies
    it; what is not given stays as it is. Needs SPIRE 1.6 or newer.

    Exit status 0: all is as asked; 1: it is not; 2: the options cannot be meant.
    """
    try:
        request = read_request(Options(**given))
        prefix = read_prefix(spire_server)
    except RequestError as exc:
        raise click.UsageError(str(exc)) from exc
    try:
        report = run(request, prefix, socket_path, timeout)
    except RegistrationError as exc:
        _stop(exc, as_json=as_json)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        click.echo(_encoded(report.json))
        return
    for line in report.lines:
        click.echo(line)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)


def _stop(error: RegistrationError, *, as_json: bool) -> NoReturn:
    """End with exit status 1; a program is told what was done before, as a person is."""
    if as_json:
        unfinished = isinstance(error, UnfinishedError)
        cause = error.cause if isinstance(error, UnfinishedError) else error
        done = list(error.done) if isinstance(error, UnfinishedError) else []
        told = {"message": cause.message, "hint": cause.hint, "done": done, "begun": unfinished}
        click.echo(_encoded({"error": told}))
    fail(error, 130 if isinstance(error.__cause__, KeyboardInterrupt) else 1)


def _encoded(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
