"""What is examined: the configuration as far as it can be used, the service user, the daemon.

A configuration with problems is no reason to stop: what can be read of it is used, and the rest is
a finding. Only a file that cannot be read at all ends the examination.
"""

from __future__ import annotations

import os
import platform as system
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from sidecar.adapters.host.accounts import own_account
from sidecar.adapters.host.addresses import Ip, own_addresses
from sidecar.adapters.host.command import Run, run
from sidecar.adapters.host.listening import listening_sockets
from sidecar.adapters.host.processes import process_of
from sidecar.adapters.host.services import LaunchdFolders, service
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import Config, HelperConfig, parse_config
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Account, ListeningSocket, ServiceState
from sidecar.core.diagnosis.listener import Daemon
from sidecar.core.host_layout import LINUX, MACOS, HostLayout
from sidecar.core.policy import Policy
from sidecar.core.toml_tables import ProblemsError
from sidecar.operations.check import DEFAULT_ENDPOINT, check, read_file
from sidecar.operations.doctor.commands import Commands
from sidecar.operations.doctor.daemon import daemon_on_port, daemon_that_answers, service_user
from sidecar.operations.doctor.together import Pending

# Why something of it is not known.
UNUSABLE = "the configuration cannot be used: see policy.configuration"


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for; `user` and `model` are empty unless they were given."""

    config: Path
    version: str  # that is installed
    user: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Files:
    """The configuration and the policy, as far as they can be used."""

    config: HelperConfig | None
    policy: Policy | None
    endpoint: WorkloadEndpoint
    problems: tuple[str, ...]

    @property
    def serving(self) -> Config | None:
        """Give the configuration if it has a listener."""
        return self.config if isinstance(self.config, Config) else None


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything that more than one group looks at."""

    request: Request
    files: Files
    platform: str
    layout: HostLayout
    own: Account
    account: Account  # the service user
    known_by: str
    sidecar: ServiceState | Unknown
    agent: ServiceState | Unknown
    sockets: tuple[ListeningSocket, ...] | Unknown
    own_ips: frozenset[Ip] | Unknown
    daemon: Daemon
    commands: Commands
    run: Run

    @property
    def config_file(self) -> Path:
        """Give the configuration's absolute path."""
        return self.request.config.absolute()

    @property
    def directory(self) -> Path:
        """Give where relative paths begin."""
        return self.config_file.parent

    @property
    def register(self) -> str:
        """Give the command that makes an entry for the service user."""
        config = self.files.config
        wanted = config.workload_api.spiffe_id if config else None
        domain = str(wanted.trust_domain) if wanted else "TRUST-DOMAIN"
        host = re.sub(r"[^a-z0-9._-]", "-", system.node().partition(".")[0].lower()) or "HOST"
        more = f" --spiffe-id {wanted}" if wanted else ""
        uid = self.account.uid
        return f"register-workload --trust-domain {domain} --host {host} --uid {uid}{more}"


def read_files(path: Path) -> Files:
    """Read both files, or raise `ConfigError` if the configuration cannot be read at all."""
    text = read_file(path)
    try:
        checked = check(path, os.environ)
    except ProblemsError as exc:
        problems = tuple(map(str, exc.problems))
    else:
        policy = checked.serving.policy if checked.serving else None
        return Files(checked.config, policy, checked.endpoint, ())
    try:
        config = parse_config(text, path.name)
    except ProblemsError:
        return Files(None, None, DEFAULT_ENDPOINT, problems)
    return Files(config, None, config.workload_api.socket or DEFAULT_ENDPOINT, problems)


async def subject(request: Request, run: Run = run, platform: str = sys.platform) -> Subject:
    """Find out what is examined; raises `ConfigError` if there is no such file."""
    files = read_files(request.config)
    layout = LINUX if platform == "linux" else MACOS
    agents = (Path("/Library/LaunchAgents"), _home() / "Library/LaunchAgents")
    folders = LaunchdFolders(Path(layout.service_directory), agents)
    async with trio.open_nursery() as nursery:
        sidecar = Pending(nursery, service(layout.sidecar_service, folders, run, platform))
        agent = Pending(nursery, service(layout.agent_service, folders, run, platform))
        sockets = Pending(nursery, listening_sockets(run, platform))
        own_ips = Pending(nursery, own_addresses(run, platform))
        said = Pending(nursery, daemon_that_answers(request.config, files.config))
    addresses = files.serving.listener.address if files.serving else ()
    daemon = await daemon_on_port(said.value, addresses, sockets.value, run, platform)
    process = await process_of(daemon.pid, run, platform) if daemon.pid else None
    account, known_by = await service_user(request.user, layout, sidecar.value, process)
    installed = isinstance(sidecar.value, ServiceState) and sidecar.value.installed
    return Subject(
        request=request,
        files=files,
        platform=platform,
        layout=layout,
        own=own_account(),
        account=account,
        known_by=known_by,
        sidecar=sidecar.value,
        agent=agent.value,
        sockets=sockets.value,
        own_ips=own_ips.value,
        daemon=daemon,
        commands=Commands(layout, platform != "linux", str(request.config), installed, daemon.pid),
        run=run,
    )


def _launchd_folders(layout: HostLayout) -> LaunchdFolders:
    agents = (Path("/Library/LaunchAgents"), Path.home() / "Library/LaunchAgents")
    return LaunchdFolders(Path(layout.service_directory), agents)


def _home() -> Path:
    return Path(os.path.expanduser("~"))
