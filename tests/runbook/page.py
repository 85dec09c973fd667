"""The runbook as a program sees it: the blocks of commands, each with the place where it is run.

A fenced block says so by its info string, `sh PLACE`. Any other fence is an error: nobody shall
write a command on the page that no test runs.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "conf" / "runbook.md"
# platform: beside the SPIRE server and Traefik. linux, mac: the host of the model server, if it is
# one. host: there, whichever it is. client: whoever uses the model.
PLACES = ("platform", "host", "linux", "mac", "client")
LINUX_STORY = ("platform", "linux", "host", "client")
MAC_STORY = ("platform", "mac", "host", "client")
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")


class PageError(ValueError):
    """The page has something that would not be run."""


@dataclass(frozen=True, slots=True)
class Block:
    """Commands, as they stand on the page."""

    line: int
    section: str
    place: str
    text: str

    def commands(self) -> list[list[str]]:
        """Its commands, each as a list of words."""
        joined = self.text.replace("\\\n", " ")
        return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def read_page(text: str) -> list[Block]:
    """Give the blocks in the order of the page."""
    blocks: list[Block] = []
    section, closing, info, start = "", "", "", 0
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = _FENCE.fullmatch(line)
        if closing and line.strip() == closing:
            blocks.append(Block(start, section, _place(info, start), "\n".join(inside) + "\n"))
            closing = ""
        elif closing:
            inside.append(line)
        elif found:
            closing, info, start, inside = found["fence"], found["info"], number, []
        elif line.startswith("    ") and not _continues(text, number):
            raise PageError(f"line {number}: an indented block is not run; expected ```sh PLACE")
        elif line.startswith("#"):
            section = line.lstrip("# ")
    if closing:
        raise PageError(f"line {start}: the block has no end")
    return blocks


def _place(info: str, line: int) -> str:
    words = info.split()
    if len(words) != 2 or words[0] != "sh" or words[1] not in PLACES:
        expected = ", ".join(PLACES)
        raise PageError(
            f"line {line}: found a block of {info.strip()!r}, expected sh and one of {expected}"
        )
    return words[1]


def _continues(text: str, number: int) -> bool:
    """Tell whether a line goes on with a paragraph or a list, and so is no block by itself."""
    return number > 1 and text.splitlines()[number - 2].strip() != ""
