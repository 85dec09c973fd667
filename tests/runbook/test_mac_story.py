"""The runbook on a Mac: every command in the order of the page, and what it promises.

`setup-macos.sh` runs as it does there, without --root, on stand-ins for the programs of macOS; the
sidecar and its agent run as processes of Linux.
"""

from __future__ import annotations

import pytest

from tests.runbook import promises
from tests.runbook.page import MAC_STORY
from tests.runbook.story import Story

PLACES = MAC_STORY


@pytest.mark.timeout(300)  # the whole page
def test_from_nothing_to_a_verified_chain_and_back(story: Story) -> None:
    before = story.tree()
    story.skip("From nothing")  # takes its time, and is the same as on Linux
    promises.registered(story)
    promises.installed(story)
    promises.routed(story)
    client = promises.verified(story)
    promises.rotated(story, client)
    promises.regained(story)
    promises.upgraded(story)
    promises.removed(story, before)
    promises.purged(story, before, "scripts/setup-macos.sh")
    story.ends()
