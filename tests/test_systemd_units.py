"""The units, the quadlet and the Containerfile: what they promise, and what systemd says of them.

They are started for real in `test_booted_host`; here they are looked at, which takes no root.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.cli.edge import EX_CONFIG
from sidecar.core import host_layout
from sidecar.core.config import Config, ConnectionsTable, parse_config
from sidecar.core.host_layout import LINUX
from sidecar.server import _SPARE_DESCRIPTORS

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "systemd"
SIDECAR, SOCKET, AGENT = LINUX.sidecar_service, "spiffe-sidecar.socket", LINUX.agent_service
SERVICES = [SIDECAR, AGENT]
QUADLET = "spiffe-sidecar.container"
MOST_EXPOSED = 2.0
DRAIN = ConnectionsTable().drain_seconds
# What only root has on PATH, and podman nowhere.
QUADLET_PROGRAMS = ("/usr/libexec/podman/quadlet", "/usr/lib/podman/quadlet")

Unit = dict[str, dict[str, list[str]]]


def read(name: str) -> Unit:
    """Sections of a unit, with the values of each key in their order."""
    unit: Unit = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            unit.setdefault(section, {}).setdefault(key, []).append(value)
    return unit


def one(unit: Unit, section: str, key: str) -> str:
    """The only value of a key."""
    (value,) = unit[section][key]
    return value


def seconds(text: str) -> float:
    assert re.fullmatch(r"[0-9]+s", text), text
    return float(text.removesuffix("s"))


@pytest.fixture
def analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here")
    return program


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def exposure(analyze: str, name: str) -> subprocess.CompletedProcess[str]:
    return run(analyze, "security", "--offline=yes", "--no-pager", UNITS / name)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name: str, analyze: str) -> None:
    done = exposure(analyze, name)
    found = re.search(rf"exposure level for {re.escape(name)}: ([0-9.]+)", done.stdout)
    if found is None:  # before systemd 250 it cannot look at a file
        pytest.skip(f"no score: {done.stderr.strip()}")
    assert float(found[1]) <= MOST_EXPOSED, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_relaxed_line_has_its_reason_beside_it(name: str, analyze: str) -> None:
    shown = exposure(analyze, name).stdout
    relaxed = set(re.findall(r"^✗ ([A-Za-z]+)=", shown, re.MULTILINE))
    comments = " ".join(re.findall(r"^# .*", (UNITS / name).read_text(), re.MULTILINE))
    unsaid = {key for key in relaxed if f"{key}=" not in comments}
    assert not unsaid


def test_systemd_finds_nothing_wrong_with_the_units(analyze: str, tmp_path: Path) -> None:
    # Where the programs are on a host that is set up, there is nothing here.
    program = shutil.which("true")
    for name in (*SERVICES, SOCKET):
        text = (UNITS / name).read_text()
        text = re.sub(r"(?m)^(Exec\w+=)/opt\S+", rf"\g<1>{program}", text)
        (tmp_path / name).write_text(text)
    done = run(analyze, "verify", *(tmp_path / name for name in (*SERVICES, SOCKET)))
    # It also tells of faults in whatever else is installed.
    ours = [line for line in done.stderr.splitlines() if "spi" in line.partition(":")[0]]
    assert ours == []


def test_units_and_host_layout_agree() -> None:
    sidecar, agent = read(SIDECAR), read(AGENT)
    program = f"{host_layout.VENV}/bin/spiffe-sidecar"
    assert one(sidecar, "Service", "ExecStart") == f"{program} run --config {host_layout.CONFIG}"
    assert sidecar["Service"]["ExecReload"][0] == f"{program} check --config {host_layout.CONFIG}"
    assert one(sidecar, "Service", "User") == LINUX.service_user
    assert one(sidecar, "Service", "ReadWritePaths") == f"-{host_layout.CERT_FILES}"
    assert AGENT in one(sidecar, "Unit", "After").split()
    run_agent = f"{host_layout.AGENT_BINARY} run -config {host_layout.AGENT_CONF}"
    assert one(agent, "Service", "ExecStart") == run_agent
    assert one(agent, "Service", "User") == LINUX.agent_user
    sockets = str(Path(host_layout.AGENT_SOCKET).parent)
    assert one(agent, "Service", "ReadWritePaths").split() == [host_layout.AGENT_DATA, sockets]


@pytest.mark.parametrize("name", [SIDECAR, QUADLET])
def test_a_configuration_that_cannot_be_used_is_not_tried_again(name: str) -> None:
    unit = read(name)
    assert one(unit, "Service", "Restart") == "on-failure"
    assert one(unit, "Service", "RestartPreventExitStatus") == str(EX_CONFIG)
    # ... and anything else is, for ever.
    assert one(unit, "Unit", "StartLimitIntervalSec") == "0"


def test_running_answers_may_finish_before_it_is_killed() -> None:
    assert seconds(one(read(SIDECAR), "Service", "TimeoutStopSec")) > DRAIN
    assert one(read(SIDECAR), "Service", "KillMode") == "mixed"
    quadlet = read(QUADLET)
    stop = float(one(quadlet, "Container", "PodmanArgs").removeprefix("--stop-timeout="))
    assert DRAIN < stop < seconds(one(quadlet, "Service", "TimeoutStopSec"))


def test_there_are_descriptors_for_all_connections() -> None:
    table = ConnectionsTable()
    needed = 2 * table.maximum + table.maximum_handshakes + _SPARE_DESCRIPTORS
    assert int(one(read(SIDECAR), "Service", "LimitNOFILE")) >= needed


def test_the_daemon_says_that_it_is_ready_and_alive() -> None:
    unit = read(SIDECAR)
    assert one(unit, "Service", "Type") == "notify"
    assert seconds(one(unit, "Service", "WatchdogSec")) > 0


def test_the_socket_is_the_default_listener() -> None:
    config = parse_config((ROOT / "conf/sidecar.toml").read_text(), "sidecar.toml")
    assert isinstance(config, Config)
    (address,) = config.listener.address
    unit = read(SOCKET)
    assert one(unit, "Socket", "ListenStream") == str(address)
    assert one(unit, "Socket", "Accept") == "no"


# podman-systemd.unit(5) of podman 4.6, [Container]; later versions have more.
QUADLET_KEYS = {
    "AddCapability",
    "AddDevice",
    "Annotation",
    "AutoUpdate",
    "ContainerName",
    "DNS",
    "DNSOption",
    "DNSSearch",
    "DropCapability",
    "Environment",
    "EnvironmentFile",
    "EnvironmentHost",
    "Exec",
    "ExposeHostPort",
    "GIDMap",
    "Group",
    "HealthCmd",
    "HealthInterval",
    "HealthOnFailure",
    "HealthRetries",
    "HealthStartPeriod",
    "HealthStartupCmd",
    "HealthStartupInterval",
    "HealthStartupRetries",
    "HealthStartupSuccess",
    "HealthStartupTimeout",
    "HealthTimeout",
    "HostName",
    "Image",
    "IP",
    "IP6",
    "Label",
    "LogDriver",
    "Mask",
    "Mount",
    "Network",
    "NoNewPrivileges",
    "Notify",
    "PodmanArgs",
    "PublishPort",
    "Pull",
    "ReadOnly",
    "ReadOnlyTmpfs",
    "Rootfs",
    "RunInit",
    "SeccompProfile",
    "Secret",
    "SecurityLabelDisable",
    "SecurityLabelFileType",
    "SecurityLabelLevel",
    "SecurityLabelNested",
    "SecurityLabelType",
    "ShmSize",
    "Sysctl",
    "Timezone",
    "Tmpfs",
    "UIDMap",
    "Ulimit",
    "Unmask",
    "User",
    "UserNS",
    "Volume",
    "VolatileTmp",
    "WorkingDir",
}


def test_the_quadlet_has_no_key_that_podman_does_not_know() -> None:
    unit = read(QUADLET)
    assert set(unit) == {"Unit", "Container", "Service", "Install"}
    assert set(unit["Container"]) <= QUADLET_KEYS


def test_the_quadlet_gives_the_container_nothing_that_it_does_not_need() -> None:
    container = read(QUADLET)["Container"]
    for key in ("ReadOnly", "NoNewPrivileges", "Notify"):
        assert container[key] == ["true"], key
    assert container["DropCapability"] == ["all"]
    uid = host_layout.SERVICE_UID
    assert container["User"] == [str(uid)]
    assert container["UserNS"] == [f"keep-id:uid={uid},gid={uid}"]
    mounts = [value.split(":")[1:] for value in container["Volume"]]
    assert [str(Path(host_layout.CONFIG).parent), "ro"] in mounts
    assert [str(Path(host_layout.AGENT_SOCKET).parent), "ro"] in mounts
    assert [host_layout.CERT_FILES] in mounts
    assert len(mounts) == 3


def test_podman_makes_a_service_of_the_quadlet(tmp_path: Path) -> None:
    program = next((one for one in QUADLET_PROGRAMS if Path(one).exists()), None)
    if program is None:
        pytest.skip("no quadlet here: podman 4.6 or newer brings it")
    shutil.copy(UNITS / QUADLET, tmp_path)
    done = subprocess.run(
        [program, "-dryrun", "-user"],
        env={"QUADLET_UNIT_DIRS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ExecStart=/usr/bin/podman run" in done.stdout
    assert "--sdnotify=container" in done.stdout


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions and their words, continued lines joined."""
    text = (UNITS / "Containerfile").read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    pairs = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, words) for name, words in pairs]


def test_the_image_is_made_of_the_locked_packages_alone() -> None:
    installs = [words for name, words in instructions() if name == "RUN"]
    locked, own = installs
    assert "--require-hashes" in locked
    assert "-r requirements.txt" in locked
    assert "--no-index --no-deps" in own
    # Nothing comes from elsewhere, and the last stage has the environment and nothing else.
    assert {name for name, _ in instructions()}.isdisjoint({"ADD"})
    copies = [words for name, words in instructions() if name == "COPY"]
    assert copies[-1] == f"--from=build {host_layout.VENV} {host_layout.VENV}"


def test_the_image_runs_the_daemon_without_root_and_without_a_shell() -> None:
    last = dict(instructions())
    uid = host_layout.SERVICE_UID
    assert last["USER"] == f"{uid}:{uid}"
    assert json.loads(last["ENTRYPOINT"]) == [f"{host_layout.VENV}/bin/spiffe-sidecar"]
    assert json.loads(last["CMD"]) == ["run", "--config", host_layout.CONFIG]
