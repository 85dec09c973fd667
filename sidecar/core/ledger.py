"""What has happened since the start: counts, the last of each kind, the latest refusals.

The stories tell it in plain calls, a few microseconds for a request; status and metrics read its
fields. No clock is read: whoever tells passes the time. Nothing here grows with what peers do:
words come from lists, names from the policy and the configuration, peers are those of
`peer_counts`, and of refusals the latest are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sidecar.core.after_rotation import HookResult
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.histogram import Histogram
from sidecar.core.identity_state import IdentityState
from sidecar.core.lifetime import end_word
from sidecar.core.peer_counts import PeerCounts, Peers
from sidecar.core.recent_refusals import RecentRefusals
from sidecar.core.rule_counts import Finished, Rules
from sidecar.core.spiffe_id import SpiffeId

MAX_PROBLEMS = 20
MAX_TEXT = 500
# The codes of refusals of ours, as the answers to peers carry them.
DENIALS = frozenset(
    {
        "no_identity",
        "svid_expired",
        "svid_not_trusted",
        "peer_not_admitted",
        "endpoint_not_allowed",
        "rate_limited",
        "busy",
        "too_many_connections",
        "bad_request",
        "body_too_large",
        "expectation",
        "head_too_large",
        "http_version",
        "misdirected",
        "request_timeout",
        "transfer_coding",
        "websocket_not_served",
    }
)
OTHER_DENIALS = "other"
# Answers of ours that refuse nobody: the status counts them.
BACKEND_FAILURES = frozenset({"backend_unreachable", "backend_silent"})


# How it failed: no connection, one that broke or said what cannot be read, no answer in time.
BACKEND_WORDS = ("unreachable", "broke", "silent")


@dataclass(slots=True)
class Record:
    """Something that goes well or not, again and again: how often, and how it stands.

    `error` is empty when the last attempt went well.
    """

    good: int = 0
    bad: int = 0
    good_at: datetime | None = None
    bad_at: datetime | None = None
    error: str = ""

    def went_well(self, now: datetime) -> None:
        """Count a success."""
        self.good += 1
        self.good_at, self.error = now, ""

    def failed(self, now: datetime, reason: str) -> None:
        """Count a failure."""
        self.bad += 1
        self.bad_at, self.error = now, reason[:MAX_TEXT] or "no reason given"


@dataclass(slots=True)
class BackendRecord:
    """The backend's health as it was found last; `since` when it has been so, good or bad."""

    checked_at: datetime
    reason: str | None
    since: datetime


class Ledger:
    """The one place where it is written down.

    Told in trio's thread only. Another one may read the counts meanwhile, each for itself.
    """

    def __init__(self, started_at: datetime, rules: Iterable[str] = ()) -> None:
        self.started_at = started_at
        self.listening: tuple[str, ...] = ()
        self.draining = False
        self.handshakes: Counter[HandshakeResult] = Counter()
        self.handshake_seconds, self.connection_seconds = Histogram(), Histogram()
        self.accept_failures = 0
        self.connection_ends: Counter[str] = Counter()
        self.backend_failures: Counter[str] = Counter()
        self.denials: Counter[str] = Counter()
        self.refusals = RecentRefusals()
        self.peers = Peers()
        self.rules = Rules(rules)
        self.received = self.sent = 0
        self.state, self.state_since = IdentityState.STARTING, started_at
        self.updates = Record()
        self.update_notes: tuple[str, ...] = ()  # what of the last good one is not used
        self.files, self.generation = Record(), ""
        # Of the SVID in that generation.
        self.files_serial = ""
        self.files_expire: datetime | None = None
        self.jwt_svids: dict[str, Record] = {}
        self.jwt_expires: dict[str, datetime] = {}
        self.jwt_bundles = Record()
        self.hook_runs: Counter[tuple[str, str]] = Counter()
        self.policy = Record()
        self.policy_problems: tuple[str, ...] = ()
        self.config_problems: tuple[str, ...] = ()
        self.needs_restart: tuple[str, ...] = ()
        self.backend: BackendRecord | None = None

    # Peers and their requests.

    def accept_failed(self) -> None:
        """Count an attempt to accept a connection that the system refused."""
        self.accept_failures += 1

    def handshake(self, result: HandshakeResult, seconds: float | None = None) -> None:
        """Count a handshake that ended; `seconds` of one that went well."""
        self.handshakes[result] += 1
        if seconds is not None:
            self.handshake_seconds.observe(seconds)

    def connected(self, peer: SpiffeId, now: datetime) -> PeerCounts:
        """Count a connection that policy admits; what it gives goes with the connection."""
        return self.peers.connected(peer, now)

    def disconnected(self, counts: PeerCounts, now: datetime) -> None:
        """Count the end of that connection."""
        self.peers.disconnected(counts, now)

    def connection_ended(self, seconds: float, reason: str) -> None:
        """Count the end of an admitted connection, and the reason if it was ours."""
        self.connection_seconds.observe(seconds)
        self.connection_ends[end_word(reason)] += 1

    def backend_failed(self, word: str) -> None:
        """Count what the backend did not do; a word of `BACKEND_WORDS`."""
        self.backend_failures[word] += 1

    def request_began(self, counts: PeerCounts | None) -> None:
        """Count a request that runs from now on; None: it came from a stranger."""
        if counts is not None:
            counts.running += 1

    def request_finished(self, counts: PeerCounts | None, request: Finished) -> None:
        """Count the end of a request that began."""
        self.rules.finished(request)
        if counts is not None:
            counts.running -= 1
            counts.requests += 1
            counts.failed += request.outcome == "backend_failed"
        self.moved(counts, request.received, request.sent)

    def moved(self, counts: PeerCounts | None, received: int, sent: int) -> None:
        """Count bytes from a peer and to it; mode `stream` has no requests and calls this."""
        self.received += received
        self.sent += sent
        if counts is not None:
            counts.received += received
            counts.sent += sent

    def denied(self, code: str, counts: PeerCounts | None = None) -> None:
        """Count a request or connection that we refused, by the code of the refusal."""
        if code in BACKEND_FAILURES:
            return
        self.denials[code if code in DENIALS else OTHER_DENIALS] += 1
        if counts is not None:
            counts.refused += 1

    def refused(self, now: datetime, address: str, peer: SpiffeId | str, reason: str) -> None:
        """Keep a refusal for people; `peer` is the ID that was proven, or the text of a claim."""
        self.refusals.add(now, address, peer, reason)

    # Ourselves.

    def listens(self, addresses: Iterable[str]) -> None:
        """Take note of where peers can connect from now on."""
        self.listening = tuple(addresses)

    def drain_began(self) -> None:
        """Take note that nobody can connect any more."""
        self.draining, self.listening = True, ()

    def state_changed(self, state: IdentityState, now: datetime) -> None:
        """Take note of the state from now on."""
        if state is not self.state:
            self.state, self.state_since = state, now

    def rotated(self, now: datetime) -> None:
        """Count an SVID that was put in use, the first one as well."""
        self.updates.went_well(now)

    def update_discarded(self, now: datetime, reason: str) -> None:
        """Count an update that was not used."""
        self.updates.failed(now, reason)

    def files_published(
        self,
        now: datetime,
        generation: str,
        *,
        is_new: bool,
        serial: str = "",
        expires: datetime | None = None,
    ) -> None:
        """Take note that the files are as they should be; `is_new`: because of us, just now.

        `serial` and `expires` are those of the SVID in them.
        """
        self.generation, self.files.error = generation, ""
        self.files_serial, self.files_expire = serial, expires
        if is_new:
            self.files.went_well(now)

    def files_failed(self, now: datetime, reason: str) -> None:
        """Take note that they are not."""
        self.files.failed(now, reason)

    def jwt_svid_written(self, file: str, now: datetime, expires: datetime) -> None:
        """Take note of a fresh JWT-SVID; `file` as the configuration has it."""
        self.jwt_svids.setdefault(file, Record()).went_well(now)
        self.jwt_expires[file] = expires

    def jwt_svid_failed(self, file: str, now: datetime, reason: str) -> None:
        """Take note that there is none."""
        self.jwt_svids.setdefault(file, Record()).failed(now, reason)

    def hook_done(self, result: HookResult) -> None:
        """Count an attempt of a hook."""
        word = "ok" if result.ok else "gave_up" if result.gives_up else "failed"
        self.hook_runs[result.hook, word] += 1

    def policy_loaded(self, now: datetime, rules: Iterable[str]) -> None:
        """Take note of another policy in force, and of the names of its rules."""
        self.policy.went_well(now)
        self.policy_problems = ()
        self.rules.replace(rules)

    def policy_refused(self, now: datetime, problems: Sequence[str]) -> None:
        """Take note of a policy that was not put in force, and why."""
        self.policy_problems = tuple(text[:MAX_TEXT] for text in problems[:MAX_PROBLEMS])
        self.policy.failed(now, "; ".join(self.policy_problems))
        self.policy_problems = self.policy_problems or (self.policy.error,)

    def config_loaded(self, needs_restart: Sequence[str]) -> None:
        """Take note of a configuration that is in force, but for what needs a restart."""
        self.config_problems, self.needs_restart = (), tuple(needs_restart)

    def config_refused(self, problems: Sequence[str]) -> None:
        """Take note of a configuration that was not put in force, and why."""
        self.config_problems = tuple(text[:MAX_TEXT] for text in problems[:MAX_PROBLEMS])

    def backend_checked(self, now: datetime, reason: str | None) -> None:
        """Take note of the backend's health: None, or the reason against it."""
        last = self.backend
        same = last is not None and (last.reason is None) == (reason is None)
        since = last.since if last and same else now
        self.backend = BackendRecord(now, reason, since)
