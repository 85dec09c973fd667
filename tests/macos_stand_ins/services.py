"""launchctl: the services of the system domain, from bootstrap to bootout; and plutil."""

from __future__ import annotations

import plistlib
import socket
import stat
from pathlib import Path
from typing import NoReturn

from tests.macos_stand_ins.files import owner_of
from tests.macos_stand_ins.state import Service, State, end, unknown

_NOT_FOUND = 113
_AGENT = "org.spiffe-sidecar.spire-agent"


def launchctl(state: State, arguments: list[str]) -> str:
    """Answer the subcommands of today; load, unload, start and stop are of yesterday."""
    match arguments:
        case ["print", target]:
            return _print(state, _label(target))
        case ["print-disabled", "system"]:
            rows = "".join(f'\t\t"{label}" => disabled\n' for label in sorted(state.disabled))
            return f"\tdisabled services = {{\n{rows}\t}}\n"
        case ["enable", target]:
            state.disabled.discard(_label(target))
        case ["bootstrap", "system", plist]:
            _bootstrap(state, Path(plist))
        case ["bootout", target]:
            _bootout(state, _label(target))
        case ["kickstart", target]:
            _run(state, _label(target))
        case _:
            raise unknown("launchctl", arguments)
    return ""


def _label(target: str) -> str:
    domain, _, label = target.partition("/")
    if domain != "system" or not label:
        raise unknown("launchctl", [target])
    return label


def _print(state: State, label: str) -> str:
    service = _service(state, label)
    if service.lingers is not None:
        service.lingers -= 1
        if service.lingers < 0:
            del state.services[label]
            _service(state, label)
    lines = [f"system/{label} = {{", f"\tactive count = {int(service.running)}"]
    lines += [f"\tpath = {service.path}", "\ttype = LaunchDaemon"]
    lines += [f"\tstate = {'running' if service.running else 'not running'}"]
    lines += ["\tpid = 4711"] if service.running else ["\tlast exit code = 78: EX_CONFIG"]
    return "\n".join([*lines, "}", ""])


def _service(state: State, label: str) -> Service:
    if label not in state.services:
        what = f'Could not find service "{label}" in domain for system'
        end(_NOT_FOUND, f"Bad request.\n{what}")
    return state.services[label]


def _bootstrap(state: State, path: Path) -> None:
    # Whoever could write the list would be root.
    if (
        not path.is_file()
        or owner_of(state, str(path)) != "root:wheel"
        or stat.S_IMODE(path.stat().st_mode) & 0o022
    ):
        _refuse(5, "Input/output error")
    plist = plistlib.loads(path.read_bytes())
    label = plist["Label"]
    if label in state.disabled:
        _refuse(119, "Service is disabled")
    if label in state.services and state.is_old_launchd:
        _refuse(37, "Operation already in progress")
    if label in state.services:
        _refuse(5, "Input/output error")
    state.services[label] = Service(str(path))
    if plist.get("RunAtLoad"):
        _run(state, label)


def _refuse(status: int, reason: str) -> NoReturn:
    end(status, f"Bootstrap failed: {status}: {reason}\nTry re-running the command as root.")


def _run(state: State, label: str) -> None:
    service = _service(state, label)
    plist = plistlib.loads(Path(service.path).read_bytes())
    user, group = plist.get("UserName", "root"), plist.get("GroupName", "wheel")
    service.running = state.exists("/Users", user) and state.exists("/Groups", group)
    if service.running and label == _AGENT:
        service.running = _agent(state, Path(service.path).parents[2])


def _agent(state: State, tree: Path) -> bool:
    """Be an agent whose server admits it, by a token that is no spent one."""
    data, token = tree / "opt/spire/data/agent-data.json", tree / "opt/spire/conf/join-token"
    if not state.agent_is_admitted:
        return False
    if not data.exists():
        if token.read_text().strip() == "spent":
            return False
        data.write_text("{}")
    path = tree / "opt/spire/sockets/agent.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return True


def _bootout(state: State, label: str) -> None:
    if label not in state.services:
        end(3, "Boot-out failed: 3: No such process")
    service = state.services[label]
    # It ends when its last answer has ended, and is there so long.
    if service.running and state.questions_to_end:
        service.lingers = state.questions_to_end
        end(36, "Boot-out failed: 36: Operation now in progress")
    del state.services[label]


def plutil(_state: State, arguments: list[str]) -> str:
    """Answer `plutil -lint PATH`, as a property list that can be read."""
    match arguments:
        case ["-lint", path]:
            try:
                plistlib.loads(Path(path).read_bytes())
            except (OSError, ValueError) as exc:
                end(1, f"{path}: {exc}")
            return f"{path}: OK\n"
        case _:
            raise unknown("plutil", arguments)
