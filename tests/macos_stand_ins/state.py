"""What the stand-ins of one Mac know, and how a call ends."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NoReturn

UNKNOWN_CALL = 64
# The accounts of a new Mac, as far as anybody asks.
_USERS = {"root": 0, "daemon": 1, "nobody": -2, "_www": 70, "_oahd": 441, "admin": 501}
_GROUPS = {"wheel": 0, "staff": 20, "admin": 80, "_oahd": 441}


def _new_accounts() -> dict[str, dict[str, dict[str, str]]]:
    return {
        "/Users": {name: {"UniqueID": str(number)} for name, number in _USERS.items()},
        "/Groups": {name: {"PrimaryGroupID": str(number)} for name, number in _GROUPS.items()},
    }


@dataclass
class Service:
    """One service that launchd has loaded."""

    path: str
    running: bool = False
    # It was told to end, and is there for so many questions more.
    lingers: int | None = None


@dataclass
class Program:
    """What is odd about a file, for file(1), codesign(1) and xattr(1)."""

    kind: str = "Mach-O 64-bit executable arm64"
    signed: bool = True
    quarantined: bool = False


@dataclass
class State:
    """One Mac. What a test sets is how it is; the stand-ins change the first half."""

    accounts: dict[str, dict[str, dict[str, str]]] = field(default_factory=_new_accounts)
    owners: dict[str, str] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    disabled: set[str] = field(default_factory=set)
    sleep_minutes: int = 0
    firewall_apps: dict[str, bool] = field(default_factory=dict)

    firewall: int = 0
    programs: dict[str, Program] = field(default_factory=dict)
    listens: list[str] = field(default_factory=list)
    uid: int = 0
    system: str = "Darwin"
    version: str = "15.5"
    is_intel: bool = False
    agent_is_admitted: bool = True
    questions_to_end: int = 0
    is_old_launchd: bool = False
    doctor: int = 0
    questions_to_join: int = 0  # until the agent has its socket
    check_is_real: bool = False

    def copy(self) -> State:
        """Give another one in which the same has happened."""
        return copy.deepcopy(self)

    def exists(self, kind: str, name: str) -> bool:
        """Tell whether the system would find an account by its name."""
        number = "UniqueID" if kind == "/Users" else "PrimaryGroupID"
        return number in self.accounts[kind].get(name, {})


@dataclass
class EndError(Exception):
    """The call ends otherwise than with status 0."""

    status: int
    error: str = ""
    out: str = ""


@dataclass
class InsteadError(Exception):
    """A real program is to be run in its place."""

    program: list[Any]


def end(status: int, error: str = "") -> NoReturn:
    """End as the real program would."""
    raise EndError(status, error)


def unknown(name: str, arguments: list[str]) -> EndError:
    """Give the end of a call of which the real program might make anything."""
    said = f"the stand-in for {name} does not know: {' '.join(arguments)}"
    return EndError(UNKNOWN_CALL, said)
