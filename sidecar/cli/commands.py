"""The commands that a person runs beside the daemon."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import click
import trio

from sidecar.cli.edge import EX_CONFIG, LAST_LINES_SECONDS, checked_config, config_option, fail
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.logs import configure_logs
from sidecar.operations.check import summary, warnings
from sidecar.operations.explain import QuestionError, explain, read_question
from sidecar.operations.fetch import fetch


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


@click.command("status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="The JSON of /status, as it came.")
@click.option("--watch", is_flag=True, help="A screen that shows it anew every second.")
def status_command(config_file: Path, as_json: bool, watch: bool) -> None:
    """Show how the running daemon is.

    Exit status 0: ready; 1: not ready, or no answer.
    """
    if as_json and watch:
        raise click.UsageError("--json and --watch are two things: one answer, or a screen")
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch is for a terminal; --json is for programs")
    # Here and not above: a daemon has no use for the screen.
    from rich.console import Console  # noqa: PLC0415

    from sidecar.operations.status import (  # noqa: PLC0415
        admin_address,
        ask,
        show_status,
        watch_status,
    )

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


@click.command("explain")
@config_option
@click.option("--peer", metavar="ID", help="The peer's SPIFFE ID.")
@click.option("--method", help="With --path; without both: is the peer admitted at all?")
@click.option("--path", help="A query is left out.")
@click.option("--curl", metavar="COMMAND", help="A curl command instead; - reads it from stdin.")
@click.option("--log", metavar="LINE", help="A line of the log instead; - reads it from stdin.")
def explain_command(config_file: Path, **asked: str | None) -> None:
    """Tell which rule of the policy decides on a request, and why.

    Exit status 0: allowed; 1: refused.
    """
    try:
        question = read_question(**{name: _pasted(text) for name, text in asked.items()})
    except QuestionError as exc:
        raise click.UsageError(str(exc)) from exc
    serving = checked_config(config_file).serving
    if serving is None:
        raise click.UsageError(f"{config_file} has no [listener], so there is nothing to decide")
    explanation = explain(serving, question)
    for line in explanation.lines():
        click.echo(line)
    sys.exit(0 if explanation.allowed else 1)


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running and print commands to try.")
def demo(keep: bool) -> None:
    """Show the main job on embedded parts, in under 30 seconds."""
    # Here and not above: a daemon has no use for the demonstration's parts.
    from sidecar.demo.show import show  # noqa: PLC0415

    try:
        sys.exit(0 if trio.run(show, keep) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


@click.command("convert")
@click.argument(
    "helper_conf", type=click.Path(readable=False, path_type=Path), metavar="HELPER_CONF"
)
def convert_command(helper_conf: Path) -> None:
    """Print the sidecar.toml for a configuration of spiffe-helper, and on stderr what differs."""
    # Here and not above: a daemon has no use for the parser.
    from sidecar.operations.convert import convert  # noqa: PLC0415

    try:
        done = convert(helper_conf, os.environ)
    except ConfigError as exc:
        fail(exc, EX_CONFIG)
    click.echo(done.toml.encode(), nl=False)  # TOML is UTF-8, whatever the terminal is
    for note in done.notes:
        click.echo(f"note: {note}", err=True)


def _pasted(text: str | None) -> str | None:
    """Give what stands on standard input for "-": a command line is not easy to quote in one."""
    return sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else text
