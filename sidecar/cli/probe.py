"""`probe`: arguments to a request, and out of them an exit status."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import structlog

from sidecar.cli import probe_output as output
from sidecar.cli.edge import checked_config, config_option
from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.policy import PeerPattern
from sidecar.core.probe.report import ProbeRequest
from sidecar.core.probe.target import ProbeTarget, ProbeTargetError, parse_header

_SECONDS = click.FloatRange(0, 31_536_000, min_open=True)
# A body is sent from memory.
_MAX_BODY_BYTES = 256 * 1024 * 1024


@click.command("probe")
@click.argument("url")
@config_option
@click.option(
    "--expect",
    multiple=True,
    metavar="ID",
    help="The peer's SPIFFE ID, or a pattern as in policy.toml; may be given more than once. "
    "Without it, any ID of our own trust domain.",
)
@click.option("--method", metavar="METHOD", help="GET, or POST with --data.")
@click.option(
    "--header",
    "-H",
    "headers",
    multiple=True,
    metavar="HEADER",
    help="'Name: value', or @FILE with one in each line, for what nobody should read in `ps`.",
)
@click.option("--data", metavar="TEXT", help="The request's body.")
@click.option(
    "--data-file",
    type=click.File("rb", lazy=False),
    metavar="FILE",
    help="The same from a file; - reads it from stdin.",
)
@click.option(
    "--body",
    is_flag=True,
    help="Write the answer's body to stdout as it comes, and all else to stderr.",
)
@click.option(
    "--connect-timeout",
    type=_SECONDS,
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="For each: our identity, the name, an address, the handshake.",
)
@click.option(
    "--timeout",
    type=_SECONDS,
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="The longest wait for the next byte of the answer.",
)
@click.option("--max-time", type=_SECONDS, metavar="SECONDS", help="For all of it.")
@click.option(
    "--repeat",
    type=click.IntRange(1, 1_000_000),
    default=1,
    metavar="N",
    help="So often, each on a connection of its own, with one line each.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0, 86_400),
    default=1,
    show_default=True,
    metavar="SECONDS",
    help="The pause between two of --repeat.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="All of it as JSON; with --repeat, a line each."
)
def probe_command(url: str, config_file: Path, **options: Any) -> None:
    """Ask a sidecar with our own SVID, and tell which hop fails if one does.

    URL is https://host:port/path, or tls://host:port for the handshake alone. The peer is known
    by its SPIFFE ID and never by its host name. Of the configuration only where our identity
    comes from is used, so that of a helper will do.

    Exit status 0: the answer came, below 400, from the ID that was expected; 1: it did not;
    2: wrong usage; 78: the configuration cannot be used.
    """
    if options["as_json"] and options["body"]:
        raise click.UsageError("--json and --body both want stdout")
    if options["repeat"] > 1 and options["body"]:
        raise click.UsageError("--body is for one answer, and --repeat for many")
    request = _request(url, options)
    checked = checked_config(config_file)
    try:
        with _quiet():
            if options["repeat"] > 1:
                many = output.many_as_json if options["as_json"] else output.many
                status = many(request, checked, options["repeat"], options["interval"])
            elif options["as_json"]:
                status = output.one_as_json(request, checked)
            else:
                status = output.one(request, checked, with_body=options["body"])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the parts' own lines for a daemon's log: what a probe meets it tells itself.

    Libraries warn of a peer's odd certificate, and a peer must not be able to write a line.
    """
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        structlog.configure(**before)


def _request(url: str, options: dict[str, Any]) -> ProbeRequest:
    body = _body(options["data"], options["data_file"])
    try:
        return ProbeRequest(
            ProbeTarget.parse(url),
            expect=tuple(map(PeerPattern.parse, options["expect"])),
            method=options["method"] or ("GET" if body is None else "POST"),
            headers=tuple(map(parse_header, _header_lines(options["headers"]))),
            body=body or b"",
            connect_seconds=options["connect_timeout"],
            silence_seconds=options["timeout"],
            total_seconds=options["max_time"] or math.inf,
        )
    except (ProbeTargetError, InvalidSpiffeIdError) as exc:
        hint = f"\nhint: {exc.hint}" if exc.hint else ""
        raise click.UsageError(f"{exc.message}{hint}") from exc


def _body(text: str | None, file: IO[bytes] | None) -> bytes | None:
    if text is not None and file is not None:
        raise click.UsageError("--data and --data-file are two bodies for one request")
    if file is None:
        return None if text is None else text.encode("utf-8", "surrogateescape")
    body = file.read(_MAX_BODY_BYTES + 1)
    if len(body) > _MAX_BODY_BYTES:
        raise click.UsageError(f"--data-file is over {_MAX_BODY_BYTES} bytes")
    return body


def _header_lines(given: Iterable[str]) -> list[str]:
    """Give one header each; of a file its lines."""
    found: list[str] = []
    for text in given:
        if not text.startswith("@"):
            found.append(text)
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="latin-1").splitlines()
        except OSError as exc:
            raise click.UsageError(f"--header: cannot read {text[1:]}: {exc.strerror}") from exc
        found += [line for line in lines if line.strip()]
    return found
