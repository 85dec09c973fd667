"""The story of files that something else writes: what stands there is what we serve with.

What is wrong with them is said once and costs nothing that we have; what is wrong for a moment
only is not even said. The clock mostly stands still, and the tests let time pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar import rotator
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import IdentityFiles, IdentityPaths
from sidecar.adapters.identity_files import source as identity_files
from sidecar.adapters.identity_files.source import SETTLE_SECONDS
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity
from sidecar.core.identity_state import IdentityState
from sidecar.core.identity_update import SvidChoice
from sidecar.core.ledger import Ledger
from sidecar.rotator import IdentityRules, follow_source, watch_state
from tests.adapters.deadlines import until, within
from tests.adapters.identity_files.sources import MOVED, NEVER, OFTEN, Deaf
from tests.ca import Authority
from tests.held_clock import pass_time
from tests.identity_writers import (
    BUNDLE,
    CERTIFICATE,
    KEY,
    NAMES,
    Contents,
    Generations,
    Kubernetes,
    OneByOne,
    ReplacedFolder,
    Writer,
    paths_in,
    pem,
    rename_over,
    write_in_place,
)
from tests.log_lines import Line, assert_no_secret, captured

GRACE = 30
# So long that whatever is wrong for good has been told.
SETTLED = 2 * SETTLE_SECONDS
# So long that everything has been asked for again, some times over: an identity lasts an hour.
HOURS = 3 * 3600.0


@dataclass
class Story:
    """What one follower of files made of them."""

    nursery: trio.Nursery
    lines: list[Line]
    closing: ExitStack
    current: CurrentIdentity = field(
        default_factory=lambda: CurrentIdentity(GRACE, Ledger(datetime.now(UTC)))
    )

    def follow(
        self, paths: IdentityPaths, watch: Any = Deaf, poll_seconds: float = OFTEN
    ) -> IdentityFiles:
        files = IdentityFiles(paths, poll_seconds, watch)
        self.closing.callback(files.close)
        rules = IdentityRules(SvidChoice(), "1.3")
        self.nursery.start_soon(follow_source, files, self.current, rules)
        return files

    async def until_serial(self, serial: str) -> ServerIdentity:
        await until(lambda: self.serial == serial, serial)
        assert self.current.identity is not None
        return self.current.identity

    @property
    def said(self) -> list[str]:
        """The events that were logged, above DEBUG."""
        return [line["event"] for line in self.lines if line["log_level"] != "debug"]

    @property
    def serial(self) -> str:
        return self.current.identity.svid.serial if self.current.identity else ""

    @property
    def state(self) -> IdentityState:
        return self.current.standing.state(read_clocks())

    def serves(self, at: datetime | None = None) -> bool:
        """Whether a connection would be served, now or at some time."""
        clocks = read_clocks()
        return self.current.serving(replace(clocks, wall=at or clocks.wall)) is not None


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes at the end of a test what was entered into it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the rotator logs, and the source of identities."""
    entries = captured(monkeypatch, rotator)
    monkeypatch.setattr(identity_files, "log", rotator.log)
    return entries


@pytest.fixture
def story(nursery: trio.Nursery, lines: list[Line], closing: ExitStack) -> Story:
    return Story(nursery, lines, closing)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files are."""
    folder = tmp_path / "identity"
    folder.mkdir()
    return folder


@pytest.fixture
def writer(folder: Path) -> Writer:
    """The plainest one."""
    return OneByOne(folder, rename_over)


# The good case.


@within(MOVED)
async def test_files_are_what_we_serve_with(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    assert (story.state, story.serves()) == (IdentityState.STARTING, False)
    story.follow(writer.paths)
    await pass_time(OFTEN)
    identity = story.current.identity
    assert identity is not None
    assert identity.svid.chain == contents.svid.chain
    assert identity.bundles == {authority.trust_domain: authority.bundle}
    assert (story.state, story.serves()) == (IdentityState.READY, True)
    (line,) = [line for line in story.lines if line["log_level"] != "debug"]
    assert (line["event"], line["log_level"]) == ("identity obtained", "info")
    assert line["spiffe_id"] == str(contents.svid.spiffe_id)
    assert line["serial"] == contents.serial


KINDS = [Kubernetes, Generations, ReplacedFolder, lambda folder: OneByOne(folder, rename_over)]


@pytest.mark.parametrize("kind", KINDS, ids=["kubernetes", "generations", "folder", "files"])
@within(60)
async def test_each_replacement_is_one_rotation_and_nothing_else_is_said(
    story: Story, folder: Path, authority: Authority, kind: Callable[[Path], Writer]
) -> None:
    writer = kind(folder)
    story.closing.callback(writer.close)
    contents = [Contents.new(authority) for _ in range(10)]
    writer.put(contents[0])
    story.follow(writer.paths, FileChanges, NEVER)
    identities = [await story.until_serial(contents[0].serial)]
    for one in contents[1:]:
        await trio.to_thread.run_sync(writer.put, one)
        identities.append(await story.until_serial(one.serial))
    # Never a changed context: connections of before go on with theirs.
    assert len({id(one.context) for one in identities}) == len(contents)
    assert story.said == ["identity obtained"] + ["identity rotated"] * 9


@within(MOVED)
async def test_new_bundle_with_the_same_pair_is_a_rotation(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    story.follow(writer.paths)
    await pass_time(OFTEN)
    wider = (authority.certificate, Authority("example.org").certificate)
    rename_over(writer.place / BUNDLE, pem(*wider))
    await pass_time(SETTLED)
    assert story.said == ["identity obtained", "identity rotated"]
    assert story.current.identity is not None
    assert story.current.identity.bundles[authority.trust_domain].authorities == wider
    assert story.serial == contents.serial


@within(MOVED)
async def test_files_that_are_touched_or_written_again_are_no_rotation(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    story.follow(writer.paths)
    await pass_time(OFTEN)
    before = story.current.identity
    for path in writer.paths.all():
        path.touch()
    await pass_time(SETTLED)
    writer.put(contents)
    await pass_time(SETTLED)
    await pass_time(HOURS, 60)
    assert story.said == ["identity obtained"]
    assert story.current.identity is before


# Wrong for a moment.


@pytest.mark.parametrize(
    "order", [(CERTIFICATE, KEY, BUNDLE), (KEY, BUNDLE, CERTIFICATE), (BUNDLE, KEY, CERTIFICATE)]
)
@within(MOVED)
async def test_new_authority_comes_with_its_files_one_after_the_other(
    story: Story,
    writer: Writer,
    authority: Authority,
    mock_clock: MockClock,
    order: tuple[str, ...],
) -> None:
    """In between the pair matches, and nothing proves it yet, or any more."""
    writer.put(Contents.new(authority))
    story.follow(writer.paths)
    await pass_time(OFTEN)
    for _ in range(3):
        contents = Contents.new(Authority("example.org"))
        for name in order:
            rename_over(writer.place / name, contents.of(name))
            await pass_time(SETTLE_SECONDS / 4)
        assert story.serial == contents.serial
    assert story.said == ["identity obtained"] + ["identity rotated"] * 3


@within(MOVED)
async def test_chain_is_not_taken_before_its_intermediate_is_there(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    writer.put(Contents.new(authority))
    story.follow(writer.paths)
    await pass_time(OFTEN)
    middle = authority.intermediate()
    issued = middle.sign(authority.leaf(), middle)
    svid = replace(authority.svid(), chain=issued.chain, private_key=issued.key)
    contents = Contents(svid, authority.bundle)
    write_in_place(writer.place / KEY, contents.of(KEY))
    write_in_place(writer.place / CERTIFICATE, pem(issued.chain[0]))
    await pass_time(SETTLE_SECONDS / 2)
    write_in_place(writer.place / CERTIFICATE, contents.of(CERTIFICATE))
    await pass_time(SETTLED)
    assert story.serial == svid.serial
    assert story.said == ["identity obtained", "identity rotated"]


@pytest.mark.parametrize("name", [*NAMES, "partner.pem"])
@within(MOVED)
async def test_file_that_is_empty_or_away_for_a_moment_changes_nothing(
    story: Story,
    writer: Writer,
    authority: Authority,
    foreign: Authority,
    mock_clock: MockClock,
    name: str,
) -> None:
    path = writer.place / name
    writer.put(Contents.new(authority))
    rename_over(writer.place / "partner.pem", pem(foreign.certificate))
    federated = {foreign.trust_domain: writer.place / "partner.pem"}
    story.follow(paths_in(writer.place, federated))
    await pass_time(OFTEN)
    identity, whole = story.current.identity, path.read_bytes()
    for spoil in (lambda: path.write_bytes(b""), lambda: path.write_bytes(whole[:99]), path.unlink):
        spoil()
        await pass_time(SETTLE_SECONDS / 2)
        rename_over(path, whole)
        await pass_time(SETTLED)
    assert story.said == ["identity obtained"]
    # Another one, even if it says the same, would end every kept connection.
    assert story.current.identity is identity
    assert story.state is IdentityState.READY


# Wrong for good.


def _other_key(writer: Writer, authority: Authority) -> None:
    write_in_place(writer.place / KEY, Contents.new(authority).of(KEY))


def _no_pem(writer: Writer, authority: Authority) -> None:
    write_in_place(writer.place / CERTIFICATE, b"\n# to do\n")


def _foreign_bundle(writer: Writer, authority: Authority) -> None:
    stranger = Authority("example.org")
    write_in_place(writer.place / BUNDLE, pem(stranger.certificate))


def _expired(writer: Writer, authority: Authority) -> None:
    ago = {"not_before": timedelta(hours=-2), "not_after": timedelta(hours=-1)}
    writer.put(Contents.new(authority, **ago))


def _not_valid_yet(writer: Writer, authority: Authority) -> None:
    ahead = {"not_before": timedelta(hours=20), "not_after": timedelta(hours=21)}
    writer.put(Contents.new(authority, **ahead))


def _no_digital_signature(writer: Writer, authority: Authority) -> None:
    writer.put(Contents.new(authority, key_usage=None))


BAD = [
    pytest.param(_other_key, "belong together", id="pair"),
    pytest.param(_no_pem, "certificate: ", id="no PEM"),
    pytest.param(_foreign_bundle, "model-server", id="other authority"),
    pytest.param(_expired, "model-server", id="expired"),
    pytest.param(_not_valid_yet, "model-server", id="not valid yet"),
    pytest.param(_no_digital_signature, "model-server", id="no SVID"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD)
@within(MOVED)
async def test_bad_files_leave_what_we_have_and_are_told_once(
    story: Story,
    writer: Writer,
    authority: Authority,
    mock_clock: MockClock,
    spoil: Callable[[Writer, Authority], None],
    reason: str,
) -> None:
    writer.put(Contents.new(authority))
    story.follow(writer.paths)
    await pass_time(OFTEN)
    identity = story.current.identity
    spoil(writer, authority)
    await pass_time(SETTLED)
    await pass_time(HOURS, 60)
    assert story.said == ["identity obtained", "update discarded"]
    line = story.lines[-1]
    assert (line["log_level"], line["kept"]) == ("warning", True)
    assert reason in line["reason"]
    assert story.current.identity is identity
    assert story.current.standing.reason == line["reason"]
    assert (story.state, story.serves()) == (IdentityState.READY, True)
    # Mended, they are taken, and nothing is left of the reason.
    following = Contents.new(authority)
    writer.put(following)
    await pass_time(SETTLED)
    assert story.said == ["identity obtained", "update discarded", "identity rotated"]
    assert story.serial == following.serial
    assert story.current.standing.reason == ""


@pytest.mark.parametrize(("spoil", "reason"), BAD)
@within(MOVED)
async def test_bad_files_at_the_start_are_told_once_and_nothing_is_served(
    story: Story,
    writer: Writer,
    authority: Authority,
    mock_clock: MockClock,
    spoil: Callable[[Writer, Authority], None],
    reason: str,
) -> None:
    writer.put(Contents.new(authority))
    spoil(writer, authority)
    story.follow(writer.paths)
    await pass_time(SETTLED)
    await pass_time(HOURS, 60)
    assert story.said == ["update discarded"]
    assert story.lines[-1]["kept"] is False
    assert reason in story.lines[-1]["reason"]
    assert (story.state, story.serves()) == (IdentityState.STARTING, False)
    writer.put(Contents.new(authority))
    await pass_time(SETTLED)
    assert story.said == ["update discarded", "identity obtained"]
    assert (story.state, story.serves()) == (IdentityState.READY, True)


@within(MOVED)
async def test_the_old_files_put_back_after_bad_ones_are_no_rotation(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    story.follow(writer.paths)
    await pass_time(OFTEN)
    identity = story.current.identity
    for _ in range(2):
        _other_key(writer, authority)
        await pass_time(SETTLED)
        writer.put(contents)
        await pass_time(SETTLED)
    # Told each time that they have become bad.
    assert story.said == ["identity obtained", "update discarded", "update discarded"]
    assert story.current.identity is identity
    assert story.current.standing.reason == ""


# Files that are gone.


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES])
@within(MOVED)
async def test_lost_files_are_told_once_and_we_serve_until_the_identity_expires(
    story: Story,
    writer: Writer,
    authority: Authority,
    mock_clock: MockClock,
    names: tuple[str, ...],
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    story.follow(writer.paths)
    await pass_time(OFTEN)
    identity = story.current.identity
    for name in names:
        (writer.place / name).unlink()
    await pass_time(SETTLED)
    await pass_time(HOURS, 60)
    assert story.said == ["identity obtained", "identity files lost"]
    line = story.lines[-1]
    assert (line["log_level"], line["serving"]) == ("warning", True)
    assert str(writer.place / names[0]) in line["reason"]
    assert story.current.identity is identity
    assert (story.state, story.serves()) == (IdentityState.AGENT_LOST, True)
    end = contents.svid.not_after
    assert story.serves(end)
    assert not story.serves(end + timedelta(seconds=1))
    # They come back, the very same, and then other ones.
    writer.put(contents)
    await pass_time(SETTLED)
    assert story.said == ["identity obtained", "identity files lost"]
    assert story.current.identity is identity
    assert story.state is IdentityState.READY
    writer.put(Contents.new(authority))
    await pass_time(SETTLED)
    assert story.said[2:] == ["identity rotated"]


@within(60)
async def test_identity_that_expires_while_the_files_are_gone_is_served_no_longer(
    story: Story, writer: Writer, authority: Authority
) -> None:
    writer.put(Contents.new(authority, not_after=timedelta(seconds=4)))
    story.follow(writer.paths, FileChanges)
    story.nursery.start_soon(watch_state, story.current)
    await until(lambda: story.state is IdentityState.READY, "an identity")
    for path in writer.paths.all():
        path.unlink()
    await until(lambda: story.state is IdentityState.EXPIRED, "the end")
    assert not story.serves()
    await until(lambda: story.lines[-1].get("state") == "expired", "a line")
    assert story.lines[-1]["serving"] is False
    following = Contents.new(authority)
    writer.put(following)
    await story.until_serial(following.serial)
    assert story.serves()


@within(MOVED)
async def test_files_that_are_not_there_at_the_start_are_waited_for(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    story.follow(writer.paths)
    await pass_time(SETTLED)
    await pass_time(HOURS, 60)
    assert story.said == ["identity files lost"]
    assert story.lines[-1]["serving"] is False
    assert story.state is IdentityState.STARTING
    writer.put(Contents.new(authority))
    await pass_time(SETTLED)
    assert story.said == ["identity files lost", "identity obtained"]


# Federated bundles.


@within(MOVED)
async def test_federated_bundle_that_is_removed_takes_its_trust_domain_along(
    story: Story,
    writer: Writer,
    authority: Authority,
    foreign: Authority,
    mock_clock: MockClock,
) -> None:
    partner = writer.place / "partner.pem"
    partner.write_bytes(pem(foreign.certificate))
    contents = Contents.new(authority)
    writer.put(contents)
    story.follow(paths_in(writer.place, {foreign.trust_domain: partner}))
    await pass_time(OFTEN)
    assert _trusted(story) == {authority.trust_domain, foreign.trust_domain}
    partner.unlink()
    await pass_time(SETTLED)
    assert _trusted(story) == {authority.trust_domain}
    assert story.serial == contents.serial
    assert story.serves()
    # Once: not again when the same is looked at again.
    await pass_time(HOURS, 60)
    assert story.said == ["identity obtained", "update incomplete", "identity rotated"]
    note = next(line for line in story.lines if line["event"] == "update incomplete")
    assert note["log_level"] == "warning"
    assert "other.org" in note["reason"]
    assert str(partner) in note["reason"]
    partner.write_bytes(pem(foreign.certificate))
    await pass_time(SETTLED)
    assert _trusted(story) == {authority.trust_domain, foreign.trust_domain}
    assert story.said[3:] == ["identity rotated"]


@within(MOVED)
async def test_rotation_does_not_wait_for_a_federated_bundle_that_is_missing_anyhow(
    story: Story, writer: Writer, authority: Authority, foreign: Authority, mock_clock: MockClock
) -> None:
    writer.put(Contents.new(authority))
    story.follow(paths_in(writer.place, {foreign.trust_domain: writer.place / "partner.pem"}))
    await pass_time(SETTLED)
    assert story.said == ["update incomplete", "identity obtained"]
    following = Contents.new(authority)
    writer.put(following)
    await pass_time(2 * OFTEN)
    assert story.serial == following.serial


@within(MOVED)
async def test_federated_bundle_cannot_speak_for_our_own_trust_domain(
    story: Story, writer: Writer, authority: Authority, mock_clock: MockClock
) -> None:
    """Named for ours by mistake, it does not widen what we trust."""
    stranger = writer.place / "partner.pem"
    stranger.write_bytes(pem(Authority("example.org").certificate))
    writer.put(Contents.new(authority))
    story.follow(paths_in(writer.place, {authority.trust_domain: stranger}))
    await pass_time(SETTLED)
    assert story.current.identity is not None
    assert story.current.identity.bundles == {authority.trust_domain: authority.bundle}
    assert story.said == ["update incomplete", "identity obtained"]


def _trusted(story: Story) -> set[Any]:
    assert story.current.identity is not None
    return set(story.current.identity.bundles)


# Secrets, and the end.


def _damaged_keys(key: bytes) -> Iterator[bytes]:
    """A key file as editors, full disks and torn writes leave it."""
    yield key[: len(key) // 2]
    yield key[5:]
    yield b"-----BEGIN ----\n" + key.partition(b"\n")[2]
    yield key.replace(b"-----END", b"----END")
    yield key.replace(b"\n", b" ")
    yield key.replace(b"PRIVATE KEY", b"CERTIFICATE")
    yield b"".join(key.splitlines(keepends=True)[1:-1])
    yield key.replace(b"PRIVATE", b"ENCRYPTED PRIVATE")


@pytest.mark.parametrize("place", [*NAMES, "partner.pem"])
@within(MOVED)
async def test_no_line_holds_a_key_whatever_file_it_is_in_and_however_damaged(
    story: Story,
    writer: Writer,
    authority: Authority,
    foreign: Authority,
    mock_clock: MockClock,
    place: str,
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    federated = {foreign.trust_domain: writer.place / "partner.pem"}
    story.follow(paths_in(writer.place, federated))
    for damaged in (contents.of(KEY), *_damaged_keys(contents.of(KEY))):
        rename_over(writer.place / place, damaged)
        await pass_time(SETTLED)
        rename_over(writer.place / place, damaged + contents.of(CERTIFICATE))
        await pass_time(SETTLED)
    writer.put(Contents.new(authority))
    await pass_time(SETTLED)
    assert len(story.lines) >= 5
    assert_no_secret(story.lines, contents.svid)
    assert_no_secret([repr(story.current), repr(story.current.standing)], contents.svid)


@within(60)
async def test_following_ends_with_its_task_and_takes_the_watch_along(
    writer: Writer, authority: Authority, lines: list[Line], closing: ExitStack
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    heard: list[str] = []

    class Noted(FileChanges):
        def __exit__(self, *error: Any) -> None:
            heard.append("closed")
            super().__exit__(*error)

    async with trio.open_nursery() as nursery:
        story = Story(nursery, lines, closing)
        story.follow(writer.paths, Noted, NEVER)
        await story.until_serial(contents.serial)
        nursery.cancel_scope.cancel()
    assert heard == ["closed"]
