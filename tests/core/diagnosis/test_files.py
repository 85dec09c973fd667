from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sidecar.core.diagnosis.files import NAMES, FilesFacts, HookFault, Published, judge_files
from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.host_facts import Disk, Kind, PathStat
from tests.core.diagnosis.good import FILES, NOW, SERVICE, place, troubles, verdict_of, way

DIRECTORY = "/opt/spiffe-sidecar/certs"
FAIL, WARN = Verdict.FAIL, Verdict.WARN


def changed(**changes: Any) -> FilesFacts:
    return replace(FILES, **changes)


def published(**changes: Any) -> FilesFacts:
    return changed(published=replace(FILES.published, **changes))


def folder(mode: int, uid: int = SERVICE.uid) -> FilesFacts:
    return changed(way=way(DIRECTORY, Kind.FOLDER, mode, uid))


def test_good_files_are_content() -> None:
    assert troubles(judge_files(FILES)) == {}
    assert [one.name for one in judge_files(FILES)] == list(NAMES)


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(
            changed(way=(place("/"), PathStat("/opt", Kind.ABSENT))),
            "files.directory",
            FAIL,
            id="no directory",
        ),
        pytest.param(changed(way=way(DIRECTORY)), "files.directory", FAIL, id="it is a file"),
        pytest.param(folder(0o755, 0), "files.writable", FAIL, id="it is root's"),
        pytest.param(folder(0o555), "files.writable", FAIL, id="read only"),
        pytest.param(folder(0o775), "files.guarded", FAIL, id="its group may write"),
        pytest.param(folder(0o1777), "files.guarded", FAIL, id="everybody may write"),
        pytest.param(
            replace(folder(0o777), shared=frozenset({DIRECTORY})),
            "files.guarded",
            WARN,
            id="a volume that is shared",
        ),
        pytest.param(
            published(fault="nothing is published yet"), "files.published", FAIL, id="nothing"
        ),
        pytest.param(
            changed(secrets=((place("/key", Kind.FILE, 0o644), 0o600),)),
            "files.keys",
            FAIL,
            id="a key for everybody",
        ),
        pytest.param(
            changed(secrets=((place("/vault.jwt", Kind.FILE, 0o640), 0o600),)),
            "files.keys",
            FAIL,
            id="a token for a group",
        ),
        pytest.param(published(not_after=NOW - timedelta(1)), "files.current", FAIL, id="expired"),
        pytest.param(published(serial="FF"), "files.current", FAIL, id="an earlier SVID"),
        pytest.param(changed(leftovers=("generation-9",)), "files.leftovers", WARN, id="staged"),
        pytest.param(
            changed(hooks=(HookFault("nginx", "no such process", "start it"),)),
            "files.hooks",
            FAIL,
            id="a hook without its target",
        ),
        pytest.param(changed(disk=Disk(1024, 10_000)), "files.space", FAIL, id="disk is full"),
        pytest.param(changed(disk=Disk(2**30, 3)), "files.space", FAIL, id="no inodes"),
    ],
)
def test_each_fault_has_one_name(facts: FilesFacts, name: str, verdict: Verdict) -> None:
    assert troubles(judge_files(facts)) == {name: verdict}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        pytest.param(changed(published=Unknown("x")), "files.published", id="may not be read"),
        pytest.param(changed(published=Unknown("x")), "files.current", id="nor compared"),
        pytest.param(changed(hook_names=()), "files.hooks", id="no hooks"),
        pytest.param(changed(disk=Unknown("x")), "files.space", id="disk"),
        pytest.param(changed(secrets=()), "files.keys", id="no keys"),
        pytest.param(
            changed(way=(place("/"), PathStat("/opt", Kind.HIDDEN))), "files.guarded", id="hidden"
        ),
    ],
)
def test_what_is_not_known_is_skipped(facts: FilesFacts, name: str) -> None:
    assert verdict_of(judge_files(facts), name) is Verdict.SKIPPED


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(changed(issued="0B"), id="the agent issued anew while we looked"),
        pytest.param(changed(issued="", served=""), id="nobody says what is issued"),
        pytest.param(changed(disk=Disk(2**30, None)), id="a disk that counts no inodes"),
        pytest.param(
            changed(secrets=((place("/key", Kind.FILE, 0o600), 0o640),)), id="stricter than asked"
        ),
    ],
)
def test_what_is_good_enough_is_not_told(facts: FilesFacts) -> None:
    assert troubles(judge_files(facts)) == {}


def test_published_and_unusable_is_not_compared() -> None:
    found = judge_files(changed(published=Published("generation-3", "no key")))
    assert verdict_of(found, "files.current") is Verdict.SKIPPED
