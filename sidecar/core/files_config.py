"""The tables of `sidecar.toml` that have to do with files: read from them, written to them.

`[identity_files]`, `[cert_files]`, `[[jwt_svid]]` and `[[after_rotation]]` as structs, and what
must hold between their keys. Part of the configuration, apart from `config` because a
configuration with these tables alone is a whole one: helper mode, without a listener.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from sidecar.core.spiffe_id import SCHEME, TrustDomain
from sidecar.core.toml_tables import (
    FileMode,
    FilePath,
    KeyMode,
    Name,
    Problem,
    Table,
    shown,
)

# What after_rotation may send: a program that ends by it would not come back.
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGTERM", "SIGQUIT", "SIGWINCH")
Kind = Literal["x509", "jwt"]

_OURS = re.compile(r"current|generation-[0-9]+", re.IGNORECASE)
# ASCII: a file system may count bytes, and may give other names back in another normal form.
_FILE_NAME = re.compile(r"[!-\-0-~][ -.0-~]{0,127}")


class FileName(str):
    """The name of a file in the directory of certificate files."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> FileName:
        """Refuse a path, a hidden file, and names that the directory needs itself."""
        if not _FILE_NAME.fullmatch(text):
            raise ValueError("expected the name of a file: ASCII, without a folder, not hidden")
        if _OURS.fullmatch(text):
            raise ValueError("expected a name other than that of a generation or of its link")
        return cls(text)


class Argument(str):
    """One argument of a command, as the program gets it."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Argument:
        """Refuse what no system hands over."""
        if "\0" in text:
            raise ValueError("expected a string without NUL")
        return cls(text)


class IdentityFilesTable(Table, frozen=True):
    """An identity that something else writes, instead of the agent's."""

    certificate: FilePath
    private_key: FilePath
    bundle: FilePath
    federated_bundles: Mapping[TrustDomain, FilePath] = msgspec.field(default_factory=dict)
    poll_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 5


class CertFilesTable(Table, frozen=True):
    """Certificate files for whoever needs files; without this table nothing is written."""

    directory: FilePath
    layout: Literal["spiffe-helper", "kubernetes"] = "spiffe-helper"
    certificate: FileName | None = None
    private_key: FileName | None = None
    bundle: FileName | None = None
    combined: FileName | None = None
    jwt_bundle: FileName | None = None
    owner: Name | None = None
    group: Name | None = None
    certificate_mode: FileMode = FileMode(0o644)
    key_mode: KeyMode = KeyMode(0o600)
    intermediates_in_bundle: bool = False
    omit_expired_authorities: bool = False
    federated_bundles: bool = False
    unsafe_merge_federated: bool = False
    unsafe_shared_directory: bool = False


class JwtSvidTable(Table, frozen=True):
    """One JWT-SVID, kept fresh in a file beside the certificate files."""

    file: FileName
    audience: Name
    extra_audiences: tuple[Name, ...] = ()
    mode: KeyMode = KeyMode(0o600)


class AfterRotationTable(Table, frozen=True):
    """What is done when new files are in place: one of a signal, a command, a touch."""

    name: Name
    on: tuple[Kind, ...] = ("x509",)
    pid_file: FilePath | None = None
    signal: Literal[SIGNALS] = "SIGHUP"  # type: ignore[valid-type]
    process: Name | None = None
    command: tuple[Argument, ...] = ()
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 30
    touch: FilePath | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10


LAYOUTS: Mapping[str, tuple[FileName, FileName, FileName]] = {
    "spiffe-helper": (FileName("svid.pem"), FileName("svid_key.pem"), FileName("svid_bundle.pem")),
    "kubernetes": (FileName("tls.crt"), FileName("tls.key"), FileName("ca.crt")),
}
_PAIR_AND_BUNDLE = ("certificate", "private_key", "bundle")
_ACTIONS = ("pid_file", "command", "touch")
# A key of one action -> that action.
_BELONGS_TO = {"signal": "pid_file", "process": "pid_file", "timeout_seconds": "command"}

# The checks below look at the document and not at the structs, so that one problem of a table
# does not hide another one of it.
Document = Mapping[str, Any]


def files_problems(document: Document, file: str) -> list[Problem]:
    """Give what is wrong between the keys of these tables."""
    problems: list[Problem] = []
    _check_one_source(document, file, problems)
    _check_trust_domains(document, file, problems)
    _check_directory(document, file, problems)
    _check_names(document, file, problems)
    _check_merge(document, file, problems)
    for number, table in enumerate(_tables(document, "after_rotation"), start=1):
        _check_action(table, f"[[after_rotation]] #{number}", file, problems)
        _check_due(document, table, f"[[after_rotation]] #{number}", file, problems)
    _check_hook_names(document, file, problems)
    return problems


def _check_one_source(document: Document, file: str, problems: list[Problem]) -> None:
    if "identity_files" not in document:
        return
    for where in ("[workload_api]", "[[jwt_svid]]"):
        if where.strip("[]") in document:
            expected = "none beside [identity_files]: that table is instead of the agent"
            problems.append(Problem(file, where, "a table", expected))
    if _table(document, "cert_files").get("jwt_bundle"):
        expected = "nothing beside [identity_files]: only the agent has JWT bundles"
        problems.append(Problem(file, "[cert_files] jwt_bundle", "a name", expected))


def _check_trust_domains(document: Document, file: str, problems: list[Problem]) -> None:
    """`spiffe://a` and `a` are one trust domain."""
    names = _table(_table(document, "identity_files"), "federated_bundles")
    plain = [name.removeprefix(SCHEME) for name in names]
    for name in sorted({name for name in plain if plain.count(name) > 1}):
        where = "[identity_files] federated_bundles"
        problems.append(Problem(file, where, f"{name!r} twice", "each trust domain once"))


def _check_directory(document: Document, file: str, problems: list[Problem]) -> None:
    if "cert_files" in document:
        return
    for name in ("jwt_svid", "after_rotation"):
        if document.get(name):
            expected = "[cert_files] beside it, which says where files are written"
            problems.append(Problem(file, f"[[{name}]]", "a table", expected))


def _check_names(document: Document, file: str, problems: list[Problem]) -> None:
    """No two files of the directory may have one name, on no file system."""
    table, names = _table(document, "cert_files"), _names(document)
    federated = [names.get("bundle", ""), names.get("jwt_bundle", "")]
    if table.get("federated_bundles") is not True:
        federated = []
    seen: dict[str, str] = {}
    for key, name in names.items():
        where, known = key if key.startswith("[") else f"[cert_files] {key}", name.casefold()
        if known in seen:
            expected = f"a name other than that of {seen[known]}"
            problems.append(Problem(file, where, repr(name), expected))
        elif any(_may_be_federated(name, base) for base in federated):
            expected = "a name that no federated bundle can get"
            problems.append(Problem(file, where, repr(name), expected))
        seen.setdefault(known, where)


def _names(document: Document) -> dict[str, str]:
    """Give the name of each file by the key that says it."""
    table = _table(document, "cert_files")
    layout = LAYOUTS.get(str(table.get("layout")), LAYOUTS["spiffe-helper"])
    names: dict[str, object] = dict(zip(_PAIR_AND_BUNDLE, layout, strict=True))
    names |= {
        key: table[key] for key in (*_PAIR_AND_BUNDLE, "combined", "jwt_bundle") if table.get(key)
    }
    for number, jwt in enumerate(_tables(document, "jwt_svid"), start=1):
        names[f"[[jwt_svid]] #{number} file"] = jwt.get("file")
    return {key: name for key, name in names.items() if isinstance(name, str)}


def federated_name(bundle: str, trust_domain: TrustDomain | str) -> str:
    """Give the name of a federated bundle's file: `ca.crt` -> `ca.partner.example.crt`."""
    stem, dot, suffix = bundle.rpartition(".")
    return f"{stem}.{trust_domain}.{suffix}" if dot else f"{bundle}.{trust_domain}"


def _may_be_federated(name: str, bundle: str) -> bool:
    before, _, after = federated_name(bundle, "*").casefold().partition("*")
    known = name.casefold()
    fits = known.startswith(before) and known.endswith(after)
    return bool(bundle) and fits and len(name) > len(before) + len(after)


def _check_merge(document: Document, file: str, problems: list[Problem]) -> None:
    table = _table(document, "cert_files")
    if table.get("unsafe_merge_federated") is True and table.get("federated_bundles") is True:
        hint = "merged, each federated authority can sign for every trust domain of the file"
        where, expected = "[cert_files] unsafe_merge_federated", "one of the two"
        problems.append(Problem(file, where, "federated_bundles as well", expected, hint))


def _check_action(table: Document, where: str, file: str, problems: list[Problem]) -> None:
    actions = [key for key in _ACTIONS if table.get(key)]
    if len(actions) != 1:
        found = " and ".join(actions) or "no action"
        problems.append(Problem(file, where, found, f"one of {', '.join(_ACTIONS)}"))
        return
    for key, action in _BELONGS_TO.items():
        if table.get(key, "") != "" and action not in actions:
            found = f"{key} without {action}"
            problems.append(Problem(file, f"{where} {key}", found, f"it beside {action} only"))
    if isinstance(table.get("command"), str) and " " in table["command"]:
        hint = 'a command is a list, without a shell: ["systemctl", "reload", "nginx"]'
        found = shown(table["command"])
        problems.append(Problem(file, f"{where} command", found, "a list of strings", hint))


def _check_due(
    document: Document, table: Document, where: str, file: str, problems: list[Problem]
) -> None:
    due = table.get("on")
    jwt = document.get("jwt_svid") or _table(document, "cert_files").get("jwt_bundle")
    if (due == "jwt" or (isinstance(due, list) and "jwt" in due)) and not jwt:
        expected = "[[jwt_svid]] or [cert_files] jwt_bundle, or it is never done"
        problems.append(Problem(file, f"{where} on", "'jwt' and no such files", expected))
    command = table.get("command")
    if isinstance(command, list) and command[:1] == [""]:
        problems.append(Problem(file, f"{where} command", "an empty program", "its name or path"))


def _check_hook_names(document: Document, file: str, problems: list[Problem]) -> None:
    """A log line names what was done; two of one name would make it a riddle."""
    names = [table.get("name") for table in _tables(document, "after_rotation")]
    for name in sorted({one for one in names if isinstance(one, str) and names.count(one) > 1}):
        where = f"[[after_rotation]] name = {name!r}"
        problems.append(Problem(file, where, "two of that name", "one"))


def _table(document: Document, name: str) -> Document:
    table = document.get(name)
    return table if isinstance(table, dict) else {}


def _tables(document: Document, name: str) -> list[Document]:
    tables = document.get(name)
    return [one for one in tables if isinstance(one, dict)] if isinstance(tables, list) else []
