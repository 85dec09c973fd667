"""What has to be done so that the server has the entries that are wanted.

SPIRE allows several entries of one ID below one parent, with other selectors: an entry is ours by
(ID, parent), and of several by its selectors; where that is not clear, nobody guesses. What an
option does not name stays as it is, so that a shorter command line takes nothing away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sidecar.core.errors import RegistrationError
from sidecar.core.registration.entries import (
    Entry,
    Registration,
    create_command,
    delete_command,
    update_command,
    without_token,
)
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.status import printable

NONE = "none"
SERVERS_DEFAULT = "the server's default"

Action = Literal["create", "update", "unchanged", "remove", "absent", "keep"]


@dataclass(frozen=True, slots=True)
class Change:
    """A field of an entry that is to be another."""

    field: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one entry; `command` is empty where nothing is to be done.

    `reason` says why something stays that might have been expected to go.
    """

    role: str
    action: Action
    entry: Entry
    changes: tuple[Change, ...] = ()
    command: tuple[str, ...] = ()
    reason: str = ""


def plan_registration(wanted: Registration, existing: Sequence[Entry]) -> Step:
    """Plan what makes the wanted entry true, or raise `RegistrationError` if it is not clear."""
    ours = _ours(wanted, existing, wanted.selectors or wanted.default_selectors)
    if ours is None:
        entry = _new(wanted)
        return Step(wanted.role, "create", entry, command=create_command(entry))
    entry = _as_wanted(ours, wanted)
    changes = _changes(ours, entry)
    if not changes:
        return Step(wanted.role, "unchanged", ours)
    return Step(wanted.role, "update", entry, changes, update_command(entry))


def plan_removal(wanted: Registration, existing: Sequence[Entry]) -> Step:
    """Plan the removal of the entry; one with other selectors than those asked for stays."""
    ours = _ours(wanted, existing, wanted.selectors or ())
    if ours is None:
        return Step(wanted.role, "absent", _new(wanted))
    if wanted.selectors and set(ours.selectors) != set(wanted.selectors):
        reason = "it has other selectors than those that were asked for"
        return Step(wanted.role, "keep", ours, reason=reason)
    return Step(wanted.role, "remove", ours, command=delete_command(ours.id))


def plan_alias_removal(
    aliases: Sequence[Entry], children: Sequence[Entry], going: set[str]
) -> list[Step]:
    """Plan the removal of what `token generate` made; not while other entries hang on the alias."""
    staying = [child for child in children if child.id not in going]
    steps = []
    for entry in aliases:
        if not entry.is_token_alias:
            steps.append(Step("alias", "keep", entry, reason="no join token made it"))
        elif staying:
            names = sorted({str(child.spiffe_id) for child in staying})
            reason = f"it is the parent of {', '.join(names)}"
            steps.append(Step("alias", "keep", entry, reason=reason))
        else:
            steps.append(Step("alias", "remove", entry, command=delete_command(entry.id)))
    return steps


def same_id_elsewhere(wanted: Registration, existing: Sequence[Entry]) -> list[Entry]:
    """Give the entries of this ID below other parents: other hosts, or slips."""
    return [
        entry
        for entry in existing
        if entry.spiffe_id == wanted.spiffe_id and entry.parent_id != wanted.parent_id
    ]


def same_id_beside(step: Step, existing: Sequence[Entry]) -> list[Entry]:
    """Give the other entries of this ID below the same parent."""
    mine = step.entry
    return [
        entry
        for entry in existing
        if (entry.spiffe_id, entry.parent_id) == (mine.spiffe_id, mine.parent_id)
        and entry.id != mine.id
    ]


def other_ids_of_the_process(step: Step, existing: Sequence[Entry]) -> list[SpiffeId]:
    """Give the other IDs that a process with exactly these selectors gets from its agent, too."""
    mine = step.entry
    found = {
        entry.spiffe_id
        for entry in existing
        if entry.parent_id == mine.parent_id
        and entry.spiffe_id != mine.spiffe_id
        and set(entry.selectors) <= set(mine.selectors)
    }
    return sorted(found)


def fields(entry: Entry) -> dict[str, str]:
    """Give what we manage of an entry, as a person reads it; the order of values means nothing."""
    ttl = entry.x509_svid_ttl
    return {
        "selectors": _joined(entry.selectors),
        "dns names": _joined(entry.dns_names),
        "x509-svid ttl": f"{ttl} s" if ttl else SERVERS_DEFAULT,
    }


def _ours(
    wanted: Registration, existing: Sequence[Entry], selectors: Sequence[object]
) -> Entry | None:
    """Give the entry that is meant: by ID and parent, and of several by the selectors."""
    key = (wanted.spiffe_id, wanted.parent_id)
    found = [entry for entry in existing if (entry.spiffe_id, entry.parent_id) == key]
    if len(found) < 2:
        return found[0] if found else None
    exact = [entry for entry in found if set(entry.selectors) == set(selectors)]
    if len(exact) == 1:
        return exact[0]
    listed = "".join(f"\n  {_shown(entry)}" for entry in found)
    raise RegistrationError(
        f"{len(found)} entries of {wanted.spiffe_id} below {without_token(wanted.parent_id)}, "
        f"and it is not clear which is meant:{listed}",
        "name the selectors of one with --uid or --selector (--traefik-selector), or delete the "
        "others with `spire-server entry delete -entryID ID`",
    )


def _shown(entry: Entry) -> str:
    """Give an entry in one line, whatever the server lets stand in it."""
    return printable(without_token(f"{entry.id}: {_joined(entry.selectors)}"))


def _new(wanted: Registration) -> Entry:
    return Entry(
        "",
        wanted.spiffe_id,
        wanted.parent_id,
        wanted.selectors or wanted.default_selectors,
        wanted.dns_names or (),
        wanted.x509_svid_ttl or 0,
    )


def _as_wanted(entry: Entry, wanted: Registration) -> Entry:
    """Give the entry with what is asked for; the order of names and selectors means nothing."""
    return replace(
        entry,
        selectors=entry.selectors if wanted.selectors is None else wanted.selectors,
        dns_names=entry.dns_names if wanted.dns_names is None else wanted.dns_names,
        x509_svid_ttl=entry.x509_svid_ttl if wanted.x509_svid_ttl is None else wanted.x509_svid_ttl,
    )


def _changes(old: Entry, new: Entry) -> tuple[Change, ...]:
    was, becomes = fields(old), fields(new)
    return tuple(
        Change(name, was[name], becomes[name]) for name in was if was[name] != becomes[name]
    )


def _joined(values: Sequence[object]) -> str:
    return ", ".join(sorted(str(value) for value in values)) or NONE
