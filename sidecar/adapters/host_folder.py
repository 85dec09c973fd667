"""The folder of files for another host: each is replaced as a whole, and has its mode first.

The folder is for one person to copy, and may hold a secret: it is made for us alone (0700), and
one that others could write to is refused, because they could put in another trust bundle. Raises
`RegistrationError`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sidecar.core.errors import RegistrationError
from sidecar.reading import read_bytes

PUBLIC, SECRET = 0o644, 0o600


class HostFolder:
    """One folder; `prepare` comes first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder if need be, and refuse one that others can write to."""
        with self._told():
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True)
        self.check()

    def check(self) -> None:
        """Refuse a folder that others can write to; one that is not there yet will be ours."""
        with self._told():
            if not self.path.exists():
                return
            status = self.path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise RegistrationError(f"{self.path} is no folder", "name another one")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            raise RegistrationError(
                f"{self.path} belongs to uid {status.st_uid} with mode {mode:04o}, "
                f"expected a folder of uid {os.geteuid()} that others cannot write to",
                f"name a new one, or chown and chmod go-w {self.path}",
            )

    def has(self, name: str) -> bool:
        """Tell whether a file of this name is there."""
        return os.path.lexists(self.path / name)

    def is_as(self, name: str, content: bytes, mode: int) -> bool:
        """Tell whether a file is exactly so already."""
        try:
            status = (self.path / name).lstat()
            same = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == mode
            return same and read_bytes(self.path / name, len(content)) == content
        except OSError:
            return False

    def write(self, name: str, content: bytes, mode: int) -> bool:
        """Put a file there; give whether anything had to be changed."""
        if self.is_as(name, content, mode):
            return False
        with self.replacing(name, mode) as put:
            put(content)
        return True

    @contextmanager
    def replacing(self, name: str, mode: int) -> Iterator[Callable[[bytes], None]]:
        """Give what writes to a new file, which takes its name when all went well."""
        new = self.path / f".{name}.new"
        with self._told():
            new.unlink(missing_ok=True)  # of a run that was killed
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(new, flags, SECRET)
        try:
            with self._told():
                os.fchmod(handle, mode)  # before content, whatever the umask
            yield partial(self._put, handle)
            with self._told():
                os.fsync(handle)
                new.replace(self.path / name)
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)

    def _put(self, handle: int, content: bytes) -> None:
        left = memoryview(content)
        with self._told():
            while left:
                left = left[os.write(handle, left) :]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            place = exc.filename or self.path
            raise RegistrationError(
                f"{place}: {exc.strerror or exc}",
                "may this account write there, and is there room?",
            ) from exc
