"""`register-workload` as a person runs it, on the stand-in for `spire-server` and on the real one.

Set SPIRE_BIN to a folder with `spire-server` and `spire-agent` for the second.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.cli.register_workload import register_workload
from tests.ca import Authority
from tests.fake_docker import docker
from tests.spire import Spire
from tests.spire_stand_in import FakeSpireServer

TD = "spiffe://example.org"
COMMAND = "from sidecar.cli.register_workload import register_workload as run; run()"
ADDRESS = ("--server-address", "10.10.0.10")
TOKEN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(*words: str | Path) -> Done:
    """The command in this process, which saves the time of a start."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        register_workload.main(
            ["--trust-domain", "example.org", *map(str, words)], prog_name="register-workload"
        )
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Done(int(ended.value.code or 0), *told)


def start(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "--trust-domain", "example.org", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


class Platform:
    """A SPIRE server, and one host of its own for each test."""

    def __init__(self, prefix: str, socket: Path) -> None:
        self._prefix, self._socket = prefix, socket
        self.host = f"host-{time.monotonic_ns()}"
        self.alias = f"{TD}/host/{self.host}"
        self.workload = f"{TD}/workload/{self.host}"

    def register(self, *words: str | Path) -> Done:
        return call(
            *("--host", self.host, "--spiffe-id", self.workload),
            *("--spire-server", self._prefix, "--socket-path", self._socket, *words),
        )

    def begin(self, *words: str | Path) -> subprocess.Popen[str]:
        """The command as a process that is not waited for."""
        ours = ("--host", self.host, "--spire-server", self._prefix)
        return subprocess.Popen(
            [
                *(sys.executable, "-c", COMMAND, "--trust-domain", "example.org"),
                *(*ours, "--socket-path", self._socket, *words),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *words: str | Path) -> dict[str, Any]:
        done = self.register("--json", *words)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def ask(self, *words: str) -> dict[str, Any]:
        """What the server itself says."""
        command = [*shlex.split(self._prefix), *words, "-socketPath", str(self._socket)]
        done = subprocess.run(
            [*command, "-output", "json"], capture_output=True, text=True, timeout=60, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def entries(self) -> list[dict[str, Any]]:
        """The entries below this host's alias."""
        found: list[dict[str, Any]] = self.ask("entry", "show", "-parentID", self.alias)["entries"]
        return found

    def aliases(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("entry", "show", "-spiffeID", self.alias)["entries"]
        return found


@pytest.fixture
def fake(tmp_path: Path, authority: Authority) -> FakeSpireServer:
    der = base64.b64encode(authority.certificate.public_bytes(Encoding.DER)).decode()
    return FakeSpireServer(tmp_path / "api.sock", "example.org", der)


@pytest.fixture(scope="module")
def spire() -> Iterator[tuple[Spire, Path]]:
    """A real server and agent, and the folder that they live in."""
    binaries = os.environ.get("SPIRE_BIN")
    if not binaries:
        pytest.skip("SPIRE_BIN is not set to a folder with spire-server and spire-agent")
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        spire = Spire(Path(binaries).resolve(), Path(name))
        try:
            spire.start()
            yield spire, Path(name)
        finally:
            spire.stop()


@pytest.fixture(params=["stand-in", "real"])
def platform(request: pytest.FixtureRequest) -> Platform:
    if request.param == "stand-in":
        fake = request.getfixturevalue("fake")
        return Platform(fake.prefix, fake.path)
    _, folder = request.getfixturevalue("spire")
    program = Path(os.environ["SPIRE_BIN"]).resolve() / "spire-server"
    return Platform(str(program), folder / "server.sock")


def test_first_run_makes_the_entry_and_the_second_changes_nothing(platform: Platform) -> None:
    done = platform.register("--dns", "models.example.org", "--x509-svid-ttl", "3000")
    assert done.returncode == 0, done.stderr
    assert f"{platform.workload} created" in done.stdout
    (entry,) = platform.entries()
    assert entry["selectors"] == [{"type": "unix", "value": "uid:451"}]
    assert entry["dns_names"] == ["models.example.org"]
    assert entry["x509_svid_ttl"] == 3000
    assert entry["id"] in done.stdout

    done = platform.register("--dns", "models.example.org", "--x509-svid-ttl", "3000")
    assert done.returncode == 0
    assert "nothing to do: all is as asked" in done.stdout
    assert platform.entries() == [entry]
    assert platform.json()["changed"] is False


def test_changed_option_shows_the_difference_and_applies_it(platform: Platform) -> None:
    platform.json("--dns", "models.example.org")
    (before,) = platform.entries()
    done = platform.register("--uid", "502", "--x509-svid-ttl", "60")
    assert done.returncode == 0, done.stderr
    assert "selectors: unix:uid:451 -> unix:uid:502" in done.stdout
    assert "x509-svid ttl: the server's default -> 60 s" in done.stdout
    (after,) = platform.entries()
    assert after["id"] == before["id"]
    assert after["selectors"] == [{"type": "unix", "value": "uid:502"}]
    assert after["x509_svid_ttl"] == 60
    assert after["dns_names"] == ["models.example.org"]  # not named, so it stays

    answer = platform.json("--no-dns")
    assert answer["entries"][0]["changes"] == [
        {"field": "dns names", "old": "models.example.org", "new": "none"}
    ]
    assert platform.entries()[0]["dns_names"] == []
    assert "stays, because neither --uid" in platform.register().stderr


def test_what_somebody_else_set_in_the_entry_survives_a_change(platform: Platform) -> None:
    platform.ask(
        *("entry", "create", "-parentID", platform.alias, "-spiffeID", platform.workload),
        *("-selector", "unix:uid:451", "-hint", "internal", "-jwtSVIDTTL", "77"),
    )
    assert platform.json("--uid", "7")["changed"]
    (entry,) = platform.entries()
    assert (entry["hint"], entry["jwt_svid_ttl"]) == ("internal", 77)


def test_dry_run_changes_nothing_and_its_commands_can_be_copied(
    platform: Platform, tmp_path: Path
) -> None:
    folder = tmp_path / "mac"
    words = ("--generate-token", "--host-folder", folder, *ADDRESS)
    answer = platform.json("--dry-run", *words)
    assert answer["changed"] is True
    assert platform.entries() == platform.aliases() == []
    assert not folder.exists()

    done = platform.register("--dry-run", *words)
    would = done.stdout.partition("commands that would be run:")[2]
    commands = [line.strip() for line in would.splitlines() if line and "#" not in line]
    assert [shlex.split(line) for line in commands] == answer["commands"]
    assert len(commands) == 2
    subprocess.run(["/bin/sh", "-c", commands[0]], capture_output=True, check=True, timeout=60)
    assert platform.json()["entries"][0]["action"] == "unchanged"


def test_files_for_the_other_host(platform: Platform, tmp_path: Path) -> None:
    folder = tmp_path / "mac"
    begun = time.time()
    done = platform.register("--generate-token", "--host-folder", folder, *ADDRESS)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        *("agent.conf", "join-token", "trust-bundle.pem"),
    ]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [*folder.iterdir(), folder]}
    assert modes == {
        "agent.conf": 0o644,
        "join-token": 0o600,
        "trust-bundle.pem": 0o644,
        "mac": 0o700,
    }
    assert 'server_address = "10.10.0.10"' in (folder / "agent.conf").read_text()
    _is_the_bundle_of(platform, folder / "trust-bundle.pem")
    token = (folder / "join-token").read_text().strip()
    (alias,) = platform.aliases()
    assert alias["parent_id"]["path"] == f"/spire/agent/join_token/{token}"
    assert token not in done.stdout + done.stderr
    assert "next:" in done.stdout
    assert f"--host-folder mac --spiffe-id {platform.workload} --traefik-id" in done.stdout

    answer = platform.json(
        "--generate-token", "--token-ttl", "60", "--host-folder", folder, *ADDRESS
    )
    assert [file["changed"] for file in answer["files"]] == [False, False]
    expires = time.mktime(time.strptime(answer["join_token"]["expires_at"], "%Y-%m-%dT%H:%M:%SZ"))
    assert begun + 59 <= expires - time.timezone <= time.time() + 61
    again = (folder / "join-token").read_text().strip()
    assert again != token
    assert not {token, again} & set(TOKEN.findall(json.dumps(answer)))


def _is_the_bundle_of(platform: Platform, file: Path) -> None:
    bundle = platform.ask("bundle", "show")["x509_authorities"]
    found = x509.load_pem_x509_certificates(file.read_bytes())
    assert [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in found] == [
        one["asn1"] for one in bundle
    ]


def test_without_a_folder_the_texts_are_printed(platform: Platform) -> None:
    done = platform.register(*ADDRESS)
    assert "# ---- agent.conf" in done.stdout
    assert "BEGIN CERTIFICATE" in done.stdout
    answer = platform.json(*ADDRESS)
    assert answer["agent_conf"] in done.stdout
    assert answer["trust_bundle"].strip() in done.stdout
    assert "BEGIN CERTIFICATE" not in platform.register().stdout


def test_traefik_is_registered_below_its_own_parent(platform: Platform) -> None:
    words = (
        "--traefik-id",
        f"{platform.workload}-traefik",
        "--traefik-parent",
        f"{TD}/host/platform",
    )
    selectors = ("--traefik-selector", "docker:label:name:ravenhelm proxy")
    answer = platform.json(*words, *selectors)
    assert [entry["role"] for entry in answer["entries"]] == ["sidecar", "traefik"]
    shown = platform.ask("entry", "show", "-spiffeID", f"{platform.workload}-traefik")["entries"]
    assert shown[0]["parent_id"]["path"] == "/host/platform"
    assert shown[0]["selectors"] == [{"type": "docker", "value": "label:name:ravenhelm proxy"}]
    assert not platform.json(*words, *selectors)["changed"]
    platform.json("--remove", *words)
    assert not platform.ask("entry", "show", "-spiffeID", f"{platform.workload}-traefik")["entries"]
    assert platform.entries() == []


def test_remove_takes_what_was_registered_and_only_that(platform: Platform, tmp_path: Path) -> None:
    platform.json("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    other = ("-spiffeID", f"{platform.workload}-other", "-selector", "unix:uid:7")
    platform.ask("entry", "create", "-parentID", platform.alias, *other)
    planned = platform.json("--remove", "--dry-run")
    assert len(platform.entries()) == 2
    answer = platform.json("--remove")
    assert answer["entries"] == planned["entries"]
    assert [entry["action"] for entry in answer["entries"]] == ["remove", "keep"]
    assert f"{platform.workload}-other" in answer["entries"][1]["reason"]
    (left,) = platform.entries()
    assert len(platform.aliases()) == 1

    done = platform.register("--remove")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    platform.ask("entry", "delete", "-entryID", left["id"])
    assert platform.json("--remove")["entries"][1]["action"] == "remove"
    assert platform.aliases() == []


def test_entries_of_the_same_id_are_told_apart_by_their_selectors(platform: Platform) -> None:
    words = ("-parentID", platform.alias, "-spiffeID", platform.workload)
    for uid in (451, 502):
        platform.ask("entry", "create", *words, "-selector", f"unix:uid:{uid}")
    done = platform.register("--uid", "502", "--x509-svid-ttl", "60")
    assert "gives the same ID to unix:uid:451; it stays" in done.stderr
    ttls = {entry["selectors"][0]["value"]: entry["x509_svid_ttl"] for entry in platform.entries()}
    assert ttls == {"uid:451": 0, "uid:502": 60}

    done = platform.register("--uid", "503")
    assert done.returncode == 1
    assert "it is not clear which is meant" in done.stderr
    assert len(platform.entries()) == 2
    platform.json("--remove", "--uid", "502")
    assert [entry["selectors"][0]["value"] for entry in platform.entries()] == ["uid:451"]


def test_other_trust_domain_is_refused_before_anything_is_done(platform: Platform) -> None:
    words = ("--trust-domain", "other.org", "--spiffe-id", "spiffe://other.org/m")
    for more in ((), ("--dry-run",), ("--remove",)):
        done = platform.register(*words, *more)
        assert done.returncode == 1
        assert "the server's trust domain is 'example.org', expected 'other.org'" in done.stderr
    done = platform.register("--spiffe-id", "spiffe://other.org/m")
    assert done.returncode == 2
    assert platform.entries() == []


# What follows needs a server that fails at will.


def on(fake: FakeSpireServer) -> Platform:
    return Platform(fake.prefix, fake.path)


def test_no_command_holds_a_token_and_no_run_prints_one(
    fake: FakeSpireServer, tmp_path: Path
) -> None:
    platform = on(fake)
    words = ("--host-folder", tmp_path / "mac", *ADDRESS)
    told = ""
    for more in (
        ("--generate-token",),
        ("--generate-token", "--json"),
        ("--json",),
        ("--dry-run",),
    ):
        done = platform.register(*words, *more)
        assert done.returncode == 0, done.stderr
        told += done.stdout + done.stderr
    for more in (("--remove", "--dry-run"), ("--remove", "--json")):
        done = platform.register(*more)
        told += done.stdout + done.stderr
    tokens = set(fake.tokens())
    assert len(tokens) == 2
    for token in tokens:
        assert token not in told
        assert token not in json.dumps(fake.calls())


def test_agent_and_its_alias_go_when_asked(fake: FakeSpireServer, tmp_path: Path) -> None:
    platform = on(fake)
    words = ("--host-folder", tmp_path / "mac", *ADDRESS)
    assert "no agent has the alias" in platform.register().stderr
    platform.json("--generate-token", *words)
    assert "no agent has come yet" in platform.register().stderr
    (token,) = fake.tokens()
    fake.attest(token, expires_at=int(time.time()) + 3600)
    answer = platform.json()
    assert answer["warnings"] == []
    assert answer["agents"][0]["spiffe_id"] == f"{TD}/spire/agent/join_token/..."
    assert "a new token" not in platform.register().stdout
    assert (
        "it does not look at the new token" in platform.register("--generate-token", *words).stderr
    )

    done = platform.register("--remove", "--dry-run")
    assert "would lose the alias" in done.stdout
    assert "--evict-agent ends that" in done.stderr
    answer = platform.json("--remove", "--evict-agent", "--dry-run")
    assert answer["evicted"] == 1
    assert len(platform.ask("agent", "list")["agents"]) == 1
    platform.json("--remove", "--evict-agent")
    assert platform.ask("agent", "list")["agents"] == []
    assert fake.entries() == []


def test_agent_in_use_by_others_is_not_evicted(fake: FakeSpireServer, tmp_path: Path) -> None:
    platform = on(fake)
    platform.json("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    (token,) = fake.tokens()
    fake.attest(token, expires_at=int(time.time()) + 3600)
    other = ("-spiffeID", f"{TD}/other", "-selector", "unix:uid:7")
    platform.ask("entry", "create", "-parentID", platform.alias, *other)
    before = fake.entries()
    done = platform.register("--remove", "--evict-agent")
    assert done.returncode == 1
    assert f"still in use: it is the parent of {TD}/other" in done.stderr
    assert fake.entries() == before


@pytest.mark.parametrize(
    ("expires_in", "banned", "words"),
    [(-60, False, "has expired: it needs a new join token"), (3600, True, "is banned")],
    ids=["expired", "banned"],
)
def test_agent_that_is_of_no_use_is_told(
    fake: FakeSpireServer, tmp_path: Path, expires_in: int, banned: bool, words: str
) -> None:
    platform = on(fake)
    platform.json("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    (token,) = fake.tokens()
    fake.attest(token, expires_at=int(time.time()) + expires_in, banned=banned)
    done = platform.register()
    assert words in done.stderr
    assert token not in done.stdout + done.stderr


def test_entry_below_the_agent_of_one_token_is_pointed_at(
    fake: FakeSpireServer, tmp_path: Path
) -> None:
    platform = on(fake)
    agent = f"{TD}/spire/agent/join_token/00000000-0000-0000-0000-000000000000"
    words = ("-spiffeID", platform.workload, "-selector", "unix:uid:1001")
    platform.ask("entry", "create", "-parentID", agent, *words)
    done = platform.register()
    assert "dies with it" in done.stderr
    assert "00000000-0000" not in done.stdout + done.stderr
    assert len(fake.entries()) == 2


def test_through_a_container_without_a_shell(fake: FakeSpireServer, tmp_path: Path) -> None:
    prefix = docker(tmp_path, "spire", socket=fake.path)
    words = ("--host", "mac", "--spire-server", prefix)
    files = ("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    done = start(*words, *files, FAKE_DOCKER=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (token,) = fake.tokens()
    assert (tmp_path / "mac" / "join-token").read_text() == f"{token}\n"
    assert "nothing to do" in start(*words, FAKE_DOCKER=str(tmp_path)).stdout

    docker(tmp_path, "spire", running=False)
    done = start(*words, FAKE_DOCKER=str(tmp_path))
    assert done.returncode == 1
    assert "the container of the SPIRE server is not running" in done.stderr


def test_dry_run_without_a_server_says_so(fake: FakeSpireServer, tmp_path: Path) -> None:
    fake.path.unlink()
    done = on(fake).register("--dry-run", "--uid", "0", "--host-folder", tmp_path / "mac", *ADDRESS)
    assert done.returncode == 0
    assert "the server could not be asked" in done.stderr
    assert "unix:uid:0 is root" in done.stderr
    assert "entry create -parentID" in done.stdout
    assert "trust-bundle.pem would be written" in done.stdout
    done = on(fake).register("--dry-run", "--remove")
    assert done.returncode == 1
    assert "not running: there is no socket" in done.stderr


def test_what_was_done_before_a_failure_is_told(fake: FakeSpireServer, tmp_path: Path) -> None:
    platform, folder = on(fake), tmp_path / "mac"
    fake.fault("token generate", "Error: rpc error: code = Internal desc = datastore is away")
    words = ("--generate-token", "--host-folder", folder, *ADDRESS)
    done = platform.register(*words)
    assert done.returncode == 1
    (entry,) = fake.entries()
    assert "token generate: failed: rpc error: code = Internal" in done.stderr
    assert f"done before that: created the entry {entry['id']}" in done.stderr
    assert f"done before that: wrote {folder / 'agent.conf'}" in done.stderr
    assert not (folder / "join-token").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []

    answer = json.loads(platform.register("--uid", "7", "--json", *words).stdout)
    assert answer["error"]["done"] == [f"updated the entry {entry['id']} of {platform.workload}"]
    fake.heal()
    assert platform.json(*words)["entries"][0]["action"] == "unchanged"


def test_first_step_that_fails_says_that_nothing_was_changed(fake: FakeSpireServer) -> None:
    fake.fault("entry create", "Error: rpc error: code = Internal desc = datastore is away")
    done = on(fake).register()
    assert done.returncode == 1
    assert "nothing was changed before that" in done.stderr


def test_token_that_cannot_be_stored_is_told(fake: FakeSpireServer, tmp_path: Path) -> None:
    (tmp_path / "mac" / "join-token" / "x").mkdir(parents=True)
    (tmp_path / "mac").chmod(0o700)
    done = on(fake).register("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    assert done.returncode == 1
    assert "made a join token, which is stored nowhere" in done.stderr
    (token,) = fake.tokens()
    assert token not in done.stdout + done.stderr
    assert not (tmp_path / "mac" / ".join-token.new").exists()


def test_interruption_tells_what_was_done(fake: FakeSpireServer, tmp_path: Path) -> None:
    fake.fault("token generate", "hang")
    platform = on(fake)
    words = ("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    with platform.begin(*words) as process:
        deadline = time.monotonic() + 60
        while ["token", "generate"] not in [call[:2] for call in fake.calls()]:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in told
    assert f"created the entry {fake.entries()[0]['id']}" in told
    assert "Traceback" not in told
    assert sorted(path.name for path in (tmp_path / "mac").iterdir()) == [
        *("agent.conf", "trust-bundle.pem"),
    ]


def test_nested_server_below_the_alias_keeps_it(fake: FakeSpireServer, tmp_path: Path) -> None:
    platform = on(fake)
    platform.json("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    nested = ("-spiffeID", f"{TD}/nested", "-selector", "unix:uid:0", "-downstream")
    platform.ask("entry", "create", "-parentID", platform.alias, *nested)
    assert [one["action"] for one in platform.json("--remove")["entries"]] == ["remove", "keep"]
    assert len(platform.aliases()) == 1


def test_installer_is_told_the_account_that_the_entry_names(
    fake: FakeSpireServer, tmp_path: Path
) -> None:
    words = ("--host-folder", tmp_path / "mac", *ADDRESS)
    assert "--uid" not in "".join(on(fake).json("--generate-token", *words)["next_steps"])
    steps = on(fake).json("--uid", "4711", *words)["next_steps"]
    assert [step for step in steps if step.endswith("--traefik-id ID-OF-TRAEFIK --uid 4711")]
    assert [step for step in steps if "needs a new join token" in step]


def test_folder_that_cannot_be_used_is_told_before_the_server_is_changed(
    fake: FakeSpireServer, tmp_path: Path
) -> None:
    (tmp_path / "mac").mkdir(mode=0o700)
    (tmp_path / "mac").chmod(0o777)
    done = on(fake).register("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    assert done.returncode == 1
    assert "others cannot write to" in done.stderr
    assert fake.entries() == []


@pytest.mark.parametrize(
    ("command", "fault", "words"),
    [
        pytest.param("entry create", "hang", "it is not known", id="hangs while changing"),
        pytest.param("entry show", "hang", "no answer within 1 s", id="hangs while looking"),
        pytest.param("token generate", "garbage", "not the JSON", id="answers no JSON"),
    ],
)
def test_program_that_misbehaves(
    fake: FakeSpireServer, tmp_path: Path, command: str, fault: str, words: str
) -> None:
    fake.fault(command, fault)
    more = ("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS, "--timeout", "1")
    done = on(fake).register(*more)
    assert done.returncode == 1
    assert words.replace("it is not known", "whether it was done is not known") in done.stderr
    assert not TOKEN.search(re.sub(r"entry \S+ of", "", done.stdout + done.stderr))


@pytest.mark.parametrize(
    ("version", "command"),
    [((1, 5, 2), "bundle show"), ((1, 5, 4), "token generate")],
    ids=["1.5.2", "1.5.4"],
)
def test_older_servers_are_told(
    fake: FakeSpireServer, tmp_path: Path, version: tuple[int, ...], command: str
) -> None:
    fake.version(*version)
    words = ("--generate-token", "--host-folder", tmp_path / "mac", *ADDRESS)
    done = on(fake).register(*words)
    assert done.returncode == 1
    assert f"{command}: this spire-server does not know -output" in done.stderr
    assert "1.6" in done.stderr


def test_oldest_server_that_will_do(fake: FakeSpireServer, tmp_path: Path) -> None:
    fake.version(1, 6, 0)
    words = ("--dns", "a.org", "--x509-svid-ttl", "60", "--host-folder", tmp_path / "mac")
    assert on(fake).json("--generate-token", *words, *ADDRESS)["changed"]


def test_help_names_every_option_of_the_interface() -> None:
    text = call("--help").stdout
    for option in (
        *("--host", "--spire-server", "--spiffe-id", "--uid", "--selector", "--dns"),
        *("--x509-svid-ttl", "--traefik-id", "--traefik-selector", "--traefik-parent"),
        *("--generate-token", "--token-ttl", "--server-address", "--host-folder", "--dry-run"),
        *("--remove", "--json", "--socket-path", "--no-dns", "--evict-agent", "--timeout"),
    ):
        assert option in text


class Host:
    """The other host: the files of the folder where the installers put them, below one folder."""

    def __init__(self, root: Path, folder: Path, agent_uid: int) -> None:
        self.program = Path(os.environ["SPIRE_BIN"]).resolve() / "spire-agent"
        self.socket = root / "opt/spire/sockets/agent.sock"
        self.conf = root / "opt/spire/conf/agent.conf"
        self._uid = agent_uid
        self._log = root / "agent.log"
        root.chmod(0o711)
        for name in ("conf", "data", "sockets"):
            (root / "opt/spire" / name).mkdir(parents=True)
        for file in folder.iterdir():
            text = file.read_text().replace("/opt/spire", str(root / "opt/spire"))
            target = self.conf.parent / file.name
            target.touch(0o600)
            target.write_text(text)
            _give(target, agent_uid)
        for name in ("data", "sockets"):
            _give(root / "opt/spire" / name, agent_uid)

    def run(self, *words: str | Path, uid: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **_as(uid),
        )

    @contextmanager
    def agent(self) -> Iterator[None]:
        """The agent, under an account of its own, until it is healthy and as long as it is used."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [self.program, "run", "-config", self.conf],
                stdout=log,
                stderr=log,
                **_as(self._uid),
            )
        try:
            deadline = time.monotonic() + 60
            while self.run("healthcheck", "-socketPath", self.socket, uid=self._uid).returncode:
                assert process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(30)

    def until_issued(self, uid: int, spiffe_id: str) -> None:
        """Wait until a process of this user gets exactly this; the agent asks every 5 s or so."""
        deadline = time.monotonic() + 60
        while (found := self.identities(uid)) != [spiffe_id]:
            assert time.monotonic() < deadline, found

    def identities(self, uid: int) -> list[str]:
        """The SPIFFE IDs that a process of this user gets."""
        done = self.run("api", "fetch", "x509", "-socketPath", self.socket, uid=uid)
        if done.returncode:
            assert "no identity issued" in done.stdout + done.stderr
        return re.findall(r"^SPIFFE ID:\s+(\S+)$", done.stdout, re.MULTILINE)


def _as(uid: int) -> dict[str, Any]:
    # A child of an ordinary user has the same uid without being told.
    return {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}


def _give(path: Path, uid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, uid)


def test_real_agent_from_the_files_of_the_folder(
    spire: tuple[Spire, Path], fake: FakeSpireServer, tmp_path: Path, folder: Path
) -> None:
    """From the first command on the platform to the SVID of a process of the registered uid."""
    _, at = spire
    port = re.search(r'bind_port = "(\d+)"', (at / "server.conf").read_text())
    assert port
    program = Path(os.environ["SPIRE_BIN"]).resolve() / "spire-server"
    platform = Platform(str(program), at / "server.sock")
    # As root three accounts; otherwise everything is of this one.
    agent_uid, ours, stranger = (61450, 61451, 61452) if os.geteuid() == 0 else (os.getuid(),) * 3
    words = ("--uid", str(ours), "--server-address", f"localhost:{port[1]}")
    done = platform.register(*words, "--generate-token", "--host-folder", tmp_path / "mac")
    assert done.returncode == 0, done.stderr
    host = Host(folder, tmp_path / "mac", agent_uid)
    validated = host.run("validate", "-config", host.conf, uid=agent_uid)
    assert validated.returncode == 0, validated.stdout + validated.stderr

    with host.agent():
        host.until_issued(ours, platform.workload)
        if stranger != ours:
            assert host.identities(stranger) == []
        answer = platform.json()
        assert (answer["changed"], answer["warnings"], len(answer["agents"])) == (False, [], 1)
        _stand_in_lists_agents_alike(platform, fake)

    with host.agent():  # the token is used by now; its key is on the disk
        host.until_issued(ours, platform.workload)

    answer = platform.json("--remove", "--evict-agent")
    assert (answer["evicted"], platform.entries(), platform.aliases()) == (1, [], [])
    assert platform.json("--remove")["changed"] is False


def _stand_in_lists_agents_alike(platform: Platform, fake: FakeSpireServer) -> None:
    other = Platform(fake.prefix, fake.path)
    token = other.ask("token", "generate")["value"]
    fake.attest(token, expires_at=int(time.time()) + 3600)
    theirs = platform.ask("agent", "list")["agents"][0]
    ours = other.ask("agent", "list")["agents"][0]
    assert {name: type(value) for name, value in ours.items()} == {
        name: type(value) for name, value in theirs.items()
    }
    assert (ours["attestation_type"], ours["can_reattest"]) == ("join_token", False)
    assert (theirs["attestation_type"], theirs["can_reattest"]) == ("join_token", False)


# A server that is not what it should be: nothing of it reaches a terminal or a command to copy.


def hostile(fake: FakeSpireServer, tmp_path: Path, old: str, new: str, command: str) -> Platform:
    """The stand-in, with other words in its answers to one command."""
    program = tmp_path / "hostile.py"
    program.write_text(
        "import subprocess, sys\n"
        f"program = {shlex.split(fake.prefix)!r}\n"
        "run = subprocess.run(program + sys.argv[1:], stdout=subprocess.PIPE)\n"
        f"is_it = sys.argv[1:3] == {command.split()!r}\n"
        "out = run.stdout.decode()\n"
        f"sys.stdout.write(out.replace({old!r}, {new!r}) if is_it else out)\n"
        "sys.exit(run.returncode)\n"
    )
    return Platform(shlex.join([sys.executable, "-I", str(program)]), fake.path)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        pytest.param("/workload/host", "/x$(id)\\u001b]0;x\\u0007", 1, id="another ID"),
        pytest.param(
            "uid:451", "uid:5;id #\\u001b]0;x\\u0007", 0, id="a selector with a command in it"
        ),
        pytest.param('0,"message":"OK"', '3,"message":"no\\u001b]0;x\\u0007"', 1, id="a message"),
    ],
)
def test_answers_of_a_server_are_neither_commands_nor_escapes(
    fake: FakeSpireServer, tmp_path: Path, old: str, new: str, status: int
) -> None:
    platform = hostile(fake, tmp_path, old, new, "entry create")
    folder = ("--host-folder", tmp_path / "mac", *ADDRESS)
    done = platform.register(*folder)
    assert done.returncode == status, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "--uid" not in done.stdout
    assert "$(id)" not in done.stdout


def test_entries_that_are_not_clear_are_shown_in_lines_of_their_own(
    fake: FakeSpireServer, tmp_path: Path
) -> None:
    platform = on(fake)
    create = ("entry", "create", "-parentID", platform.alias, "-spiffeID", platform.workload)
    platform.ask(*create, "-selector", "unix:uid:1")
    platform.ask(*create, "-selector", "unix:uid:2")
    new = "uid:1\\u001b]0;x\\u0007\\nerror: forged"
    other = hostile(fake, tmp_path, "uid:1", new, "entry show")
    other.host, other.alias, other.workload = platform.host, platform.alias, platform.workload
    done = other.register()
    assert done.returncode == 1
    assert "not clear" in done.stderr
    assert "\x1b" not in done.stderr
    assert len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1
