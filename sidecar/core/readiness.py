"""A status -> why the daemon is not ready, and what is wrong without taking that away.

Ready means: who connects now is served, and in helper mode: who reads the files now finds what it
needs. Each reason has a name that never changes, for programs, and a text for people. What can
be waited for by nobody but us is a warning: an agent that is away while the SVID lives, a bad
policy while the old one is in force.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from datetime import timedelta

from sidecar.core.identity_state import IdentityState
from sidecar.core.status import (
    FilesStatus,
    IdentityStatus,
    Readiness,
    Reason,
    Report,
    Status,
)

HELPER = "helper"
# SPIRE renews at half life. Past this share of it something is wrong, and there is still time.
_OVERDUE_SHARE = 0.75


class ReasonName(enum.StrEnum):
    """The names of all reasons."""

    STARTING = "starting"
    DENIED = "denied"
    EXPIRED = "expired"
    DRAINING = "draining"
    BACKEND_DOWN = "backend_down"
    FILES_MISSING = "files_missing"
    FILES_FAILED = "files_failed"
    FILES_STALE = "files_stale"
    JWT_SVID_MISSING = "jwt_svid_missing"
    JWT_SVID_EXPIRED = "jwt_svid_expired"
    JWT_BUNDLE_MISSING = "jwt_bundle_missing"
    AGENT_LOST = "agent_lost"
    UPDATE_DISCARDED = "update_discarded"
    UPDATE_INCOMPLETE = "update_incomplete"
    RENEWAL_OVERDUE = "renewal_overdue"
    JWT_SVID_FAILED = "jwt_svid_failed"
    JWT_BUNDLE_FAILED = "jwt_bundle_failed"
    BAD_POLICY = "bad_policy"
    BAD_CONFIG = "bad_config"
    NEEDS_RESTART = "needs_restart"
    HOOK_FAILED = "hook_failed"


# A helper's readers need the files. Peers do not: with a full disk they are served as before.
_ABOUT_FILES = {
    ReasonName.FILES_MISSING,
    ReasonName.FILES_FAILED,
    ReasonName.FILES_STALE,
    ReasonName.JWT_SVID_MISSING,
    ReasonName.JWT_SVID_EXPIRED,
    ReasonName.JWT_BUNDLE_MISSING,
}
_ALWAYS = {
    ReasonName.STARTING,
    ReasonName.DENIED,
    ReasonName.EXPIRED,
    ReasonName.DRAINING,
    ReasonName.BACKEND_DOWN,
}


def readiness(status: Status) -> list[Reason]:
    """Give the reasons why the daemon is not ready; none: it is."""
    return [reason for reason in _troubles(status) if _counts(reason, status)]


def warnings(status: Status) -> list[Reason]:
    """Give what a person should see to, and what does not take the readiness away."""
    return [reason for reason in _troubles(status) if not _counts(reason, status)]


def verdict(status: Status) -> Readiness:
    """Give both, as `/readyz` tells them."""
    reasons = tuple(readiness(status))
    return Readiness(ready=not reasons, reasons=reasons, warnings=tuple(warnings(status)))


def report(status: Status) -> Report:
    """Give both with everything, as `/status` tells it."""
    of = verdict(status)
    return Report(ready=of.ready, reasons=of.reasons, warnings=of.warnings, status=status)


def _counts(reason: Reason, status: Status) -> bool:
    return reason.name in _ALWAYS or (status.mode == HELPER and reason.name in _ABOUT_FILES)


def _troubles(status: Status) -> Iterator[Reason]:
    if status.draining:
        yield _reason(ReasonName.DRAINING, "stopping: no new connections")
    yield from _of_identity(status)
    yield from _of_backend(status)
    yield from _of_policy(status)
    yield from _of_files(status)
    yield from _of_jwt_svids(status)
    yield from _of_jwt_bundle(status)
    yield from _of_hooks(status)


def _of_identity(status: Status) -> Iterator[Reason]:
    agent, identity = status.agent, status.identity
    if agent.state == IdentityState.EXPIRED:
        when = f" at {identity.not_after:%FT%TZ}" if identity else ""
        yield _reason(ReasonName.EXPIRED, f"our SVID expired{when}")
    if agent.denied:
        yield _reason(ReasonName.DENIED, "there is no identity for us", agent.reason)
    elif agent.state == IdentityState.STARTING:
        yield _reason(ReasonName.STARTING, "no SVID yet", agent.reason)
    elif not agent.connected:
        yield _reason(ReasonName.AGENT_LOST, f"{agent.source} lost", agent.reason)
    if agent.serving and status.mode != HELPER and not (status.listening or status.draining):
        yield _reason(ReasonName.STARTING, "the port is not open yet")
    if agent.connected and agent.reason:
        yield _reason(ReasonName.UPDATE_DISCARDED, "the last update was not used", agent.reason)
    for note in agent.notes:
        yield _reason(ReasonName.UPDATE_INCOMPLETE, "a part of the update is not used", note)
    if identity and agent.state != IdentityState.EXPIRED:
        life = identity.not_after - identity.not_before
        if status.at > identity.not_before + _OVERDUE_SHARE * life:
            left = (identity.not_after - status.at) // timedelta(seconds=1)
            yield _reason(
                ReasonName.RENEWAL_OVERDUE, f"no newer SVID yet, and {left} s left of this one"
            )


def _of_backend(status: Status) -> Iterator[Reason]:
    backend = status.backend
    if backend and backend.checked_at is None:
        yield _reason(ReasonName.STARTING, "the backend was not asked yet")
    elif backend and backend.reason:
        yield _reason(ReasonName.BACKEND_DOWN, backend.reason)


def _of_policy(status: Status) -> Iterator[Reason]:
    if status.policy and status.policy.problems:
        yield _reason(ReasonName.BAD_POLICY, _old_one(status.policy.problems))
    if status.config_problems:
        yield _reason(ReasonName.BAD_CONFIG, _old_one(status.config_problems))
    if status.needs_restart:
        text = f"not in force before a restart: {', '.join(status.needs_restart)}"
        yield _reason(ReasonName.NEEDS_RESTART, text)


def _old_one(problems: tuple[str, ...]) -> str:
    many = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"the old one is in force: {problems[0]}{many}"


def _of_files(status: Status) -> Iterator[Reason]:
    files = status.files
    if files and files.error:
        yield _reason(ReasonName.FILES_FAILED, "certificate files not published", files.error)
    elif files and not files.generation:
        yield _reason(ReasonName.FILES_MISSING, "no certificate files published yet")
    if files and status.identity and _is_stale(files, status.identity):
        ends = "expired" if files.expires and files.expires <= status.at else "expires"
        when = f" and {ends} at {files.expires:%FT%TZ}" if files.expires else ""
        text = f"the files hold serial {files.serial}{when}, in use is {status.identity.serial}"
        yield _reason(ReasonName.FILES_STALE, text)


def _is_stale(files: FilesStatus, identity: IdentityStatus) -> bool:
    """Tell whether another SVID is published than the one in use; without one, it is missing."""
    return bool(files.serial) and (files.serial, files.expires) != (
        identity.serial,
        identity.not_after,
    )


def _of_jwt_svids(status: Status) -> Iterator[Reason]:
    for svid in status.jwt_svids:
        if svid.expires is None:
            yield _reason(ReasonName.JWT_SVID_MISSING, f"{svid.file} not written yet", svid.error)
        elif svid.expires <= status.at:
            text = f"{svid.file} expired at {svid.expires:%FT%TZ}"
            yield _reason(ReasonName.JWT_SVID_EXPIRED, text, svid.error)
        elif svid.error:
            yield _reason(ReasonName.JWT_SVID_FAILED, f"{svid.file} not refreshed", svid.error)


def _of_jwt_bundle(status: Status) -> Iterator[Reason]:
    bundle = status.jwt_bundle
    if bundle and bundle.written_at is None:
        name, text = ReasonName.JWT_BUNDLE_MISSING, f"{bundle.file} not written yet"
        yield _reason(name, text, bundle.error)
    elif bundle and bundle.error:
        name, text = ReasonName.JWT_BUNDLE_FAILED, f"{bundle.file} not as it should be"
        yield _reason(name, text, bundle.error)


def _of_hooks(status: Status) -> Iterator[Reason]:
    for hook in status.hooks:
        if hook.reason:
            what = "gave up" if hook.gave_up else "failed"
            yield _reason(ReasonName.HOOK_FAILED, f"{hook.name} {what}", hook.reason)


def _reason(name: ReasonName, text: str, because: str = "") -> Reason:
    return Reason(name=name.value, text=f"{text}: {because}" if because else text)
