"""The sandbox: what was not allowed is refused by the kernel, and what is missing is told.

Each test has a process of its own, because there is no way out of a sandbox.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.adapters.sandbox import Allowed, confine, python_needs
from sidecar.adapters.sandbox.kernel import LinuxKernel, OtherKernel, kernel_of_this_system
from tests.adapters.confined import outcomes, run
from tests.fake_agent import AgentProcess


def landlock_of_this_kernel() -> int:
    """Give the version, 0 if there is none."""
    kernel = kernel_of_this_system()
    try:
        return 0 if isinstance(kernel, OtherKernel) else kernel.landlock_abi()
    except OSError:
        return 0


ABI = landlock_of_this_kernel()


def needs_landlock(abi: int) -> pytest.MarkDecorator:
    found = f"ABI {ABI}" if ABI else "none"
    return pytest.mark.skipif(abi > ABI, reason=f"needs Landlock ABI {abi}, here is {found}")


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="what Linux has beside Landlock")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Tree:
    """Three folders that look the same: one to read, one to write, one that is not allowed."""

    def __init__(self, root: Path) -> None:
        self.readable, self.writable, self.other = (
            root / name for name in ("readable", "writable", "other")
        )
        for folder in (self.readable, self.writable, self.other):
            (folder / "deep" / "er").mkdir(parents=True)
            (folder / "file").write_text("text")
            (folder / "deep" / "file").write_text("text")
            (folder / "file").chmod(0o755)  # whether it can be run is for the sandbox to say
            (folder / "way").symlink_to(self.other / "file")

    def plan(self, **more: Any) -> dict[str, Any]:
        paths = {"read": [str(self.readable)], "write": [str(self.writable)]}
        return {"allowed": paths, **more}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# Files.


@needs_landlock(3)
def test_folder_to_read_can_be_read_and_not_changed(tree: Tree) -> None:
    at = str(tree.readable)
    assert outcomes(
        tree.plan(),
        ["read", f"{at}/file"],
        ["read", f"{at}/deep/file"],
        ["list", f"{at}/deep"],
    ) == ["ok", "ok", "ok"]
    refused = outcomes(
        tree.plan(),
        ["write", f"{at}/file"],
        ["truncate", f"{at}/file"],
        ["create", f"{at}/new"],
        ["remove", f"{at}/file"],
        ["rename", f"{at}/file", f"{at}/new"],
        ["rename", f"{at}/file", f"{tree.writable}/new"],
        ["rename", f"{tree.writable}/file", f"{at}/new"],
        ["mkdir", f"{at}/new"],
        ["rmdir", f"{at}/deep/er"],
        ["symlink", "file", f"{at}/new"],
        ["bind unix", f"{at}/new"],
        ["run", f"{at}/file"],
    )
    assert set(refused) <= {"EACCES", "EXDEV"}
    assert refused.count("EXDEV") <= 2  # a rename between folders
    assert (tree.readable / "file").read_text() == "text"


@needs_landlock(3)
def test_folder_to_write_can_be_changed_in_every_way_but_devices_and_pipes(tree: Tree) -> None:
    at = str(tree.writable)
    assert (
        outcomes(
            tree.plan(),
            ["read", f"{at}/deep/file"],
            ["list", at],
            ["write", f"{at}/file"],
            ["create", f"{at}/deep/new"],
            ["truncate", f"{at}/deep/new"],
            ["rename", f"{at}/deep/new", f"{at}/deep/newer"],
            ["rename", f"{at}/deep/newer", f"{at}/moved"],
            ["remove", f"{at}/moved"],
            ["mkdir", f"{at}/folder"],
            ["create", f"{at}/folder/file"],
            ["rmdir", f"{at}/deep/er"],
            ["symlink", "file", f"{at}/link"],
            ["read", f"{at}/link"],
            ["bind unix", f"{at}/socket"],
            ["mkfifo", f"{at}/pipe"],
            ["run", f"{at}/file"],
        )
        == ["ok"] * 14 + ["EACCES"] * 2
    )


@needs_landlock(3)
def test_nothing_else_can_be_read_or_changed(tree: Tree) -> None:
    at = str(tree.other)
    refused = outcomes(
        tree.plan(),
        ["read", f"{at}/file"],
        ["read", f"{tree.readable}/way"],  # the link may be read, and leads here
        ["read", f"{tree.writable}/way"],
        ["read", f"{tree.readable}/../other/file"],
        ["list", at],
        ["write", f"{at}/file"],
        ["write", f"{tree.writable}/way"],
        ["truncate", f"{at}/file"],
        ["create", f"{at}/new"],
        ["remove", f"{at}/file"],
        ["mkdir", f"{at}/new"],
        ["list", "/"],
        ["list", str(tree.other.parent)],
    )
    assert refused == ["EACCES"] * 13
    assert (tree.other / "file").read_text() == "text"


@needs_landlock(1)
def test_names_and_times_are_not_secret(tree: Tree) -> None:
    """Landlock leaves them alone, so a hook can touch a file that it may not write."""
    at = str(tree.other / "file")
    assert outcomes(tree.plan(), ["stat", at], ["utime", at]) == ["ok", "ok"]


@needs_landlock(1)
def test_file_can_be_allowed_without_its_neighbours(tree: Tree) -> None:
    plan = {
        "allowed": {
            "read": [str(tree.other / "file")],
            "write": [str(tree.writable / "file")],
            "execute": [str(tree.other / "deep" / "file")],
        }
    }
    assert outcomes(
        plan,
        ["read", f"{tree.other}/file"],
        ["write", f"{tree.other}/file"],
        ["write", f"{tree.writable}/file"],
        ["read", f"{tree.other}/deep/file"],
        ["list", str(tree.other)],
    ) == ["ok", "EACCES", "ok", "ok", "EACCES"]


@needs_landlock(1)
def test_file_that_others_replace_stays_allowed_by_its_folder_only(tree: Tree) -> None:
    file = str(tree.readable / "file")
    steps = (
        ["read", file],
        ["neighbour runs", f"mv {tree.other / 'file'} {file}"],
        ["read", file],
    )
    assert outcomes({"allowed": {"read": [file]}}, *steps) == ["ok", "status 0", "EACCES"]
    (tree.other / "file").write_text("again")
    folder = {"allowed": {"read": [str(tree.readable)]}}
    assert outcomes(folder, *steps) == ["ok", "status 0", "ok"]


@needs_landlock(1)
def test_path_that_is_not_there_is_told_and_the_others_hold(tree: Tree) -> None:
    missing = str(tree.other / "later")
    plan = tree.plan()
    plan["allowed"]["write"].append(missing)
    done = run(
        plan,
        ["read", f"{tree.readable}/file"],
        ["read", f"{tree.other}/file"],
        ["mkdir", missing],
    )
    assert done["outcomes"] == ["ok", "EACCES", "EACCES"]
    assert done["absent"] == [f"{missing}: No such file or directory"]
    assert "other files" in done["forbidden"]


# TCP ports.


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two ports on which somebody listens."""
    with ExitStack() as stack:
        both = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        one, other = (int(sock.getsockname()[1]) for sock in both)
        yield one, other


@needs_landlock(4)
def test_only_ports_that_are_allowed_can_be_connected_to(ports: tuple[int, int]) -> None:
    one, other = map(str, ports)
    done = run(
        {"allowed": {"connect": [ports[0]]}},
        ["connect", "127.0.0.1", one],
        ["connect", "127.0.0.1", other],
        ["listen", "0"],
    )
    assert done["outcomes"] == ["ok", "EACCES", "ok"]
    assert "other TCP ports to connect to" in done["forbidden"]
    assert "other TCP ports to listen on" not in done["forbidden"]


@needs_landlock(4)
def test_only_ports_that_are_allowed_can_be_listened_on(ports: tuple[int, int]) -> None:
    one, other = map(str, ports)
    done = run(
        {"allowed": {"listen": [0, ports[0]]}},
        ["listen", "0"],
        ["listen", one],  # allowed, and in use
        ["listen", other],
        ["connect", "127.0.0.1", other],
    )
    assert done["outcomes"] == ["ok", "EADDRINUSE", "EACCES", "ok"]
    assert "other TCP ports to listen on" in done["forbidden"]
    assert "other TCP ports to connect to" not in done["forbidden"]


@needs_landlock(4)
def test_no_port_at_all_can_be_allowed(ports: tuple[int, int]) -> None:
    plan: dict[str, Any] = {"allowed": {"listen": [], "connect": []}}
    steps = (["listen", "0"], ["connect", "127.0.0.1", str(ports[0])])
    assert outcomes(plan, *steps) == ["EACCES", "EACCES"]


@needs_landlock(1)
def test_unix_socket_can_be_connected_to_wherever_it_is(folder: Path) -> None:
    """Of the agent, the model server, systemd: also one that is made anew after our start."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        server.listen()
        plan: dict[str, Any] = {"allowed": {}}
        steps = (["connect unix", str(folder / "socket")], ["list", str(folder)])
        assert outcomes(plan, *steps) == ["ok", "EACCES"]


# Threads.


@needs_landlock(1)
def test_threads_of_before_are_told_if_the_kernel_cannot_take_them_in(tree: Tree) -> None:
    """What is told is what is."""
    step = ["read", str(tree.other / "file")]
    done = run(
        tree.plan(thread=True), step, ["in new thread", *step], ["in thread of before", *step]
    )
    assert done["outcomes"][:2] == ["EACCES", "EACCES"]
    told = "all but core dumps in 1 threads that ran before" in str(done["missing"])
    if done["landlock_abi"] < 8:
        assert done["outcomes"][2] == "ok"
        assert told
    else:
        assert done["outcomes"][2] == "EACCES"
        assert not told


@linux_only
def test_threads_of_before_may_have_new_privileges_where_there_is_no_landlock(tree: Tree) -> None:
    done = run(tree.plan(thread=True, kernel=-errno.ENOSYS))
    assert done["forbidden"] == ["core dumps", "new privileges"]
    told = "all but core dumps in 1 threads that ran before: needs Landlock ABI 8, in force is none"
    assert told in done["missing"]
    plan = tree.plan(thread=True, kernel=-errno.ENOSYS, no_new_privileges=False)
    assert "threads" not in str(run(plan)["missing"])  # there is nothing that could hold for them


@needs_landlock(1)
def test_without_other_threads_nothing_is_told_of_them(tree: Tree) -> None:
    assert "threads" not in str(run(tree.plan())["missing"])


class RecordingKernel(LinuxKernel):
    """A kernel that takes all and does nothing."""

    def __init__(self, abi: int, threads: int) -> None:
        super().__init__()
        self._abi, self._threads = abi, threads
        self.flags: list[int] = []
        self.rulesets: list[tuple[int, int]] = []

    def forbid_core_dumps(self) -> None:
        pass

    def forbid_new_privileges(self) -> None:
        pass

    def threads(self) -> int:
        return self._threads

    def landlock_abi(self) -> int:
        return self._abi

    def create_ruleset(self, files: int, ports: int) -> int:
        self.rulesets.append((files, ports))
        return os.open(os.devnull, os.O_RDONLY)

    def allow_port(self, ruleset: int, port: int, rights: int) -> None:
        pass

    def restrict_self(self, ruleset: int, flags: int) -> None:
        self.flags.append(flags)


@pytest.mark.parametrize("abi", [8, 9, 12])
def test_newer_kernel_takes_in_all_threads(abi: int) -> None:
    kernel = RecordingKernel(abi, threads=3)
    done = confine(Allowed(), kernel=kernel)
    assert kernel.flags == [1 << 3]  # LANDLOCK_RESTRICT_SELF_TSYNC
    assert done.missing == ()
    assert "all but core dumps in 2 threads that ran before" in done.forbidden


@pytest.mark.parametrize(
    ("abi", "files", "ports"),
    [
        (1, 0x1FFF, 0),
        (2, 0x3FFF, 0),
        (3, 0x7FFF, 0),
        (4, 0x7FFF, 3),
        (5, 0xFFFF, 3),
        (7, 0xFFFF, 3),
        (9, 0xFFFF, 3),  # connecting to Unix sockets is left alone
    ],
)
def test_kernel_is_asked_for_all_that_its_landlock_knows_and_for_no_more(
    abi: int, files: int, ports: int
) -> None:
    kernel = RecordingKernel(abi, threads=1)
    confine(Allowed(listen=(6701,), connect=(11434,)), kernel=kernel)
    assert kernel.rulesets == [(files, ports)]
    assert kernel.flags == [1 << 3 if abi >= 8 else 0]


# Older kernels, for real: with the rights that they know.


@needs_landlock(2)
def test_kernel_without_ports_and_truncation_says_so(tree: Tree, ports: tuple[int, int]) -> None:
    plan = tree.plan(kernel=2)
    plan["allowed"] |= {"listen": [0], "connect": []}
    done = run(
        plan,
        ["read", f"{tree.other}/file"],
        ["truncate", f"{tree.other}/file"],
        ["connect", "127.0.0.1", str(ports[0])],
    )
    assert done["outcomes"] == ["EACCES", "ok", "ok"]
    assert done["forbidden"] == ["core dumps", "new privileges", "other files"]
    assert done["missing"] == [
        "truncating other files: needs Landlock ABI 3, in force is 2",
        "other TCP ports to listen on: needs Landlock ABI 4, in force is 2",
        "other TCP ports to connect to: needs Landlock ABI 4, in force is 2",
    ]


@needs_landlock(1)
@pytest.mark.parametrize("abi", range(1, 8))
def test_certificate_files_are_published_in_every_age(tree: Tree, abi: int) -> None:
    if abi > ABI:
        pytest.skip(f"needs Landlock ABI {abi}, here is ABI {ABI}")
    done = run(
        tree.plan(kernel=abi, daemon=True),
        ["publish", str(tree.writable)],
        ["list", str(tree.other)],
    )
    assert done["outcomes"] == ["generation-2", "EACCES"]
    assert done["landlock_abi"] == abi


@linux_only
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.ENOSYS, "the kernel has no Landlock"),
        (errno.EOPNOTSUPP, "left out when the kernel was started"),
        (errno.EPERM, "seccomp"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
    ids=["too old", "disabled", "container", "whatever else"],
)
def test_kernel_without_landlock_says_why_and_the_rest_holds(
    tree: Tree, error: int, reason: str
) -> None:
    done = run(tree.plan(kernel=-error), ["read", f"{tree.other}/file"], ["no new privileges"])
    assert done["outcomes"] == ["ok", "1"]
    assert done["forbidden"] == ["core dumps", "new privileges"]
    assert len(done["missing"]) == 1
    assert reason in done["missing"][0]
    assert done["landlock_abi"] == 0


def test_another_system_has_the_limit_for_core_dumps_alone(tree: Tree) -> None:
    done = run(tree.plan(kernel="other"), ["read", f"{tree.other}/file"], ["core limit"])
    assert done["outcomes"] == ["ok", "(0, 0)"]
    assert done["forbidden"] == ["core dumps"]
    assert len(done["missing"]) == 1
    assert sys.platform in done["missing"][0]


def test_sandbox_that_is_switched_off_forbids_core_dumps_alone(tree: Tree) -> None:
    done = run({"allowed": None}, ["read", f"{tree.other}/file"], ["core limit"])
    assert done["outcomes"] == ["ok", "(0, 0)"]
    assert done["forbidden"] == ["core dumps"]
    assert "switched off" in done["missing"][0]


# Core dumps.


@pytest.mark.parametrize("kernel", ["this", "other"])
def test_process_that_crashes_leaves_no_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = {"core limit": [hard, hard]}
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)  # where a core would be
    if outcomes({"free": True, **limit}, ["crash"]) != ["dumped"]:
        pytest.skip("this system writes no core dumps to begin with")
    pattern = Path("/proc/sys/kernel/core_pattern")
    if kernel == "other" and pattern.exists() and pattern.read_text().startswith("|"):
        pytest.skip("a program takes the core dumps of this system, whatever the limit is")
    done = run({"allowed": None, "kernel": kernel, **limit}, ["crash"])
    assert done["outcomes"] == ["signal 6"]


@linux_only
def test_nobody_of_our_own_user_can_look_into_our_memory() -> None:
    steps = (["dumpable"], ["read", "/proc/self/stat"], ["list", "/proc/self/fd"])
    assert outcomes({"free": True}, *steps) == ["1", "ok", "ok"]
    # What a process reads of itself for its metrics stays.
    assert outcomes({"allowed": None}, *steps) == ["0", "ok", "ok"]


# New privileges.


@linux_only
@pytest.mark.parametrize(("wanted", "found"), [(True, "1"), (False, "0")])
def test_new_privileges_are_given_up_unless_they_are_wanted(wanted: bool, found: str) -> None:
    done = run({"allowed": {}, "no_new_privileges": wanted}, ["no new privileges"])
    if outcomes({"free": True}, ["no new privileges"]) == ["1"]:
        pytest.skip("whoever started us has given them up already")
    assert done["outcomes"] == [found]
    assert ("new privileges" in done["forbidden"]) == wanted


@needs_landlock(1)
@as_root
def test_root_can_keep_new_privileges_and_have_landlock(tree: Tree) -> None:
    done = run(
        tree.plan(no_new_privileges=False),
        ["read", f"{tree.other}/file"],
        ["no new privileges"],
    )
    assert done["outcomes"] == ["EACCES", "0"]
    assert done["forbidden"][:2] == ["core dumps", "other files"]


@needs_landlock(1)
@as_root
def test_user_who_keeps_new_privileges_has_no_landlock_and_is_told(tmp_path: Path) -> None:
    done = run({"allowed": {}, "no_new_privileges": False, "uid": 65534}, ["list", "/"])
    if outcomes({"free": True}, ["no new privileges"]) == ["1"]:
        pytest.skip("whoever started us has given them up already")
    assert done["outcomes"] == ["ok"]
    assert done["forbidden"] == ["core dumps"]
    assert "CAP_SYS_ADMIN" in str(done["missing"])


@needs_landlock(1)
@as_root
def test_user_without_any_privilege_has_landlock() -> None:
    done = run({"allowed": {}, "uid": 65534}, ["list", "/"], ["list", "/proc/self/fd"])
    assert done["outcomes"] == ["EACCES", "ok"]
    assert done["forbidden"][:3] == ["core dumps", "new privileges", "other files"]


# Commands, as hooks run them.


@needs_landlock(1)
def test_command_runs_where_that_is_allowed_and_is_in_the_sandbox_too(tree: Tree) -> None:
    steps = [
        ["run", "/bin/cat", f"{tree.readable}/file"],
        ["run", "/bin/cat", f"{tree.other}/file"],
    ]
    assert outcomes(tree.plan(), *steps) == ["EACCES", "EACCES"]
    plan = tree.plan()
    plan["allowed"]["execute"] = ["/bin", "/usr", "/lib", "/lib64"]
    assert outcomes(plan, *steps) == ["status 0", "status 1"]


# What a daemon needs besides.


@needs_landlock(1)
def test_python_works_with_what_it_needs(tree: Tree) -> None:
    done = run(
        {"allowed": {}, "daemon": True},
        ["import", "wave"],
        ["import", "cProfile"],  # with a part in C
        ["traceback"],
        ["user"],
        ["random"],
        ["threads"],
        ["write", "/dev/null"],
    )
    assert done["outcomes"] == ["ok", "ok", "source", "root", "8", "ran", "ok"]
    assert done["missing"] == done["absent"] == []


@pytest.mark.parametrize("folder", ["checkout", "site-packages"])
def test_packages_outside_of_the_libraries_can_go_on_loading(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a package imports only later, where they lie in a folder of packages."""
    package = tmp_path / folder / "installed_for_one_user"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    importlib.import_module(package.name)
    try:
        read = python_needs().read
        assert (package.resolve() in read) is (folder == "checkout")
        assert (package.parent.resolve() in read) is (folder == "site-packages")
    finally:
        del sys.modules[package.name]


@needs_landlock(1)
def test_what_python_needs_is_not_the_whole_system(tree: Tree) -> None:
    private = [str(Path.home()), "/", "/root", "/home", "/var", "/tmp", str(tree.other)]
    wanted = [["list", path] for path in private if os.path.exists(path)]
    assert set(outcomes({"allowed": {}}, *wanted)) == {"EACCES"}
    assert not {Path("/"), Path.cwd(), Path.home()} & set(python_needs().read)
    assert python_needs().execute == ()
    assert python_needs().write == (Path("/dev/null"),)


@needs_landlock(1)
def test_environment_of_other_processes_cannot_be_read() -> None:
    """Their names can, which a signal by a pid file needs."""
    plan: dict[str, Any] = {"allowed": {}}
    if os.geteuid() == 0:
        plan["uid"] = 65534  # root may look everywhere (CAP_PERFMON)
    steps = (["read of neighbour", "environ"], ["read of neighbour", "stat"])
    assert outcomes({**plan, "free": True}, *steps) == ["ok", "ok"]
    refused, allowed = outcomes(plan, *steps)
    assert refused in ("EACCES", "EPERM")
    assert allowed == "ok"


@needs_landlock(1)
def test_daemon_does_its_work_in_the_sandbox(tree: Tree, agent: AgentProcess, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(20)
        plan = tree.plan(daemon=True)
        plan["allowed"] |= {"listen": [0], "connect": []}
        done = run(
            plan,
            ["publish", str(tree.writable)],
            ["watch", str(tree.writable / "file")],
            ["connect agent", str(agent.path)],
            ["notify", str(folder / "notify")],
            ["listen", "0"],
        )
        assert done["outcomes"] == ["generation-2", "replaced", "ok", "ok", "ok"]
        assert systemd.recv(4096) == b"READY=1"
