"""`traefik`: the configuration of a Traefik in front of one sidecar or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sidecar.cli.edge import LAST_LINES_SECONDS, checked_config, config_option, fail
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.checked import Checked
from sidecar.core.errors import InvalidSpiffeIdError, SidecarError
from sidecar.core.host_layout import AGENT_SOCKET
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.dynamic import dynamic_part
from sidecar.core.traefik.setup import (
    Server,
    Terms,
    TraefikSetup,
    Variant,
    absolute_path,
    domain,
    dynamic_path,
    listen_address,
    listener_port,
    plain_name,
    reference,
)
from sidecar.core.traefik.static import helper_part, static_part
from sidecar.core.traefik.version import TraefikVersion
from sidecar.core.traefik.warnings import dynamic_warnings, static_warnings
from sidecar.logs import configure_logs
from sidecar.operations.traefik import own_id

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def _read(parse: Callable[[str], object]) -> Callback:
    """Have a function of the core read an option; of one that may come again, each."""

    def callback(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(one) for one in value)
            return None if value is None else parse(value)
        except (ValueError, InvalidSpiffeIdError) as exc:
            raise click.BadParameter(str(exc)) from exc

    return callback


def _workload_id(text: str) -> SpiffeId:
    spiffe_id = SpiffeId.parse(text)
    if not spiffe_id.path:
        raise ValueError(f"expected the ID of a workload, with a path, found {text!r}")
    return spiffe_id


@click.command("traefik")
@config_option
@click.option(
    "--version",
    required=True,
    metavar="VERSION",
    callback=_read(TraefikVersion.parse),
    help="Traefik's, in full: 3.7.9, as `traefik version` prints it.",
)
@click.option(
    "--variant",
    type=click.Choice(["spiffe", "files"]),
    help="Traefik asks the agent itself (3.0 and newer; the default), or reads files that a "
    "sidecar in helper mode keeps on its host.",
)
@click.option(
    "--part",
    type=click.Choice(["dynamic", "static", "helper"]),
    default="dynamic",
    show_default=True,
    help="What is printed; helper is the sidecar.toml on Traefik's host for --variant files.",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Where Traefik reaches the sidecar; again for more than one. The port is the listener's.",
)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME",
    callback=_read(domain),
    help="What clients ask Traefik for; again for more than one.",
)
@click.option(
    "--spiffe-id",
    "server_ids",
    multiple=True,
    metavar="ID",
    callback=_read(_workload_id),
    help="The sidecars' SPIFFE IDs. Left out: the configuration's, or the running daemon or the "
    "agent is asked.",
)
@click.option(
    "--traefik-id",
    metavar="ID",
    callback=_read(_workload_id),
    help="Traefik's SPIFFE ID: is it admitted by the policy?",
)
@click.option(
    "--name",
    default="model-server",
    show_default=True,
    metavar="NAME",
    callback=_read(plain_name),
    help="Of router, service and transport.",
)
@click.option(
    "--entry-point",
    default="websecure",
    show_default=True,
    metavar="NAME",
    callback=_read(plain_name),
    help="The entry point of the router.",
)
@click.option(
    "--listen",
    default=":443",
    show_default=True,
    metavar="ADDRESS",
    callback=_read(listen_address),
    help="Its address.",
)
@click.option(
    "--cert-resolver",
    metavar="NAME",
    callback=_read(plain_name),
    help="Who gets the domain's certificate; without it Traefik takes one that it has.",
)
@click.option(
    "--middleware",
    "middlewares",
    multiple=True,
    metavar="NAME",
    callback=_read(reference),
    help="A middleware before the service, NAME or NAME@PROVIDER; again for more than one.",
)
@click.option(
    "--agent-socket",
    default=f"unix:{AGENT_SOCKET}",
    show_default=True,
    metavar="ADDRESS",
    callback=_read(WorkloadEndpoint.parse),
    help="The agent's on Traefik's host.",
)
@click.option(
    "--certificates",
    default="/etc/traefik/spiffe",
    show_default=True,
    metavar="DIRECTORY",
    callback=_read(absolute_path),
    help="Where the helper keeps the files on Traefik's host.",
)
@click.option(
    "--dynamic-file",
    default="/etc/traefik/dynamic/model-server.yml",
    show_default=True,
    metavar="FILE",
    callback=_read(dynamic_path),
    help="Where the dynamic part goes on Traefik's host.",
)
def traefik_command(
    config_file: Path,
    *,
    part: str,
    variant: Variant | None,
    version: TraefikVersion,
    servers: tuple[str, ...],
    server_ids: tuple[SpiffeId, ...],
    traefik_id: SpiffeId | None,
    **more: Any,
) -> None:
    """Print configuration for a Traefik in front of the sidecar; on stderr what may go wrong.

    Nothing is written and nothing of Traefik's is asked.
    """
    checked = checked_config(config_file)
    serving = checked.serving
    if serving is None:
        raise click.UsageError(f"{config_file} has no [listener], so Traefik has nothing behind it")
    try:
        port = listener_port(serving.config)
        setup = TraefikSetup(
            version=version,
            variant=_variant(variant, part, version),
            terms=Terms.of(serving.config),
            servers=tuple(dict.fromkeys(Server.parse(one, port) for one in servers)),
            server_ids=tuple(dict.fromkeys(server_ids)),
            **more,
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    if part == "dynamic":
        _check_complete(setup)
        setup = setup if server_ids else replace(setup, server_ids=(_own_id(checked),))
    click.echo(_PARTS[part](setup).encode(), nl=False)  # UTF-8, whatever the terminal is
    warnings = dynamic_warnings(setup, serving, traefik_id) if part == "dynamic" else ()
    for warning in static_warnings(setup) if part == "static" else warnings:
        click.echo(f"warning: {warning}", err=True)


_PARTS = {"dynamic": dynamic_part, "static": static_part, "helper": helper_part}


def _check_complete(setup: TraefikSetup) -> None:
    for values, option in ((setup.servers, "--server"), (setup.domains, "--domain")):
        if not values:
            raise click.UsageError(f"the dynamic part needs {option}")


def _variant(variant: Variant | None, part: str, version: TraefikVersion) -> Variant:
    if part == "helper":
        if variant == "spiffe":
            raise ValueError("--part helper is of --variant files: here Traefik asks the agent")
        return "files"
    return variant or ("spiffe" if version.has_spiffe else "files")


def _own_id(checked: Checked) -> SpiffeId:
    """Find out our SPIFFE ID, and say where it was learned."""
    log = configure_logs(checked.config.log.format, "error")
    try:
        found = own_id(checked)
    except SidecarError as exc:
        fail(exc, 1)
    finally:
        log.close(LAST_LINES_SECONDS)
    click.echo(f"note: our SPIFFE ID is {found.spiffe_id}, from {found.source}", err=True)
    return found.spiffe_id
