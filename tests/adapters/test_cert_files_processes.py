"""Certificate files and other processes: readers, a watcher of keys, publishers that are killed."""

from __future__ import annotations

import grp
import os
import pwd
import random
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from sidecar.adapters.cert_files import CertFiles
from sidecar.core.errors import CertFilesError
from tests.adapters.accounts import GROUP, OWNER, needs_root
from tests.adapters.disk import assert_published, generations, make_old
from tests.adapters.file_observers import NEW_FILE, keep_on, observing
from tests.adapters.file_processes import MortalPublisher, generation_is_whole, pair_matches
from tests.plans import JWT, LAYOUTS, plans, token, token_is_whole

OpenFiles = Callable[..., CertFiles]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
PUBLICATIONS = 200 if os.environ.get("FULL") else 80


@layouts
def test_reader_never_sees_a_mismatch_nor_half_a_file(
    fast_directory: Path, open_files: OpenFiles, layout: str
) -> None:
    """One opens `current` once and reads what is below it; one reads the plain paths."""
    files, some = open_files(fast_directory), plans(20, layout)
    names = some[0].names

    def publish(number: int) -> None:
        assert files.publish(some[(number + 1) % 20]) is not None
        assert files.replace(token(number + 1))

    files.publish(some[0])
    files.replace(token(0))
    with (
        observing("read", fast_directory, names=names) as careful,
        observing("read-plain", fast_directory, names=names | {"jwt": JWT}) as plain,
    ):
        keep_on(
            publish,
            PUBLICATIONS,
            lambda: careful.ask()["match"] > 20,
            lambda: plain.ask()["whole"] > 20,
        )
    assert set(careful.saw) == {"match"}
    assert set(plain.saw) == {"whole", "token"} | ({"match"} if "combined" in names else set())


@pytest.mark.parametrize(
    "whose",
    [
        pytest.param({}, id="ours"),
        pytest.param(OWNER, id="owner", marks=[needs_root]),
        pytest.param(GROUP, id="group", marks=[needs_root]),
        pytest.param(OWNER | GROUP, id="owner and group", marks=[needs_root]),
    ],
)
@layouts
def test_key_is_never_wider_than_configured_not_even_before_it_is_published(
    fast_directory: Path,
    open_files: OpenFiles,
    umask: Callable[[int], int],
    layout: str,
    whose: dict[str, str],
) -> None:
    files, some = open_files(fast_directory, **whose), plans(10, layout)
    uid = pwd.getpwnam(whose["owner"]).pw_uid if "owner" in whose else os.geteuid()
    gid = grp.getgrnam(whose["group"]).gr_gid if "group" in whose else None
    secrets = [some[0].names[one] for one in ("private_key", "combined") if one in some[0].names]
    # One mode for all that the watcher looks at.
    (mode,) = {file.mode for file in some[0].files if file.name in secrets}
    files.publish(some[0])

    def publish(number: int) -> None:
        umask(0o077 if number % 2 else 0o000)
        files.publish(some[(number + 1) % 10])
        files.replace(token(number, mode))
        make_old(fast_directory)  # only few are kept, so that the watcher looks at the newest

    with observing("watch", fast_directory, names=secrets, mode=mode, uid=uid, gid=gid) as watcher:
        keep_on(
            publish,
            PUBLICATIONS,
            lambda: watcher.ask()["empty keys"] > 0,
            lambda: watcher.saw["empty tokens"] > 0,
        )
    assert {name: watcher.saw[name] for name in ("wide", "strange owner", "late")} == {
        "wide": 0,
        "strange owner": 0,
        "late": 0,
    }


def test_watcher_sees_a_key_that_is_too_wide(fast_directory: Path) -> None:
    """What the tests above rely on."""
    folder = fast_directory / "generation-1"
    folder.mkdir(parents=True)
    wide, strange, late = (folder / name for name in ("wide", "strange", "late"))
    for path in (wide, strange, late):
        path.write_bytes(b"key")
    wide.chmod(0o644)
    strange.chmod(0o600)
    late.chmod(0o400)
    saw = {}
    for path in (wide, strange, late):
        uid = os.geteuid() + (path is strange)
        options = {"names": [path.name], "mode": 0o600, "uid": uid, "gid": None}
        with observing("watch", fast_directory, **options) as watcher:
            watcher.ask()
        saw[path.name] = {name for name, times in watcher.saw.items() if times} - {"keys"}
    assert saw["wide"] >= {"wide", "late"}
    assert saw["strange"] == {"late"}  # ours still, though another one's was expected
    assert saw["late"] == {"late"}


def test_publisher_killed_at_any_moment_leaves_a_valid_generation(
    fast_directory: Path, open_files: OpenFiles
) -> None:
    fast_directory.mkdir()
    files, some = open_files(fast_directory), plans(2, "richest")
    publisher = MortalPublisher(fast_directory, "richest")
    died = {"staging": 0, "replacing": 0, "published": 0}
    files.publish(some[0])
    files.replace(token(0))
    rounds = count()

    def kill(_: int) -> None:
        files.close()
        before = os.readlink(fast_directory / "current")
        mortal = publisher.start()
        time.sleep(random.uniform(0, 0.02))  # not to wait for anything: the moment of death
        os.kill(mortal, signal.SIGKILL)
        assert publisher.wait() == -signal.SIGKILL
        assert generation_is_whole(fast_directory, some[0].names)
        both = (fast_directory / "both.pem").read_bytes()
        assert pair_matches(both, both)
        assert token_is_whole((fast_directory / JWT).read_bytes())
        current = os.readlink(fast_directory / "current")
        numbers = {int(name.removeprefix("generation-")) for name in generations(fast_directory)}
        died["staging"] += max(numbers) > int(current.removeprefix("generation-"))
        died["replacing"] += os.path.lexists(fast_directory / NEW_FILE)
        died["published"] += current != before
        planned = some[next(rounds) % 2]
        files.publish(planned)
        assert_published(fast_directory, planned)
        assert not list(fast_directory.glob(".new*")), "something was left behind"
        make_old(fast_directory)

    try:
        keep_on(kill, 200, *(lambda name=name: died[name] > 0 for name in died))
    finally:
        publisher.close()


def test_directory_that_another_process_writes_to_is_left_to_it(
    directory: Path, files: CertFiles
) -> None:
    directory.mkdir()
    (planned,) = plans(1)
    publisher = MortalPublisher(directory)
    mortal = publisher.start()
    try:
        end = time.monotonic() + 60
        while not os.path.lexists(directory / JWT):  # it has published, and holds the directory
            assert time.monotonic() < end
        for act in (lambda: files.publish(planned), lambda: files.replace(token(7))):
            with pytest.raises(CertFilesError, match="another process") as caught:
                act()
            assert str(directory) in caught.value.message
            assert "directory of its own" in (caught.value.hint or "")
    finally:
        os.kill(mortal, signal.SIGKILL)
        publisher.wait()
        publisher.close()
    assert generation_is_whole(directory, planned.names)
    assert files.publish(planned) is not None
    assert_published(directory, planned)
