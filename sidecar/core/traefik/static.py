"""`TraefikSetup` -> what Traefik's static configuration needs, and the helper's `sidecar.toml`.

The static part is for a file that is there already, so it holds what our part of it needs and
nothing else. Traefik reads it at its start alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.toml_text import keys
from sidecar.core.traefik.dynamic import seconds
from sidecar.core.traefik.setup import TraefikSetup
from sidecar.core.traefik.yaml import Noted, Value, comment, document


def static_part(setup: TraefikSetup) -> str:
    """Give the text of the static configuration."""
    return document("\n".join(_static_head(setup)), _static(setup))


def helper_part(setup: TraefikSetup) -> str:
    """Give the `sidecar.toml` that keeps the certificate files on Traefik's host."""
    lines = [*comment("\n".join(_helper_head(setup))), ""]
    lines += ["[workload_api]", *keys(socket=_socket(setup.agent_socket)), ""]
    lines += ["[cert_files]", *keys(directory=setup.certificates), ""]
    lines += ["[[after_rotation]]", *keys(name="traefik", touch=setup.dynamic_file)]
    return "".join(f"{line}\n" for line in lines)


def _static_head(setup: TraefikSetup) -> Iterator[str]:
    yield f"What the static configuration of Traefik {setup.version} needs, beside what it has."
    yield f"Written by `spiffe-sidecar traefik --part static --variant {setup.variant}`"
    yield ""
    yield "Traefik reads it at its start, this once; all else is taken up while it runs."
    yield ""
    yield "In a container, mount directories and no single files, at the paths they have outside:"
    yield "a mounted file or socket stays the old one when it is replaced."
    yield from _mounts(setup)
    yield ""
    yield "HTTPS_PROXY in Traefik's environment leads its connections to the sidecar through that"
    yield "proxy; NO_PROXY takes them out."
    if setup.cert_resolver:
        yield ""
        yield f"The router names {setup.cert_resolver}, which is yours: certificatesResolvers."


def _mounts(setup: TraefikSetup) -> Iterator[str]:
    folder = setup.dynamic_file.rpartition("/")[0] or "/"
    yield ""
    yield "  volumes:"
    yield f"    - {folder}:{folder}:ro"
    if setup.variant == "spiffe":
        socket = setup.agent_socket.address.path
        if socket:
            directory = socket.rpartition("/")[0] or "/"
            yield f"    - {directory}:{directory}:ro"
        yield ""
        yield "The agent attests Traefik's process, which in its image is root's: an entry with"
        yield "the selector unix:uid:0 gives Traefik's SVID to all of root. Use docker: selectors,"
        yield "or an account of its own (and `pid: host` for an agent in a container)."
    else:
        yield f"    - {setup.certificates}:{setup.certificates}:ro"
        yield ""
        yield "The key is for the account that writes it; Traefik's own account, if it is another,"
        yield "is [cert_files] owner there."
        yield "A mount from a Mac or Windows host may pass no word of a touched file on."
        if setup.version.reloads_on_sighup:
            yield "There, have the helper send SIGHUP instead: `docker kill --signal HUP NAME`."


def _static(setup: TraefikSetup) -> dict[str, Value]:
    static: dict[str, Value] = {
        "entryPoints": {setup.entry_point: _entry_point(setup)},
        "providers": {"file": _file_provider(setup)},
    }
    if setup.variant == "spiffe":
        note = (
            "The agent's socket on Traefik's host. Traefik does not start before the agent has an\n"
            "SVID for it: register it first."
        )
        address: dict[str, Value] = {"workloadAPIAddr": _target(setup.agent_socket)}
        static["spiffe"] = Noted(note, address)
    return static


def _entry_point(setup: TraefikSetup) -> dict[str, Value]:
    read_note = (
        "For a whole request with its body ([limits] max_body_bytes, over a slow line), and for\n"
        "all routers of the entry point. Unless it is set it is 60s, which cuts long uploads."
    )
    write_note = (
        "0: none. Any other cuts an answer that takes longer, streamed or not. What still runs\n"
        "when Traefik is stopped is cut after lifeCycle.graceTimeOut, 10s."
    )
    timeouts: dict[str, Value] = {
        "readTimeout": Noted(read_note, seconds(setup.terms.upload)),
        "writeTimeout": Noted(write_note, "0s"),
    }
    entry: dict[str, Value] = {
        "address": setup.listen,
        "transport": {"respondingTimeouts": timeouts},
    }
    if setup.version.refuses_encoded_slash:
        note = "For models named a/b, which clients write as a%2Fb: without it this patch says 400."
        allowed: dict[str, Value] = {"allowEncodedSlash": True}
        entry["http"] = {"encodedCharacters": Noted(note, allowed)}
    return entry


def _file_provider(setup: TraefikSetup) -> dict[str, Value]:
    note = "A directory: one file that is replaced, or mounted, is not seen to change."
    folder = setup.dynamic_file.rpartition("/")[0] or "/"
    return {"directory": Noted(note, folder), "watch": True}


def _target(endpoint: WorkloadEndpoint) -> str:
    """Give an address as go-spiffe takes it."""
    path = endpoint.address.path
    return f"unix://{quote(path)}" if path else str(endpoint)


def _socket(endpoint: WorkloadEndpoint) -> str:
    """Give an address as `sidecar.toml` takes it."""
    path = endpoint.address.path
    return f"unix:{quote(path)}" if path else str(endpoint)


def _helper_head(setup: TraefikSetup) -> Iterator[str]:
    yield "Helper mode beside Traefik: the SVID that Traefik presents to a sidecar, and the"
    yield "authorities by which it verifies one. `spiffe-sidecar run --config` this file, on"
    yield "Traefik's host, with an identity of Traefik's."
    if setup.version.has_spiffe:
        yield "(Traefik 3 can also ask the agent itself: `--variant spiffe`, without any of this.)"
    yield ""
    yield "Traefik reads certificate files once for each load of its dynamic configuration and"
    yield "never looks at them again: without the touch below it presents an SVID that has expired"
    yield "after an hour or so. The file that is touched has to be there, and this account's."
    yield ""
    yield "In a container, mount the directory and not single files: a mounted file stays the old"
    yield "one."
