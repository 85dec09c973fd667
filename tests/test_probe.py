"""`probe` against real servers that are no sidecar, and identities that are none.

Each fault is produced for real, and named by the hop that it belongs to, with a remedy. Faults
of real sidecars are in tests/scenarios/test_probe.py.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.adapters.tls import ServerIdentity, server_identity
from sidecar.core.checked import Checked
from sidecar.core.policy import PeerPattern
from sidecar.core.probe.report import FaultError, Hop, Phase, ProbeReport, ProbeRequest
from sidecar.core.probe.target import ProbeTarget
from sidecar.operations.check import check
from sidecar.operations.probe import probe, take_identity
from tests.adapters.deadlines import until, within
from tests.ca import Authority, Issued
from tests.fake_agent import AgentProcess
from tests.probe_peers import (
    Conduct,
    OddServer,
    TlsConduct,
    answers,
    hang_up,
    over_tls,
    plain_http,
    read_head,
    read_on,
    reset,
    says,
    server_context,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
TRAEFIK = "spiffe://example.org/workload/traefik"
MODEL_SERVER = "spiffe://example.org/workload/model-server"
Serve = Callable[..., str]


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def own(authority: Authority, foreign: Authority) -> ServerIdentity:
    """Traefik's identity; the trust domain other.org is federated."""
    bundles = {one.trust_domain: one.bundle for one in (authority, foreign)}
    return server_identity(authority.svid("/workload/traefik"), bundles, "1.3")


@pytest.fixture
def serve(closing: ExitStack) -> Serve:
    """Run a server without TLS of its own; gives where it is."""

    def run(conduct: Conduct) -> str:
        return f"127.0.0.1:{closing.enter_context(OddServer(conduct)).port}"

    return run


@pytest.fixture
def serve_tls(serve: Serve, authority: Authority, folder: Path) -> Serve:
    """Run a server with an SVID, or what is given, that asks for a certificate of ours."""

    def run(
        conduct: TlsConduct,
        issued: Issued | None = None,
        *,
        trusts: Authority | None = authority,
        version: str = "1.3",
    ) -> str:
        presented = issued or authority.sign(authority.leaf())
        return serve(over_tls(server_context(presented, folder, trusts, version), conduct))

    return run


async def ask(where: str, own: ServerIdentity | Checked, **changes: object) -> ProbeReport:
    """Probe, and wait for what comes, however busy this host is."""
    url = where if "://" in where else f"https://{where}/health"
    target = ProbeTarget.parse(url)
    request = ProbeRequest(target, connect_seconds=15, silence_seconds=15, settle_seconds=15)
    return await probe(replace(request, **changes), own)  # type: ignore[arg-type]


def named(report: ProbeReport) -> tuple[Hop, str]:
    """Give hop and code of the fault; every fault has a remedy, and ends in a phase not ok."""
    assert report.fault is not None, report
    assert not report.ok
    assert report.fault.hint
    assert (report.fault.message + report.fault.hint).isprintable()
    return report.fault.hop, report.fault.code


def phases(report: ProbeReport) -> list[str]:
    return [phase.name if phase.ok else f"x {phase.name}" for phase in report.phases]


# What goes well.


@within(20)
async def test_report_has_all_that_was_seen(own: ServerIdentity, serve_tls: Serve) -> None:
    where = serve_tls(answers(OK))
    report = await ask(where, own)
    assert report.ok
    assert phases(report) == [
        "identity", "connect", "handshake", "peer", "request", "first byte", "answer",
    ]  # fmt: skip
    assert report.identity is not None
    assert (report.identity.spiffe_id, report.identity.serial) == (TRAEFIK, own.svid.serial)
    assert report.connection is not None
    assert report.connection.remote == where
    assert report.handshake is not None
    assert report.handshake.version == "TLSv1.3"
    assert report.peer is not None
    assert report.peer.spiffe_id == MODEL_SERVER
    assert report.answer is not None
    assert (report.answer.status, report.answer.size, report.answer.complete) == (200, 2, True)


@within(20)
async def test_phases_are_told_as_they_end_and_the_body_as_it_comes(
    own: ServerIdentity, serve_tls: Serve
) -> None:
    told: list[str] = []
    heard = threading.Event()

    def conduct(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")
        assert heard.wait(20)  # it is told before the answer is whole, or never
        tls.sendall(b"4\r\nlate\r\n0\r\n\r\n")

    def on_phase(phase: Phase) -> None:
        told.append(phase.name)

    def on_body(data: bytes) -> None:
        told.append(data.decode())
        heard.set()

    request = ProbeRequest(ProbeTarget.parse(f"https://{serve_tls(conduct)}/"))
    report = await probe(request, own, on_phase=on_phase, on_body=on_body)
    assert report.ok
    assert told[-4:] == ["first byte", "early", "late", "answer"]
    assert report.answer is not None
    assert report.answer.pieces == 2


@within(20)
async def test_name_is_looked_up_and_each_address_tried(
    own: ServerIdentity, serve_tls: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(serve_tls(answers(OK)).rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")

    async def two_addresses(*_asked: object, **_more: object) -> list[object]:
        return [(*tcp, ("127.0.0.1", closed)), (*tcp, ("127.0.0.1", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", two_addresses)
    report = await ask(f"https://gpu-1.example:{port}/", own)
    assert report.ok
    assert phases(report)[1:3] == ["name", "connect"]
    assert report.connection is not None
    assert report.connection.remote == f"127.0.0.1:{port}"
    assert [one.rpartition(": ")[0] for one in report.connection.attempts] == [
        f"127.0.0.1:{closed}"
    ]


@within(20)
async def test_ipv6_is_taken(
    own: ServerIdentity, authority: Authority, folder: Path, closing: ExitStack
) -> None:
    context = server_context(authority.sign(authority.leaf()), folder, authority)
    try:
        server = OddServer(over_tls(context, answers(OK)), socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    closing.enter_context(server)
    assert (await ask(f"https://[::1]:{server.port}/", own)).ok


@within(20)
async def test_handshake_alone_sends_nothing(own: ServerIdentity, serve_tls: Serve) -> None:
    got: list[bytes] = []
    where = serve_tls(lambda tls: got.append(tls.recv(65536)))
    report = await ask(f"tls://{where}", own, settle_seconds=0.05)
    assert report.ok
    assert phases(report)[-1] == "settled"
    assert report.answer is None
    await until(lambda: bool(got), "the end")
    assert got == [b""]


@within(20)
async def test_request_is_what_was_asked_for(own: ServerIdentity, serve_tls: Serve) -> None:
    got: list[bytes] = []

    def conduct(tls: ssl.SSLSocket) -> None:
        got.append(read_head(tls))
        tls.sendall(OK)
        tls.unwrap()

    headers = (("Authorization", "Bearer s3cret"),)
    report = await ask(
        f"https://{serve_tls(conduct)}/a?k=s3cret", own, method="POST", headers=headers, body=b"{}"
    )
    assert report.ok
    assert got[0].startswith(b"POST /a?k=s3cret HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer s3cret\r\n" in got[0]
    assert "s3cret" not in repr(report.phases)


@within(20)
async def test_old_tls_is_spoken_and_told(own: ServerIdentity, serve_tls: Serve) -> None:
    report = await ask(serve_tls(answers(OK), version="1.2"), own)
    assert report.ok
    assert report.handshake is not None
    assert report.handshake.version == "TLSv1.2"


@within(20)
async def test_server_that_wants_no_certificate_is_noted(
    own: ServerIdentity, serve_tls: Serve
) -> None:
    report = await ask(serve_tls(answers(OK), trusts=None), own)
    assert report.ok
    assert any("did not ask for our certificate" in note for note in report.notes)


# The name and the connection.


@within(20)
async def test_name_without_an_address(own: ServerIdentity) -> None:
    report = await ask("a" * 64 + ".example:6701", own)
    assert named(report) == (Hop.NAME, "not_resolved")
    assert phases(report) == ["identity", "x name"]


@within(20)
async def test_nobody_listens(own: ServerIdentity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
    report = await ask(where, own)
    assert named(report) == (Hop.CONNECT, "refused")
    assert report.fault is not None
    assert where in report.fault.message


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
@within(20)
async def test_nobody_answers(own: ServerIdentity, closing: ExitStack) -> None:
    server = closing.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
    for _ in range(8):
        sock = closing.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
    report = await ask(f"127.0.0.1:{server.getsockname()[1]}", own, connect_seconds=0.2)
    assert named(report) == (Hop.CONNECT, "timeout")


# No TLS, or none that comes to an end.

OLLAMA = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nOllama is running"
BAD = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("to_garbage", "seconds"),
    [pytest.param(BAD, 15, id="says so at once"), pytest.param(b"", 1.5, id="waits for more")],
)
@within(30)
async def test_model_server_without_tls_is_told_loudly(
    own: ServerIdentity, serve: Serve, to_garbage: bytes, seconds: float
) -> None:
    where = serve(plain_http(OLLAMA, to_garbage=to_garbage))
    report = await ask(where, own, connect_seconds=seconds)
    assert named(report) == (Hop.TLS, "plain_http")
    assert report.fault is not None
    assert "PLAIN TEXT" in report.fault.message
    assert "loopback" in report.fault.hint  # where it is not exposed
    assert "Ollama is running" in report.fault.message
    assert phases(report)[-1] == "x handshake"


@pytest.mark.parametrize(
    ("conduct", "code"),
    [
        pytest.param(says(b"SSH-2.0-OpenSSH_9.9\r\n"), "not_tls", id="another protocol"),
        pytest.param(read_on, "silent", id="silence"),
        pytest.param(hang_up, "closed", id="the end"),
        pytest.param(reset, "closed", id="a reset"),
        pytest.param(says(b"\x15\x03\x03\x00\x02\x02\x28"), "alert", id="an alert"),
        pytest.param(says(b"\x16\x03\x03\x00\x05garbage"), "protocol", id="odd TLS"),
    ],
)
@within(20)
async def test_server_without_a_handshake(
    own: ServerIdentity, serve: Serve, conduct: Conduct, code: str
) -> None:
    # Only silence is waited for; another protocol is asked what it is, and says nothing more.
    report = await ask(serve(conduct), own, connect_seconds=0.2 if code == "silent" else 1.5)
    assert named(report) == (Hop.TLS, code)


# The peer.


@within(20)
async def test_web_server_is_told_what_it_is(own: ServerIdentity, serve_tls: Serve) -> None:
    public = Authority("public-ca.example")
    leaf = replace(public.leaf(), uris=(), dns=("models.ravenhelm.dev",))
    report = await ask(serve_tls(answers(OK), public.sign(leaf)), own)
    assert named(report) == (Hop.PEER, "web_certificate")
    assert report.fault is not None
    assert "models.ravenhelm.dev" in report.fault.message
    assert report.peer is not None
    assert (report.peer.spiffe_id, report.peer.names) == ("", ("models.ravenhelm.dev",))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"uris": ("x:y",)}, "no_svid", id="no ID"),
        pytest.param(
            {"not_before": timedelta(-2), "not_after": timedelta(-1)}, "expired", id="expired"
        ),
        pytest.param(
            {"not_before": timedelta(1), "not_after": timedelta(2)}, "not_yet_valid", id="too early"
        ),
        pytest.param(
            {"uris": ("spiffe://unknown.org/x",)}, "unknown_trust_domain", id="unknown domain"
        ),
        pytest.param({"uris": ("spiffe://other.org/x",)}, "not_proven", id="not by its authority"),
    ],
)
@within(20)
async def test_peer_that_is_not_proven(
    own: ServerIdentity,
    serve_tls: Serve,
    authority: Authority,
    changes: dict[str, object],
    code: str,
) -> None:
    leaf = replace(authority.leaf(), **changes)  # type: ignore[arg-type]
    report = await ask(serve_tls(answers(OK), authority.sign(leaf)), own)
    assert named(report) == (Hop.PEER, code)
    assert report.peer is not None
    assert phases(report)[-1] == "x handshake"
    assert report.handshake is None


@pytest.mark.parametrize(
    ("peer", "expect", "is_meant"),
    [
        pytest.param("ours", (), True, id="any of our own trust domain"),
        pytest.param("ours", (MODEL_SERVER,), True, id="the ID"),
        pytest.param("ours", ("spiffe://example.org/workload/*",), True, id="a pattern"),
        pytest.param("ours", ("spiffe://example.org/x", MODEL_SERVER), True, id="one of two"),
        pytest.param("ours", (f"{MODEL_SERVER}-2",), False, id="another ID"),
        pytest.param("ours", ("spiffe://other.org/**",), False, id="another trust domain"),
        pytest.param("theirs", (), False, id="federated, and not expected"),
        pytest.param(
            "theirs", ("spiffe://other.org/workload/model-server",), True, id="federated, expected"
        ),
    ],
)
@within(20)
async def test_peer_gets_a_request_only_if_it_is_the_one_who_was_meant(
    own: ServerIdentity,
    serve_tls: Serve,
    authority: Authority,
    foreign: Authority,
    peer: str,
    expect: tuple[str, ...],
    is_meant: bool,
) -> None:
    got: list[bytes] = []

    def conduct(tls: ssl.SSLSocket) -> None:
        got.append(tls.recv(65536))
        if got[0]:
            tls.sendall(OK)
            tls.unwrap()

    whose = authority if peer == "ours" else foreign
    where = serve_tls(conduct, whose.sign(whose.leaf()))
    report = await ask(where, own, expect=tuple(map(PeerPattern.parse, expect)))
    await until(lambda: bool(got), "the server's end")
    assert bool(got[0]) is report.ok is is_meant
    if not is_meant:
        assert named(report) == (Hop.PEER, "unexpected_id")
        assert phases(report)[-1] == "x peer"


# The peer's opinion of our SVID.


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("scheme", ["https", "tls"])
@within(20)
async def test_our_svid_is_refused(
    own: ServerIdentity, serve_tls: Serve, foreign: Authority, version: str, scheme: str
) -> None:
    where = serve_tls(answers(OK), trusts=foreign, version=version)
    report = await ask(f"{scheme}://{where}", own)
    assert named(report) == (Hop.OWN_SVID, "alert")
    assert report.fault is not None
    assert TRAEFIK in report.fault.message
    assert report.answer is None


@pytest.mark.parametrize("scheme", ["https", "tls"])
@pytest.mark.parametrize("announced", [True, False], ids=["close_notify", "end of TCP"])
@within(20)
async def test_connection_ends_before_any_byte(
    own: ServerIdentity, serve_tls: Serve, announced: bool, scheme: str
) -> None:
    def conduct(tls: ssl.SSLSocket) -> None:
        if scheme == "https":
            tls.recv(65536)
        if announced:
            tls.unwrap()

    report = await ask(f"{scheme}://{serve_tls(conduct)}", own)
    assert named(report) == (Hop.OWN_SVID, "closed")


# The answer.

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"


@pytest.mark.parametrize(
    ("data", "announced", "code"),
    [
        pytest.param(b"SSH-2.0\r\n", True, "not_http", id="another protocol"),
        pytest.param(HALF, True, "broke_off", id="half of it"),
        pytest.param(b"HTTP/1.1 200 O", True, "broke_off", id="half of a head"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n\r\nwhole?", False, "broke_off", id="an end nobody announced"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nwhole", True, "", id="an end that was announced"),
    ],
)
@within(20)
async def test_answer_that_is_none_or_not_whole(
    own: ServerIdentity, serve_tls: Serve, data: bytes, announced: bool, code: str
) -> None:
    report = await ask(serve_tls(answers(data, announced=announced)), own)
    if code:
        assert named(report) == (Hop.ANSWER, code)
    else:
        assert report.ok


@pytest.mark.parametrize("data", [b"", HALF], ids=["no byte", "no next byte"])
@within(20)
async def test_answer_that_does_not_come(
    own: ServerIdentity, serve_tls: Serve, data: bytes
) -> None:
    def conduct(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        tls.sendall(data)
        read_on(tls)

    report = await ask(serve_tls(conduct), own, silence_seconds=1.5 if data else 0.2)
    assert named(report) == (Hop.ANSWER, "silent")
    assert phases(report)[-1] == ("x answer" if data else "x first byte")


@within(20)
async def test_answer_that_never_ends_is_cut_at_the_time_for_all(
    own: ServerIdentity, serve_tls: Serve
) -> None:
    done = threading.Event()

    def conduct(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not done.wait(0.01):
            tls.sendall(b"1\r\nx\r\n")

    report = await ask(serve_tls(conduct), own, total_seconds=2)
    done.set()
    assert named(report) == (Hop.ANSWER, "too_slow")
    assert report.answer is not None
    assert report.answer.size > 0


BIG = b"x" * 30_000_000  # more than sockets hold


TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("then", ["reads on", "reads no more", "hangs up", "resets"])
@within(30)
async def test_refusal_is_heard_whatever_becomes_of_the_rest_of_a_body(
    own: ServerIdentity, serve_tls: Serve, then: str
) -> None:
    done = threading.Event()

    def conduct(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        tls.sendall(TOO_LARGE)
        if then == "reads on":
            read_on(tls)
        elif then == "reads no more":
            assert_set(done)
        elif then == "resets":
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    report = await ask(serve_tls(conduct), own, method="POST", body=BIG, silence_seconds=2)
    done.set()
    assert named(report) == (Hop.BACKEND, "status")
    assert report.answer is not None
    assert report.answer.status == 413


@within(30)
async def test_word_in_between_does_not_end_a_body(own: ServerIdentity, serve_tls: Serve) -> None:
    def conduct(tls: ssl.SSLSocket) -> None:
        got = len(tls.recv(65536))
        tls.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while got < len(BIG) and (data := tls.recv(1 << 20)):
            got += len(data)
        tls.sendall(OK)
        tls.unwrap()

    assert (await ask(serve_tls(conduct), own, method="POST", body=BIG)).ok


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


@within(30)
async def test_body_that_nobody_takes(own: ServerIdentity, serve_tls: Serve) -> None:
    done = threading.Event()
    where = serve_tls(lambda _tls: assert_set(done))
    report = await ask(where, own, method="POST", body=BIG, silence_seconds=0.3)
    done.set()
    assert named(report) == (Hop.ANSWER, "request_stuck")


@within(30)
async def test_whole_body_arrives(own: ServerIdentity, serve_tls: Serve) -> None:
    got = [0]

    def conduct(tls: ssl.SSLSocket) -> None:
        while got[0] < len(BIG) and (data := tls.recv(1 << 20)):
            got[0] += len(data)
        tls.sendall(OK)
        tls.unwrap()

    assert (await ask(serve_tls(conduct), own, method="POST", body=BIG)).ok
    assert got[0] > len(BIG)


# Our own identity.

FILES = """
[identity_files]
certificate = "svid.pem"
private_key = "key.pem"
bundle = "bundle.pem"
[cert_files]
directory = "certs"
"""


def helper(folder: Path, agent: Path, more: str = "") -> Checked:
    """A configuration in helper mode, as Traefik's host has one."""
    path = folder / "helper.toml"
    path.write_text(
        f'[workload_api]\nsocket = "unix:{agent}"\n{more}\n[cert_files]\ndirectory = "certs"\n'
    )
    return check(path, {})


def files(folder: Path, authority: Authority) -> Checked:
    """A configuration whose identity is in files."""
    issued = authority.sign(authority.leaf("/workload/traefik"))
    (folder / "svid.pem").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in issued.chain)
    )
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(key)
    (folder / "bundle.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    (folder / "files.toml").write_text(FILES)
    return check(folder / "files.toml", {})


async def identity_fault(checked: Checked, seconds: float = 10) -> tuple[str, str]:
    with pytest.raises(FaultError) as caught:
        await take_identity(checked, seconds)
    fault = caught.value.fault
    assert fault.hop is Hop.IDENTITY
    assert fault.hint
    return fault.code, fault.hint


@pytest.fixture
def agent(folder: Path, authority: Authority) -> Iterator[AgentProcess]:
    process = AgentProcess(folder / "agent.sock")
    process.send(authority.svid("/workload/traefik"), authority.bundle)
    process.start()
    yield process
    process.stop()


@within(30)
async def test_helpers_configuration_will_do(
    agent: AgentProcess, folder: Path, serve_tls: Serve
) -> None:
    report = await ask(serve_tls(answers(OK)), helper(folder, agent.path))
    assert report.ok
    assert report.identity is not None
    assert (report.identity.spiffe_id, report.identity.source) == (TRAEFIK, f"unix:{agent.path}")


@within(30)
async def test_identity_in_files_will_do(
    folder: Path, authority: Authority, serve_tls: Serve
) -> None:
    report = await ask(serve_tls(answers(OK)), files(folder, authority))
    assert report.ok
    assert report.identity is not None
    assert (report.identity.spiffe_id, report.identity.source) == (
        TRAEFIK,
        str(folder / "svid.pem"),
    )


@within(60)
async def test_agent_that_gives_no_identity(agent: AgentProcess, folder: Path) -> None:
    checked = helper(folder, agent.path)
    agent.deny()
    code, hint = await identity_fault(checked)
    assert code == "agent_denied"
    assert f"unix:uid:{os.getuid()}" in hint
    assert "register-workload" in hint
    agent.silence()
    assert (await identity_fault(checked, 0.3))[0] == "agent_silent"
    agent.fail(grpc.StatusCode.UNIMPLEMENTED)
    assert (await identity_fault(checked))[0] == "agent_failed"
    agent.send_bytes(b"\xff\xff garbage")
    assert (await identity_fault(checked))[0] == "identity_bad"
    agent.stop()
    assert (await identity_fault(checked))[0] == "agent_away"


@pytest.mark.parametrize(
    ("platform", "user"), [("linux", "spiffe-sidecar"), ("darwin", "_spiffe-sidecar")]
)
@within(30)
async def test_remedy_is_to_ask_as_the_service_user_where_there_is_one(
    agent: AgentProcess,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    user: str,
) -> None:
    agent.deny()
    checked = helper(folder, agent.path)
    uids = {user: os.getuid() + 1}
    monkeypatch.setattr("pwd.getpwnam", lambda name: SimpleNamespace(pw_uid=uids[name]))
    monkeypatch.setattr("sidecar.operations.probe.own_identity.sys.platform", platform)
    assert f"sudo -u {user} " in (await identity_fault(checked))[1]
    uids[user] = os.getuid()
    assert "sudo" not in (await identity_fault(checked))[1]
    del uids[user]
    assert "sudo" not in (await identity_fault(checked))[1]


@within(30)
async def test_agent_without_the_svid_that_is_asked_for(agent: AgentProcess, folder: Path) -> None:
    checked = helper(folder, agent.path, 'spiffe_id = "spiffe://example.org/workload/other"')
    with pytest.raises(FaultError) as caught:
        await take_identity(checked, 10)
    assert caught.value.fault.code == "svid_not_offered"
    assert TRAEFIK in caught.value.fault.message


@within(30)
async def test_agent_that_could_not_renew(
    agent: AgentProcess, folder: Path, authority: Authority
) -> None:
    old = authority.svid("/x", not_before=timedelta(-2), not_after=timedelta(-1))
    agent.send(old, authority.bundle)
    code, hint = await identity_fault(helper(folder, agent.path))
    assert code == "identity_bad"
    assert "expired" in hint


@within(30)
async def test_files_that_are_not_there(folder: Path, authority: Authority) -> None:
    checked = files(folder, authority)
    (folder / "key.pem").unlink()
    assert (await identity_fault(checked))[0] == "identity_unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
@within(30)
async def test_files_that_we_may_not_read(folder: Path, authority: Authority) -> None:
    checked = files(folder, authority)
    (folder / "key.pem").chmod(0)
    code, hint = await identity_fault(checked)
    assert code == "identity_unreadable"
    assert str(os.getuid()) in hint


@within(30)
async def test_fault_of_our_identity_ends_the_probe_before_anything_is_sent(
    folder: Path, serve: Serve
) -> None:
    touched: list[bool] = []
    where = serve(lambda _sock: touched.append(True))
    report = await ask(where, helper(folder, folder / "nobody.sock"))
    assert named(report) == (Hop.IDENTITY, "agent_away")
    assert phases(report) == ["x identity"]
    assert touched == []
