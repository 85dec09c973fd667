"""Readiness: each state has its name, and only what keeps somebody from being served counts."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from sidecar.core.readiness import ReasonName, readiness, report, verdict, warnings
from sidecar.core.status import FilesStatus, JwtBundleStatus, PolicyStatus, Reason, Status
from tests.statuses import (
    AGENT,
    BACKEND,
    FILES,
    HOOK,
    IDENTITY,
    JWT_SVID,
    NOW,
    POLICY,
    ago,
    but,
    helping,
    serving,
)

STARTING = but(AGENT, state="starting", serving=False, connected=False)
LOST = but(AGENT, state="agent_lost", connected=False, reason="connection refused")
DENIED = but(AGENT, state="denied", denied=True, connected=False, reason="no identity issued")
EXPIRED = but(AGENT, state="expired", connected=False, serving=False, reason="refused")
OVER = but(IDENTITY, not_after=ago(seconds=1))
OLD = but(IDENTITY, not_before=ago(minutes=46), not_after=NOW + timedelta(minutes=14))


PUBLISHED = but(FILES, serial=IDENTITY.serial, expires=IDENTITY.not_after)
JWT_BUNDLE = JwtBundleStatus(file="jwks.json", written_at=NOW)


def names(reasons: list[Reason]) -> list[str]:
    return [reason.name for reason in reasons]


@pytest.mark.parametrize(
    ("status", "unready", "warned"),
    [
        pytest.param(serving(), [], [], id="well"),
        pytest.param(
            serving(agent=STARTING, identity=None, listening=()),
            ["starting"],
            [],
            id="no SVID yet",
        ),
        pytest.param(
            serving(agent=but(STARTING, state="denied", denied=True), identity=None, listening=()),
            ["denied"],
            [],
            id="denied from the start",
        ),
        pytest.param(serving(listening=()), ["starting"], [], id="port not open yet"),
        pytest.param(serving(agent=LOST), [], ["agent_lost"], id="agent away: served on"),
        pytest.param(
            serving(agent=LOST, listening=()),
            ["starting"],
            ["agent_lost"],
            id="agent away before the port is open",
        ),
        pytest.param(serving(agent=DENIED), ["denied"], [], id="denied, at once"),
        pytest.param(
            serving(agent=EXPIRED, identity=OVER), ["expired"], ["agent_lost"], id="expired"
        ),
        pytest.param(
            serving(agent=but(EXPIRED, denied=True), identity=OVER),
            ["expired", "denied"],
            [],
            id="expired, because denied",
        ),
        pytest.param(
            serving(agent=but(AGENT, reason="bad key")),
            [],
            ["update_discarded"],
            id="update that was not used",
        ),
        pytest.param(
            serving(
                agent=but(STARTING, connected=True, reason="bad key"), identity=None, listening=()
            ),
            ["starting"],
            ["update_discarded"],
            id="the first update was not used",
        ),
        pytest.param(
            serving(agent=but(AGENT, notes=("one", "two"))),
            [],
            ["update_incomplete", "update_incomplete"],
            id="parts of an update that are not used",
        ),
        pytest.param(serving(identity=OLD), [], ["renewal_overdue"], id="no newer SVID for long"),
        pytest.param(
            serving(backend=but(BACKEND, checked_at=None, since=None)),
            ["starting"],
            [],
            id="backend not asked yet",
        ),
        pytest.param(
            serving(backend=but(BACKEND, reason="silent")),
            ["backend_down"],
            [],
            id="backend down",
        ),
        pytest.param(serving(backend=None), [], [], id="backend that is not watched"),
        pytest.param(
            serving(policy=but(POLICY, problems=("typo",))), [], ["bad_policy"], id="bad policy"
        ),
        pytest.param(serving(draining=True, listening=()), ["draining"], [], id="draining"),
        pytest.param(
            serving(files=but(FILES, error="disk full")), [], ["files_failed"], id="files failed"
        ),
        pytest.param(
            serving(files=FilesStatus(directory="/certs")), [], ["files_missing"], id="no files yet"
        ),
        pytest.param(
            serving(jwt_svids=(but(JWT_SVID, expires=None),)),
            [],
            ["jwt_svid_missing"],
            id="no JWT-SVID yet",
        ),
        pytest.param(
            serving(jwt_svids=(but(JWT_SVID, expires=NOW),)),
            [],
            ["jwt_svid_expired"],
            id="JWT-SVID expired",
        ),
        pytest.param(
            serving(hooks=(but(HOOK, reason="exit status 1"),)), [], ["hook_failed"], id="hook"
        ),
    ],
)
def test_who_serves_is_ready_when_whoever_connects_is_served(
    status: Status, unready: list[str], warned: list[str]
) -> None:
    assert names(readiness(status)) == unready
    assert names(warnings(status)) == warned


@pytest.mark.parametrize(
    ("status", "unready", "warned"),
    [
        pytest.param(helping(), [], [], id="well, without listener, backend and policy"),
        pytest.param(
            helping(agent=STARTING, identity=None, files=FilesStatus(directory="/certs")),
            ["starting", "files_missing"],
            ["hook_failed"],
            id="no SVID yet",
        ),
        pytest.param(
            helping(files=FilesStatus(directory="/certs")),
            ["files_missing"],
            ["hook_failed"],
            id="nothing published yet",
        ),
        pytest.param(
            helping(files=but(FILES, error="disk full")),
            ["files_failed"],
            ["hook_failed"],
            id="files failed",
        ),
        pytest.param(helping(files=PUBLISHED), [], [], id="what is in use is published"),
        pytest.param(
            helping(files=but(PUBLISHED, serial="00:ff")),
            ["files_stale"],
            ["hook_failed"],
            id="another serial is published",
        ),
        pytest.param(
            helping(files=but(PUBLISHED, expires=ago(minutes=1), error="disk full")),
            ["files_failed", "files_stale"],
            ["hook_failed"],
            id="what is published ends at another time",
        ),
        pytest.param(
            helping(files=PUBLISHED, identity=None, agent=STARTING),
            ["starting"],
            ["hook_failed"],
            id="published by a process before, nothing in use yet",
        ),
        pytest.param(
            helping(jwt_bundle=JwtBundleStatus(file="jwks.json")),
            ["jwt_bundle_missing"],
            ["hook_failed"],
            id="JWT bundle not written yet",
        ),
        pytest.param(
            helping(jwt_bundle=but(JWT_BUNDLE, error="disk full")),
            [],
            ["jwt_bundle_failed", "hook_failed"],
            id="JWT bundle not written again",
        ),
        pytest.param(helping(agent=LOST), [], ["agent_lost", "hook_failed"], id="agent away"),
        pytest.param(helping(agent=DENIED), ["denied"], ["hook_failed"], id="denied"),
        pytest.param(
            helping(agent=EXPIRED, identity=OVER),
            ["expired"],
            ["agent_lost", "hook_failed"],
            id="expired",
        ),
        pytest.param(
            helping(jwt_svids=(JWT_SVID, but(JWT_SVID, expires=None))),
            ["jwt_svid_missing"],
            ["hook_failed"],
            id="one of two JWT-SVIDs missing",
        ),
        pytest.param(
            helping(jwt_svids=(but(JWT_SVID, expires=NOW, error="denied"),)),
            ["jwt_svid_expired"],
            ["hook_failed"],
            id="JWT-SVID expired",
        ),
        pytest.param(
            helping(jwt_svids=(but(JWT_SVID, error="denied"),)),
            [],
            ["jwt_svid_failed", "hook_failed"],
            id="JWT-SVID not refreshed, and still good",
        ),
    ],
)
def test_helper_is_ready_when_whoever_reads_finds_what_it_needs(
    status: Status, unready: list[str], warned: list[str]
) -> None:
    if "hook_failed" in warned:
        status = msgspec.structs.replace(status, hooks=(but(HOOK, reason="no such process"),))
    assert names(readiness(status)) == unready
    assert names(warnings(status)) == warned


def test_text_of_stale_files_names_both_serials_and_the_end_of_what_is_published() -> None:
    stale = but(PUBLISHED, serial="00:ff", expires=ago(minutes=1))
    (reason,) = readiness(helping(files=stale))
    assert "hold serial 00:ff and expired at" in reason.text
    assert f"in use is {IDENTITY.serial}" in reason.text
    # Who serves only has a word of it: peers do not read files.
    assert names(warnings(serving(files=stale))) == ["files_stale"]
    assert readiness(serving(files=stale)) == []


def test_several_reasons_are_all_told() -> None:
    status = serving(
        agent=EXPIRED, identity=OVER, backend=but(BACKEND, reason="silent"), draining=True
    )
    assert names(readiness(status)) == ["draining", "expired", "backend_down"]


def test_texts_hold_what_went_wrong() -> None:
    policy = but(POLICY, problems=("typo in line 3", "another one"))
    status = serving(agent=LOST, policy=policy, files=but(FILES, error="disk full"))
    lost, bad_policy, files = warnings(status)
    assert "connection refused" in lost.text
    assert "typo in line 3" in bad_policy.text
    assert "1 more" in bad_policy.text
    assert "disk full" in files.text


@pytest.mark.parametrize("status", [serving(), serving(draining=True), helping(agent=DENIED)])
def test_verdict_and_report_agree(status: Status) -> None:
    short, long = verdict(status), report(status)
    assert short.ready == long.ready == (not readiness(status))
    assert (short.reasons, short.warnings) == (long.reasons, long.warnings)
    assert list(short.reasons) == readiness(status)
    assert long.status == status


def test_names_of_reasons_are_those_that_programs_know() -> None:
    assert [name.value for name in ReasonName] == [
        "starting",
        "denied",
        "expired",
        "draining",
        "backend_down",
        "files_missing",
        "files_failed",
        "files_stale",
        "jwt_svid_missing",
        "jwt_svid_expired",
        "jwt_bundle_missing",
        "agent_lost",
        "update_discarded",
        "update_incomplete",
        "renewal_overdue",
        "jwt_svid_failed",
        "jwt_bundle_failed",
        "bad_policy",
        "bad_config",
        "needs_restart",
        "hook_failed",
    ]


def test_policy_without_problems_was_reloaded_well() -> None:
    policy = PolicyStatus(
        file="policy.toml", allow=1, deny=0, loaded_at=NOW, refused_at=ago(hours=1)
    )
    assert not warnings(serving(policy=policy))
