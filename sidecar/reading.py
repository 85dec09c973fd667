"""How files are read: regular files only, so many bytes, so many seconds.

What stands at a path of the configuration may by now be a named pipe, a device or a folder, may
have no end, or may lie on a mount that hangs. Every reader of a file goes through here; below the
adapters, because several of them read. Where there is an event loop `disk` adds the waiting.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 10.0
# Of a configuration or a policy. A rule takes some hundred bytes.
MAX_TEXT_BYTES = 4 * 1024 * 1024
# Not every system can ask for the account that we act as.
_EFFECTIVE = os.access in os.supports_effective_ids
_CHUNK_BYTES = 1024 * 1024
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; raise `OSError` for anything else. Blocks on the disk."""
    # Looked at first, because opening a device may do something. Opened without waiting and
    # looked at again, because it may be another one by now.
    _refuse_irregular(path, os.stat(path))
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as exc:
        if os.access(path, os.R_OK, effective_ids=_EFFECTIVE):
            # Owner and mode allow it. Landlock refuses the opening and not this question.
            raise PermissionError(errno.EACCES, _FORBIDDEN, str(path)) from exc
        raise
    try:
        status = os.fstat(handle)
        _refuse_irregular(path, status)
        yield handle, status
    finally:
        os.close(handle)


_FORBIDDEN = (
    "forbidden by [sandbox] (or by the host's security module): it is in none of the folders that "
    "held the configured files at start; put it there, or restart"
)


def _refuse_irregular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is not a regular file but {kind}", str(path))


def read_bytes(path: Path, maximum: int) -> bytes:
    """Return the content of a regular file of at most `maximum` bytes. Blocks on the disk.

    Raises `OSError` with the path and the reason.
    """
    with regular_file(path) as (handle, _):
        parts, size = list[bytes](), 0
        while part := os.read(handle, min(_CHUNK_BYTES, maximum + 1 - size)):
            parts.append(part)
            size += len(part)
            if size > maximum:
                raise OSError(errno.EFBIG, f"it has more than {maximum} bytes", str(path))
        return b"".join(parts)


def read_text(path: Path) -> str:
    """Return a configuration or policy file's text. Blocks; raises `OSError`, `UnicodeError`."""
    return read_bytes(path, MAX_TEXT_BYTES).decode("utf-8")


def read_text_now(path: Path) -> str:
    """Return what `read_text` does, within the deadline, where there is no event loop yet."""
    found: list[str | Exception] = []
    thread = threading.Thread(target=_keep_outcome, args=(path, found), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if not found:
        raise no_answer(str(path))
    _until_gone(thread.native_id)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _keep_outcome(path: Path, found: list[str | Exception]) -> None:
    try:
        found.append(read_text(path))
    except Exception as exc:  # the caller raises it
        found.append(exc)


def _until_gone(thread: int | None) -> None:
    """Wait until the kernel has ended a thread that Python calls ended: the sandbox counts them."""
    end = time.monotonic() + 1.0
    while os.path.exists(f"/proc/self/task/{thread}") and time.monotonic() < end:
        time.sleep(0.0005)


def no_answer(what: str) -> TimeoutError:
    """Return the error about a disk that did not answer in time."""
    text = f"the disk did not answer within {PATIENCE_SECONDS:g} s"
    return TimeoutError(errno.ETIMEDOUT, text, what)
