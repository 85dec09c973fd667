"""spiffe-helper's configuration as a value, or every problem of it at once.

Gets what the HCL says as a dictionary, gives a `HelperConf`. Refused is what spiffe-helper refuses
(unknown keys, keys that must not be without each other), and what no `sidecar.toml` can say, such
as a Windows named pipe; the messages name spiffe-helper's own keys. What becomes of each
key is for `conversion` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.files_config import SIGNALS, Argument, FileName
from sidecar.core.toml_tables import (
    FilePath,
    Name,
    Problem,
    ProblemsError,
    Table,
    read_table,
    shown,
)

_INTEGER = re.compile(
    r"0[xX](?P<hex>[0-9a-fA-F]{1,8})|0[oO]?(?P<octal>[0-7]{1,11})|(?P<decimal>0|[1-9][0-9]{0,9})"
)
# One argument and what ends it: a quoted one may hold spaces and line ends, and "" for a quote.
_ARGUMENT = re.compile(r'(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<bare>[^" \n]*))(?P<end> |\n|\Z)')
# What a file of certificates or keys may reasonably have: readable, perhaps writable.
_SENSIBLE = re.compile(r"[46][046]{2}")

_DEFAULT_PORT, _MAX_PORT = 8081, 65535

Document = Mapping[str, Any]


class Number(str):
    """A number as it is written: to HCL, `0644` is octal and `644` is not."""

    __slots__ = ()


class AgentAddress(str):
    """Where the agent is, as our configuration writes it."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> AgentAddress:
        """Read a path, as spiffe-helper has it, or `unix:` with a path, or `tcp://ip:port`."""
        if "\\" in text or text.startswith("npipe:"):
            raise ValueError("expected a Unix socket: this one is a named pipe of Windows")
        if text.startswith("/"):
            text = "unix:" + text.replace(" ", "%20")
        WorkloadEndpoint.parse(text)
        return cls(text)


@dataclass(frozen=True, slots=True)
class Mode:
    """Permission bits: what spiffe-helper makes of them, and what was meant by them."""

    text: str
    bits: int
    meant: int

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Read a number of HCL: octal with a leading 0, else decimal, whatever was meant by it."""
        number = _INTEGER.fullmatch(text)
        if number is None:
            raise ValueError("expected an octal mode such as 0640, not negative")
        if number["decimal"] is None:
            bits = int(number["hex"], 16) if number["hex"] else int(number["octal"], 8)
            return cls(text, bits, bits)
        bits = int(text)
        octal_digits = re.fullmatch(r"[0-7]{3}", text) and not _SENSIBLE.fullmatch(f"{bits:o}")
        return cls(text, bits, int(text, 8) if octal_digits else bits)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a command."""

    argv: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Arguments:
        """Split at each space that is not in double quotes; only the first line counts."""
        if not text:
            return cls()
        line = Argument.parse(text.replace("\r\n", "\n").removesuffix("\r").lstrip("\n"))
        if not line:
            raise ValueError("expected arguments, instead of empty lines")
        return cls(tuple(_split(line)))


def _split(text: str) -> Iterator[str]:
    at, end = 0, " "
    while end == " ":
        argument = _ARGUMENT.match(text, at)
        if argument is None:
            near = text[at : at + 40]
            raise ValueError(
                'expected a " at both ends of an argument or at neither, and "" for one inside, '
                f"unlike at {near!r}"
            )
        at, end = argument.end(), argument["end"]
        quoted = argument["quoted"]
        yield argument["bare"] if quoted is None else quoted.replace('""', '"')


class JwtSvidConf(Table, frozen=True):
    """One object of `jwt_svids`."""

    jwt_audience: Name
    jwt_svid_file_name: FileName
    jwt_extra_audiences: tuple[Name, ...] = ()


class Port(int):
    """A port to listen on."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Port:
        """Read a number up to 65535; 0 is as if it was not set."""
        if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > _MAX_PORT:
            raise ValueError(f"expected a port from 1 to {_MAX_PORT}")
        return cls(text)


class HealthChecksConf(Table, frozen=True):
    """`health_checks`, with spiffe-helper's defaults."""

    listener_enabled: bool = False
    bind_port: Port | None = None
    liveness_path: str = ""
    readiness_path: str = ""

    @property
    def port(self) -> int:
        """Return where it listens."""
        return self.bind_port or _DEFAULT_PORT


class HelperConf(Table, frozen=True):
    """All keys of spiffe-helper's configuration; None where it was not set, or set to nothing."""

    agent_address: AgentAddress | None = None
    cmd: Argument | None = None
    cmd_args: Arguments | None = None
    pid_file_name: FilePath | None = None
    cert_dir: FilePath | None = None
    daemon_mode: bool = True
    add_intermediates_to_bundle: bool = False
    renew_signal: Literal[SIGNALS] | None = None  # type: ignore[valid-type]
    svid_file_name: FileName | None = None
    svid_key_file_name: FileName | None = None
    svid_bundle_file_name: FileName | None = None
    jwt_svids: tuple[JwtSvidConf, ...] = ()
    jwt_bundle_file_name: FileName | None = None
    include_federated_domains: bool = False
    cert_file_mode: Mode | None = None
    key_file_mode: Mode | None = None
    jwt_bundle_file_mode: Mode | None = None
    jwt_svid_file_mode: Mode | None = None
    hint: str = ""
    omit_expired: bool = False
    health_checks: HealthChecksConf = HealthChecksConf()


@dataclass(frozen=True, slots=True)
class Note:
    """What a person has to know of one key of the old configuration."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


X509_NAMES = ("svid_file_name", "svid_key_file_name", "svid_bundle_file_name")


def helper_conf(document: Document, file: str) -> HelperConf:
    """Read the whole configuration, or raise all problems at once."""
    problems: list[Problem] = []
    table = _folded(document, HelperConf)
    health = table.pop("health_checks", {})
    jwt_svids = _jwt_svids(table.pop("jwt_svids", []), file, problems)
    if isinstance(health, dict):  # whose other keys nobody checks
        known = {field.name for field in msgspec.structs.fields(HealthChecksConf)}
        folded = _folded(health, HealthChecksConf)
        health = {key: value for key, value in folded.items() if key in known}
    listener = read_table(HealthChecksConf, health, file, "health_checks", problems)
    conf = read_table(HelperConf, table, file, "", problems)
    _check_x509(table, file, problems)
    if not any(document.get(key) for key in (*X509_NAMES, "jwt_svids", "jwt_bundle_file_name")):
        expected = f"{', '.join(X509_NAMES)}, or jwt_svids, or jwt_bundle_file_name"
        problems.append(Problem(file, "", "no file to write", expected))
    _check_pid_file(table, file, problems)
    if problems or conf is None or listener is None:
        raise ProblemsError([replace(one, where=one.where.strip()) for one in problems])
    return msgspec.structs.replace(conf, jwt_svids=jwt_svids, health_checks=listener)


def _folded(document: Document, struct: type[Table]) -> dict[str, Any]:
    """Give the keys as we write them: HCL finds a key whatever its case."""
    known = {field.name for field in msgspec.structs.fields(struct)}
    return {key.lower() if key.lower() in known else key: value for key, value in document.items()}


def _jwt_svids(items: object, file: str, problems: list[Problem]) -> tuple[JwtSvidConf, ...]:
    if not isinstance(items, list):
        problems.append(Problem(file, "jwt_svids", shown(items), "a list of objects: [{ ... }]"))
        return ()
    read = [
        read_table(
            JwtSvidConf,
            _folded(item, JwtSvidConf) if isinstance(item, dict) else item,
            file,
            f"jwt_svids #{number}",
            problems,
        )
        for number, item in enumerate(items, start=1)
    ]
    return tuple(one for one in read if one is not None)


def _check_x509(table: Document, file: str, problems: list[Problem]) -> None:
    named = [key for key in X509_NAMES if table.get(key)]
    if len(named) in (1, 2):
        where, found = " and ".join(named), "it alone" if len(named) == 1 else "these two alone"
        problems.append(Problem(file, where, found, f"all of {', '.join(X509_NAMES)}, or none"))


def _check_pid_file(table: Document, file: str, problems: list[Problem]) -> None:
    if not table.get("pid_file_name"):
        return
    if not table.get("renew_signal"):
        problems.append(Problem(file, "pid_file_name", "no renew_signal", "it beside this key"))
    if table.get("daemon_mode") is False:
        found, expected = "daemon_mode = false", "a daemon: nothing is signalled without one"
        problems.append(Problem(file, "pid_file_name", found, expected))


def tell_relative(key: str, path: str, notes: list[Note]) -> None:
    """Tell that a relative path does not mean what it meant."""
    if not path.startswith("/"):
        text = (
            f"{shown(path)} was relative to the folder that spiffe-helper was started in; "
            "here it is relative to the configuration file"
        )
        notes.append(Note(key, text))
