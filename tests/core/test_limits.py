"""Limits: nobody takes more than its share, nothing is left unused, and nobody waits for ever."""

from __future__ import annotations

import weakref
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.limits import RequestSlots, Ticket, TokenBuckets

bounded = settings(max_examples=300, deadline=None, derandomize=True, database=None)
RATES = (0.1, 1.0, 3.0, 1000.0)


def granted(buckets: TokenBuckets, key: object, rate: float, burst: int, now: float) -> int:
    """Take until refused; give how many there were."""
    count = 0
    while buckets.take(key, rate, burst, now) == 0.0:
        count += 1
    return count


# The buckets.


def test_burst_is_there_at_once_and_no_more() -> None:
    assert granted(TokenBuckets(), "a", rate=1, burst=5, now=100) == 5


@pytest.mark.parametrize(
    ("after", "tokens"),
    [
        pytest.param(0.0, 0, id="at once"),
        pytest.param(0.09, 0, id="a little before one"),
        pytest.param(0.1, 1, id="one"),
        pytest.param(0.25, 2, id="two and a half"),
        pytest.param(0.5, 5, id="full"),
        pytest.param(3600.0, 5, id="never more than full"),
    ],
)
def test_tokens_come_back_at_the_rate(after: float, tokens: int) -> None:
    buckets = TokenBuckets()
    granted(buckets, "a", rate=10, burst=5, now=1000)
    assert granted(buckets, "a", rate=10, burst=5, now=1000 + after) == tokens


@pytest.mark.parametrize(
    ("taken", "at", "wait"),
    [
        pytest.param(1, 0.0, 2.0, id="a whole token"),
        pytest.param(1, 0.5, 1.5, id="the rest of one"),
        pytest.param(3, 0.5, 1.5, id="with a larger burst"),
    ],
)
def test_refusal_tells_when_one_token_is_there(taken: int, at: float, wait: float) -> None:
    buckets = TokenBuckets()
    assert granted(buckets, "a", rate=0.5, burst=taken, now=0) == taken
    assert buckets.take("a", 0.5, taken, at) == pytest.approx(wait)


def test_refused_take_costs_nothing() -> None:
    buckets = TokenBuckets()
    buckets.take("a", 1, 1, 0)
    for tenth in range(1, 10):
        assert buckets.take("a", 1, 1, tenth / 10) > 0
    assert buckets.take("a", 1, 1, 1.0) == 0.0


def test_key_that_took_all_leaves_the_others_theirs() -> None:
    buckets = TokenBuckets()
    for _ in range(1000):
        buckets.take("greedy", 1, 3, 0)
    assert granted(buckets, "other", 1, 3, 0) == 3


@pytest.mark.parametrize(
    ("before", "after", "later", "tokens"),
    [
        pytest.param((1, 5), (1, 50), 0, 0, id="larger burst"),
        pytest.param((1, 5), (100, 5), 0, 0, id="higher rate"),
        pytest.param((1, 5), (100, 50), 0, 0, id="both"),
        pytest.param((1, 5), (0.01, 50), 0, 0, id="lower rate, larger burst"),
        pytest.param((1, 50), (1, 5), 0, 0, id="smaller burst"),
        pytest.param((1, 5), (100, 5), 2, 2, id="time before the change at the old rate"),
        pytest.param((1, 50), (1, 5), 20, 5, id="tokens that still fit"),
        pytest.param((100, 50), (1, 50), 0.1, 10, id="tokens from before are kept"),
    ],
)
def test_changed_limits_give_no_tokens_for_free(
    before: tuple[float, int], after: tuple[float, int], later: float, tokens: int
) -> None:
    buckets = TokenBuckets()
    granted(buckets, "a", *before, now=0)
    assert granted(buckets, "a", *after, now=later) == tokens


def test_changed_rate_holds_from_the_next_take() -> None:
    buckets = TokenBuckets()
    granted(buckets, "a", rate=1, burst=5, now=0)
    assert buckets.take("a", 100, 5, 0) == pytest.approx(0.01)
    assert granted(buckets, "a", rate=100, burst=5, now=0.03) == 3


def test_smaller_burst_holds_from_the_next_take() -> None:
    buckets = TokenBuckets()
    assert buckets.take("a", 1, 50, 0) == 0.0
    assert granted(buckets, "a", rate=1, burst=5, now=0) == 5


def test_there_and_back_again_gives_no_tokens() -> None:
    buckets = TokenBuckets()
    granted(buckets, "a", rate=1, burst=5, now=0)
    for _ in range(20):
        assert buckets.take("a", 1, 50, 0) > 0
        assert buckets.take("a", 1, 5, 0) > 0


def test_full_buckets_are_forgotten_while_others_are_used() -> None:
    buckets = TokenBuckets()
    for number in range(10_000):
        buckets.take(number, 1, 5, 0)
    assert len(buckets) == 10_000
    for _ in range(5_001):
        buckets.take("a", 1, 5, 100)
    assert len(buckets) == 1


def test_buckets_in_use_are_kept_while_others_are_forgotten() -> None:
    buckets = TokenBuckets()
    for number in range(100):
        buckets.take(number, 1, 5, 0)
    granted(buckets, "slow", rate=0.001, burst=5, now=0)
    for _ in range(1000):
        buckets.take("a", 1, 5, 100)
    assert len(buckets) == 2
    assert buckets.take("slow", 0.001, 5, 100) == pytest.approx(900)


def test_bucket_that_was_not_looked_at_for_long_is_full_and_not_more() -> None:
    buckets = TokenBuckets()
    for number in range(100):
        buckets.take(number, 1, 5, 0)
    assert granted(buckets, 50, rate=1, burst=5, now=100) == 5


def test_stream_of_new_keys_is_remembered_only_while_it_matters() -> None:
    buckets = TokenBuckets()
    most = 0
    for number in range(50_000):  # 1000 in a second, each lacks its token for a second
        buckets.take(number, 1, 1, number / 1000)
        most = max(most, len(buckets))
    assert most < 2_500


@st.composite
def takes(draw: st.DrawFn) -> list[tuple[str, float]]:
    """Keys and times, the times never back."""
    steps = st.tuples(st.sampled_from("ab"), st.sampled_from([0, 0, 0.001, 0.1, 0.4, 1, 7]))
    now, found = draw(st.sampled_from([0.0, 1e7 + 1 / 3])), []
    for key, step in draw(st.lists(steps, min_size=1, max_size=60)):
        now += step
        found.append((key, now))
    return found


@bounded
@given(takes(), st.sampled_from(RATES), st.integers(1, 4))
def test_takes_agree_with_exact_arithmetic(
    taken: list[tuple[str, float]], rate: float, burst: int
) -> None:
    buckets = TokenBuckets()
    tokens: dict[str, Fraction] = {}
    last: dict[str, Fraction] = {}
    slack = Fraction(1, 100_000)
    for key, at in taken:
        now = Fraction(at)
        have = tokens.get(key, Fraction(burst)) + (now - last.get(key, now)) * Fraction(rate)
        have = min(Fraction(burst), have)
        wait = buckets.take(key, rate, burst, at)
        if wait:
            assert have < 1
            assert abs(Fraction(wait) - (1 - have) / Fraction(rate)) < slack
        else:
            have -= 1
            assert have >= -slack * Fraction(rate)
        tokens[key], last[key] = have, now


@bounded
@given(takes(), st.sampled_from(RATES), st.integers(1, 4))
def test_who_waits_as_long_as_told_is_let_in(
    taken: list[tuple[str, float]], rate: float, burst: int
) -> None:
    buckets, now = TokenBuckets(), 0.0
    for key, at in taken:
        now = max(now, at)
        if wait := buckets.take(key, rate, burst, now):
            now += wait
            assert buckets.take(key, rate, burst, now) == 0.0


@bounded
@given(takes(), st.sampled_from(RATES), st.integers(1, 4))
def test_no_stretch_of_time_has_more_than_burst_and_rate_allow(
    taken: list[tuple[str, float]], rate: float, burst: int
) -> None:
    buckets = TokenBuckets()
    times = [at for key, at in taken if key == "a" and buckets.take(key, rate, burst, at) == 0]
    for first, start in enumerate(times):
        for last, end in enumerate(times[first:], first):
            assert last - first + 1 <= burst + (end - start) * rate + 0.01


# The slots.


def entered(slots: RequestSlots, key: str, maximum_of_key: int | None = None) -> Ticket:
    """Enter and expect a ticket."""
    ticket = slots.enter(key, maximum_of_key)
    assert ticket is not None
    return ticket


def fill(slots: RequestSlots, key: str, maximum_of_key: int | None = None) -> list[Ticket]:
    """Enter until refused."""
    tickets = []
    while ticket := slots.enter(key, maximum_of_key):
        tickets.append(ticket)
    return tickets


def waiting(tickets: list[Ticket]) -> int:
    return sum(not ticket.running for ticket in tickets)


def test_slot_is_given_at_once_while_there_is_one() -> None:
    slots = RequestSlots(2, 4)
    assert [entered(slots, key).running for key in "aab"] == [True, True, False]
    assert (slots.running, slots.queued) == (2, 1)


def test_key_waits_at_its_own_maximum_while_others_run() -> None:
    slots = RequestSlots(10, 10)
    assert [entered(slots, "a", 2).running for _ in range(3)] == [True, True, False]
    assert entered(slots, "b", 2).running


def test_slot_that_is_left_goes_to_the_first_who_waits() -> None:
    slots = RequestSlots(1, 9)
    running, first, second = (entered(slots, "a") for _ in range(3))
    assert slots.leave(running) == [first]
    assert first.running
    assert not second.running
    assert not running.running
    assert slots.leave(first) == [second]
    assert slots.leave(second) == []
    assert (slots.running, slots.queued) == (0, 0)


def test_free_slots_go_round_among_the_keys() -> None:
    slots = RequestSlots(1, 64)
    running = entered(slots, "x")
    for key in "aaaabbc":
        entered(slots, key)
    order = ""
    for _ in range(7):
        (running,) = slots.leave(running)
        order += str(running.key)
    assert order == "abcabaa"


def test_key_at_its_maximum_lets_others_pass_and_keeps_its_turn() -> None:
    slots = RequestSlots(2, 64)
    held, other = entered(slots, "a", 1), entered(slots, "b")
    blocked = entered(slots, "a", 1)
    first, second, third = (entered(slots, key) for key in "bcd")
    assert slots.leave(other) == [first]
    assert slots.leave(held) == [blocked]
    assert slots.leave(blocked) == [second]
    assert slots.leave(first) == [third]


def test_newcomer_takes_a_free_slot_past_those_who_wait_for_their_own_key() -> None:
    slots = RequestSlots(2, 8)
    fill(slots, "a", 1)
    assert entered(slots, "b").running


def test_nobody_overtakes_its_own_key() -> None:
    slots = RequestSlots(3, 8)
    running, first = entered(slots, "a", 1), entered(slots, "a", 1)
    # The rule has been changed meanwhile; who came first still goes first.
    second = entered(slots, "a", 3)
    assert not second.running
    assert slots.leave(running) == [first, second]


def test_who_gives_up_lets_the_next_of_its_key_go() -> None:
    slots = RequestSlots(3, 8)
    entered(slots, "a", 1)
    first, second = entered(slots, "a", 1), entered(slots, "a", 2)
    assert slots.leave(first) == [second]


def test_who_gives_up_leaves_the_queue() -> None:
    slots = RequestSlots(1, 8)
    running = entered(slots, "a")
    first, second = entered(slots, "b"), entered(slots, "b")
    assert slots.leave(first) == []
    assert slots.queued == 1
    assert slots.leave(running) == [second]


def test_ticket_given_back_twice_frees_one_slot() -> None:
    slots = RequestSlots(1, 8)
    running, queued, last = (entered(slots, key) for key in "abc")
    assert slots.leave(running) == [queued]
    assert slots.leave(running) == []
    assert slots.running == 1
    assert not last.running
    assert slots.leave(last) == []
    assert slots.leave(last) == []
    assert (slots.running, slots.queued) == (1, 0)


def test_key_of_which_nothing_runs_or_waits_is_forgotten() -> None:
    class Key:
        pass

    slots, key = RequestSlots(1, 8), Key()
    held = weakref.ref(key)
    running, queued = slots.enter(key, 1), slots.enter(key, 1)
    assert running is not None
    assert queued is not None
    slots.leave(running)
    slots.leave(queued)
    del key, running, queued
    assert held() is None


@pytest.mark.parametrize(
    ("maximum", "queue", "keys", "admitted"),
    [
        pytest.param(1, 0, "ab", "a", id="no queue"),
        pytest.param(1, 1, "aab", "aa", id="queue of one"),
        pytest.param(1, 2, "aaab", "aab", id="second place is for another one"),
        pytest.param(1, 8, "aaaaaaaa", "aaaaa", id="half of the queue alone"),
        pytest.param(1, 8, "aaaaaabbbb", "aaaaabb", id="half of the rest for the second"),
        pytest.param(1, 8, "aaaaaabbbbccc", "aaaaabbc", id="half of that for the third"),
        pytest.param(1, 8, "aaaaaabbbbcccdd", "aaaaabbcd", id="last place for a newcomer"),
        pytest.param(1, 8, "aaaaaabbbbcccddef", "aaaaabbcd", id="full is full"),
        pytest.param(1, 8, "abcdefghij", "abcdefghi", id="one each fills it"),
    ],
)
def test_queue_admits(maximum: int, queue: int, keys: str, admitted: str) -> None:
    slots = RequestSlots(maximum, queue)
    assert "".join(key for key in keys if slots.enter(key, None)) == admitted


@pytest.mark.parametrize("greedy", [1, 2, 3, 4])
def test_greedy_keys_leave_a_newcomer_a_place(greedy: int) -> None:
    slots = RequestSlots(1, 64)
    entered(slots, "x")
    for number in range(greedy):
        fill(slots, str(number))
    assert not entered(slots, "newcomer").running


def test_newcomer_runs_next_however_many_of_a_greedy_key_wait() -> None:
    slots = RequestSlots(2, 64)
    greedy = fill(slots, "greedy")
    newcomer = entered(slots, "newcomer")
    assert waiting(greedy) == 32
    # The greedy key's turn came first; the newcomer's is the one after it.
    assert newcomer not in slots.leave(greedy[0])
    assert slots.leave(greedy[1]) == [newcomer]


def test_shares_of_keys_that_stay_greedy_become_equal() -> None:
    slots = RequestSlots(1, 60)
    held = fill(slots, "a")
    fill(slots, "b")
    running = held[0]
    for _ in range(200):
        for key in "ab":
            fill(slots, key)
        (running,) = slots.leave(running)
    shares = {"a": 0, "b": 0}
    while slots.queued:
        (running,) = slots.leave(running)
        shares[str(running.key)] += 1
    assert abs(shares["a"] - shares["b"]) <= 2
    assert shares["a"] in range(18, 23)


def test_key_has_no_more_than_its_share_under_all_of_its_parts() -> None:
    slots = RequestSlots(4, 8, 3)
    mine = [slots.enter("a", None, part) for part in "xyzx"]
    assert [ticket is not None and ticket.running for ticket in mine] == [True] * 3 + [False]
    assert entered(slots, "b").running
    assert (slots.running_of("a"), slots.running_of("b")) == (3, 1)


def test_key_with_many_parts_has_one_turn() -> None:
    slots = RequestSlots(1, 64)
    running = entered(slots, "x")
    for part in "xyz":
        assert slots.enter("a", None, part) is not None
    entered(slots, "b")
    order = ""
    for _ in range(4):
        (running,) = slots.leave(running)
        order += str(running.key)
    assert order == "abaa"


def test_part_at_its_maximum_lets_other_parts_of_its_key_pass() -> None:
    slots = RequestSlots(2, 8)
    slots.enter("a", 1, "x")
    blocked, free = slots.enter("a", 1, "x"), slots.enter("a", 1, "y")
    assert blocked is not None
    assert free is not None
    assert (blocked.running, free.running) == (False, True)


class SlotsAgainstLists(RuleBasedStateMachine):
    """The slots beside two lists and a table of turns, all searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = RequestSlots(self.maximum, self.queue_maximum)
        self.running: list[Ticket] = []
        self.waiting: list[tuple[Ticket, int | None]] = []  # as they came
        self.turn: dict[object, int] = {}  # key -> when it was last served or began to wait
        self.clock = 0

    maximum = 3
    queue_maximum = 6

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def of_key(self, key: object) -> int:
        return sum(ticket.key == key for ticket in self.running)

    def waiting_of(self, key: object) -> list[tuple[Ticket, int | None]]:
        return [(ticket, most) for ticket, most in self.waiting if ticket.key == key]

    def next(self) -> Ticket | None:
        """The first of each key, those that may run, and of them the one whose turn it is."""
        if len(self.running) >= self.maximum:
            return None
        firsts = [self.waiting_of(key)[0] for key in {ticket.key for ticket, _ in self.waiting}]
        able = [one for one, most in firsts if most is None or self.of_key(one.key) < most]
        return min(able, key=lambda ticket: self.turn[ticket.key], default=None)

    @rule(key=st.sampled_from("abcd"), most=st.sampled_from([None, 1, 2, 2, 5]))
    def enter(self, key: str, most: int | None) -> None:
        mine = self.waiting_of(key)
        runs = not mine and len(self.running) < self.maximum
        runs = runs and (most is None or self.of_key(key) < most)
        free = self.queue_maximum - len(self.waiting)
        ticket = self.slots.enter(key, most)
        if not runs and len(mine) >= free:
            assert ticket is None
            return
        assert ticket is not None
        assert ticket.key == key
        assert ticket.running is runs
        if runs:
            self.running.append(ticket)
            return
        self.waiting.append((ticket, most))
        if not mine:
            self.turn[key] = self.tick()

    def left(self, ticket: Ticket) -> None:
        """Give a ticket back, and expect those to run that should."""
        self.running = [one for one in self.running if one is not ticket]
        self.waiting = [one for one in self.waiting if one[0] is not ticket]
        started = []
        while following := self.next():
            started.append(following)
            self.running.append(following)
            self.waiting = [one for one in self.waiting if one[0] is not following]
            self.turn[following.key] = self.tick()
        assert self.slots.leave(ticket) == started
        assert not ticket.running
        assert self.slots.leave(ticket) == []

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.left(data.draw(st.sampled_from(self.running)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.left(data.draw(st.sampled_from(self.waiting))[0])

    @invariant()
    def counts_are_right_and_within_bounds(self) -> None:
        assert self.slots.running == len(self.running) <= self.maximum
        assert self.slots.queued == len(self.waiting) <= self.queue_maximum
        assert all(ticket.running for ticket in self.running)
        assert not any(ticket.running for ticket, _ in self.waiting)

    @invariant()
    def no_slot_is_idle_while_somebody_could_use_it(self) -> None:
        assert self.next() is None

    def teardown(self) -> None:
        """If those who run leave, everybody runs in the end."""
        while self.running:
            self.left(self.running[0])
        assert not self.waiting
        assert (self.slots.running, self.slots.queued) == (0, 0)


class OneSlotAgainstLists(SlotsAgainstLists):
    """Where turns show best."""

    maximum = 1
    queue_maximum = 12


TestSlotsAgainstLists = SlotsAgainstLists.TestCase
TestOneSlotAgainstLists = OneSlotAgainstLists.TestCase
for case in (TestSlotsAgainstLists, TestOneSlotAgainstLists):
    case.settings = settings(bounded, max_examples=100, stateful_step_count=50)
