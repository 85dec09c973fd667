"""The first process of a machine: takes a root of its own, and then is its service manager.

`unshare` started it in new namespaces for mounts, processes and network. Its root is an overlay of
the outer one, so every program and package of this machine is there, and nothing that is written
gets out. Ends when whoever started it ends, and everything in it too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.runbook.mac import play_a_mac
from tests.runbook.manager import Manager

# Whoever runs the commands of the page; it has sudo.
PERSON = 7000
# The exit status where there can be no such machine.
NOT_ALLOWED = 77
_ACCOUNTS = {"root": 0, "person": PERSON, "nobody": 65534}
# What somebody who tests here may have installed here.
_INSTALLED = (
    "/opt/spire",
    "/opt/spiffe-sidecar",
    "/etc/spiffe-sidecar",
    "/etc/systemd/system",
    "/etc/traefik",
    "/var/lib/spiffe-sidecar",
    "/var/db/spiffe-sidecar",
    "/Library",
)
# Others write there all the time, which an overlay does not bear.
_OF_ITS_OWN = ("/tmp", "/var/tmp")


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _overlay(lower: str, name: str, layers: Path, target: Path) -> None:
    for kind in ("upper", "work"):
        (layers / kind / name).mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={layers}/upper/{name},workdir={layers}/work/{name}"
    _mount("-t", "overlay", "overlay", "-o", options, target)


def take_root(folder: Path, needed: list[str]) -> None:
    """Make the root in `folder` and enter it; `needed` are paths that have to be in it."""
    layers, root = folder / "layers", folder / "root"
    for path in (layers, root):
        path.mkdir()
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", layers)
    points = sorted({_part_of(path) for path in needed} - {"/"})
    _overlay("/", "root", layers, root)
    for own in _OF_ITS_OWN:
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}{own}")
    for number, point in enumerate(points):
        Path(f"{root}{point}").mkdir(parents=True, exist_ok=True)
        _overlay(point, str(number), layers, Path(f"{root}{point}"))
    _mount("-t", "proc", "proc", root / "proc")
    _mount("--rbind", "/dev", root / "dev")
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", root / "run")
    os.chroot(root)
    os.chdir("/")


def _part_of(path: str) -> str:
    """What has to be laid over by itself for this path: an overlay has nothing of other mounts."""
    if path.startswith(tuple(f"{one}/" for one in _OF_ITS_OWN)):
        return path
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def furnish(needed: list[str], etc: dict[str, str]) -> None:
    """Forget what is installed here, and make the accounts and the files of /etc."""
    for path in _INSTALLED:
        shutil.rmtree(path, ignore_errors=True)
    for path in ("/etc/systemd/system", "/run/systemd/system", "/run/lock", "/home/person"):
        os.makedirs(path, exist_ok=True)
    os.chown("/home/person", PERSON, PERSON)
    passwd = [f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh" for name, uid in _ACCOUNTS.items()]
    files = {
        "passwd": passwd,
        "group": [f"{name}:x:{uid}:" for name, uid in _ACCOUNTS.items()],
        "shadow": [f"{name}:*:19000:0:99999:7:::" for name in _ACCOUNTS],
        "gshadow": [f"{name}:*::" for name in _ACCOUNTS],
        "hosts": ["127.0.0.1 localhost", "::1 localhost"],
        **{name: text.splitlines() for name, text in etc.items()},
    }
    for name, lines in files.items():
        Path("/etc", name).write_text("".join(f"{line}\n" for line in lines))
    # The checkout and Python may be below a home that nobody else enters.
    for way in map(Path, needed):
        way.chmod(way.stat().st_mode | 0o055)
        for parent in way.parents:
            parent.chmod(parent.stat().st_mode | 0o011)


def main() -> None:
    order = json.loads(sys.argv[1])
    # Still of the proc outside: how those outside call us.
    pid = os.readlink("/proc/self")
    try:
        take_root(Path(order["folder"]), order["needed"])
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    except subprocess.CalledProcessError as exc:
        print(exc, file=sys.stderr)
        sys.exit(NOT_ALLOWED)
    furnish(order["needed"], order["etc"])
    if order["is_mac"]:
        play_a_mac()
    manager = Manager()
    print(pid, flush=True)
    manager.serve()


if __name__ == "__main__":
    main()
