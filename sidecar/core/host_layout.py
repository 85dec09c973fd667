"""Where everything is on a host that the installers have set up, and what it is called there.

What `register-workload` writes into an agent's configuration, what `scripts/setup-linux.sh` and
`scripts/setup-macos.sh` make, and what `doctor` looks for are the same; tests compare the scripts
and units with this module.
"""

from __future__ import annotations

from dataclasses import dataclass

# The service user's uid on both platforms, unless the installer is told another one: the
# registration entry names it before the host has it.
SERVICE_UID = 451

AGENT_SOCKET = "/opt/spire/sockets/agent.sock"
AGENT_BINARY = "/opt/spire/bin/spire-agent"
AGENT_CONF = "/opt/spire/conf/agent.conf"
AGENT_DATA = "/opt/spire/data"
TRUST_BUNDLE = "/opt/spire/conf/trust-bundle.pem"
JOIN_TOKEN = "/opt/spire/conf/join-token"  # noqa: S105 - the path of one

# What `register-workload --host-folder` writes and the installers take, by name.
HOST_FOLDER_FILES = ("agent.conf", "trust-bundle.pem", "join-token")

CONFIG = "/etc/spiffe-sidecar/sidecar.toml"
POLICY = "/etc/spiffe-sidecar/policy.toml"
# A link to the environment of the installed version; the one before stays beside it.
VENV = "/opt/spiffe-sidecar/venv"
CERT_FILES = "/opt/spiffe-sidecar/certs"


@dataclass(frozen=True, slots=True)
class HostLayout:
    """What differs between the platforms.

    Services are systemd units or launchd labels, as their manager names them.
    """

    service_user: str
    agent_user: str
    sidecar_service: str
    agent_service: str
    # Where their units or property lists are put.
    service_directory: str
    # Where the logs go; empty: to the journal.
    log_directory: str


LINUX = HostLayout(
    service_user="spiffe-sidecar",
    agent_user="spire-agent",
    sidecar_service="spiffe-sidecar.service",
    agent_service="spire-agent.service",
    service_directory="/etc/systemd/system",
    log_directory="",
)
# Accounts of services begin with an underscore there; labels are reverse domain names.
MACOS = HostLayout(
    service_user="_spiffe-sidecar",
    agent_user="_spire-agent",
    sidecar_service="org.spiffe-sidecar.sidecar",
    agent_service="org.spiffe-sidecar.spire-agent",
    service_directory="/Library/LaunchDaemons",
    log_directory="/var/log/spiffe-sidecar",
)
