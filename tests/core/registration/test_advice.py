"""What a person is warned of, and what is fine."""

from __future__ import annotations

import pytest

from sidecar.core.registration.advice import (
    address_advice,
    parent_advice,
    selector_advice,
    token_advice,
    ttl_advice,
)
from sidecar.core.registration.agent_conf import ServerAddress
from sidecar.core.registration.entries import Entry, Selector
from sidecar.core.spiffe_id import SpiffeId


def entry(ttl: int = 0, parent: str = "/host/mac") -> Entry:
    ours = SpiffeId.parse("spiffe://example.org/workload/m")
    return Entry("", ours, SpiffeId.parse(f"spiffe://example.org{parent}"), (), (), ttl)


@pytest.mark.parametrize(
    ("selectors", "words"),
    [
        pytest.param(["unix:uid:0"], "root", id="root"),
        pytest.param(["unix:user:root"], "root", id="root, by name"),
        pytest.param(["unix:uid:501"], "first user of a Mac", id="first user of a Mac"),
        pytest.param(["unix:uid:1000"], "most Linux", id="first user of Linux"),
        pytest.param(["unix:path:/usr/bin/python3"], "any script", id="an interpreter"),
        pytest.param(["unix:udi:451"], "matches nothing", id="a slip"),
    ],
)
def test_selectors_that_others_have_too(selectors: list[str], words: str) -> None:
    (advice,) = selector_advice("sidecar", [Selector.parse(text) for text in selectors])
    assert words in advice
    assert advice.startswith(f"sidecar: {selectors[0]}")


@pytest.mark.parametrize(
    "selectors",
    [
        pytest.param(["unix:uid:451"], id="an account of its own"),
        pytest.param(["unix:uid:5010"], id="longer than 501"),
        pytest.param(["unix:gid:0"], id="a group"),
        pytest.param(["unix:path:/opt/x", "unix:uid:451"], id="a path and a uid"),
        pytest.param(["docker:label:uid:0"], id="another attestor's"),
    ],
)
def test_selectors_that_are_fine(selectors: list[str]) -> None:
    assert list(selector_advice("sidecar", [Selector.parse(text) for text in selectors])) == []


@pytest.mark.parametrize(("ttl", "count"), [(0, 0), (59, 1), (60, 0), (86_400, 0), (86_401, 1)])
def test_lifetimes(ttl: int, count: int) -> None:
    assert len(list(ttl_advice(entry(ttl), "sidecar"))) == count
    assert len(list(token_advice(ttl))) == (ttl > 86_400)


def test_address_of_the_host_itself() -> None:
    assert list(address_advice(ServerAddress.parse("127.0.0.1")))
    assert not list(address_advice(ServerAddress.parse("10.10.0.10")))


def test_parent_that_dies_with_its_token() -> None:
    (advice,) = parent_advice(entry(parent="/spire/agent/join_token/secret"), "traefik")
    assert "alias" in advice
    assert "secret" not in advice
    assert not list(parent_advice(entry(), "traefik"))
