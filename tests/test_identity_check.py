"""`check` looks at the files of [identity_files]: it says "fine" of what can be served with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.core.toml_tables import ProblemsError
from sidecar.operations.check import check
from sidecar.operations.identity_check import identity_warnings
from tests.ca import Authority
from tests.identity_writers import BUNDLE, CERTIFICATE, KEY, Contents

CONFIG = f"""
[identity_files]
certificate = "{CERTIFICATE}"
private_key = "{KEY}"
bundle = "{BUNDLE}"
[cert_files]
directory = "certs"
"""


@pytest.fixture
def config(tmp_path: Path, authority: Authority) -> Path:
    """A helper on good files."""
    contents = Contents.new(authority)
    for name in (CERTIFICATE, KEY, BUNDLE):
        (tmp_path / name).write_bytes(contents.of(name))
    path = tmp_path / "sidecar.toml"
    path.write_text(CONFIG)
    return path


def looked_at(config: Path) -> list[str]:
    return identity_warnings(check(config, {}))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _no_pem(path: Path) -> None:
    path.write_text("not PEM\n")


def _empty(path: Path) -> None:
    path.write_text("")


def test_good_files_are_fine(config: Path) -> None:
    assert looked_at(config) == []


@pytest.mark.parametrize("spoil", [_folder, _pipe, _loop, _no_pem, _empty])
@pytest.mark.parametrize("name", [CERTIFICATE, KEY, BUNDLE])
def test_file_that_cannot_be_used_is_a_problem(
    config: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(config.parent / name)
    with pytest.raises(ProblemsError) as refused:
        looked_at(config)
    (problem,) = refused.value.problems
    assert (problem.file, problem.where) == ("sidecar.toml", "[identity_files]")
    assert problem.found


def test_key_of_another_certificate_and_expired_one_are_problems(
    config: Path, authority: Authority
) -> None:
    (config.parent / KEY).write_bytes(Contents.new(authority).of(KEY))
    with pytest.raises(ProblemsError, match="key"):
        looked_at(config)
    expired = Contents.new(authority, not_after=timedelta(seconds=-1))
    for name in (CERTIFICATE, KEY):
        (config.parent / name).write_bytes(expired.of(name))
    with pytest.raises(ProblemsError, match="expired"):
        looked_at(config)


def test_federated_bundle_that_is_missing_is_a_warning(config: Path) -> None:
    text = CONFIG.replace(
        "[cert_files]", 'federated_bundles = {"other.org" = "no.pem"}\n[cert_files]'
    )
    config.write_text(text)
    (warning,) = looked_at(config)
    assert "other.org" in warning
    assert "no.pem" in warning


def called(config: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", "check", "--config", str(config)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_check_says_fine_of_nothing_else(config: Path) -> None:
    done = called(config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{config}: fine\n")

    (config.parent / KEY).unlink()  # what writes it may come later
    done = called(config)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{config}: valid, without an identity yet\n")
    assert f"{config.parent / KEY}: no such file yet" in done.stderr

    _no_pem(config.parent / KEY)
    done = called(config)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("error: sidecar.toml: [identity_files]: found ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_file_that_this_account_may_not_read_is_a_problem(config: Path) -> None:
    (config.parent / KEY).chmod(0o600)
    for folder in config.parents:
        if folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    checked = check(config, {})
    os.seteuid(65534)
    try:
        with pytest.raises(ProblemsError, match="Permission denied") as refused:
            identity_warnings(checked)
    finally:
        os.seteuid(0)
    assert str(config.parent / KEY) in refused.value.problems[0].found
