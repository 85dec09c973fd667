"""chown, stat and mv with owners that are remembered by path: their accounts are not real ones."""

from __future__ import annotations

import os
import stat as modes

from tests.macos_stand_ins.state import Program, State, end, unknown

_FORMAT = "%Su:%Sg 0%Lp"


def _key(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def owner_of(state: State, path: str) -> str:
    """Give USER:GROUP; what nobody has given away is root's."""
    return state.owners.get(_key(path), "root:wheel")


def chown(state: State, arguments: list[str]) -> str:
    """Answer `chown [-h] USER:GROUP PATH...`."""
    words = arguments[1:] if arguments[:1] == ["-h"] else arguments
    if len(words) < 2 or words[0].startswith("-"):
        raise unknown("chown", arguments)
    user, _, group = words[0].partition(":")
    if not state.exists("/Users", user):
        end(1, f"chown: {user}: illegal user name")
    if not state.exists("/Groups", group):
        end(1, f"chown: {group}: illegal group name")
    for path in words[1:]:
        if not os.path.lexists(path):
            end(1, f"chown: {path}: No such file or directory")
        state.owners[_key(path)] = words[0]
    return ""


def stat(state: State, arguments: list[str]) -> str:
    """Answer `stat -f FORMAT PATH`, as BSD's has it."""
    match arguments:
        case ["-f", form, path] if form == _FORMAT:
            if not os.path.lexists(path):
                end(1, f"stat: {path}: stat: No such file or directory")
            mode = modes.S_IMODE(os.lstat(path).st_mode)
            return f"{owner_of(state, path)} 0{mode & 0o777:o}\n"
        case _:
            raise unknown("stat", arguments)


def mv(state: State, arguments: list[str]) -> str:
    """Answer `mv [-f] FILE FILE`; a folder would be moved into."""
    words = arguments[1:] if arguments[:1] == ["-f"] else arguments
    if len(words) != 2 or words[0].startswith("-") or os.path.isdir(words[1]):
        raise unknown("mv", arguments)
    os.replace(*words)
    source, target = map(_key, words)
    state.owners[target] = state.owners.pop(source, "root:wheel")
    return ""


def readlink(_state: State, arguments: list[str]) -> str:
    """Answer `readlink PATH`; -f is not on every macOS."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise unknown("readlink", arguments)
    if not os.path.islink(arguments[0]):
        end(1)
    return os.readlink(arguments[0]) + "\n"


def file(state: State, arguments: list[str]) -> str:
    """Answer `file -b PATH`."""
    match arguments:
        case ["-b", path]:
            return state.programs.get(path, Program()).kind + "\n"
        case _:
            raise unknown("file", arguments)


def codesign(state: State, arguments: list[str]) -> str:
    """Answer `codesign --verify PATH`."""
    match arguments:
        case ["--verify", path]:
            if not state.programs.get(path, Program()).signed:
                end(1, f"{path}: code object is not signed at all")
            return ""
        case _:
            raise unknown("codesign", arguments)


def xattr(state: State, arguments: list[str]) -> str:
    """Answer `xattr -p com.apple.quarantine PATH`."""
    match arguments:
        case ["-p", "com.apple.quarantine" as name, path]:
            if not state.programs.get(path, Program()).quarantined:
                end(1, f"xattr: {path}: No such xattr: {name}")
            return "0083;67405a1f;Safari;5C1A2B3D-0000-4000-8000-000000000000\n"
        case _:
            raise unknown("xattr", arguments)
