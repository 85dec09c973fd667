"""The story of a reload: a good policy decides at once, a bad one changes nothing and is told."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sidecar import reloader
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.service_manager import NoNotifier
from sidecar.core.config import Config, parse_config
from sidecar.core.ledger import Ledger
from sidecar.core.policy_file import parse_policy
from sidecar.core.spiffe_id import SpiffeId
from sidecar.reloader import ConfigInForce, follow_files, followed_policy, warn
from tests.adapters.deadlines import until, within
from tests.log_lines import Line, captured

PEER = SpiffeId.parse("spiffe://example.org/workload/traefik")
CONFIG = """
[listener]
address = "127.0.0.1:6701"
[backend]
address = "127.0.0.1:11434"
mode = "{mode}"
[policy]
file = "policy.toml"
"""


def policy(*paths: str, more: str = "") -> str:
    endpoints = ", ".join(f'"GET {path}"' for path in paths)
    return f'[[allow]]\nname = "a"\npeers = ["{PEER}"]\nendpoints = [{endpoints}]\n{more}'


OLD, NEW = policy("/old"), policy("/new", "/newer")
DENY = f'[[deny]]\nname = "d"\npeers = ["{PEER}"]\n'


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the reloader logs."""
    return captured(monkeypatch, reloader)


@dataclass
class Story:
    """One reloader at work, its file and its log."""

    path: Path
    lines: list[Line]
    current: CurrentPolicy
    hangups: trio.MemorySendChannel[int]

    def serves(self, path: str) -> bool:
        return self.current.policy.decide_request(PEER, "GET", path).allowed

    def said(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    async def loaded(self, times: int) -> Line:
        """Wait until a policy was loaded so many times."""
        await until(lambda: len(self.said("policy loaded")) == times, "policy loaded")
        return self.said("policy loaded")[-1]

    async def refused(self, times: int) -> Line:
        """Wait until a policy was refused so many times."""
        event = "policy refused, the old one stays"
        await until(lambda: len(self.said(event)) == times, event)
        return self.said(event)[-1]

    def write(self, text: str | bytes) -> None:
        new = self.path.with_name("new")
        new.write_bytes(text if isinstance(text, bytes) else text.encode())
        new.rename(self.path)


def begin(
    nursery: trio.Nursery,
    tmp_path: Path,
    lines: list[Line],
    *,
    found: str = OLD,
    mode: str = "http",
    on_disk: str | None = None,
) -> Story:
    """Start a reloader on a policy that was `found` at start; another one may be `on_disk`."""
    path = tmp_path / "policy.toml"
    path.write_text(found if on_disk is None else on_disk)
    config = parse_config(CONFIG.format(mode=mode), "sidecar.toml")
    assert isinstance(config, Config)
    current = CurrentPolicy(parse_policy(found, "policy.toml", config.backend.mode))
    sender, receiver = trio.open_memory_channel[int](0)

    async def hangups() -> AsyncIterator[int]:
        async with receiver:
            async for number in receiver:
                yield number

    in_force = ConfigInForce(config, lambda _: None, Ledger(datetime.now(UTC)))
    nursery.start_soon(warn, current.policy, config)
    policy = followed_policy(path, found, current, in_force)
    nursery.start_soon(
        follow_files, [policy], hangups(), trio.Event(), NoNotifier(), in_force.ledger
    )
    return Story(path, lines, current, sender)


@pytest.fixture
def story(nursery: trio.Nursery, tmp_path: Path, lines: list[Line]) -> Story:
    return begin(nursery, tmp_path, lines)


@within(20)
async def test_new_policy_is_in_force_and_said(story: Story) -> None:
    story.write(NEW + DENY.replace("traefik", "other"))
    line = await story.loaded(1)
    assert (line["log_level"], line["asked_by"]) == ("info", "file")
    assert (line["allow"], line["deny"]) == (1, 1)
    assert [story.serves(path) for path in ("/old", "/new", "/newer")] == [False, True, True]
    story.write(DENY + OLD)
    await story.loaded(2)
    assert not story.serves("/old")


@within(20)
async def test_change_between_the_start_and_the_watch_is_not_missed(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line]
) -> None:
    story = begin(nursery, tmp_path, lines, on_disk=NEW)
    await story.loaded(1)
    assert story.serves("/new")


@within(20)
async def test_file_that_is_gone_before_the_watch_is_said(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line]
) -> None:
    story = begin(nursery, tmp_path, lines)
    story.path.unlink()
    assert "No such file" in (await story.refused(1))["problems"][0]
    assert story.serves("/old")


BAD = [
    pytest.param(b"", "no [[allow]] rule", id="nothing"),
    pytest.param(b"[[allow", "syntax error", id="no TOML"),
    pytest.param(NEW.encode() + b"\n[[allow]]\n", "#2", id="a good rule and a bad one"),
    pytest.param(NEW.encode() * 2, "two rules of that name", id="a name twice"),
    pytest.param(NEW.replace("peers", "peer").encode(), "unknown key", id="an unknown key"),
    pytest.param(NEW.encode() + b"#\xff", "utf-8", id="not UTF-8"),
    pytest.param(b"x = " + b"[" * 100_000, "recursion", id="too deep"),
    pytest.param(b"\0", "syntax error", id="a NUL"),
]


@pytest.mark.parametrize(("text", "problem"), BAD)
@within(20)
async def test_bad_policy_changes_nothing_and_is_said_once(
    story: Story, text: bytes, problem: str
) -> None:
    story.write(text)
    line = await story.refused(1)
    assert (line["log_level"], line["asked_by"]) == ("error", "file")
    assert problem in "\n".join(line["problems"])
    assert [story.serves(path) for path in ("/old", "/new")] == [True, False]
    with FileChanges(story.path) as changes:
        story.write(text)  # the same is no news
        await changes.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
    story.write(NEW)
    await story.loaded(1)
    assert [story.serves(path) for path in ("/old", "/new")] == [False, True]
    await story.refused(1)


@within(20)
async def test_all_problems_are_said_at_once(story: Story) -> None:
    story.write('[[allow]]\nname = ""\npeers = ["nobody"]\nendpoint = []\n')
    assert len((await story.refused(1))["problems"]) >= 3


@within(20)
async def test_another_bad_policy_is_said_too(story: Story) -> None:
    for number in range(1, 4):
        story.write("nonsense " * number)
        await story.refused(number)
    assert story.serves("/old")


@within(20)
async def test_bad_policy_that_is_taken_back_leaves_the_one_in_force(story: Story) -> None:
    story.write("nonsense")
    await story.refused(1)
    story.write(OLD)
    await story.loaded(1)
    assert story.serves("/old")


@within(20)
async def test_file_that_is_gone_is_said_once_and_read_when_it_is_back(story: Story) -> None:
    story.path.unlink()
    assert "No such file" in (await story.refused(1))["problems"][0]
    assert story.serves("/old")
    story.write(NEW)
    await story.loaded(1)
    story.path.unlink()
    await story.refused(2)
    story.path.mkdir()  # no better
    story.path.rmdir()
    story.write(NEW)
    await story.loaded(2)
    assert len(story.said("policy refused, the old one stays")) == 2


@within(20)
async def test_hangup_reads_and_says_it_whether_anything_changed(story: Story) -> None:
    for times in (1, 2):
        await story.hangups.send(1)
        assert (await story.loaded(times))["asked_by"] == "SIGHUP"
    story.write("nonsense")
    await story.refused(1)
    for times in (2, 3):
        await story.hangups.send(1)
        assert (await story.refused(times))["asked_by"] == "SIGHUP"
    story.path.unlink()
    await story.refused(4)
    await story.hangups.send(1)
    assert (await story.refused(5))["asked_by"] == "SIGHUP"
    assert story.serves("/old")


@within(20)
async def test_mode_decides_what_a_good_policy_is(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line]
) -> None:
    plain = f'[[allow]]\nname = "a"\npeers = ["{PEER}"]\n'
    story = begin(nursery, tmp_path, lines, found=plain, mode="stream")
    story.write(NEW)
    await story.refused(1)
    assert story.current.policy.decide(PEER).allowed
    story.write(plain + DENY)
    await story.loaded(1)
    assert not story.current.policy.decide(PEER).allowed


@within(20)
async def test_odd_policy_is_in_force_and_warned_of(story: Story) -> None:
    twin = NEW.replace('name = "a"', 'name = "twin"')
    story.write(NEW + twin)
    await story.loaded(1)
    await until(lambda: len(story.said("policy warning")) == 1, "a warning")
    (warning,) = story.said("policy warning")
    assert (warning["rule"], warning["log_level"]) == ("twin", "warning")
    assert story.serves("/new")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a watch takes no descriptor")
@within(20)
async def test_watch_that_cannot_begin_is_said_once_and_tried_again(
    nursery: trio.Nursery, tmp_path: Path, lines: list[Line]
) -> None:
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    story = begin(nursery, tmp_path, lines)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        await until(lambda: story.said("policy not watched") != [], "a word about it")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for text, path in ((NEW, "/new"), (OLD, "/old")):
        story.write(text)
        await until(partial(story.serves, path), path)
    (line,) = story.said("policy not watched")
    assert line["log_level"] == "error"
    assert "limit reached" in line["reason"]
    assert "SIGHUP" in line["hint"]
