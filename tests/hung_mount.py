"""A mount that hangs: FUSE without anybody who answers. Needs root and /dev/fuse, on Linux.

Whoever looks into the folder waits until it is over, and cannot be interrupted, only killed, as
with a network mount whose server is gone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MNT_DETACH = 2


def _mount(folder: Path) -> int:
    """Mount; give the descriptor by which the kernel asks and nobody answers."""
    handle = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={handle},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options):
        error = ctypes.get_errno()
        os.close(handle)
        raise OSError(error, os.strerror(error))
    return handle


@contextmanager
def hung_mount(folder: Path) -> Iterator[None]:
    """Have a folder hang; at the end what was there before is back, and who waits gets an error."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount something that hangs")
    try:
        handle = _mount(folder)
    except OSError as exc:
        pytest.skip(f"no FUSE here: {exc}")
    try:
        yield
    finally:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.umount2(os.fsencode(folder), _MNT_DETACH)
        os.close(handle)  # ends what waits
