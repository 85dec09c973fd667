"""What a person is told about a Traefik in front of a sidecar, and what not."""

from __future__ import annotations

import pytest

from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.setup import Server, Terms
from sidecar.core.traefik.warnings import dynamic_warnings, static_warnings
from tests.core.traefik.setups import OWN, POLICY, TRAEFIK, serving, setup


def warnings(
    version: str = "3.7.9",
    variant: str = "spiffe",
    *,
    traefik: str | None = TRAEFIK,
    policy: str = POLICY,
    servers: tuple[str, ...] = ("192.168.50.26",),
    **tables: dict[str, str],
) -> list[str]:
    made = serving(policy, **tables)
    some = tuple(Server.parse(one, 6701) for one in servers)
    one = setup(version, variant, servers=some, terms=Terms.of(made.config))
    return list(dynamic_warnings(one, made, SpiffeId.parse(traefik) if traefik else None))


@pytest.mark.parametrize("variant", ["spiffe", "files"])
@pytest.mark.parametrize("version", ["3.6.8", "3.7", "3.7.9", "3.8"])
def test_nothing_is_said_where_all_is_well(version: str, variant: str) -> None:
    assert warnings(version, variant) == []
    assert warnings(version, variant, workload_api={"spiffe_id": f'"{OWN}"'}) == []


def test_traefik_that_policy_does_not_admit_is_told_of_with_the_reason() -> None:
    (warning,) = warnings(traefik=f"{TRAEFIK}-2")
    assert f"policy.toml does not admit {TRAEFIK}-2: no allow rule names this peer" in warning
    denied = POLICY + f'[[deny]]\nname = "retired"\npeers = ["{TRAEFIK}"]\n'
    (warning,) = warnings(policy=denied)
    assert "denied by rule 'retired'" in warning


def test_without_its_id_it_is_said_that_nobody_looked() -> None:
    (warning,) = warnings(traefik=None)
    assert "--traefik-id" in warning


def test_traefik_that_may_ask_for_health_alone_is_told_of() -> None:
    (warning,) = warnings(policy=POLICY.replace("endpoints", "# endpoints"))
    assert "GET /health and nothing else (rule 'traefik')" in warning


def test_in_mode_stream_a_rule_has_no_endpoints_and_no_proxy() -> None:
    bare = f'[[allow]]\nname = "traefik"\npeers = ["{TRAEFIK}"]\n'
    assert warnings(policy=bare, backend={"mode": '"stream"'}) == []


def test_proxy_that_is_not_trusted_is_told_of() -> None:
    (warning,) = warnings(policy=POLICY.replace("trusted_proxy = true", ""))
    assert "trusted_proxy = true" in warning


@pytest.mark.parametrize(
    ("variant", "says"), [("files", "rootCAs holds"), ("spiffe", "federatesWith")]
)
def test_traefik_of_another_trust_domain_is_told_of(variant: str, says: str) -> None:
    foreign = "spiffe://other.org/workload/traefik"
    (warning,) = warnings(variant=variant, traefik=foreign, policy=POLICY.replace(TRAEFIK, foreign))
    assert says in warning


def test_id_that_this_sidecar_does_not_have_is_told_of() -> None:
    (warning,) = warnings(workload_api={"spiffe_id": f'"{OWN}-2"'})
    assert f"is {OWN}-2, and Traefik is told {OWN}" in warning


@pytest.mark.parametrize(
    ("address", "servers", "said"),
    [
        ('"127.0.0.1:6701"', ("192.168.50.26",), True),
        ('["127.0.0.1:6701", "[::1]:6701"]', ("mac.lan",), True),
        ('"127.0.0.1:6701"', ("127.0.0.1", "mac.lan"), True),
        ('"127.0.0.1:6701"', ("127.0.0.1",), False),
        ('"127.0.0.1:6701"', ("localhost",), False),
        ('["127.0.0.1:6701", "0.0.0.0:6702"]', ("mac.lan",), False),
        ('"systemd"', ("mac.lan",), False),
    ],
)
def test_listener_that_traefik_cannot_reach_is_told_of(
    address: str, servers: tuple[str, ...], said: bool
) -> None:
    told = warnings(servers=servers, listener={"address": address})
    assert [warning.startswith("[listener] address") for warning in told] == [True] * said


def test_idle_time_that_costs_handshakes_is_told_of() -> None:
    (warning,) = warnings(timeouts={"idle": "60"})
    assert "60 s" in warning
    assert "45 s" in warning


@pytest.mark.parametrize(
    ("version", "subject", "other"),
    [
        ("2.11.53", "Traefik 2.11.53 does", False),
        ("3.5", "Traefik 3.5 does", True),
        ("3.6", "Traefik before 3.6.8 does", True),
        ("3.6.7", "Traefik 3.6.7 does", True),
    ],
)
def test_trust_domain_that_is_not_compared_is_told_of(
    version: str, subject: str, other: bool
) -> None:
    (warning,) = warnings(version, "files")
    assert warning.startswith(subject)
    assert ("--variant spiffe" in warning) == other
    assert version.startswith("2") or warnings(version, "spiffe") == []


def test_version_that_is_not_known_is_told_of_in_both_parts() -> None:
    (warning,) = warnings("3.9")
    assert warning in static_warnings(setup("3.9"))
    assert "3.9 is newer" in warning


@pytest.mark.parametrize(
    ("version", "said"),
    [("3.6", True), ("2.11", True), ("3.6.4", False), ("3.7", False), ("3.8.0", False)],
)
def test_encoded_slash_is_told_of_where_it_hangs_on_the_patch(version: str, said: bool) -> None:
    assert ["%2F" in one for one in static_warnings(setup(version, "files"))] == [True] * said
