"""The story of a connection's end: who may have no new request, who is cut, when, and who is not.

Time is trio's mock clock, and the wall clock follows it unless a test sets it. Peers are small
fakes, but where a chain has to be proven: those have come through a handshake.
"""

from __future__ import annotations

import gc
import ssl
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar import lifekeeper
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.lifelines import Lifeline, Lifelines
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, TlsStream, server_identity
from sidecar.core.config import ConnectionsTable
from sidecar.core.errors import PeerError
from sidecar.core.identity_state import Clocks, Standing
from sidecar.core.ledger import Ledger
from sidecar.core.policy import Policy
from sidecar.core.policy_file import parse_policy
from sidecar.core.spiffe_id import SpiffeId
from sidecar.lifekeeper import LifeKeeper
from tests.adapters.certificates import OddAuthority, bundle_of
from tests.adapters.tls_ends import Peer, admit, tcp_ends
from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = 3600.0
# How far behind its moment a verdict may be: the keeper waits a hair longer than it has to.
HAIR = 0.01
# The longest time until it is seen that the wall clock was set.
CLOCK_SECONDS = 5.0

OURS = "spiffe://example.org/workload/traefik"
OTHER = "spiffe://example.org/workload/other"
EXPIRED = "the peer's SVID has expired"
UNUSABLE = "no valid identity of our own"
TOO_OLD = "max_age_seconds"


def policy(*peers: str, endpoints: str = '"*"') -> Policy:
    names = ", ".join(f'"{peer}"' for peer in peers)
    rule = f'[[allow]]\nname = "a"\npeers = [{names}]\nendpoints = [{endpoints}]\n'
    return parse_policy(rule, "policy.toml", "http")


ALL = policy(OURS, OTHER)
WITHOUT_US = policy(OTHER)


@dataclass
class Wall:
    """The wall clock: follows trio's, and can be set."""

    ahead: float = 0.0
    looks: int = 0

    def read(self) -> Clocks:
        self.looks += 1
        now = trio.current_time()
        return Clocks(self.at(now + self.ahead), now)

    def at(self, seconds: float) -> datetime:
        return BEGIN + timedelta(seconds=seconds)


@dataclass(frozen=True, eq=False)
class FakeIdentity:
    """What we serve with: only its bundles count, by the names of their authorities."""

    authorities: frozenset[str] = frozenset({"ours"})


@dataclass(eq=False)
class FakePeer:
    """What the keeper looks at of a peer."""

    peer: SpiffeId
    identity: FakeIdentity
    not_before: datetime
    not_after: datetime
    authority: str = "ours"
    fingerprint: str = ""
    proofs: int = 0
    on_proof: Callable[[], None] = lambda: None

    def prove_again(self, identity: FakeIdentity, now: datetime) -> None:
        self.proofs += 1
        self.on_proof()
        if self.authority not in identity.authorities:
            raise PeerError("not proven by the trust bundle of example.org")
        if not self.not_before <= now <= self.not_after:
            raise PeerError("not within its time")


@dataclass(eq=False)
class Connection:
    """One connection, from its admission until it leaves or is cut."""

    lifeline: Lifeline
    peer: FakePeer
    leaves_at_end: bool = False
    ended_at: float | None = None
    cut_at: float | None = None
    leave: trio.Event = field(default_factory=trio.Event)

    @property
    def is_over(self) -> bool:
        return self.leave.is_set() or self.cut_at is not None

    @property
    def goes_on(self) -> bool:
        """Nobody told it to end."""
        return (self.ended_at, self.cut_at, self.lifeline.ended) == (None, None, "")


@dataclass
class Story:
    """One keeper at work, and the connections it keeps."""

    nursery: trio.Nursery
    wall: Wall
    table: ConnectionsTable
    identity: FakeIdentity = field(default_factory=FakeIdentity)
    lifelines: Lifelines = field(default_factory=Lifelines)
    policy: CurrentPolicy = field(default_factory=lambda: CurrentPolicy(ALL))

    def __post_init__(self) -> None:
        self.current = CurrentIdentity(30, Ledger(datetime.now(UTC)))
        self.serve_with(self.identity)
        self.keeper = LifeKeeper(self.lifelines, self.current, self.policy, self.table)
        self.nursery.start_soon(self.keeper.run)

    def serve_with(
        self, identity: FakeIdentity | None, life: float = 24 * HOUR, denied_at: float | None = None
    ) -> None:
        """Replace identity and standing, as the rotator does."""
        if identity is not None:
            self.identity = identity
        not_after = self.wall.at(trio.current_time() + self.wall.ahead + life)
        standing = Standing(not_after=not_after, connected=True, denied_at=denied_at)
        self.current.replace(cast(ServerIdentity, self.identity), standing)

    def peer(
        self,
        spiffe_id: str = OURS,
        life: float = 12 * HOUR,
        authority: str = "ours",
        fingerprint: str = "",
        age: float = 60,
    ) -> FakePeer:
        now = self.wall.at(trio.current_time() + self.wall.ahead)
        since, until = now - timedelta(seconds=age), now + timedelta(seconds=life)
        parsed = SpiffeId.parse(spiffe_id)
        return FakePeer(parsed, self.identity, since, until, authority, fingerprint or spiffe_id)

    async def connect(
        self,
        peer: FakePeer | None = None,
        *,
        request: tuple[str, str] | None = None,
        is_idle: bool = False,
        is_queued: bool = False,
    ) -> Connection:
        """Begin a stream, or a connection of mode `http`; it is not judged yet.

        One that is idle leaves when it is told to end; a request that is queued has to wait.
        """
        peer, is_stream = peer or self.peer(), not (request or is_idle or is_queued)
        connection: Connection = await self.nursery.start(self._serve, peer, is_stream)
        connection.leaves_at_end, connection.lifeline.request = is_idle, request
        return connection

    async def _serve(
        self, peer: FakePeer, is_stream: bool, task_status: trio.TaskStatus[Connection]
    ) -> None:
        def on_end() -> None:
            assert connection.ended_at is None, "told twice"
            connection.ended_at = trio.current_time()
            if connection.leaves_at_end and lifeline.request is None:
                connection.leave.set()

        with self.lifelines.watch(peer, on_end, is_one_answer=is_stream) as lifeline:
            connection = Connection(lifeline, peer)
            task_status.started(connection)
            await connection.leave.wait()
        if lifeline.was_cut:
            connection.cut_at = trio.current_time()

    async def rest(self) -> None:
        """Wait until all that can be done now is done."""
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(lifekeeper, "read_clocks", wall.read)
    return wall


Begin = Callable[..., Story]


@pytest.fixture
def begin(nursery: trio.Nursery, wall: Wall) -> Begin:
    """Begin a story; keywords are those of `[connections]`."""
    return lambda **keys: Story(nursery, wall, ConnectionsTable(**keys))


def just_after(moment: float, seen: float | None) -> bool:
    return seen is not None and moment <= seen <= moment + HAIR


# Each ending, and its grace.

END_AT = 100.0
# What ends a connection at END_AT, told when it begins.
Cause = Callable[[Story], FakePeer | None]


def peer_expires(story: Story) -> FakePeer:
    return story.peer(life=END_AT)


def own_svid_expires(story: Story) -> None:
    story.serve_with(story.identity, life=END_AT)


def denied_for_good(story: Story) -> None:
    story.serve_with(story.identity, denied_at=trio.current_time() + END_AT - 30)


def at_the_end(change: Callable[[Story], None]) -> Cause:
    async def wait(story: Story) -> None:
        await trio.sleep(END_AT)
        change(story)

    return lambda story: story.nursery.start_soon(wait, story)


def rule_goes(story: Story) -> None:
    story.policy.replace(WITHOUT_US)


def deny_rule_comes(story: Story) -> None:
    text = f'[[deny]]\nname = "gone"\npeers = ["{OURS}"]\n'
    allow = f'[[allow]]\nname = "a"\npeers = ["{OURS}"]\nendpoints = ["*"]\n'
    story.policy.replace(parse_policy(allow + text, "policy.toml", "http"))


def authority_goes(story: Story) -> None:
    story.serve_with(FakeIdentity(frozenset({"another"})))


CAUSES = [
    pytest.param(peer_expires, "expiry", EXPIRED, id="the peer's SVID expires"),
    pytest.param(own_svid_expires, "expiry", UNUSABLE, id="our own SVID expires"),
    pytest.param(denied_for_good, "expiry", UNUSABLE, id="the agent denies us for good"),
    pytest.param(
        at_the_end(rule_goes), "revoked", "no allow rule names this peer", id="a rule is taken away"
    ),
    pytest.param(
        at_the_end(deny_rule_comes), "revoked", "denied by rule 'gone'", id="a rule denies the peer"
    ),
    pytest.param(
        at_the_end(authority_goes),
        "revoked",
        "not proven by the trust bundle of example.org",
        id="the bundle loses its authority",
    ),
]
GRACES = [pytest.param(0.0, id="no grace"), pytest.param(40.0, id="a grace")]
# How a connection begins, and whether there is something to cut.
KINDS = [
    pytest.param({"is_idle": True}, False, id="idle"),
    pytest.param({"request": ("GET", "/v1/models")}, True, id="a request runs"),
    pytest.param({}, True, id="a stream"),
]


@pytest.mark.parametrize(("kind", "runs"), KINDS)
@pytest.mark.parametrize("grace", GRACES)
@pytest.mark.parametrize(("cause", "whose_grace", "reason"), CAUSES)
async def test_ending_allows_no_new_request_at_its_moment_and_cuts_after_its_grace(
    cause: Cause,
    whose_grace: str,
    reason: str,
    grace: float,
    kind: dict[str, Any],
    runs: bool,
    begin: Begin,
    autojump_clock: MockClock,
) -> None:
    # The grace of the other reasons must not count.
    graces = {"expiry_grace_seconds": 1e6, "revoked_grace_seconds": 1e6}
    story = begin(**{**graces, f"{whose_grace}_grace_seconds": grace})
    connection = await story.connect(cause(story), **kind)
    await trio.sleep(END_AT - HAIR)
    assert connection.goes_on
    await trio.sleep(2 * HAIR)
    assert just_after(END_AT, connection.ended_at)
    assert connection.lifeline.ended == reason
    assert (connection.cut_at is not None) == (runs and grace == 0)
    await trio.sleep(grace)
    assert just_after(END_AT + grace, connection.cut_at) == runs
    assert connection.lifeline.ended == reason
    assert connection.is_over


@pytest.mark.parametrize(
    ("kind", "is_cut"),
    [
        pytest.param({"is_idle": True}, False, id="idle"),
        pytest.param({"request": ("GET", "/v1/models")}, False, id="a request runs"),
        pytest.param({}, True, id="a stream"),
    ],
)
async def test_age_ends_a_connection_and_cuts_a_stream(
    kind: dict[str, Any], is_cut: bool, begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(max_age_seconds=50)
    await trio.sleep(10)
    connection = await story.connect(**kind)
    await trio.sleep(50 - HAIR)
    assert connection.goes_on
    await trio.sleep(HOUR)
    assert just_after(60, connection.ended_at)
    assert connection.lifeline.ended == TOO_OLD
    assert just_after(60, connection.cut_at) == is_cut


async def test_age_without_a_limit_ends_nothing(begin: Begin, autojump_clock: MockClock) -> None:
    story = begin()
    connection = await story.connect()
    await trio.sleep(11 * HOUR)
    assert connection.goes_on


async def test_endpoint_that_is_taken_away_ends_only_what_runs_there(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(revoked_grace_seconds=40)
    lost = await story.connect(request=("POST", "/v1/lost"))
    kept = await story.connect(request=("GET", "/v1/kept"))
    other_method = await story.connect(request=("GET", "/v1/lost"))
    idle = await story.connect(is_idle=True)
    stream = await story.connect()
    await trio.sleep(END_AT)
    story.policy.replace(policy(OURS, endpoints='"GET /v1/kept", "GET /v1/lost"'))
    await trio.sleep(HOUR)
    assert just_after(END_AT, lost.ended_at)
    assert just_after(END_AT + 40, lost.cut_at)
    for one in (kept, other_method, idle, stream):
        assert one.goes_on


async def test_request_that_ends_within_its_grace_is_not_cut_after_it(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(revoked_grace_seconds=40)
    connection = await story.connect(request=("POST", "/v1/lost"))
    await story.rest()
    story.policy.replace(policy(OURS, endpoints='"GET /v1/kept"'))
    await trio.sleep(20)
    connection.lifeline.request = None
    await trio.sleep(HOUR)
    assert connection.ended_at is not None
    assert connection.cut_at is None


async def test_request_that_is_queued_is_not_cut_but_when_it_runs(
    begin: Begin, autojump_clock: MockClock
) -> None:
    """Whether it runs, admission decides, when its turn has come."""
    story = begin()
    connections = [await story.connect(is_queued=True) for _ in range(3)]
    await story.rest()
    story.policy.replace(WITHOUT_US)
    await trio.sleep(1)
    assert [one.cut_at for one in connections] == [None] * 3
    assert [one.lifeline.ended for one in connections] == ["no allow rule names this peer"] * 3
    story.policy.replace(ALL)
    for one in connections[:2]:
        one.lifeline.request = ("GET", "/v1/x")
    await trio.sleep(1)
    story.policy.replace(WITHOUT_US)
    await story.rest()
    assert [one.cut_at is not None for one in connections] == [True, True, False]


async def test_request_that_was_queued_over_its_ending_is_cut_in_time_once_it_runs(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin()
    story.serve_with(story.identity, denied_at=trio.current_time() - 60)
    connection = await story.connect(story.peer(life=100), is_queued=True)
    await trio.sleep(1)
    assert connection.ended_at == 0
    story.serve_with(story.identity)
    connection.lifeline.request = ("GET", "/v1/x")
    await trio.sleep(98)
    assert connection.cut_at is None
    await trio.sleep(HOUR)
    assert just_after(400, connection.cut_at)


async def test_others_are_left_alone(begin: Begin, autojump_clock: MockClock) -> None:
    story = begin(expiry_grace_seconds=0)
    other = await story.connect(story.peer(OTHER))
    expired = await story.connect(story.peer(life=10))
    revoked = await story.connect(story.peer(life=30))
    await trio.sleep(20)
    story.policy.replace(WITHOUT_US)
    await trio.sleep(20)
    assert expired.cut_at is not None
    assert revoked.cut_at is not None
    assert other.goes_on


# What ends nothing.


async def test_rotation_ends_nothing(begin: Begin, autojump_clock: MockClock) -> None:
    story = begin()
    connections = [await story.connect(is_idle=one) for one in (False, True)]
    for _ in range(50):
        story.serve_with(FakeIdentity())
        await trio.sleep(60)
    assert all(one.goes_on for one in connections)


async def test_agent_that_is_lost_ends_nothing_before_our_svid_expires(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(expiry_grace_seconds=0)
    connection = await story.connect()
    story.serve_with(story.identity, life=END_AT)
    for _ in range(9):  # each attempt to reach it says so again
        await trio.sleep(10)
        standing = replace(story.current.standing, connected=False, reason="gone")
        story.current.replace(story.current.identity, standing)
    assert connection.goes_on
    await trio.sleep(20)
    assert just_after(END_AT, connection.cut_at)


async def test_agent_that_denies_us_for_a_moment_ends_nothing(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(expiry_grace_seconds=0)
    connection = await story.connect()
    story.serve_with(story.identity, denied_at=trio.current_time())
    await trio.sleep(29)
    story.serve_with(story.identity)
    await trio.sleep(HOUR)
    assert connection.goes_on


async def test_other_policy_that_admits_the_same_ends_nothing(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin()
    connection = await story.connect(request=("GET", "/v1/x"))
    for endpoints in ('"GET /v1/x"', '"*"', '"GET /v1/{name}"'):
        story.policy.replace(policy("spiffe://example.org/**", endpoints=endpoints))
        await trio.sleep(10)
    assert connection.goes_on


async def test_expired_peer_is_not_called_unproven(begin: Begin, autojump_clock: MockClock) -> None:
    """The chain does not prove after its time; that is the expiry's matter, with its grace."""
    story = begin(expiry_grace_seconds=100)
    connection = await story.connect(story.peer(life=10))
    await trio.sleep(20)
    story.serve_with(FakeIdentity())
    await trio.sleep(80)
    assert (connection.lifeline.ended, connection.cut_at) == (EXPIRED, None)
    await trio.sleep(20)
    assert just_after(110, connection.cut_at)


# What comes back within the grace.


async def test_peer_that_is_admitted_again_within_the_grace_is_not_cut(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(revoked_grace_seconds=40)
    connection = await story.connect()
    await story.rest()
    story.policy.replace(WITHOUT_US)
    await trio.sleep(39)
    story.policy.replace(ALL)
    await trio.sleep(HOUR)
    assert connection.cut_at is None
    story.policy.replace(WITHOUT_US)
    await trio.sleep(39)
    assert connection.cut_at is None, "the grace begins anew"
    await trio.sleep(2)
    assert connection.cut_at is not None


async def test_grace_of_a_revocation_counts_from_the_first_of_several_reasons(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(revoked_grace_seconds=40)
    connection = await story.connect()
    await story.rest()
    story.policy.replace(WITHOUT_US)
    await trio.sleep(30)
    authority_goes(story)
    story.policy.replace(ALL)
    await trio.sleep(20)
    assert just_after(40, connection.cut_at)


async def test_own_identity_that_comes_back_within_the_grace_cuts_nothing(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(expiry_grace_seconds=40)
    story.serve_with(story.identity, life=END_AT)
    connection = await story.connect()
    await trio.sleep(END_AT + 39)
    story.serve_with(FakeIdentity(), life=HOUR)
    await trio.sleep(HOUR - 1)
    assert connection.ended_at is not None
    assert connection.cut_at is None
    new = await story.connect()
    await trio.sleep(39)
    assert new.cut_at is None, "the grace begins anew"
    await trio.sleep(3)
    assert new.cut_at is not None


async def test_other_graces_count_from_the_moment_they_are_set(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(expiry_grace_seconds=300, revoked_grace_seconds=300)
    expired = await story.connect(story.peer(life=10))
    revoked = await story.connect(story.peer(OTHER))
    await trio.sleep(20)
    story.policy.replace(policy(OURS))
    await trio.sleep(30)
    assert (expired.cut_at, revoked.cut_at) == (None, None)
    story.keeper.settings_changed(ConnectionsTable(expiry_grace_seconds=5, max_age_seconds=60))
    await trio.sleep(HAIR)
    assert just_after(50, expired.cut_at)
    assert just_after(50, revoked.cut_at)
    old = await story.connect()
    await trio.sleep(70)
    assert old.lifeline.ended == TOO_OLD


# Connections that begin while something changes.


async def test_connection_that_begins_after_a_change_is_judged_without_another_one(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(expiry_grace_seconds=0)
    await story.rest()
    story.policy.replace(WITHOUT_US)
    await trio.sleep(1)
    late = await story.connect()  # its admission was decided before
    authority_goes(story)
    await trio.sleep(1)
    story.policy.replace(ALL)
    later = await story.connect(replace(story.peer(), identity=FakeIdentity()))
    await story.rest()
    assert late.cut_at is not None
    assert later.cut_at is not None


async def test_connection_that_begins_with_an_ending_in_the_past_is_cut_at_once(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin(expiry_grace_seconds=10, max_age_seconds=100)
    connection = await story.connect(story.peer(life=-11))
    await story.rest()
    assert connection.cut_at == 0


async def test_change_that_comes_while_all_are_being_judged_is_not_missed(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin()
    connections = [await story.connect() for _ in range(500)]
    await story.rest()
    for turns in range(60):
        story.policy.replace(ALL)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
    story.policy.replace(WITHOUT_US)
    late = [await story.connect() for _ in range(100)]
    await story.rest()
    assert all(one.cut_at is not None for one in connections + late)


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_is_missed_or_wronged_whatever_happens_at_a_time(
    seed: int, begin: Begin, autojump_clock: MockClock
) -> None:
    """Connections come and go while policy, bundles and requests change."""
    random, story = Random(seed), begin()
    policies = [ALL, policy(OURS), policy(OTHER), policy(OURS, OTHER, endpoints='"GET /v1/x"')]
    living: list[Connection] = []
    refused: set[Connection] = set()  # at some time

    def note() -> None:
        refused.update(one for one in living if not _is_admitted(story, one))

    async def come() -> None:
        peer = story.peer(random.choice([OURS, OTHER]), authority=random.choice("ab"))
        peer.fingerprint = peer.authority
        # It may have come through the handshake with an older identity.
        peer.identity = random.choice([story.identity, FakeIdentity(BOTH)])
        living.append(await story.connect(peer, is_idle=random.random() < 0.5))

    def ask(one: Connection) -> None:
        asked = ("GET", random.choice(["/v1/x", "/v1/y"]))
        # As admission has it: what begins is allowed at that moment.
        if story.policy.policy.decide_request(one.peer.peer, *asked).allowed:
            one.lifeline.request = asked

    async def come_and_go() -> None:
        for _ in range(200):
            http = [one for one in living if not one.lifeline.is_one_answer and not one.is_over]
            dice = random.random()
            if dice < 0.2 and living:
                living.pop(random.randrange(len(living))).leave.set()
            elif dice < 0.4 and http:
                ask(random.choice(http))
            elif dice < 0.5 and http:
                random.choice(http).lifeline.request = None
            else:
                await come()
            note()
            if random.random() < 0.5:
                await trio.lowlevel.checkpoint()

    async def change() -> None:
        for _ in range(200):
            if random.random() < 0.5:
                story.policy.replace(random.choice(policies))
            else:
                story.serve_with(FakeIdentity(random.choice([BOTH, BOTH, frozenset("a")])))
            note()
            for _ in range(random.randrange(8)):
                await trio.lowlevel.checkpoint()

    story.serve_with(FakeIdentity(BOTH))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_and_go)
        nursery.start_soon(change)
    await story.rest()
    assert living
    for one in living:
        assert one.lifeline.ended or _is_admitted(story, one), "missed"
        assert one in refused or not one.lifeline.ended, "wronged"
        assert one.lifeline.was_cut == (one.cut_at is not None)
        assert one.is_over or not one.lifeline.is_one_answer or not one.lifeline.ended
    assert story.lifelines.all == {one.lifeline for one in living if not one.is_over}


BOTH = frozenset("ab")


def _is_admitted(story: Story, one: Connection) -> bool:
    """Tell whether policy and bundles of now admit what this connection is at."""
    in_force, request = story.policy.policy, one.lifeline.request
    allowed = in_force.decide(one.peer.peer).allowed
    if request is not None:
        allowed = in_force.decide_request(one.peer.peer, *request).allowed
    is_same = one.peer.identity is story.identity
    return allowed and (is_same or one.peer.authority in story.identity.authorities)


# Clocks that are set.


async def test_wall_clock_set_forward_is_seen_within_seconds(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(expiry_grace_seconds=100)
    connection = await story.connect(story.peer(life=HOUR))
    own = await story.connect()
    await trio.sleep(60)
    wall.ahead += HOUR  # a host that slept
    await trio.sleep(CLOCK_SECONDS + HAIR)
    assert connection.ended_at is not None
    assert connection.cut_at is None or connection.cut_at > 60
    await trio.sleep(100 - 60)
    assert connection.cut_at is not None, "the grace counts from the end of its SVID"
    assert own.goes_on


async def test_wall_clock_set_forward_past_expiry_and_grace_cuts_at_once(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(expiry_grace_seconds=100)
    connection = await story.connect(story.peer(life=HOUR))
    await trio.sleep(60)
    wall.ahead += 2 * HOUR
    await trio.sleep(CLOCK_SECONDS + HAIR)
    assert connection.cut_at is not None


async def test_own_svid_that_expired_while_the_host_slept_has_had_its_grace(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(expiry_grace_seconds=100)
    story.serve_with(story.identity, life=HOUR)
    connection = await story.connect()
    await trio.sleep(60)
    wall.ahead += 2 * HOUR
    await trio.sleep(CLOCK_SECONDS + HAIR)
    assert connection.cut_at is not None


async def test_wall_clock_that_is_set_forward_bit_by_bit_is_seen_too(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    """Each step may be small; their sum is not."""
    story = begin(expiry_grace_seconds=0)
    connection = await story.connect(story.peer(life=HOUR))
    for _ in range(600):
        await trio.sleep(4)
        wall.ahead += 0.4
    # It runs away by 240 s, and 2400 have passed.
    await trio.sleep(HOUR - 2640 + CLOCK_SECONDS)
    assert connection.cut_at is not None


async def test_wall_clock_set_back_prolongs_and_cuts_nothing(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(expiry_grace_seconds=0)
    connection = await story.connect(story.peer(life=HOUR))
    await trio.sleep(HOUR / 2)
    wall.ahead -= HOUR / 4
    await trio.sleep(HOUR / 2 + 60)
    assert connection.goes_on, "by the wall it is not over yet"
    await trio.sleep(HOUR / 4)
    assert just_after(HOUR * 5 / 4, connection.cut_at)


@pytest.mark.parametrize("rotates", [False, True], ids=["same identity", "rotated since"])
async def test_wall_clock_set_back_before_the_svid_began_cuts_nothing(
    rotates: bool, begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    """What was proven once is not taken back by a clock; admission refuses what is new."""
    story = begin()
    connection = await story.connect(story.peer(age=20))
    if rotates:
        story.serve_with(FakeIdentity())
    await trio.sleep(10)
    wall.ahead -= 60
    await trio.sleep(CLOCK_SECONDS + HAIR)
    assert connection.goes_on
    if rotates:
        story.serve_with(FakeIdentity())
    await trio.sleep(CLOCK_SECONDS + HAIR)
    assert connection.goes_on


async def test_wall_clock_set_forward_and_back_between_two_looks_ends_nothing(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(expiry_grace_seconds=0)
    connection = await story.connect(story.peer(life=HOUR))
    await trio.sleep(CLOCK_SECONDS * 3.2)
    wall.ahead += 2 * HOUR
    await trio.sleep(1)
    wall.ahead -= 2 * HOUR
    await trio.sleep(CLOCK_SECONDS * 2)
    assert connection.goes_on


async def test_age_and_grace_of_a_revocation_do_not_follow_the_wall_clock(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(revoked_grace_seconds=100, max_age_seconds=1000)
    revoked = await story.connect()
    aging = await story.connect(story.peer(OTHER))
    await story.rest()
    story.policy.replace(WITHOUT_US)
    await trio.sleep(10)
    wall.ahead += HOUR
    await trio.sleep(80)
    wall.ahead -= 2 * HOUR
    await trio.sleep(20)
    assert just_after(100, revoked.cut_at)
    await trio.sleep(900)
    assert just_after(1000, aging.cut_at)


# What it costs.


async def test_many_connections_of_one_peer_are_proven_once(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin()
    one = story.peer()
    connections = [await story.connect(one) for _ in range(500)]
    await story.rest()
    assert one.proofs == 0, "the handshake has proven it"
    for rotations in (1, 2):
        story.serve_with(FakeIdentity())
        await story.rest()
        assert one.proofs == rotations
    assert all(connection.goes_on for connection in connections)


async def test_connections_that_have_ended_are_forgotten(
    begin: Begin, autojump_clock: MockClock
) -> None:
    """Their moment is hours away: until then nothing may hold what was theirs."""
    story = begin()
    held = [await story.connect() for _ in range(10)]
    gone: list[weakref.ref[FakePeer]] = []
    for _ in range(1000):
        connection = await story.connect(peer := story.peer())
        gone.append(weakref.ref(peer))
        del peer
        await story.rest()
        connection.leave.set()
        await story.rest()
        del connection
    gc.collect()
    assert sum(one() is not None for one in gone) < 100
    assert story.lifelines.all == {one.lifeline for one in held}
    assert all(one.goes_on for one in held)


async def test_connections_that_came_while_nothing_else_happened_are_still_judged_in_time(
    begin: Begin, autojump_clock: MockClock
) -> None:
    """Whatever forgets those who have ended must not forget the others."""
    story = begin(expiry_grace_seconds=0)
    held: list[tuple[float, Connection]] = []
    for number in range(600):
        connection = await story.connect(story.peer(life=2000 + number))
        if number % 20 == 0:
            held.append((trio.current_time() + 2000 + number, connection))
        else:
            await story.rest()
            connection.leave.set()
        await trio.sleep(1)
    await trio.sleep(4000)
    assert len(held) == 30
    for moment, connection in held:
        assert just_after(moment, connection.cut_at)


def _nothing_special(story: Story) -> FakePeer | None:
    return None


def _expired_with_a_long_grace(story: Story) -> FakePeer:
    return story.peer(life=-1)


def _no_identity(story: Story) -> None:
    story.serve_with(story.identity, life=-1)


def _not_admitted(story: Story) -> None:
    story.policy.replace(WITHOUT_US)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(_nothing_special, id="nothing has come"),
        pytest.param(_expired_with_a_long_grace, id="the peer's SVID has expired"),
        pytest.param(_no_identity, id="our identity is unusable"),
        pytest.param(_not_admitted, id="not admitted"),
    ],
)
async def test_keeper_rests_when_nothing_changes(
    state: Cause, begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    """An ending in the past must not be looked at again and again."""
    ages = {"expiry_grace_seconds": 1e6, "revoked_grace_seconds": 1e6, "max_age_seconds": 0.5}
    story = begin(**ages)
    connections = [await story.connect(state(story), request=("GET", "/x")) for _ in range(5)]
    await trio.sleep(60)
    before = wall.looks
    await trio.sleep(HOUR)
    # A look at the clock every five seconds, or a bit more often.
    assert wall.looks - before <= 2 * HOUR / CLOCK_SECONDS
    assert all(one.cut_at is None for one in connections)


async def test_change_leaves_nothing_to_do_twice(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    """Whoever was judged a thousand times has one moment, and is looked at when it comes."""
    story = begin()
    connections = [await story.connect(story.peer(life=HOUR)) for _ in range(5)]
    for _ in range(1000):
        story.policy.replace(ALL)
        await story.rest()
    before = wall.looks
    await trio.sleep(HOUR + 10)
    assert wall.looks - before <= 2 * HOUR / CLOCK_SECONDS
    assert all(just_after(HOUR, one.ended_at) for one in connections)


async def test_clock_that_was_set_is_dealt_with_once(
    begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin()
    connections = [await story.connect() for _ in range(50)]
    await trio.sleep(60)
    wall.ahead += 60
    await trio.sleep(60)
    before = wall.looks
    await trio.sleep(HOUR)
    assert wall.looks - before <= 2 * HOUR / CLOCK_SECONDS
    assert all(one.goes_on for one in connections)


async def test_connection_that_does_not_leave_when_it_is_cut_keeps_nobody_busy(
    nursery: trio.Nursery, begin: Begin, autojump_clock: MockClock, wall: Wall
) -> None:
    story = begin(expiry_grace_seconds=0)
    stuck = trio.Event()

    async def stay() -> None:
        peer = story.peer(life=1)
        watched = story.lifelines.watch(peer, lambda: None, is_one_answer=True)
        with watched, trio.CancelScope(shield=True):
            await stuck.wait()

    nursery.start_soon(stay)
    await trio.sleep(60)
    (lifeline,) = story.lifelines.all
    assert lifeline.was_cut
    before = wall.looks
    await trio.sleep(HOUR)
    assert wall.looks - before <= 2 * HOUR / CLOCK_SECONDS
    stuck.set()
    await story.rest()
    assert not story.lifelines.all


async def test_others_get_their_turn_while_thousands_are_proven(
    begin: Begin, autojump_clock: MockClock
) -> None:
    story = begin()
    peers = [story.peer(fingerprint=f"{number}") for number in range(2000)]
    for peer in peers:
        peer.on_proof = lambda: autojump_clock.jump(0.0005)
        await story.connect(peer)
    await story.rest()
    story.serve_with(FakeIdentity())
    before, longest = trio.current_time(), 0.0
    while not all(peer.proofs for peer in peers):
        await trio.lowlevel.checkpoint()
        longest, before = max(longest, trio.current_time() - before), trio.current_time()
    assert longest < 0.02


# Real chains.


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Admission:
    """Peers that come through real handshakes."""

    def __init__(self, authority: Authority, folder: Path, closing: ExitStack) -> None:
        self._authority, self._folder, self._closing = authority, folder, closing

    def identity(self, *authorities: Authority) -> ServerIdentity:
        """Ours, with a bundle of these authorities."""
        bundles = {self._authority.trust_domain: bundle_of(*authorities)}
        return server_identity(self._authority.svid(), bundles, "1.3")

    async def peer(
        self, identity: ServerIdentity, signer: Authority, *above: Authority
    ) -> TlsStream:
        """Let a peer in whose SVID `signer` has issued."""
        ours, wire = tcp_ends(self._closing)
        issued = signer.sign(signer.leaf(TRAEFIK), *above)
        context = client_context(self._authority, issued, self._folder)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return await admit(ours, identity, Peer(wire, context))


@pytest.fixture
def admission(authority: Authority, folder: Path, closing: ExitStack) -> Admission:
    return Admission(authority, folder, closing)


@dataclass
class RealStory:
    """A keeper of real streams, on the real clocks."""

    nursery: trio.Nursery
    identity: ServerIdentity

    def __post_init__(self) -> None:
        self.lifelines, self.policy = Lifelines(), CurrentPolicy(ALL)
        self.current = CurrentIdentity(30, Ledger(datetime.now(UTC)))
        self.rotate(self.identity)
        table = ConnectionsTable()
        self.nursery.start_soon(LifeKeeper(self.lifelines, self.current, self.policy, table).run)

    def rotate(self, identity: ServerIdentity) -> None:
        standing = Standing(not_after=identity.svid.not_after, connected=True)
        self.current.replace(identity, standing)

    async def watch(self, peer: TlsStream) -> Lifeline:
        async def serve(task_status: trio.TaskStatus[Lifeline]) -> None:
            with self.lifelines.watch(peer, lambda: None, is_one_answer=True) as lifeline:
                task_status.started(lifeline)
                await trio.sleep_forever()

        lifeline: Lifeline = await self.nursery.start(serve)
        return lifeline


async def cut_of(*lifelines: Lifeline) -> list[bool]:
    """Wait until the keeper has nothing more to do; tell who was cut."""
    await trio.testing.wait_all_tasks_blocked(0.02)
    return [one.was_cut for one in lifelines]


async def test_bundle_that_loses_an_authority_cuts_those_whom_it_spoke_for(
    nursery: trio.Nursery, admission: Admission, authority: Authority
) -> None:
    leaving = OddAuthority(authority.trust_domain.name, "leaving")
    both = admission.identity(authority, leaving)
    story = RealStory(nursery, both)
    stays = await story.watch(await admission.peer(both, authority))
    goes = await story.watch(await admission.peer(both, leaving))
    story.rotate(admission.identity(leaving, authority))
    assert await cut_of(stays, goes) == [False, False]
    story.rotate(admission.identity(authority))
    assert await cut_of(stays, goes) == [False, True]
    assert "not proven by the trust bundle of example.org" in goes.ended


async def test_intermediate_that_the_peer_presented_is_remembered(
    nursery: trio.Nursery, admission: Admission, authority: Authority
) -> None:
    below = authority.intermediate()
    identity = admission.identity(authority)
    story = RealStory(nursery, identity)
    peer = await story.watch(await admission.peer(identity, below, below))
    for _ in range(3):
        story.rotate(admission.identity(authority))
        assert await cut_of(peer) == [False]
    story.rotate(admission.identity(Authority(authority.trust_domain.name)))
    assert await cut_of(peer) == [True]


async def test_trust_domain_that_is_no_longer_federated_cuts_its_peers(
    nursery: trio.Nursery, admission: Admission, authority: Authority, foreign: Authority
) -> None:
    bundles = {one.trust_domain: one.bundle for one in (authority, foreign)}
    federated = server_identity(authority.svid(), bundles, "1.3")
    story = RealStory(nursery, federated)
    theirs = "spiffe://other.org/workload/traefik"
    story.policy.replace(policy(OURS, theirs))
    ours = await story.watch(await admission.peer(federated, authority))
    their = await story.watch(await admission.peer(federated, foreign))
    story.rotate(admission.identity(authority))
    assert await cut_of(ours, their) == [False, True]
    assert their.ended == "no trust bundle for trust domain other.org"
