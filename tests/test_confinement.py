"""What the real daemon can read and write after its start, in the layouts that people install.

Each test has a daemon that is confined by its own configuration and tries foreign files. Nothing
is allowed that is wider than the folder of a configured file, or that a link in its place leads to.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.adapters.test_sandbox import as_root, needs_landlock
from tests.confined_daemon import Tried, attempt_in_daemon

pytestmark = needs_landlock(3)

HELPER = """
[workload_api]
socket = "unix:/nowhere/agent.sock"
[cert_files]
directory = "{certs}"
[log]
format = "json"
{log}
"""
SERVER = """
[workload_api]
socket = "unix:/nowhere/agent.sock"
[listener]
address = "127.0.0.1:0"
[backend]
address = "127.0.0.1:11434"
mode = "stream"
[policy]
file = "{policy}"
[log]
format = "json"
{more}
"""
POLICY = '[[allow]]\nname = "a"\npeers = ["spiffe://example.org/a"]\n'


@pytest.fixture
def host() -> Iterator[Path]:
    """A folder one below the root, as /etc and /opt are, for configurations two deep and more."""
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@dataclass
class Layout:
    """Files on a host; `foreign` are those that the daemon has no business with."""

    config: Path
    foreign: list[Path] = field(default_factory=list)

    def put(self, path: Path, text: str = "text") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def strange(self, *paths: Path) -> None:
        self.foreign += [self.put(path) for path in paths]

    def tried(self, *steps: list[str], uid: int | None = None) -> Tried:
        """Try the steps, and that no foreign file can be read, replaced or joined by another."""
        hostile = [
            step
            for path in self.foreign
            for step in (
                ["read", str(path)],
                ["list", str(path.parent)],
                ["write", str(path)],
                ["remove", str(path)],
                ["create", f"{path}-new"],
                ["mkdir", f"{path}-folder"],
            )
        ]
        always = [["list", "/"], ["create", "/sc-new"], ["list", "/root"], ["list", "/var/log"]]
        found = attempt_in_daemon(self.config, *always, *hostile, *steps, uid=uid)
        outcomes = found.outcomes
        count = len(always) + len(hostile)
        assert self.foreign
        named = zip([*always, *hostile], outcomes, strict=False)
        assert [step for step, outcome in named if outcome != "EACCES"] == []
        found.outcomes[:] = outcomes[count:]
        return found


@pytest.mark.parametrize("depth", ["etc", "etc/spiffe-sidecar", "etc/a/b", "etc/a/b/c"])
def test_only_the_folder_of_the_configuration_can_be_read(host: Path, depth: str) -> None:
    folder = host / depth
    layout = Layout(folder / "sidecar.toml")
    layout.put(layout.config, SERVER.format(policy="policy.toml", more=""))
    policy = layout.put(folder / "policy.toml", POLICY)
    layout.strange(host / "foreign", folder.with_name("other") / "file", folder.with_name("beside"))
    found = layout.tried(["read", str(policy)], ["write", str(policy)], ["list", str(folder)])
    assert found.outcomes == ["ok", "EACCES", "ok"]
    assert found.own("read") == [str(folder)]
    assert found.own("write") == []
    assert found.not_allowed == []
    assert "other files" in found.confined["forbidden"]


def test_policy_pid_and_identity_files_elsewhere_allow_their_own_folders(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    more = f"""
[identity_files]
certificate = "{host}/run/ids/tls.crt"
private_key = "{host}/run/ids/tls.key"
bundle = "{host}/run/ids/ca.crt"
federated_bundles = {{ "other.org" = "{host}/run/partner/ca.crt" }}
"""
    text = SERVER.format(policy=host / "srv/policies/policy.toml", more=more)
    layout.put(
        layout.config, text.replace('[workload_api]\nsocket = "unix:/nowhere/agent.sock"', "")
    )
    layout.put(host / "srv/policies/policy.toml", POLICY)
    for name in ("ids/tls.crt", "ids/tls.key", "ids/ca.crt", "partner/ca.crt"):
        layout.put(host / "run" / name)
    layout.strange(host / "run/foreign", host / "srv/foreign", host / "run/other/file")
    found = layout.tried(
        ["read", f"{host}/run/ids/tls.key"], ["read", f"{host}/run/partner/ca.crt"]
    )
    assert found.outcomes == ["ok", "ok"]
    folders = ("etc/sidecar", "srv/policies", "run/ids", "run/partner")
    assert found.own("read") == [str(host / one) for one in folders]
    assert found.own("write") == []


def test_links_allow_where_they_lead_and_nothing_on_the_way(host: Path) -> None:
    """A file's link, a link to a link, and a folder's link."""
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    layout.put(host / "data/conf/sidecar.toml", SERVER.format(policy="policy.toml", more=""))
    (host / "etc").mkdir()
    (host / "etc/sidecar").symlink_to("../data/conf")
    layout.put(host / "srv/real/policy.toml", POLICY)
    (host / "srv/middle").mkdir()
    (host / "srv/middle/policy.toml").symlink_to("../real/policy.toml")
    (host / "data/conf/policy.toml").symlink_to(host / "srv/middle/policy.toml")
    layout.strange(host / "etc/foreign", host / "data/foreign", host / "srv/foreign")
    found = layout.tried(["read", str(host / "etc/sidecar/policy.toml")])
    assert found.outcomes == ["ok"]
    folders = ("data/conf", "srv/middle", "srv/real")
    assert found.own("read") == [str(host / one) for one in folders]


def test_link_that_leads_elsewhere_after_the_start_cannot_be_read(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    layout.put(layout.config, HELPER.format(certs=host / "opt/sidecar/certs", log=""))
    layout.strange(host / "var/tmp/x/policy.toml", host / "opt/sidecar/foreign", host / "opt/other")
    certs = host / "opt/sidecar/certs"
    found = layout.tried(
        ["symlink", str(host / "var/tmp/x/policy.toml"), f"{certs}/policy.toml"],
        ["read", f"{certs}/policy.toml"],
        ["write", f"{certs}/policy.toml"],
        ["create", f"{certs}/new"],
        ["rename", f"{certs}/new", f"{host}/opt/sidecar/new"],
        ["rename", f"{certs}/new", f"{certs}/newer"],
    )
    assert found.outcomes == ["ok", "EACCES", "EACCES", "ok", "EACCES", "ok"]
    assert found.own("read") == [str(host / "etc/sidecar")]
    assert found.own("write") == [str(certs)]


def volume(folder: Path, **files: str) -> None:
    """A volume as the kubelet makes it, with a file in a folder of its own as `items` can have."""
    data = folder / "..2026_11_21_10_00_00.1"
    (data / "sub").mkdir(parents=True)
    (folder / "..data").symlink_to(data.name)
    for name, text in files.items():
        (data / f"{name}.toml").write_text(text)
        (folder / f"{name}.toml").symlink_to(f"..data/{name}.toml")
    (data / "sub/policy.toml").write_text(POLICY)
    (folder / "sub").symlink_to("..data/sub")


@pytest.mark.parametrize("policy", ["policy.toml", "sub/policy.toml", "..data/policy.toml"])
def test_volume_of_kubernetes_can_be_read_after_it_was_switched(host: Path, policy: str) -> None:
    folder = host / "etc/spiffe-sidecar"
    layout = Layout(folder / "sidecar.toml")
    volume(folder, sidecar=SERVER.format(policy=policy, more=""), policy=POLICY)
    place = host / "mnt/volume"
    volume(place, policy=POLICY)
    elsewhere = Layout(host / "etc/other/sidecar.toml")
    elsewhere.put(elsewhere.config, SERVER.format(policy=place / policy, more=""))
    for one, root in ((layout, folder), (elsewhere, place)):
        one.strange(host / "etc/foreign", host / "mnt/foreign")
        newer = root / "..2026_11_21_11_00_00.2"
        (newer / "sub").mkdir(parents=True)
        for name in ("policy.toml", "sub/policy.toml"):
            (newer / name).write_text(POLICY)
        # The one of before is what the rules were made for; the other stands for the next one.
        found = one.tried(["read", str(root / policy)], ["read", str(newer / policy[-11:])])
        assert found.outcomes == ["ok", "ok"]
        assert str(root) in found.own("read")
        assert found.not_allowed == []


# What cannot be allowed.


@as_root
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 0o001 for folder in Path(__file__).resolve().parents),
    reason="other accounts cannot read this checkout",
)
def test_directory_that_cannot_be_made_opens_nothing_and_is_named(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    certs = host / "not-there/certs"
    layout.put(layout.config, HELPER.format(certs=certs, log=""))
    os.chmod(host, 0o777)  # now its owner lets anybody make folders, and the sandbox does not
    layout.strange(host / "foreign")
    os.chmod(host, 0o755)
    found = layout.tried(["mkdir", str(certs.parent)], uid=65534)
    assert found.outcomes == ["EACCES"]
    assert found.own("write") == []
    (told,) = found.not_allowed
    assert told.startswith(f"{certs}: ")
    assert "Permission denied" in told


def test_file_in_the_way_of_the_directory_opens_nothing(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    certs = layout.put(host / "opt/file") / "certs"
    layout.put(layout.config, HELPER.format(certs=certs, log=""))
    layout.strange(host / "opt/foreign")
    found = layout.tried()
    assert found.own("write") == []
    assert "Not a directory" in found.not_allowed[0]


def test_directory_that_can_be_made_is_made_and_allowed_alone(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    certs = host / "opt/new/certs"
    layout.put(layout.config, HELPER.format(certs=certs, log=""))
    layout.strange(host / "opt/foreign")
    found = layout.tried(["create", f"{certs}/file"], ["create", f"{certs.parent}/file"])
    assert found.outcomes == ["ok", "EACCES"]
    assert found.own("write") == [str(certs)]
    assert found.not_allowed == []


def test_folder_that_comes_later_is_named_and_nothing_above_it_is_allowed(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    hook = f"""
[[after_rotation]]
name = "reload"
pid_file = "{host}/run/database/pid"
signal = "SIGHUP"
"""
    helper = HELPER.format(certs="certs", log=f'file = "{host}/var/log/sidecar/log"')
    layout.put(layout.config, helper + hook)
    layout.strange(host / "run/foreign", host / "var/log/foreign", host / "var/foreign")
    found = layout.tried(["mkdir", f"{host}/var/log/sidecar"])
    assert found.outcomes == ["EACCES"]
    assert found.not_allowed == [
        f"{host}/run/database: No such file or directory",
        f"{host}/var/log/sidecar: No such file or directory",
    ]


def test_file_in_the_root_is_allowed_as_it_is_now(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    policy = Path(f"/{host.name}-policy.toml")
    layout.put(layout.config, SERVER.format(policy=policy, more=""))
    layout.strange(host / "foreign")
    try:
        layout.put(policy, POLICY)
        found = layout.tried(["read", str(policy)], ["write", str(policy)])
    finally:
        policy.unlink()
    assert found.outcomes == ["ok", "EACCES"]
    (told,) = found.not_allowed
    assert told.startswith(f"{policy}: only as the file that it is now")


# What is written.


def test_log_can_be_begun_anew_and_its_neighbours_are_left_alone(host: Path) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    logs = host / "var/log"
    layout.put(layout.config, HELPER.format(certs="certs", log=f'file = "{logs}/sidecar.log"'))
    other = str(layout.put(logs / "other.log"))
    layout.strange(host / "var/foreign")
    found = attempt_in_daemon(
        layout.config,
        ["create", f"{logs}/sidecar.log.new"],
        ["read", other],
        ["truncate", other],
        ["remove", other],
        ["rename", other, f"{other}.1"],
        ["list", str(logs)],
        ["create", f"{host}/var/new"],
    )
    assert found.outcomes == ["ok", *["EACCES"] * 6]
    log = (logs / "sidecar.log").read_text()
    assert f'"append":["{logs}"]' in log.replace(", ", ",").replace(": ", ":")


@pytest.mark.parametrize("place", ["run", "run/spiffe-sidecar"])
def test_socket_of_admin_leaves_its_folder_closed(host: Path, place: str) -> None:
    layout = Layout(host / "etc/sidecar/sidecar.toml")
    admin = host / place / "admin.sock"
    admin.parent.mkdir(parents=True)
    text = HELPER.format(certs="certs", log="") + f'[admin]\naddress = "unix:{admin}"\n'
    layout.put(layout.config, text)
    layout.strange(host / "run/foreign", host / place / "foreign")
    found = layout.tried(["stat", str(admin)], ["bind unix", f"{admin}.other"])
    assert found.outcomes == ["ok", "EACCES"]
    assert found.own("write") == [str(layout.config.parent / "certs")]
    # It stays behind, and the next process takes it over.
    with socket.socket(socket.AF_UNIX) as visitor, pytest.raises(ConnectionRefusedError):
        visitor.connect(str(admin))
    assert layout.tried(["stat", str(admin)]).outcomes == ["ok"]


# What is off.


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("[sandbox]\nenabled = false\n", "switched off"),
        ('[[after_rotation]]\nname = "n"\ncommand = ["true"]\n', "[[after_rotation]] n would be"),
    ],
    ids=["switched off", "a command"],
)
def test_what_is_not_in_force_is_said_with_its_reason(host: Path, more: str, reason: str) -> None:
    config = host / "sidecar.toml"
    config.write_text(HELPER.format(certs="certs", log="") + more)
    foreign = host / "foreign"
    foreign.write_text("text")
    found = attempt_in_daemon(config, ["read", str(foreign)])
    assert found.outcomes == ["ok"]
    assert found.confined["forbidden"] == ["core dumps"]
    assert reason in str(found.confined["not_forbidden"])
    assert found.not_allowed == []
    assert not any(found.confined[name] for name in ("read", "write", "append"))
