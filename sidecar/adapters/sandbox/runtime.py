"""The paths that a Python process on Linux needs after its start, whatever it does.

Modules are imported late, tracebacks show source, the C library looks up names of users.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from sidecar.adapters.sandbox.landlock import Allowed

_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    # As they are now: when one is replaced (an account is added), the new one is out of reach.
    # Whoever looks up names later on needs the folder.
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/etc/ssl/openssl.cnf",
    # Of other processes the kernel shows neither memory nor environment to a sandbox (except to
    # root); their names are what a signal by a pid file looks at.
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/random",
    "/dev/urandom",
)
_OF_PACKAGES = ("site-packages", "dist-packages")
_DISCARD = "/dev/null"


def python_needs() -> Allowed:
    """Give the paths of Python, of loaded packages and of the system; only those that exist.

    Not what is on `sys.path`: it may begin with the working directory, which may be the root.
    """
    folders = [sysconfig.get_path(name) for name in _LIBRARIES]
    read = {Path(one) for one in (*folders, sys.prefix, sys.base_prefix, *_SYSTEM)}
    read |= _loaded_packages()
    # /usr is public, and so is what a distribution's Python has below it.
    real = {Path(os.path.realpath(path)) for path in read if os.path.exists(path)} - {Path("/")}
    outermost = sorted(path for path in real if not real.intersection(path.parents))
    return Allowed(read=tuple(outermost), write=(Path(_DISCARD),))


def _loaded_packages() -> set[Path]:
    """Return where loaded packages are: `pip install --user` puts them outside of the libraries.

    The whole folder where it is one of packages: what is loaded may import another one later.
    """
    packages = [one for name, one in list(sys.modules.items()) if "." not in name]
    files = [one.__file__ for one in packages if hasattr(one, "__path__")]
    folders = {Path(file).resolve().parent for file in files if file}
    return {one.parent if one.parent.name in _OF_PACKAGES else one for one in folders}
