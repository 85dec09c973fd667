"""A configuration that has changed under a running sidecar: what of it holds at once.

Gets the configuration in force and the one that was read, gives the one to put in force and what
has to wait for a restart. Nothing that is listened on, and nothing that says who we are, changes
under connections that were made with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from sidecar.core.config import Config, HelperConfig

# Table -> its keys that hold at once; None: all of them.
RELOADABLE: dict[str, frozenset[str] | None] = {
    "workload_api": frozenset({"denied_grace_seconds"}),
    "backend": frozenset({"address", "host", "health_path", "unsafe_remote_backend"}),
    "connections": None,
    "timeouts": None,
    "limits": None,
    "cors": None,
    "response_headers": None,
}


@dataclass(frozen=True, slots=True)
class Reload:
    """The configuration to put in force, what is new in it, and what is not."""

    config: Config
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


def reload(old: Config, new: HelperConfig) -> Reload:
    """Compare two configurations, key by key."""
    if not isinstance(new, Config):
        return Reload(old, (), ("[listener]",))
    tables: dict[str, object] = {}
    changed: list[str] = []
    waits: list[str] = []
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        keys = RELOADABLE.get(name, frozenset())
        if before == after:
            continue
        if keys is None:
            tables[name] = after
            changed.append(f"[{name}]")
        elif isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            differ = _differing(before, after)
            values = {key: getattr(after, key) for key in differ & keys}
            tables[name] = msgspec.structs.replace(before, **values)
            changed += [f"[{name}] {key}" for key in sorted(differ & keys)]
            waits += [f"[{name}] {key}" for key in sorted(differ - keys)]
        else:
            waits.append(f"[{name}]")
    return Reload(msgspec.structs.replace(old, **tables), tuple(changed), tuple(waits))


def _differing(before: msgspec.Struct, after: msgspec.Struct) -> set[str]:
    return {key for key in before.__struct_fields__ if getattr(before, key) != getattr(after, key)}
