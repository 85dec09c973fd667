"""The sandbox: what this process gives up for good, so that whoever takes it over has little.

Gets what stays allowed; gives what is forbidden from now on, and why the rest is not. That is
never an error: an old kernel is no reason not to serve. Nothing of it can be undone, and the
programs that we start (hooks) are in it too.

When: in the main thread, after the configuration is read and before anything starts a thread (the
log, trio's workers, gRPC) or reads a key. Landlock before ABI 8 takes in the thread that calls
and those that this one starts later; threads that run already stay outside, and the result says
so. What is open by then stays usable: standard error, sockets that were bound or inherited.

A path stands for the file or folder that is there when this is called: it has to exist, and when
it is replaced (by an editor, a rename), the new one is forbidden. So give the folder in which a
file is replaced, and make folders before. Landlock leaves some things alone, and so do we: Unix
sockets that are connected to (before ABI 9 it cannot forbid them), attributes, times, modes and
owners, locks, watches for changes, UDP, signals.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sidecar.adapters.sandbox.kernel import LinuxKernel, OtherKernel, kernel_of_this_system
from sidecar.adapters.sandbox.landlock import (
    ABI_OF_ALL_THREADS,
    ABI_OF_PORTS,
    ABI_OF_TRUNCATE,
    Allowed,
    Applied,
    restrict,
)
from sidecar.adapters.sandbox.runtime import python_needs

__all__ = ["Allowed", "Confinement", "confine", "python_needs"]

_NO_LANDLOCK = {
    errno.ENOSYS: "the kernel has no Landlock, which is a part of Linux 5.13 and later",
    errno.EOPNOTSUPP: "Landlock was left out when the kernel was started (lsm= on its line)",
    errno.EPERM: "Landlock is not permitted; by the seccomp profile of a container?",
}
_NEEDS_PRIVILEGE = (
    "where new privileges (sudo in a hook) stay allowed, Landlock is for CAP_SYS_ADMIN only"
)


# A thing to forbid, and why it is not; None: it is.
_Finding = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is forbidden from now on; `missing` is what should be and is not, with the reason.

    `absent` are paths that should be allowed and are not, with the reason. `read`, `write` and
    `append` are those for which the kernel has taken a rule.
    """

    forbidden: tuple[str, ...]
    missing: tuple[str, ...]
    absent: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    append: tuple[str, ...] = ()
    landlock_abi: int = 0  # the kernel's; 0: there is none, or it was not asked


def confine(
    allowed: Allowed | None,
    *,
    reason: str = "the sandbox is switched off",
    no_new_privileges: bool = True,
    kernel: LinuxKernel | OtherKernel | None = None,
) -> Confinement:
    """Give up all but what is allowed; `allowed` None: the sandbox is off for that `reason`.

    Core dumps go in any case, they would hold our keys: on Linux the files of /proc/PID belong to
    root from then on, and no debugger of our own user can attach.

    `no_new_privileges` False leaves sudo to hooks; Landlock then needs CAP_SYS_ADMIN.
    """
    kernel = kernel or kernel_of_this_system()
    dumps = _forbid("core dumps", kernel.forbid_core_dumps)
    if allowed is not None and isinstance(kernel, LinuxKernel):
        return _confine(kernel, allowed, no_new_privileges, dumps)
    if allowed is not None:
        reason = f"only Linux has the means, this is {sys.platform}"
    return _confinement([dumps, ("files, TCP ports, new privileges", reason)])


def _confine(
    kernel: LinuxKernel, allowed: Allowed, no_new_privileges: bool, dumps: _Finding
) -> Confinement:
    outside, known = kernel.threads() - 1, 0
    findings, applied, abi = [dumps], Applied(), 0
    if no_new_privileges:
        findings.append(_forbid("new privileges", kernel.forbid_new_privileges))
    try:
        abi = kernel.landlock_abi()
        applied = restrict(kernel, allowed, abi)
    except OSError as exc:
        findings.append(("other files, TCP ports", _refusal(exc, abi, no_new_privileges)))
    else:
        findings += [("other files", None), *_by_age(allowed, abi)]
        known = abi
    if outside and any(reason is None for _, reason in findings[1:]):
        what = f"all but core dumps in {outside} threads that ran before"
        findings.append((what, _too_old(ABI_OF_ALL_THREADS, known)))
    return replace(
        _confinement(findings),
        absent=tuple(f"{path}: {reason}" for path, reason in applied.absent),
        read=tuple(map(str, applied.read)),
        write=tuple(map(str, applied.write)),
        append=tuple(map(str, applied.append)),
        landlock_abi=known,
    )


def _by_age(allowed: Allowed, abi: int) -> Iterator[_Finding]:
    """Tell of what the first Landlock could not do yet."""
    yield "truncating other files", _too_old(ABI_OF_TRUNCATE, abi)
    if allowed.listen is not None:
        yield "other TCP ports to listen on", _too_old(ABI_OF_PORTS, abi)
    if allowed.connect is not None:
        yield "other TCP ports to connect to", _too_old(ABI_OF_PORTS, abi)


def _too_old(needed: int, abi: int) -> str | None:
    return f"needs Landlock ABI {needed}, in force is {abi or 'none'}" if abi < needed else None


def _refusal(exc: OSError, abi: int, no_new_privileges: bool) -> str:
    """Tell why Landlock is not in force; `abi` 0 means that there is none."""
    if not abi and exc.errno in _NO_LANDLOCK:
        return _NO_LANDLOCK[exc.errno]
    if exc.errno == errno.EPERM and not no_new_privileges:
        return _NEEDS_PRIVILEGE
    return exc.strerror or str(exc)


def _forbid(what: str, forbid: Callable[[], None]) -> _Finding:
    try:
        forbid()
    except (OSError, ValueError) as exc:  # setrlimit has both
        return what, str(exc)
    return what, None


def _confinement(findings: list[_Finding]) -> Confinement:
    forbidden = tuple(what for what, reason in findings if reason is None)
    missing = tuple(f"{what}: {reason}" for what, reason in findings if reason is not None)
    return Confinement(forbidden, missing)
