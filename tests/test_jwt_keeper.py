"""The story of JWT files: what the agent gives is in the files, fresh, and the rest is told once.

The agent is a process of its own and speaks real gRPC; its tokens are really signed. Where hours
pass, trio's clock is moved by hand; the wall clock is the real one, unless a test sets it.
"""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import trio
import trio.testing
from spiffe._proto import workload_pb2
from trio.testing import MockClock

from sidecar.adapters.cert_files import CertFiles
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity, server_identity
from sidecar.core.address import Address, WorkloadEndpoint
from sidecar.core.after_rotation import Publication
from sidecar.core.errors import CertFilesError, FetchError
from sidecar.core.files_config import CertFilesTable, FileName, JwtSvidTable
from sidecar.core.identity_state import Clocks, Standing
from sidecar.core.identity_update import SvidChoice
from sidecar.core.ledger import Ledger
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.toml_tables import FileMode, FilePath, KeyMode, Name
from sidecar.demo.agent import NO_IDENTITY, Answer
from sidecar.demo.jwt_issuer import JwtIssuer
from sidecar.jwt_keeper import (
    JwtFiles,
    bundle_files,
    fetch_jwt_files,
    keep_jwt_bundles,
    keep_jwt_svids,
    svid_file,
    trouble,
)
from tests.adapters.deadlines import until, within
from tests.ca import Authority
from tests.fake_agent import AgentProcess

ID = "spiffe://example.org/workload/model-server"
OTHER_ID = "spiffe://example.org/workload/other"
OWN, OTHER = "spiffe://example.org", "spiffe://other.org"
LIFE = timedelta(hours=1)
HALF_LIFE_SECONDS = LIFE / 2 / timedelta(seconds=1)
# Deadlines of tests that move the clock themselves.
MOVED = 1e6
Line = dict[str, Any]


@pytest.fixture(scope="module")
def process() -> Iterator[AgentProcess]:
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        process = AgentProcess(Path(folder) / "agent.sock").start()
        yield process
        process.stop()


@pytest.fixture(scope="module")
def issuer() -> JwtIssuer:
    return JwtIssuer()


@pytest.fixture
def agent(process: AgentProcess, issuer: JwtIssuer) -> AgentProcess:
    """One process for all these tests, which issues our JWT-SVID and our JWT bundle."""
    if not process.runs():
        process.start()
    process.issue_jwt_svids(issuer, ID, life=LIFE)
    process.send_jwt_bundles({OWN: issuer.jwks()})
    process.forget_calls()
    return process


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the story logs, `event` and `log_level` among the fields."""
    capture = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    for module in (bundle_files, svid_file, trouble):
        monkeypatch.setattr(module, "log", logger)
    return capture.entries  # type: ignore[return-value]


@dataclass
class WallClock:
    """The wall clock as the story reads it."""

    ahead: timedelta = timedelta(0)

    def read(self) -> Clocks:
        clocks = read_clocks()
        return Clocks(clocks.wall + self.ahead, clocks.monotonic)


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock()
    monkeypatch.setattr(svid_file, "read_clocks", clock.read)
    return clock


def jwt_table(
    file: str = "vault.jwt",
    *audiences: str,
    mode: KeyMode = KeyMode(0o600),  # noqa: B008
) -> JwtSvidTable:
    first, *more = map(Name.parse, audiences or ("vault",))
    return JwtSvidTable(FileName.parse(file), first, tuple(more), mode)


def files_table(**changes: Any) -> CertFilesTable:
    values: dict[str, Any] = {"jwt_bundle": FileName.parse("bundle.json"), **changes}
    return CertFilesTable(FilePath("certs"), **values)


@dataclass
class Story:
    """The tasks of the story, and what became of the files and of what was told."""

    nursery: trio.Nursery
    lines: list[Line]
    agent: AgentProcess
    directory: Path
    authority: Authority
    choice: SvidChoice = field(default_factory=SvidChoice)
    current: CurrentIdentity = field(
        default_factory=lambda: CurrentIdentity(30, Ledger(datetime.now(UTC)))
    )
    told: list[Publication] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = CertFiles(self.directory)

    @property
    def place(self) -> JwtFiles:
        endpoint = WorkloadEndpoint(Address(None, 0, str(self.agent.path)))
        return JwtFiles(endpoint, self.choice, self.files, self.directory)

    def keep(self, *tables: JwtSvidTable) -> None:
        wanted = tables or (jwt_table(),)
        self.nursery.start_soon(keep_jwt_svids, self.place, wanted, self.current, self.told.append)

    def keep_bundles(self, table: CertFilesTable | None = None) -> None:
        self.nursery.start_soon(
            keep_jwt_bundles, self.place, table or files_table(), self.current, self.told.append
        )

    def identity(self, path: str = "/workload/model-server") -> ServerIdentity:
        bundles = {self.authority.trust_domain: self.authority.bundle}
        return server_identity(self.authority.svid(path), bundles, "1.3")

    def obtain(self, path: str = "/workload/model-server") -> None:
        """Let our X.509 identity be this one."""
        self.current.replace(self.identity(path), Standing(connected=True))

    def text(self, name: str = "vault.jwt") -> str:
        """What is in a file, empty when there is none."""
        try:
            return (self.directory / name).read_text()
        except OSError:
            return ""

    def names(self) -> set[str]:
        return {path.name for path in self.directory.iterdir() if path.name[0] != "."}

    def said(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    async def until_told(self, count: int) -> Publication:
        await until(lambda: len(self.told) >= count, f"{count} publications")
        return self.told[count - 1]

    async def until_line(self, event: str, count: int = 1) -> Line:
        await until(lambda: len(self.said(event)) >= count, f"{count} times {event!r}")
        return self.said(event)[count - 1]

    async def until_asked(self, count: int) -> None:
        await until(lambda: len(self.agent.jwt_requests()) >= count, f"{count} requests")

    async def settled(self) -> None:
        """Wait until nothing moves any more: what would have happened has happened."""
        await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.fixture
def moved_clock(mock_clock: MockClock) -> MockClock:
    """Trio's clock, to be moved by hand; it goes on by itself, so that no pause is for ever."""
    mock_clock.rate = 1.0
    return mock_clock


@pytest.fixture
def story(
    nursery: trio.Nursery,
    lines: list[Line],
    agent: AgentProcess,
    tmp_path: Path,
    authority: Authority,
) -> Iterator[Story]:
    story = Story(nursery, lines, agent, tmp_path / "certs", authority)
    yield story
    story.files.close()


def claims_of(token: str, jwks: str | bytes, audience: str) -> dict[str, Any]:
    """Verify a token against a JWK Set, as a program would that knows nothing of SPIFFE."""
    jwt = pytest.importorskip("jwt")
    keys = jwt.PyJWKSet.from_json(jwks if isinstance(jwks, str) else jwks.decode())
    kid = jwt.get_unverified_header(token)["kid"]
    claims: dict[str, Any] = jwt.decode(
        token, keys[kid].key, algorithms=["ES256"], audience=audience
    )
    return claims


# The good case.


@within(30)
async def test_token_is_asked_for_at_once_and_written_bare(story: Story, issuer: JwtIssuer) -> None:
    story.keep()
    published = await story.until_told(1)
    claims = claims_of(story.text(), issuer.jwks(), "vault")
    assert claims["sub"] == ID
    assert claims["aud"] == ["vault"]
    assert published.expires == datetime.fromtimestamp(claims["exp"], UTC)
    assert stat.S_IMODE((story.directory / "vault.jwt").lstat().st_mode) == 0o600


@within(30)
async def test_writing_is_one_line(story: Story) -> None:
    story.keep(jwt_table("a.jwt", "vault", "b"))
    published = await story.until_told(1)
    assert story.lines == [
        {
            "event": "JWT-SVID written",
            "log_level": "info",
            "file": "a.jwt",
            "audiences": ("vault", "b"),
            "spiffe_id": ID,
            "expires": f"{published.expires:%FT%TZ}",
        }
    ]


@within(30)
async def test_others_are_told_of_the_file_and_whose_it_is(story: Story) -> None:
    story.keep(jwt_table("a.jwt", "vault", "b"))
    published = await story.until_told(1)
    assert published.kind == "jwt"
    assert published.environment() == {
        "SPIFFE_SIDECAR_KIND": "jwt",
        "SPIFFE_SIDECAR_DIRECTORY": str(story.directory),
        "SPIFFE_SIDECAR_JWT_SVID": str(story.directory / "a.jwt"),
        "SPIFFE_SIDECAR_SPIFFE_ID": ID,
        "SPIFFE_SIDECAR_AUDIENCE": "vault,b",
        "SPIFFE_SIDECAR_EXPIRES": f"{published.expires:%Y-%m-%dT%H:%M:%SZ}",
    }


@within(30)
async def test_each_table_has_its_own_file_audiences_and_mode(
    story: Story, issuer: JwtIssuer
) -> None:
    story.keep(
        jwt_table("a.jwt", "a"),
        jwt_table("b.jwt", "b", "c", mode=KeyMode(0o640)),
    )
    await story.until_told(2)
    assert claims_of(story.text("a.jwt"), issuer.jwks(), "a")["aud"] == ["a"]
    assert claims_of(story.text("b.jwt"), issuer.jwks(), "c")["aud"] == ["b", "c"]
    modes = [stat.S_IMODE((story.directory / one).lstat().st_mode) for one in ("a.jwt", "b.jwt")]
    assert modes == [0o600, 0o640]
    assert sorted(story.agent.jwt_requests()) == [(["a"], ""), (["b", "c"], "")]


@within(30)
async def test_token_is_that_of_the_configured_id(story: Story, issuer: JwtIssuer) -> None:
    story.agent.issue_jwt_svids(issuer, OTHER_ID, ID)
    story.choice = SvidChoice(SpiffeId.parse(ID))
    story.keep()
    assert (await story.until_told(1)).spiffe_id == ID
    assert story.agent.jwt_requests() == [(["vault"], ID)]


@within(30)
async def test_token_is_that_of_the_configured_hint(story: Story, issuer: JwtIssuer) -> None:
    story.agent.issue_jwt_svids(issuer, OTHER_ID, ID, hints=("external", "internal"))
    story.choice = SvidChoice(hint="internal")
    story.keep()
    assert (await story.until_told(1)).spiffe_id == ID
    assert claims_of(story.text(), issuer.jwks(), "vault")["sub"] == ID


@within(30)
async def test_token_verifies_against_the_bundle_in_the_other_file(story: Story) -> None:
    story.obtain()
    story.keep()
    story.keep_bundles()
    await story.until_told(2)
    assert claims_of(story.text(), story.text("bundle.json"), "vault")["sub"] == ID


# When the next one is fetched.


@within(MOVED)
async def test_next_token_is_fetched_at_half_of_the_life(
    story: Story, moved_clock: MockClock
) -> None:
    story.keep()
    await story.until_told(1)
    for count in (2, 3):
        before = story.text()
        moved_clock.jump(HALF_LIFE_SECONDS - 60)
        await story.settled()
        assert len(story.agent.jwt_requests()) == count - 1
        assert story.text() == before
        moved_clock.jump(61)
        await story.until_told(count)
        assert story.text() not in ("", before)
    assert len(story.said("JWT-SVID written")) == 3


@within(MOVED)
async def test_wall_clock_that_jumps_is_noticed_within_minutes(
    story: Story, moved_clock: MockClock, wall_clock: WallClock
) -> None:
    story.keep()
    await story.until_told(1)
    moved_clock.jump(60)
    await story.settled()
    assert len(story.agent.jwt_requests()) == 1
    wall_clock.ahead = LIFE * 0.6  # the host has slept
    for _ in range(5):
        moved_clock.jump(60)
        await story.settled()
    await story.until_told(2)


@within(MOVED)
async def test_clock_set_back_does_not_keep_a_token_longer(
    story: Story, moved_clock: MockClock, wall_clock: WallClock
) -> None:
    story.keep()
    await story.until_told(1)
    await story.settled()
    wall_clock.ahead = timedelta(hours=-1)
    moved_clock.jump(HALF_LIFE_SECONDS + 1)
    await story.until_told(2)
    # And that of before was made for five minutes, whatever our clock says.
    await story.settled()
    moved_clock.jump(HALF_LIFE_SECONDS + 1)
    await story.until_told(3)


def fixed(issuer: JwtIssuer, *audiences: str, life: timedelta = LIFE, **fields: str) -> Answer:
    """The same token for every request; `fields` of the message replace the right ones."""
    token = issuer.token(ID, audiences or ("vault",), life)
    response = workload_pb2.JWTSVIDResponse()
    response.svids.add(**{"spiffe_id": ID, "svid": token, **fields})
    return Answer(response.SerializeToString())


@within(MOVED)
async def test_token_that_the_agent_gives_again_is_not_written_again(
    story: Story, issuer: JwtIssuer, moved_clock: MockClock
) -> None:
    story.agent.answer_jwt_svids(fixed(issuer))
    story.keep()
    await story.until_told(1)
    await story.settled()
    for count in (2, 3):
        moved_clock.jump(HALF_LIFE_SECONDS + 1)
        await story.until_asked(count)
        await story.settled()
    assert len(story.told) == 1
    assert len(story.said("JWT-SVID written")) == 1


@within(30)
async def test_token_that_was_there_before_us_is_told_once(story: Story, issuer: JwtIssuer) -> None:
    story.agent.answer_jwt_svids(fixed(issuer))
    async with trio.open_nursery() as nursery:
        before = Story(nursery, [], story.agent, story.directory, story.authority)
        before.keep()
        await before.until_told(1)
        nursery.cancel_scope.cancel()
    before.files.close()
    story.lines.clear()
    story.keep()
    await story.until_told(1)
    assert story.lines == []


@within(MOVED)
async def test_file_that_somebody_removed_comes_back(story: Story, moved_clock: MockClock) -> None:
    story.keep()
    await story.until_told(1)
    token = story.text()
    await story.settled()
    (story.directory / "vault.jwt").unlink()
    moved_clock.jump(61)
    await story.until_told(2)
    assert story.text() == token
    assert len(story.agent.jwt_requests()) == 1


# Our own identity.


@within(MOVED)
async def test_another_spiffe_id_of_ours_is_a_reason_to_ask_at_once(
    story: Story, issuer: JwtIssuer, mock_clock: MockClock
) -> None:
    story.obtain()
    story.keep()
    await story.until_told(1)
    story.agent.issue_jwt_svids(issuer, OTHER_ID)
    story.obtain("/workload/other")
    published = await story.until_told(2)
    assert published.spiffe_id == OTHER_ID
    assert claims_of(story.text(), issuer.jwks(), "vault")["sub"] == OTHER_ID


@within(MOVED)
async def test_rotation_of_the_same_id_is_none(story: Story, mock_clock: MockClock) -> None:
    story.keep()
    await story.until_told(1)
    for _ in range(3):  # the first of them is the identity that we had not yet
        story.obtain()
        await story.settled()
    assert len(story.agent.jwt_requests()) == 1


@within(MOVED)
async def test_identity_that_comes_later_ends_the_pause_after_a_failure(
    story: Story, issuer: JwtIssuer, mock_clock: MockClock
) -> None:
    story.agent.deny_jwt_svids()
    story.keep()
    await story.until_line("JWT-SVID not refreshed")
    story.agent.issue_jwt_svids(issuer, ID)
    story.obtain()  # trio's clock stands still: no pause would end by itself
    await story.until_told(1)


# What fails.


@within(60)
async def test_denial_keeps_the_file_and_is_an_error_told_once(
    story: Story, issuer: JwtIssuer
) -> None:
    story.obtain()
    story.keep()
    published = await story.until_told(1)
    token = story.text()
    story.agent.deny_jwt_svids()
    story.obtain("/workload/other")
    await story.until_asked(4)
    assert story.text() == token
    assert [line["reason"] for line in story.said("JWT-SVID not refreshed")] == [
        "the agent denies it: no identity issued"
    ]
    line = story.said("JWT-SVID not refreshed")[0]
    assert line["log_level"] == "error"
    assert "registration entry" in line["hint"]
    assert line["file"] == "vault.jwt"
    assert line["kept_until"] == f"{published.expires:%FT%TZ}"
    story.agent.issue_jwt_svids(issuer, OTHER_ID)
    await story.until_told(2)
    assert story.text() != token
    # The next time it is news again.
    story.agent.deny_jwt_svids()
    story.obtain()
    await story.until_line("JWT-SVID not refreshed", 2)


@within(60)
async def test_agent_that_is_away_is_a_warning_and_found_again(
    story: Story, agent: AgentProcess
) -> None:
    await trio.to_thread.run_sync(agent.kill)
    story.keep()
    line = await story.until_line("JWT-SVID not refreshed")
    assert line["log_level"] == "warning"
    assert line["kept_until"] is None
    await trio.to_thread.run_sync(agent.start)
    await story.until_told(1)


@within(60)
async def test_agent_without_jwt_svids_is_an_error_for_a_person(story: Story) -> None:
    story.agent.answer_jwt_svids(Answer(status=grpc.StatusCode.UNIMPLEMENTED, details="no"))
    story.keep()
    line = await story.until_line("JWT-SVID not refreshed")
    assert line["log_level"] == "error"
    assert "socket" in line["hint"]


def away(words: str) -> Answer:
    return Answer(status=grpc.StatusCode.UNAVAILABLE, details=words)


@within(60)
async def test_each_reason_is_told_once_however_they_alternate(story: Story) -> None:
    story.keep()
    await story.until_told(1)
    for count, words in enumerate(("one", "two", "one", "two", "three")):
        story.agent.answer_jwt_svids(away(words))
        asked = len(story.agent.jwt_requests())
        story.obtain(f"/workload/{count}")  # so that it asks at once
        await story.until_asked(asked + 1)
        known = {"one": 1, "two": 2, "three": 3}[words]
        await story.until_line("JWT-SVID not refreshed", known)
    reasons = [line["reason"] for line in story.said("JWT-SVID not refreshed")]
    assert reasons == ["UNAVAILABLE: one", "UNAVAILABLE: two", "UNAVAILABLE: three"]


@within(MOVED)
async def test_pauses_between_attempts_grow_to_half_a_minute(
    story: Story, mock_clock: MockClock
) -> None:
    story.agent.answer_jwt_svids(away("0"))
    story.keep()
    for count in range(1, 11):
        await story.until_line("JWT-SVID not refreshed", count)
        story.agent.answer_jwt_svids(away(str(count)))  # news, so that its line tells of the pause
        mock_clock.jump(30)
    await story.until_line("JWT-SVID not refreshed", 11)
    asked = len(story.agent.jwt_requests())
    mock_clock.jump(14)  # the pause is from 15 to 30 s by now
    await story.settled()
    assert len(story.agent.jwt_requests()) == asked


@within(MOVED)
async def test_token_that_expires_in_its_file_is_an_error_told_once(
    story: Story, moved_clock: MockClock, wall_clock: WallClock
) -> None:
    story.keep()
    published = await story.until_told(1)
    story.agent.deny_jwt_svids()
    await story.settled()
    moved_clock.jump(HALF_LIFE_SECONDS + 1)
    await story.until_line("JWT-SVID not refreshed")
    assert story.said("JWT-SVID expired") == []
    wall_clock.ahead = LIFE
    asked = len(story.agent.jwt_requests())
    await story.until_line("JWT-SVID expired")
    for count in (2, 3, 4):
        moved_clock.jump(30)
        await story.until_asked(asked + count)
    await story.settled()
    (line,) = story.said("JWT-SVID expired")
    assert line["log_level"] == "error"
    assert line["file"] == "vault.jwt"
    assert line["expires"] == f"{published.expires:%FT%TZ}"
    assert story.text()


REFUSED = [
    pytest.param({"audiences": ("other",)}, "every audience", id="other audience"),
    pytest.param({"life": timedelta(seconds=-1)}, "expired", id="expired"),
    pytest.param({"spiffe_id": OTHER_ID}, "another ID", id="of another ID"),
    pytest.param({"svid": "a.b.c"}, "not base64url", id="junk"),
    pytest.param({"svid": ""}, "three parts", id="nothing"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
@within(30)
async def test_token_that_is_none_is_not_written_and_not_shown(
    story: Story, issuer: JwtIssuer, change: dict[str, Any], reason: str
) -> None:
    story.obtain()
    story.keep()
    await story.until_told(1)
    good = story.text()
    audiences = change.pop("audiences", ()) if "audiences" in change else ()
    story.agent.answer_jwt_svids(fixed(issuer, *audiences, **change))
    story.obtain("/workload/other")
    line = await story.until_line("JWT-SVID not refreshed")
    assert line["log_level"] == "warning"
    assert reason in line["reason"]
    assert story.text() == good
    assert "eyJ" not in repr(story.lines)


@within(30)
async def test_garbage_of_the_agent_is_a_warning(story: Story) -> None:
    story.agent.answer_jwt_svids(Answer(b"\xff" * 20))
    story.keep()
    line = await story.until_line("JWT-SVID not refreshed")
    assert line["log_level"] == "warning"
    assert "no JWTSVIDResponse" in line["reason"]


@within(60)
async def test_disk_that_refuses_is_an_error_and_gets_the_token_later(story: Story) -> None:
    story.directory.mkdir(mode=0o755)
    story.directory.chmod(0o777)  # refused: somebody else could replace our files
    story.keep()
    line = await story.until_line("JWT-SVID not refreshed")
    assert line["log_level"] == "error"
    assert "others cannot write" in line["reason"]
    story.directory.chmod(0o755)
    await story.until_told(1)
    assert len(story.said("JWT-SVID not refreshed")) == 1
    assert len(story.agent.jwt_requests()) == 1  # the token was good all the time


@within(60)
async def test_file_that_cannot_be_written_holds_up_no_other(story: Story) -> None:
    (story.directory / "a.jwt" / "in the way").mkdir(parents=True)
    story.directory.chmod(0o755)
    story.keep(jwt_table("a.jwt"), jwt_table("b.jwt"))
    published = await story.until_told(1)
    assert published.files == {"jwt_svid": str(story.directory / "b.jwt")}
    line = await story.until_line("JWT-SVID not refreshed")
    assert line["file"] == "a.jwt"
    assert line["log_level"] == "error"


@within(30)
async def test_agent_that_does_not_answer_does_not_hold_up_the_exit(
    agent: AgentProcess, lines: list[Line], tmp_path: Path, authority: Authority
) -> None:
    agent.silence_jwt_svids()
    async with trio.open_nursery() as nursery:
        story = Story(nursery, lines, agent, tmp_path / "certs", authority)
        story.keep()
        await story.until_asked(1)
        nursery.cancel_scope.cancel()
    story.files.close()
    assert story.told == []


# The bundles.


@within(30)
async def test_bundle_of_our_trust_domain_is_written_as_it_came(
    story: Story, issuer: JwtIssuer
) -> None:
    story.agent.send_jwt_bundles({OTHER: JwtIssuer().jwks(), OWN: issuer.jwks()})
    story.obtain()
    story.keep_bundles()
    published = await story.until_told(1)
    path = story.directory / "bundle.json"
    assert path.read_bytes() == issuer.jwks()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o644
    assert story.names() == {"bundle.json"}
    assert published.kind == "jwt"
    assert published.files == {"jwt_bundle": str(path)}
    assert published.spiffe_id == ID
    (line,) = story.lines
    assert (line["event"], line["log_level"]) == ("JWT bundles written", "info")
    assert line["trust_domain"] == "example.org"
    assert line["files"] == ("bundle.json",)


@within(30)
async def test_which_bundle_is_ours_is_known_with_our_identity_and_not_before(
    story: Story, nursery: trio.Nursery
) -> None:
    story.keep_bundles()
    await story.settled()
    assert story.agent.bundle_calls() == 0
    story.obtain()
    await story.until_told(1)


@within(30)
async def test_each_new_bundle_is_written_and_the_same_one_is_not(
    story: Story, issuer: JwtIssuer
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), OTHER: issuer.jwks()})  # ours is the same
    newer = JwtIssuer().jwks()
    story.agent.send_jwt_bundles({OWN: newer})
    await story.until_told(2)
    assert story.text("bundle.json") == newer.decode()
    assert len(story.said("JWT bundles written")) == 2


@within(30)
async def test_each_federated_trust_domain_has_its_file_until_it_vanishes(
    story: Story, issuer: JwtIssuer
) -> None:
    foreign, third = JwtIssuer().jwks(), JwtIssuer().jwks()
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), OTHER: foreign, "spiffe://third.org": third})
    story.obtain()
    story.directory.mkdir(mode=0o755)
    for name in ("bundle.backup.json", "bundle.json.old"):
        (story.directory / name).write_bytes(issuer.jwks())  # not of ours
    story.keep_bundles(files_table(federated_bundles=True, certificate_mode=FileMode(0o640)))
    await story.until_told(1)
    assert story.text("bundle.other.org.json") == foreign.decode()
    assert story.text("bundle.third.org.json") == third.decode()
    path = story.directory / "bundle.other.org.json"
    assert stat.S_IMODE(path.lstat().st_mode) == 0o640
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), "spiffe://third.org": third})
    await story.until_told(2)
    assert story.names() == {
        "bundle.json",
        "bundle.third.org.json",
        "bundle.backup.json",
        "bundle.json.old",
    }
    assert story.said("JWT bundles written")[1]["removed"] == ("bundle.other.org.json",)
    assert story.text("bundle.json") == issuer.jwks().decode()


@pytest.mark.parametrize("how", ["it vanished", "it is no more wanted"])
@within(30)
async def test_trust_domain_that_went_while_nobody_ran_loses_its_file(
    story: Story, issuer: JwtIssuer, how: str
) -> None:
    both = {OWN: issuer.jwks(), OTHER: JwtIssuer().jwks()}
    story.agent.send_jwt_bundles(both)
    async with trio.open_nursery() as nursery:
        before = Story(nursery, [], story.agent, story.directory, story.authority)
        before.obtain()
        before.keep_bundles(files_table(federated_bundles=True))
        await before.until_told(1)
        nursery.cancel_scope.cancel()
    before.files.close()
    assert story.names() == {"bundle.json", "bundle.other.org.json"}
    federated = how == "it vanished"
    story.agent.send_jwt_bundles({OWN: issuer.jwks()} if federated else both)
    story.obtain()
    story.keep_bundles(files_table(federated_bundles=federated))
    await story.until_told(1)
    assert story.names() == {"bundle.json"}


@within(60)
async def test_message_without_our_bundle_is_discarded_as_a_whole(
    story: Story, issuer: JwtIssuer
) -> None:
    foreign = JwtIssuer().jwks()
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), OTHER: foreign})
    story.obtain()
    story.keep_bundles(files_table(federated_bundles=True))
    await story.until_told(1)
    private = json.dumps({"keys": [{"kty": "EC", "kid": "a", "d": "c2VjcmV0"}]}).encode()
    for count, bad in enumerate(({}, {OTHER: foreign}, {OWN: b"junk"}, {OWN: private}), 1):
        story.agent.send_jwt_bundles(bad)
        if count != 2:  # for the reason of the one before
            await story.until_line("JWT bundles not refreshed", count - (count > 1))
        await story.settled()
    reasons = [line["reason"] for line in story.said("JWT bundles not refreshed")]
    assert reasons == [
        "no JWT bundle of our own trust domain example.org",
        "JWT bundle of example.org: not a JSON object",
        "JWT bundle of example.org: a key is not a public one",
    ]
    assert {line["log_level"] for line in story.said("JWT bundles not refreshed")} == {"warning"}
    assert story.text("bundle.json") == issuer.jwks().decode()
    assert story.text("bundle.other.org.json") == foreign.decode()
    newer = JwtIssuer().jwks()
    story.agent.send_jwt_bundles({OWN: newer})
    await story.until_told(2)
    assert story.text("bundle.json") == newer.decode()
    assert story.names() == {"bundle.json"}
    assert "c2VjcmV0" not in repr(story.lines)


@within(30)
async def test_bad_federated_bundle_loses_its_file_and_is_said_once(
    story: Story, issuer: JwtIssuer
) -> None:
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), OTHER: JwtIssuer().jwks()})
    story.obtain()
    story.keep_bundles(files_table(federated_bundles=True))
    await story.until_told(1)
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), OTHER: b"junk"})
    await story.until_told(2)
    assert story.names() == {"bundle.json"}
    story.agent.send_jwt_bundles({OWN: JwtIssuer().jwks(), OTHER: b"junk"})
    await story.until_told(3)
    (line,) = story.said("JWT bundles incomplete")
    assert line["log_level"] == "warning"
    assert line["reason"] == "JWT bundle of other.org left out: not a JSON object"


@within(30)
async def test_bundle_whose_keys_are_all_gone_trusts_nobody(story: Story) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    story.agent.send_jwt_bundles({OWN: b'{\n    "keys": null\n}'})  # as SPIRE writes it
    await story.until_told(2)
    assert json.loads(story.text("bundle.json")) == {"keys": []}


@within(60)
async def test_agent_that_is_away_keeps_the_bundles_and_is_found_again(
    story: Story, agent: AgentProcess, issuer: JwtIssuer
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    await trio.to_thread.run_sync(agent.kill)
    line = await story.until_line("JWT bundles not refreshed")
    assert (line["log_level"], line["kept"]) == ("warning", True)
    assert story.text("bundle.json") == issuer.jwks().decode()
    newer = JwtIssuer().jwks()
    agent.send_jwt_bundles({OWN: newer})
    await trio.to_thread.run_sync(agent.start)
    await story.until_told(2)
    assert story.text("bundle.json") == newer.decode()


@within(30)
async def test_denial_keeps_the_bundles_and_is_an_error(story: Story, issuer: JwtIssuer) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    story.agent.answer_jwt_bundles(NO_IDENTITY)
    line = await story.until_line("JWT bundles not refreshed")
    assert line["log_level"] == "error"
    await until(lambda: story.agent.bundle_calls() >= 3, "more calls")
    assert len(story.said("JWT bundles not refreshed")) == 1
    assert story.text("bundle.json") == issuer.jwks().decode()


@within(60)
async def test_disk_that_refuses_gets_the_newest_bundles_later(
    story: Story, issuer: JwtIssuer
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    story.directory.chmod(0o777)
    story.agent.send_jwt_bundles({OWN: JwtIssuer().jwks()})
    line = await story.until_line("JWT bundles not written")
    assert line["log_level"] == "error"
    assert story.text("bundle.json") == issuer.jwks().decode()
    newest = JwtIssuer().jwks()
    story.agent.send_jwt_bundles({OWN: newest})
    story.directory.chmod(0o755)
    await until(lambda: story.text("bundle.json") == newest.decode(), "the newest")
    assert len(story.said("JWT bundles not written")) == 1


@within(MOVED)
async def test_bundle_that_somebody_changed_comes_back(
    story: Story, issuer: JwtIssuer, moved_clock: MockClock
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    await story.settled()
    (story.directory / "bundle.json").write_bytes(JwtIssuer().jwks())
    moved_clock.jump(61)
    await story.until_told(2)
    assert story.text("bundle.json") == issuer.jwks().decode()


@within(30)
async def test_bundles_are_asked_for_and_written_when_somebody_asks(
    story: Story, issuer: JwtIssuer
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    path = story.directory / "bundle.json"
    for number in (2, 3):
        path.unlink()
        story.current.ask()
        await until(path.exists, "the file")
        await until(lambda count=number: story.agent.bundle_calls() == count, "another stream")  # type: ignore[misc]
    assert path.read_bytes() == issuer.jwks()


@within(30)
async def test_bundle_is_written_when_somebody_asks_and_the_agent_is_away(
    story: Story, issuer: JwtIssuer
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    story.agent.kill()
    await story.until_line("JWT bundles not refreshed")
    path = story.directory / "bundle.json"
    for _ in range(2):
        path.unlink()
        story.current.ask()
        await until(path.exists, "the file")
    assert path.read_bytes() == issuer.jwks()


@within(MOVED)
async def test_agent_that_is_silent_for_an_hour_is_asked_again(
    story: Story, moved_clock: MockClock
) -> None:
    story.obtain()
    story.keep_bundles()
    await story.until_told(1)
    await story.settled()
    moved_clock.jump(3601)
    await until(lambda: story.agent.bundle_calls() == 2, "another stream")
    assert len(story.told) == 1


# All of it once.


async def fetch(story: Story, *tables: JwtSvidTable, **changes: Any) -> tuple[Publication, ...]:
    wanted = tables or (jwt_table(),)
    return await fetch_jwt_files(story.place, files_table(**changes), wanted, story.identity())


@within(30)
async def test_everything_is_fetched_once(story: Story, issuer: JwtIssuer) -> None:
    story.agent.send_jwt_bundles({OWN: issuer.jwks(), OTHER: JwtIssuer().jwks()})
    told = await fetch(story, jwt_table("a.jwt", "a"), jwt_table("b.jwt", "b"))
    assert story.names() == {"a.jwt", "b.jwt", "bundle.json"}
    assert [list(one.files) for one in told] == [["jwt_svid"], ["jwt_svid"], ["jwt_bundle"]]
    assert claims_of(story.text("b.jwt"), story.text("bundle.json"), "b")["sub"] == ID
    await fetch(story, federated_bundles=True)
    assert "bundle.other.org.json" in story.names()


@within(30)
async def test_nothing_to_fetch_asks_nobody(story: Story) -> None:
    assert (
        await fetch_jwt_files(story.place, files_table(jwt_bundle=None), (), story.identity()) == ()
    )
    assert story.agent.jwt_requests() == []
    assert story.agent.bundle_calls() == 0


def deny(agent: AgentProcess) -> None:
    agent.deny_jwt_svids()


def deny_bundles(agent: AgentProcess) -> None:
    agent.answer_jwt_bundles(NO_IDENTITY)


@pytest.mark.parametrize(
    ("fault", "reason", "has_hint"),
    [
        pytest.param(deny, "no identity issued", True, id="denied"),
        pytest.param(deny_bundles, "no identity issued", True, id="bundles denied"),
        pytest.param(AgentProcess.kill, "UNAVAILABLE", False, id="away"),
        pytest.param(
            lambda agent: agent.answer_jwt_svids(Answer(b"\xff")),
            "JWTSVIDResponse",
            False,
            id="junk",
        ),
        pytest.param(
            lambda agent: agent.answer_jwt_svids(Answer(b"")), "no JWT-SVID", False, id="none"
        ),
        pytest.param(
            lambda agent: agent.send_jwt_bundles({OTHER: b""}), "our own", False, id="no bundle"
        ),
    ],
)
@within(30)
async def test_what_cannot_be_fetched_is_an_error_with_its_reason(
    story: Story, fault: Callable[[AgentProcess], None], reason: str, has_hint: bool
) -> None:
    fault(story.agent)
    with pytest.raises(FetchError, match=reason) as caught:
        await fetch(story)
    assert (caught.value.hint is not None) is has_hint


@within(30)
async def test_disk_that_refuses_is_an_error_of_the_disk(story: Story) -> None:
    story.directory.mkdir(mode=0o755)
    story.directory.chmod(0o777)
    with pytest.raises(CertFilesError, match="others cannot write"):
        await fetch(story)


# Secrets.


@within(60)
async def test_no_line_of_a_full_story_shows_a_token(story: Story, issuer: JwtIssuer) -> None:
    tokens: set[str] = set()
    story.obtain()
    story.keep(jwt_table("a.jwt", "a"), jwt_table("b.jwt", "b"))
    story.keep_bundles()
    await story.until_told(3)
    tokens |= {story.text("a.jwt"), story.text("b.jwt")}
    leaky = issuer.token(ID, ("a", "b"), LIFE)
    tokens.add(leaky)
    answers = (
        fixed(issuer, spiffe_id=leaky),
        fixed(issuer, svid=leaky + "="),
        fixed(issuer, svid=leaky, spiffe_id=OTHER_ID),
        NO_IDENTITY,
    )
    for number, answer in enumerate(answers):
        before = len(story.said("JWT-SVID not refreshed"))
        story.agent.answer_jwt_svids(answer)
        story.obtain(f"/workload/{number}")
        await story.until_line("JWT-SVID not refreshed", before + 2)
    shown = json.dumps(story.lines, default=repr) + repr(story.lines) + repr(story.told)
    for token in tokens:
        assert token.count(".") == 2
        for part in token.split(".")[1:]:
            assert part not in shown
            assert part[:40] not in shown
