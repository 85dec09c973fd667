"""What to tell a person about a Traefik in front of a sidecar: legal, and most likely to fail.

Gets a `TraefikSetup` with the configuration and policy of the sidecar, gives sentences; decides
nothing. Whether Traefik is admitted is the policy's own answer and not a second reading of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from sidecar.core.checked import Serving
from sidecar.core.config import Config
from sidecar.core.policy import Policy
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.setup import TRAEFIK_IDLE, TraefikSetup
from sidecar.core.traefik.version import NEWEST, TraefikVersion


def dynamic_warnings(
    setup: TraefikSetup, serving: Serving, traefik_id: SpiffeId | None
) -> Iterator[str]:
    """Give the warnings about the dynamic part, those that make every request fail first."""
    config, version = serving.config, setup.version
    if traefik_id is None:
        yield "whether the policy admits Traefik was not looked at: say its ID by --traefik-id"
    else:
        yield from _policy_warnings(serving, traefik_id)
        yield from _trust_domains(setup, traefik_id)
    yield from _identity_warnings(setup, config.workload_api.spiffe_id)
    yield from _listener_warnings(setup, config)
    if setup.terms.idle < TRAEFIK_IDLE:
        yield (
            f"[timeouts] idle is {config.timeouts.idle:g} s, so Traefik is told to close idle "
            f"connections after {setup.terms.idle:g} s; 120 s and its usual {TRAEFIK_IDLE:g} s "
            "save handshakes"
        )
    if setup.variant == "files" and version.may_ignore_trust_domain:
        other = "; or use --variant spiffe" if version.has_spiffe else ""
        yield (
            f"{_before(version)} does not compare the trust domain of peerCertURI (3.6.8 and "
            f"newer do): no authorities of another one may be in rootCAs{other}"
        )
    yield from _unknown(version)


def static_warnings(setup: TraefikSetup) -> Iterator[str]:
    """Give the warnings about the static part."""
    if setup.version.may_refuse_encoded_slash:
        patches = "3.6.3 to 3.6.6" if setup.version.major == 3 else "2.11.32 to 2.11.34"
        yield (
            f"Traefik {patches} answer 400 to %2F in a path, which clients write for models named "
            "a/b: say --version in full, and it is allowed where it has to be"
        )
    yield from _unknown(setup.version)


def _policy_warnings(serving: Serving, traefik: SpiffeId) -> Iterator[str]:
    policy, file = serving.policy, serving.config.policy.file
    decision = policy.decide(traefik)
    if not decision.allowed:
        yield (
            f"{file} does not admit {traefik}: {decision.reason}. The sidecar refuses whatever "
            "Traefik asks, its health check too, and Traefik answers 503: put the ID into the "
            "peers of an [[allow]] rule"
        )
    elif serving.config.backend.mode == "http":
        yield from _rule_warnings(policy, file, traefik)


def _rule_warnings(policy: Policy, file: str, traefik: SpiffeId) -> Iterator[str]:
    rules = [rule for rule in policy.allow if rule.matches(traefik)]
    if not any(rule.endpoints for rule in rules):
        names = ", ".join(repr(rule.name) for rule in rules)
        yield f"{file} admits {traefik} to GET /health and nothing else (rule {names})"
    if not any(rule.trusted_proxy for rule in rules):
        yield (
            f"{file}: no rule for {traefik} has trusted_proxy = true, so X-Forwarded-For tells "
            "the model server of Traefik and not of its clients"
        )


def _trust_domains(setup: TraefikSetup, traefik: SpiffeId) -> Iterator[str]:
    foreign = [one for one in setup.server_ids if one.trust_domain != traefik.trust_domain]
    if foreign and setup.variant == "files":
        yield (
            f"{foreign[0]} is of another trust domain than {traefik}, and rootCAs holds the "
            "authorities of Traefik's own alone: --variant spiffe verifies federated ones"
        )
    elif foreign:
        yield (
            f"{foreign[0]} is of another trust domain than {traefik}: both need the other's "
            "bundle, by federatesWith in their registration entries"
        )


def _identity_warnings(setup: TraefikSetup, own: SpiffeId | None) -> Iterator[str]:
    if own is not None and setup.server_ids and own not in setup.server_ids:
        told = ", ".join(map(str, setup.server_ids))
        yield f"this sidecar's [workload_api] spiffe_id is {own}, and Traefik is told {told}"


def _listener_warnings(setup: TraefikSetup, config: Config) -> Iterator[str]:
    addresses = [one for one in config.listener.address if one.ip is not None]
    remote = [server for server in setup.servers if not _is_this_host(server.host)]
    if addresses and remote and all(one.is_loopback for one in addresses):
        where = ", ".join(map(str, addresses))
        yield (
            f"[listener] address is {where}, for its own host alone, and Traefik is to connect "
            f"to {remote[0]}"
        )


def _is_this_host(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _before(version: TraefikVersion) -> str:
    if version.patch is None and (version.major, version.minor) == (3, 6):
        return "Traefik before 3.6.8"
    return f"Traefik {version}"


def _unknown(version: TraefikVersion) -> Iterator[str]:
    if version.is_unknown:
        newest = ".".join(map(str, NEWEST))
        yield (
            f"Traefik {version} is newer than what is known here ({newest}): this is for {newest}, "
            "so look at its log once it has it"
        )
