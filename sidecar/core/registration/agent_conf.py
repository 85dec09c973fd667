"""The configuration of the SPIRE agent on the model server's host, as text.

Paths are those of `host_layout`. Begins with the trust bundle that is copied beside it, never with
`insecure_bootstrap`. No secret stands in it: the join token is in a file of its own, because
arguments and configurations are read by others.
Specification: SPIRE, "SPIRE Agent Configuration Reference".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from sidecar.core import host_layout
from sidecar.core.registration.entries import Selector
from sidecar.core.spiffe_id import TrustDomain

DEFAULT_PORT = 8081
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# Only for these the agent has to be told to look at a process's program.
_OF_THE_PROGRAM = ("path:", "sha256:")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where agents reach the SPIRE server."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ServerAddress:
        """Read `host`, `host:port` or `[ip]:port`, or raise `ValueError`."""
        host, port = _divided(text)
        if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
            raise ValueError("expected a port from 1 to 65535")
        if not _is_ip(host) and not _is_name(host):
            raise ValueError("expected HOST or HOST:PORT, an IPv6 address in brackets")
        return cls(host, int(port))

    @property
    def is_this_host(self) -> bool:
        """Tell whether another host would reach itself by it."""
        if not _is_ip(self.host):
            return self.host.rstrip(".").lower().rpartition(".")[2] == "localhost"
        ip = ip_address(self.host)
        return ip.is_loopback or ip.is_unspecified

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def agent_conf(
    trust_domain: TrustDomain, server: ServerAddress, selectors: Sequence[Selector]
) -> str:
    """Give the text of agent.conf for a host whose workloads have these selectors."""
    by_program = any(
        selector.type == "unix" and selector.value.startswith(_OF_THE_PROGRAM)
        for selector in selectors
    )
    # SPIRE leaves a process's program alone unless it is told otherwise.
    unix = "\n            discover_workload_path = true\n        " if by_program else ""
    return _TEMPLATE.format(
        trust_domain=trust_domain,
        # An IPv6 address stands without brackets: the agent puts them there.
        host=server.host,
        port=server.port,
        data=host_layout.AGENT_DATA,
        socket=host_layout.AGENT_SOCKET,
        bundle=host_layout.TRUST_BUNDLE,
        token=host_layout.JOIN_TOKEN,
        conf=host_layout.AGENT_CONF,
        unix=unix,
    )


_TEMPLATE = """\
# The SPIRE agent on the model server's host, {conf}: written by register-workload.
agent {{
    trust_domain = "{trust_domain}"
    server_address = "{host}"
    server_port = {port}

    # The server's authorities when this was written. The agent needs them for its first
    # connection; afterwards it follows the server's own.
    trust_bundle_path = "{bundle}"

    # Good for one use; what stays in the file afterwards opens nothing, and the file has to be
    # there at each start. SPIRE 1.13.3 or newer. With an older agent write here instead
    #     join_token = "the content of the file"
    # and make this file readable for the agent's account alone (0600): as the argument -joinToken
    # it would be read by every user of the host.
    join_token_file = "{token}"

    # The Workload API: where [workload_api] socket in sidecar.toml looks.
    socket_path = "{socket}"
    data_dir = "{data}"
    log_level = "INFO"
}}

plugins {{
    # An agent that a join token has attested cannot be attested again. Its SVID lives for agent_ttl
    # (in the server's configuration; 1h unless set otherwise) and is renewed at half of that: a
    # host that sleeps or is offline for longer needs a new token.
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}

    # On the disk, so that a restart of the agent needs no new token.
    KeyManager "disk" {{
        plugin_data {{
            directory = "{data}"
        }}
    }}

    # Tells workloads apart by their uid, and more.
    WorkloadAttestor "unix" {{
        plugin_data {{{unix}}}
    }}
}}
"""


def _divided(text: str) -> tuple[str, str]:
    """Give host and port; a colon more than one is an IPv6 address's own."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in host or (port and not port.startswith(":")):
            raise ValueError("expected [ip]:port")
        return host, port[1:] if port else str(DEFAULT_PORT)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, str(DEFAULT_PORT)


def _is_name(host: str) -> bool:
    # No name ends in a number: that is an IPv4 address with a slip.
    last = host.rstrip(".").rpartition(".")[2]
    return len(host) <= 253 and bool(_NAME.fullmatch(host)) and not last.isdigit()


def _is_ip(host: str) -> bool:
    # A zone names an interface of the host that the text was written on.
    try:
        ip_address(host)
    except ValueError:
        return False
    return "%" not in host
