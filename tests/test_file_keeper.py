"""The story of the files: each identity is on the disk, and others hear of it once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509

from sidecar import file_keeper
from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, server_identity
from sidecar.core.after_rotation import Publication
from sidecar.core.backoff import Backoff
from sidecar.core.file_plan import FilePlan
from sidecar.core.identity_state import Clocks, Standing
from sidecar.core.ledger import Ledger
from sidecar.core.svid import Bundles, X509Svid, serial_text
from sidecar.file_keeper import keep_files
from tests.adapters.certificates import OddAuthority, bundle_of
from tests.adapters.deadlines import until, within
from tests.adapters.disk import assert_published, generations, snapshot
from tests.ca import Authority
from tests.log_lines import Line, assert_no_secret, captured
from tests.plans import LAYOUTS, bundles, cert_files, plan

PUBLISHED, FAILED = "certificate files published", "certificate files not published"
layouts = pytest.mark.parametrize("layout", LAYOUTS)


class CountedFiles(CertFiles):
    """Counts how often the disk was looked at, to the end."""

    looks = 0

    def publish(self, plan: FilePlan) -> str | None:
        try:
            return super().publish(plan)
        finally:
            self.looks += 1


@dataclass
class Story:
    """One keeper of files at work, what it logs and what it tells."""

    nursery: trio.Nursery
    directory: Path
    lines: list[Line]
    current: CurrentIdentity = field(
        default_factory=lambda: CurrentIdentity(30, Ledger(datetime.now(UTC)))
    )
    told: list[Publication] = field(default_factory=list)
    files: CountedFiles = field(init=False)

    def start(self, files: CountedFiles | None = None, **keys: Any) -> None:
        """Begin, with a `[cert_files]` table of these keys."""
        self.files = files or CountedFiles(self.directory)
        self.nursery.start_soon(
            keep_files,
            self.files,
            self.directory,
            cert_files(**keys),
            self.current,
            self.told.append,
        )

    def rotate(self, svid: X509Svid, known: Bundles) -> ServerIdentity:
        """Have another identity from now on."""
        identity = server_identity(svid, known, "1.3")
        self.current.replace(identity, Standing(not_after=svid.not_after, connected=True))
        return identity

    def said(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    async def until_told(self, times: int) -> Publication:
        """Wait until something was told so often; give the last one."""
        await until(lambda: len(self.told) >= times, f"{times} publications")
        assert len(self.told) == times
        return self.told[-1]

    async def until_failed(self, times: int) -> Line:
        """Wait until the disk has refused so often; give the last line of it."""
        await until(lambda: len(self.said(FAILED)) >= times, f"{times} failures")
        return self.said(FAILED)[times - 1]

    async def until_looked(self, times: int) -> None:
        """Wait until the disk was looked at so many more times.

        After two it is the newest identity that was looked for: one look may have been under way.
        """
        wanted = self.files.looks + times
        await until(lambda: self.files.looks >= wanted, f"{times} more looks")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the keeper of files logs."""
    return captured(monkeypatch, file_keeper)


@pytest.fixture
def story(nursery: trio.Nursery, tmp_path: Path, lines: list[Line]) -> Iterator[Story]:
    story = Story(nursery, tmp_path / "certs", lines)
    yield story
    if hasattr(story, "files"):
        story.files.close()


@pytest.fixture
def known(authority: Authority) -> Bundles:
    return bundles(authority)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are looked at all the time."""
    monkeypatch.setattr(file_keeper, "LOOK_AGAIN_SECONDS", 0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refused is tried again soon, however often it has refused."""
    monkeypatch.setattr(file_keeper, "_AGAIN", Backoff(first=0.01, cap=0.05))


def serial_of(path: str) -> str:
    return serial_text(x509.load_pem_x509_certificates(Path(path).read_bytes())[0])


# Publishing and telling.


@layouts
@within(30)
async def test_every_rotation_is_published_and_told(
    story: Story, authority: Authority, foreign: Authority, layout: str
) -> None:
    keys, both = LAYOUTS[layout], bundles(authority, foreign)
    story.start(**keys)
    for number in range(1, 5):
        svid = authority.svid()
        story.rotate(svid, both)
        publication = await story.until_told(number)
        assert publication.generation == f"generation-{number}"
        assert publication.generation == os.readlink(story.directory / "current")
        assert publication.serial == svid.serial == serial_of(publication.files["certificate"])
        planned = plan(authority, foreign, svid=svid, **keys)
        assert_published(story.directory, planned)
        assert {key: Path(path).name for key, path in publication.files.items()} == planned.names
    said = [(line["generation"], line["serial"]) for line in story.said(PUBLISHED)]
    assert said == [(one.generation, one.serial) for one in story.told]
    assert {line["log_level"] for line in story.lines} == {"info"}


@within(30)
async def test_what_is_told_says_where_whose_and_how_long(
    story: Story, authority: Authority, known: Bundles
) -> None:
    svid = authority.svid()
    story.rotate(svid, known)
    story.start(combined="both.pem")
    publication = await story.until_told(1)
    assert publication == Publication(
        kind="x509",
        directory=str(story.directory),
        files={
            "certificate": str(story.directory / "svid.pem"),
            "private_key": str(story.directory / "svid_key.pem"),
            "bundle": str(story.directory / "svid_bundle.pem"),
            "combined": str(story.directory / "both.pem"),
        },
        spiffe_id="spiffe://example.org/workload/model-server",
        expires=svid.not_after,
        serial=svid.serial,
        generation="generation-1",
    )
    assert all(Path(path).is_absolute() for path in publication.files.values())
    # A stable path, not one of a generation that will be gone.
    assert all("generation" not in path for path in publication.files.values())


@within(30)
async def test_nothing_is_written_before_there_is_an_identity(
    story: Story, authority: Authority, known: Bundles, often: None
) -> None:
    story.start()
    story.current.replace(None, Standing(connected=False, reason="agent away"))
    await trio.testing.wait_all_tasks_blocked()
    assert not story.directory.exists()
    story.rotate(authority.svid(), known)
    await story.until_told(1)


@within(30)
async def test_change_of_standing_alone_is_no_reason_to_look(
    story: Story, authority: Authority, known: Bundles
) -> None:
    story.start()
    identity = story.rotate(authority.svid(), known)
    await story.until_told(1)
    for connected in (False, True, False):
        story.current.replace(identity, replace(story.current.standing, connected=connected))
        await trio.testing.wait_all_tasks_blocked()
    svid = authority.svid()
    story.rotate(svid, known)
    assert (await story.until_told(2)).serial == svid.serial
    assert story.files.looks == 2


@within(30)
async def test_identity_of_the_same_content_is_not_written_nor_told_again(
    story: Story, authority: Authority, known: Bundles, often: None
) -> None:
    svid = authority.svid()
    story.start()
    story.rotate(svid, known)
    await story.until_told(1)
    before = snapshot(story.directory)
    story.rotate(svid, known)
    await story.until_looked(3)
    assert snapshot(story.directory) == before
    assert len(story.told) == len(story.said(PUBLISHED)) == 1


@within(30)
async def test_bundle_that_changes_alone_is_published_and_told(
    story: Story, authority: Authority, foreign: Authority
) -> None:
    svid = authority.svid()
    story.start(federated_bundles=True)
    story.rotate(svid, bundles(authority))
    await story.until_told(1)
    story.rotate(svid, bundles(authority, foreign))
    publication = await story.until_told(2)
    assert (publication.generation, publication.serial) == ("generation-2", svid.serial)
    assert (story.directory / "svid_bundle.other.org.pem").is_file()
    story.rotate(svid, bundles(authority))
    await story.until_told(3)
    assert not os.path.lexists(story.directory / "svid_bundle.other.org.pem")


@within(30)
async def test_bundle_that_no_file_holds_changes_nothing(
    story: Story, authority: Authority, foreign: Authority, often: None
) -> None:
    svid = authority.svid()
    story.start()
    story.rotate(svid, bundles(authority))
    await story.until_told(1)
    before = snapshot(story.directory)
    story.rotate(svid, bundles(authority, foreign))
    await story.until_looked(3)
    assert snapshot(story.directory) == before
    assert len(story.told) == 1


@within(30)
async def test_note_about_what_is_left_out_is_a_warning_of_each_publication(
    story: Story, authority: Authority, often: None
) -> None:
    long = Authority("a" * 250)
    story.start(federated_bundles=True)
    for number in (1, 2):
        story.rotate(authority.svid(), bundles(authority, long))
        await story.until_told(number)
        await story.until_looked(3)
        warnings = story.said("certificate files incomplete")
        assert len(warnings) == number
        assert (warnings[-1]["log_level"], "too long" in warnings[-1]["reason"]) == (
            "warning",
            True,
        )


# After a start.


@layouts
@within(30)
async def test_generation_that_is_there_already_is_told_once_and_not_written(
    story: Story, authority: Authority, known: Bundles, often: None, layout: str
) -> None:
    """The process before may have died before it had told anybody."""
    svid = authority.svid()
    earlier = CertFiles(story.directory)
    earlier.publish(plan(authority, svid=svid, **LAYOUTS[layout]))
    earlier.close()
    before = snapshot(story.directory)
    story.rotate(svid, known)
    story.start(**LAYOUTS[layout])
    publication = await story.until_told(1)
    assert (publication.generation, publication.serial) == ("generation-1", svid.serial)
    assert all(Path(path).is_file() for path in publication.files.values())
    await story.until_looked(5)
    assert snapshot(story.directory) == before
    assert len(story.told) == 1
    # It is not news to who reads the log.
    assert [line["log_level"] for line in story.said(PUBLISHED)] in ([], ["debug"])


@within(30)
async def test_generation_of_another_configuration_is_replaced_at_start(
    story: Story, authority: Authority, known: Bundles
) -> None:
    svid = authority.svid()
    earlier = CertFiles(story.directory)
    earlier.publish(plan(authority, svid=svid))
    earlier.close()
    story.rotate(svid, known)
    story.start(layout="kubernetes")
    assert (await story.until_told(1)).generation == "generation-2"
    assert_published(story.directory, plan(authority, svid=svid, layout="kubernetes"))


# From time to time.


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda directory: directory.rename(f"{directory}-x"), id="directory is gone"),
        pytest.param(lambda directory: (directory / "current").unlink(), id="current is gone"),
        pytest.param(
            lambda directory: (directory / "generation-1").rename(directory / "x"),
            id="generation is gone",
        ),
        pytest.param(
            lambda directory: (directory / "current/svid_key.pem").chmod(0o666), id="mode"
        ),
        pytest.param(
            lambda directory: (directory / "current/svid.pem").write_bytes(b"x"), id="content"
        ),
    ],
)
@within(30)
async def test_what_somebody_removed_or_changed_comes_back_and_is_told(
    story: Story,
    authority: Authority,
    known: Bundles,
    often: None,
    spoil: Callable[[Path], object],
) -> None:
    svid = authority.svid()
    story.start()
    story.rotate(svid, known)
    await story.until_told(1)
    spoil(story.directory)
    # Told again: whoever reads the files may have read the wrong ones.
    publication = await story.until_told(2)
    assert publication.serial == svid.serial
    assert_published(story.directory, plan(authority, svid=svid))


@within(30)
async def test_plain_path_that_somebody_removed_comes_back_without_a_word(
    story: Story, authority: Authority, known: Bundles, often: None
) -> None:
    svid = authority.svid()
    story.start()
    story.rotate(svid, known)
    await story.until_told(1)
    (story.directory / "svid.pem").unlink()
    await until((story.directory / "svid.pem").is_file, "the link")
    await story.until_looked(3)
    assert generations(story.directory) == {"generation-1"}
    assert len(story.told) == 1


@within(30)
async def test_files_that_are_as_they_should_be_are_only_looked_at(
    story: Story, authority: Authority, known: Bundles, often: None
) -> None:
    story.start(**LAYOUTS["richest"])
    story.rotate(authority.svid(), known)
    await story.until_told(1)
    before = snapshot(story.directory)
    await story.until_looked(10)
    assert snapshot(story.directory) == before
    assert len(story.told) == len(story.lines) == 1


@within(30)
async def test_expired_authority_leaves_the_file_when_its_time_comes(
    story: Story, authority: Authority, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = OddAuthority(name="ending", not_after=timedelta(hours=1))
    wall = datetime.now(UTC)
    monkeypatch.setattr(file_keeper, "read_clocks", lambda: Clocks(wall, 0.0))
    story.start(omit_expired_authorities=True)
    story.rotate(authority.svid(), {authority.trust_domain: bundle_of(authority, ending)})

    def authorities() -> list[x509.Certificate]:
        pem = (story.directory / "svid_bundle.pem").read_bytes()
        return x509.load_pem_x509_certificates(pem)

    await story.until_told(1)
    assert authorities() == [authority.certificate, ending.certificate]
    wall = ending.certificate.not_valid_after_utc - timedelta(seconds=1)
    await story.until_looked(3)
    assert len(story.told) == 1
    wall += timedelta(seconds=2)
    assert (await story.until_told(2)).generation == "generation-2"
    assert authorities() == [authority.certificate]


# A disk that refuses.


@within(60)
async def test_disk_that_refuses_keeps_the_published_files_and_gets_the_newest_later(
    story: Story, authority: Authority, known: Bundles, impatient: None
) -> None:
    story.start()
    svids = [authority.svid() for _ in range(4)]
    story.rotate(svids[0], known)
    await story.until_told(1)
    story.directory.chmod(0o777)  # refused: somebody else could replace our files
    for number, svid in enumerate(svids[1:], 1):
        story.rotate(svid, known)
        await story.until_failed(number)
    await story.until_looked(2)
    assert_published(story.directory, plan(authority, svid=svids[0]))
    line = story.said(FAILED)[0]
    assert line["log_level"] == "error"
    assert "others cannot write" in line["reason"]
    assert "chmod" in line["hint"]
    story.directory.chmod(0o755)
    # Those in between were never written.
    publication = await story.until_told(2)
    assert (publication.generation, publication.serial) == ("generation-2", svids[-1].serial)
    assert_published(story.directory, plan(authority, svid=svids[-1]))


@within(60)
async def test_disk_is_tried_again_though_nothing_rotates(
    story: Story, authority: Authority, known: Bundles, impatient: None
) -> None:
    story.directory.write_bytes(b"a file where the folder should be")
    story.start()
    svid = authority.svid()
    story.rotate(svid, known)
    await story.until_failed(2)
    assert story.told == []
    story.directory.unlink()
    assert (await story.until_told(1)).serial == svid.serial


@within(60)
async def test_generation_that_was_published_before_the_disk_refused_is_told_when_it_is_whole(
    story: Story, authority: Authority, known: Bundles, impatient: None
) -> None:
    """The flip of `current` went well, and then a link could not be made."""
    story.start()
    story.rotate(authority.svid(), known)
    await story.until_told(1)
    (story.directory / "svid.pem").unlink()
    (story.directory / "svid.pem").mkdir()
    svid = authority.svid()
    story.rotate(svid, known)
    line = await story.until_failed(1)
    assert str(story.directory / "svid.pem") in line["reason"]
    assert len(story.told) == 1
    (story.directory / "svid.pem").rmdir()
    publication = await story.until_told(2)
    assert publication.serial == svid.serial == serial_of(publication.files["certificate"])
    assert publication.generation == os.readlink(story.directory / "current")
    assert story.said(PUBLISHED)[-1]["generation"] == publication.generation


@within(60)
async def test_retries_begin_anew_after_a_success(
    story: Story, authority: Authority, known: Bundles
) -> None:
    story.start()
    for number in (1, 2, 3):
        story.directory.mkdir(exist_ok=True)
        story.directory.chmod(0o777)
        story.rotate(authority.svid(), known)
        line = await story.until_failed(len(story.said(FAILED)) + 1)
        assert 0 < line["retry_seconds"] <= 1
        story.directory.chmod(0o755)
        await story.until_told(number)


@within(30)
async def test_lock_of_another_writer_is_told_and_waited_for(
    story: Story, authority: Authority, known: Bundles, impatient: None
) -> None:
    other = CertFiles(story.directory)
    other.publish(plan(authority))
    story.start()
    svid = authority.svid()
    story.rotate(svid, known)
    line = await story.until_failed(1)
    assert "another process" in line["reason"]
    assert "directory of its own" in line["hint"]
    other.close()
    assert (await story.until_told(1)).serial == svid.serial


class HangingFiles(CountedFiles):
    """A disk that hangs until it is let go, like a network mount without its server."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.waits, self.let_go = threading.Event(), threading.Event()

    def publish(self, plan: FilePlan) -> str | None:
        self.waits.set()
        assert self.let_go.wait(60)
        return super().publish(plan)


@pytest.fixture
def hanging(story: Story) -> Iterator[HangingFiles]:
    files = HangingFiles(story.directory)
    yield files
    files.let_go.set()


@within(60)
async def test_disk_that_hangs_gets_the_newest_when_it_goes_on(
    story: Story, authority: Authority, known: Bundles, hanging: HangingFiles
) -> None:
    svids = [authority.svid() for _ in range(4)]
    story.start(hanging)
    story.rotate(svids[0], known)
    await until(hanging.waits.is_set, "the disk to be asked")
    for svid in svids[1:]:
        story.rotate(svid, known)
        await trio.testing.wait_all_tasks_blocked()
    assert story.told == []
    hanging.let_go.set()
    await until(lambda: [one.serial for one in story.told][-1:] == [svids[-1].serial], "the newest")
    assert not {one.serial for one in story.told} & {svid.serial for svid in svids[1:-1]}


@within(60)
async def test_disk_that_hangs_does_not_hold_up_the_exit(
    story: Story, authority: Authority, known: Bundles, hanging: HangingFiles
) -> None:
    async with trio.open_nursery() as nursery:
        story.nursery = nursery
        story.start(hanging)
        story.rotate(authority.svid(), known)
        await until(hanging.waits.is_set, "the disk to be asked")
        nursery.cancel_scope.cancel()
    assert not hanging.let_go.is_set()
    assert story.told == []


# Secrets.


@within(60)
async def test_no_line_and_nothing_told_holds_a_secret(
    story: Story, authority: Authority, foreign: Authority, impatient: None
) -> None:
    svids = [authority.svid() for _ in range(3)]
    both = bundles(authority, foreign, Authority("a" * 250))
    story.start(**LAYOUTS["richest"])
    story.rotate(svids[0], both)
    await story.until_told(1)
    (story.directory / "both.pem").unlink()
    (story.directory / "both.pem").mkdir()
    story.rotate(svids[1], both)
    await story.until_failed(1)
    story.directory.chmod(0o777)
    story.rotate(svids[2], both)
    await story.until_looked(2)
    story.directory.chmod(0o755)
    (story.directory / "both.pem").rmdir()
    await story.until_told(2)
    assert len({line["event"] for line in story.lines}) == 3
    environments = [one.environment() for one in story.told]
    assert_no_secret([story.lines, story.told, environments], *svids)
