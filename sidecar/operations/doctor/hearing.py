"""Hears what the service user hears: by a child process of its uid, or here if it is our own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec
import trio

from sidecar.core.address import Address, Inherited
from sidecar.core.config import Config
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Account
from sidecar.operations.doctor.asking import CHAT, STREAM_SECONDS, chat
from sidecar.operations.doctor.subject import UNUSABLE, Subject
from sidecar.operations.doctor.witness import Question, Testimony, testify

_SECONDS = 7.0


@dataclass(frozen=True, slots=True)
class Hearing:
    """What the witness said, and as whom it asked."""

    testimony: Testimony | Unknown
    asked_as: Account


async def hear(subject: Subject) -> Hearing:
    """Ask as the service user; where that cannot be, as whoever runs doctor."""
    own, account = subject.own, subject.account
    if subject.files.config is None:
        return Hearing(Unknown(UNUSABLE), own)
    if own.uid == 0 and account.uid != 0:
        testimony = await _ask(_question(subject, is_service_user=True), account)
        if isinstance(testimony, Testimony):
            return Hearing(testimony, account)
    question = _question(subject, is_service_user=own.uid == account.uid)
    seconds = _seconds(question)
    with trio.move_on_after(seconds):
        return Hearing(await testify(question), own)
    return Hearing(_late(own, seconds), own)


def _seconds(question: Question) -> float:
    return _SECONDS + (STREAM_SECONDS if question.streamed_url else 0)


def _late(who: Account, seconds: float) -> Unknown:
    return Unknown(f"the question of {who} was not answered within {seconds:g} s")


def _question(subject: Subject, *, is_service_user: bool) -> Question:
    config, serving = subject.files.config, subject.files.serving
    if config is None:
        return Question(str(subject.files.endpoint))
    values: dict[str, Any] = {}
    if config.identity_files is not None:
        table = config.identity_files
        for name in ("certificate", "private_key", "bundle"):
            values[name] = str(subject.directory / getattr(table, name))
        values["federated"] = {
            str(name): str(subject.directory / file)
            for name, file in table.federated_bundles.items()
        }
    where = own_listener(subject, serving) if serving else ""
    if where and serving:
        is_http = serving.backend.mode == "http"
        values["url"] = f"https://{where}/health" if is_http else f"tls://{where}"
        if is_http and subject.request.model:
            values["streamed_url"] = f"https://{where}{CHAT}"
            values["streamed_body"] = chat(subject.request.model)
    return Question(
        endpoint=str(subject.files.endpoint),
        spiffe_id=str(config.workload_api.spiffe_id or ""),
        hint=config.workload_api.hint,
        is_service_user=is_service_user,
        **values,
    )


def own_listener(subject: Subject, config: Config) -> str:
    """Give where our own listener is reached from here; empty if it is not known."""
    report = subject.daemon.report
    texts = report.status.listening if report else tuple(map(str, config.listener.address))
    for text in texts:
        try:
            address = Address.parse(text)
        except ValueError:
            continue  # "systemd" or "launchd:NAME"
        if address.ip is not None and address.port and not isinstance(address, Inherited):
            return str(Address(_reachable(address.ip), address.port))
    return ""


def _reachable(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if not ip.is_unspecified:
        return ip
    return IPv4Address("127.0.0.1") if ip.version == 4 else IPv6Address("::1")


async def _ask(question: Question, account: Account) -> Testimony | Unknown:
    """Run the witness to its end; what it says on its standard error is for nobody."""
    seconds = _seconds(question)
    try:
        with trio.move_on_after(seconds):
            ended = await trio.run_process(
                [sys.executable, "-IB", "-m", "sidecar.operations.doctor.witness"],
                stdin=msgspec.json.encode(question),
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                start_new_session=True,
                deliver_cancel=_kill,
                user=account.uid,
                group=account.gid,
                extra_groups=sorted(account.groups),
            )
            return msgspec.json.decode(ended.stdout, type=Testimony)
    except OSError as exc:
        return Unknown(f"{account} cannot run {sys.executable}: {exc.strerror}")
    except msgspec.DecodeError:
        return Unknown(f"{account} cannot run this program: see host.installation")
    return _late(account, seconds)


async def _kill(process: trio.Process) -> None:
    process.kill()
