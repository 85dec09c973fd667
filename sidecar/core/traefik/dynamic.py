"""`TraefikSetup` -> Traefik's dynamic configuration: router, service, and how it connects to us.

Gives YAML that Traefik takes as it is, with its traps as comments where somebody would step into
them. What only one version has stands in it for that version alone: Traefik refuses a whole file
for one key that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.core.traefik.setup import TraefikSetup
from sidecar.core.traefik.yaml import Noted, Value, document

# The sidecar asks the model server for 5 s at most.
_HEALTH_INTERVAL = 10.0
# Go keeps two connections for the next request otherwise; each further request is a handshake.
_IDLE_CONNECTIONS = 64


def dynamic_part(setup: TraefikSetup) -> str:
    """Give the text of the dynamic configuration."""
    http: dict[str, Value] = {
        "routers": {setup.name: _router(setup)},
        "services": {setup.name: {"loadBalancer": _load_balancer(setup)}},
        "serversTransports": {setup.name: _transport(setup)},
    }
    return document("\n".join(_head(setup)), {"http": http})


def seconds(value: float) -> str:
    """Give a duration as Go reads it, and never 0, which means no limit."""
    return f"{value:.0f}s" if value == int(value) else f"{max(1, round(value * 1000))}ms"


def _head(setup: TraefikSetup) -> Iterator[str]:
    domains, servers = ", ".join(setup.domains), ", ".join(map(str, setup.servers))
    yield f"Dynamic configuration for Traefik {setup.version}: {domains} -> {servers}"
    yield f"Written by `spiffe-sidecar traefik`, for {setup.dynamic_file}"
    yield ""
    yield "Traefik takes it up when the file changes; nothing needs a restart. Put it there"
    yield "whole, by `mv` from beside it: half a file is read as well. If Traefik cannot read it,"
    yield "it keeps the configuration of before and says why in its log alone."
    if setup.variant == "files":
        yield ""
        yield "The certificate files are read when this file is, and never again by themselves. The"
        yield "sidecar that writes them touches this file after each rotation (`--part helper`);"
        yield "without that, an expired SVID is presented within the hour."


def _router(setup: TraefikSetup) -> dict[str, Value]:
    # What repeats or delays is easily put here, and not easily seen.
    note = (
        "No `retry` here: it may send a request again that a model works on. No `buffering`, and\n"
        "`compress` only where you have seen it stream: they hold answers back."
    )
    router: dict[str, Value] = {
        "rule": " || ".join(f"Host(`{name}`)" for name in setup.domains),
        "entryPoints": [setup.entry_point],
        "middlewares": Noted(note, list(setup.middlewares)),
        "service": setup.name,
        "tls": {"certResolver": setup.cert_resolver} if setup.cert_resolver else {},
    }
    if not setup.middlewares:
        del router["middlewares"]
        router["service"] = Noted(note.replace("`retry` here", "`retry` before it"), setup.name)
    return router


def _load_balancer(setup: TraefikSetup) -> dict[str, Value]:
    balancer: dict[str, Value] = {
        "servers": [{"url": f"https://{server}"} for server in setup.servers],
        "serversTransport": setup.name,
        "passHostHeader": Noted(_host_note(setup), setup.terms.pass_host),
        "healthCheck": Noted(_health_note(setup), _health(setup)),
    }
    if len(setup.servers) > 1 and setup.version.has_strategy:
        note = "Answers take seconds or minutes: of two servers, the one with fewer of them."
        balancer["strategy"] = Noted(note, "p2c")
    return balancer


def _host_note(setup: TraefikSetup) -> str:
    if setup.terms.pass_host:
        return "The sidecar writes Host anew: Ollama answers 403 to names that it does not know."
    return (
        "The sidecar leaves Host as it is, and Ollama answers 403 to names that it does not know."
    )


def _health_note(setup: TraefikSetup) -> str:
    lines = ["It is asked with Traefik's SVID. A policy that does not admit that, or a sidecar of"]
    lines += [
        "another ID, takes a server out (503 with none left); the warning in Traefik's log says"
    ]
    lines += ["why. To a request before that it answers 500, and says why at level DEBUG alone."]
    if setup.terms.is_http:
        lines += ["200 means that the sidecar has a valid SVID and that the model server answers."]
    else:
        lines += ["The sidecar is in mode stream, so it is the model server that answers."]
    if setup.variant == "files" and len(setup.servers) > 1:
        lines += ["Each rotation loads this file anew, and all servers count as healthy until they"]
        lines += ["are asked; with --variant spiffe nothing is loaded."]
    return "\n".join(lines)


def _health(setup: TraefikSetup) -> dict[str, Value]:
    return {
        "path": setup.terms.health_path,
        "interval": seconds(max(_HEALTH_INTERVAL, setup.terms.health + 4)),
        "timeout": seconds(setup.terms.health),
        "followRedirects": False,
    }


def _transport(setup: TraefikSetup) -> dict[str, Value]:
    transport = _spiffe(setup) if setup.variant == "spiffe" else _files(setup)
    terms = setup.terms
    idle_note = "Less than the sidecar's [timeouts] idle: no request meets a closed connection."
    first_note = (
        "To the first byte of an answer, while a model is loaded perhaps. More than the\n"
        "sidecar's own deadlines, so that its answer is what the client gets."
    )
    timeouts: dict[str, Value] = {
        "dialTimeout": "10s",
        "responseHeaderTimeout": Noted(first_note, seconds(terms.first_byte)),
        "idleConnTimeout": Noted(idle_note, seconds(terms.idle)),
    }
    note = "Connections kept for the next request; Go's own number is 2."
    transport["maxIdleConnsPerHost"] = Noted(note, _IDLE_CONNECTIONS)
    transport["forwardingTimeouts"] = timeouts
    return transport


def _spiffe(setup: TraefikSetup) -> dict[str, Value]:
    """Give what has Traefik take its SVID from the agent and verify ours by its ID."""
    note = (
        "The static configuration has to name the agent (`--part static`). Whoever has none of\n"
        "these IDs is refused; with no ids and no trustDomain anybody with an SVID is let in.\n"
        "No certificates, rootCAs, serverName or insecureSkipVerify beside it: Traefik would drop\n"
        "all of it, and connect without an SVID."
    )
    if setup.version.has_tls_versions:
        note = note.replace("serverName or insecureSkipVerify", "serverName, minVersion and so on")
    return {"spiffe": Noted(note, {"ids": [str(one) for one in setup.server_ids]})}


def _files(setup: TraefikSetup) -> dict[str, Value]:
    """Give what has Traefik present the helper's files and verify our chain and ID."""
    folder = f"{setup.certificates.rstrip('/')}/current"
    pair: dict[str, Value] = {
        "certFile": f"{folder}/svid.pem",
        "keyFile": f"{folder}/svid_key.pem",
    }
    return {
        "certificates": Noted(_certificates_note(setup), [pair]),
        "rootCAs": [f"{folder}/svid_bundle.pem"],
        "insecureSkipVerify": Noted(
            "Of the host name alone, which an SVID does not have. What is verified instead, the\n"
            "chain up to rootCAs included, is the ID below; without that line nothing would be.",
            True,
        ),
        **_peer_id(setup),
    }


def _certificates_note(setup: TraefikSetup) -> str:
    lines = [
        "`current` is one generation of files, so that certificate and key belong together; a pair",
        "that does not is dropped without a word, and Traefik connects without an SVID.",
    ]
    if setup.version.has_tls_versions:
        lines += ["So it does after `minVersion` without `maxVersion`."]
    return "\n".join(lines)


def _peer_id(setup: TraefikSetup) -> dict[str, Value]:
    if setup.version.has_peer_cert_sans:
        sans: list[Value] = [{"type": "URI", "value": str(one)} for one in setup.server_ids]
        return {"peerCertSANs": sans}
    (only,) = map(str, setup.server_ids)
    if not setup.version.may_ignore_trust_domain:
        return {"peerCertURI": only}
    note = (
        "Before 3.6.8 Traefik compares the path alone and not the trust domain: rootCAs must hold\n"
        "the authorities of this trust domain and of no other."
    )
    return {"peerCertURI": Noted(note, only)}
