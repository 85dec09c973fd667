"""Wrong for a moment is never told, wrong for good is told once. The tests hold the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.adapters.identity_files.source import SETTLE_SECONDS
from sidecar.core.identity_event import IdentityEvent, Lost, Unreadable, Updated
from sidecar.core.svid import TrustBundle, certificates
from tests.adapters.deadlines import within
from tests.adapters.identity_files.sources import (
    A_MOMENT,
    MOVED,
    OFTEN,
    ORDERS,
    Asked,
    Deaf,
    Open,
    empty_key,
    no_key,
    other_key,
    serial_of,
)
from tests.ca import Authority
from tests.held_clock import STEP, pass_time
from tests.identity_writers import (
    CERTIFICATE,
    KEY,
    NAMES,
    WAYS,
    Contents,
    PutFile,
    Writer,
    paths_in,
    pem,
    rename_over,
    write_in_place,
)


def pieces(content: bytes) -> Iterator[bytes]:
    """What stands in a file while its content is written: nothing first.

    Never whole blocks only: that looks like a file that is whole.
    """
    for part in range(7):
        yield content[: len(content) * part // 7]
    yield content[:-1]
    yield content.rstrip()[:-1]


@pytest.mark.parametrize("name", NAMES)
@within(MOVED)
async def test_file_that_is_written_in_pieces_is_seen_when_it_is_whole(
    asked: Callable[[], Asked],
    mock_clock: MockClock,
    writer: Writer,
    authority: Authority,
    name: str,
) -> None:
    contents = _with_two_authorities(authority)
    writer.put(contents)
    asking = asked()
    await pass_time(A_MOMENT)
    assert [serial_of(event) for event in asking.events] == [contents.serial]
    following = replace(contents, svid=authority.svid(key=contents.svid.private_key))
    for piece in pieces(following.of(name)):
        write_in_place(writer.place / name, piece)
        await pass_time(2 * STEP)
    # In between the file may have been looked at when only its last line's end was missing.
    expected = {contents.serial, following.serial if name == CERTIFICATE else contents.serial}
    assert {serial_of(event) for event in asking.events} <= expected
    assert _bundles(asking.events) == {contents.bundle.authorities}
    write_in_place(writer.place / name, following.of(name))
    await pass_time(A_MOMENT)
    last = following.serial if name == CERTIFICATE else contents.serial
    assert serial_of(asking.events[-1]) == last
    assert _bundles(asking.events) == {contents.bundle.authorities}


def _with_two_authorities(authority: Authority) -> Contents:
    two = (authority.certificate, Authority("example.org").certificate)
    return Contents(authority.svid(), TrustBundle(authority.trust_domain, two))


def _bundles(events: Sequence[IdentityEvent]) -> set[object]:
    updates = [event.update for event in events if isinstance(event, Updated)]
    assert len(updates) == len(events), events
    return {certificates(update.svids[0].bundle) for update in updates}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("way", WAYS)
@within(MOVED)
async def test_pair_that_is_wrong_for_a_moment_is_never_told(
    asked: Callable[[], Asked],
    mock_clock: MockClock,
    writer: Writer,
    authority: Authority,
    way: PutFile,
    order: tuple[str, ...],
) -> None:
    contents = [Contents.new(authority) for _ in range(3)]
    writer.put(contents[0])
    asking = asked()
    await pass_time(A_MOMENT)
    for one in contents[1:]:
        for name in order:
            way(writer.place / name, one.of(name))
            await pass_time(A_MOMENT)
    assert [serial_of(event) for event in asking.events][:1] == [contents[0].serial]
    assert serial_of(asking.events[-1]) == contents[-1].serial
    assert all(isinstance(event, Updated) for event in asking.events)


@pytest.mark.parametrize("name", NAMES)
@within(MOVED)
async def test_file_that_is_away_for_a_moment_is_never_told(
    asked: Callable[[], Asked],
    mock_clock: MockClock,
    writer: Writer,
    authority: Authority,
    name: str,
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    asking = asked()
    await pass_time(A_MOMENT)
    for _ in range(3):
        (writer.place / name).unlink()
        await pass_time(A_MOMENT)
        rename_over(writer.place / name, contents.of(name))
        await pass_time(A_MOMENT)
    assert {serial_of(event) for event in asking.events} == {contents.serial}


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
@within(MOVED)
async def test_federated_bundle_that_is_wrong_for_a_moment_is_never_told(
    writer: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    mock_clock: MockClock,
    damage: str,
) -> None:
    """Told at once it would cost every connection of that trust domain."""
    contents, partner = Contents.new(authority), writer.place / "partner.pem"
    foreign = Authority("other.org")
    writer.put(contents)
    whole = pem(foreign.certificate)
    partner.write_bytes(whole)
    files = opened(paths_in(writer.place, {foreign.trust_domain: partner}), Deaf, OFTEN)
    asking = Asked(files, nursery)
    await pass_time(A_MOMENT)
    if damage == "gone":
        partner.unlink()
    else:
        partner.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    await pass_time(SETTLE_SECONDS / 2)
    partner.write_bytes(whole)
    await pass_time(A_MOMENT)
    assert [dict(event.update.federated).keys() for event in _updates(asking)] == [
        {"other.org"} for _ in asking.events
    ]
    # For good it is told.
    partner.unlink()
    await pass_time(2 * SETTLE_SECONDS)
    assert dict(_updates(asking)[-1].update.federated) == {}
    assert "other.org" in _updates(asking)[-1].update.notes[0]


def _updates(asking: Asked) -> list[Updated]:
    updates = [event for event in asking.events if isinstance(event, Updated)]
    assert len(updates) == len(asking.events)
    return updates


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        pytest.param(other_key, Unreadable, "belong together", id="pair"),
        pytest.param(empty_key, Unreadable, "private key", id="empty"),
        pytest.param(no_key, Lost, "No such file", id="gone"),
    ],
)
@within(MOVED)
async def test_what_is_wrong_for_good_is_told_once_when_the_writer_had_its_time(
    asked: Callable[[], Asked],
    mock_clock: MockClock,
    writer: Writer,
    authority: Authority,
    spoil: Callable[[Writer], None],
    kind: type[IdentityEvent],
    reason: str,
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    asking = asked()
    await pass_time(A_MOMENT)
    spoil(writer)
    await pass_time(SETTLE_SECONDS - 3 * OFTEN)
    assert len(asking.events) == 1
    await pass_time(2 * SETTLE_SECONDS)
    assert len(asking.events) == 2
    event = asking.events[1]
    assert isinstance(event, kind)
    assert isinstance(event, Unreadable | Lost)
    assert reason in event.reason
    # Not again and again.
    await pass_time(5 * SETTLE_SECONDS)
    assert len(asking.events) == 2
    # Mended, it is seen.
    rename_over(writer.place / KEY, contents.of(KEY))
    await pass_time(A_MOMENT)
    assert serial_of(asking.events[-1]) == contents.serial
    assert len(asking.events) == 3


@within(MOVED)
async def test_wrong_pair_at_the_start_is_told(
    asked: Callable[[], Asked], mock_clock: MockClock, writer: Writer, authority: Authority
) -> None:
    writer.put(Contents.new(authority))
    other_key(writer)
    asking = asked()
    await pass_time(2 * SETTLE_SECONDS)
    (event,) = asking.events
    assert isinstance(event, Unreadable)


@within(MOVED)
async def test_another_wrong_pair_is_told_as_well(
    asked: Callable[[], Asked], mock_clock: MockClock, writer: Writer, authority: Authority
) -> None:
    writer.put(Contents.new(authority))
    asking = asked()
    for spoil in (other_key, empty_key, no_key):
        spoil(writer)
        await pass_time(2 * SETTLE_SECONDS)
    assert [type(event) for event in asking.events] == [Unreadable, Unreadable, Lost]
