"""The story of a rotation: what the agent says becomes what we serve with, and nothing else does.

The rows of the fault table of `research/spiffe-client.md`, section 3, that are about content;
those about transport are in `tests/adapters/test_workload_api.py`. The agent is a process of its
own and speaks real gRPC.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from spiffe._proto import workload_pb2
from trio.testing import MockClock

from sidecar import rotator
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import RECORD_BYTES, CurrentIdentity, ServerIdentity
from sidecar.adapters.workload_api import WorkloadApi
from sidecar.core.address import Address, WorkloadEndpoint
from sidecar.core.identity_event import Denied, IdentityEvent, Lost, Unreadable, Updated
from sidecar.core.identity_state import Clocks, IdentityState
from sidecar.core.identity_update import RawSvid, RawUpdate, SvidChoice
from sidecar.core.ledger import Ledger
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid
from sidecar.demo.agent import der
from sidecar.rotator import IdentityRules, follow_source, watch_state
from tests.adapters.certificates import OddAuthority, openssl_cannot_read
from tests.adapters.deadlines import until, within
from tests.adapters.tls_ends import Peer, admit, refuse, tcp_ends
from tests.ca import Authority, Issued, key_usage, rsa_key
from tests.client import client_context
from tests.fake_agent import AgentProcess
from tests.log_lines import Line, assert_no_secret, captured

OTHER = TrustDomain("other.org")
GRACE = 30
# Deadlines of tests that move the clock themselves.
MOVED = 1e6


@pytest.fixture(scope="module")
def shared_agent() -> Iterator[AgentProcess]:
    """One process for the tests that only change what it answers."""
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        process = AgentProcess(Path(folder) / "agent.sock").start()
        yield process
        process.stop()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes at the end of a test what was entered into it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the rotator logs."""
    return captured(monkeypatch, rotator)


@dataclass
class Story:
    """What one follower of an agent made of it."""

    nursery: trio.Nursery
    lines: list[Line]
    current: CurrentIdentity = field(
        default_factory=lambda: CurrentIdentity(GRACE, Ledger(datetime.now(UTC)))
    )

    def follow(self, agent: AgentProcess, choice: SvidChoice | None = None) -> None:
        endpoint = WorkloadEndpoint(Address(None, 0, str(agent.path)))
        rules = IdentityRules(choice or SvidChoice(), "1.3")
        self.nursery.start_soon(follow_source, WorkloadApi(endpoint), self.current, rules)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change after which the condition holds."""
        while True:
            changed = self.current.changed
            if condition():
                return
            await changed.wait()

    async def until_serial(self, serial: str) -> ServerIdentity:
        await self.until(lambda: self.serial == serial)
        assert self.current.identity is not None
        return self.current.identity

    async def until_line(self, event: str, count: int = 1) -> Line:
        """Wait until an event was logged so often; give the last of them."""
        await until(lambda: len(self.said(event)) >= count, f"{count} times {event!r}")
        return self.said(event)[count - 1]

    async def until_state(self, state: IdentityState) -> None:
        await self.until(lambda: self.state is state)

    def said(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    @property
    def serial(self) -> str:
        return self.current.identity.svid.serial if self.current.identity else ""

    @property
    def state(self) -> IdentityState:
        return self.current.standing.state(read_clocks())

    def serves(self, after: float = 0.0) -> bool:
        """Whether a connection would be served, so many seconds from now."""
        now = read_clocks()
        later = Clocks(now.wall, now.monotonic + after)
        return self.current.serving(later) is not None


@pytest.fixture
def story(nursery: trio.Nursery, lines: list[Line]) -> Story:
    return Story(nursery, lines)


# The good case.


@within(30)
async def test_first_update_is_what_we_serve_with(
    story: Story, agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    svid = authority.svid()
    agent.send(svid, authority.bundle, [foreign.bundle])
    assert (story.state, story.serves()) == (IdentityState.STARTING, False)
    story.follow(agent)
    identity = await story.until_serial(svid.serial)
    assert identity.svid.chain == svid.chain
    assert set(identity.bundles) == {authority.trust_domain, OTHER}
    assert (story.state, story.serves()) == (IdentityState.READY, True)
    line = story.said("identity obtained")[0]
    assert line["log_level"] == "info"
    assert line["spiffe_id"] == "spiffe://example.org/workload/model-server"
    assert line["serial"] == svid.serial
    assert line["expires"] == f"{svid.not_after:%FT%TZ}"
    assert line["trust_domains"] == 2


@within(30)
async def test_next_update_replaces_it_as_a_whole(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    svids = [authority.svid() for _ in range(3)]
    shared_agent.send(svids[0], authority.bundle)
    story.follow(shared_agent)
    identities = [await story.until_serial(svids[0].serial)]
    for svid in svids[1:]:
        shared_agent.send(svid, authority.bundle)
        identities.append(await story.until_serial(svid.serial))
    # Never a changed context: connections of before go on with theirs.
    assert len({id(one.context) for one in identities}) == 3
    assert [line["serial"] for line in story.said("identity rotated")] == [
        svid.serial for svid in svids[1:]
    ]
    assert len(story.said("identity obtained")) == 1


@within(30)
async def test_the_same_again_is_no_rotation(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    svid = authority.svid()
    shared_agent.send(svid, authority.bundle)
    story.follow(shared_agent)
    await story.until_serial(svid.serial)
    shared_agent.send(svid, authority.bundle)
    line = await story.until_line("identity confirmed")
    assert line["log_level"] == "debug"
    assert story.said("identity rotated") == []
    assert story.state is IdentityState.READY


@within(30)
async def test_new_bundle_with_the_same_svid_is_a_rotation(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    svid, next_authority = authority.svid(), OddAuthority(name="next")
    shared_agent.send(svid, authority.bundle)
    story.follow(shared_agent)
    before = await story.until_serial(svid.serial)
    wider = replace(
        authority.bundle, authorities=(authority.certificate, next_authority.certificate)
    )
    shared_agent.send(svid, wider)
    await story.until_line("identity rotated")
    assert story.current.identity is not None
    assert story.current.identity.context is not before.context
    assert story.current.identity.bundles[authority.trust_domain] == wider


@within(MOVED)
async def test_agent_that_is_silent_past_the_time_of_renewal_is_asked_again(
    story: Story, agent: AgentProcess, authority: Authority, mock_clock: MockClock
) -> None:
    svid = authority.svid(not_before=timedelta(0), not_after=timedelta(hours=1))
    agent.send(svid, authority.bundle)
    story.follow(agent)
    await story.until_serial(svid.serial)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(44 * 60)
    await trio.testing.wait_all_tasks_blocked()
    assert agent.calls() == 1
    mock_clock.jump(2 * 60)
    await story.until_line("identity confirmed")
    assert agent.calls() == 2
    assert story.said("agent lost") == []
    assert story.state is IdentityState.READY


@within(30)
async def test_following_ends_with_its_task_and_takes_the_stream_along(
    agent: AgentProcess, authority: Authority, lines: list[Line]
) -> None:
    async with trio.open_nursery() as nursery:
        story = Story(nursery, lines)
        story.follow(agent)
        await story.until_state(IdentityState.READY)
        nursery.cancel_scope.cancel()

    def gone() -> bool:
        return all(thread.name != "workload-api" for thread in threading.enumerate())

    await until(gone, "the thread to end")


# Any source will do.


class Script:
    """A source of identities that says what a test tells it to, and nothing more."""

    name = "files"

    def __init__(self, *events: IdentityEvent) -> None:
        self.events = list(events)
        self.good = 0
        self.closed = False

    async def next_event(self, ask_again_seconds: float) -> IdentityEvent:
        if not self.events:
            await trio.sleep_forever()
        return self.events.pop(0)

    def accepted(self) -> None:
        self.good += 1

    def close(self) -> None:
        self.closed = True


def raw(svid: X509Svid, bundle: TrustBundle) -> Updated:
    """What a source says when it has an SVID."""
    key = pkcs8(svid.private_key)
    fields = (str(svid.spiffe_id), der(svid.chain), key, der(bundle.authorities))
    return Updated(RawUpdate((RawSvid(*fields),), {}))


@within(30)
async def test_source_hears_of_good_updates_only_and_is_closed_at_the_end(
    lines: list[Line], authority: Authority, foreign: Authority
) -> None:
    first, second = authority.svid(), authority.svid()
    source = Script(
        raw(first, authority.bundle),
        raw(first, foreign.bundle),
        Unreadable("half written"),
        Denied("gone"),
        raw(second, authority.bundle),
    )
    rules = IdentityRules(SvidChoice(), "1.3")
    async with trio.open_nursery() as nursery:
        story = Story(nursery, lines)
        nursery.start_soon(follow_source, source, story.current, rules)
        await story.until_serial(second.serial)
        await trio.testing.wait_all_tasks_blocked()
        assert (source.good, source.closed) == (2, False)
        nursery.cancel_scope.cancel()
    assert source.closed
    assert len(story.said("update discarded")) == 2


@within(30)
async def test_source_is_lost_by_its_name(story: Story, authority: Authority) -> None:
    svid = authority.svid()
    source = Script(raw(svid, authority.bundle), Lost("no such file"), Lost("no such file"))
    rules = IdentityRules(SvidChoice(), "1.3")
    story.nursery.start_soon(follow_source, source, story.current, rules)
    await story.until_state(IdentityState.AGENT_LOST)
    await trio.testing.wait_all_tasks_blocked()
    (line,) = story.said("files lost")
    assert (line["reason"], line["serving"]) == ("no such file", True)
    assert story.serial == svid.serial


# Content that is refused as a whole. Each row is a message; its second half is in the reason.


class Draft:
    """A good message, to be spoiled."""

    def __init__(self, authority: Authority, foreign: Authority) -> None:
        self.authority, self.foreign = authority, foreign
        self.message = workload_pb2.X509SVIDResponse()
        self.add(authority.sign(authority.leaf()))
        self.message.federated_bundles["spiffe://other.org"] = der(foreign.bundle.authorities)

    def add(self, issued: Issued, spiffe_id: str = "") -> Draft:
        """One more SVID."""
        uri = spiffe_id or _uri(issued.chain[0])
        self.message.svids.add(
            spiffe_id=uri,
            x509_svid=der(issued.chain),
            x509_svid_key=pkcs8(issued.key),
            bundle=der(self.authority.bundle.authorities),
        )
        return self

    def only(self, issued: Issued, spiffe_id: str = "") -> Draft:
        """This SVID instead."""
        self.message.ClearField("svids")
        return self.add(issued, spiffe_id)

    def leaf(self, **changes: object) -> Draft:
        """The same SVID with one rule broken."""
        leaf = replace(self.authority.leaf(), **changes)  # type: ignore[arg-type]
        return self.only(self.authority.sign(leaf), "spiffe://example.org/workload/model-server")

    def set(self, **fields: bytes | str) -> Draft:
        """Other fields in the first SVID."""
        for name, value in fields.items():
            setattr(self.message.svids[0], name, value)
        return self


def _uri(leaf: x509.Certificate) -> str:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)[0]


def pkcs8(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def _encrypted_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def _chain_with(draft: Draft, more: bytes) -> Draft:
    return draft.set(x509_svid=draft.message.svids[0].x509_svid + more)


def _not_chained(draft: Draft) -> Draft:
    unheard = OddAuthority(name="unheard of")
    return draft.only(unheard.sign(draft.authority.leaf()))


def _intermediate_missing(draft: Draft) -> Draft:
    return draft.only(draft.authority.intermediate().sign(draft.authority.leaf()))


def _forged_by_federated(draft: Draft) -> Draft:
    return draft.only(draft.foreign.sign(draft.authority.leaf()))


def _second_is_bad(draft: Draft) -> Draft:
    draft.add(draft.authority.sign(draft.authority.leaf("/workload/second")))
    draft.message.svids[1].x509_svid = b"garbage"
    return draft


def _second_is_not_proven(draft: Draft) -> Draft:
    leaf = draft.authority.leaf("/workload/second")
    return draft.add(OddAuthority(name="unheard of").sign(leaf))


def _first_is_bad(draft: Draft) -> Draft:
    draft.add(draft.authority.sign(draft.authority.leaf("/workload/second")))
    return draft.set(x509_svid_key=b"garbage")


def _two_bundles_of_one_trust_domain(draft: Draft) -> Draft:
    draft.add(draft.authority.sign(draft.authority.leaf("/workload/second")))
    draft.message.svids[1].bundle += der(OddAuthority(name="another").bundle.authorities)
    return draft


def _swapped_keys(draft: Draft) -> Draft:
    draft.add(draft.authority.sign(draft.authority.leaf("/workload/second")))
    one, two = draft.message.svids
    one.x509_svid_key, two.x509_svid_key = two.x509_svid_key, one.x509_svid_key
    return draft


def _intermediate_openssl_cannot_read(draft: Draft) -> Draft:
    return _chain_with(draft, openssl_cannot_read(OddAuthority()))


EKU = ExtendedKeyUsageOID
REFUSED = [
    pytest.param(lambda d: d.set(x509_svid=b"garbage"), "not a DER", id="certificate is garbage"),
    pytest.param(
        lambda d: d.set(x509_svid=d.message.svids[0].x509_svid[:-9]),
        "truncated DER",
        id="certificate is truncated",
    ),
    pytest.param(
        lambda d: d.set(x509_svid=b"-----BEGIN CERTIFICATE-----"), "not a DER", id="PEM, not DER"
    ),
    pytest.param(lambda d: d.set(x509_svid=b"\x30\x03abc"), "SVID", id="DER, no certificate"),
    pytest.param(lambda d: _chain_with(d, b"garbage"), "not a DER", id="garbage after the leaf"),
    pytest.param(lambda d: _chain_with(d, b"\x30\x82\xff\xff"), "truncated", id="half a second"),
    pytest.param(lambda d: d.set(x509_svid_key=b"garbage"), "SVID", id="key is garbage"),
    pytest.param(lambda d: d.set(x509_svid_key=_encrypted_key()), "SVID", id="key is encrypted"),
    pytest.param(
        lambda d: d.set(x509_svid_key=pkcs8(ec.generate_private_key(ec.SECP256R1()))),
        "does not belong",
        id="key of another certificate",
    ),
    pytest.param(
        lambda d: d.set(x509_svid_key=pkcs8(ed25519.Ed25519PrivateKey.generate())),
        "does not belong",
        id="key of another kind",
    ),
    pytest.param(
        lambda d: d.set(x509_svid_key=pkcs8(x25519.X25519PrivateKey.generate())),
        "expected ECDSA",
        id="key that cannot sign",
    ),
    pytest.param(_swapped_keys, "does not belong", id="keys of two SVIDs swapped"),
    pytest.param(lambda d: d.set(bundle=b"garbage"), "not a DER", id="bundle is garbage"),
    pytest.param(
        lambda d: d.set(bundle=der(d.foreign.bundle.authorities)), "not proven", id="wrong bundle"
    ),
    pytest.param(
        lambda d: d.set(bundle=d.message.svids[0].x509_svid),
        "itself an authority",
        id="the leaf as bundle",
    ),
    pytest.param(
        lambda d: d.set(bundle=openssl_cannot_read(OddAuthority())),
        "certificate 1 of 1",
        id="bundle of which nothing can be read",
    ),
    pytest.param(
        _intermediate_openssl_cannot_read, "certificate 2 of 2", id="chain that OpenSSL cannot read"
    ),
    pytest.param(
        lambda d: d.set(spiffe_id=""), "mandatory field spiffe_id is empty", id="ID is empty"
    ),
    pytest.param(
        lambda d: d.set(x509_svid=b""), "mandatory field chain is empty", id="chain is empty"
    ),
    pytest.param(
        lambda d: d.set(x509_svid_key=b""),
        "mandatory field private_key is empty",
        id="key is empty",
    ),
    pytest.param(
        lambda d: d.set(bundle=b""), "mandatory field bundle is empty", id="bundle is empty"
    ),
    pytest.param(lambda d: d.message.ClearField("svids") or d, "no SVID", id="no SVIDs"),
    pytest.param(
        lambda d: d.set(spiffe_id="spiffe://example.org/other"), "its certificate says", id="ID"
    ),
    pytest.param(
        lambda d: d.set(spiffe_id="spiffe://other.org/workload/model-server"),
        "SVID",
        id="ID of another trust domain",
    ),
    pytest.param(
        lambda d: d.set(spiffe_id="spiffe://example.org/workload/model-server\n"),
        "not a SPIFFE ID",
        id="newline after the ID",
    ),
    pytest.param(
        lambda d: d.leaf(uris=("spiffe://example.org",)), "names a trust domain", id="no path"
    ),
    pytest.param(
        lambda d: d.leaf(uris=d.authority.leaf().uris * 2), "2 URI names", id="two URI names"
    ),
    pytest.param(lambda d: d.leaf(uris=()), "0 URI names", id="no URI name"),
    pytest.param(
        lambda d: d.leaf(basic_constraints=x509.BasicConstraints(True, None)),
        "cA is true",
        id="an authority as leaf",
    ),
    pytest.param(lambda d: d.leaf(key_usage=None), "no keyUsage", id="no keyUsage"),
    pytest.param(
        lambda d: d.leaf(key_usage_critical=False), "not critical", id="keyUsage not critical"
    ),
    pytest.param(
        lambda d: d.leaf(key_usage=key_usage(key_cert_sign=True)), "keyCertSign", id="keyCertSign"
    ),
    pytest.param(
        lambda d: d.leaf(extended_key_usage=(EKU.SERVER_AUTH,)),
        "extendedKeyUsage",
        id="serverAuth only",
    ),
    pytest.param(
        lambda d: d.leaf(extended_key_usage=(EKU.CLIENT_AUTH,)),
        "extendedKeyUsage",
        id="clientAuth only",
    ),
    pytest.param(lambda d: d.leaf(key=rsa_key(1024)), "RSA key of 1024", id="RSA of 1024 bits"),
    pytest.param(
        lambda d: d.leaf(not_before=timedelta(hours=-2), not_after=timedelta(hours=-1)),
        "expired at",
        id="expired",
    ),
    pytest.param(
        lambda d: d.leaf(not_before=timedelta(hours=1), not_after=timedelta(hours=2)),
        "not valid before",
        id="not yet valid",
    ),
    pytest.param(_not_chained, "not proven", id="not chained"),
    pytest.param(_intermediate_missing, "not proven", id="intermediate is missing"),
    pytest.param(_forged_by_federated, "not proven", id="signed by a federated authority"),
    pytest.param(_second_is_bad, "not a DER", id="second of two is bad"),
    pytest.param(_second_is_not_proven, "not proven", id="second of two is not chained"),
    pytest.param(_first_is_bad, "SVID", id="first of two is bad"),
    pytest.param(
        _two_bundles_of_one_trust_domain, "two different bundles", id="two different bundles"
    ),
]
Spoil = Callable[[Draft], Draft]


@pytest.mark.parametrize(("spoil", "reason"), REFUSED)
@within(30)
async def test_bad_update_keeps_the_identity_and_the_stream(
    story: Story,
    shared_agent: AgentProcess,
    authority: Authority,
    foreign: Authority,
    spoil: Spoil,
    reason: str,
    folder: Path,
    closing: ExitStack,
) -> None:
    good = authority.svid()
    shared_agent.send(good, authority.bundle)
    story.follow(shared_agent)
    before = await story.until_serial(good.serial)
    sock, wire = tcp_ends(closing)
    context = client_context(authority, authority.sign(authority.leaf("/peer")), folder)
    innocent = await admit(sock, before, Peer(wire, context))
    calls = shared_agent.calls()
    shared_agent.send_bytes(spoil(Draft(authority, foreign)).message.SerializeToString())
    line = await story.until_line("update discarded")
    assert reason in line["reason"]
    assert line["log_level"] == "warning"
    assert line["kept"] is True
    assert story.current.identity is before
    assert (story.state, story.serves()) == (IdentityState.READY, True)
    # OpenSSL has one queue of errors a thread: what a parser left there would break connections.
    assert innocent.drain(memoryview(bytearray(RECORD_BYTES))) == (0, False)
    next_good = authority.svid()
    shared_agent.send(next_good, authority.bundle)
    await story.until_serial(next_good.serial)
    assert shared_agent.calls() == calls
    assert_no_secret(story.lines, good, next_good)


@within(30)
async def test_what_is_no_protobuf_keeps_the_identity_and_the_stream(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    good, next_good = authority.svid(), authority.svid()
    shared_agent.send(good, authority.bundle)
    story.follow(shared_agent)
    before = await story.until_serial(good.serial)
    calls = shared_agent.calls()
    shared_agent.send_bytes(b"\xff" * 20)
    line = await story.until_line("update discarded")
    assert "no X509SVIDResponse" in line["reason"]
    assert story.current.identity is before
    assert story.state is IdentityState.READY
    shared_agent.send(next_good, authority.bundle)
    await story.until_serial(next_good.serial)
    assert shared_agent.calls() == calls


@within(30)
async def test_bad_update_before_the_first_good_one_is_no_identity(
    story: Story, shared_agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    draft = Draft(authority, foreign).set(x509_svid_key=b"garbage")
    shared_agent.send_bytes(draft.message.SerializeToString())
    story.follow(shared_agent)
    line = await story.until_line("update discarded")
    assert line["kept"] is False
    assert story.current.identity is None
    assert (story.state, story.serves()) == (IdentityState.STARTING, False)
    good = authority.svid()
    shared_agent.send(good, authority.bundle)
    await story.until_serial(good.serial)
    assert story.state is IdentityState.READY


# Content of which a part is left out.


def _federated(key: str, data: bytes) -> Spoil:
    def spoil(draft: Draft) -> Draft:
        draft.message.federated_bundles[key] = data
        return draft

    return spoil


LEFT_OUT = [
    pytest.param(_federated("spiffe://bad.org", b"garbage"), "bad.org", id="garbage"),
    pytest.param(_federated("spiffe://bad.org", b"\x30\x03abc"), "bad.org", id="no certificate"),
    pytest.param(_federated("spiffe://bad.org", b"\x30\x82\xff\xff"), "bad.org", id="truncated"),
    pytest.param(_federated("spiffe://bad.org/path", b""), "bad.org/path", id="key with a path"),
    pytest.param(_federated("spiffe://Bad.org", b""), "Bad.org", id="key in upper case"),
    pytest.param(_federated("", b""), "''", id="key is empty"),
    pytest.param(_federated("spiffe://bad.org\n", b""), "bad.org", id="newline after the key"),
    pytest.param(
        _federated("spiffe://bad.org", openssl_cannot_read(OddAuthority("bad.org"))),
        "bad.org",
        id="OpenSSL cannot read it",
    ),
]


@pytest.mark.parametrize(("spoil", "named"), LEFT_OUT)
@within(30)
async def test_bad_federated_bundle_costs_only_its_own_trust_domain(
    story: Story,
    shared_agent: AgentProcess,
    authority: Authority,
    foreign: Authority,
    spoil: Spoil,
    named: str,
) -> None:
    good = authority.svid()
    shared_agent.send(good, authority.bundle)
    story.follow(shared_agent)
    await story.until_serial(good.serial)
    draft = spoil(Draft(authority, foreign))
    shared_agent.send_bytes(draft.message.SerializeToString())
    await story.until_line("identity rotated")
    assert story.current.identity is not None
    assert set(story.current.identity.bundles) == {authority.trust_domain, OTHER}
    line = story.said("update incomplete")[0]
    assert line["log_level"] == "warning"
    assert named in line["reason"]
    assert story.state is IdentityState.READY


NO_CERTIFICATE = b"\x30\x03\x02\x01\x01"


ODD_AUTHORITIES = [
    pytest.param(NO_CERTIFICATE, "certificate 2 of 3", id="no certificate"),
    pytest.param(openssl_cannot_read(OddAuthority()), "certificate 2 of 3", id="no UTF-8"),
    pytest.param(
        der((OddAuthority("example.org", "odd", ca=False).certificate,)),
        "authority 2 (O=odd, serial",
        id="not an authority",
    ),
    pytest.param(
        der(
            (
                OddAuthority(
                    "example.org", "odd", key=ed25519.Ed25519PrivateKey.generate()
                ).certificate,
            )
        ),
        "authority 2 (O=odd, serial",
        id="Ed25519",
    ),
]


@pytest.mark.parametrize("of", ["our own", "a federated"])
@pytest.mark.parametrize(("odd", "named"), ODD_AUTHORITIES)
@within(30)
async def test_odd_authority_costs_no_more_than_itself(
    story: Story,
    shared_agent: AgentProcess,
    authority: Authority,
    foreign: Authority,
    closing: ExitStack,
    folder: Path,
    odd: bytes,
    named: str,
    of: str,
) -> None:
    trusted = authority if of == "our own" else foreign
    second = Authority(trusted.trust_domain.name)
    bundle = der(trusted.bundle.authorities) + odd + der(second.bundle.authorities)
    draft = Draft(authority, foreign)
    if of == "our own":
        draft.set(bundle=bundle)
    else:
        draft.message.federated_bundles["spiffe://other.org"] = bundle
    shared_agent.send_bytes(draft.message.SerializeToString())
    story.follow(shared_agent)
    await story.until_line("identity obtained")
    line = story.said("update incomplete")[0]
    assert (named in line["reason"], trusted.trust_domain.name in line["reason"]) == (True, True)
    assert story.current.ledger.update_notes == (line["reason"],)
    identity = story.current.identity
    assert identity is not None
    for signer in (trusted, second):
        sock, wire = tcp_ends(closing)
        context = client_context(authority, signer.sign(signer.leaf("/peer")), folder)
        await admit(sock, identity, Peer(wire, context))
    # Said once, however often it comes; and gone when it is.
    shared_agent.send_bytes(draft.message.SerializeToString())
    await story.until_line("identity confirmed")
    assert len(story.said("update incomplete")) == 1
    shared_agent.send(authority.svid(), authority.bundle)
    await story.until(lambda: story.current.ledger.update_notes == ())


@within(30)
async def test_same_authorities_in_another_order_are_no_rotation(
    story: Story, shared_agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    second, third = Authority("example.org"), Authority("other.org")
    good = authority.svid()
    ours = (*authority.bundle.authorities, *second.bundle.authorities)
    theirs = (*foreign.bundle.authorities, *third.bundle.authorities)

    def send(svid: X509Svid, order: int) -> None:
        shared_agent.send(
            svid,
            TrustBundle(authority.trust_domain, ours[::order]),
            [TrustBundle(foreign.trust_domain, theirs[::order])],
        )

    send(good, 1)
    story.follow(shared_agent)
    before = await story.until_serial(good.serial)
    send(good, -1)
    await story.until_line("identity confirmed")
    assert story.current.identity is before
    assert not story.said("identity rotated")


@within(20)
async def test_svid_of_the_near_future_is_asked_for_when_it_begins(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    # A host whose clock is behind the authority's.
    early = authority.svid(not_before=timedelta(seconds=2))
    shared_agent.send(early, authority.bundle)
    story.follow(shared_agent)
    line = await story.until_line("update discarded")
    assert "not valid before" in line["reason"]
    await story.until_serial(early.serial)
    assert story.state is IdentityState.READY
    # With one in use as well; what begins here is the intermediate, which is as good a reason.
    middle = OddAuthority(parent=authority, name="middle", not_before=timedelta(seconds=2))
    issued = middle.sign(authority.leaf(), middle)
    later = X509Svid(early.spiffe_id, issued.chain, issued.key)
    shared_agent.send(later, authority.bundle)
    await story.until_serial(later.serial)
    assert len(story.said("update discarded")) == 2


@within(30)
async def test_another_first_svid_is_told_with_both_names(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    good, other = authority.svid(), authority.svid("/workload/other")
    shared_agent.send(good, authority.bundle)
    story.follow(shared_agent)
    await story.until_serial(good.serial)
    shared_agent.send([other, good], authority.bundle)
    await story.until_serial(other.serial)
    line = story.said("another SPIFFE ID than before")[0]
    assert line["log_level"] == "warning"
    assert (line["before"], line["spiffe_id"]) == (str(good.spiffe_id), str(other.spiffe_id))
    assert "spiffe_id" in line["hint"]
    shared_agent.send(authority.svid("/workload/other"), authority.bundle)
    await story.until(lambda: len(story.said("identity rotated")) == 2)
    assert len(story.said("another SPIFFE ID than before")) == 1


@within(30)
async def test_federated_bundle_cannot_replace_our_own(
    story: Story, shared_agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    draft = Draft(authority, foreign)
    draft.message.federated_bundles["spiffe://example.org"] = der(foreign.bundle.authorities)
    shared_agent.send_bytes(draft.message.SerializeToString())
    story.follow(shared_agent)
    await story.until_line("identity obtained")
    assert story.current.identity is not None
    assert story.current.identity.bundles[authority.trust_domain] == authority.bundle
    assert "example.org" in story.said("update incomplete")[0]["reason"]


@within(30)
async def test_revocation_lists_are_ignored_and_told(
    story: Story, shared_agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    draft = Draft(authority, foreign)
    draft.message.crl.append(b"whatever")
    shared_agent.send_bytes(draft.message.SerializeToString())
    story.follow(shared_agent)
    await story.until_line("identity obtained")
    assert "1 CRLs ignored" in story.said("update incomplete")[0]["reason"]


@within(30)
async def test_federated_trust_domain_is_trusted_while_it_is_in_the_update(
    story: Story,
    shared_agent: AgentProcess,
    authority: Authority,
    foreign: Authority,
    folder: Path,
    closing: ExitStack,
) -> None:
    billing = client_context(authority, foreign.sign(foreign.leaf("/billing")), folder)
    ours = client_context(authority, authority.sign(authority.leaf("/peer")), folder)
    svids = [authority.svid() for _ in range(3)]

    def dial(context: ssl.SSLContext) -> tuple[socket.socket, Peer]:
        sock, wire = tcp_ends(closing)
        return sock, Peer(wire, context)

    async def refused(identity: ServerIdentity) -> str:
        return (await refuse(*_at(dial(billing), identity))).reason

    shared_agent.send(svids[0], authority.bundle)
    story.follow(shared_agent)
    before = await story.until_serial(svids[0].serial)
    assert "no trust bundle for trust domain other.org" in await refused(before)

    shared_agent.send(svids[1], authority.bundle, [foreign.bundle])
    added = await story.until_serial(svids[1].serial)
    stream = await admit(*_at(dial(billing), added))
    assert str(stream.peer) == "spiffe://other.org/billing"

    shared_agent.send(svids[2], authority.bundle)
    vanished = await story.until_serial(svids[2].serial)
    assert "no trust bundle for trust domain other.org" in await refused(vanished)
    assert str((await admit(*_at(dial(ours), vanished))).peer) == "spiffe://example.org/peer"


def _at(
    ends: tuple[socket.socket, Peer], identity: ServerIdentity
) -> tuple[socket.socket, ServerIdentity, Peer]:
    return ends[0], identity, ends[1]


# Several SVIDs.


def _id(path: str) -> SpiffeId:
    return SpiffeId.parse(f"spiffe://example.org{path}")


CHOICES = [
    pytest.param(SvidChoice(), 0, id="the first by default"),
    pytest.param(SvidChoice(_id("/b")), 1, id="by ID"),
    pytest.param(SvidChoice(_id("/a")), 0, id="the first of an ID"),
    pytest.param(SvidChoice(hint="internal"), 1, id="by hint, the first of several"),
    pytest.param(SvidChoice(_id("/a"), "internal"), 2, id="by ID and hint"),
]


@pytest.mark.parametrize(("choice", "wanted"), CHOICES)
@within(30)
async def test_one_of_several_svids_is_ours(
    story: Story, shared_agent: AgentProcess, authority: Authority, choice: SvidChoice, wanted: int
) -> None:
    svids = [
        authority.svid("/a", hint="external"),
        authority.svid("/b", hint="internal"),
        authority.svid("/a", hint="internal"),
    ]
    shared_agent.send(svids, authority.bundle)
    story.follow(shared_agent, choice)
    identity = await story.until_serial(svids[wanted].serial)
    assert identity.svid.leaf == svids[wanted].leaf


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(SvidChoice(_id("/a")), id="ID"),
        pytest.param(SvidChoice(hint="internal"), id="hint"),
        pytest.param(SvidChoice(_id("/a"), "internal"), id="ID and hint"),
    ],
)
@within(30)
async def test_svid_that_was_redacted_is_denied_until_it_is_back(
    story: Story, shared_agent: AgentProcess, authority: Authority, choice: SvidChoice
) -> None:
    ours, other = authority.svid("/a", hint="internal"), authority.svid("/b", hint="external")
    shared_agent.send([other, ours], authority.bundle)
    story.follow(shared_agent, choice)
    identity = await story.until_serial(ours.serial)
    shared_agent.send([other], authority.bundle)
    await story.until_state(IdentityState.DENIED)
    line = story.said("identity denied")[0]
    assert line["log_level"] == "error"
    assert "the agent offers spiffe://example.org/b" in line["reason"]
    assert story.current.identity is identity
    assert story.serves()
    assert story.serves(after=GRACE - 1)
    assert not story.serves(after=GRACE)
    renewed = authority.svid("/a", hint="internal")
    shared_agent.send([other, renewed], authority.bundle)
    await story.until_serial(renewed.serial)
    assert story.state is IdentityState.READY
    assert story.serves(after=GRACE)


@within(30)
async def test_svid_that_was_never_offered_is_denied(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    shared_agent.send([authority.svid("/b")], authority.bundle)
    story.follow(shared_agent, SvidChoice(_id("/a")))
    await story.until_state(IdentityState.DENIED)
    assert story.current.identity is None
    assert not story.serves()


# States.


@within(30)
async def test_denial_is_a_state_at_once_and_ends_service_after_a_grace(
    story: Story, agent: AgentProcess, authority: Authority
) -> None:
    story.follow(agent)
    await story.until_state(IdentityState.READY)
    agent.deny()
    await story.until_state(IdentityState.DENIED)
    denied_at = story.current.standing.denied_at
    assert story.serves(after=GRACE - 1)
    assert not story.serves(after=GRACE)
    # It is asked again and again, told once, and the grace is not counted anew.
    await until(lambda: agent.calls() >= 4, "more calls")
    await story.until_state(IdentityState.DENIED)
    assert story.current.standing.denied_at == denied_at
    assert len(story.said("identity denied")) == 1
    assert "registration entry" in story.said("identity denied")[0]["hint"]
    granted = authority.svid()
    agent.send(granted, authority.bundle)
    await story.until_serial(granted.serial)
    assert story.state is IdentityState.READY
    assert story.serves(after=10 * GRACE)


@within(30)
async def test_denial_before_any_identity_serves_nobody(
    story: Story, shared_agent: AgentProcess
) -> None:
    shared_agent.deny()
    story.follow(shared_agent)
    await story.until_state(IdentityState.DENIED)
    assert not story.serves()


@within(30)
async def test_denied_stays_denied_while_the_agent_is_away(
    story: Story, agent: AgentProcess, authority: Authority
) -> None:
    story.follow(agent)
    await story.until_state(IdentityState.READY)
    agent.deny()
    await story.until_state(IdentityState.DENIED)
    denied_at = story.current.standing.denied_at
    await trio.to_thread.run_sync(agent.kill)
    await trio.testing.wait_all_tasks_blocked(0.2)
    assert story.state is IdentityState.DENIED
    assert story.current.standing.denied_at == denied_at
    assert not story.serves(after=GRACE)
    granted = authority.svid()
    agent.send(granted, authority.bundle)
    await trio.to_thread.run_sync(agent.start)
    await story.until_state(IdentityState.READY)
    assert story.serial == granted.serial


@within(30)
async def test_denied_stays_denied_when_an_update_is_bad(story: Story, agent: AgentProcess) -> None:
    story.follow(agent)
    await story.until_state(IdentityState.READY)
    agent.deny()
    await story.until_state(IdentityState.DENIED)
    agent.send_bytes(b"\xff" * 20)
    await story.until_line("update discarded")
    assert story.state is IdentityState.DENIED
    assert not story.serves(after=GRACE)


@pytest.mark.parametrize("how", ["stop", "kill"])
@within(60)
async def test_lost_agent_is_a_state_in_which_we_serve_on(
    story: Story, agent: AgentProcess, authority: Authority, how: str
) -> None:
    story.follow(agent)
    await story.until_state(IdentityState.READY)
    identity = story.current.identity
    await trio.to_thread.run_sync(getattr(agent, how))
    await story.until_state(IdentityState.AGENT_LOST)
    assert story.current.identity is identity
    assert story.serves(after=10 * GRACE)
    line = story.said("agent lost")[0]
    assert line["log_level"] == "warning"
    assert line["serving"] is True
    back = authority.svid()
    agent.send(back, authority.bundle)
    await trio.to_thread.run_sync(agent.start)
    await story.until_serial(back.serial)
    assert story.state is IdentityState.READY
    reasons = [line["reason"] for line in story.said("agent lost")]
    assert len(reasons) == len(set(reasons)), "said again only when there is something new to say"


@within(30)
async def test_agent_that_fails_again_and_again_is_told_once(
    story: Story, agent: AgentProcess
) -> None:
    story.follow(agent)
    await story.until_state(IdentityState.READY)
    agent.fail(grpc.StatusCode.UNAVAILABLE, "try later")
    await story.until_state(IdentityState.AGENT_LOST)
    await until(lambda: agent.calls() >= 4, "more calls")
    assert [line["reason"] for line in story.said("agent lost")] == ["UNAVAILABLE: try later"]


@within(30)
async def test_agent_that_is_no_agent_is_an_error_for_a_person(
    story: Story, agent: AgentProcess
) -> None:
    agent.fail(grpc.StatusCode.UNIMPLEMENTED, "no such method")
    story.follow(agent)
    line = await story.until_line("agent lost")
    assert line["log_level"] == "error"
    assert line["serving"] is False
    assert story.state is IdentityState.STARTING


@within(60)
async def test_service_ends_when_the_svid_does_and_begins_again_with_the_next(
    story: Story, shared_agent: AgentProcess, authority: Authority
) -> None:
    short = authority.svid(not_after=timedelta(seconds=2))
    shared_agent.send(short, authority.bundle)
    story.nursery.start_soon(watch_state, story.current)
    story.follow(shared_agent)
    await story.until_serial(short.serial)
    assert story.serves()
    await until(lambda: not story.serves(), "the SVID to expire")
    assert datetime.now(UTC) >= short.not_after
    assert story.state is IdentityState.EXPIRED
    # Told though nothing came from the agent.
    await until(lambda: len(story.said("state changed")) == 2, "a line")
    line = story.said("state changed")[1]
    assert (line["state"], line["before"]) == ("expired", "ready")
    assert line["serving"] is False
    assert line["log_level"] == "warning"
    # The agent sends the expired one once more: no way back.
    shared_agent.send(short, authority.bundle)
    await story.until_line("update discarded")
    assert not story.serves()
    fresh = authority.svid()
    shared_agent.send(fresh, authority.bundle)
    await story.until_serial(fresh.serial)
    assert (story.state, story.serves()) == (IdentityState.READY, True)


@within(60)
async def test_lost_agent_is_served_without_only_until_the_svid_expires(
    story: Story, agent: AgentProcess, authority: Authority
) -> None:
    agent.send(authority.svid(not_after=timedelta(seconds=2)), authority.bundle)
    story.follow(agent)
    await story.until_state(IdentityState.READY)
    await trio.to_thread.run_sync(agent.kill)
    await story.until_state(IdentityState.AGENT_LOST)
    assert story.serves()
    await until(lambda: story.state is IdentityState.EXPIRED, "the SVID to expire")
    assert not story.serves()


@within(60)
async def test_every_change_of_state_is_told_once(
    story: Story, agent: AgentProcess, authority: Authority
) -> None:
    story.current.denied_grace_seconds = 0.2
    story.nursery.start_soon(watch_state, story.current)
    story.follow(agent)

    async def told(count: int) -> None:
        await until(lambda: len(story.said("state changed")) >= count, f"{count} lines")

    await told(1)
    agent.send(authority.svid(), authority.bundle)
    await story.until_line("identity rotated")
    await trio.to_thread.run_sync(agent.kill)
    await told(2)
    agent.send(authority.svid(), authority.bundle)
    await trio.to_thread.run_sync(agent.start)
    await told(3)
    agent.deny()
    await told(5)  # denied, and then the grace is over
    agent.send(authority.svid(), authority.bundle)
    await told(6)
    changes = [(line["state"], line["serving"]) for line in story.said("state changed")]
    assert changes == [
        ("ready", True),
        ("agent_lost", True),
        ("ready", True),
        ("denied", True),
        ("denied", False),
        ("ready", True),
    ]


# Secrets.


@within(60)
async def test_no_line_of_a_full_story_holds_a_secret(
    story: Story, shared_agent: AgentProcess, authority: Authority, foreign: Authority
) -> None:
    story.nursery.start_soon(watch_state, story.current)
    svids = [authority.svid() for _ in range(3)]
    shared_agent.send(svids[0], authority.bundle)
    story.follow(shared_agent)
    await story.until_serial(svids[0].serial)
    # Fields in each other's places: what a parser quotes must not be a key.
    key = pkcs8(svids[1].private_key)
    for count, fields in enumerate(
        (
            {"x509_svid": key},
            {"bundle": key},
            {"x509_svid_key": key + b"x"},
            {"x509_svid": der(svids[1].chain)},
        ),
        1,
    ):
        draft = Draft(authority, foreign).set(**fields)
        shared_agent.send_bytes(draft.message.SerializeToString())
        await story.until_line("update discarded", count)
    draft = Draft(authority, foreign)
    draft.message.federated_bundles["spiffe://bad.org"] = key
    shared_agent.send_bytes(draft.message.SerializeToString())
    await until(lambda: bool(story.said("update incomplete")), "a line")
    shared_agent.deny()
    await story.until_state(IdentityState.DENIED)
    shared_agent.send(svids[2], authority.bundle)
    await story.until_serial(svids[2].serial)
    assert len({line["event"] for line in story.lines}) >= 6
    assert_no_secret(story.lines, *svids)
    assert_no_secret([{"repr": repr(story.current)}], *svids)
