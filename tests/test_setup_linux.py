"""`scripts/setup-linux.sh` in a tree of its own: what it makes, leaves alone, refuses, takes away.

Accounts, files, links and environments are real; nothing is started here, that is for
`test_booted_host`. Most of it takes root, because owners are part of what is made.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sidecar.core import host_layout
from sidecar.core.host_layout import LINUX
from tests.host_tree import ROOT, SPIFFE_ID, TOKEN, TRAEFIK_ID, HostTree, make_checkout, make_host

SCRIPT = ROOT / "scripts/setup-linux.sh"
HOME = Path(host_layout.VENV).parent

if sys.platform != "linux":
    pytest.skip("a script for Linux", allow_module_level=True)
root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "systemctl"))),
    reason="needs root, because files get their owners, and useradd and systemctl",
)


def refusal(*options: str | Path) -> tuple[int, str]:
    done = subprocess.run([SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--rot", "/x"], "unknown option --rot", id="unknown option"),
        pytest.param(["install"], "unknown option install", id="a word"),
        pytest.param(["--uid"], "--uid needs a value", id="no value"),
        pytest.param(["--uid", ""], "--uid needs a value", id="empty value"),
        pytest.param(["--uid", "0"], "--uid 0: expected a number above 0", id="root's uid"),
        pytest.param(["--uid", "45x"], "--uid 45x: expected a number", id="uid of letters"),
        pytest.param(["--upgrade", "--uninstall"], "exclude each other", id="two actions"),
        pytest.param(["--purge"], "--purge goes with --uninstall", id="purge alone"),
        pytest.param(
            ["--config", "c", "--listen", "0.0.0.0:1"], "leave out", id="config and its parts"
        ),
        pytest.param(["--policy", "p", "--traefik-id", "x"], "leave out", id="policy and its part"),
        pytest.param(["--root", "/nonexistent"], "expected the tree of a host", id="no tree"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(options: list[str], said: str) -> None:
    status, errors = refusal(*options)
    assert status == 2
    assert said in errors
    assert "hint: " in errors
    assert "--help" in errors


def test_help_names_every_option() -> None:
    shown = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(--[a-z-]+)[ )|]", SCRIPT.read_text().partition("read_options()")[2]))
    for option in known - {"--help"}:
        assert option in shown, option


@pytest.mark.skipif(os.geteuid() == 0, reason="this is root")
def test_it_says_first_that_it_needs_root() -> None:
    status, errors = refusal("--dry-run", "--traefik-id", TRAEFIK_ID)
    assert status == 1
    assert errors.startswith("error: needs root\nhint: sudo ")


def test_script_and_host_layout_agree() -> None:
    parts = sorted((ROOT / "scripts/linux").glob("*.bash"))
    text = "".join(part.read_text() for part in parts)
    said: dict[str, str] = dict(re.findall(r'^([a-z_]+)="?([^"\s]+)"?$', text, re.MULTILINE))
    home = {"$home": said["home"], "$config_dir": said["config_dir"]}
    home["$agent_sockets"] = said["agent_sockets"]

    def value(name: str) -> str:
        first, slash, rest = said[name].partition("/")
        return home.get(first, first) + slash + rest

    assert value("config") == host_layout.CONFIG
    assert value("policy") == host_layout.POLICY
    assert value("venv_link") == host_layout.VENV
    assert value("certs") == host_layout.CERT_FILES
    assert value("agent_binary") == host_layout.AGENT_BINARY
    assert value("agent_conf") == host_layout.AGENT_CONF
    assert value("agent_bundle") == host_layout.TRUST_BUNDLE
    assert value("agent_token") == host_layout.JOIN_TOKEN
    assert value("agent_data") == host_layout.AGENT_DATA
    assert value("agent_socket") == host_layout.AGENT_SOCKET
    assert value("default_uid") == str(host_layout.SERVICE_UID)
    assert value("service_user") == LINUX.service_user
    assert value("agent_user") == LINUX.agent_user
    assert value("sidecar_unit") == LINUX.sidecar_service
    assert value("agent_unit") == LINUX.agent_service
    assert value("unit_dir") == LINUX.service_directory


# From here on, with root.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("setup") / "checkout")


@pytest.fixture
def host(tmp_path: Path, checkout: Path) -> HostTree:
    """A host on which nothing is installed."""
    return make_host(tmp_path, checkout)


class Installed:
    """A host after its first installation, and what the script said."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.host = make_host(folder, checkout)
        self.before = self.host.snapshot()
        self.dry = self.host.setup(*self.host.everything, "--dry-run")
        self.after_dry = self.host.snapshot()
        self.done = self.host.setup(*self.host.everything)

    def copy(self, folder: Path) -> HostTree:
        """The same host again, for a test to change."""
        for name in ("host", "brought"):
            source = self.host.root.parent / name
            subprocess.run(["cp", "-a", source, folder / name], check=True)
        host = self.host
        return HostTree(folder / "host", host.checkout, folder / "brought", host.agent)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("first"), checkout)


@pytest.fixture
def installed(first: Installed, tmp_path: Path) -> HostTree:
    """A host on which everything is installed."""
    assert first.done.returncode == 0, first.done.stderr
    return first.copy(tmp_path)


def changes(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("+ ")]


def version_in_use(host: HostTree) -> str:
    return str(host.at(host_layout.VENV).readlink())


@root_only
def test_a_dry_run_says_what_would_be_done_and_does_nothing(first: Installed) -> None:
    assert first.dry.returncode == 0, first.dry.stderr
    assert first.after_dry == first.before
    assert (first.host.host_folder / "agent.conf").exists()
    done = changes(first.done.stdout)
    assert done
    assert changes(first.dry.stdout) == done
    assert f"dry run: {len(done)} changes would be made" in first.dry.stdout
    assert first.done.stdout.endswith(f"\n{len(done)} changes\n")


@root_only
def test_owners_and_modes(installed: HostTree) -> None:
    accounts = dict(
        line.split(":")[0:3:2] for line in installed.at("/etc/passwd").read_text().splitlines()
    )
    groups = dict(
        line.split(":")[0:3:2] for line in installed.at("/etc/group").read_text().splitlines()
    )
    assert accounts[LINUX.service_user] == str(host_layout.SERVICE_UID)
    for path, owner, group, mode in [
        ("/etc/spiffe-sidecar", "root", LINUX.service_user, 0o750),
        (host_layout.CONFIG, "root", LINUX.service_user, 0o640),
        (host_layout.POLICY, "root", LINUX.service_user, 0o640),
        (host_layout.CERT_FILES, LINUX.service_user, LINUX.service_user, 0o755),
        (str(HOME), "root", "root", 0o755),
        (host_layout.AGENT_BINARY, "root", "root", 0o755),
        (host_layout.AGENT_CONF, "root", "root", 0o644),
        (host_layout.TRUST_BUNDLE, "root", "root", 0o644),
        (host_layout.JOIN_TOKEN, LINUX.agent_user, LINUX.agent_user, 0o600),
        (host_layout.AGENT_DATA, LINUX.agent_user, LINUX.agent_user, 0o700),
        (str(Path(host_layout.AGENT_SOCKET).parent), LINUX.agent_user, LINUX.agent_user, 0o755),
        (f"{LINUX.service_directory}/{LINUX.sidecar_service}", "root", "root", 0o644),
        (f"{LINUX.service_directory}/{LINUX.agent_service}", "root", "root", 0o644),
    ]:
        status = installed.at(path).stat()
        found = (str(status.st_uid), str(status.st_gid), status.st_mode & 0o7777)
        assert found == (accounts[owner], groups[group], mode), path


@root_only
def test_the_environment_is_for_everybody_to_read_and_for_nobody_to_change(
    installed: HostTree,
) -> None:
    for path in installed.at(host_layout.VENV).resolve().rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            assert mode & 0o026 == 0o004, path
            assert path.stat().st_uid == 0


@root_only
def test_accounts_have_neither_shell_nor_home(installed: HostTree) -> None:
    for line in installed.at("/etc/passwd").read_text().splitlines()[1:]:
        name, *_, home, shell = line.split(":")
        assert name in {LINUX.service_user, LINUX.agent_user}
        assert home == "/nonexistent"
        assert shell.endswith("/nologin")


@root_only
def test_programs_are_called_as_they_will_be_on_the_host(installed: HostTree) -> None:
    program = installed.at(host_layout.VENV) / "bin/spiffe-sidecar"
    first_line = program.read_text().splitlines()[0]
    assert first_line == f"#!{HOME}/{version_in_use(installed)}/bin/python3.{_minor()}" or (
        first_line == f"#!{HOME}/{version_in_use(installed)}/bin/python"
    )


def _minor() -> int:
    return sys.version_info.minor


@root_only
def test_the_configuration_is_made_of_the_options(installed: HostTree) -> None:
    config = tomllib.loads(installed.at(host_layout.CONFIG).read_text())
    assert config["workload_api"]["spiffe_id"] == SPIFFE_ID
    assert config["listener"]["address"] == "0.0.0.0:6701"
    assert config["backend"]["address"] == "127.0.0.1:11434"
    # What a browser's page may do is not for an installer to decide.
    assert "cors" not in config
    policy = tomllib.loads(installed.at(host_layout.POLICY).read_text())
    assert [rule["peers"] for rule in policy["allow"]] == [[TRAEFIK_ID]]
    assert "deny" not in policy


@root_only
def test_without_a_known_firewall_the_line_is_for_nft(first: Installed) -> None:
    assert "no firewall is changed" in first.done.stdout
    assert "tcp dport 6701 ip saddr != TRAEFIK-ADDRESS drop" in first.done.stdout


@root_only
def test_units_are_enabled(installed: HostTree) -> None:
    wants = installed.at(f"{LINUX.service_directory}/multi-user.target.wants")
    assert {path.name for path in wants.iterdir()} == {LINUX.sidecar_service, LINUX.agent_service}


@root_only
def test_the_join_token_is_moved_and_never_shown(first: Installed) -> None:
    assert first.host.at(host_layout.JOIN_TOKEN).read_text().strip() == TOKEN
    assert not (first.host.host_folder / "join-token").exists()
    for done in (first.dry, first.done):
        assert TOKEN not in done.stdout + done.stderr


@root_only
def test_a_second_run_changes_nothing(installed: HostTree) -> None:
    before = installed.snapshot()
    done = installed.setup(*installed.everything)
    assert done.returncode == 0, done.stderr
    assert changes(done.stdout) == []
    assert done.stdout.endswith("no change: everything is in place\n")
    assert installed.snapshot() == before
    # A heading for each step, and under it that there is nothing to do.
    assert done.stdout.count("nothing to change") == 8


@root_only
def test_what_somebody_changed_is_set_right_again(installed: HostTree) -> None:
    before = installed.snapshot()
    installed.at(host_layout.AGENT_DATA).chmod(0o755)
    installed.at(host_layout.CONFIG).chmod(0o644)
    unit = installed.at(f"{LINUX.service_directory}/{LINUX.sidecar_service}")
    unit.write_text(unit.read_text().replace("ProtectHome=yes\n", ""))
    os.chown(installed.at(host_layout.CERT_FILES), 0, 0)
    done = installed.setup(*installed.everything)
    assert done.returncode == 0, done.stderr
    assert len(changes(done.stdout)) == 4
    assert _without_times(installed.snapshot()) == _without_times(before)


def _without_times(seen: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {path: (said[0], said[-1]) for path, said in seen.items()}


@root_only
def test_a_configuration_that_is_there_is_never_overwritten(installed: HostTree) -> None:
    config, policy = installed.at(host_layout.CONFIG), installed.at(host_layout.POLICY)
    config.write_text(config.read_text().replace("drain_seconds = 300", "drain_seconds = 60"))
    policy.write_text(policy.read_text().replace("burst = 20", "burst = 30"))
    mine = config.read_text(), policy.read_text()
    done = installed.setup(*installed.everything)
    assert done.returncode == 0, done.stderr
    assert (config.read_text(), policy.read_text()) == mine
    new = config.with_name("sidecar.toml.new")
    assert "drain_seconds = 300" in new.read_text()
    assert f"note: {host_layout.CONFIG} stays as it is" in done.stdout
    # The same again is no news, and an upgrade offers none.
    assert changes(installed.setup(*installed.everything).stdout) == []
    new.unlink()
    assert changes(installed.setup("--upgrade", *installed.offline).stdout) == []


@root_only
def test_a_configuration_that_cannot_be_used_puts_nothing_in_force(installed: HostTree) -> None:
    shutil.copytree(installed.checkout, changed := installed.root.parent / "changed")
    _set_version(changed, "0.2.0")
    newer = HostTree(installed.root, changed, installed.host_folder, installed.agent)
    config = newer.at(host_layout.CONFIG)
    good = config.read_text()
    config.write_text(good.replace("drain_seconds", "drain_second"))
    before = version_in_use(newer)
    done = newer.setup("--upgrade", *newer.offline)
    assert done.returncode == 1
    assert "drain_second" in done.stderr
    assert "hint: mend " in done.stderr
    assert version_in_use(newer) == before
    # Mended, the next run goes on: the new environment is there already.
    config.write_text(good)
    done = newer.setup("--upgrade", *newer.offline)
    assert done.returncode == 0, done.stderr
    now = version_in_use(newer)
    assert changes(done.stdout) == [
        f"+ use {now} instead of {before} ({newer.at(host_layout.VENV)})"
    ]
    assert now.startswith("venv-0.2.0-")
    assert newer.at(f"{HOME}/venv.previous").readlink() == Path(before)
    assert config.read_text() == good
    # And back again.
    done = newer.setup("--rollback")
    assert done.returncode == 0, done.stderr
    assert version_in_use(newer) == before
    assert newer.at(f"{HOME}/venv.previous").readlink() == Path(now)


def _set_version(checkout: Path, version: str) -> None:
    module = checkout / "sidecar/__init__.py"
    module.write_text(
        re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', module.read_text())
    )


@root_only
def test_versions_older_than_the_one_before_are_removed(installed: HostTree) -> None:
    old = installed.at(f"{HOME}/venv-0.0.1-00000000")
    old.mkdir()
    done = installed.setup("--upgrade", *installed.offline)
    assert changes(done.stdout) == [f"+ remove the old version {old}"]
    assert not old.exists()


@root_only
def test_a_package_that_is_not_the_locked_one_is_not_installed(host: HostTree) -> None:
    shutil.copytree(host.checkout, host.root.parent / "tampered")
    host = HostTree(host.root, host.root.parent / "tampered", host.host_folder, host.agent)
    (wheel,) = (host.checkout / "wheels").iterdir()
    good = wheel.read_bytes()
    wheel.write_bytes(good + b"\0")
    done = host.setup(*host.everything)
    assert done.returncode == 1
    assert "error: stopped in step 'environment'" in done.stderr
    assert "run it again" in done.stderr
    assert not host.at(host_layout.VENV).exists()
    assert not host.at(f"{LINUX.service_directory}/{LINUX.sidecar_service}").exists()
    if os.environ.get("FULL"):
        # What was begun is no environment; the next run begins it anew.
        wheel.write_bytes(good)
        done = host.setup(*host.everything)
        assert done.returncode == 0, done.stderr
        assert host.at(host_layout.VENV).exists()


@root_only
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param("uid", "uid 451 belongs to somebody", id="the uid is taken"),
        pytest.param("account", "has uid 990, expected 451", id="the account has another uid"),
        pytest.param("agent", "no program", id="the agent is no program"),
        pytest.param("folder", "no trust-bundle.pem in it", id="the host folder lacks a file"),
        pytest.param("bundle", "holds no certificate", id="the trust bundle is none"),
        pytest.param("token", "holds no join token", id="the join token is none"),
        pytest.param("no token", "agent.conf wants one", id="there is no join token"),
        pytest.param("path", "socket_path is /tmp/x.sock", id="the agent's socket is elsewhere"),
        pytest.param("link", "is a link or no plain file", id="a link to a secret"),
        pytest.param("name", "is a link or no plain file", id="a second name of a secret"),
        pytest.param("pipe", "is a link or no plain file", id="a pipe"),
        pytest.param("swallowed", "--listen needs a value", id="an option for a value"),
        pytest.param("listen", "expected ip:port", id="no address"),
        pytest.param("wheels", "no wheels in it", id="no wheels"),
        pytest.param("python", "no Python 3.11 or newer found", id="no Python"),
        pytest.param("policy", "nobody would be allowed in", id="no policy"),
        pytest.param("config", "no file that can be read", id="the configuration is not there"),
        pytest.param("activation", "has [listener] address = ", id="a listener of its own"),
        pytest.param("id", "expected spiffe://", id="an ID that would break out of TOML"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_changed(
    host: HostTree, broken: str, said: str
) -> None:
    options = [*host.everything, *_break(host, broken)]
    if broken in {"policy", "config"}:
        at = options.index("--traefik-id" if broken == "policy" else "--spiffe-id")
        del options[at : at + 2]
    before = host.snapshot()
    done = host.setup(*options)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "hint: " in done.stderr or broken == "config"
    assert changes(done.stdout) == []
    assert host.snapshot() == before
    assert TOKEN not in done.stdout + done.stderr


def _break(host: HostTree, what: str) -> tuple[str, ...]:
    """Make one thing wrong, or give the options that are."""
    brought = host.host_folder
    passwd = host.at("/etc/passwd")
    match what:
        case "uid":
            passwd.write_text(passwd.read_text() + "somebody:x:451:451::/:/bin/sh\n")
        case "account":
            passwd.write_text(passwd.read_text() + "spiffe-sidecar:x:990:990::/:/bin/sh\n")
            return ("--uid", "451")
        case "agent":
            return ("--spire-agent", str(brought))
        case "folder":
            (brought / "trust-bundle.pem").unlink()
        case "bundle":
            (brought / "trust-bundle.pem").write_text("nothing\n")
        case "token":
            (brought / "join-token").write_text("two words\n")
        case "no token":
            (brought / "join-token").unlink()
        case "path":
            conf = brought / "agent.conf"
            conf.write_text(conf.read_text().replace(host_layout.AGENT_SOCKET, "/tmp/x.sock"))
        case "link" | "name":
            secret = brought.parent / "secret"
            secret.write_text("what root alone may read")
            (brought / "agent.conf").unlink()
            make = Path.symlink_to if what == "link" else Path.hardlink_to
            make(brought / "agent.conf", secret)
        case "pipe":
            (brought / "trust-bundle.pem").unlink()
            os.mkfifo(brought / "trust-bundle.pem")
        case "swallowed":
            return ("--listen", "--dry-run")
        case "listen":
            return ("--listen", "models")
        case "wheels":
            return ("--wheels", str(brought))
        case "python":
            return ("--python", "/bin/false")
        case "config":
            return ("--config", "/nonexistent.toml")
        case "activation":
            host.at("/etc/spiffe-sidecar").mkdir()
            host.at(host_layout.CONFIG).write_text('[listener]\naddress = "127.0.0.1:1"\n')
            return ("--socket-activation",)
        case "id":
            return ("--spiffe-id", 'spiffe://example.org/x"')
    return ()


@root_only
def test_systemd_holds_the_port_when_the_configuration_says_so(installed: HostTree) -> None:
    config = installed.at(host_layout.CONFIG)
    units = installed.at(LINUX.service_directory)
    own = config.read_text()
    config.write_text(own.replace('address = "0.0.0.0:6701"', 'address = "systemd"'))
    done = installed.setup("--upgrade", *installed.offline, "--listen", "192.0.2.1:7000")
    assert done.returncode == 0, done.stderr
    assert (units / "sockets.target.wants/spiffe-sidecar.socket").is_symlink()
    drop_in = (units / "spiffe-sidecar.service.d/50-socket.conf").read_text()
    assert "Requires=spiffe-sidecar.socket" in drop_in
    listen = (units / "spiffe-sidecar.socket.d/50-listen.conf").read_text()
    assert listen.endswith("ListenStream=\nListenStream=192.0.2.1:7000\n")
    assert "dport 7000" in done.stdout
    # And no longer when it says something else.
    config.write_text(own)
    done = installed.setup("--upgrade", *installed.offline)
    assert done.returncode == 0, done.stderr
    assert not list(units.glob("**/*socket*.conf"))
    assert not list(units.glob("*.socket"))


@root_only
@pytest.mark.parametrize(
    ("program", "line"),
    [
        pytest.param("ufw:Status: active", "ufw allow proto tcp from 192.0.2.7 to any port 6701"),
        pytest.param("firewall-cmd:running", 'source address="192.0.2.7" port port="6701"'),
    ],
)
def test_the_firewall_is_told_of_and_not_changed(
    installed: HostTree, tmp_path: Path, program: str, line: str
) -> None:
    name, _, answer = program.partition(":")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / name).write_text(f'#!/bin/sh\necho "$@" >>{tools}/asked\necho "{answer}"\n')
    (tools / name).chmod(0o755)
    before = installed.snapshot()
    done = installed.setup(
        "--upgrade", *installed.offline, "--traefik-address", "192.0.2.7", path=str(tools)
    )
    assert line in done.stdout
    assert set((tools / "asked").read_text().split()) <= {"status", "--state"}
    assert installed.snapshot() == before


@root_only
def test_uninstall_leaves_what_it_says_and_nothing_else(
    first: Installed, installed: HostTree
) -> None:
    dry = installed.setup("--uninstall", "--dry-run")
    done = installed.setup("--uninstall")
    assert done.returncode == 0, done.stderr
    assert changes(dry.stdout) == changes(done.stdout)
    said = set(re.findall(r"^  (?:file|folder) ([^,\n]+)", done.stdout, re.MULTILINE))
    kept = {f"{installed.root}/{path}" for path in installed.snapshot() if path not in first.before}
    # Folders that the paths of others go through are not named for themselves.
    through = {str(parent) for path in said for parent in Path(path).parents}
    assert kept - through == said - through
    assert not installed.at(host_layout.JOIN_TOKEN).exists()
    assert not installed.at(host_layout.CERT_FILES).exists()
    assert installed.at(host_layout.CONFIG).exists()
    assert "the model server was not touched" in done.stdout
    # Again: nothing is left to do; and an installation finds what stayed.
    assert changes(installed.setup("--uninstall").stdout) == []


@root_only
def test_purge_leaves_a_host_as_it_was(first: Installed, installed: HostTree) -> None:
    done = installed.setup("--uninstall", "--purge")
    assert done.returncode == 0, done.stderr
    assert _without_times(installed.snapshot()) == _without_times(first.before)


@root_only
def test_what_is_not_from_here_stays(installed: HostTree) -> None:
    installed.at("/opt/spire/conf/of-somebody-else").write_text("mine\n")
    installed.at(f"{LINUX.service_directory}/{LINUX.sidecar_service}.d").mkdir()
    drop_in = installed.at(f"{LINUX.service_directory}/{LINUX.sidecar_service}.d/override.conf")
    drop_in.write_text("[Service]\n")
    done = installed.setup("--uninstall", "--purge")
    assert done.returncode == 0, done.stderr
    assert installed.at("/opt/spire/conf/of-somebody-else").read_text() == "mine\n"
    assert drop_in.exists()
    assert "opt/spire/conf stays: something is in it that is not from here" in done.stdout


@root_only
def test_a_file_of_somebody_else_is_kept_and_put_back(installed: HostTree) -> None:
    path = f"{LINUX.service_directory}/{LINUX.agent_service}"
    unit, record = installed.at(path), installed.at("/var/lib/spiffe-sidecar/made-by-setup")
    # As if the script had met this one when it came.
    theirs = "[Service]\nExecStart=/usr/bin/spire-agent run\n"
    unit.write_text(theirs)
    record.write_text(record.read_text().replace(f"file {path}\n", ""))
    done = installed.setup(*installed.everything)
    assert done.returncode == 0, done.stderr
    assert f"+ keep {unit} as {unit}.before-setup" in done.stdout
    assert unit.read_text() == (ROOT / "systemd" / LINUX.agent_service).read_text()
    assert changes(installed.setup(*installed.everything).stdout) == []
    done = installed.setup("--uninstall", "--purge")
    assert f"+ put {unit}.before-setup back" in done.stdout
    assert unit.read_text() == theirs
    assert not unit.with_name(f"{unit.name}.before-setup").exists()


@root_only
def test_an_agent_that_was_there_before_is_left_alone(host: HostTree) -> None:
    binary = host.at(host_layout.AGENT_BINARY)
    binary.parent.mkdir(parents=True)
    binary.write_text("of the distribution\n")
    options = [*host.everything[4:]]
    done = host.setup(*options, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "an agent that is not this script's" in done.stdout
    assert not any("spire" in line.replace("spiffe", "") for line in changes(done.stdout))


@root_only
def test_helper_mode_needs_no_policy(host: HostTree) -> None:
    config = ROOT / "conf/files-for-nginx.toml"
    done = host.setup("--config", config, *host.offline, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not any("policy.toml" in line for line in changes(done.stdout))
    assert "firewall" not in done.stdout


@root_only
def test_uninstall_of_nothing_does_nothing(host: HostTree) -> None:
    before = host.snapshot()
    done = host.setup("--uninstall", "--purge")
    assert done.returncode == 0, done.stderr
    assert "nothing was made here" in done.stdout
    assert host.snapshot() == before


@root_only
def test_upgrade_and_rollback_of_nothing_are_refused(host: HostTree) -> None:
    for option in ("--upgrade", "--rollback"):
        done = host.setup(option)
        assert done.returncode == 1
        assert "hint: " in done.stderr
