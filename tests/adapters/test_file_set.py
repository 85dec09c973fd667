"""A set of single files: what is no more part of it goes, and nothing that is not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.cert_files.file_set import FileSet, SetChange
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import PlannedFile

LISTING = ".set"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "certs"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.fixture
def files(directory: Path) -> Iterator[CertFiles]:
    files = CertFiles(directory)
    yield files
    files.close()


@pytest.fixture
def kept(files: CertFiles, directory: Path) -> FileSet:
    return FileSet(files, directory, LISTING, lambda data: data.startswith(b"ours"))


def planned(*names: str, content: bytes = b"ours") -> list[PlannedFile]:
    return [PlannedFile(name, 0o640, content) for name in names]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name[0] != "."}


def test_files_are_what_is_planned_and_the_change_is_told(kept: FileSet, directory: Path) -> None:
    assert kept.replace(planned("a", "b")) == SetChange(("a", "b"), ())
    assert kept.replace(planned("a", "b")) == SetChange()
    assert kept.replace([*planned("a"), *planned("c", content=b"ours 2")]) == SetChange(
        ("c",), ("b",)
    )
    assert names(directory) == {"a", "c"}
    assert (directory / "c").read_bytes() == b"ours 2"
    assert kept.replace([]) == SetChange((), ("a", "c"))
    assert names(directory) == set()


def test_file_of_a_process_before_this_one_is_removed(
    files: CertFiles, kept: FileSet, directory: Path
) -> None:
    kept.replace(planned("a", "b"))
    again = FileSet(files, directory, LISTING, lambda data: data.startswith(b"ours"))
    assert again.replace(planned("a")) == SetChange((), ("b",))


@pytest.mark.parametrize("written", [True, False])
def test_file_that_a_crash_left_behind_is_removed(
    kept: FileSet, directory: Path, written: bool
) -> None:
    # What a process has listed and not lived to write, or to take off the list.
    (directory / LISTING).write_text(json.dumps(["a", "b"]))
    if written:
        (directory / "b").write_bytes(b"ours")
    assert kept.replace(planned("a")) == SetChange(("a",), ("b",) if written else ())
    assert names(directory) == {"a"}


def test_what_is_listed_is_listed_before_it_is_written(
    kept: FileSet, files: CertFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = files.replace

    def dying(file: PlannedFile) -> bool:
        if file.name == "b":
            raise CertFilesError("no room")
        return replace(file)

    monkeypatch.setattr(files, "replace", dying)
    with pytest.raises(CertFilesError):
        kept.replace(planned("a", "b", "c"))
    assert names(directory) == {"a"}
    monkeypatch.undo()
    assert kept.replace(planned("c")) == SetChange(("c",), ("a",))


def test_what_is_gone_is_removed_though_there_is_no_room_for_the_rest(
    kept: FileSet, files: CertFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.replace(planned("a", "b"))

    def full(_file: PlannedFile) -> bool:
        raise CertFilesError("no room")

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(CertFilesError):
        kept.replace(planned("a", "c"))
    assert names(directory) == {"a"}


def test_name_that_was_given_to_something_else_is_left_alone(
    kept: FileSet, directory: Path
) -> None:
    kept.replace(planned("a", "b", "c", "d"))
    (directory / "b").write_bytes(b"a token")
    (directory / "c").unlink()
    (directory / "c").mkdir()
    (directory / "d").unlink()
    (directory / "d").symlink_to("a")  # as a generation's are
    assert kept.replace(planned("a")) == SetChange()
    assert names(directory) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"{}",
        b'"a"',
        b"[1]",
        b"[",
        b"\xff",
        b'["../outside"]',
        b'["OUTSIDE"]',
        b'["folder/b"]',
        b'["."]',
        b'[".."]',
        b'[""]',
        b'[".set"]',
    ],
)
def test_listing_that_somebody_has_written_does_no_harm(
    kept: FileSet, directory: Path, listing: bytes
) -> None:
    outside, below = directory.parent / "outside", directory / "folder" / "b"
    below.parent.mkdir()
    outside.write_bytes(b"ours")
    below.write_bytes(b"ours")
    (directory / LISTING).write_bytes(listing.replace(b"OUTSIDE", bytes(outside)))
    assert kept.replace(planned("a")) == SetChange(("a",), ())
    assert outside.exists()
    assert below.exists()
    assert json.loads((directory / LISTING).read_bytes()) == ["a"]


def test_disk_that_refuses_is_an_error_with_its_reason(kept: FileSet, directory: Path) -> None:
    kept.replace(planned("a", "b"))
    directory.chmod(0o777)
    with pytest.raises(CertFilesError, match="others cannot write"):
        kept.replace(planned("a"))
    assert names(directory) == {"a", "b"}


# One file.


def test_removal_tells_whether_the_file_was_there(files: CertFiles, directory: Path) -> None:
    files.replace(planned("a")[0])
    assert files.remove("a")
    assert not files.remove("a")
    assert names(directory) == set()


def test_link_of_a_generation_is_not_removed(files: CertFiles, directory: Path) -> None:
    (directory / "svid.pem").symlink_to("current/svid.pem")
    assert not files.remove("svid.pem")
    assert (directory / "svid.pem").is_symlink()


def test_folder_in_the_way_is_an_error(files: CertFiles, directory: Path) -> None:
    (directory / "a").mkdir()
    with pytest.raises(CertFilesError, match="a"):
        files.remove("a")
    assert (directory / "a").is_dir()
