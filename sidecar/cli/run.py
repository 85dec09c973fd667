"""`run`: the daemon, from its configuration to its exit status."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import click
import trio

from sidecar import supervisor
from sidecar.cli.edge import LAST_LINES_SECONDS, checked_config, config_option, fail
from sidecar.confinement import confine_daemon, tell_confinement
from sidecar.core.checked import Checked
from sidecar.core.errors import SidecarError
from sidecar.log_file import LogFile
from sidecar.logs import configure_logs


@click.command("run")
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Instead of the level in the configuration.",
)
def run_command(config_file: Path, log_level: str | None) -> None:
    """Run the daemon."""
    checked = checked_config(config_file)
    with ExitStack() as closing:
        # Before the sandbox, which then needs to let nothing be made in their folders.
        try:
            bound = supervisor.bind_paths(checked.config, closing)
        except SidecarError as exc:
            fail(exc, 1)
        _run(checked, bound, log_level)


def _run(checked: Checked, bound: supervisor.Handed, log_level: str | None) -> None:
    # Before the first thread, which would stay outside.
    confined = confine_daemon(checked)
    table = checked.config.log
    file = LogFile(Path(checked.directory, table.file)) if table.file else None
    log = configure_logs(table.format, log_level or table.level, table.refusals_per_second, file)
    started: list[bool] = []

    async def begin() -> None:
        started.append(True)
        await supervisor.run(checked, bound)

    # The supervisor hears these signals and drains. Before it does there is nothing to drain, and
    # when it has, a signal that comes late must not spoil a good end.
    # They are heard although a parent blocked them; where it ignored SIGCHLD, no hook's exit status
    # would reach us.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None if started else os._exit(0))
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # what they ask for is being done
    try:
        tell_confinement(confined)
        trio.run(begin)
    except* SidecarError as group:
        fail(_first(group), 1)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        log.close(LAST_LINES_SECONDS)


def _first(group: BaseExceptionGroup[SidecarError]) -> SidecarError:
    """Give one error of a group: faults of several tasks at once have one cause in practice."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
