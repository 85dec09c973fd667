"""What becomes of the entries, by what is wanted and what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.errors import RegistrationError
from sidecar.core.registration.entries import Entry, Others, Registration, Selector, uid_selector
from sidecar.core.registration.plan import (
    Change,
    other_ids_of_the_process,
    plan_alias_removal,
    plan_registration,
    plan_removal,
    same_id_beside,
    same_id_elsewhere,
)
from sidecar.core.spiffe_id import SpiffeId


def spiffe_id(path: str) -> SpiffeId:
    return SpiffeId.parse(f"spiffe://example.org{path}")


ALIAS = spiffe_id("/host/mac")
OURS = spiffe_id("/workload/model-server")
DEFAULT = (uid_selector(451),)
ANYTHING = Registration("sidecar", OURS, ALIAS, None, DEFAULT)
ENTRY = Entry("id-1", OURS, ALIAS, DEFAULT)


def test_nothing_there_means_create_with_the_defaults() -> None:
    step = plan_registration(ANYTHING, [])
    assert step.action == "create"
    assert step.entry == replace(ENTRY, id="")
    assert step.command[:2] == ("entry", "create")


def test_the_same_again_changes_nothing() -> None:
    wanted = replace(ANYTHING, selectors=DEFAULT, dns_names=(), x509_svid_ttl=0)
    step = plan_registration(wanted, [ENTRY])
    assert (step.action, step.command, step.changes) == ("unchanged", (), ())


def test_order_of_selectors_and_names_means_nothing() -> None:
    both = (Selector("unix", "gid:4"), uid_selector(451))
    there = replace(ENTRY, selectors=both, dns_names=("a.org", "b.org"))
    wanted = replace(ANYTHING, selectors=both[::-1], dns_names=("b.org", "a.org"))
    assert plan_registration(wanted, [there]).action == "unchanged"


def test_what_is_not_asked_for_stays() -> None:
    there = replace(ENTRY, selectors=(uid_selector(501),), dns_names=("a.org",), x509_svid_ttl=60)
    assert plan_registration(ANYTHING, [there]).action == "unchanged"
    step = plan_registration(replace(ANYTHING, x509_svid_ttl=120), [there])
    assert step.changes == (Change("x509-svid ttl", "60 s", "120 s"),)
    assert "unix:uid:501" in step.command
    assert "a.org" in step.command


def test_each_field_shows_what_it_was_and_becomes() -> None:
    wanted = replace(
        ANYTHING, selectors=(uid_selector(7),), dns_names=("a.org",), x509_svid_ttl=3000
    )
    step = plan_registration(wanted, [ENTRY])
    assert step.action == "update"
    assert [str(change) for change in step.changes] == [
        "selectors: unix:uid:451 -> unix:uid:7",
        "dns names: none -> a.org",
        "x509-svid ttl: the server's default -> 3000 s",
    ]
    assert step.command[:4] == ("entry", "update", "-entryID", "id-1")


def test_names_and_ttl_can_be_taken_away() -> None:
    there = replace(ENTRY, dns_names=("a.org",), x509_svid_ttl=60)
    step = plan_registration(replace(ANYTHING, dns_names=(), x509_svid_ttl=0), [there])
    assert [change.new for change in step.changes] == ["none", "the server's default"]
    assert "-dns" not in step.command
    assert "-x509SVIDTTL" not in step.command


def test_what_we_do_not_manage_is_carried_over() -> None:
    there = replace(ENTRY, others=Others(hint="x", federates_with=("other.org",)))
    step = plan_registration(replace(ANYTHING, x509_svid_ttl=1), [there])
    assert step.entry.others == there.others
    assert "other.org" in step.command


def test_entries_of_other_ids_and_parents_are_not_ours() -> None:
    others = [
        replace(ENTRY, id="other parent", parent_id=spiffe_id("/host/b")),
        replace(ENTRY, id="other id", spiffe_id=spiffe_id("/workload/x")),
    ]
    assert plan_registration(ANYTHING, others).action == "create"
    assert plan_removal(ANYTHING, others).action == "absent"


def test_of_several_the_one_with_the_selectors_is_ours() -> None:
    other = replace(ENTRY, id="id-2", selectors=(uid_selector(501),))
    step = plan_registration(replace(ANYTHING, selectors=(uid_selector(501),)), [ENTRY, other])
    assert (step.action, step.entry.id) == ("unchanged", "id-2")
    assert plan_registration(ANYTHING, [ENTRY, other]).entry.id == "id-1"
    assert same_id_beside(step, [ENTRY, other]) == [ENTRY]


@pytest.mark.parametrize("plan", [plan_registration, plan_removal])
def test_of_several_without_a_match_nobody_guesses(plan: object) -> None:
    other = replace(ENTRY, id="id-2", selectors=(uid_selector(501),))
    wanted = replace(ANYTHING, selectors=(uid_selector(7),))
    with pytest.raises(RegistrationError) as raised:
        plan(wanted, [ENTRY, other])  # type: ignore[operator]
    for text in ("id-1: unix:uid:451", "id-2: unix:uid:501", "2 entries"):
        assert text in raised.value.message
    assert "--selector" in (raised.value.hint or "")


def test_two_that_are_all_the_same_are_not_guessed_between() -> None:
    with pytest.raises(RegistrationError):
        plan_registration(ANYTHING, [ENTRY, replace(ENTRY, id="id-2")])


def test_removal_takes_the_only_one() -> None:
    there = replace(ENTRY, selectors=(uid_selector(7),))
    step = plan_removal(ANYTHING, [there])
    assert step.action == "remove"
    assert step.command[:4] == ("entry", "delete", "-entryID", "id-1")


def test_removal_spares_one_with_other_selectors_than_asked_for() -> None:
    step = plan_removal(replace(ANYTHING, selectors=(uid_selector(7),)), [ENTRY])
    assert (step.action, step.command) == ("keep", ())
    assert "other selectors" in step.reason


def test_removal_of_nothing() -> None:
    step = plan_removal(ANYTHING, [])
    assert (step.action, step.command) == ("absent", ())


AGENT = spiffe_id("/spire/agent/join_token/t")
TOKEN_ALIAS = Entry("alias-1", ALIAS, AGENT, (Selector("spiffe_id", str(AGENT)),))


def test_aliases_of_tokens_go_with_the_last_entry() -> None:
    steps = plan_alias_removal([TOKEN_ALIAS], [ENTRY], {"id-1"})
    assert [(step.action, step.entry.id) for step in steps] == [("remove", "alias-1")]


def test_an_alias_stays_while_others_hang_on_it() -> None:
    other = replace(ENTRY, id="id-2", spiffe_id=spiffe_id("/workload/x"))
    (step,) = plan_alias_removal([TOKEN_ALIAS], [ENTRY, other], {"id-1"})
    assert (step.action, step.command) == ("keep", ())
    assert "spiffe://example.org/workload/x" in step.reason


def test_an_alias_that_no_token_made_is_somebody_elses() -> None:
    theirs = replace(TOKEN_ALIAS, parent_id=spiffe_id("/spire/server"))
    (step,) = plan_alias_removal([theirs], [], set())
    assert (step.action, step.command) == ("keep", ())


def test_the_same_id_below_other_parents_is_found() -> None:
    elsewhere = replace(ENTRY, id="id-2", parent_id=spiffe_id("/host/b"))
    assert same_id_elsewhere(ANYTHING, [ENTRY, elsewhere, TOKEN_ALIAS]) == [elsewhere]


def test_other_ids_of_the_same_process_are_found() -> None:
    step = plan_registration(ANYTHING, [ENTRY])
    same = replace(ENTRY, id="2", spiffe_id=spiffe_id("/b"))
    narrower = replace(same, spiffe_id=spiffe_id("/c"), selectors=(*DEFAULT, uid_selector(7)))
    elsewhere = replace(same, spiffe_id=spiffe_id("/d"), parent_id=spiffe_id("/host/b"))
    others = [ENTRY, same, narrower, elsewhere]
    assert other_ids_of_the_process(step, others) == [spiffe_id("/b")]
