"""Landlock: the paths and ports that stay allowed -> one ruleset, in force.

Of each version (ABI) of it the rights that it knows are asked for, all else is refused by the
kernel. Specification: the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.adapters.sandbox.kernel import LinuxKernel

ABI_OF_TRUNCATE, ABI_OF_PORTS, ABI_OF_ALL_THREADS = 3, 4, 8

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 9, 1 << 12
# Moving between folders, since ABI 2; before, it is always refused.
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_ABI_1 = (1 << 13) - 1
_SINCE = {2: _REFER, ABI_OF_TRUNCATE: _TRUNCATE, 5: _IOCTL_DEV}
# The only ones that a rule about a file may name.
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_READ = _READ_FILE | _READ_DIR
_MAKE = _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_SYM  # no devices, no pipes
_CHANGE = _WRITE_FILE | _TRUNCATE | _IOCTL_DEV | _MAKE | _REMOVE_DIR | _REMOVE_FILE | _REFER

# Of a log and those that follow it: no reading, no removing, no cutting short.
_APPEND = _WRITE_FILE | _MAKE_REG

_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_ALL_THREADS = 1 << 3


@dataclass(frozen=True, slots=True)
class Allowed:
    """What stays allowed: files, folders with all that is below them, TCP ports.

    `write` and `execute` let read as well; `append` lets files be made and written to, and nothing
    else. Ports None means any; port 0 to listen on means one that the system chooses.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    append: tuple[Path, ...] = ()
    execute: tuple[Path, ...] = ()
    listen: tuple[int, ...] | None = None
    connect: tuple[int, ...] | None = None


@dataclass(slots=True)
class Applied:
    """The paths that the kernel has taken, by the names of `Allowed`; `absent`: with the reason."""

    read: list[Path] = field(default_factory=list)
    write: list[Path] = field(default_factory=list)
    append: list[Path] = field(default_factory=list)
    execute: list[Path] = field(default_factory=list)
    absent: list[tuple[Path, str]] = field(default_factory=list)


def restrict(kernel: LinuxKernel, allowed: Allowed, abi: int) -> Applied:
    """Put it in force; give what that is."""
    files, ports = _file_rights(abi), _port_rights(abi, allowed)
    ruleset = kernel.create_ruleset(files, ports)
    try:
        applied = _allow_paths(kernel, ruleset, allowed, files)
        for right, numbers in ((_BIND_TCP, allowed.listen), (_CONNECT_TCP, allowed.connect)):
            for port in (numbers or ()) if ports & right else ():
                kernel.allow_port(ruleset, port, right)
        kernel.restrict_self(ruleset, _ALL_THREADS if abi >= ABI_OF_ALL_THREADS else 0)
    finally:
        os.close(ruleset)
    return applied


def _allow_paths(kernel: LinuxKernel, ruleset: int, allowed: Allowed, known: int) -> Applied:
    applied, root = Applied(), os.stat("/")
    for path, rights, taken in _paths(allowed, applied):
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            applied.absent.append((path, exc.strerror or str(exc)))
            continue
        try:
            status = os.fstat(handle)
            if os.path.samestat(status, root):
                applied.absent.append((path, "the root of the file system is never allowed"))
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            kernel.allow_path(ruleset, handle, rights & known & (-1 if is_folder else _OF_A_FILE))
            taken.append(path)
        finally:
            os.close(handle)
    return applied


def _paths(allowed: Allowed, applied: Applied) -> Iterator[tuple[Path, int, list[Path]]]:
    yield from ((path, _READ, applied.read) for path in allowed.read)
    yield from ((path, _READ | _CHANGE, applied.write) for path in allowed.write)
    yield from ((path, _APPEND, applied.append) for path in allowed.append)
    yield from ((path, _READ | _EXECUTE, applied.execute) for path in allowed.execute)


def _file_rights(abi: int) -> int:
    """Give the rights that a kernel can forbid; it refuses a ruleset with one that is unknown."""
    rights = _OF_ABI_1
    for since, right in _SINCE.items():
        rights |= right if abi >= since else 0
    return rights


def _port_rights(abi: int, allowed: Allowed) -> int:
    listen = _BIND_TCP if allowed.listen is not None else 0
    connect = _CONNECT_TCP if allowed.connect is not None else 0
    return listen | connect if abi >= ABI_OF_PORTS else 0
