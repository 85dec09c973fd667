"""The system calls of the sandbox, by number where the C library has no function for them.

The numbers of Landlock's calls are the same on x86-64, aarch64 and all newer architectures.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
import threading

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1 << 0
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


class OtherKernel:
    """What every system has, macOS too: a limit for core dumps."""

    def forbid_core_dumps(self) -> None:
        """Let no core dump be written."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class LinuxKernel:
    """Linux, of any age: a call that a kernel does not have raises `OSError` (ENOSYS)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long

    def forbid_core_dumps(self) -> None:
        """Let no core dump be written, and nobody of our own user look into our memory."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A program that takes core dumps through a pipe gets them whatever the limit is.
        self._prctl(_PR_SET_DUMPABLE, 0)

    def forbid_new_privileges(self) -> None:
        """Make set-user-ID programs run without what they would get by it."""
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def threads(self) -> int:
        """Count the threads of this process, also those that are not Python's."""
        try:
            return len(os.listdir("/proc/self/task"))
        except OSError:  # a system without /proc
            return threading.active_count()

    def landlock_abi(self) -> int:
        """Give the version of Landlock."""
        return self._syscall(_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)

    def create_ruleset(self, files: int, ports: int) -> int:
        """Begin a ruleset that forbids these rights; give its descriptor."""
        # Shorter for kernels that do not know of ports yet.
        attributes = struct.pack("=QQ", files, ports) if ports else struct.pack("=Q", files)
        return self._syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)

    def allow_path(self, ruleset: int, path: int, rights: int) -> None:
        """Allow rights on what the descriptor `path` stands for, and below it."""
        rule = struct.pack("=Qi", rights, path)
        self._syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)

    def allow_port(self, ruleset: int, port: int, rights: int) -> None:
        """Allow rights on a TCP port."""
        rule = struct.pack("=QQ", rights, port)
        self._syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_NET_PORT, rule, 0)

    def restrict_self(self, ruleset: int, flags: int) -> None:
        """Put the ruleset in force for the calling thread, or for what the flags say."""
        self._syscall(_LANDLOCK_RESTRICT_SELF, ruleset, flags)

    def _syscall(self, number: int, *arguments: int | bytes | None) -> int:
        # As wide as a register: a variadic function takes what it is given.
        wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
        return self._checked(self._libc.syscall(ctypes.c_long(number), *wide))

    def _prctl(self, option: int, value: int) -> None:
        unused = [ctypes.c_ulong(0)] * 3
        self._checked(self._libc.prctl(option, ctypes.c_ulong(value), *unused))

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result


def kernel_of_this_system() -> LinuxKernel | OtherKernel:
    """Choose by the system."""
    return LinuxKernel() if sys.platform == "linux" else OtherKernel()
