"""conf/runbook.md and the README: what they tell people to type exists, and none of it is skipped.

That the commands of the runbook do what the page says is for tests/runbook/, which runs them.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest

from sidecar.cli import main
from sidecar.cli.register_workload import register_workload
from tests.runbook.page import (
    LINUX_STORY,
    MAC_STORY,
    PAGE,
    PLACES,
    ROOT,
    PageError,
    read_page,
)

RUNBOOK = PAGE.read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = ("scripts/setup-linux.sh", "scripts/setup-macos.sh")
# Other programs, whose options are not ours to check; the stories run them.
OTHERS = {"curl", "systemctl", "launchctl", "journalctl", "tail", "scripts/demo"}
_SPAN = re.compile(r"`([^`\n]+)`")
_OURS = re.compile(r"(?:\S*/)?(spiffe-sidecar|register-workload) (?=[a-z-])")


def accepted(words: list[str]) -> None:
    """Parse a command line of ours, or raise `click.UsageError`."""
    name = Path(words[0]).name
    if name == "register-workload":
        register_workload.make_context(name, words[1:])
        return
    command = main.get_command(click.Context(main), words[1])
    if command is None:
        raise click.UsageError(f"{name} has no command {words[1]!r}")
    command.make_context(words[1], words[2:])


@cache
def options(program: str) -> frozenset[str]:
    """Give the options of a program of ours, as its help names them."""
    if program in SCRIPTS:
        command = ["bash", f"{ROOT}/{program}", "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return frozenset(re.findall(r"--[a-z-]+", shown))
    of_group = [main.get_command(click.Context(main), one) for one in main.list_commands(None)]  # type: ignore[arg-type]
    commands = [*filter(None, of_group), register_workload]
    return frozenset(name for one in commands for param in one.params for name in param.opts)


def command_lines(text: str) -> list[str]:
    """Give the commands of ours in the indented blocks of a page, without redirections."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in joined.splitlines() if line[:4] == "    "]
    return [line.partition(" > ")[0] for line in lines if _OURS.match(line)]


# The page as a program.


def test_each_place_has_commands() -> None:
    found = read_page(RUNBOOK)
    assert {block.place for block in found} == set(PLACES)
    assert all(block.commands() for block in found)


def test_the_two_stories_together_run_every_block() -> None:
    assert {*LINUX_STORY, *MAC_STORY} == set(PLACES)


def test_blocks_come_in_the_order_of_the_page_with_their_sections() -> None:
    text = "# One\n```sh host\na\n```\ntext\n## Two\n~~~sh mac\nb \\\n  c\nd\n~~~\n"
    first, second = read_page(text)
    assert (first.line, first.section, first.place, first.text) == (2, "One", "host", "a\n")
    assert (second.line, second.section, second.place) == (7, "Two", "mac")
    assert second.commands() == [["b", "c"], ["d"]]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("```sh\na\n```\n", id="no place"),
        pytest.param("```sh nowhere\na\n```\n", id="a place that nobody knows"),
        pytest.param("```\na\n```\n", id="no info string"),
        pytest.param("```toml\na = 1\n```\n", id="another language"),
        pytest.param("```sh host linux\na\n```\n", id="two places"),
        pytest.param("  ~~~bash host\na\n~~~\n", id="tildes, indented"),
        pytest.param("```sh host\na\n", id="no end"),
        pytest.param("text:\n\n    a --b\n", id="an indented block"),
    ],
)
def test_what_would_not_be_run_is_refused(text: str) -> None:
    with pytest.raises(PageError, match=r"^line [0-9]+: "):
        read_page(text)


def test_lines_that_go_on_with_a_paragraph_are_no_block() -> None:
    assert read_page("* a list\n    that goes on\n") == []


# What is typed exists.


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(command, id=f"{block.line}-{number}")
        for block in read_page(RUNBOOK)
        for number, command in enumerate(block.commands())
    ],
)
def test_every_command_of_the_runbook_is_one_that_there_is(words: list[str]) -> None:
    words = words[1:] if words[0] == "sudo" else words
    words = words[: words.index(">")] if ">" in words else words
    if words[0] in SCRIPTS:
        given = {word for word in words if word.startswith("--")}
        assert given <= options(words[0])
    elif words[0] not in OTHERS:
        accepted(words)


@pytest.mark.parametrize("line", command_lines(README))
def test_every_command_in_a_block_of_the_readme_is_one_that_there_is(line: str) -> None:
    accepted(shlex.split(line))


def test_the_readme_has_commands() -> None:
    assert len(command_lines(README)) >= 4


@pytest.mark.parametrize("text", [RUNBOOK, README], ids=["runbook", "README"])
def test_options_named_in_the_text_are_options_that_there_are(text: str) -> None:
    spans = [
        span for span in _SPAN.findall(text) if "spiffe-sidecar " in f"{span} " or "setup-" in span
    ]
    spans += [span for span in _SPAN.findall(text) if span.startswith("--")]
    known = options("") | options(SCRIPTS[0]) | options(SCRIPTS[1])
    for span in spans:
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", span):
            assert option in known, span


def test_a_command_that_there_is_not_would_be_found() -> None:
    with pytest.raises(click.UsageError):
        accepted(["spiffe-sidecar", "stats"])
    with pytest.raises(click.UsageError):
        accepted(["spiffe-sidecar", "probe", "https://localhost", "--no-such-option"])
    with pytest.raises(click.UsageError):
        accepted(["register-workload", "--dry-run"])


def test_lines_of_the_runbook_fit() -> None:
    assert [line for line in RUNBOOK.splitlines() if len(line) > 110] == []
