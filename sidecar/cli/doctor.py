"""`doctor`: what is wrong with this host, and what to do about it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
import trio

from sidecar import __version__
from sidecar.cli.edge import EX_CONFIG, config_option, fail
from sidecar.core.diagnosis.catalogue import CHECKS, GROUPS
from sidecar.core.diagnosis.finding import Verdict
from sidecar.core.errors import ConfigError
from sidecar.operations.doctor.daemon import UserError
from sidecar.operations.doctor.examination import examine
from sidecar.operations.doctor.screen import as_json as json_of
from sidecar.operations.doctor.screen import lines
from sidecar.operations.doctor.subject import Request


@click.command("doctor")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs; names never change.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Show a group, such as agent, or one check, such as agent.socket; may be repeated.",
)
@click.option("--verbose", is_flag=True, help="Show what was seen where all is well, too.")
@click.option("--user", default="", metavar="NAME", help="The service user, if it is not found.")
@click.option(
    "--model",
    default="",
    metavar="NAME",
    help="Have this model give a short answer, to see whether it is streamed.",
)
def doctor_command(
    config_file: Path, *, as_json: bool, only: tuple[str, ...], verbose: bool, user: str, model: str
) -> None:
    """Check everything about this host that must be right, and say what to do.

    Changes nothing, and asks nobody but this host. With sudo it sees more: what it may not see is
    skipped, with the reason.

    Exit status 0: nothing fails, there may be warnings; 1: something does; 78: the configuration
    cannot be read.
    """
    unknown = [name for name in only if name not in (*CHECKS, *GROUPS)]
    if unknown:
        known = ", ".join(GROUPS)
        raise click.UsageError(f"--only {unknown[0]!r}: expected a check, or a group: {known}")
    request = Request(config_file, __version__, user, model)
    try:
        found = trio.run(partial(examine, request))
    except ConfigError as exc:
        fail(exc, EX_CONFIG)
    except UserError as exc:
        raise click.UsageError(exc.message) from exc
    except KeyboardInterrupt:
        sys.exit(130)
    findings = [one for one in found if not only or one.name in only or one.group in only]
    if as_json:
        click.echo(json_of(findings), nl=False)
    else:
        for line in lines(findings, verbose=verbose):
            click.echo(line)
    sys.exit(1 if any(one.verdict is Verdict.FAIL for one in findings) else 0)
