"""launchd's sockets: taken by name, through a library that stands in for that of macOS.

Once a library in Python, which can misbehave, and once one in C, for what ctypes makes of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.adapters.service_manager import NoNotifier, inherited, launchd, notifier
from sidecar.core.errors import ListenError


class Plist:
    """A library whose plist has some sockets; each name is handed over once."""

    def __init__(self, **sockets: Sequence[int]) -> None:
        self._sockets = dict(sockets)
        self._taken: set[bytes] = set()
        self._array: Any = None
        self.error = 0
        self.freed = 0

    def launch_activate_socket(self, name: bytes, descriptors: Any, count: Any, /) -> int:
        if self.error:
            return self.error
        found = self._sockets.get(name.decode())
        if found is None:
            return errno.ENOENT
        if name in self._taken:
            return errno.EALREADY
        self._taken.add(name)
        self._array = (ctypes.c_int * len(found))(*found)
        descriptors[0] = ctypes.cast(self._array, ctypes.POINTER(ctypes.c_int))
        count[0] = len(found)
        return 0

    def free(self, memory: Any, /) -> None:
        assert ctypes.addressof(memory.contents) == ctypes.addressof(self._array)
        self.freed += 1


Listening = Callable[[], int]


@pytest.fixture
def listening(closing: ExitStack) -> Listening:
    """Descriptors of listening sockets, ours to give away."""

    def make() -> int:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            descriptor = os.dup(sock.fileno())
        os.set_inheritable(descriptor, True)
        return descriptor

    return make


def refused(name: str, library: launchd.Library) -> str:
    with pytest.raises(ListenError) as caught:
        launchd.sockets(name, library)
    return f"{caught.value.message} / {caught.value.hint}"


def test_all_sockets_of_a_name_are_taken_and_ready_for_use(listening: Listening) -> None:
    """One for IPv4 and one for IPv6, say."""
    library = Plist(Peers=[listening(), listening()], Other=[])
    taken = launchd.sockets("Peers", library)
    assert len(taken) == 2
    assert library.freed == 1
    assert not any(sock.get_inheritable() or sock.getblocking() for sock in taken)
    for sock in taken:
        with socket.create_connection(sock.getsockname(), 20) as peer:
            accepted, address = sock.accept()
            accepted.close()
            assert address == peer.getsockname()
        sock.close()


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (errno.ESRCH, "launchd has not started this process", "launchctl bootstrap"),
        (errno.ENOENT, "the plist has no socket of that name", "just that name"),
        (errno.EALREADY, "this process has taken it already", "one place"),
        (errno.ENOMEM, os.strerror(errno.ENOMEM), "None"),
    ],
    ids=["not by launchd", "no such name", "twice", "any other"],
)
def test_error_says_what_to_do(error: int, reason: str, hint: str) -> None:
    library = Plist()
    library.error = error
    said = refused("Peers", library)
    assert said.startswith(f"socket 'Peers' from launchd: {reason} / ")
    assert hint in said
    assert library.freed == 0


def test_name_that_was_taken_is_not_taken_again(listening: Listening) -> None:
    library = Plist(Peers=[listening()])
    (taken,) = launchd.sockets("Peers", library)
    assert "taken it already" in refused("Peers", library)
    taken.close()


def test_name_that_stands_for_no_socket_is_refused() -> None:
    library = Plist(Peers=[])
    assert "none at all" in refused("Peers", library)
    assert library.freed == 1


def test_descriptor_that_does_not_listen_is_refused_and_none_is_taken(
    listening: Listening,
) -> None:
    good = listening()
    with socket.socket() as bad:
        library = Plist(Peers=[good, os.dup(bad.fileno())])
        assert "does not listen" in refused("Peers", library)
    assert library.freed == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(good)


@pytest.mark.parametrize("name", ["", "Peers\0Other"], ids=["empty", "cut by the system"])
def test_name_that_no_plist_can_have_is_refused(name: str, listening: Listening) -> None:
    library = Plist(Peers=[])
    assert "no name that a plist could have" in refused(name, library)


@pytest.mark.skipif(sys.platform == "darwin", reason="for systems without launchd")
def test_system_without_launchd_says_so() -> None:
    with pytest.raises(ListenError, match="it is a part of macOS"):
        inherited(["launchd:Peers"], {})


@pytest.mark.skipif(sys.platform != "darwin", reason="asks launchd itself")
def test_launchd_itself_knows_no_such_socket() -> None:
    with pytest.raises(ListenError, match=r"has not started this|no socket of that name"):
        inherited(["launchd:NoSuchSocketOfSidecar"], {})


def test_launchd_is_told_nothing() -> None:
    told = notifier({"XPC_SERVICE_NAME": "sidecar"})
    assert isinstance(told, NoNotifier)


# The same from C: arguments, the array and its memory as the system's library has them.

STAND_IN = r"""
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int first, second;
static void *given, *freed;

void stand_in(int one, int other) { first = one; second = other; }
int is_freed(void) { return given != NULL && given == freed; }

int launch_activate_socket(const char *name, int **fds, size_t *count) {
    if (strcmp(name, "Peers") != 0) return ENOENT;
    if (given != NULL) return EALREADY;
    given = *fds = calloc(2, sizeof(int));
    (*fds)[0] = first;
    (*fds)[1] = second;
    *count = 2;
    return 0;
}

/* Not the real one: whether and of what it is called is what the test asks. */
void free(void *memory) { freed = memory; }
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The stand-in, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, built = tmp_path / "launch.c", tmp_path / "liblaunch.so"
    source.write_text(STAND_IN)
    command = [compiler, "-shared", "-fPIC", "-fno-builtin", "-o", str(built), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return built


def test_library_in_c_hands_its_sockets_over(library: Path, listening: Listening) -> None:
    settings = ctypes.CDLL(str(library))  # the same one, loaded once
    first, second = listening(), listening()
    settings.stand_in(first, second)
    loaded = launchd.load(str(library))
    assert "no socket of that name" in refused("Other", loaded)
    taken = launchd.sockets("Peers", loaded)
    assert [sock.fileno() for sock in taken] == [first, second]
    assert settings.is_freed()
    assert "taken it already" in refused("Peers", loaded)
    for sock in taken:
        sock.close()
