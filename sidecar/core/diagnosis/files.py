"""The group "files": the directory of certificate files, what is in it, and who is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sidecar.core.diagnosis.finding import Finding, Unknown, all_skipped, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import Account, Disk, Kind, PathStat, Way
from sidecar.core.diagnosis.permission import (
    PASS,
    READ,
    WRITE,
    absent,
    hidden,
    obstacle,
    octal,
    open_to_others,
)
from sidecar.core.svid import is_over

NAMES = (
    "files.directory",
    "files.writable",
    "files.guarded",
    "files.published",
    "files.keys",
    "files.current",
    "files.leftovers",
    "files.hooks",
    "files.space",
)
# Below this not even a generation with a long chain and many bundles would fit.
_ENOUGH_BYTES, _ENOUGH_INODES = 4 * 1024 * 1024, 64


@dataclass(frozen=True, slots=True)
class Published:
    """The generation that `current` leads to; `fault` says what is wrong with it."""

    generation: str
    fault: str = ""
    serial: str = ""
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class HookFault:
    """One hook whose target is not as it has to be."""

    name: str
    seen: str
    remedy: str


@dataclass(frozen=True, slots=True)
class FilesFacts:
    """What is known of the files.

    `secrets` are the files with a key or a token, each with the mode that the configuration gives
    it; `issued` and `served` are the serials of the SVID issued now and of the daemon's, empty if
    they are not known. `publish` is what makes the daemon write anew. `shared` are folders on the
    way that the daemon takes though others may write there: volumes, and what the key allows.
    """

    now: datetime
    directory: str
    way: Way
    account: Account
    published: Published | Unknown
    secrets: tuple[tuple[PathStat, int], ...]
    leftovers: tuple[str, ...]
    issued: str
    served: str
    hooks: tuple[HookFault, ...]
    hook_names: tuple[str, ...]
    disk: Disk | Unknown
    publish: str
    shared: frozenset[str] = frozenset()


def judge_files(facts: FilesFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    yield from _of_directory(facts)
    if absent(facts.way) is None:
        yield _published(facts)
        yield _keys(facts)
        yield _current(facts)
        yield _leftovers(facts)
    else:
        yield from all_skipped(NAMES[3:7], "there is no directory")
    yield _hooks(facts)
    yield _space(facts)


def _of_directory(facts: FilesFacts) -> Iterator[Finding]:
    unseen, gone, end = hidden(facts.way), absent(facts.way), facts.way[-1]
    if unseen is not None:
        need = Unknown(f"this account may not look at {unseen.path}", "run doctor with sudo")
        yield from all_skipped(NAMES[:3], need)
        return
    owner = facts.account.name or facts.account.uid
    make = f"sudo install -d -o {owner} -m 0755 {facts.directory}"
    if gone is not None:
        yield fail("files.directory", f"{gone.path} does not exist", make)
        yield from all_skipped(NAMES[1:3], "there is no directory")
        return
    if end.kind is not Kind.FOLDER:
        seen = f"{end.path} is {end.kind}, expected a folder"
        yield fail("files.directory", seen, f"move it away, then: {make}")
        yield from all_skipped(NAMES[1:3], "there is no directory")
        return
    yield ok("files.directory", str(end))
    blocked = obstacle(facts.account, facts.way, READ | WRITE | PASS)
    if blocked is None:
        yield ok("files.writable", f"{facts.account} may write there")
    else:
        doing = "write to" if blocked == end else "pass"
        change = f"sudo chown {owner} {blocked.path}" if blocked == end else ""
        remedy = change or f"sudo chmod a+x {blocked.path}"
        yield fail("files.writable", f"{facts.account} may not {doing} {blocked}", remedy)
    yield _guarded(facts, end)


def _guarded(facts: FilesFacts, end: PathStat) -> Finding:
    # As the daemon itself asks for it: the folder's own mode, and then the way to it.
    own = end.mode & 0o022
    open_one = end if own else open_to_others(facts.way, {0, facts.account.uid})
    if open_one is None:
        return ok("files.guarded", "only the service user and root can replace files there")
    if open_one.path in facts.shared:
        seen = f"{open_one} is shared: whoever can write there can replace what is published"
        subfolder = f'[cert_files] directory = "{facts.directory}/certs"' if open_one == end else ""
        return warn("files.guarded", seen, subfolder or "share the volume with no one else")
    mode = octal(open_one.mode & ~0o022)
    whose = open_one.uid in (0, facts.account.uid)
    remedy = f"sudo chmod {mode} {open_one.path}"
    if not whose:
        remedy = f"sudo chown {facts.account.name or facts.account.uid} {open_one.path}"
    return fail("files.guarded", f"{open_one} lets others replace what is published", remedy)


def _published(facts: FilesFacts) -> Finding:
    name, published = "files.published", facts.published
    if isinstance(published, Unknown):
        return skipped(name, published)
    if published.fault:
        return fail(name, f"{facts.directory}: {published.fault}", facts.publish)
    return ok(name, f"{published.generation}, key and certificate are a pair")


def _keys(facts: FilesFacts) -> Finding:
    name = "files.keys"
    for path, allowed in facts.secrets:
        if path.mode & ~allowed & 0o777:
            seen = f"{path} holds a secret, expected at most mode {octal(allowed)}"
            change = f"sudo chmod {octal(allowed)} {path.path}"
            return fail(name, seen, f"{change}\nwhoever has read it may use it until it expires")
    if not facts.secrets:
        return skipped(name, "no file with a key or a token is there")
    return ok(name, f"{len(facts.secrets)} files, none open to others")


def _current(facts: FilesFacts) -> Finding:
    name, published = "files.current", facts.published
    if isinstance(published, Unknown):
        return skipped(name, published)
    if published.fault or published.not_after is None:
        return skipped(name, "nothing usable is published")
    if is_over(published.not_after, facts.now):
        seen = f"the published SVID expired at {published.not_after:%F %T}Z"
        return fail(name, seen, facts.publish)
    known = {facts.issued, facts.served} - {""}
    if known and published.serial not in known:
        seen = f"published is serial {published.serial}, issued is {' or '.join(sorted(known))}"
        return fail(name, seen, facts.publish)
    return ok(name, f"serial {published.serial}, until {published.not_after:%F %T}Z")


def _leftovers(facts: FilesFacts) -> Finding:
    name = "files.leftovers"
    if facts.leftovers:
        names = ", ".join(facts.leftovers)
        remedy = f"the next rotation removes them; now: {facts.publish}"
        return warn(name, f"left behind in {facts.directory}: {names}", remedy)
    return ok(name, "nothing but what is published")


def _hooks(facts: FilesFacts) -> Finding:
    name = "files.hooks"
    if not facts.hook_names:
        return skipped(name, "no [[after_rotation]]")
    if facts.hooks:
        seen = "; ".join(f"{one.name}: {one.seen}" for one in facts.hooks)
        return fail(name, seen, "\n".join(one.remedy for one in facts.hooks))
    return ok(name, ", ".join(facts.hook_names))


def _space(facts: FilesFacts) -> Finding:
    name, disk = "files.space", facts.disk
    if isinstance(disk, Unknown):
        return skipped(name, disk)
    inodes = disk.free_inodes
    if disk.free_bytes < _ENOUGH_BYTES or (inodes is not None and inodes < _ENOUGH_INODES):
        left = "" if inodes is None else f" and {inodes} inodes"
        seen = f"{disk.free_bytes // 1024} KiB{left} left on the disk of {facts.directory}"
        return fail(name, seen, f"make room there: df -h {facts.directory}")
    return ok(name, f"{disk.free_bytes // 2**20} MiB left")
