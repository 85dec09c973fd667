"""systemd: what it is told, and the sockets that it hands over; nobody else gets either."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.adapters.service_manager import NoNotifier, Notifier, inherited, notifier, systemd
from sidecar.core.errors import ListenError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")


# Notices.


class Manager:
    """systemd's end of the notices."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)

    def heard(self) -> list[str]:
        return self.socket.recv(8192).decode().split("\n")


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "notify")


@pytest.fixture
def manager(path: str, closing: ExitStack) -> Manager:
    manager = Manager(path)
    closing.enter_context(manager.socket)
    return manager


@pytest.fixture
def told(manager: Manager, path: str, closing: ExitStack) -> Notifier:
    """What tells the manager."""
    told = notifier({"NOTIFY_SOCKET": path})
    closing.callback(told.close)
    return told


@pytest.mark.parametrize(
    ("tell", "heard"),
    [
        (lambda told: told.ready(), ["READY=1"]),
        (lambda told: told.ready("serving"), ["READY=1", "STATUS=serving"]),
        (lambda told: told.stopping(), ["STOPPING=1"]),
        (lambda told: told.stopping("draining"), ["STOPPING=1", "STATUS=draining"]),
        (lambda told: told.status("7 peers"), ["STATUS=7 peers"]),
        (lambda told: told.status(""), ["STATUS="]),
        (lambda told: told.watchdog(), ["WATCHDOG=1"]),
    ],
    ids=["ready", "ready+", "stopping", "stopping+", "status", "no status", "watchdog"],
)
def test_manager_is_told(
    manager: Manager, told: Notifier, tell: Callable[[Notifier], str | None], heard: list[str]
) -> None:
    assert tell(told) is None
    assert manager.heard() == heard


def test_reload_begins_with_the_time_by_the_clock_that_systemd_reads(
    manager: Manager, told: Notifier
) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert told.reloading() is None
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    what, when = manager.heard()
    assert what == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= after


def test_status_cannot_begin_another_assignment(manager: Manager, told: Notifier) -> None:
    assert told.status("bad\nREADY=1\r\x00\u2028\udcffend") is None
    assert manager.heard() == ["STATUS=bad READY=1    end"]


def test_status_is_never_longer_than_what_systemd_reads(manager: Manager, told: Notifier) -> None:
    assert told.ready("\U0001f600" * 5000) is None
    sent = "\n".join(manager.heard())
    assert sent.startswith("READY=1\nSTATUS=\U0001f600")
    assert len(sent.encode()) < 4096


@linux_only
def test_abstract_socket_is_told(closing: ExitStack) -> None:
    name = f"sidecar-test-{os.getpid()}"
    manager = Manager(b"\0" + name.encode())
    closing.enter_context(manager.socket)
    told = notifier({"NOTIFY_SOCKET": f"@{name}"})
    closing.callback(told.close)
    assert told.ready() is None
    assert manager.heard() == ["READY=1"]


def test_manager_that_makes_its_socket_anew_is_told_again(
    manager: Manager, told: Notifier, path: str, closing: ExitStack
) -> None:
    assert told.ready() is None
    manager.socket.close()
    assert told.watchdog() is not None
    os.unlink(path)
    assert told.watchdog() is not None
    again = Manager(path)
    closing.enter_context(again.socket)
    assert told.watchdog() is None
    assert again.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/nowhere/at/all", os.strerror(errno.ENOENT)),
        ("/" + "n" * 200, "too long"),
        ("vsock:2:1234", "expected /path or @name"),
        ("relative", "expected /path or @name"),
    ],
)
def test_manager_that_cannot_be_told_is_a_reason_and_no_error(address: str, reason: str) -> None:
    told = notifier({"NOTIFY_SOCKET": address})
    for said in (told.ready(), told.reloading(), told.stopping(), told.status("x")):
        assert said is not None
        assert address in said
        assert reason in said
    told.close()


def test_manager_that_does_not_read_holds_nobody_up(
    manager: Manager, told: Notifier, path: str
) -> None:
    reasons = {told.watchdog() for _ in range(20_000)}
    assert reasons == {None, f"{path}: systemd does not read its notices"}
    assert manager.heard() == ["WATCHDOG=1"]


def test_manager_is_told_when_no_descriptor_is_left(manager: Manager, path: str) -> None:
    """Else a flood of peers would make the watchdog end us."""
    code = """
import resource, socket, sys
from sidecar.adapters.service_manager import notifier
told = notifier({"NOTIFY_SOCKET": sys.argv[1]})
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    socket.socket()
except OSError:
    print(told.watchdog())
"""
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "None\n"
    assert manager.heard() == ["WATCHDOG=1"]


def test_nobody_is_told_where_nobody_asks() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "1000"}):
        told = notifier(environ)
        assert isinstance(told, NoNotifier)
        assert told.watchdog_seconds is None
        said = (told.ready("x"), told.reloading(), told.stopping("x"), told.status("x"))
        assert (*said, told.watchdog()) == (None,) * 5
        told.close()


# The watchdog.


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "1"}, 0.0000005),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "\u0663"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({}, None),
    ],
    ids=[
        "half of the interval",
        "for whoever it reaches",
        "very short",
        "for another process",
        "for no process",
        "off",
        "empty",
        "negative",
        "no number",
        "other digits",
        "absurd",
        "absent",
    ],
)
def test_watchdog_is_told_twice_in_its_time(
    variables: dict[str, str], seconds: float | None, path: str
) -> None:
    environ = {"NOTIFY_SOCKET": path, **variables, "HOME": "/"}
    told = notifier(environ)
    told.close()
    assert told.watchdog_seconds == seconds
    assert environ == {"HOME": "/"}


# Sockets: what is promised.


def descriptors(sockets: list[socket.socket]) -> tuple[int, dict[str, str]]:
    """Put sockets on descriptors in a row, as for us; give the first, and the variables."""
    first = 200
    for at, sock in enumerate(sockets):
        os.dup2(sock.fileno(), first + at, inheritable=True)
    return first, {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": str(os.getpid())}


@pytest.fixture
def handed(closing: ExitStack) -> Callable[..., tuple[int, dict[str, str]]]:
    """Hand sockets over; what is left of them is closed at the end."""

    def hand(*sockets: socket.socket) -> tuple[int, dict[str, str]]:
        for sock in sockets:
            closing.enter_context(sock)
        first, environ = descriptors(list(sockets))
        closing.callback(os.closerange, first, first + len(sockets))
        return first, environ

    return hand


def listening(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    return socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0))


Hand = Callable[..., tuple[int, dict[str, str]]]


def refused(first: int, environ: dict[str, str]) -> str:
    """Give the message and hint of the refusal; the variables are gone all the same."""
    with pytest.raises(ListenError) as caught:
        systemd.sockets(environ, first)
    assert not [name for name in environ if name.startswith("LISTEN_")]
    assert caught.value.hint
    return f"{caught.value.message} / {caught.value.hint}"


def test_sockets_are_taken_in_their_order_and_ready_for_use(
    handed: Hand, folder: Path, closing: ExitStack
) -> None:
    tcp, unix = listening(), socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "socket"))
    unix.listen()
    first, environ = handed(tcp, unix)
    environ |= {"LISTEN_FDNAMES": "peers:admin", "LISTEN_PIDFDID": "12", "HOME": "/"}
    named = systemd.sockets(environ, first)
    assert [name for name, _ in named] == ["peers", "admin"]
    taken = [sock for _, sock in named]
    assert [sock.fileno() for sock in taken] == [first, first + 1]
    assert [sock.family for sock in taken] == [socket.AF_INET, socket.AF_UNIX]
    assert taken[0].getsockname() == tcp.getsockname()
    assert not any(sock.get_inheritable() or sock.getblocking() for sock in taken)
    assert environ == {"HOME": "/"}
    with socket.create_connection(tcp.getsockname(), 20) as peer:
        accepted, address = taken[0].accept()
        accepted.close()
        assert address == peer.getsockname()
    for sock in taken:
        sock.close()


def test_manager_keeps_its_socket_when_we_close_ours(handed: Hand) -> None:
    tcp = listening()
    first, environ = handed(tcp)
    ((_, taken),) = systemd.sockets(environ, first)
    taken.close()
    with socket.create_connection(tcp.getsockname(), 20):
        tcp.setblocking(True)
        tcp.accept()[0].close()


def connected() -> socket.socket:
    with listening() as server:
        return socket.create_connection(server.getsockname())


def paired() -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


def datagram() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (connected, "does not listen"),
        (bound, "does not listen"),
        (socket.socket, "does not listen"),
        (paired, "does not listen"),
        (datagram, "SOCK_DGRAM"),
    ],
    ids=["Accept=yes", "only bound", "not even bound", "pair", "UDP"],
)
def test_socket_that_is_not_for_listening_is_refused_and_none_is_taken(
    handed: Hand, make: Callable[[], socket.socket], reason: str
) -> None:
    good = listening()
    first, environ = handed(good, make())
    said = refused(first, environ)
    assert f"socket {first + 1} from systemd" in said
    assert reason in said
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)  # the good one is not held either


@linux_only
def test_socket_of_another_family_is_refused(handed: Hand) -> None:
    try:
        vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError:
        pytest.skip("this kernel has no second family of streams")
    first, environ = handed(vsock)
    assert "AF_VSOCK" in refused(first, environ)


def test_descriptor_that_is_no_socket_is_refused_and_left_alone(
    handed: Hand, closing: ExitStack
) -> None:
    first, environ = handed(listening())
    end, other = os.pipe()
    closing.callback(os.close, end)
    closing.callback(os.close, other)
    os.dup2(end, first)
    said = refused(first, environ)
    assert "not a socket" in said
    os.fstat(first)


def test_descriptor_that_is_not_open_is_refused(handed: Hand) -> None:
    first, environ = handed(listening())
    os.close(first)
    try:
        assert os.strerror(errno.EBADF) in refused(first, environ)
    finally:
        os.dup2(2, first)  # for the fixture to close


def test_name_of_the_unit_is_in_the_message(handed: Hand) -> None:
    first, environ = handed(bound())
    environ["LISTEN_FDNAMES"] = "sidecar.socket"
    assert "'sidecar.socket'" in refused(first, environ)


ME = str(os.getpid())


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "LISTEN_FDS is not set"),
        ({"LISTEN_PID": ME}, "LISTEN_FDS is not set"),
        ({"LISTEN_FDS": "1"}, "are for process None"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, "are for process '1'"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": f" {ME}"}, "are for process"),
        ({"LISTEN_FDS": "0", "LISTEN_PID": ME}, "LISTEN_FDS is '0'"),
        ({"LISTEN_FDS": "", "LISTEN_PID": ME}, "LISTEN_FDS is ''"),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": ME}, "LISTEN_FDS is '-1'"),
        ({"LISTEN_FDS": "one", "LISTEN_PID": ME}, "LISTEN_FDS is 'one'"),
        ({"LISTEN_FDS": "99999999999", "LISTEN_PID": ME}, "LISTEN_FDS is '99999999999'"),
        ({"LISTEN_FDS": "2", "LISTEN_PID": ME, "LISTEN_FDNAMES": "one"}, "expected 2 names"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": ME, "LISTEN_FDNAMES": ""}, "socket 200"),
    ],
    ids=[
        "not started by a socket",
        "count is missing",
        "process is missing",
        "for another process",
        "number with a space",
        "none",
        "empty",
        "negative",
        "no number",
        "absurd",
        "names do not fit",
        "one empty name",
    ],
)
def test_promise_that_is_not_for_us_or_makes_no_sense_is_refused(
    environ: dict[str, str], reason: str
) -> None:
    assert reason in refused(200, dict(environ))


@pytest.mark.parametrize("kind", ["", "upstart", "Systemd", "launchd"])
def test_other_managers_are_refused(kind: str) -> None:
    with pytest.raises(ListenError, match="no sockets come from") as caught:
        inherited([kind], {})
    assert "launchd:NAME" in (caught.value.hint or "")


# Sockets by their names.


Names = Callable[..., dict[str, list[socket.socket]]]


@pytest.fixture
def by_name(handed: Hand, monkeypatch: pytest.MonkeyPatch, closing: ExitStack) -> Names:
    """Hand over a socket for each name, and take what is of each kind."""

    def take(names: str, *kinds: str) -> dict[str, list[socket.socket]]:
        first, environ = handed(*[listening() for _ in names.split(":")])
        monkeypatch.setattr(systemd.sockets, "__defaults__", (first,))
        found = inherited(kinds, {**environ, "LISTEN_FDNAMES": names})
        for sockets in found.values():
            for sock in sockets:
                closing.enter_context(sock)
        return found

    return take


@pytest.mark.parametrize(
    ("names", "kinds", "counts"),
    [
        ("unnamed", ["systemd"], {"systemd": 1}),
        ("a.socket:b", ["systemd"], {"systemd": 2}),
        ("peers:admin:peers", ["systemd", "systemd:admin"], {"systemd": 2, "systemd:admin": 1}),
        (
            "p:a:h",
            ["systemd:p", "systemd:a", "systemd:h"],
            dict.fromkeys(["systemd:p", "systemd:a", "systemd:h"], 1),
        ),
    ],
    ids=["without a name", "all", "the rest", "each"],
)
def test_sockets_go_to_who_names_them(
    by_name: Names, names: str, kinds: list[str], counts: dict[str, int]
) -> None:
    found = by_name(names, *kinds)
    assert {kind: len(sockets) for kind, sockets in found.items()} == counts
    assert not any(sock.getblocking() for sockets in found.values() for sock in sockets)


@pytest.mark.parametrize(
    ("names", "kinds", "said"),
    [
        ("peers:other", ["systemd:peers"], "socket 'other' from systemd is in no table"),
        ("admin", ["systemd", "systemd:admin"], "no socket for 'systemd'"),
        (
            "peers",
            ["systemd:peers", "systemd:admin"],
            "no socket for 'systemd:admin': systemd gives peers",
        ),
    ],
    ids=["one too many", "none left", "no such name"],
)
def test_sockets_that_do_not_fit_the_tables_are_refused(
    by_name: Names, names: str, kinds: list[str], said: str
) -> None:
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(ListenError) as caught:
        by_name(names, *kinds)
    assert said in caught.value.message
    assert caught.value.hint
    assert len(os.listdir("/dev/fd")) == before + len(names.split(":"))  # those of the manager


# Nobody else gets them: a program that we start.


def start_with_socket(sock: socket.socket, *argv: str, **environ: str) -> subprocess.Popen[str]:
    """Start a program as systemd does: the socket on descriptor 3, for this process."""
    script = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", sys.executable, *argv],
        stdin=sock.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def test_programs_that_we_start_inherit_neither_variables_nor_descriptors(path: str) -> None:
    code = """
import json, os, subprocess, sys
from sidecar.adapters.service_manager import inherited, notifier
notifier()
(sock,) = inherited(["systemd"])["systemd"]
look = "import json, os; print(json.dumps([dict(os.environ), os.path.exists('/dev/fd/3')]))"
done = subprocess.run([sys.executable, "-c", look], close_fds=False, stdout=subprocess.PIPE)
print(done.stdout.decode())
"""
    with listening() as sock:
        process = start_with_socket(
            sock,
            "-c",
            code,
            NOTIFY_SOCKET=path,
            WATCHDOG_USEC="1000000",
            WATCHDOG_PID="1",
            LISTEN_FDNAMES="peers",
        )
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    environ, is_open = json.loads(output)
    ours = ("LISTEN_", "NOTIFY_", "WATCHDOG_")
    assert not [name for name in environ if name.startswith(ours)]
    assert not is_open


# Restarts.


class Load:
    """Peers that connect without pause; each asks who is there."""

    def __init__(self, address: tuple[str, int], peers: int) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._ended = False
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(peers)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, pid: int) -> bool:
        """Wait until somebody was answered by the process, or anything failed."""
        with self._changed:
            self._changed.wait_for(lambda: self.answers[pid] or self.failures, 60)
            return bool(self.answers[pid]) and not self.failures

    def stop(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._ended:
            try:
                pid = self._ask()
            except (OSError, ValueError) as exc:
                with self._changed:
                    self.failures.append(repr(exc))
                    self._changed.notify_all()
                return
            with self._changed:
                self.answers[pid] += 1
                self._changed.notify_all()

    def _ask(self) -> int:
        with socket.create_connection(self._address, 60) as sock:
            sock.sendall(b"hello")
            said = b""
            while data := sock.recv(100):
                said += data
        pid, echo = said.split(b" ")
        if echo != b"hello":
            raise ValueError(said)
        return int(pid)


@pytest.fixture
def held(closing: ExitStack) -> socket.socket:
    """The socket that the manager holds."""
    return closing.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))


@pytest.fixture
def load(held: socket.socket) -> Iterator[Load]:
    load = Load(held.getsockname(), peers=4)
    yield load
    load.stop()


def test_a_hundred_restarts_under_load_lose_no_connection(held: socket.socket, load: Load) -> None:
    pids = []
    for _ in range(100):
        process = start_with_socket(held, "-m", "tests.adapters.activated_echo")
        try:
            answered = load.wait_for(process.pid)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, errors) == (0, "")
        assert answered, load.failures
        pids.append(process.pid)
    # The peers that wait for an answer now get it from one that stays until they are gone.
    last = start_with_socket(held, "-m", "tests.adapters.activated_echo")
    try:
        load.stop()
    finally:
        last.kill()
        last.communicate()
    assert load.failures == []
    assert set(load.answers) - {last.pid} == set(pids)


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd is not installed"
)
def test_sockets_of_systemd_itself_are_taken(folder: Path) -> None:
    path = str(folder / "socket")
    process = subprocess.Popen(
        [
            "systemd-socket-activate",
            f"--listen={path}",
            "--fdname=peers",
            *(sys.executable, "-m", "tests.adapters.activated_echo"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "Listening on" not in (line := process.stderr.readline()):
            assert line, "it has ended"
        for _ in range(2):  # for the first one it becomes the program
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(60)
                peer.connect(path)
                peer.sendall(b"hello")
                assert peer.recv(100) == b"%d hello" % process.pid
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
