"""`check`: what is wrong with a configuration and its policy."""

from __future__ import annotations

from pathlib import Path

import click

from sidecar.cli.edge import EX_CONFIG, checked_config, config_option, fail
from sidecar.core.checked import Checked
from sidecar.core.toml_tables import ProblemsError
from sidecar.operations.check import summary, warnings


@click.command("check")
@config_option
def check_command(config_file: Path) -> None:
    """Validate configuration and policy, all problems at once; warn of what is likely a slip."""
    checked = checked_config(config_file)
    missing = _identity_warnings(checked)
    click.echo(f"{config_file}: {'fine' if not missing else 'valid, without an identity yet'}")
    for line in summary(checked):
        click.echo(f"  {line}")
    for warning in (*missing, *warnings(checked)):
        click.echo(f"warning: {warning}", err=True)


def _identity_warnings(checked: Checked) -> list[str]:
    if checked.config.identity_files is None:
        return []
    # Late: it loads what reads an identity, and that is a daemon's.
    from sidecar.operations.identity_check import identity_warnings  # noqa: PLC0415

    try:
        return identity_warnings(checked)
    except ProblemsError as exc:
        fail(exc, EX_CONFIG)
