"""Versions of Traefik: what is one, and what each of them can do."""

from __future__ import annotations

import pytest

from sidecar.core.traefik.version import TraefikVersion


def version(text: str) -> TraefikVersion:
    return TraefikVersion.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.7.9", TraefikVersion(3, 7, 9)),
        ("v3.7.9", TraefikVersion(3, 7, 9)),
        ("3.7", TraefikVersion(3, 7)),
        ("3.7.x", TraefikVersion(3, 7)),
        ("3.0.0", TraefikVersion(3, 0, 0)),
        ("3.8.0-rc.1", TraefikVersion(3, 8, 0)),
        ("3.10.2", TraefikVersion(3, 10, 2)),
        ("2.11", TraefikVersion(2, 11)),
        ("v2.11.53", TraefikVersion(2, 11, 53)),
    ],
)
def test_version_is_read(text: str, expected: TraefikVersion) -> None:
    assert version(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "3.x",
        "latest",
        "3.7.9\n",
        " 3.7.9",
        "3.7.9 ",
        "3.7.",
        "3.7.9.1",
        "\u0663.\u0667",
        "V3.7",
        "3.-7",
        "3.7.9-",
        "3.9999",
        "2.10.7",
        "2.12",
        "1.7.34",
        "4.0",
        "traefik:3.7",
        "3.7{{",
    ],
    ids=ascii,
)
def test_what_is_no_version_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*found"):
        version(text)


def test_version_is_shown_as_it_was_told() -> None:
    assert [str(version(text)) for text in ("v3.7.9", "3.7.x", "2.11")] == ["3.7.9", "3.7", "2.11"]


# What it can do: the first version on the right side of each line is the one that changed.


@pytest.mark.parametrize(
    ("text", "has"), [("2.11.53", False), ("3.0.0", True), ("3.7", True), ("3.9", True)]
)
def test_it_asks_the_workload_api_since_3_0(text: str, has: bool) -> None:
    assert version(text).has_spiffe is has
    assert version(text).reloads_on_sighup is has


@pytest.mark.parametrize(
    ("text", "has"), [("2.11", False), ("3.7.99", False), ("3.8.0", True), ("3.10.0", True)]
)
def test_it_compares_with_several_ids_since_3_8(text: str, has: bool) -> None:
    assert version(text).has_peer_cert_sans is has


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("2.11.53", True),
        ("3.0.0", True),
        ("3.5.6", True),
        ("3.6.7", True),
        ("3.6", True),  # which patch was not told
        ("3.6.8", False),
        ("3.7.0", False),
        ("3.7", False),
        ("3.8", False),
        ("3.10", False),
    ],
)
def test_it_compares_the_trust_domain_since_3_6_8(text: str, may: bool) -> None:
    assert version(text).may_ignore_trust_domain is may


@pytest.mark.parametrize(("text", "has"), [("3.6.24", False), ("3.7.0", True), ("3.8", True)])
def test_min_version_exists_since_3_7(text: str, has: bool) -> None:
    assert version(text).has_tls_versions is has


@pytest.mark.parametrize(
    ("text", "has"), [("2.11.53", False), ("3.3.7", False), ("3.4.0", True), ("3.10", True)]
)
def test_load_balancer_has_strategies_since_3_4(text: str, has: bool) -> None:
    assert version(text).has_strategy is has


@pytest.mark.parametrize(
    ("text", "refuses", "may"),
    [
        ("3.6.2", False, False),
        ("3.6.3", True, False),
        ("3.6.6", True, False),
        ("3.6.7", False, False),
        ("3.6", False, True),
        ("3.7", False, False),
        ("2.11.31", False, False),
        ("2.11.32", True, False),
        ("2.11.34", True, False),
        ("2.11.35", False, False),
        ("2.11", False, True),
    ],
)
def test_some_patches_refuse_an_encoded_slash(text: str, refuses: bool, may: bool) -> None:
    assert version(text).refuses_encoded_slash is refuses
    assert version(text).may_refuse_encoded_slash is may


@pytest.mark.parametrize(("text", "unknown"), [("3.8", False), ("3.9", True), ("3.10", True)])
def test_newer_ones_are_unknown(text: str, unknown: bool) -> None:
    assert version(text).is_unknown is unknown
