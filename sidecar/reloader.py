"""Story: a file of ours changes, and what it says is in force.

    file_changes         tells that a file may have changed; or SIGHUP asks
    core.policy_file     text -> Policy, or every problem of it; core.config likewise
    reloader             puts it in force; or keeps what is in force, and says so

What a file says is taken as a whole or not at all. No connection ends because of it: a policy
is for the next decision, a configuration for the next connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog
import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.file_changes import watched
from sidecar.adapters.service_manager import Notifier
from sidecar.core.config import Config, parse_config
from sidecar.core.errors import WatchError
from sidecar.core.ledger import Ledger
from sidecar.core.policy import Policy
from sidecar.core.policy_file import parse_policy
from sidecar.core.policy_lint import policy_warnings
from sidecar.core.reload import reload
from sidecar.core.toml_tables import ProblemsError
from sidecar.disk import read_text_on_disk

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

_RETRY_SECONDS = 1.0

# Takes a text and who asked; raises `ProblemsError` and changes nothing if it is a bad one.
Take = Callable[[str, str], Awaitable[None]]


@dataclass(slots=True)
class Followed:
    """One file: the text that was last read there, and why it is not in force, if it is not."""

    what: str  # as the log calls it
    path: Path
    take: Take
    text: str | None = None
    problems: tuple[str, ...] = ()
    on_refused: Callable[[Sequence[str]], None] = lambda _: None
    # Who reads later puts it in force later: SIGHUP asks while the file is being read.
    one_at_a_time: trio.Lock = field(default_factory=trio.Lock)


@dataclass(slots=True)
class ConfigInForce:
    """The configuration of the moment; `apply` hands a new one to those who hold its parts."""

    config: Config
    apply: Callable[[Config], None]
    ledger: Ledger
    needs_restart: tuple[str, ...] = ()


async def follow_files(
    files: Sequence[Followed],
    hangups: AsyncIterator[int],
    ending: trio.Event,
    manager: Notifier,
    ledger: Ledger,
) -> None:
    """Follow the files and SIGHUP, until the end begins: then nothing changes any more."""
    async with trio.open_nursery() as nursery:
        for file in files:
            nursery.start_soon(_follow, file)
        nursery.start_soon(_follow_hangups, files, hangups, manager, ledger)
        await ending.wait()
        nursery.cancel_scope.cancel()
    async for _ in hangups:
        log.warning("reload ignored", asked_by="SIGHUP", reason="draining")


async def _follow_hangups(
    files: Sequence[Followed], hangups: AsyncIterator[int], manager: Notifier, ledger: Ledger
) -> None:
    async for _ in hangups:
        is_ready = bool(ledger.listening)  # or "ready" after the reload would be the first one
        if is_ready:
            manager.reloading()
        for file in files:
            await _reload(file, "SIGHUP")
        if is_ready:
            manager.ready()


def followed_policy(path: Path, text: str, current: CurrentPolicy, of: ConfigInForce) -> Followed:
    """Give the policy file, of which `text` is in force."""

    async def take(text: str, asked_by: str) -> None:
        policy = await _in_thread(parse_policy, text, path.name, of.config.backend.mode)
        current.replace(policy)
        allow, deny = len(policy.allow), len(policy.deny)
        log.info("policy loaded", allow=allow, deny=deny, asked_by=asked_by)
        of.ledger.policy_loaded(read_clocks().wall, [rule.name for rule in policy.allow])
        await warn(policy, of.config)

    def refused(problems: Sequence[str]) -> None:
        of.ledger.policy_refused(read_clocks().wall, problems)

    return Followed("policy", path, take, text, on_refused=refused)


def followed_config(path: Path, text: str, of: ConfigInForce) -> Followed:
    """Give the configuration file, of which `text` is in force."""

    async def take(text: str, asked_by: str) -> None:
        parsed = await _in_thread(parse_config, text, path.name)
        new = reload(of.config, parsed)
        if new.needs_restart and new.needs_restart != of.needs_restart:
            hint = "what is not named here is in force"
            log.warning("configuration needs a restart", keys=new.needs_restart, hint=hint)
        of.needs_restart = new.needs_restart
        of.ledger.config_loaded(new.needs_restart)
        if new.changed:
            of.config = new.config
            of.apply(new.config)
        if new.changed or asked_by == "SIGHUP":
            log.info("configuration loaded", changed=new.changed, asked_by=asked_by)

    def refused(problems: Sequence[str]) -> None:
        of.ledger.config_refused(problems)

    return Followed("configuration", path, take, text, on_refused=refused)


async def warn(policy: Policy, config: Config) -> None:
    """Say what is legal and yet most likely not what was meant; `check` says the same."""
    # Each rule is held against each, and a thousand of them take seconds.
    warnings = await _in_thread(policy_warnings, policy, config)
    for warning in warnings:
        log.warning("policy warning", rule=warning.rule, reason=warning.text, hint=warning.hint)


async def _follow(file: Followed) -> None:
    """Read the file whenever it changes; without a watch, every second."""
    told = False
    while True:
        try:
            async with watched(file.path) as changes:
                told = False
                while True:
                    # First: what changed before the watch began would be missed for ever.
                    if await _reload(file, "file"):
                        await changes.wait()
                    else:
                        await trio.sleep(_RETRY_SECONDS)
        except WatchError as exc:
            if not told:
                hint = "the file is read every second meanwhile, and when SIGHUP asks"
                log.error(f"{file.what} not watched", reason=exc.message, hint=hint)
            told = True
            await _reload(file, "file")
            await trio.sleep(_RETRY_SECONDS)


async def _reload(file: Followed, asked_by: str) -> bool:
    """Put in force what the file says, if that is something else; tell whether it could be read."""
    async with file.one_at_a_time:
        try:
            text = await read_text_on_disk(file.path)
        except (OSError, UnicodeDecodeError) as exc:
            if file.text is not None or asked_by == "SIGHUP":
                file.text = None  # said once, and read again when it is back
                where = "" if isinstance(exc, OSError) else f"{file.path}: "
                _keep(file, asked_by, [f"{where}{exc}"])
            return isinstance(exc, UnicodeDecodeError)
        if text == file.text and asked_by == "file":
            return True
        file.text = text
        try:
            await file.take(text, asked_by)
        except ProblemsError as exc:
            # Trio's frames on the way from the thread would keep the error, and it the text.
            exc.__traceback__ = None
            _keep(file, asked_by, [str(problem) for problem in exc.problems])
        else:
            file.problems = ()
        return True


def _keep(file: Followed, asked_by: str, problems: list[str]) -> None:
    file.problems = tuple(problems)
    file.on_refused(problems)
    log.error(f"{file.what} refused, the old one stays", asked_by=asked_by, problems=problems)


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what takes seconds for a long text, while all connections go on."""
    return await trio.to_thread.run_sync(partial(call, *args, **kwargs), abandon_on_cancel=True)
