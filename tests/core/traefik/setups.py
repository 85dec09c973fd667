"""Setups of Traefik for tests: the user's platform, with changes."""

from __future__ import annotations

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.checked import Serving
from sidecar.core.config import Config, parse_config
from sidecar.core.policy_file import parse_policy
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.setup import Server, Terms, TraefikSetup
from sidecar.core.traefik.version import TraefikVersion
from tests.core.configurations import FILE, SERVES, toml

OWN = "spiffe://ravenhelm.local/workload/model-server"
TRAEFIK = "spiffe://ravenhelm.local/workload/traefik"
POLICY = f"""
[[allow]]
name = "traefik"
peers = ["{TRAEFIK}"]
endpoints = ["preset:ollama"]
trusted_proxy = true
"""


def config(**changes: dict[str, str]) -> Config:
    """A configuration of mode `http` with other values for some keys."""
    changes["backend"] = {**SERVES["backend"], "mode": '"http"', **changes.get("backend", {})}
    read = parse_config(toml(SERVES, **changes), FILE)
    assert isinstance(read, Config)
    return read


def serving(policy: str = POLICY, **changes: dict[str, str]) -> Serving:
    """Configuration and policy together."""
    made = config(**changes)
    return Serving(made, parse_policy(policy, "policy.toml", made.backend.mode), policy)


def setup(version: str = "3.7.9", variant: str = "spiffe", **changes: object) -> TraefikSetup:
    """One sidecar at the user's platform."""
    values: dict[str, object] = {
        "terms": Terms.of(config()),
        "servers": (Server("192.168.50.26", 6701),),
        "server_ids": (SpiffeId.parse(OWN),),
        "domains": ("models.ravenhelm.dev",),
        "name": "model-server",
        "entry_point": "websecure",
        "listen": ":443",
        "cert_resolver": None,
        "middlewares": (),
        "agent_socket": WorkloadEndpoint.parse("unix:/opt/spire/sockets/agent.sock"),
        "certificates": "/etc/traefik/spiffe",
        "dynamic_file": "/etc/traefik/dynamic/model-server.yml",
        **changes,
    }
    return TraefikSetup(TraefikVersion.parse(version), variant, **values)  # type: ignore[arg-type]
