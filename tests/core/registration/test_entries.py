"""Selectors, IDs that hold a join token, and the argument lists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.registration.entries import (
    Entry,
    JoinToken,
    Others,
    Selector,
    create_command,
    delete_command,
    entries_command,
    evict_command,
    is_reserved,
    is_token_agent,
    token_command,
    uid_selector,
    update_command,
    without_token,
)
from sidecar.core.spiffe_id import SpiffeId

TOKEN = "998a0493-c4d2-48e7-a0ad-0c3178b51d4c"
AGENT = SpiffeId.parse(f"spiffe://example.org/spire/agent/join_token/{TOKEN}")
ALIAS = SpiffeId.parse("spiffe://example.org/host/mac")
OURS = SpiffeId.parse("spiffe://example.org/workload/model-server")
ENTRY = Entry("id-1", OURS, ALIAS, (uid_selector(451),))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        pytest.param("unix:uid:451", "unix", "uid:451", id="value with a colon"),
        pytest.param("docker:label:a:b c", "docker", "label:a:b c", id="space inside"),
        pytest.param("k8s_psat:ns:x", "k8s_psat", "ns:x", id="underscore in the type"),
    ],
)
def test_selector_is_read_and_shown_as_it_was(text: str, kind: str, value: str) -> None:
    selector = Selector.parse(text)
    assert selector == Selector(kind, value)
    assert str(selector) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("unix", id="no colon"),
        pytest.param("unix:", id="no value"),
        pytest.param(":uid:1", id="no type"),
        pytest.param("un ix:uid:1", id="space in the type"),
        pytest.param("-unix:uid:1", id="type like a flag"),
        pytest.param("unix: uid:1", id="space before the value"),
        pytest.param("unix:uid:1 ", id="space behind the value"),
        pytest.param("unix:uid:1\n", id="new line"),
        pytest.param("unix:path:/a\x1b[31m", id="escape"),
        pytest.param("unïx:uid:1", id="no ASCII"),
    ],
)
def test_text_that_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected type:value|a value has"):
        Selector.parse(text)


def test_whoever_a_token_attests_is_known_by_the_path() -> None:
    assert is_token_agent(AGENT)
    assert not is_token_agent(ALIAS)
    assert not is_token_agent(SpiffeId.parse("spiffe://example.org/spire/agent/x509pop/1"))
    # A workload may be named like that below another path.
    assert not is_token_agent(SpiffeId.parse("spiffe://example.org/a/spire/agent/join_token/x"))


def test_a_token_is_in_no_text() -> None:
    shown = without_token(f'"{AGENT}" and {AGENT}/x')
    assert TOKEN not in shown
    assert shown.count("/spire/agent/join_token/...") == 2
    assert without_token(ALIAS) == str(ALIAS)
    assert TOKEN not in repr(JoinToken(TOKEN, 7))
    assert TOKEN not in str(JoinToken(TOKEN, 7))


def test_alias_of_a_token_is_known_by_its_shape() -> None:
    alias = Entry("1", ALIAS, AGENT, (Selector("spiffe_id", str(AGENT)),))
    assert alias.is_token_alias
    other = replace(alias, selectors=(Selector("spiffe_id", str(ALIAS)),))
    assert not other.is_token_alias
    assert not replace(alias, parent_id=ALIAS).is_token_alias
    assert not ENTRY.is_token_alias


@pytest.mark.parametrize(
    ("path", "reserved"),
    [("/spire", True), ("/spire/agent/x", True), ("/spirex", False), ("/a/spire/b", False)],
)
def test_paths_of_spire_itself(path: str, reserved: bool) -> None:
    assert is_reserved(SpiffeId.parse(f"spiffe://example.org{path}")) is reserved


def test_create_command_names_what_is_wanted_and_nothing_else() -> None:
    assert create_command(ENTRY) == (
        *("entry", "create", "-parentID", str(ALIAS), "-spiffeID", str(OURS)),
        *("-selector", "unix:uid:451", "-output", "json"),
    )


def test_create_command_with_all_options() -> None:
    entry = replace(ENTRY, dns_names=("a.org", "b.org"), x509_svid_ttl=60)
    command = " ".join(create_command(entry))
    assert "-x509SVIDTTL 60 -dns a.org -dns b.org" in command


def test_update_says_again_what_it_does_not_manage() -> None:
    others = Others(
        jwt_svid_ttl=70,
        federates_with=("other.org",),
        hint="internal",
        admin=True,
        downstream=True,
        store_svid=True,
        expires_at=1999999999,
        disable_x509_svid_prefetch=True,
        jwt_svid_include_jti=True,
    )
    command = update_command(replace(ENTRY, others=others))
    assert command[:4] == ("entry", "update", "-entryID", "id-1")
    assert " ".join(command).endswith(
        "-jwtSVIDTTL 70 -federatesWith other.org -hint internal -entryExpiry 1999999999 -admin "
        "-downstream -storeSVID -disableX509SVIDPrefetch -jwtSVIDIncludeJTI -output json"
    )


def test_newer_flags_are_left_out_unless_needed() -> None:
    for command in (create_command(ENTRY), update_command(ENTRY)):
        assert not {"-hint", "-jwtSVIDIncludeJTI", "-disableX509SVIDPrefetch"} & set(command)


def test_short_commands() -> None:
    assert delete_command("x") == ("entry", "delete", "-entryID", "x", "-output", "json")
    assert evict_command(AGENT)[:4] == ("agent", "evict", "-spiffeID", str(AGENT))
    assert token_command(ALIAS, 60)[:6] == (
        *("token", "generate", "-spiffeID", str(ALIAS)),
        *("-ttl", "60"),
    )
    show = ("entry", "show")
    assert entries_command(spiffe_id=OURS) == (*show, "-spiffeID", str(OURS), "-output", "json")
    assert entries_command(parent_id=ALIAS, downstream=True) == (
        *(*show, "-parentID", str(ALIAS)),
        *("-downstream", "-output", "json"),
    )
