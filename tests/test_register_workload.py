"""What `register-workload` accepts of options, before it asks any server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.registration.entries import Selector, uid_selector
from sidecar.operations.register_workload.request import (
    Options,
    RequestError,
    read_prefix,
    read_request,
)

LEAST = Options("example.org", "mac")
TD = "spiffe://example.org"
TRAEFIK: dict[str, Any] = {
    "traefik_id": f"{TD}/workload/traefik",
    "traefik_selectors": ["docker:label:a:b"],
    "traefik_parent": f"{TD}/host/platform",
}
FILES: dict[str, Any] = {"host_folder": Path("mac"), "server_address": "10.10.0.10"}


def test_least_options() -> None:
    request = read_request(LEAST)
    (sidecar,) = request.registrations
    assert str(sidecar.spiffe_id) == f"{TD}/workload/model-server"
    assert str(sidecar.parent_id) == str(request.alias) == f"{TD}/host/mac"
    assert (sidecar.selectors, sidecar.dns_names, sidecar.x509_svid_ttl) == (None, None, None)
    assert sidecar.default_selectors == (uid_selector(451),)
    assert request.token_ttl is None


def test_all_options() -> None:
    given = replace(
        LEAST,
        **TRAEFIK,
        **FILES,
        spiffe_id=f"{TD}/m",
        uid=0,
        dns=["models.example.org", "*.example.org"],
        x509_svid_ttl=0,
        generate_token=True,
        token_ttl=60,
    )
    request = read_request(given)
    sidecar, traefik = request.registrations
    assert sidecar.selectors == (uid_selector(0),)
    assert sidecar.dns_names == ("models.example.org", "*.example.org")
    assert sidecar.x509_svid_ttl == 0
    assert str(traefik.parent_id) == f"{TD}/host/platform"
    assert traefik.selectors == (Selector("docker", "label:a:b"),)
    assert request.token_ttl == 60
    assert str(request.server) == "10.10.0.10:8081"


def test_trust_domain_may_be_written_as_an_id() -> None:
    assert str(read_request(replace(LEAST, trust_domain=TD)).alias) == f"{TD}/host/mac"


def test_names_can_be_taken_away() -> None:
    (sidecar,) = read_request(replace(LEAST, no_dns=True)).registrations
    assert sidecar.dns_names == ()


def test_traefik_may_live_below_an_agent_itself() -> None:
    agent = f"{TD}/spire/agent/x509pop/1"
    _, traefik = read_request(replace(LEAST, **{**TRAEFIK, "traefik_parent": agent})).registrations
    assert str(traefik.parent_id) == agent


def test_removal_needs_less() -> None:
    given = replace(LEAST, **{**TRAEFIK, "traefik_selectors": []}, remove=True, evict_agent=True)
    assert read_request(given).remove


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"trust_domain": "Example.org"}, "--trust-domain", id="upper case"),
        pytest.param({"trust_domain": ""}, "--trust-domain", id="empty trust domain"),
        pytest.param({"trust_domain": "example.org/x"}, "--trust-domain", id="with a path"),
        pytest.param({"host": ""}, "--host", id="empty host"),
        pytest.param({"host": "a/b"}, "--host", id="host with a slash"),
        pytest.param({"host": ".."}, "--host", id="relative host"),
        pytest.param({"host": "mac studio"}, "--host", id="host with a space"),
        pytest.param({"spiffe_id": "spiffe://other.org/m"}, "example.org", id="other TD"),
        pytest.param({"spiffe_id": "spiffe://example.org"}, "expected a path", id="no path"),
        pytest.param({"spiffe_id": "/workload/m"}, "not a SPIFFE ID", id="no SPIFFE ID"),
        pytest.param({"spiffe_id": f"{TD}/m/"}, "not a SPIFFE ID", id="trailing slash"),
        pytest.param({"spiffe_id": f"{TD}/spire/server"}, "keeps /spire/", id="reserved"),
        pytest.param({"spiffe_id": f"{TD}/host/mac"}, "own alias", id="the alias"),
        pytest.param({"uid": -1}, "--uid", id="negative uid"),
        pytest.param({"uid": 2**32 - 1}, "--uid", id="uid that means none"),
        pytest.param({"uid": 1, "selectors": ["unix:gid:1"]}, "use one", id="uid and selector"),
        pytest.param({"selectors": ["unix"]}, "type:value", id="selector"),
        pytest.param({"selectors": ["unix:uid:root"]}, "a number", id="uid by name"),
        pytest.param({"selectors": ["unix:uid:"]}, "a number", id="uid left out"),
        pytest.param({"selectors": ["unix:gid:01"]}, "a number", id="gid with a zero"),
        pytest.param({"selectors": ["unix:uid:1", "unix:uid:1"]}, "twice", id="selector twice"),
        pytest.param({"dns": ["a b"]}, "host name", id="DNS name with a space"),
        pytest.param({"dns": [""]}, "host name", id="empty DNS name"),
        pytest.param({"dns": ["-a.org"]}, "host name", id="DNS name like a flag"),
        pytest.param({"dns": ["a." * 130 + "org"]}, "host name", id="DNS name too long"),
        pytest.param({"dns": ["a.org", "A.org"]}, "twice", id="DNS name twice"),
        pytest.param({"dns": ["a.org"], "no_dns": True}, "--no-dns", id="names and none"),
        pytest.param({"generate_token": True}, "--host-folder", id="token to nowhere"),
        pytest.param({"token_ttl": 60}, "--generate-token", id="ttl of no token"),
        pytest.param({"host_folder": Path("x")}, "--server-address", id="folder, no address"),
        pytest.param({"server_address": "http://x"}, "--server-address", id="address"),
        pytest.param({"server_address": ""}, "--server-address", id="empty address"),
        pytest.param({**TRAEFIK, "traefik_parent": None}, "--traefik-parent", id="no parent"),
        pytest.param({**TRAEFIK, "traefik_selectors": []}, "--traefik-selector", id="no selector"),
        pytest.param({"traefik_parent": f"{TD}/h"}, "--traefik-id", id="parent of nobody"),
        pytest.param({"traefik_selectors": ["a:b"]}, "--traefik-id", id="selector of nobody"),
        pytest.param(
            {**TRAEFIK, "traefik_parent": "spiffe://other.org/h"}, "example.org", id="parent's TD"
        ),
        pytest.param(
            {**TRAEFIK, "traefik_parent": TRAEFIK["traefik_id"]}, "own ID", id="its own parent"
        ),
        pytest.param(
            {**TRAEFIK, "traefik_id": f"{TD}/workload/model-server"}, "the same", id="same ID"
        ),
        pytest.param({"evict_agent": True}, "--remove", id="evict without remove"),
        pytest.param(
            {"remove": True, **FILES, "generate_token": True}, "of no use", id="remove and token"
        ),
        pytest.param({"remove": True, "dns": ["a.org"]}, "--dns: of no use", id="remove and DNS"),
    ],
)
def test_options_that_cannot_be_meant(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_request(replace(LEAST, **changed))
    assert words in str(raised.value)


def test_prefix_is_divided_as_a_shell_does_but_run_by_none() -> None:
    text = "docker exec 'my spire' /opt/spire/bin/spire-server; $(rm) *"
    assert read_prefix(text) == (
        *("docker", "exec", "my spire", "/opt/spire/bin/spire-server;", "$(rm)", "*"),
    )


@pytest.mark.parametrize("text", ["", "  ", "docker 'exec"])
def test_prefix_that_is_none(text: str) -> None:
    with pytest.raises(RequestError, match="--spire-server"):
        read_prefix(text)
