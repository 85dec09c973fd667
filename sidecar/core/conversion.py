"""spiffe-helper's configuration -> the text of our `sidecar.toml`, and what is not the same.

Gets a `HelperConf`, gives a `Conversion`: helper mode, files under their old names, and a `Note`
for each key that has no counterpart, or one that is not quite the same. What is given passes
`check`: it is parsed here, and what `sidecar.toml` cannot say is a problem of the old key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sidecar.core.address import ENDPOINT_VARIABLE, WorkloadEndpoint
from sidecar.core.config import parse_config
from sidecar.core.converted_hooks import after_rotation
from sidecar.core.files_config import LAYOUTS
from sidecar.core.helper_conf import AgentAddress, HelperConf, Mode, Note, tell_relative
from sidecar.core.toml_tables import FileMode, KeyMode, Problem, ProblemsError, shown
from sidecar.core.toml_text import keys

_DEFAULT_ADDRESS = "unix:/tmp/spire-agent/public/api.sock"
# What spiffe-helper gives a file for whose mode there is no key.
_PUBLIC, _SECRET = FileMode(0o644), KeyMode(0o600)
# Our key -> that of spiffe-helper, for what is wrong between keys.
_OLD_KEYS = {
    "[cert_files] certificate": "svid_file_name",
    "[cert_files] private_key": "svid_key_file_name",
    "[cert_files] bundle": "svid_bundle_file_name",
    "[cert_files] jwt_bundle": "jwt_bundle_file_name",
    "[[jwt_svid]]": "jwt_svids",
    "[health] address": "health_checks bind_port",
}

Lines = list[str]


@dataclass(frozen=True, slots=True)
class Conversion:
    """The new configuration, and what is not the same."""

    toml: str
    notes: tuple[Note, ...]


def conversion(conf: HelperConf, file: str, variable: str) -> Conversion:
    """Convert; `variable` is what SPIFFE_ENDPOINT_SOCKET says, empty if it is not set."""
    notes: list[Note] = []
    tables = [
        [
            f"# Converted from spiffe-helper's {file!r}.",
            "# Without [listener] this keeps files and serves nobody.",
            "# Relative paths are relative to this file.",
        ],
        _workload_api(conf, variable, notes),
        _cert_files(conf, notes),
        *_jwt_svids(conf, notes),
        *after_rotation(conf, notes),
        *_health(conf, notes),
    ]
    notes += _left_out(conf)
    text = "\n\n".join("\n".join(lines) for lines in tables) + "\n"
    _prove(text, file)
    return Conversion(text, tuple(notes))


def _prove(text: str, file: str) -> None:
    """Let nothing out that `check` refuses."""
    try:
        parse_config(text, file)
    except ProblemsError as exc:
        raise ProblemsError(
            [
                replace(one, where=_old_keys(one.where), expected=_old_keys(one.expected))
                for one in exc.problems
            ]
        ) from exc


def _old_keys(text: str) -> str:
    for ours, old in _OLD_KEYS.items():
        text = text.replace(ours, old)
    return text


def _workload_api(conf: HelperConf, variable: str, notes: list[Note]) -> Lines:
    address, comment = conf.agent_address, ""
    if address is None and variable:
        address, comment = _from_variable(variable, notes)
    elif address is None:
        address, comment = AgentAddress(_DEFAULT_ADDRESS), "# The default of spiffe-helper."
        text = (
            f"not set, and neither is {ENDPOINT_VARIABLE} here: spiffe-helper's default is "
            "written; remove socket if the variable is set where the sidecar runs"
        )
        notes.append(Note("agent_address", text))
    lines = ["[workload_api]", comment] if comment else ["[workload_api]"]
    return [*lines, *keys(socket=address, hint=conf.hint)]


def _from_variable(variable: str, notes: list[Note]) -> tuple[AgentAddress | None, str]:
    """Leave the variable to the daemon, which reads it as well, unless it is a mere path."""
    try:
        WorkloadEndpoint.parse(variable)
    except ValueError:
        pass
    else:
        return None, f"# The socket is in {ENDPOINT_VARIABLE}, as it was for spiffe-helper."
    try:
        address = AgentAddress.parse(variable)
    except ValueError as exc:
        expected = str(exc).removeprefix("expected ")
        problem = Problem(f"${ENDPOINT_VARIABLE}", "", shown(variable), expected)
        raise ProblemsError([problem]) from exc
    text = (
        f"not set, and {ENDPOINT_VARIABLE} is {shown(variable)}: written as socket, since the "
        "variable has to be a URI here, which begins with unix:"
    )
    notes.append(Note("agent_address", text))
    return address, f"# From {ENDPOINT_VARIABLE}, which has to be a URI here: unix:/path."


def _cert_files(conf: HelperConf, notes: list[Note]) -> Lines:
    directory = conf.cert_dir or "."
    tell_relative("cert_dir", directory, notes)
    lines = [
        "[cert_files]",
        "# Made if it is missing. It has to belong to the sidecar's account or to root, and nobody",
        "# else may write to it. The files keep their paths, as links to where they are written.",
        *keys(directory=directory),
    ]
    if conf.svid_file_name is None:
        names = ", ".join(LAYOUTS["spiffe-helper"])
        lines.append(f"# Written in any case: {names}.")
        text = f"not set; {names} are written all the same, beside the JWT files"
        notes.append(Note("svid_file_name", text))
    lines += keys(
        certificate=conf.svid_file_name,
        private_key=conf.svid_key_file_name,
        bundle=conf.svid_bundle_file_name,
        jwt_bundle=conf.jwt_bundle_file_name,
        certificate_mode=_mode("cert_file_mode", conf.cert_file_mode, _PUBLIC, notes),
        key_mode=_mode("key_file_mode", conf.key_file_mode, _SECRET, notes),
        intermediates_in_bundle=conf.add_intermediates_to_bundle,
        omit_expired_authorities=conf.omit_expired,
    )
    if conf.jwt_bundle_file_name:
        _tell_jwt_bundle(conf, notes)
    return [*lines, *_federated(notes)] if conf.include_federated_domains else lines


def _federated(notes: list[Note]) -> Lines:
    text = (
        "spiffe-helper puts the authorities of all trust domains into one file, and whoever reads "
        "it lets each of them sign for every trust domain, ours included; here each trust domain "
        "has a file of its own. For a program that needs the one file: unsafe_merge_federated = "
        "true instead of federated_bundles"
    )
    notes.append(Note("include_federated_domains", text))
    return [
        "# Each trust domain in a file of its own. All in one bundle, as with spiffe-helper, would",
        "# be unsafe_merge_federated = true: each could then sign for every other one.",
        *keys(federated_bundles=True),
    ]


def _tell_jwt_bundle(conf: HelperConf, notes: list[Note]) -> None:
    text = (
        "spiffe-helper writes one object with the JWK Set of each trust domain in base64; here it "
        "is the JWK Set of our own trust domain, and federated_bundles adds a file for each other "
        "one: what reads it has to be changed"
    )
    notes.append(Note("jwt_bundle_file_name", text))
    before = _wanted(conf.jwt_bundle_file_mode, _SECRET)
    now = _allowed(_wanted(conf.cert_file_mode, _PUBLIC), _PUBLIC)
    if before != now:
        text = f"{before:04o}; here a JWT bundle, public keys, has certificate_mode: {now:04o}"
        notes.append(Note("jwt_bundle_file_mode", text))


def _jwt_svids(conf: HelperConf, notes: list[Note]) -> Iterator[Lines]:
    mode = None
    if conf.jwt_svids:
        mode = _mode("jwt_svid_file_mode", conf.jwt_svid_file_mode, _SECRET, notes)
    for one in conf.jwt_svids:
        yield [
            "[[jwt_svid]]",
            *keys(
                file=one.jwt_svid_file_name,
                audience=one.jwt_audience,
                extra_audiences=one.jwt_extra_audiences,
                mode=mode,
            ),
        ]


def _health(conf: HelperConf, notes: list[Note]) -> Iterator[Lines]:
    """Give the probes a listener; spiffe-helper has one in daemon mode alone."""
    checks = conf.health_checks
    if not checks.listener_enabled:
        return
    if not conf.daemon_mode:
        notes.append(Note("health_checks", "left out: spiffe-helper has none without daemon_mode"))
        return
    live, ready = checks.liveness_path or "/live", checks.readiness_path or "/ready"
    changed = [
        f"{old} is {new} here"
        for old, new in ((live, "/livez"), (ready, "/readyz"))
        if old.removeprefix("/") != new.removeprefix("/")
    ]
    if changed:
        text = f"{' and '.join(changed)}: change the probes"
        notes.append(Note("health_checks", text))
    yield [
        "[health]",
        "# /livez and /readyz; [::] instead of 0.0.0.0 is for IPv6 as well.",
        *keys(address=f"0.0.0.0:{checks.port}"),
    ]


def _left_out(conf: HelperConf) -> Iterator[Note]:
    """Tell of the keys of which nothing is in the result."""
    if not conf.daemon_mode:
        text = "false; `spiffe-sidecar fetch` writes the files once, with the same configuration"
        yield Note("daemon_mode", text)
        for key, value in (("cmd", conf.cmd), ("renew_signal", conf.renew_signal)):
            if value:
                yield Note(key, "left out: spiffe-helper ignores it with daemon_mode = false")
    elif conf.renew_signal and not (conf.cmd or conf.pid_file_name):
        yield Note("renew_signal", "left out: without cmd and pid_file_name nobody is signalled")
    if conf.cmd_args and conf.cmd_args.argv and not conf.cmd:
        yield Note("cmd_args", "left out: there is no cmd")


def _mode(key: str, mode: Mode | None, default: FileMode, notes: list[Note]) -> str | None:
    """Give a mode as we write it; told is what HCL makes of it, and what is not allowed here."""
    if mode is None or not mode.bits:
        return None
    written = _allowed(mode.meant, default)
    if mode.meant != mode.bits:
        text = (
            f"{mode.text} is decimal, for want of a leading 0, and spiffe-helper makes "
            f"{mode.bits & 0o777:04o} of it; {mode.meant:04o} is taken to be meant"
        )
        notes.append(Note(key, text))
    if written != mode.meant:
        why = f"at most {default.allowed:04o} is allowed here"
        if not mode.meant & 0o400:
            why = "it does not let the owner read"
        notes.append(Note(key, f"{mode.meant:04o} is written as {written:04o}: {why}"))
    return f"{written:04o}"


def _wanted(mode: Mode | None, default: FileMode) -> int:
    return mode.meant if mode and mode.bits else default


def _allowed(bits: int, default: FileMode) -> int:
    """Give what our configuration takes of a mode, or the default if the owner could not read."""
    return bits & default.allowed if bits & 0o400 else default
