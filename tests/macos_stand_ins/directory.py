"""dscl: the accounts of this Mac."""

from __future__ import annotations

from tests.macos_stand_ins.state import State, end, unknown

# Keys that Apple's directory knows by themselves; others are shown with their type.
_STANDARD = {
    "RecordName",
    "RealName",
    "Password",
    "UserShell",
    "NFSHomeDirectory",
    "PrimaryGroupID",
    "UniqueID",
}
_NOT_FOUND = 56  # 14136 modulo 256


def dscl(state: State, arguments: list[str]) -> str:
    """Answer `dscl . -COMMAND PATH ...`."""
    match arguments:
        case [".", "-list", ("/Users" | "/Groups") as records, key]:
            found = state.accounts[records].items()
            return "".join(f"{name:<24} {keys[key]}\n" for name, keys in found if key in keys)
        case [".", "-read", path, key]:
            return _read({"RecordName": _split(path)[1], **_record(state, path)}, key)
        case [".", "-create", path, *words] if len(words) in (0, 2):
            kind, name = _split(path)
            keys = state.accounts[kind].setdefault(name, {})
            keys.update([(words[0], words[1])] if words else [])
        case [".", "-delete", path]:
            _record(state, path)
            kind, name = _split(path)
            del state.accounts[kind][name]
        case _:
            raise unknown("dscl", arguments)
    return ""


def _split(path: str) -> tuple[str, str]:
    kind, _, name = path.rpartition("/")
    if kind not in ("/Users", "/Groups") or not name:
        raise unknown("dscl", [path])
    return kind, name


def _record(state: State, path: str) -> dict[str, str]:
    kind, name = _split(path)
    if name not in state.accounts[kind]:
        end(_NOT_FOUND, "<dscl_cmd> DS Error: -14136 (eDSRecordNotFound)")
    return state.accounts[kind][name]


def _read(keys: dict[str, str], key: str) -> str:
    if key not in keys:
        return f"No such key: {key}\n"
    shown = key if key in _STANDARD else f"dsAttrTypeNative:{key}"
    return f"{shown}:\n {keys[key]}\n" if " " in keys[key] else f"{shown}: {keys[key]}\n"
