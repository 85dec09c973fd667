"""Does what was planned, and tells what was done when it has to stop half-way.

The order is such that what can fail for reasons of our own fails before the server is changed, and
the join token, whose time runs, comes last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sidecar.adapters.host_folder import PUBLIC, SECRET, HostFolder
from sidecar.adapters.spire_server import SpireServer
from sidecar.core.errors import RegistrationError
from sidecar.core.host_layout import HOST_FOLDER_FILES
from sidecar.core.registration.agent_conf import agent_conf
from sidecar.core.registration.answers import read_changed, read_token
from sidecar.core.registration.entries import evict_command, token_command, without_token
from sidecar.core.registration.plan import Step
from sidecar.core.status import printable
from sidecar.operations.register_workload.plan import Plan, make_plan
from sidecar.operations.register_workload.request import Request

AGENT_CONF, TRUST_BUNDLE, JOIN_TOKEN = HOST_FOLDER_FILES
_DONE = {"create": "created", "update": "updated", "remove": "removed"}


class UnfinishedError(RegistrationError):
    """It stopped half-way; `done` tells what had been done before, and nobody undoes it."""

    def __init__(self, cause: RegistrationError, done: list[str]) -> None:
        said = "".join(f"\n  done before that: {line}" for line in done)
        super().__init__(f"{cause.message}{said or NOTHING_DONE}", cause.hint)
        self.cause = cause
        self.done = tuple(done)


_AGAIN = "run this again: it looks first what is there"
NOTHING_DONE = "\n  nothing was changed before that"


@dataclass(frozen=True, slots=True)
class FileDone:
    """A file for the other host; `changed` is whether it had to be written."""

    path: Path
    changed: bool


@dataclass(frozen=True, slots=True)
class TokenDone:
    """Where the join token is, and until when it is good; in a dry run it is not there."""

    path: Path
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or in a dry run would have been."""

    request: Request
    plan: Plan
    steps: tuple[Step, ...]
    files: tuple[FileDone, ...] = ()
    token: TokenDone | None = None
    # The texts for the other host, when they do not go into a folder.
    agent_conf: str | None = None
    trust_bundle: str | None = None

    @property
    def changed(self) -> bool:
        """Tell whether anything became, or would become, different."""
        steps = any(step.command for step in self.steps)
        files = any(file.changed for file in self.files)
        return steps or files or self.token is not None or bool(self.plan.evictions)


def register(request: Request, server: SpireServer, now: float) -> Outcome:
    """Do what is asked, or raise `RegistrationError`; a dry run changes nothing."""
    folder = HostFolder(request.folder) if request.folder is not None else None
    if folder:
        folder.check()
    plan = make_plan(request, server, now)
    if request.dry_run:
        return _told(Outcome(request, plan, plan.steps), folder)
    done: list[str] = []
    try:
        return _apply(request, plan, server, folder, done)
    except RegistrationError as exc:
        raise UnfinishedError(exc, done) from exc
    except KeyboardInterrupt as exc:
        raise UnfinishedError(RegistrationError("interrupted", _AGAIN), done) from exc


def commands(plan: Plan, request: Request) -> list[tuple[str, ...]]:
    """Give the commands that change the server, in their order."""
    found = [step.command for step in plan.steps if step.command]
    found += [evict_command(agent.spiffe_id) for agent in plan.evictions]
    if request.token_ttl is not None:
        found.append(token_command(request.alias, request.token_ttl))
    return found


def _apply(
    request: Request,
    plan: Plan,
    server: SpireServer,
    folder: HostFolder | None,
    done: list[str],
) -> Outcome:
    if folder:
        folder.prepare()
    steps = tuple(_step(step, server, done) for step in plan.steps)
    for agent in plan.evictions:
        server.change(evict_command(agent.spiffe_id))
        done.append(f"evicted the agent {without_token(agent.spiffe_id)}")
    outcome = _with_texts(Outcome(request, plan, steps))
    if folder is None or request.remove:
        return outcome
    files = tuple(
        FileDone(folder.path / name, _written(folder, name, text, done))
        for name, text in _texts(outcome)
    )
    token = _token(request, server, folder, done) if request.token_ttl is not None else None
    return replace(outcome, files=files, token=token)


def _step(step: Step, server: SpireServer, done: list[str]) -> Step:
    """Do one step; gives it with the entry as the server has it then."""
    if not step.command:
        return step
    what = f"{step.role}: {' '.join(step.command[:2])}"
    found = read_changed(server.change(step.command), what)
    if found and (found.spiffe_id, found.parent_id) != (step.entry.spiffe_id, step.entry.parent_id):
        # It is what the report and the commands for the other host go on with.
        text = printable(without_token(f"{found.spiffe_id} below {found.parent_id}"))
        raise RegistrationError(f"{what}: the server answers with another entry: {text}", _AGAIN)
    entry = found or step.entry
    done.append(printable(f"{_DONE[step.action]} the entry {entry.id} of {entry.spiffe_id}"))
    return replace(step, entry=entry)


def _written(folder: HostFolder, name: str, text: str, done: list[str]) -> bool:
    changed = folder.write(name, text.encode(), PUBLIC)
    if changed:
        done.append(f"wrote {folder.path / name}")
    return changed


def _token(request: Request, server: SpireServer, folder: HostFolder, done: list[str]) -> TokenDone:
    """Make a join token straight into its file, which is open before the token is made."""
    assert request.token_ttl is not None
    with folder.replacing(JOIN_TOKEN, SECRET) as put:
        answer = server.change(token_command(request.alias, request.token_ttl))
        done.append("made a join token, which is stored nowhere unless the next line says so")
        token = read_token(answer)
        put(f"{token.value}\n".encode())
    done.append(f"stored it in {folder.path / JOIN_TOKEN}")
    return TokenDone(folder.path / JOIN_TOKEN, token.expires_at)


def _with_texts(outcome: Outcome) -> Outcome:
    """Add the texts for the other host, as far as all is known."""
    request, authorities = outcome.request, outcome.plan.platform.authorities
    if request.remove:
        return outcome
    conf = None
    if request.server is not None:
        selectors = outcome.steps[0].entry.selectors
        conf = agent_conf(request.trust_domain, request.server, selectors)
    return replace(outcome, agent_conf=conf, trust_bundle=authorities.pem if authorities else None)


def _texts(outcome: Outcome) -> list[tuple[str, str]]:
    # In a dry run the trust bundle may not be known; then its file is told as one to be written.
    return [(AGENT_CONF, outcome.agent_conf or ""), (TRUST_BUNDLE, outcome.trust_bundle or "")]


def _told(outcome: Outcome, folder: HostFolder | None) -> Outcome:
    """Give what would become of the files."""
    request = outcome.request
    outcome = _with_texts(outcome)
    if folder is None or request.remove:
        return outcome
    files = tuple(
        FileDone(folder.path / name, not folder.is_as(name, text.encode(), PUBLIC))
        for name, text in _texts(outcome)
    )
    path = folder.path / JOIN_TOKEN
    token = TokenDone(path, None) if request.token_ttl is not None else None
    return replace(outcome, files=files, token=token)
