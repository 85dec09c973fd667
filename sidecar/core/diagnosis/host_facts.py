"""What a host is, as values: accounts, paths, processes, sockets, services, settings."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the host and the groups that it is in."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    group: str = ""  # the name of `gid`
    shell: str = ""
    home: str = ""

    def __str__(self) -> str:
        return f"uid {self.uid} ({self.name})" if self.name else f"uid {self.uid}"


class Kind(enum.StrEnum):
    """What a path leads to."""

    FOLDER = "a folder"
    FILE = "a file"
    SOCKET = "a socket"
    OTHER = "something else"
    ABSENT = "nothing"
    HIDDEN = "unknown"  # this account may not look


@dataclass(frozen=True, slots=True)
class PathStat:
    """One path as it is, after its links; mode, uid and gid mean nothing for what is absent."""

    path: str
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0

    def __str__(self) -> str:
        return f"{self.path} (mode {self.mode:04o}, uid {self.uid}, gid {self.gid})"


# A path and all folders on the way to it, the root first.
Way = tuple[PathStat, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """One process; what is not known is None or empty."""

    pid: int
    uid: int | None = None
    name: str = ""

    def __str__(self) -> str:
        whose = "" if self.uid is None else f", uid {self.uid}"
        return f"{self.name or 'a process'} (pid {self.pid}{whose})"


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """One TCP socket that listens; `process` is None where that may not be known."""

    ip: IPv4Address | IPv6Address
    port: int
    process: Process | None = None

    @property
    def where(self) -> str:
        """Give the address as people write it."""
        ip = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        return f"{ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One service as its manager sees it; None: the manager does not say."""

    name: str
    installed: bool
    enabled: bool | None = None
    running: bool | None = None
    pid: int = 0
    user: str = ""
    path: str = ""
    ended: str = ""  # how it ended last, if it does not run
    descriptors: int | None = None  # the limit that it is started with
    only_when_logged_in: bool = False  # a LaunchAgent


@dataclass(frozen=True, slots=True)
class Power:
    """Whether a host goes to sleep by itself; `how` says what would send it there."""

    sleeps: bool
    how: str


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """Whether the clock is set from the network."""

    synchronised: bool
    how: str


@dataclass(frozen=True, slots=True)
class Firewall:
    """A firewall of the host, and whether it keeps the listener's ports shut.

    `blocks` None: it is on, and its rules are more than is read here.
    """

    name: str
    blocks: bool | None
    how: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """What is left on the disk of a path; `inodes` None where there is no such number."""

    free_bytes: int
    free_inodes: int | None
