"""`setup-macos.sh` from a new Mac to one that is new again, with stand-ins for what is Apple's.

A real bash 3.2 runs it when $BASH32 names one. FULL=1 adds a real virtual environment and more
places at which the power goes out.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.core import host_layout as layout
from sidecar.core.config import Config
from sidecar.operations.check import check
from tests.fake_mac import (
    AGENT_SOCKET,
    CHECKOUT,
    HOMEBREW,
    SCRIPT,
    TOKEN,
    TRAEFIK,
    FakeMac,
    Run,
)
from tests.macos_stand_ins.state import Program, State
from tests.test_launchd_plists import KEYS, faults

FULL = pytest.mark.skipif(not os.environ.get("FULL"), reason="the longer form: FULL=1")
MACOS = layout.MACOS
ETC, HOME, SPIRE = "etc/spiffe-sidecar", "opt/spiffe-sidecar", "opt/spire"
SIDECAR, AGENT = MACOS.sidecar_service, MACOS.agent_service
ROTATION = "org.spiffe-sidecar.log-rotation"
LOGS = MACOS.log_directory.strip("/")
DAEMONS = MACOS.service_directory.strip("/")
SERVICE_FILES = f"{MACOS.service_user}:{MACOS.service_user}"
AGENT_FILES = f"{MACOS.agent_user}:{MACOS.agent_user}"


def checkout_in(folder: Path) -> Path:
    """A checkout of its own, which nobody changes meanwhile: what the script reads of one."""
    for name in ("scripts", "launchd", "conf"):
        shutil.copytree(CHECKOUT / name, folder / name)
    for name in ("requirements.txt", "pyproject.toml", "sidecar/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, folder / name)
    return folder


class Installed:
    """A Mac on which everything went well, and what was said on the way."""

    def __init__(self, folder: Path) -> None:
        self.checkout = checkout_in(folder / "checkout")
        self.mac = FakeMac(folder, self.checkout, State(check_is_real=True))
        self.new = self.mac.tree()
        self.dry = self.mac.install("--dry-run")
        self.after_dry = self.mac.tree()
        self.dry_calls = self.mac.calls()
        self.first = self.mac.install()
        self.calls = self.mac.calls()
        self.tree = self.mac.tree()
        self.second = self.mac.install()
        self.after_second = self.mac.tree()


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        done = Installed(Path(folder))
        yield done
        done.mac.close()


@pytest.fixture
def new(folder: Path, installed: Installed) -> Iterator[FakeMac]:
    """A new Mac."""
    mac = FakeMac(folder, installed.checkout)
    yield mac
    mac.close()


@pytest.fixture
def mac(folder: Path, installed: Installed) -> Iterator[FakeMac]:
    """A Mac on which everything is installed and runs."""
    mac = installed.mac.copy(folder)
    mac.state.check_is_real = False
    yield mac
    mac.close()


def running(mac: FakeMac) -> dict[str, bool]:
    """The services that are loaded, and whether they run."""
    return {label: service.running for label, service in mac.state.services.items()}


def well(run: Run) -> Run:
    assert run.status == 0, f"{run.out}\n{run.error}"
    return run


# Install, twice.


def test_install_does_what_the_dry_run_says(installed: Installed) -> None:
    well(installed.dry)
    assert installed.dry.changes
    assert well(installed.first).changes == installed.dry.changes
    assert installed.first.last == f"{len(installed.first.changes)} changes"
    assert installed.dry.last == f"dry run: {len(installed.first.changes)} changes would be made"


def test_dry_run_changes_nothing(installed: Installed) -> None:
    assert installed.after_dry == installed.new
    changing = {"chown", "mv", "-create", "-delete", "bootstrap", "enable", "venv", "pip", "-c"}
    assert [call for call in installed.dry_calls if changing & set(call)] == []


def test_second_run_changes_nothing(installed: Installed) -> None:
    assert well(installed.second).changes == []
    assert installed.second.last.startswith("no change")
    assert installed.after_second == installed.tree


@pytest.mark.parametrize(
    ("path", "attributes"),
    [
        (ETC, f"root:{MACOS.service_user} 0750"),
        (f"{ETC}/sidecar.toml", f"root:{MACOS.service_user} 0640"),
        (f"{ETC}/policy.toml", f"root:{MACOS.service_user} 0640"),
        (HOME, "root:wheel 0755"),
        (f"{HOME}/certs", f"{SERVICE_FILES} 0755"),
        (layout.AGENT_BINARY, "root:wheel 0755"),
        (layout.AGENT_CONF, "root:wheel 0644"),
        (layout.TRUST_BUNDLE, "root:wheel 0644"),
        (layout.JOIN_TOKEN, f"{AGENT_FILES} 0600"),
        (layout.AGENT_DATA, f"{AGENT_FILES} 0700"),
        (str(Path(layout.AGENT_SOCKET).parent), f"{AGENT_FILES} 0755"),
        (f"{DAEMONS}/{SIDECAR}.plist", "root:wheel 0644"),
        (f"{DAEMONS}/{AGENT}.plist", "root:wheel 0644"),
        (f"{DAEMONS}/{ROTATION}.plist", "root:wheel 0644"),
        ("etc/newsyslog.d/spiffe-sidecar.conf", "root:wheel 0644"),
        # newsyslog works here as root: nobody else may put a link in its way.
        (LOGS, "root:wheel 0755"),
        (f"{LOGS}/sidecar.log", f"{MACOS.service_user}:admin 0640"),
        (f"{LOGS}/sidecar.err", f"{MACOS.service_user}:admin 0640"),
        (f"{LOGS}/spire-agent.log", f"{MACOS.agent_user}:admin 0640"),
        (f"{LOGS}/spire-agent.err", f"{MACOS.agent_user}:admin 0640"),
    ],
)
def test_everything_belongs_to_whom_it_should(
    installed: Installed, path: str, attributes: str
) -> None:
    assert installed.mac.attributes(path.strip("/")) == attributes


@pytest.mark.parametrize(
    ("name", "uid"), [(MACOS.service_user, layout.SERVICE_UID), (MACOS.agent_user, 452)]
)
def test_accounts_are_hidden_and_cannot_log_in(installed: Installed, name: str, uid: int) -> None:
    accounts = installed.mac.state.accounts
    user, group = accounts["/Users"][name], accounts["/Groups"][name]
    assert user["UniqueID"] == str(uid)
    assert user["PrimaryGroupID"] == group["PrimaryGroupID"]
    assert user["IsHidden"] == "1"
    assert user["UserShell"] == "/usr/bin/false"
    assert user["NFSHomeDirectory"] == "/var/empty"
    assert user["Password"] == group["Password"] == "*"
    taken = [one["UniqueID"] for one in accounts["/Users"].values()]
    assert len(taken) == len(set(taken))


def test_services_run_from_their_property_lists(installed: Installed) -> None:
    assert running(installed.mac) == {SIDECAR: True, AGENT: True, ROTATION: False}  # by the clock
    for label, service in installed.mac.state.services.items():
        assert service.path == f"{installed.mac.root}/{DAEMONS}/{label}.plist"
        committed = CHECKOUT / f"launchd/{label}.plist"
        assert Path(service.path).read_bytes() == committed.read_bytes()


def test_made_configuration_is_a_good_one_for_this_mac(installed: Installed) -> None:
    checked = check(installed.mac.root / ETC / "sidecar.toml", {})
    assert checked.serving
    config: Config = checked.serving.config
    assert str(config.listener.address[0]) == "0.0.0.0:6701"
    assert str(config.backend.address) == "127.0.0.1:11434"
    assert config.log.file == f"{MACOS.log_directory}/sidecar.log"
    assert config.cors is None
    assert config.cert_files is not None
    assert config.cert_files.directory == layout.CERT_FILES
    (rule,) = checked.serving.policy.allow
    assert [str(peer) for peer in rule.peers] == [TRAEFIK]


def test_environment_is_a_link_to_a_version(installed: Installed) -> None:
    link = installed.mac.root / layout.VENV.strip("/")
    assert re.fullmatch(r"venv-0\.1\.0-[0-9a-f]{8}", str(link.readlink()))
    assert (link / ".made-of").is_file()


def test_packages_are_installed_by_their_hashes_and_our_own_without_a_network(
    installed: Installed,
) -> None:
    locked, own = (call for call in installed.calls if call[:4] == ["python", "-I", "-m", "pip"])
    assert {"--require-hashes", "--only-binary=:all:"} <= set(locked)
    assert locked[-2:] == ["-r", str(installed.checkout / "requirements.txt")]
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(own)
    assert own[-1] == str(installed.checkout)


def test_join_token_is_used_once_and_shown_nowhere(installed: Installed) -> None:
    said = [one.out + one.error for one in (installed.dry, installed.first, installed.second)]
    assert all(TOKEN not in text for text in said)
    assert all(TOKEN not in call for one in installed.calls for call in one)
    assert all(TOKEN not in content for content in installed.tree.values())
    assert (installed.mac.root / layout.JOIN_TOKEN.strip("/")).read_text() == "spent\n"
    assert not (installed.mac.host_folder / "join-token").exists()


def test_check_comes_before_what_it_checks_is_used(installed: Installed) -> None:
    words = [" ".join(call) for call in installed.calls]
    checked = next(n for n, one in enumerate(words) if "-m sidecar check" in one)
    assert all(n > checked for n, one in enumerate(words) if "launchctl bootstrap" in one)
    assert "doctor" in words[-1]


@FULL
def test_environment_is_a_real_one(new: FakeMac, folder: Path) -> None:
    """Python, pip, the build of a wheel and all that is run in it; the packages are borrowed."""
    new.checkout = checkout_in(folder / "whole")
    shutil.copytree(CHECKOUT / "sidecar", new.checkout / "sidecar", dirs_exist_ok=True)
    shutil.copy(CHECKOUT / "README.md", new.checkout)
    borrowed = sysconfig.get_path("purelib")
    (new.root / HOMEBREW).write_text(
        f"""#!/bin/sh
set -e
[ "$1 $2 $3" = "-I -m venv" ] || exec '{sys.executable}' "$@"
'{sys.executable}' -I -m venv --without-pip "$4"
echo '{borrowed}' >"$(echo "$4"/lib/python3*/site-packages)/borrowed.pth"
"""
    )
    run = new.install("--no-start")
    well(run)
    link = new.root / layout.VENV.strip("/")
    program = link / "bin/spiffe-sidecar"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip().endswith("0.1.0")
    (installed,) = link.glob("lib/python3*/site-packages/sidecar/__init__.py")
    assert installed.read_bytes() == (new.checkout / "sidecar/__init__.py").read_bytes()
    assert "sidecar.toml: fine" in run.out
    assert well(new.install("--no-start")).changes == []


# Upgrade, and back.


@pytest.fixture
def checkout(mac: FakeMac, folder: Path) -> Path:
    """A checkout that can be changed; the Mac's script is the one in it."""
    mac.checkout = checkout_in(folder / "another")
    return mac.checkout


def release(checkout: Path, version: str) -> None:
    path = checkout / "sidecar/__init__.py"
    path.write_text(re.sub(r'(?<=__version__ = ").*(?=")', version, path.read_text()))


def versions(mac: FakeMac) -> dict[str, str]:
    """What the links point to, without the hash."""
    links = [one for one in (mac.root / HOME).iterdir() if one.is_symlink()]
    return {one.name: str(one.readlink()).rpartition("-")[0] for one in links}


def test_upgrade_restarts_the_sidecar_alone_and_can_be_taken_back(
    mac: FakeMac, checkout: Path
) -> None:
    before = mac.tree()
    release(checkout, "0.2.0")
    mac.state.questions_to_end = 2  # an answer is still running
    dry = well(mac.run("--upgrade", "--dry-run"))
    mac.calls()
    assert well(mac.run("--upgrade")).changes == dry.changes
    assert [change.split()[0] for change in dry.changes] == ["make", "use", "restart"]
    assert versions(mac) == {"venv": "venv-0.2.0", "venv.previous": "venv-0.1.0"}
    booted = [call[1:] for call in mac.calls("launchctl") if call[1] in ("bootout", "bootstrap")]
    assert [one[0] for one in booted] == ["bootout", "bootstrap"]
    assert booted[0][1] == f"system/{SIDECAR}"
    configured = {path: what for path, what in before.items() if path.startswith((ETC, SPIRE))}
    assert configured.items() <= mac.tree().items()

    assert well(mac.run("--rollback")).changes[-1] == f"restart {SIDECAR}"
    assert versions(mac) == {"venv": "venv-0.1.0", "venv.previous": "venv-0.2.0"}


@FULL
def test_third_version_takes_the_first_one_away(mac: FakeMac, checkout: Path) -> None:
    for version in ("0.2.0", "0.3.0"):
        release(checkout, version)
        dry = well(mac.run("--upgrade", "--dry-run"))
        assert well(mac.run("--upgrade")).changes == dry.changes
    folders = {one.name.rpartition("-")[0] for one in (mac.root / HOME).glob("venv-*")}
    assert folders == {"venv-0.2.0", "venv-0.3.0"}
    assert well(mac.run("--upgrade")).changes == []


def test_upgrade_that_cannot_read_the_configuration_changes_nothing_that_runs(
    mac: FakeMac, checkout: Path
) -> None:
    release(checkout, "0.2.0")
    config = mac.root / ETC / "sidecar.toml"
    config.write_text(config.read_text() + "\n[nonsense]\n")
    mac.state.check_is_real = True
    mac.calls()
    run = mac.run("--upgrade")
    assert run.status == 1
    assert "nonsense" in run.out + run.error
    assert versions(mac)["venv"] == "venv-0.1.0"
    assert not [call for call in mac.calls("launchctl") if not call[1].startswith("print")]


def test_upgrade_of_nothing_is_refused(new: FakeMac) -> None:
    before = new.tree()
    run = new.run("--upgrade")
    assert run.status == 1
    assert "nothing is installed" in run.error
    assert new.tree() == before


# Uninstall.


def test_uninstall_leaves_what_it_says_and_purge_leaves_nothing(
    mac: FakeMac, installed: Installed
) -> None:
    dry = well(mac.run("--uninstall", "--dry-run"))
    kept = well(mac.run("--uninstall"))
    assert kept.changes == dry.changes
    assert mac.state.services == {}
    told = set(re.findall(rf"^  (?:file|folder) {mac.root}/([^,\s]+)", kept.out, re.MULTILINE))
    left = set(mac.tree()) - set(installed.new)
    # Within a folder that is told, all of it may stay.
    assert {one for one in left if not any(one.startswith(f"{top}/") for top in told)} <= {
        *told,
        "var/db/spiffe-sidecar",
    }
    assert told <= left
    assert not left & {HOME, f"{SPIRE}/bin", f"{DAEMONS}/{SIDECAR}.plist"}

    dry = well(mac.run("--uninstall", "--purge", "--dry-run"))
    assert well(mac.run("--uninstall", "--purge")).changes == dry.changes
    assert mac.tree() == installed.new
    assert mac.state.accounts == State().accounts
    assert "nothing was made here" in well(mac.run("--uninstall", "--purge")).out


def test_uninstall_leaves_alone_what_was_there_before(new: FakeMac) -> None:
    for name in (f"{SPIRE}/bin", LOGS, ETC):
        (new.root / name).mkdir(parents=True)
    theirs = new.root / SPIRE / "bin/other"
    theirs.write_text("theirs")
    (new.root / ETC / "sidecar.toml").write_text((CHECKOUT / "conf/sidecar.toml").read_text())
    well(new.install())
    well(new.run("--uninstall", "--purge"))
    assert theirs.read_text() == "theirs"
    assert (new.root / ETC / "sidecar.toml").exists()
    assert (new.root / LOGS).is_dir()
    assert not (new.root / HOME).exists()


# What is there already.


def test_configuration_that_is_there_is_never_overwritten(mac: FakeMac) -> None:
    config, policy = (mac.root / ETC / name for name in ("sidecar.toml", "policy.toml"))
    config.write_text(config.read_text().replace("6701", "7701"))
    policy.write_text("# nobody\n" + policy.read_text())
    before = config.read_text(), policy.read_text()
    run = well(mac.install("--spiffe-id", "spiffe://example.org/workload/model-server"))
    assert (config.read_text(), policy.read_text()) == before
    assert (
        "spiffe://example.org/workload/model-server"
        in (config.parent / "sidecar.toml.new").read_text()
    )
    assert run.out.count("stays as it is") == 2
    assert not [one for one in run.changes if "start" in one]


def test_account_that_is_there_keeps_its_uid(new: FakeMac) -> None:
    new.state.accounts["/Users"][MACOS.service_user] = {"UniqueID": "333"}
    run = well(new.install("--no-start", "--dry-run"))
    assert "unix:uid:333" in run.out
    assert not [one for one in run.changes if one.startswith(f"make account {MACOS.service_user}")]
    assert new.install("--uid", "444").status == 1


def test_wrong_owner_and_mode_are_mended(mac: FakeMac, installed: Installed) -> None:
    mac.state.owners[os.path.realpath(mac.root / layout.AGENT_CONF.strip("/"))] = "admin:staff"
    (mac.root / LOGS / "sidecar.log").chmod(0o666)
    (mac.root / layout.AGENT_DATA.strip("/")).chmod(0o755)
    assert len(well(mac.install()).changes) == 3
    assert mac.tree() == moved(installed.tree, installed.mac, mac)


def test_service_that_was_stopped_or_disabled_is_started_again(mac: FakeMac) -> None:
    mac.state.services[AGENT].running = False
    del mac.state.services[SIDECAR]
    mac.state.disabled.add(SIDECAR)
    run = well(mac.run("--upgrade"))
    assert run.changes == [f"start {AGENT}", f"enable {SIDECAR}", f"start {SIDECAR}"]
    assert running(mac) == {SIDECAR: True, AGENT: True, ROTATION: False}


# Interrupted at any place, it goes on from there.


def moved(tree: dict[str, str], source: FakeMac, target: FakeMac) -> dict[str, str]:
    """The same tree in another place."""
    return {path: what.replace(str(source.root), str(target.root)) for path, what in tree.items()}


CUTS = [
    pytest.param(["dscl", ".", "-create"], 5, id="an account is half there"),
    pytest.param(["mv"], 7, id="a file is not in place yet", marks=FULL),
    pytest.param(["python", "-I", "-m", "pip"], 1, id="packages are not all there", marks=FULL),
    pytest.param(["launchctl", "bootstrap"], 2, id="one service does not run yet", marks=FULL),
]
MORE_CUTS = [
    pytest.param([name], number, id=f"{name} {number}", marks=FULL)
    for name, numbers in {
        "dscl": range(10, 35, 4),
        "chown": range(0, 24, 3),
        "mv": range(16),
    }.items()
    for number in numbers
]


@pytest.mark.parametrize(("before", "skip"), [*CUTS, *MORE_CUTS])
def test_power_cut_leaves_nothing_that_the_next_run_does_not_mend(
    new: FakeMac, installed: Installed, before: list[str], skip: int
) -> None:
    new.server.cut = (before, skip)
    assert new.install().status < 0
    assert new.server.cuts == 1, "there was no such call"
    well(new.install())
    made = "var/db/spiffe-sidecar/made-by-setup"
    wanted = moved(installed.tree, installed.mac, new)
    assert {**new.tree(), made: ""} == {**wanted, made: ""}
    assert running(new) == running(installed.mac)
    well(new.run("--uninstall", "--purge"))
    assert new.tree() == installed.new


def test_half_an_install_can_be_taken_away(new: FakeMac, installed: Installed) -> None:
    new.server.cut = (["mv"], 12)
    assert new.install().status < 0
    assert any(path.endswith(".setup") for path in new.tree())
    well(new.run("--uninstall", "--purge"))
    assert new.tree() == installed.new
    assert new.state.accounts == State().accounts


def test_restart_that_an_interruption_left_out_is_made_up_for(mac: FakeMac) -> None:
    path = mac.root / DAEMONS / f"{SIDECAR}.plist"
    path.write_text(path.read_text().replace("<integer>310</integer>", "<integer>20</integer>"))
    mac.server.cut = (["launchctl", "bootout"], 0)
    assert mac.run("--upgrade").status < 0
    run = well(mac.run("--upgrade"))
    assert run.changes == [f"restart {SIDECAR}"]
    assert well(mac.run("--upgrade")).changes == []


# launchd's ways.


def test_agent_joins_again_and_launchd_that_takes_its_time_is_waited_for(mac: FakeMac) -> None:
    mac.state.questions_to_end, mac.state.is_old_launchd = 3, True
    # Evicted, or its identity has expired: by the page, one folder and one command.
    (mac.root / layout.AGENT_DATA.strip("/") / "agent-data.json").unlink()
    mac.issue_token("another-token-1234")
    mac.calls()
    run = well(mac.run("--host-folder", str(mac.host_folder)))
    assert f"restart {AGENT}" in run.changes
    assert f"restart {SIDECAR}" not in run.changes
    assert len(mac.calls("sleep")) >= 2
    assert running(mac)[AGENT]


def test_agent_that_is_started_again_is_waited_for_until_it_issues(mac: FakeMac) -> None:
    """What cannot be asked yet is skipped by doctor, and no success."""
    conf = mac.host_folder / "agent.conf"
    conf.write_text(f"{conf.read_text()}\n# changed\n")
    (mac.host_folder / "join-token").unlink(missing_ok=True)
    mac.state.questions_to_join = 2
    mac.calls()
    run = well(mac.run("--host-folder", str(mac.host_folder)))
    assert f"restart {AGENT}" in run.changes
    assert mac.state.questions_to_join == 0
    assert len(mac.calls("sleep")) == 2


def test_agent_that_is_not_admitted_is_told_and_keeps_its_token(new: FakeMac) -> None:
    new.state.agent_is_admitted = False
    run = new.install()
    assert run.status == 1
    assert "not attested" in run.error
    assert TOKEN not in run.out + run.error
    token = new.root / layout.JOIN_TOKEN.strip("/")
    assert token.read_text() == f"{TOKEN}\n"
    new.state.agent_is_admitted = True
    well(new.run("--upgrade"))
    assert token.read_text() == "spent\n"


def test_doctor_that_finds_something_is_no_success(mac: FakeMac) -> None:
    mac.state.doctor = 1
    run = mac.run("--upgrade")
    assert run.status == 1
    assert "doctor found something" in run.error


def test_socket_activation_is_decided_by_the_configuration(mac: FakeMac) -> None:
    refused = mac.run("--upgrade", "--socket-activation")
    assert refused.status == 1
    assert "launchd:Listener" in refused.error
    config = mac.root / ETC / "sidecar.toml"
    config.write_text(config.read_text().replace('"0.0.0.0:6701"', '"launchd:Listener"'))
    well(mac.run("--upgrade", "--listen", "[::1]:7701"))
    plist = plistlib.loads((mac.root / DAEMONS / f"{SIDECAR}.plist").read_bytes())
    assert faults(plist, KEYS, "") == []
    held = plist["Sockets"]["Listener"]
    assert (held["SockFamily"], held["SockNodeName"], held["SockServiceName"]) == (
        "IPv6",
        "::1",
        "7701",
    )
    # The address is kept without the option.
    assert well(mac.run("--upgrade")).changes == []


@FULL
def test_new_configuration_has_launchd_hold_the_socket(new: FakeMac) -> None:
    well(new.install("--socket-activation", "--listen", "127.0.0.1:443", "--no-start"))
    checked = check(new.root / ETC / "sidecar.toml", {})
    assert checked.serving
    assert str(checked.serving.config.listener.address[0]) == "launchd:Listener"
    plist = plistlib.loads((new.root / DAEMONS / f"{SIDECAR}.plist").read_bytes())
    assert plist["Sockets"]["Listener"]["SockServiceName"] == "443"
    assert new.state.services == {}


# This Mac.


def python_of_the_firewall() -> str:
    return os.path.realpath(sys.executable)


def test_sleep_and_firewall_are_told_and_left_alone(mac: FakeMac) -> None:
    mac.state.sleep_minutes, mac.state.firewall = 10, 1
    mac.state.listens = ["127.0.0.1:11434", "*:11434"]
    run = well(mac.run("--upgrade"))
    assert run.changes == []
    assert "sleeps after 10 min" in run.error
    assert f"--unblockapp {python_of_the_firewall()}" in run.error
    assert "open to the network: *:11434\n" in run.error
    assert mac.state.sleep_minutes == 10
    assert mac.state.firewall_apps == {}


def test_sleep_and_firewall_are_changed_when_asked_to_and_changed_back(mac: FakeMac) -> None:
    mac.state.sleep_minutes, mac.state.firewall = 10, 1
    mac.state.listens = ["127.0.0.1:11434", "[::1]:11434"]
    asked = ("--upgrade", "--no-sleep", "--allow-firewall")
    dry = well(mac.run(*asked, "--dry-run"))
    run = well(mac.run(*asked))
    assert run.changes == dry.changes
    assert "warning" not in run.error + dry.error
    assert "on loopback only" in run.out
    assert mac.state.sleep_minutes == 0
    assert mac.state.firewall_apps == {python_of_the_firewall(): True}
    well(mac.run("--uninstall"))
    assert mac.state.sleep_minutes == 10
    assert mac.state.firewall_apps == {}


# Refused before anything is changed.


def _lacks_python(mac: FakeMac) -> None:
    (mac.root / HOMEBREW).unlink()


def _old_python(mac: FakeMac) -> None:
    (mac.root / HOMEBREW).write_text("#!/bin/sh\nexit 1\n")


def _uid_taken(mac: FakeMac) -> None:
    mac.state.accounts["/Users"]["_other"] = {"UniqueID": "451"}


def _linux_program(mac: FakeMac) -> None:
    kind = "ELF 64-bit LSB executable, ARM aarch64, version 1 (SYSV), statically linked"
    mac.state.programs[str(mac.agent_program)] = Program(kind)


def _unsigned(mac: FakeMac) -> None:
    mac.state.programs[str(mac.agent_program)] = Program(signed=False)


def _for_apple_silicon(mac: FakeMac) -> None:
    mac.state.is_intel = True


def _paths_of_linux(mac: FakeMac) -> None:
    conf = mac.host_folder / "agent.conf"
    conf.write_text(conf.read_text().replace("/opt/spire/sockets", "/run/spire/sockets"))


def _no_token(mac: FakeMac) -> None:
    (mac.host_folder / "join-token").unlink()


def _odd_token(mac: FakeMac) -> None:
    mac.issue_token("secret; rm -rf /")


def _bundle_without_certificate(mac: FakeMac) -> None:
    (mac.host_folder / "trust-bundle.pem").write_text("")


def _link_to_a_secret(mac: FakeMac) -> None:
    secret = mac.host_folder.parent / "master.passwd"
    secret.write_text("what root alone may read")
    (mac.host_folder / "agent.conf").unlink()
    (mac.host_folder / "agent.conf").symlink_to(secret)


def _second_name_of_a_secret(mac: FakeMac) -> None:
    _link_to_a_secret(mac)
    (mac.host_folder / "agent.conf").unlink()
    os.link(mac.host_folder.parent / "master.passwd", mac.host_folder / "agent.conf")


def _pipe(mac: FakeMac) -> None:
    (mac.host_folder / "trust-bundle.pem").unlink()
    os.mkfifo(mac.host_folder / "trust-bundle.pem")


def _ordinary_user(mac: FakeMac) -> None:
    mac.state.uid = 501


def _linux(mac: FakeMac) -> None:
    mac.state.system = "Linux"


def _nothing(mac: FakeMac) -> None:
    del mac


@pytest.mark.parametrize(
    ("prepare", "options", "status", "words"),
    [
        pytest.param(_ordinary_user, [], 1, "needs root", id="no root"),
        pytest.param(_linux, [], 1, "scripts/setup-linux.sh", id="not a Mac"),
        pytest.param(_lacks_python, [], 1, "no Python 3.11", id="no Python", marks=FULL),
        pytest.param(_old_python, [], 1, "Apple's own is 3.9", id="old Python"),
        pytest.param(_uid_taken, [], 1, "uid 451 belongs to _other", id="uid taken"),
        pytest.param(_linux_program, [], 1, "no program for macOS: ELF", id="Linux program"),
        pytest.param(_unsigned, [], 1, "codesign --force --sign -", id="no signature"),
        pytest.param(_for_apple_silicon, [], 1, "Intel", id="other processor", marks=FULL),
        pytest.param(_paths_of_linux, [], 1, "expected /opt/spire/sockets", id="/run"),
        pytest.param(_no_token, [], 1, "has no join-token", id="no token", marks=FULL),
        pytest.param(_odd_token, [], 1, "holds no join token", id="odd token"),
        pytest.param(_link_to_a_secret, [], 1, "is a link", id="a link"),
        pytest.param(_second_name_of_a_secret, [], 1, "is a link", id="a second name"),
        pytest.param(_pipe, [], 1, "no plain file", id="a pipe"),
        pytest.param(_nothing, ["--listen", "--dry-run"], 2, "needs a value", id="no value"),
        pytest.param(_nothing, ["--listen", "models"], 2, "expected ip:port", id="no address"),
        pytest.param(_bundle_without_certificate, [], 1, "no certificate", id="bundle", marks=FULL),
        pytest.param(_nothing, ["--uid", "501"], 2, "from 1 to 499", id="a person's uid"),
        pytest.param(_nothing, ["--wheels", "/"], 1, "no wheels in it", id="no wheels", marks=FULL),
        pytest.param(_nothing, ["--listen", 'x"\n[a]'], 2, "--listen", id="TOML in an address"),
        pytest.param(_nothing, ["--traefik-id", "traefik"], 2, "spiffe://", id="no SPIFFE ID"),
        pytest.param(_nothing, ["--frobnicate"], 2, "unknown option", id="unknown option"),
        pytest.param(_nothing, ["--purge"], 2, "goes with --uninstall", id="purge alone"),
        pytest.param(_nothing, ["--uid"], 2, "", id="option without value", marks=FULL),
        pytest.param(
            _nothing, ["--upgrade", "--uninstall"], 2, "exclude", id="two actions", marks=FULL
        ),
    ],
)
def test_what_cannot_go_well_is_refused_before_anything_is_changed(
    new: FakeMac, prepare: object, options: list[str], status: int, words: str
) -> None:
    assert callable(prepare)
    prepare(new)
    before, accounts = new.tree(), new.state.copy().accounts
    run = new.install(*options)
    assert run.status == status, run.error
    assert run.error.startswith("error: ")
    assert "hint: " in run.error
    assert words in run.error
    assert "rm -rf" not in run.error
    assert new.tree() == before
    assert new.state.accounts == accounts


def test_paths_in_the_script_are_those_of_the_layout() -> None:
    parts = [CHECKOUT / SCRIPT, *(CHECKOUT / "scripts/macos").glob("*.bash")]
    said = "\n".join(path.read_text() for path in parts)
    for name in (
        *(MACOS.service_user, MACOS.agent_user, SIDECAR, AGENT, MACOS.service_directory),
        *(MACOS.log_directory, layout.AGENT_BINARY, layout.AGENT_CONF, layout.AGENT_DATA),
        *(layout.TRUST_BUNDLE, layout.JOIN_TOKEN, *layout.HOST_FOLDER_FILES),
    ):
        assert name in said
    assert f"default_uid={layout.SERVICE_UID}\n" in said
    assert Path("/", AGENT_SOCKET) == Path(layout.AGENT_SOCKET)
