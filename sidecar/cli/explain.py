"""`explain`: which rule decides, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sidecar.cli.edge import checked_config, config_option
from sidecar.operations.explain import QuestionError, explain, read_question


@click.command("explain")
@config_option
@click.option("--peer", metavar="ID", help="The peer's SPIFFE ID.")
@click.option("--method", help="With --path; without both: is the peer admitted at all?")
@click.option("--path", help="A query is left out.")
@click.option("--curl", metavar="COMMAND", help="A curl command instead; - reads it from stdin.")
@click.option("--log", metavar="LINE", help="A line of the log instead; - reads it from stdin.")
def explain_command(config_file: Path, **asked: str | None) -> None:
    """Tell which rule of the policy decides on a request, and why.

    Exit status 0: allowed; 1: refused; 2: there is nothing to decide; 78: the configuration cannot
    be used.
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


def _pasted(text: str | None) -> str | None:
    """Give what stands on standard input for "-": a command line is not easy to quote in one."""
    return sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else text
