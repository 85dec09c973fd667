"""The rest of a Mac: its version, kernel, power, firewall, and who listens."""

from __future__ import annotations

from tests.macos_stand_ins.state import EndError, State, end, unknown

_FIREWALL = ("disabled", "enabled", "blocking all non-essential incoming connections")


def sw_vers(state: State, arguments: list[str]) -> str:
    """Answer `sw_vers -productVersion`."""
    if arguments != ["-productVersion"]:
        raise unknown("sw_vers", arguments)
    return f"{state.version}\n"


def uname(state: State, arguments: list[str]) -> str:
    """Answer `uname -s`; and `uname -rs`, which pip asks."""
    if arguments == ["-rs"]:
        return f"{state.system} 24.5.0\n"
    if arguments != ["-s"]:
        raise unknown("uname", arguments)
    return f"{state.system}\n"


def identity(state: State, arguments: list[str]) -> str:
    """Answer `id -u`."""
    if arguments != ["-u"]:
        raise unknown("id", arguments)
    return f"{state.uid}\n"


def sysctl(state: State, arguments: list[str]) -> str:
    """Answer `sysctl -n NAME`."""
    match arguments:
        case ["-n", "kern.maxfilesperproc"]:
            return "61440\n"
        case ["-n", "hw.optional.arm64"] if not state.is_intel:
            return "1\n"
        case ["-n", "hw.optional.arm64" as name]:
            raise EndError(1, f"sysctl: unknown oid '{name}'")
        case _:
            raise unknown("sysctl", arguments)


def pmset(state: State, arguments: list[str]) -> str:
    """Answer `pmset -g custom` and `pmset -c sleep N`, on a laptop."""
    match arguments:
        case ["-g", "custom"]:
            battery = "Battery Power:\n powernap             0\n sleep                5\n"
            mains = f"AC Power:\n womp                 1\n sleep {state.sleep_minutes:>16}\n"
            return battery + mains + " displaysleep         10\n"
        case ["-c", "sleep", number]:
            state.sleep_minutes = int(number)
            return ""
        case _:
            raise unknown("pmset", arguments)


def socketfilterfw(state: State, arguments: list[str]) -> str:
    """Answer for the application firewall."""
    apps = state.firewall_apps
    match arguments:
        case ["--getglobalstate"]:
            return f"Firewall is {_FIREWALL[state.firewall]}. (State = {state.firewall}) \n"
        case ["--getblockall"]:
            return "Firewall has block all state set to disabled.\n"
        case ["--getappblocked", path]:
            if path not in apps:
                return "The application is not part of the firewall\n"
            word = "permitted" if apps[path] else "blocked"
            return f"Incoming connection to the application is {word}\n"
        case ["--add", path]:
            apps.setdefault(path, False)
            return f"Application at path ( {path} ) added to firewall\n"
        case ["--unblockapp", path] if path in apps:
            apps[path] = True
            return f"Incoming connection to the application is permitted: {path}\n"
        case ["--remove", path] if path in apps:
            del apps[path]
            return f"Application at path ( {path} ) removed from firewall\n"
        case _:
            raise unknown("socketfilterfw", arguments)


def lsof(state: State, arguments: list[str]) -> str:
    """Answer who listens on one TCP port, for programs; nobody is status 1."""
    match arguments:
        case ["-nP", port, "-sTCP:LISTEN", "-Fn"] if port.startswith("-iTCP:"):
            number = port.removeprefix("-iTCP:")
            found = [one for one in state.listens if one.endswith(f":{number}")]
            if not found:
                end(1)
            return "p501\n" + "".join(f"f3\nn{one}\n" for one in found)
        case _:
            raise unknown("lsof", arguments)


def sleep(_state: State, arguments: list[str]) -> str:
    """Be over at once; the list of calls has it."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        raise unknown("sleep", arguments)
    return ""
