"""The commands that remedies are made of, for the service manager of this host."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.host_layout import HostLayout


@dataclass(frozen=True, slots=True)
class Commands:
    """How things are done here; `by_hand` is the daemon's pid where no service is installed."""

    layout: HostLayout
    is_mac: bool
    config: str
    installed: bool
    by_hand: int = 0

    @property
    def start(self) -> str:
        """Give what starts the daemon."""
        if not self.installed:
            return f"spiffe-sidecar run --config {self.config}, as the service user"
        return self._start(self.layout.sidecar_service)

    @property
    def start_agent(self) -> str:
        """Give what starts the agent, now and with the host."""
        return self._start(self.layout.agent_service)

    def _start(self, service: str) -> str:
        if self.is_mac:
            plist = f"{self.layout.service_directory}/{service}.plist"
            return (
                f"sudo launchctl enable system/{service}; sudo launchctl bootstrap system {plist}"
            )
        return f"sudo systemctl enable --now {service}"

    @property
    def agent_log(self) -> str:
        """Give what shows the end of the agent's log."""
        if self.layout.log_directory:
            return f"sudo tail {self.layout.log_directory}/spire-agent.log"
        return f"journalctl -n 20 -u {self.layout.agent_service}"

    @property
    def restart(self) -> str:
        """Give what starts the daemon anew."""
        if not self.installed:
            return f"{self._signal('TERM')}, and {self.start}"
        if self.is_mac:
            return f"sudo launchctl kickstart -k system/{self.layout.sidecar_service}"
        return f"sudo systemctl restart {self.layout.sidecar_service}"

    @property
    def restart_agent(self) -> str:
        """Give what makes the agent fetch everything anew."""
        if self.is_mac:
            return f"sudo launchctl kickstart -k system/{self.layout.agent_service}"
        return f"sudo systemctl restart {self.layout.agent_service}"

    @property
    def reload(self) -> str:
        """Give what makes the daemon read its files."""
        return self._signal("HUP")

    @property
    def publish(self) -> str:
        """Give what makes the daemon fetch and write now."""
        return self._signal("USR1")

    def _signal(self, name: str) -> str:
        service = self.layout.sidecar_service
        if not self.installed:
            return f"sudo kill -{name} {self.by_hand}" if self.by_hand else self.start
        if self.is_mac:
            return f"sudo launchctl kill {name} system/{service}"
        # --kill-whom is the newer spelling, of systemd 252; the older one goes on to be understood.
        return f"sudo systemctl kill --kill-who=main --signal={name} {service}"

    @property
    def install(self) -> str:
        """Give what installs accounts, program and services."""
        return f"{self._setup} --spire-agent PATH --host-folder DIR"

    @property
    def _setup(self) -> str:
        return f"sudo scripts/setup-{'macos' if self.is_mac else 'linux'}.sh"

    def join(self, register: str) -> str:
        """Give what lets the agent attest anew; `register` is the command on the server's side."""
        first = f"on the SPIRE server: {register} --generate-token --host-folder DIR"
        return f"{first}\nthen copy DIR here, and: {self._setup} --host-folder DIR"

    @property
    def set_clock(self) -> str:
        """Give what has the clock set from the network."""
        if self.is_mac:
            return "sudo systemsetup -setusingnetworktime on"
        return "sudo timedatectl set-ntp true"

    @property
    def no_sleep(self) -> str:
        """Give what keeps the host awake."""
        if self.is_mac:
            return "sudo pmset -a sleep 0 disksleep 0 autorestart 1"
        targets = "sleep.target suspend.target hibernate.target hybrid-sleep.target"
        return f"sudo systemctl mask {targets}"
