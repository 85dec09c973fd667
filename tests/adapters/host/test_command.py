from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from sidecar.adapters.host import command
from sidecar.adapters.host.command import Output, run
from sidecar.core.diagnosis.finding import Unknown


def program(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def test_output_and_status_are_given(tmp_path: Path) -> None:
    name = program(tmp_path, "echo out; echo err >&2; exit 3")
    assert await run(name) == Output(3, "out\n", "err\n")


async def test_arguments_are_no_shell_words(tmp_path: Path) -> None:
    name = program(tmp_path, 'printf %s "$1"')
    assert await run(name, "$(id); *") == Output(0, "$(id); *", "")


async def test_the_locale_is_plain_and_input_is_none(tmp_path: Path) -> None:
    name = program(tmp_path, 'echo "$LC_ALL"; cat')
    assert await run(name) == Output(0, "C\n", "")


async def test_system_programs_are_found_whatever_the_path_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert isinstance(await run("true"), Output)


@pytest.mark.parametrize(
    "text", [pytest.param(None, id="absent"), pytest.param("exit 0", id="of a strange interpreter")]
)
async def test_what_cannot_be_run_is_unknown(tmp_path: Path, text: str | None) -> None:
    name = str(tmp_path / "none")
    if text is not None:
        name = program(tmp_path, text)
        Path(name).write_text("#!/no/such/interpreter\n")
    assert isinstance(await run(name), Unknown)


async def test_what_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_SECONDS", 0.2)
    pid = tmp_path / "pid"
    name = program(tmp_path, f"echo $$ > {pid}; exec sleep 600")
    with trio.fail_after(20):
        assert isinstance(await run(name), Unknown)
    if pid.exists():  # it may have had no time for that
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
