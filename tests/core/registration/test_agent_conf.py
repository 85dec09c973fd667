"""The agent's configuration, and the addresses that go into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core import host_layout
from sidecar.core.registration.agent_conf import ServerAddress, agent_conf
from sidecar.core.registration.entries import Selector, uid_selector
from sidecar.core.spiffe_id import TrustDomain

EXAMPLE = Path(__file__).parents[3] / "conf" / "agent.conf"
DOMAIN = TrustDomain.parse("ravenhelm.local")
SERVER = ServerAddress.parse("10.10.0.10:8081")


def test_example_is_what_is_written() -> None:
    text = agent_conf(DOMAIN, SERVER, [uid_selector(host_layout.SERVICE_UID)])
    assert EXAMPLE.read_text() == text


def test_paths_are_those_of_the_host_layout() -> None:
    text = agent_conf(DOMAIN, SERVER, [])
    for line in (
        f'trust_bundle_path = "{host_layout.TRUST_BUNDLE}"',
        f'join_token_file = "{host_layout.JOIN_TOKEN}"',
        f'socket_path = "{host_layout.AGENT_SOCKET}"',
        f'data_dir = "{host_layout.AGENT_DATA}"',
        f'directory = "{host_layout.AGENT_DATA}"',
    ):
        assert f"{line}\n" in text


def test_no_token_and_no_shortcut_stands_in_it() -> None:
    lines = [line.strip() for line in agent_conf(DOMAIN, SERVER, []).splitlines()]
    settings = [line for line in lines if not line.startswith("#")]
    assert not [line for line in settings if line.startswith(("join_token ", "insecure_bootstrap"))]


@pytest.mark.parametrize(
    ("selectors", "asked"),
    [
        pytest.param(["unix:uid:451"], False, id="uid"),
        pytest.param(["unix:uid:451", "unix:path:/opt/x"], True, id="path"),
        pytest.param(["unix:sha256:ab"], True, id="hash"),
        pytest.param(["docker:label:path:/x"], False, id="another attestor's"),
    ],
)
def test_agent_looks_at_programs_only_when_a_selector_needs_it(
    selectors: list[str], asked: bool
) -> None:
    text = agent_conf(DOMAIN, SERVER, [Selector.parse(one) for one in selectors])
    assert ("discover_workload_path = true" in text) is asked
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        pytest.param("10.10.0.10", "10.10.0.10", 8081, "10.10.0.10:8081", id="IPv4"),
        pytest.param("10.10.0.10:9", "10.10.0.10", 9, "10.10.0.10:9", id="IPv4 with a port"),
        pytest.param("spire", "spire", 8081, "spire:8081", id="name"),
        pytest.param("spire.example.org:65535", "spire.example.org", 65535, None, id="long name"),
        pytest.param("[fd00::1]:9", "fd00::1", 9, "[fd00::1]:9", id="IPv6 with a port"),
        pytest.param("[fd00::1]", "fd00::1", 8081, "[fd00::1]:8081", id="IPv6"),
        pytest.param("fd00::1", "fd00::1", 8081, "[fd00::1]:8081", id="IPv6 without brackets"),
    ],
)
def test_server_address(text: str, host: str, port: int, shown: str | None) -> None:
    address = ServerAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == (shown or text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(":8081", id="no host"),
        pytest.param("spire:", id="no port"),
        pytest.param("spire:0", id="port 0"),
        pytest.param("spire:65536", id="port too high"),
        pytest.param("spire:8081x", id="port with more"),
        pytest.param("https://spire", id="URL"),
        pytest.param("spire/x", id="path"),
        pytest.param('spire"\n}', id="out of the string"),
        pytest.param("a b", id="space"),
        pytest.param("-spire", id="like a flag"),
        pytest.param("10.10.0.300", id="IPv4 with a slip"),
        pytest.param("10.10.0", id="IPv4 too short"),
        pytest.param("[10.10.0.10]:1", id="brackets around IPv4"),
        pytest.param("[fd00::1", id="no closing bracket"),
        pytest.param("[fd00::1]8081", id="no colon"),
        pytest.param("[fe80::1%eth0]:1", id="zone"),
        pytest.param("${HOME}", id="variable"),
        pytest.param("a" * 64, id="label too long"),
    ],
)
def test_text_that_is_no_server_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        ServerAddress.parse(text)


@pytest.mark.parametrize(
    ("text", "this"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("localhost", True),
        ("spire.localhost", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_addresses_of_the_host_itself_are_known(text: str, this: bool) -> None:
    assert ServerAddress.parse(text).is_this_host is this
