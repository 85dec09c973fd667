"""`cmd`, `renew_signal` and `pid_file_name` of spiffe-helper -> `[[after_rotation]]` tables.

Gets a `HelperConf`, gives lines of TOML and adds `Note`s. spiffe-helper starts `cmd` after its
first update, and after each later one signals it while it runs, or starts it anew. The sidecar
supervises no processes: here `cmd` is run to its end each time, and a program that keeps running
belongs to the service manager.
"""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.core.helper_conf import HelperConf, Note, tell_relative
from sidecar.core.toml_text import keys, off

Lines = list[str]


def after_rotation(conf: HelperConf, notes: list[Note]) -> Iterator[Lines]:
    """Give the hooks; as comments where spiffe-helper would never have come to them."""
    if not conf.daemon_mode or not (conf.cmd or conf.pid_file_name):
        return
    tables: list[Lines] = []
    if conf.cmd:
        command = _command(conf, conf.cmd, notes)
        tables.append(off(command) if _keeps_running(conf) else command)
    if conf.pid_file_name:
        tell_relative("pid_file_name", conf.pid_file_name, notes)
        tables.append(_signal(conf, conf.pid_file_name))
    if conf.cmd and conf.pid_file_name:
        text = "spiffe-helper signals after it has run cmd; here both are done at the same time"
        notes.append(Note("pid_file_name", text))
    if conf.svid_file_name is None:
        key = "cmd" if conf.cmd else "pid_file_name"
        text = (
            "written as a comment: spiffe-helper does it after X.509 files, has none here, and so "
            'never did it; on = ["jwt"] does it after JWT files'
        )
        notes.append(Note(key, text))
        tables = [off([*table, *keys(on=["jwt"])]) for table in tables]
    yield from tables
    if conf.cmd and _keeps_running(conf):
        yield [
            "# cmd keeps running, or there would be nothing to signal: let the service manager",
            "# start it, and this signal it by the pid file that it writes. Only if it ends by",
            "# itself the command above is right instead.",
            *off(_signal(conf, f"/run/{conf.cmd.rpartition('/')[2]}.pid")),
        ]


def _keeps_running(conf: HelperConf) -> bool:
    """Tell whether cmd is a program that is signalled, and not one that does something once."""
    return bool(conf.renew_signal) and not conf.pid_file_name


def _command(conf: HelperConf, cmd: str, notes: list[Note]) -> Lines:
    if "/" in cmd:  # else it is looked for in PATH
        tell_relative("cmd", cmd, notes)
    if _keeps_running(conf):
        text = (
            f"written as a comment: spiffe-helper starts it and then sends {conf.renew_signal} to "
            "it. Let the service manager (systemd, launchd) start such a program, and the sidecar "
            "signal it by its pid file"
        )
    else:
        text = (
            "run after each rotation in the folder of the configuration file, again if it fails, "
            "and ended when it takes longer than timeout_seconds; spiffe-helper leaves a program "
            "that keeps running alone"
        )
    notes.append(Note("cmd", text))
    arguments = conf.cmd_args.argv if conf.cmd_args else ()
    return [
        "[[after_rotation]]",
        *keys(name="cmd", command=[cmd, *arguments]),
        "# After this it is ended; spiffe-helper would let it run.",
        "timeout_seconds = 30",
    ]


def _signal(conf: HelperConf, pid_file: str) -> Lines:
    return [
        "[[after_rotation]]",
        *keys(name="renew_signal", pid_file=pid_file, signal=conf.renew_signal),
    ]
