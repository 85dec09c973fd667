"""A directory of certificate files that others can write to: volumes of containers, /tmp."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sidecar.adapters.cert_files import CertFiles, is_volume
from sidecar.adapters.cert_files import directory as directory_module
from sidecar.adapters.cert_files.directory import is_mount_point
from sidecar.core.errors import CertFilesError
from sidecar.log_file import LogFile
from tests.adapters.accounts import NOBODY, needs_root
from tests.adapters.disk import assert_published
from tests.adapters.file_processes import as_user
from tests.plans import plans, token

OpenFiles = Callable[..., CertFiles]
Mount = Callable[..., Callable[[], object]]
WARNING = "certificate files in a shared directory"
SHARED = [0o777, 0o2777, 0o1777, 0o775, 0o2775, 0o757]


def shared(directory: Path, mode: int) -> Path:
    directory.mkdir(exist_ok=True)
    directory.chmod(mode)
    return directory


@pytest.mark.parametrize("mode", SHARED, ids=oct)
def test_refusal_names_every_way_out_and_each_of_them_works(
    directory: Path, open_files: OpenFiles, mode: int
) -> None:
    (planned,) = plans(1)
    with pytest.raises(CertFilesError) as refused:
        open_files(shared(directory, mode)).publish(planned)
    assert f"mode {mode:04o}" in refused.value.message
    hint = refused.value.hint or ""
    assert str(directory / "certs") in hint
    assert "[cert_files] unsafe_shared_directory = true" in hint
    assert os.listdir(directory) == []

    subfolder = open_files(directory / "certs")
    with capture_logs() as quiet:
        assert subfolder.publish(planned)
        assert subfolder.replace(token(1))
    assert quiet == []
    assert stat.S_IMODE((directory / "certs").stat().st_mode) & 0o022 == 0
    assert subfolder.publish(planned) is None  # a setgid bit above is no change

    allowed = open_files(directory, unsafe_shared=True)
    with capture_logs() as lines:
        assert allowed.publish(planned)
        assert allowed.replace(token(1))
        assert allowed.publish(planned) is None
    assert_published(directory, planned)
    assert [line["event"] for line in lines] == [WARNING]
    assert f"{mode:04o}" in lines[0]["found"]


@pytest.mark.parametrize("mode", SHARED, ids=oct)
@pytest.mark.parametrize("kind", ["file system", "bind mount"])
@needs_root
def test_volume_works_without_the_key_and_with_a_warning(
    directory: Path, open_files: OpenFiles, mount: Mount, kind: str, mode: int
) -> None:
    shared(directory, 0o755)
    if kind == "bind mount":  # on the same file system, where st_dev does not tell
        mount(directory, "--bind", str(shared(directory.with_name("an odd name \\x"), mode)))
    else:
        mount(directory, "-t", "tmpfs", "-o", f"mode={mode:o}", "tmpfs")
    (planned,) = plans(1)
    files = open_files(directory)
    with capture_logs() as lines:
        assert files.publish(planned)
        assert files.publish(planned) is None
    assert [line["event"] for line in lines] == [WARNING]
    assert_published(directory, planned)


@needs_root
def test_volume_with_an_odd_name_is_found_in_the_list_of_mounts(
    tmp_path: Path, mount: Mount
) -> None:
    place, other = tmp_path / "an odd\tname \\x", tmp_path / "other"
    for folder in (place, other):
        folder.mkdir()
    assert not is_mount_point(place)
    mount(place, "--bind", str(other))
    assert is_mount_point(place)
    assert not is_mount_point(place, Path("/nowhere"))  # what macOS has to go by
    link = tmp_path / "link"
    link.symlink_to(place)
    assert is_mount_point(link)


@needs_root
def test_volume_whose_owner_is_another_account_is_refused(
    directory: Path, open_files: OpenFiles, mount: Mount
) -> None:
    """An owner can replace what others have there, whatever the mode."""
    shared(directory, 0o755)
    mount(directory, "-t", "tmpfs", "-o", "mode=755,uid=12345", "tmpfs")
    (planned,) = plans(1)
    with pytest.raises(CertFilesError, match="belongs to uid 12345"):
        open_files(directory).publish(planned)
    assert open_files(directory, unsafe_shared=True).publish(planned)


@needs_root
def test_folder_that_every_account_of_the_host_shares_is_no_volume(
    directory: Path, open_files: OpenFiles, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/tmp is often a file system of its own; through a link or bind mount it stays /tmp."""
    shared(directory, 0o755)
    mount(directory, "-t", "tmpfs", "-o", "mode=1777", "tmpfs")
    assert is_volume(directory)
    again = directory.with_name("again")
    again.mkdir()
    mount(again, "--bind", str(directory))
    assert not is_volume(Path("/"))
    monkeypatch.setattr(directory_module, "_HOST_FOLDERS", ("/nowhere", str(directory)))
    (planned,) = plans(1)
    for place in (directory, again):
        assert not is_volume(place)
        with pytest.raises(CertFilesError, match="others cannot write"):
            open_files(place).publish(planned)


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o2777, 0o1777])
def test_account_without_rights_publishes_to_a_volume_of_root(
    open_folder: Path, mount: Mount, mode: int
) -> None:
    directory = shared(open_folder / "certs", 0o755)
    mount(directory, "-t", "tmpfs", "-o", f"mode={mode:o}", "tmpfs")
    assert as_user(NOBODY, "publish-once", directory)["name"] == "generation-1"
    assert as_user(NOBODY, "publish-once", directory)["name"] == "generation-2"


@pytest.mark.parametrize("mode", SHARED, ids=oct)
def test_log_goes_to_a_volume_too_but_to_no_file_of_others(directory: Path, mode: int) -> None:
    log = LogFile(shared(directory, mode) / "sidecar.log")
    assert log.write(b"a line\n") == b""
    assert stat.S_IMODE((directory / "sidecar.log").stat().st_mode) & 0o027 == 0
    log.close()
    (directory / "sidecar.log").unlink()
    (directory / "sidecar.log").symlink_to(directory / "other")
    assert log.write(b"a line\n") == b"a line\n"
    assert not (directory / "other").exists()


def test_pipe_in_the_place_of_the_lock_holds_up_no_one(
    directory: Path, open_files: OpenFiles
) -> None:
    (planned,) = plans(1)
    os.mkfifo(shared(directory, 0o755) / ".lock")
    assert open_files(directory).publish(planned)
