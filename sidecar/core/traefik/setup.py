"""What Traefik is to be told about the sidecars behind it, as one value that was checked.

Gets texts as a person writes them, and what the configuration knows (`Terms`); gives
`TraefikSetup`, from which `dynamic` and `static` make files, or raises
`ValueError` with what was expected. Opens nothing and resolves no name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Literal

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import Config
from sidecar.core.http_answers import HEALTH_PATH
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.version import TraefikVersion

Variant = Literal["spiffe", "files"]

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_HOST_NAME = 253
_NUMBERS = re.compile(r"[0-9.]+")
_SERVER = re.compile(r"(?:\[([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\]|([^:\[\]]+))(?::([0-9]{1,5}))?")
# Traefik has more than that for some of them. `@` would name another provider.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}(?:@[a-z0-9-]{1,62})?")
# Traefik's own limit for a connection that waits, and how much sooner than us it must end it.
TRAEFIK_IDLE = 90.0
_SOONER = 0.75
_TRAEFIK_READ = 60.0
# Bytes a second, for the largest body: 4 Mbit/s.
_SLOW_LINE = 500_000
# What the network and Traefik itself take on top of our own deadlines.
_MARGIN = 30.0
_HEALTH_MARGIN = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where a sidecar is reached by Traefik; `host` is a name or an address, without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None) -> Server:
        """Read `host`, `host:port`, `[ip]:port` or an IP address, or raise `ValueError`."""
        found = _SERVER.fullmatch(text)
        # Else it is an IPv6 address without brackets, or wrong.
        host, port = (found[1] or found[2], found[3]) if found else (text, None)
        host = _host(host, text)
        if port is None and default_port is None:
            raise ValueError(
                f"expected HOST:PORT, found {text[:256]!r}: "
                "the configuration does not know the port, its service manager does"
            )
        number = default_port if port is None else int(port)
        if not number or number > 65535:
            raise ValueError(f"expected a port from 1 to 65535, found {text[:256]!r}")
        return cls(host, number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the sidecar's configuration says that Traefik has to go by; times in seconds."""

    is_http: bool
    health_path: str
    pass_host: bool
    idle: float
    first_byte: float
    upload: float
    health: float

    @classmethod
    def of(cls, config: Config) -> Terms:
        """Take them from a configuration."""
        times, is_http = config.timeouts, config.backend.mode == "http"
        queue = config.limits.queue_seconds if is_http else 0
        answer = times.first_byte if is_http else times.between_bytes
        return cls(
            is_http=is_http,
            health_path=HEALTH_PATH if is_http else config.backend.health_path,
            # Where the sidecar leaves Host as it is, Ollama answers 403 to Traefik's name.
            pass_host=is_http and config.backend.host != "keep",
            idle=min(TRAEFIK_IDLE, times.idle * _SOONER),
            first_byte=queue + times.backend_connect + answer + _MARGIN,
            health=times.health + _HEALTH_MARGIN,
            upload=max(
                _TRAEFIK_READ,
                times.between_bytes,
                config.limits.max_body_bytes // _SLOW_LINE if is_http else 0,
            ),
        )


@dataclass(frozen=True, slots=True)
class TraefikSetup:
    """All that the files are made of."""

    version: TraefikVersion
    variant: Variant
    terms: Terms
    servers: tuple[Server, ...]
    server_ids: tuple[SpiffeId, ...]
    domains: tuple[str, ...]
    name: str
    entry_point: str
    listen: str
    cert_resolver: str | None
    middlewares: tuple[str, ...]
    agent_socket: WorkloadEndpoint
    certificates: str
    dynamic_file: str

    def __post_init__(self) -> None:
        if self.variant == "spiffe" and not self.version.has_spiffe:
            raise ValueError(
                f"Traefik {self.version} does not ask the Workload API (3.0 and newer do): "
                "expected --variant files"
            )
        several = len(self.server_ids) > 1 and self.variant == "files"
        if several and not self.version.has_peer_cert_sans:
            raise ValueError(
                f"Traefik {self.version} compares with one ID when it reads files, "
                f"found {len(self.server_ids)}: expected one --spiffe-id, or --variant spiffe"
            )


def listener_port(config: Config) -> int | None:
    """Give the port that peers connect to; None where a service manager or the system picks it."""
    ports = [one.port for one in config.listener.address if one.ip is not None and one.port]
    return ports[0] if ports else None


def domain(text: str) -> str:
    """Read the name that clients ask for, or raise `ValueError`."""
    name = text.lower()
    if not _is_host_name(name) or _NUMBERS.fullmatch(name):
        raise ValueError(
            "expected a domain such as models.example.org, in ASCII (xn--...), "
            f"found {text[:256]!r}"
        )
    return name


def plain_name(text: str) -> str:
    """Read a name that Traefik's configuration gives to one of its parts."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"expected a name of letters, digits, - and _, found {text[:256]!r}")
    return text


def reference(text: str) -> str:
    """Read the name of a part that may be another provider's: `secure-headers@docker`."""
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"expected a name, or name@provider, found {text[:256]!r}")
    return text


def absolute_path(text: str) -> str:
    """Read a path on Traefik's host."""
    # What cannot be printed has no place in a file for people; Traefik takes a text that names no
    # file for the certificate itself.
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(f"expected an absolute path, found {text[:256]!r}")
    return text.rstrip("/") or "/"


def dynamic_path(text: str) -> str:
    """Read the path of the dynamic configuration."""
    path = absolute_path(text)
    if not path.endswith((".yml", ".yaml")):
        raise ValueError(
            f"expected a name that ends in .yml: of a directory Traefik reads no others, "
            f"found {text[:256]!r}"
        )
    return path


def listen_address(text: str) -> str:
    """Read where an entry point listens: `:443`, `ip:443` or `[ip]:443`."""
    try:
        # Without an address it is all of them.
        server = Server.parse(f"[::]{text}" if text.startswith(":") else text, None)
        ip_address(server.host)
    except ValueError as exc:
        raise ValueError(f"expected :PORT, IP:PORT or [IP]:PORT, found {text[:256]!r}") from exc
    return text


def _host(host: str, text: str) -> str:
    """Give a host name or address in its one spelling."""
    if ":" in host or _NUMBERS.fullmatch(host):
        try:
            ip = ip_address(host)
        except ValueError as exc:
            raise ValueError(_no_server(text)) from exc
        if isinstance(ip, IPv6Address) and ip.scope_id:
            raise ValueError(_no_server(text))  # means another network on every host
        return str(ip)
    if not _is_host_name(host.lower()):
        raise ValueError(_no_server(text))
    return host.lower()


def _is_host_name(text: str) -> bool:
    return len(text) <= _MAX_HOST_NAME and _HOST_NAME.fullmatch(text) is not None


def _no_server(text: str) -> str:
    return f"expected HOST or HOST:PORT, without a scheme or path, found {text[:256]!r}"
