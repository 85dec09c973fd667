"""Each replacement of the files comes as one whole identity, however and by whomever it is made.

With the system's own word of changes alone, and by looking alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sidecar.adapters.identity_files import IdentityPaths
from sidecar.core.files_config import IdentityFilesTable
from sidecar.core.svid import certificates
from tests.adapters.deadlines import within
from tests.adapters.identity_files.sources import (
    HEARD,
    ORDERS,
    Asked,
    Open,
    newest,
)
from tests.ca import Authority
from tests.identity_writers import (
    BUNDLE,
    CERTIFICATE,
    KEY,
    NAMES,
    WAYS,
    Chain,
    Contents,
    Generations,
    Kubernetes,
    OneByOne,
    PutFile,
    ReplacedFolder,
    SwitchedFolder,
    Writer,
    paths_in,
    pem,
    rename_over,
)


def _one_by_one(way: PutFile, order: tuple[str, ...]) -> Callable[[Path], Writer]:
    return lambda folder: OneByOne(folder, way, order)


WRITERS = [
    pytest.param(_one_by_one(way, order), id=f"{way.__name__}, {name}")
    for way in WAYS
    for name, order in ORDERS.items()
]
WRITERS += [
    pytest.param(kind, id=kind.__name__)
    for kind in (Kubernetes, Generations, SwitchedFolder, ReplacedFolder, Chain)
]


@pytest.fixture
def made(folder: Path, make_writer: Callable[[Path], Writer]) -> Iterator[Writer]:
    """The writer of a row."""
    writer = make_writer(folder)
    yield writer
    writer.close()


@HEARD
@pytest.mark.parametrize("make_writer", WRITERS)
@within(30)
async def test_every_replacement_is_seen(
    made: Writer, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    contents = [Contents.new(authority) for _ in range(4)]
    made.put(contents[0])
    files = opened(made.paths, watch, poll_seconds)
    for one, following in zip(contents, [*contents[1:], None], strict=True):
        update = await newest(files, one.serial)
        assert certificates(update.svids[0].chain) == one.svid.chain
        assert certificates(update.svids[0].bundle) == one.bundle.authorities
        if following:
            made.put(following)


@HEARD
@pytest.mark.parametrize("make_writer", WRITERS)
@pytest.mark.usefixtures("fine_times")
@within(30)
async def test_replacement_is_seen_that_is_made_while_somebody_waits(
    made: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    watch: Any,
    poll_seconds: float,
) -> None:
    made.put(Contents.new(authority))
    asking = Asked(opened(made.paths, watch, poll_seconds), nursery)
    for _ in range(4):
        await asking.sees(made, Contents.new(authority))
    nursery.cancel_scope.cancel()


@HEARD
@within(30)
async def test_new_bundle_alone_is_seen(
    writer: Writer, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    contents = Contents.new(authority)
    writer.put(contents)
    files = opened(writer.paths, watch, poll_seconds)
    await newest(files, contents.serial)
    wider = (authority.certificate, Authority("example.org").certificate)
    rename_over(writer.place / BUNDLE, pem(*wider))
    update = await newest(files, contents.serial)
    assert certificates(update.svids[0].bundle) == wider


@HEARD
@within(30)
async def test_federated_bundle_is_read_and_seen_when_it_changes(
    writer: Writer, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    contents, partner = Contents.new(authority), writer.place / "partner.pem"
    foreign = [Authority("other.org") for _ in range(2)]
    writer.put(contents)
    partner.write_bytes(pem(foreign[0].certificate))
    paths = paths_in(writer.place, {foreign[0].trust_domain: partner})
    files = opened(paths, watch, poll_seconds)
    for one in foreign:
        rename_over(partner, pem(one.certificate))
        update = await newest(files, contents.serial)
        assert certificates(update.federated["other.org"]) == (one.certificate,)
        assert update.notes == ()


@HEARD
@within(30)
async def test_one_file_for_certificate_and_key_is_read(
    folder: Path, opened: Open, authority: Authority, watch: Any, poll_seconds: float
) -> None:
    both = folder / "both.pem"
    paths = IdentityPaths(both, both, folder / BUNDLE)
    files = opened(paths, watch, poll_seconds)
    for _ in range(3):
        contents = Contents.new(authority)
        rename_over(folder / BUNDLE, contents.of(BUNDLE))
        rename_over(both, contents.of(CERTIFICATE) + contents.of(KEY))
        await newest(files, contents.serial)


# Where the paths lead.


def test_paths_of_the_configuration_are_relative_to_its_folder(
    writer: Writer, authority: Authority
) -> None:
    table = IdentityFilesTable(
        certificate=f"identity/{CERTIFICATE}",  # type: ignore[arg-type]
        private_key=f"./identity/{KEY}",  # type: ignore[arg-type]
        bundle=str(writer.place / BUNDLE),  # type: ignore[arg-type]
        federated_bundles={authority.trust_domain: "../partner.pem"},  # type: ignore[dict-item]
    )
    paths = IdentityPaths.of(table, str(writer.place.parent))
    assert [path.resolve() for path in paths.all()] == [
        *(writer.place.resolve() / name for name in NAMES),
        writer.place.parent.parent.resolve() / "partner.pem",
    ]


@pytest.mark.usefixtures("fine_times")
@within(30)
async def test_relative_paths_are_watched(
    writer: Writer,
    opened: Open,
    authority: Authority,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(writer.place.parent)
    writer.put(Contents.new(authority))
    asking = Asked(opened(paths_in(Path("identity"))), nursery)
    for _ in range(3):
        await asking.sees(writer, Contents.new(authority))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("above", ["straight", "through a link"])
@pytest.mark.usefixtures("fine_times")
@within(30)
async def test_folder_behind_a_link_and_dots_is_watched(
    tmp_path: Path, opened: Open, authority: Authority, nursery: trio.Nursery, above: str
) -> None:
    """`etc/tls.crt` -> `side/../real/tls.crt`, and `side` is a link itself: `..` is not text."""
    for name in ("etc", "far/side", "far/real"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/side").symlink_to("../far/side")
    writer = OneByOne(tmp_path / "far/real", rename_over)
    writer.put(Contents.new(authority))
    for name in NAMES:
        (tmp_path / "etc" / name).symlink_to(f"side/../real/{name}")
    folder = tmp_path / "etc"
    if above != "straight":
        (tmp_path / "link").symlink_to("etc")
        folder = tmp_path / "link"
    asking = Asked(opened(paths_in(folder)), nursery)
    for _ in range(3):
        await asking.sees(writer, Contents.new(authority))
    nursery.cancel_scope.cancel()
