"""A stand-in for the program `spire-server`: its commands, JSON, exit statuses and error texts.

The server's state is a JSON file where the real one has its socket (`-socketPath`); a path where
nothing is, or where this account may not read, answers as the real program does there. Only what
`register-workload` uses is here, and all of that is compared with the real program when there is
one. Run by its file, with `python -IS`: nothing but the standard library, and little of it, because
it is run often.

A test may ask for faults (`FakeSpireServer`): a command that hangs, ends by an error, or prints
what is no JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time

TYPE_CHECKING = False  # as `typing` has it, whose import takes longer than all the rest
if TYPE_CHECKING:
    from typing import Any

NEWEST = (1, 16, 0)
_DEFAULT_SOCKET = "/tmp/spire-server/private/api.sock"
_ID = re.compile(r"spiffe://([^/]*)(/.*)?")
_MANY = "many"  # a flag that may be there several times

# Flags by command: what kind of value, and since which version.
_OUTPUT = {"output": (str, (1, 5, 3)), "socketPath": (str, (1, 0, 0))}
_ENTRY: dict[str, tuple[Any, tuple[int, ...]]] = {
    "parentID": (str, (1, 0, 0)),
    "spiffeID": (str, (1, 0, 0)),
    "selector": (_MANY, (1, 0, 0)),
    "x509SVIDTTL": (int, (1, 5, 0)),
    "jwtSVIDTTL": (int, (1, 5, 0)),
    "federatesWith": (_MANY, (1, 0, 0)),
    "admin": (bool, (1, 0, 0)),
    "storeSVID": (bool, (1, 0, 0)),
    "downstream": (bool, (1, 0, 0)),
    "entryExpiry": (int, (1, 0, 0)),
    "dns": (_MANY, (1, 0, 0)),
    "hint": (str, (1, 6, 0)),
    "disableX509SVIDPrefetch": (bool, (1, 16, 0)),
    "jwtSVIDIncludeJTI": (bool, (1, 16, 0)),
}
_FLAGS: dict[str, dict[str, tuple[Any, tuple[int, ...]]]] = {
    "bundle show": {"format": (str, (1, 0, 0))},
    "entry show": {
        name: _ENTRY[name] for name in ("parentID", "spiffeID", "selector", "downstream")
    },
    "entry create": {**_ENTRY, "entryID": (str, (1, 6, 0)), "node": (bool, (1, 0, 0))},
    "entry update": {**_ENTRY, "entryID": (str, (1, 0, 0))},
    "entry delete": {"entryID": (str, (1, 0, 0))},
    "token generate": {
        "spiffeID": (str, (1, 0, 0)),
        "ttl": (int, (1, 0, 0)),
        "output": (str, (1, 6, 0)),
    },
    "agent list": {},
    "agent evict": {"spiffeID": (str, (1, 0, 0))},
    "healthcheck": {},
}


class _Stop(Exception):
    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def main(arguments: list[str]) -> int:
    words = 1 if arguments[:1] == ["healthcheck"] else 2
    command = " ".join(arguments[:words])
    try:
        if command not in _FLAGS:
            raise _Stop("Usage: spire-server [--version] [--help] <command> [<args>]\n", 127)
        socket = os.environ.get("FAKE_SPIRE_SOCKET", _DEFAULT_SOCKET)
        rest = arguments[words:]
        if "-socketPath" in rest:
            socket = rest[rest.index("-socketPath") + 1]
        state = _state(socket)
        version = tuple(state["version"]) if state else NEWEST
        given = _parsed(command, rest, version)
        _check(command, given)
        if state is None:
            raise _Stop(_unavailable(command, socket))
        with open(f"{socket}.calls", "a") as calls:
            calls.write(json.dumps(arguments) + "\n")
        _suffer(state["faults"].get(command, ""))
        answer = _COMMANDS[command](state, given)
        with open(socket, "w") as file:
            json.dump(state, file)
    except _Stop as exc:
        sys.stderr.write(f"{exc}")
        return exc.status
    print(answer if isinstance(answer, str) else _encoded(answer))
    return 0


def _state(socket: str) -> dict[str, Any] | None:
    try:
        with open(socket) as file:
            state: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return None
    return state


def _unavailable(command: str, socket: str) -> str:
    reason = "connection refused"
    try:
        os.close(os.open(socket, os.O_RDONLY))
    except PermissionError:
        reason = "permission denied"
    except FileNotFoundError:
        reason = "no such file or directory"
    wrapped = "error fetching entries: " if command == "entry show" else ""
    return (
        f"Error: {wrapped}rpc error: code = Unavailable desc = connection error: desc = "
        f'"transport: Error while dialing: dial unix //{socket}: connect: {reason}"\n'
    )


def _suffer(fault: str) -> None:
    if fault == "hang":
        time.sleep(600)
    if fault == "garbage":
        print("Token: 5e884898-da28-4047-8f01-95f38cf8f3ee")
        sys.exit(0)
    if fault:
        raise _Stop(f"{fault}\n")


def _parsed(command: str, words: list[str], version: tuple[int, ...]) -> dict[str, Any]:
    """As Go's package `flag` reads them."""
    known = {
        name: kind
        for name, (kind, since) in {**_OUTPUT, **_FLAGS[command]}.items()
        if since <= version
    }
    given: dict[str, Any] = {name: [] for name, kind in known.items() if kind is _MANY}
    title = command if command != "token generate" else "generate"
    left = list(words)
    while left and left[0].startswith("-"):
        name, equals, value = left.pop(0).lstrip("-").partition("=")
        if name not in known:
            raise _Stop(f"flag provided but not defined: -{name}\nUsage of {title}:\n")
        kind = known[name]
        if kind is bool:
            given[name] = value != "false"
            continue
        if not equals:
            if not left:
                raise _Stop(f"flag needs an argument: -{name}\nUsage of {title}:\n")
            value = left.pop(0)
        try:
            read = _read_value(name, kind, value)
        except ValueError as exc:
            raise _Stop(
                f'invalid value "{value}" for flag -{name}: {exc}\nUsage of {title}:\n'
            ) from exc
        if kind is _MANY:
            given[name].append(read)
        else:
            given[name] = read
    return given


def _read_value(name: str, kind: Any, value: str) -> Any:
    if name == "output" and value not in ("json", "pretty"):
        raise ValueError(f'bad formatter flag: unknown format option: "{value}"')
    if kind is int:
        if not re.fullmatch(r"-?[0-9]+", value):
            raise ValueError("parse error")
        return int(value)
    return value


def _check(command: str, given: dict[str, Any]) -> None:
    """What the program itself refuses, before it asks the server."""
    if command == "entry delete" and not given.get("entryID"):
        raise _Stop("Error: an entry ID is required\n")
    if command == "agent evict" and not given.get("spiffeID"):
        raise _Stop("Error: a SPIFFE ID is required\n")
    if command in ("entry create", "entry update"):
        if command == "entry update" and not given.get("entryID"):
            raise _Stop("Error: entry ID is required\n")
        if not given["selector"]:
            raise _Stop("Error: at least one selector is required\n")
        if not given.get("parentID"):
            tail = " if the node flag is not set" if command == "entry create" else ""
            raise _Stop(f"Error: a parent ID is required{tail}\n")
        if not given.get("spiffeID"):
            raise _Stop("Error: a SPIFFE ID is required\n")
        for name, title in (("x509SVIDTTL", "X509"), ("jwtSVIDTTL", "JWT")):
            if given.get(name, 0) >= 2**31:
                raise _Stop(
                    f"Error: invalid value for {title} SVID TTL: overflow converting "
                    f"int({given[name]}) to int32\n"
                )
        for selector in given["selector"]:
            if ":" not in selector:
                raise _Stop(f'Error: selector "{selector}" must be formatted as type:value\n')


def _uuid() -> str:
    text = os.urandom(16).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _id(text: str) -> dict[str, str]:
    match = _ID.fullmatch(text)
    if not match:
        raise _Stop("Error: scheme is missing or invalid\n")
    path = match[2] or ""
    if not re.fullmatch(r"(?:/[A-Za-z0-9._-]+)*", path):
        raise _Stop(
            "Error: path segment characters are limited to letters, numbers, dots, dashes, and "
            "underscores\n"
        )
    return {"path": path, "trust_domain": match[1]}


def _text(spiffe_id: dict[str, str]) -> str:
    return f"spiffe://{spiffe_id['trust_domain']}{spiffe_id['path']}"


def _refusal(state: dict[str, Any], spiffe_id: dict[str, str], what: str, *, workload: bool) -> str:
    domain, text = state["trust_domain"], _text(spiffe_id)
    if spiffe_id["trust_domain"] != domain:
        return f'{what}: "{text}" is not a member of trust domain "{domain}"'
    if not workload:
        return ""
    reason = ""
    if not spiffe_id["path"]:
        reason = "path is empty"
    elif spiffe_id["path"].startswith("/spire/"):
        reason = "path is in the reserved namespace"
    return reason and f'{what}: "{text}" is not a workload in trust domain "{domain}"; {reason}'


def _bundle(state: dict[str, Any], given: dict[str, Any]) -> Any:
    if given.get("output") != "json":
        pem = []
        for one in state["authorities"]:
            body = "\n".join(re.findall(r".{1,64}", one["asn1"]))
            pem.append(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----")
        return "\n".join(pem)
    return {
        "jwt_authorities": [],
        "refresh_hint": "0",
        "sequence_number": "1",
        "trust_domain": state["trust_domain"],
        "wit_authorities": [],
        "x509_authorities": state["authorities"],
    }


def _show(state: dict[str, Any], given: dict[str, Any]) -> Any:
    found = state["entries"]
    for flag, key in (("spiffeID", "spiffe_id"), ("parentID", "parent_id")):
        if flag in given:
            try:
                wanted = _id(given[flag])
            except _Stop as exc:
                title = "SPIFFE ID" if flag == "spiffeID" else "parent ID"
                reason = str(exc).removeprefix("Error: ")
                raise _Stop(f'Error: error parsing {title} "{given[flag]}": {reason}') from exc
            found = [entry for entry in found if entry[key] == wanted]
    found = [entry for entry in found if entry["downstream"] == given.get("downstream", False)]
    found.sort(key=lambda entry: (_text(entry["spiffe_id"]), _text(entry["parent_id"])))
    return {"entries": found, "next_page_token": ""}


def _entry(given: dict[str, Any], entry_id: str) -> dict[str, Any]:
    selectors = [
        dict(zip(("type", "value"), text.split(":", 1), strict=True)) for text in given["selector"]
    ]
    entry = {
        "admin": given.get("admin", False),
        "created_at": "0",
        "dns_names": given["dns"],
        "downstream": given.get("downstream", False),
        "expires_at": str(given.get("entryExpiry", 0)),
        "federates_with": given["federatesWith"],
        "hint": given.get("hint", ""),
        "id": entry_id,
        "jwt_svid_ttl": given.get("jwtSVIDTTL", 0),
        "parent_id": _id(given["parentID"]),
        "revision_number": "0",
        "selectors": selectors,
        "spiffe_id": _id(given["spiffeID"]),
        "store_svid": given.get("storeSVID", False),
        "x509_svid_ttl": given.get("x509SVIDTTL", 0),
    }
    attributes = {
        "disable_x509_svid_prefetch": given.get("disableX509SVIDPrefetch", False),
        "jwt_svid_include_jti": given.get("jwtSVIDIncludeJTI", False),
    }
    if any(attributes.values()):
        entry["additional_attributes"] = attributes
    return entry


def _result(entry: dict[str, Any], code: int = 0, message: str = "OK") -> dict[str, Any]:
    return {"results": [{"entry": entry, "status": {"code": code, "message": message}}]}


def _refused(state: dict[str, Any], entry: dict[str, Any]) -> str:
    reason = _refusal(state, entry["parent_id"], "invalid parent ID", workload=False)
    reason = reason or _refusal(state, entry["spiffe_id"], "invalid spiffe ID", workload=True)
    if not reason and not all(one["value"] for one in entry["selectors"]):
        reason = "missing selector value"
    return reason and f"failed to convert entry: {reason}"


def _sorted(entry: dict[str, Any]) -> dict[str, Any]:
    selectors = sorted(entry["selectors"], key=lambda one: (one["type"], one["value"]))
    return {**entry, "selectors": selectors}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["spiffe_id"], entry["parent_id"], _sorted(entry)["selectors"]


def _create(state: dict[str, Any], given: dict[str, Any]) -> Any:
    entry = _entry(given, given.get("entryID", ""))
    if refused := _refused(state, entry):
        return _result(entry, 3, refused)
    if any(_key(one) == _key(entry) for one in state["entries"]):
        return _result(entry, 6, "similar entry already exists")
    made = {**_sorted(entry), "id": entry["id"] or _uuid()}
    made["created_at"] = str(int(time.time()))
    state["entries"].append(made)
    return _result(made)


def _update(state: dict[str, Any], given: dict[str, Any]) -> Any:
    entry = _entry(given, given["entryID"])
    old = next((one for one in state["entries"] if one["id"] == entry["id"]), None)
    if refused := _refused(state, entry):
        return _result(entry, 3, refused)
    if old is None:
        return _result(entry, 5, "failed to update entry")
    made = _sorted(entry)
    made["created_at"] = old["created_at"]
    made["revision_number"] = str(int(old["revision_number"]) + 1)
    state["entries"][state["entries"].index(old)] = made
    return _result(made)


def _delete(state: dict[str, Any], given: dict[str, Any]) -> Any:
    left = [entry for entry in state["entries"] if entry["id"] != given["entryID"]]
    there = len(left) < len(state["entries"])
    status = {"code": 0, "message": "OK"} if there else {"code": 5, "message": "entry not found"}
    state["entries"] = left
    return {"results": [{"id": given["entryID"], "status": status}]}


def _token(state: dict[str, Any], given: dict[str, Any]) -> Any:
    alias = _id(given["spiffeID"]) if "spiffeID" in given else None
    prefix = "Error: rpc error: code = InvalidArgument desc = "
    if given.get("ttl", 600) < 1:
        raise _Stop(f"{prefix}ttl is required, you must provide one\n")
    if alias and (refused := _refusal(state, alias, "invalid agent ID", workload=True)):
        raise _Stop(f"{prefix}{refused}\n")
    token, expires_at = _uuid(), int(time.time()) + given.get("ttl", 600)
    state["tokens"][token] = expires_at
    if alias:
        agent = f"spiffe://{state['trust_domain']}/spire/agent/join_token/{token}"
        words = {"selector": [f"spiffe_id:{agent}"], "parentID": agent, "spiffeID": _text(alias)}
        entry = _entry({**words, "dns": [], "federatesWith": []}, _uuid())
        state["entries"].append({**entry, "created_at": str(int(time.time()))})
    if given.get("output") != "json":
        return f"Token: {token}"
    return {"expires_at": str(expires_at), "value": token}


def _agents(state: dict[str, Any], _: dict[str, Any]) -> Any:
    return {"agents": state["agents"], "next_page_token": ""}


def _evict(state: dict[str, Any], given: dict[str, Any]) -> Any:
    agent = _id(given["spiffeID"])
    left = [one for one in state["agents"] if one["id"] != agent]
    if len(left) == len(state["agents"]):
        raise _Stop("Error: rpc error: code = NotFound desc = agent not found\n")
    state["agents"] = left
    # Since 1.15.2 the alias goes with its agent.
    state["entries"] = [one for one in state["entries"] if one["parent_id"] != agent]
    return {}


def _health(*_: Any) -> str:
    return "Server is healthy."


_COMMANDS = {
    "bundle show": _bundle,
    "entry show": _show,
    "entry create": _create,
    "entry update": _update,
    "entry delete": _delete,
    "token generate": _token,
    "agent list": _agents,
    "agent evict": _evict,
    "healthcheck": _health,
}


def _encoded(answer: Any) -> str:
    return json.dumps(answer, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
