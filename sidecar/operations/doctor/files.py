"""Gathers the facts of the group "files"."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sidecar.adapters.cert_files import is_volume
from sidecar.adapters.host.paths import content_of, disk_of, path_stat, way_to
from sidecar.adapters.host.processes import process_of
from sidecar.core.after_rotation import Action, CommandAction, Hook, SignalAction, hook
from sidecar.core.diagnosis.files import FilesFacts, HookFault, Published
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Account, Kind, PathStat, Process, Way
from sidecar.core.diagnosis.issued import IssuedSvid, Said
from sidecar.core.diagnosis.permission import PASS, WRITE, obstacle
from sidecar.core.files_config import LAYOUTS, CertFilesTable, JwtSvidTable
from sidecar.core.svid import serial_text
from sidecar.operations.doctor.hearing import Hearing
from sidecar.operations.doctor.subject import Subject
from sidecar.operations.doctor.together import Pending
from sidecar.operations.doctor.witness import Testimony

_GENERATION = re.compile(r"generation-([0-9]{1,9})")
_PID = re.compile(rb"[0-9]{1,9}")
_STAGED = (".new-link", ".new-file")


async def files_facts(subject: Subject, heard: Pending[Hearing]) -> FilesFacts | None:
    """Give what is known of the files; None where none are written."""
    config = subject.files.config
    table = config.cert_files if config else None
    if config is None or table is None:
        return None
    hooks = [hook(one) for one in config.after_rotation]
    faults = [await _hook_fault(one, subject) for one in hooks]
    hearing = await heard.wait()
    # In a thread: what lies on a mount that hangs is given up, and the rest goes on.
    look = partial(_look, subject, hearing, table, config.jwt_svid)
    facts = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    known = tuple(one for one in faults if one is not None)
    return replace(facts, hooks=known, hook_names=tuple(one.name for one in hooks))


def _look(
    subject: Subject, hearing: Hearing, table: CertFilesTable, tokens: tuple[JwtSvidTable, ...]
) -> FilesFacts:
    directory = subject.directory / table.directory
    report, way = subject.daemon.report, way_to(directory)
    return FilesFacts(
        now=datetime.now(UTC),
        directory=str(directory),
        way=way,
        account=subject.account,
        published=_published(directory, table),
        secrets=tuple(_secrets(directory, table, tokens)),
        leftovers=tuple(_leftovers(directory)),
        issued=_issued(subject, hearing),
        served=report.status.identity.serial if report and report.status.identity else "",
        hooks=(),
        hook_names=(),
        disk=disk_of(directory),
        publish=subject.commands.publish,
        shared=frozenset(_shared(way, table.unsafe_shared_directory)),
    )


def _shared(way: Way, allowed: bool) -> Iterator[str]:
    """Give the folders that the daemon takes whoever else may write there."""
    for one in way:
        with suppress(OSError):
            if (allowed and one == way[-1]) or is_volume(Path(one.path)):
                yield one.path


def _issued(subject: Subject, hearing: Hearing) -> str:
    """Give the serial of the SVID that the agent issues to the service user now."""
    testimony = hearing.testimony
    if isinstance(testimony, Unknown) or hearing.asked_as.uid != subject.account.uid:
        return ""
    if testimony.answer.said is not Said.ISSUED:
        return ""
    svid = _ours(subject, testimony)
    return svid.serial if svid else ""


def _ours(subject: Subject, testimony: Testimony) -> IssuedSvid | None:
    config = subject.files.config
    wanted = str(config.workload_api.spiffe_id or "") if config else ""
    hint = config.workload_api.hint if config else ""
    fitting = (
        one
        for one in testimony.answer.svids
        if wanted in ("", one.spiffe_id) and hint in ("", one.hint)
    )
    return next(fitting, None)


def _names(table: CertFilesTable) -> tuple[str, str]:
    default = LAYOUTS[table.layout]
    return table.certificate or default[0], table.private_key or default[1]


def _published(directory: Path, table: CertFilesTable) -> Published | Unknown:
    """Read the generation of now as its readers do: the link once, both files below it."""
    generation = ""
    try:
        generation = os.readlink(directory / "current")
        return _pair(generation, *(directory / generation / name for name in _names(table)))
    except PermissionError as exc:
        return Unknown(f"this account may not read {exc.filename}", "run doctor with sudo")
    except FileNotFoundError as exc:
        if not generation:
            return Published("", "nothing is published yet: there is no link 'current'")
        return Published(generation, f"{exc.filename} is missing")
    except OSError as exc:
        return Published(generation, f"{exc.filename}: {exc.strerror}")


def _pair(generation: str, certificate: Path, key: Path) -> Published:
    chain, secret = content_of(certificate), content_of(key)
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        own = load_pem_private_key(secret, None)
    except Exception as exc:  # the parsers know more than ValueError; their input is a key
        fault = f"{generation}: its files cannot be read back: {type(exc).__name__}"
        return Published(generation, fault)
    if own.public_key() != leaf.public_key():
        return Published(generation, f"{generation}: key and certificate do not belong together")
    return Published(generation, "", serial_text(leaf), leaf.not_valid_after_utc)


def _secrets(
    directory: Path, table: CertFilesTable, tokens: tuple[JwtSvidTable, ...]
) -> Iterator[tuple[PathStat, int]]:
    """Give each file with a key or a token that is there, in every generation."""
    names = [_names(table)[1], *([table.combined] if table.combined else [])]
    places = [
        (one / name, int(table.key_mode))
        for one in (*sorted(directory.glob("generation-*")), directory)
        for name in names
    ]
    places += [(directory / one.file, int(one.mode)) for one in tokens]
    for path, mode in places:
        found = path_stat(path)
        if found.kind is Kind.FILE:
            yield found, mode


def _leftovers(directory: Path) -> Iterator[str]:
    """Give what was staged and never published: newer generations than the one of now."""
    try:
        current = _number(os.readlink(directory / "current"))
        names = os.listdir(directory)
    except OSError:
        return
    for name in sorted(names):
        number = _number(name)
        if name in _STAGED or (number is not None and current is not None and number > current):
            yield name


def _number(name: str) -> int | None:
    match = _GENERATION.fullmatch(name)
    return int(match[1]) if match else None


async def _hook_fault(one: Hook, subject: Subject) -> HookFault | None:
    """Give what would keep a hook from being done, as far as it can be seen without doing it."""
    action = one.action
    if isinstance(action, SignalAction):
        look = partial(_pid, subject.directory / action.pid_file, one.name)
        found = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        if isinstance(found, HookFault):
            return found
        process = await process_of(found, subject.run, subject.platform)
        return _process_fault(one.name, action, process, subject.account)
    call = _command_fault if isinstance(action, CommandAction) else _touch_fault
    return await trio.to_thread.run_sync(
        partial(call, one.name, str(_target(action)), subject), abandon_on_cancel=True
    )


def _target(action: Action) -> str:
    return action.argv[0] if isinstance(action, CommandAction) else str(getattr(action, "path", ""))


def _pid(file: Path, name: str) -> int | HookFault:
    try:
        text = content_of(file).strip()
    except OSError as exc:
        remedy = f"start the program that writes {file}, or correct pid_file"
        return HookFault(name, f"{file}: {exc.strerror}", remedy)
    if not _PID.fullmatch(text):
        return HookFault(name, f"{file} holds no number", f"correct pid_file: {file}")
    return int(text)


def _process_fault(
    name: str, action: SignalAction, process: Process, account: Account
) -> HookFault | None:
    if process.uid is None:
        seen = f"there is no process {process.pid}, which {action.pid_file} names"
        return HookFault(name, seen, f"start the program again, it writes {action.pid_file} anew")
    if action.process and process.name and not action.process.startswith(process.name[:15]):
        seen = f"process {process.pid} is {process.name}, expected {action.process}"
        return HookFault(name, seen, "correct process, or start the program again")
    if account.uid not in (0, process.uid):
        seen = f"{account} may not signal {process}: only root and the same account may"
        return HookFault(name, seen, "touch a file that it watches, or run a command that may")
    return None


def _command_fault(name: str, program: str, subject: Subject) -> HookFault | None:
    wanted = str(subject.directory / program) if "/" in program else program
    found = shutil.which(wanted)
    if found is None:
        exists = shutil.which(wanted, mode=os.F_OK)
        seen = f"{wanted} is not executable" if exists else f"there is no program {wanted}"
        remedy = f"sudo chmod a+x {exists}" if exists else "write the full path of a program"
        return HookFault(name, seen, remedy)
    blocked = obstacle(subject.account, way_to(found), PASS)
    if blocked is not None:
        remedy = f"sudo chmod a+x {blocked.path}"
        return HookFault(name, f"{subject.account} may not run {blocked}", remedy)
    return None


def _touch_fault(name: str, file: str, subject: Subject) -> HookFault | None:
    path = subject.directory / file
    way = way_to(path)
    end = way[-1]
    if end.kind is Kind.ABSENT:
        remedy = f"sudo touch {path} && sudo chown {subject.account.uid} {path}"
        return HookFault(name, f"{end.path} does not exist", remedy)
    # Whoever may write to a file may set its times to those of now.
    blocked = obstacle(subject.account, way, WRITE)
    if blocked is not None:
        group = subject.account.group or subject.account.gid
        remedy = f"sudo chgrp {group} {end.path} && sudo chmod g+w {end.path}"
        if blocked != end:
            remedy = f"sudo chmod a+x {blocked.path}"
        return HookFault(name, f"{subject.account} may not touch {blocked}", remedy)
    return None
