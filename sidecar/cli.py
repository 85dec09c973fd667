"""The edge: arguments in, exit codes out.

0 fine, 1 failed at run time, 2 usage, 78 configuration (EX_CONFIG; units do not restart on it).
Every message for a person goes through `_fail`: what was found, what was expected, the hint.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import trio

from sidecar import __version__, supervisor
from sidecar.confinement import confine_daemon, tell_confinement
from sidecar.core.checked import Checked
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.logs import configure_logs
from sidecar.operations.check import check, summary, warnings
from sidecar.operations.explain import QuestionError, explain, read_question
from sidecar.operations.fetch import fetch

EX_CONFIG = 78
# How long the end may wait for a reader of the log.
_LAST_LINES_SECONDS = 2.0

_config_option = click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="The configuration, sidecar.toml.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spiffe-sidecar")
def main() -> None:
    """Put a loopback model server into a SPIFFE trust domain."""


@main.command()
@_config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Instead of the level in the configuration.",
)
def run(config_file: Path, log_level: str | None) -> None:
    """Run the daemon."""
    checked = _checked(config_file)
    # Before the first thread, which would stay outside.
    confined = confine_daemon(checked)
    table = checked.config.log
    log = configure_logs(table.format, log_level or table.level, table.refusals_per_second)
    started: list[bool] = []

    async def begin() -> None:
        started.append(True)
        await supervisor.run(checked)

    # The supervisor hears these signals and drains. Before it does there is nothing to drain, and
    # when it has, a signal that comes late must not spoil a good end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None if started else os._exit(0))
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # what they ask for is being done
    try:
        tell_confinement(confined)
        trio.run(begin)
    except* SidecarError as group:
        _fail(_first(group), 1)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        log.close(_LAST_LINES_SECONDS)


@main.command("check")
@_config_option
def check_command(config_file: Path) -> None:
    """Validate configuration and policy, all problems at once; warn of what is likely a slip."""
    checked = _checked(config_file)
    click.echo(f"{config_file}: fine")
    for line in summary(checked):
        click.echo(f"  {line}")
    for warning in warnings(checked):
        click.echo(f"warning: {warning}", err=True)


@main.command("fetch")
@_config_option
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
    checked = _checked(config_file)
    log = configure_logs(checked.config.log.format, "warning")
    try:
        published = trio.run(partial(fetch, checked, wait, after_rotation=after_rotation))
    except ConfigError as exc:
        _fail(exc, EX_CONFIG)
    except SidecarError as exc:
        _fail(exc, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        log.close(_LAST_LINES_SECONDS)
    for done in published:
        click.echo(f"{done.spiffe_id}, until {done.expires:%FT%TZ}")
        for name, path in done.files.items():
            click.echo(f"  {name}: {path}")


@main.command("status")
@_config_option
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
        _fail(exc, EX_CONFIG)
    except SidecarError as exc:
        _fail(exc, 1)
    except KeyboardInterrupt:
        sys.exit(130)


@main.command("explain")
@_config_option
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
    serving = _checked(config_file).serving
    if serving is None:
        raise click.UsageError(f"{config_file} has no [listener], so there is nothing to decide")
    explanation = explain(serving, question)
    for line in explanation.lines():
        click.echo(line)
    sys.exit(0 if explanation.allowed else 1)


@main.command()
@click.option("--keep", is_flag=True, help="Leave it running and print commands to try.")
def demo(keep: bool) -> None:
    """Show the main job on embedded parts, in under 30 seconds."""
    # Here and not above: a daemon has no use for the demonstration's parts.
    from sidecar.demo.show import show  # noqa: PLC0415

    try:
        sys.exit(0 if trio.run(show, keep) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


@main.command("convert")
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
        _fail(exc, EX_CONFIG)
    click.echo(done.toml.encode(), nl=False)  # TOML is UTF-8, whatever the terminal is
    for note in done.notes:
        click.echo(f"note: {note}", err=True)


def _pasted(text: str | None) -> str | None:
    """Give what stands on standard input for "-": a command line is not easy to quote in one."""
    return sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else text


def _checked(config_file: Path) -> Checked:
    try:
        return check(config_file, os.environ)
    except ConfigError as exc:
        _fail(exc, EX_CONFIG)


def _first(group: BaseExceptionGroup[SidecarError]) -> SidecarError:
    """Give one error of a group: faults of several tasks at once have one cause in practice."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _fail(error: SidecarError, code: int) -> NoReturn:
    for line in error.message.splitlines():
        click.echo(line if line.startswith(" ") else f"error: {line}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    sys.exit(code)
