"""What is done when new files are in place, and what is told about it: values only.

A `Hook` is one `[[after_rotation]]` table: an action, and the kinds of files that it is for. A
`Publication` is what a hook hears of: where the new files are, whose they are and when they end.
A `HookResult` is how the last attempt of a hook went, for the log and for whoever asks later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sidecar.core.files_config import AfterRotationTable, Kind

# Of each publication's environment; the rest of the name is that of a file, or one of these.
_PREFIX = "SPIFFE_SIDECAR_"


@dataclass(frozen=True, slots=True)
class SignalAction:
    """Send a signal to the process whose number is in a file."""

    pid_file: str
    signal: str = "SIGHUP"
    process: str | None = None  # the name that the process must have

    def __str__(self) -> str:
        return f"{self.signal} to the process in {self.pid_file}"


@dataclass(frozen=True, slots=True)
class CommandAction:
    """Run a command, without a shell, to its end."""

    argv: tuple[str, ...]
    timeout_seconds: float = 30.0

    def __str__(self) -> str:
        return f"command {self.argv[0]}"


@dataclass(frozen=True, slots=True)
class TouchAction:
    """Set the times of a file that another program watches."""

    path: str

    def __str__(self) -> str:
        return f"touch of {self.path}"


Action = SignalAction | CommandAction | TouchAction


@dataclass(frozen=True, slots=True)
class Hook:
    """One action, and when it is due."""

    name: str
    action: Action
    on: frozenset[Kind] = frozenset({"x509"})
    retries: int = 10


@dataclass(frozen=True, slots=True)
class Publication:
    """New files of one kind; `files` holds the path of each by its key in the configuration."""

    kind: Kind
    directory: str
    files: Mapping[str, str]
    spiffe_id: str
    expires: datetime
    serial: str = ""  # of an X.509-SVID
    generation: str = ""  # likewise
    audiences: tuple[str, ...] = ()  # of a JWT-SVID

    @property
    def subject(self) -> tuple[str, ...]:
        """Give what a newer publication takes the place of: one of the same files."""
        return (self.kind, *self.files.values())

    def environment(self) -> dict[str, str]:
        """Give the variables for a command; `expires` as RFC 3339, in UTC."""
        values = {
            "kind": self.kind,
            "directory": self.directory,
            "spiffe_id": self.spiffe_id,
            "expires": f"{self.expires:%Y-%m-%dT%H:%M:%SZ}",
            "serial": self.serial,
            "generation": self.generation,
            "audience": ",".join(self.audiences),
            **self.files,
        }
        return {_PREFIX + key.upper(): value for key, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class HookResult:
    """How the last attempt of a hook went; `reason` is empty if it went well."""

    hook: str
    action: str
    at: datetime
    attempt: int
    seconds: float
    reason: str = ""
    gives_up: bool = field(default=False, kw_only=True)

    @property
    def ok(self) -> bool:
        """Tell whether it went well."""
        return not self.reason


def hook(table: AfterRotationTable) -> Hook:
    """Give the hook of one table, which has exactly one action."""
    action: Action
    if table.pid_file is not None:
        action = SignalAction(table.pid_file, table.signal, table.process)
    elif table.touch is not None:
        action = TouchAction(table.touch)
    else:
        action = CommandAction(table.command, table.timeout_seconds)
    return Hook(table.name, action, frozenset(table.on), table.retries)
