"""Story: the policy file changes, and the next decision is made by the new policy.

    policy_file (adapter)   tells that the file may have changed; or SIGHUP asks
    core.policy_file        text -> Policy, or every problem of it
    reloader                puts it in force; or keeps the one in force, and says so

A new policy is taken as a whole or not at all. Running answers go on: a decision is made when a
request comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from sidecar.adapters.policy_file import CurrentPolicy, FileChanges
from sidecar.core.config import Config
from sidecar.core.errors import WatchError
from sidecar.core.policy import Policy
from sidecar.core.policy_file import parse_policy
from sidecar.core.policy_lint import policy_warnings
from sidecar.core.toml_tables import ProblemsError

log = structlog.get_logger()

_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class PolicySource:
    """Where the policy comes from, and the text that was last read there."""

    path: Path
    config: Config
    text: str | None = None


async def keep_policy(
    current: CurrentPolicy, source: PolicySource, hangups: AsyncIterator[int]
) -> None:
    """Follow the file and SIGHUP for ever."""
    await _warn(current.policy, source.config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow_file, current, source)
        async for _ in hangups:
            await _reload(current, source, "SIGHUP")


async def _follow_file(current: CurrentPolicy, source: PolicySource) -> None:
    """Read the file whenever it changes; without a watch, every second."""
    told = False
    while True:
        try:
            with FileChanges(source.path) as changes:
                told = False
                while True:
                    # First: what changed before the watch began would be missed for ever.
                    if await _reload(current, source, "file"):
                        await changes.wait()
                    else:
                        await trio.sleep(_RETRY_SECONDS)
        except WatchError as exc:
            if not told:
                hint = "the file is read every second meanwhile, and when SIGHUP asks"
                log.error("policy not watched", reason=exc.message, hint=hint)
            told = True
            await _reload(current, source, "file")
            await trio.sleep(_RETRY_SECONDS)


async def _reload(current: CurrentPolicy, source: PolicySource, asked_by: str) -> bool:
    """Put the file's policy in force if it is another one; tell whether it could be read."""
    try:
        text = source.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        if source.text is not None or asked_by == "SIGHUP":
            source.text = None  # said once, and read again when it is back
            _keep(asked_by, [str(exc)])
        return isinstance(exc, UnicodeDecodeError)
    if text == source.text and asked_by == "file":
        return True
    source.text = text
    try:
        policy = parse_policy(text, source.path.name, source.config.backend.mode)
    except ProblemsError as exc:
        _keep(asked_by, [str(problem) for problem in exc.problems])
        return True
    current.replace(policy)
    log.info("policy loaded", allow=len(policy.allow), deny=len(policy.deny), asked_by=asked_by)
    await _warn(policy, source.config)
    return True


async def _warn(policy: Policy, config: Config) -> None:
    """Say what is legal and yet most likely not what was meant; `check` says the same."""
    # In a thread: each rule is held against each, and a thousand of them take seconds.
    warnings = await trio.to_thread.run_sync(
        policy_warnings, policy, config, abandon_on_cancel=True
    )
    for warning in warnings:
        log.warning("policy warning", rule=warning.rule, reason=warning.text, hint=warning.hint)


def _keep(asked_by: str, problems: list[str]) -> None:
    log.error("policy refused, the old one stays", asked_by=asked_by, problems=problems)
