"""`status`: asks the daemon how it is, over its admin listener, and shows it to a person.

Reads the daemon's answer, and of the configuration only where to ask: that it cannot be used any
more is a reason to look at the daemon that still runs.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live

from sidecar.core.address import Address, Inherited, ListenAddress
from sidecar.core.config import AdminTable
from sidecar.core.errors import ConfigError, SidecarError
from sidecar.core.status import Report, printable, read_report
from sidecar.core.toml_tables import load_toml
from sidecar.operations.check import read_file
from sidecar.operations.screen_text import plain
from sidecar.operations.status_screen import not_reachable, screen

DEFAULT_ADDRESS = AdminTable().address
_SECONDS = 5.0
_EVERY_SECONDS = 1.0
_MAX_BYTES = 4 * 1024 * 1024


class NotReachableError(SidecarError):
    """The daemon's: it gives no answer, or none that can be read. Exit status 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon said: as it came, and read."""

    data: bytes
    report: Report


def admin_address(config_file: Path) -> Address:
    """Give where the daemon of a configuration is asked, or raise `ConfigError`."""
    document = load_toml(read_file(config_file), config_file.name)
    if "admin" not in document:
        hint = "write [admin] and restart the daemon: then it tells how it is"
        raise ConfigError(f"{config_file}: no [admin], so nobody can be asked", hint)
    table = document["admin"]
    found = table.get("address", str(DEFAULT_ADDRESS)) if isinstance(table, dict) else table
    try:
        address = ListenAddress.parse(found) if isinstance(found, str) else None
    except ValueError:
        address = None
    if isinstance(address, Inherited):
        hint = "its socket unit or plist says where: ask that for /status, with curl say"
        raise ConfigError(f"{config_file.name}: [admin] is {address}, which names no address", hint)
    if address is None or not address.is_loopback:
        expected = "expected a loopback address or unix:/path"
        raise ConfigError(f"{config_file.name}: [admin] address: found {found!r}, {expected}")
    return address


def ask(address: Address) -> Answer:
    """Ask the daemon, or raise `NotReachableError`."""
    where = "localhost" if address.ip is None else str(address)
    path = address.path if address.ip is None else None
    # Plain HTTP: with `verify` a store of public authorities is loaded for nothing.
    transport = httpx.HTTPTransport(uds=path, verify=False)
    try:
        with (
            httpx.Client(transport=transport, timeout=_SECONDS, trust_env=False) as client,
            client.stream("GET", f"http://{where}/status") as response,
        ):
            data = _body(response)
    except httpx.HTTPError as exc:
        hint = "is the daemon running, and may this account ask it?"
        reason = printable(str(exc)) or type(exc).__name__
        raise NotReachableError(f"no answer from {address}: {reason}", hint) from exc
    hint = f"is that the admin listener of a spiffe-sidecar, at {address}?"
    if response.status_code != httpx.codes.OK:
        raise NotReachableError(f"{address} answers {response.status_code} to /status", hint)
    try:
        return Answer(data, read_report(data))
    except ValueError as exc:
        raise NotReachableError(f"{address} gives no status: {printable(str(exc))}", hint) from exc


def _body(response: httpx.Response) -> bytes:
    """Read an answer, but not without end."""
    data, deadline = bytearray(), time.monotonic() + _SECONDS
    for part in response.iter_bytes():
        data += part
        if len(data) > _MAX_BYTES:
            raise httpx.ReadError(f"over {_MAX_BYTES} bytes")
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout(f"not complete within {_SECONDS:g} s")
    return bytes(data)


def show_status(address: Address, console: Console) -> bool:
    """Show the daemon's status once; tell whether it is ready."""
    report = ask(address).report
    console.print(_screen(report, console))
    return report.ready


def watch_status(address: Address, console: Console) -> bool:
    """Show it anew every second until Ctrl-C; tell whether it was ready at the end."""
    watch = _Watch(address, console)
    # What ends a terminal session must not leave the terminal in a screen that is not its own.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            suppress(KeyboardInterrupt),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                live.update(watch.look(), refresh=True)
                time.sleep(_EVERY_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(watch.last)
    return watch.ready


class _Watch:
    """One daemon, seen again and again."""

    def __init__(self, address: Address, console: Console) -> None:
        self._address, self._console = address, console
        self._report: Report | None = None
        self._away_since: datetime | None = None
        self.last: RenderableType = ""

    @property
    def ready(self) -> bool:
        """Tell whether the daemon was there and ready when it was asked last."""
        return self._away_since is None and self._report is not None and self._report.ready

    def look(self) -> RenderableType:
        """Ask, and give what is to be shown."""
        try:
            self._report = ask(self._address).report
        except NotReachableError as exc:
            self._away_since = self._away_since or datetime.now(UTC)
            self.last = not_reachable(self._away_since, exc.message)
            if self._report is not None:
                before = plain("What it said last:", "bold")
                self.last = Group(self.last, "", before, _screen(self._report, self._console))
        else:
            self._away_since = None
            self.last = _screen(self._report, self._console)
        return self.last


def _screen(report: Report, console: Console) -> RenderableType:
    return screen(report, only_ascii=console.options.ascii_only)
