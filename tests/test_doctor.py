"""What `doctor` gathers, and what its screen and its JSON look like."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import stat
import sys
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest
import trio
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.cli import main
from sidecar.core import host_layout
from sidecar.core.diagnosis.agent import AgentConf, Attestation, Token
from sidecar.core.diagnosis.backend import Asked, BackendFacts
from sidecar.core.diagnosis.catalogue import CHECKS
from sidecar.core.diagnosis.finding import Finding, Unknown, Verdict, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import ListeningSocket, Process, ServiceState
from sidecar.core.diagnosis.listener import Daemon
from sidecar.core.host_layout import LINUX, MACOS, HostLayout
from sidecar.core.registration.agent_conf import ServerAddress, agent_conf
from sidecar.core.registration.entries import Selector
from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid
from sidecar.operations.doctor import asking, daemon, witness
from sidecar.operations.doctor.agent import read_agent_conf, read_attestation
from sidecar.operations.doctor.backend import backend_facts
from sidecar.operations.doctor.commands import Commands
from sidecar.operations.doctor.daemon import UserError, service_user
from sidecar.operations.doctor.examination import examine
from sidecar.operations.doctor.hearing import Hearing
from sidecar.operations.doctor.screen import as_json, lines
from sidecar.operations.doctor.subject import Request, Subject, subject
from sidecar.operations.doctor.together import Pending
from tests.ca import Authority
from tests.http_backend import Call, Handler, HttpBackend
from tests.probe_peers import OddServer, answers, over_tls, server_context

FOUND = [
    ok("agent.socket", "/opt/spire/sockets/agent.sock"),
    fail("agent.access", "uid 451 may not pass", "sudo chmod a+x /opt/spire\nor another socket"),
    warn("policy.lint", "rule 'a': it never decides\nrule 'b': it never decides", "remove them"),
    skipped("host.clock", "only an administrator may ask", "run doctor with sudo"),
]


# The screen.


def test_screen() -> None:
    shown = [re.sub(r"\x1b\[[0-9]*m", "", line) for line in lines(FOUND, verbose=False)]
    assert shown == [
        "agent",
        "  ok    agent.socket",
        "  FAIL  agent.access           uid 451 may not pass",
        "        do: sudo chmod a+x /opt/spire",
        "            or another socket",
        "",
        "policy",
        "  warn  policy.lint            rule 'a': it never decides",
        "                               rule 'b': it never decides",
        "        do: remove them",
        "",
        "host",
        "  skip  host.clock             only an administrator may ask",
        "",
        "4 checks: 1 ok, 1 warn, 1 fail, 1 skipped; begin with agent.access",
    ]


def test_verbose_screen_shows_what_is_good_and_what_would_be_needed() -> None:
    shown = "\n".join(lines(FOUND, verbose=True))
    assert "/opt/spire/sockets/agent.sock" in shown
    assert "run doctor with sudo" in shown


def test_nothing_that_a_terminal_acts_on_reaches_it() -> None:
    finding = fail("agent.process", "\x1b]0;title\x07 (pid 1)", "kill \x1b[2J")
    text = "".join(re.sub(r"\x1b\[[0-9]*m", "", one) for one in lines([finding], verbose=True))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert b"\\u001b" not in as_json([finding])


def test_json() -> None:
    told = json.loads(as_json(FOUND))
    assert told["version"] == 1
    assert told["ok"] is False
    assert told["counts"] == {"ok": 1, "warn": 1, "fail": 1, "skipped": 1}
    assert told["findings"][1] == {
        "name": "agent.access",
        "group": "agent",
        "verdict": "fail",
        "seen": "uid 451 may not pass",
        "remedy": "sudo chmod a+x /opt/spire\nor another socket",
    }
    assert json.loads(as_json(FOUND[:1]))["ok"] is True


# The command.


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["doctor", *arguments])
    return result.exit_code, result.output


def test_no_such_file_is_78(tmp_path: Path) -> None:
    code, output = doctor("--config", str(tmp_path / "none.toml"))
    assert code == 78
    assert "none.toml" in output


@pytest.mark.parametrize("name", ["agents", "agent.sockets", ""])
def test_only_takes_names_that_there_are(tmp_path: Path, name: str) -> None:
    code, output = doctor("--config", str(tmp_path / "x"), "--only", name)
    assert code == 2
    assert "agent, identity, files" in output


def test_an_account_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    config = write(tmp_path, "127.0.0.1:9")
    code, output = doctor("--config", str(config), "--user", "no-such-account")
    assert code == 2
    assert "no-such-account" in output


def test_a_broken_configuration_is_a_finding_and_the_host_is_looked_at(tmp_path: Path) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text("[listener\n")
    code, output = doctor("--config", str(config), "--json")
    told = {one["name"]: one for one in json.loads(output)["findings"]}
    assert code == 1
    assert list(told) == list(CHECKS)
    assert told["policy.configuration"]["verdict"] == "fail"
    assert told["agent.socket"]["verdict"] == "skipped"
    assert told["backend.listening"]["verdict"] == "skipped"
    assert told["host.python"]["verdict"] == "ok"


# The whole, without a daemon.


def write(folder: Path, backend: str, policy: str = "", more: str = "") -> Path:
    config = folder / "sidecar.toml"
    config.write_text(
        f'[workload_api]\nsocket = "unix:{folder}/agent.sock"\n'
        '[listener]\naddress = "127.0.0.1:0"\n'
        f'[backend]\naddress = "{backend}"\n[policy]\nfile = "policy.toml"\n{more}'
    )
    policy = policy or '"GET /api/version"'
    (folder / "policy.toml").write_text(
        '[[allow]]\nname = "a"\npeers = ["spiffe://example.org/workload/traefik"]\n'
        f"endpoints = [{policy}]\n"
    )
    return config


async def by_name(config: Path) -> dict[str, Finding]:
    return {one.name: one for one in await examine(Request(config, "0.1.0"))}


async def test_nothing_is_there_and_each_missing_thing_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    found = await by_name(write(folder, f"127.0.0.1:{port}"))
    failures = {name for name, one in found.items() if one.verdict is Verdict.FAIL}
    # Where this Python is installed is for another test to say.
    failures.discard("host.installation")
    assert failures == {"agent.socket", "listener.daemon", "backend.listening"}


async def test_helper_mode_has_neither_port_nor_backend_nor_policy(folder: Path) -> None:
    config = folder / "sidecar.toml"
    config.write_text(
        f'[workload_api]\nsocket = "unix:{folder}/agent.sock"\n[cert_files]\ndirectory = "certs"\n'
    )
    found = await by_name(config)
    for name, one in found.items():
        if one.group == "backend" or name in ("policy.admits", "listener.port"):
            assert one.verdict is Verdict.SKIPPED
    assert found["agent.socket"].verdict is Verdict.FAIL
    assert found["files.directory"].verdict is Verdict.FAIL


async def test_an_identity_from_files_needs_no_agent(folder: Path) -> None:
    config = folder / "sidecar.toml"
    config.write_text(
        '[identity_files]\ncertificate = "c.pem"\nprivate_key = "k.pem"\nbundle = "b.pem"\n'
        '[cert_files]\ndirectory = "certs"\n'
    )
    found = await by_name(config)
    assert {one.verdict for one in found.values() if one.group == "agent"} == {Verdict.SKIPPED}
    assert found["identity.files"].verdict is Verdict.FAIL


async def test_an_identity_from_files_is_judged_as_an_agents_is(
    folder: Path, authority: Authority
) -> None:
    config = folder / "sidecar.toml"
    config.write_text(
        '[identity_files]\ncertificate = "c.pem"\nprivate_key = "k.pem"\nbundle = "b.pem"\n'
        '[cert_files]\ndirectory = "."\n'
    )
    _write_identity(folder, authority.svid(not_after=timedelta(minutes=10)), authority.bundle)
    found = await by_name(config)
    assert found["identity.files"].verdict is Verdict.OK
    assert found["identity.chain"].verdict is Verdict.OK
    _write_identity(folder, Authority("example.org").svid(), authority.bundle)
    found = await by_name(config)
    assert found["identity.files"].verdict is Verdict.FAIL
    assert "not proven" in found["identity.files"].seen


@pytest.mark.parametrize(("path", "hop"), [("/workload/x", ""), ("/workload/y", "peer")])
async def test_another_workload_that_has_taken_our_port_is_not_us(
    folder: Path, authority: Authority, path: str, hop: str
) -> None:
    own = authority.svid("/workload/x")
    _write_identity(folder, own, authority.bundle)
    there = server_context(authority.sign(authority.leaf(path)), folder, authority)
    answer = over_tls(there, answers(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    with OddServer(answer) as server:
        question = witness.Question(
            "unix:/none",
            certificate=str(folder / "c.pem"),
            private_key=str(folder / "k.pem"),
            bundle=str(folder / "b.pem"),
            url=f"https://127.0.0.1:{server.port}/health",
            is_service_user=True,
        )
        testimony = await witness.testify(question)
    assert testimony.end_to_end is not None
    assert testimony.end_to_end.hop == hop


def _write_identity(folder: Path, svid: X509Svid, bundle: TrustBundle) -> None:
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "k.pem").write_bytes(key)
    for name, chain in (("c.pem", svid.chain), ("b.pem", bundle.authorities)):
        (folder / name).write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))


async def test_a_broken_policy_leaves_the_rest_to_be_examined(folder: Path) -> None:
    found = await by_name(write(folder, "127.0.0.1:9", '"GOT /api/version"'))
    assert found["policy.configuration"].verdict is Verdict.FAIL
    assert "policy.toml" in found["policy.configuration"].seen
    assert found["policy.admits"].verdict is Verdict.SKIPPED
    assert found["agent.socket"].verdict is Verdict.FAIL
    assert found["backend.listening"].verdict is Verdict.FAIL


async def test_what_hangs_does_not_keep_doctor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agent, backend and admin listener that take connections and never say a word."""
    for module, name in (
        (daemon, "_SECONDS"),
        (witness, "_ANSWER_SECONDS"),
        (asking, "_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.5)
    with (
        socket.socket(socket.AF_UNIX) as agent,
        socket.create_server(("127.0.0.1", 0)) as backend,
        socket.create_server(("127.0.0.1", 0)) as admin,
    ):
        agent.bind(str(folder / "agent.sock"))
        agent.listen()
        more = f'[admin]\naddress = "127.0.0.1:{admin.getsockname()[1]}"\n'
        config = write(folder, f"127.0.0.1:{backend.getsockname()[1]}", more=more)
        with trio.fail_after(30):
            found = await by_name(config)
    assert found["agent.listening"].verdict is Verdict.OK
    assert found["agent.workload_api"].verdict is Verdict.FAIL
    assert found["backend.health"].verdict is not Verdict.OK
    assert found["listener.daemon"].verdict is Verdict.FAIL
    assert len(found) == len(CHECKS)


def test_doctor_writes_nothing(folder: Path) -> None:
    config = write(folder, "127.0.0.1:9")
    before = _tree(folder)
    trio.run(by_name, config)
    assert _tree(folder) == before


def _tree(folder: Path) -> dict[str, tuple[int, float, bytes]]:
    return {
        str(path): (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# The backend.


async def looked_at(folder: Path, backend: HttpBackend, policy: str = "") -> BackendFacts:
    of = await subject(Request(write(folder, backend.address, policy), "0.1.0"))
    # Only a streamed answer waits for the witness.
    facts = await backend_facts(of, cast(Pending[Hearing], None))
    assert facts is not None
    return facts


def route_table(*known: str) -> Handler:
    """As Gin and Starlette do: 405 for a known path with another method, else 404."""

    def answer(call: Call) -> None:
        methods = {text.partition(" ")[0] for text in known if text.endswith(f" {call.path}")}
        if not methods:
            call.answer(404)
        elif call.method not in methods:
            call.answer(405)
        else:
            call.answer(200, b'{"version":"0.13.5"}')

    return answer


async def test_endpoints_are_asked_for_by_a_method_that_no_route_has(folder: Path) -> None:
    with HttpBackend() as backend:
        backend.routes["/"] = route_table("GET /api/version", "POST /v1/chat/completions")
        facts = await looked_at(folder, backend, '"preset:ollama"')
        asked = {(call.method, call.path) for call in backend.calls}
    assert facts.product.name == "ollama"
    assert facts.product.version == "0.13.5"
    assert isinstance(facts.missing, tuple)
    assert "POST /v1/messages" in facts.missing
    assert "POST /v1/chat/completions" not in facts.missing
    assert "GET /api/version" not in facts.missing
    assert {method for method, _ in asked} == {"GET", "PATCH"}
    assert ("PATCH", "/v1/models/x") in asked


async def test_where_all_is_404_the_version_tells(folder: Path) -> None:
    with HttpBackend() as backend:
        backend.routes["/"] = lambda call: call.answer(404)
        backend.routes["/api/version"] = lambda call: (
            call.answer(200, b'{"version":"0.13.5"}') if call.method == "GET" else call.answer(404)
        )
        facts = await looked_at(folder, backend, '"preset:ollama"')
    assert facts.missing == ("POST /v1/messages",)


@pytest.mark.parametrize(
    ("path", "body", "headers", "name"),
    [
        pytest.param("/api/version", b'{"version":"0.14.0"}', [], "ollama", id="Ollama"),
        pytest.param("/version", b'{"version":"0.9.1"}', [], "vllm", id="vLLM"),
        pytest.param("/api/version", b"", ["Server: llama.cpp"], "llama-server", id="llama-server"),
        pytest.param("/api/version", b'{"version":1}', [], "", id="no text"),
        pytest.param("/api/version", b'{"version":"\\u001b[2J"}', [], "", id="no version"),
        pytest.param("/api/version", b"[]", [], "", id="no object"),
        pytest.param("/api/version", b"[" * 60_000, [], "", id="nested without end"),
    ],
)
async def test_products(
    folder: Path, path: str, body: bytes, headers: list[str], name: str
) -> None:
    with HttpBackend() as backend:
        backend.routes["/"] = lambda call: call.answer(404)
        backend.routes[path] = lambda call: call.answer(200, body, *headers)
        facts = await looked_at(folder, backend)
    assert facts.product.name == name


async def test_a_backend_that_pours_without_end_is_left(folder: Path) -> None:
    def pour(call: Call) -> None:
        call.begin_stream()
        while True:
            call.event("x" * 60_000)

    with HttpBackend() as backend:
        backend.routes["/"] = pour
        with trio.fail_after(30):
            facts = await looked_at(folder, backend)
    assert isinstance(facts.health, Asked)
    assert facts.health.status == 200


# The agent's configuration.

AGENT_CONF = """
agent {
    data_dir = "/opt/spire/data"
    # trust_domain = "commented.out"
    trust_domain = "ravenhelm.local"
    server_address = "10.0.0.1"
    socket_path = "/opt/spire/sockets/agent.sock"
    %s
}
plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "disk" { plugin_data { directory = "/opt/spire/data" } }
    WorkloadAttestor "unix" { plugin_data { trust_domain = "not.this" } }
}
"""


def conf(folder: Path, line: str) -> AgentConf:
    file = folder / "agent.conf"
    file.write_text(AGENT_CONF % line)
    found = read_agent_conf(file)
    assert isinstance(found, AgentConf)
    return found


def test_agent_conf_is_read(tmp_path: Path) -> None:
    found = conf(tmp_path, 'trust_bundle_path = "/opt/spire/conf/trust-bundle.pem"')
    assert found.trust_domain == "ravenhelm.local"
    assert found.socket_path == "/opt/spire/sockets/agent.sock"
    assert (found.bootstrap, found.insecure, found.join_token) == ("trust_bundle_path", False, True)


@pytest.mark.parametrize(
    ("line", "bootstrap", "insecure"),
    [
        pytest.param("insecure_bootstrap = true", "insecure_bootstrap", True, id="insecure"),
        pytest.param("insecure_bootstrap = false", "", False, id="none"),
        pytest.param('trust_bundle_url = "https://x"', "trust_bundle_url", False, id="URL"),
        pytest.param('trust_bundle_path = ""', "", False, id="empty"),
    ],
)
def test_bootstrap(tmp_path: Path, line: str, bootstrap: str, insecure: bool) -> None:
    found = conf(tmp_path, line)
    assert (found.bootstrap, found.insecure) == (bootstrap, insecure)


def test_the_agent_conf_that_register_workload_writes_is_read(tmp_path: Path) -> None:
    trust_domain, server = TrustDomain.parse("ravenhelm.local"), ServerAddress("10.0.0.1", 8081)
    file = tmp_path / "agent.conf"
    file.write_text(agent_conf(trust_domain, server, [Selector("unix", "uid:451")]))
    assert read_agent_conf(file) == AgentConf(
        str(file),
        trust_domain="ravenhelm.local",
        socket_path=host_layout.AGENT_SOCKET,
        bootstrap="trust_bundle_path",
        join_token=True,
        data=host_layout.AGENT_DATA,
        token_file=host_layout.JOIN_TOKEN,
    )


def attested(folder: Path, kept: object, token: str | None) -> Attestation | Unknown:
    if kept is not None:
        (folder / "agent-data.json").write_text(json.dumps(kept))
    if token is not None:
        (folder / "join-token").write_text(token)
    return read_attestation(AgentConf("", data=str(folder), token_file=f"{folder}/join-token"))


def test_what_the_agent_keeps_is_read(tmp_path: Path, authority: Authority) -> None:
    svid = authority.svid("/spire/agent/join_token/x")
    pem = base64.b64encode(svid.leaf.public_bytes(Encoding.PEM)).decode()
    kept = {"svid": [pem], "bundle": [], "reattestable": False, "bootstrap_use": 2}
    assert attested(tmp_path, kept, "spent\n") == Attestation(svid.not_after, Token.SPENT)


@pytest.mark.parametrize(
    ("kept", "token", "found"),
    [
        pytest.param(None, None, Attestation(None, Token.ABSENT), id="nothing"),
        pytest.param(None, "spent", Attestation(None, Token.SPENT), id="lost"),
        pytest.param({"svid": None}, "secret", Attestation(None, Token.THERE), id="not yet"),
        pytest.param({"svid": []}, "", Attestation(None, Token.SPENT), id="an empty file"),
    ],
)
def test_an_agent_without_an_svid(
    tmp_path: Path, kept: object, token: str | None, found: Attestation
) -> None:
    assert attested(tmp_path, kept, token) == found
    assert "secret" not in repr(found)


@pytest.mark.parametrize("kept", [[], {"svid": ["AAAA"]}, {"svid": "x"}, {"svid": [1]}])
def test_what_is_no_agents_file_is_unknown(tmp_path: Path, kept: object) -> None:
    assert isinstance(attested(tmp_path, kept, None), Unknown)


@pytest.mark.parametrize("name", ["agent-data.json", "join-token"])
def test_a_pipe_that_nobody_writes_to_does_not_hold_doctor(tmp_path: Path, name: str) -> None:
    """The folder is the agent's, and whoever looks may be root."""
    os.mkfifo(tmp_path / name)
    found = attested(tmp_path, None, None)
    assert isinstance(found, Unknown) or found.token is Token.ABSENT


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "agent-data.json").open("wb") as file:
        file.truncate(2**40)
    assert isinstance(attested(tmp_path, None, None), Unknown)


def test_an_agent_conf_that_is_none_is_unknown(tmp_path: Path) -> None:
    assert isinstance(read_agent_conf(tmp_path / "none"), Unknown)
    assert isinstance(read_agent_conf(tmp_path), Unknown)


# The commands of remedies.


@pytest.mark.parametrize(
    ("layout", "is_mac", "words"),
    [
        pytest.param(LINUX, False, "systemctl restart spiffe-sidecar.service", id="systemd"),
        pytest.param(MACOS, True, "kickstart -k system/org.spiffe-sidecar.sidecar", id="launchd"),
    ],
)
def test_commands_are_for_the_services_of_this_host(
    layout: HostLayout, is_mac: bool, words: str
) -> None:
    commands = Commands(layout, is_mac, "/etc/x.toml", installed=True)
    assert words in commands.restart
    assert layout.agent_service in commands.restart_agent
    assert layout.sidecar_service in commands.publish
    assert layout.sidecar_service in commands.reload


def test_without_a_service_a_signal_does_it() -> None:
    commands = Commands(LINUX, False, "/etc/x.toml", installed=False, by_hand=77)
    assert commands.reload == "sudo kill -HUP 77"
    assert commands.publish == "sudo kill -USR1 77"
    assert "spiffe-sidecar run --config /etc/x.toml" in commands.start


async def test_the_command_that_registers_names_uid_and_id(folder: Path) -> None:
    config = write(folder, "127.0.0.1:9")
    text = config.read_text().replace(
        "[workload_api]", '[workload_api]\nspiffe_id = "spiffe://example.org/workload/x"'
    )
    config.write_text(text)
    of: Subject = await subject(Request(config, "0.1.0", user="451"))
    assert "--trust-domain example.org" in of.register
    assert "--uid 451" in of.register
    assert "--spiffe-id spiffe://example.org/workload/x" in of.register


async def test_an_account_by_number_need_not_be_there(folder: Path) -> None:
    config = write(folder, "127.0.0.1:9")
    of = await subject(Request(config, "0.1.0", user="4000000"))
    assert of.account.uid == 4_000_000
    for name in ("no-such-account", "4294967295", "9" * 5000, "\u00b2"):
        with pytest.raises(UserError):
            await subject(Request(config, "0.1.0", user=name))


async def account_beside(process: Process, service: ServiceState | Unknown) -> int:
    account, _ = await service_user("", LINUX, service, process)
    return account.uid


async def test_whoever_has_taken_the_port_is_not_the_service_user() -> None:
    """Remedies give that account rights, a registration entry among them."""
    service = ServiceState("x.service", True, True, False, user="root")
    stranger = Process(4321, 65534, "spiffe-sidecar")
    assert await account_beside(stranger, service) == 0
    assert await account_beside(stranger, replace(service, running=True, pid=4321)) == 65534
    assert await account_beside(stranger, Unknown("there is no systemctl")) == 65534
    agent = replace(service, user="", only_when_logged_in=True)
    assert await account_beside(stranger, agent) == 65534


async def test_the_kernel_says_who_has_the_admin_address() -> None:
    port = IPv4Address("127.0.0.1")
    said = Daemon(None, "", f"{port}:6703", 1)
    sockets = (ListeningSocket(port, 6703, Process(4321, 65534, "nc")),)
    found = await daemon.daemon_on_port(said, (), sockets, no_program, "linux")
    assert found.pid == 4321
    for unknown in (Unknown("no root"), (ListeningSocket(port, 6703, None),)):
        found = await daemon.daemon_on_port(said, (), unknown, no_program, "linux")
        assert found.pid == 1


async def test_the_kernel_says_who_has_the_admin_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(folder / "admin.sock"))
        admin.listen()
        said = Daemon(None, "", f"unix:{folder}/admin.sock", 1)
        found = await daemon.daemon_on_port(said, (), (), no_program, sys.platform)
    assert found.pid == os.getpid()


async def no_program(*_: str) -> Unknown:
    return Unknown("nothing is run")


@pytest.mark.parametrize("text", ["", "x", "\u00b2", "9" * 5000])
async def test_a_pid_file_without_a_number_is_a_finding(folder: Path, text: str) -> None:
    more = (
        '[cert_files]\ndirectory = "certs"\n'
        '[[after_rotation]]\nname = "x"\nsignal = "SIGHUP"\npid_file = "pid"\n'
    )
    (folder / "pid").write_text(text)
    found = await by_name(write(folder, "127.0.0.1:9", more=more))
    assert found["files.hooks"].verdict is Verdict.FAIL
    assert "holds no number" in found["files.hooks"].seen
