"""The runbook on a Linux host: every command in the order of the page, and what it promises."""

from __future__ import annotations

import pytest

from tests.runbook import promises
from tests.runbook.page import LINUX_STORY
from tests.runbook.story import Story

PLACES = LINUX_STORY


@pytest.mark.timeout(300)  # the whole page
def test_from_nothing_to_a_verified_chain_and_back(story: Story) -> None:
    before = story.tree()
    promises.prepared(story)
    promises.registered(story)
    promises.installed(story)
    assert story.account_of_sidecar() == 451
    promises.routed(story)
    client = promises.verified(story)
    promises.rotated(story, client)
    promises.regained(story)
    promises.upgraded(story)
    promises.removed(story, before)
    promises.purged(story, before, "scripts/setup-linux.sh")
    story.ends()
