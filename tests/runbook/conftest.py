"""The fixture of both stories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

# Before they are imported: what fails in them is shown in full.
pytest.register_assert_rewrite("tests.runbook.promises", "tests.runbook.story")

from tests.runbook.machine import NoMachineError, missing  # noqa: E402
from tests.runbook.story import Story  # noqa: E402


@pytest.fixture
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Story]:
    """The page for the test's PLACES, with nothing done yet."""
    if reason := missing():
        pytest.skip(reason)
    begun = Story(tmp_path, request.module.PLACES)
    try:
        begun.begin()
    except NoMachineError as exc:
        pytest.skip(f"no machine can be made here: {exc}")
    yield begun
    begun.end()
