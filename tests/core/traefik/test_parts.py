"""The files for Traefik: what stands in them for each version and variant."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from sidecar.core.address import WorkloadEndpoint
from sidecar.core.config import Config, parse_config
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.dynamic import dynamic_part, seconds
from sidecar.core.traefik.setup import Server, Terms, TraefikSetup
from sidecar.core.traefik.static import helper_part, static_part
from tests.core.traefik.setups import OWN, config, setup
from tests.printed_yaml import read_yaml

EVERY = ["2.11", "2.11.33", "3.0", "3.1.7", "3.2", "3.3", "3.4", "3.5", "3.6.4", "3.6.7", "3.6.8"]
EVERY += ["3.6", "3.7.9", "3.8", "3.9"]
NATIVE = [one for one in EVERY if not one.startswith("2")]
BOTH = [(one, "spiffe") for one in NATIVE] + [(one, "files") for one in EVERY]


def http(made: TraefikSetup) -> dict[str, Any]:
    """The dynamic part, read."""
    whole = read_yaml(dynamic_part(made))
    assert list(whole) == ["http"]
    (router,), (service,), (transport,) = (list(whole["http"][key].values()) for key in KEYS)
    return {"router": router, "balancer": service["loadBalancer"], "transport": transport}


KEYS = ("routers", "services", "serversTransports")


def durations(value: Any) -> float:
    """Seconds of a duration of Go's, as we write them."""
    found = re.fullmatch(r"([0-9]+)(ms|s)", value)
    assert found, value
    return int(found[1]) / (1000 if found[2] == "ms" else 1)


@pytest.mark.parametrize(("version", "variant"), BOTH)
def test_router_leads_to_the_servers_by_their_transport(version: str, variant: str) -> None:
    made = http(setup(version, variant, name="m", cert_resolver="le", middlewares=("a", "b@c")))
    assert made["router"] == {
        "rule": "Host(`models.ravenhelm.dev`)",
        "entryPoints": ["websecure"],
        "middlewares": ["a", "b@c"],
        "service": "m",
        "tls": {"certResolver": "le"},
    }
    balancer = made["balancer"]
    assert balancer["servers"] == [{"url": "https://192.168.50.26:6701"}]
    assert balancer["serversTransport"] == "m"
    assert balancer["passHostHeader"] is True


def test_several_domains_and_servers() -> None:
    servers = (Server("a", 1), Server("fd00::26", 2))
    made = http(setup(domains=("a.dev", "b.dev"), servers=servers))
    assert made["router"]["rule"] == "Host(`a.dev`) || Host(`b.dev`)"
    urls = [one["url"] for one in made["balancer"]["servers"]]
    assert urls == ["https://a:1", "https://[fd00::26]:2"]


def test_without_middlewares_and_resolver_tls_is_still_on() -> None:
    made = http(setup())
    assert made["router"]["tls"] == {}
    assert "middlewares" not in made["router"]


@pytest.mark.parametrize(
    ("version", "servers", "strategy"),
    [("3.4", 2, "p2c"), ("3.8", 3, "p2c"), ("3.3", 2, None), ("2.11", 2, None), ("3.8", 1, None)],
)
def test_of_several_servers_the_less_busy_one(version: str, servers: int, strategy: str) -> None:
    some = tuple(Server(f"s{number}", 1) for number in range(servers))
    made = http(setup(version, "files", servers=some))
    assert made["balancer"].get("strategy") == strategy


@pytest.mark.parametrize(("version", "variant"), BOTH)
def test_health_is_asked_for_longer_than_the_sidecar_asks(version: str, variant: str) -> None:
    health = http(setup(version, variant))["balancer"]["healthCheck"]
    assert health["path"] == "/health"
    assert durations(health["timeout"]) > 5
    assert durations(health["interval"]) > durations(health["timeout"])
    assert health["followRedirects"] is False


def test_of_a_stream_the_model_server_is_asked() -> None:
    terms = Terms.of(config(backend={"mode": '"stream"', "health_path": '"/api/version"'}))
    made = http(setup(terms=terms))
    assert made["balancer"]["healthCheck"]["path"] == "/api/version"
    assert made["balancer"]["passHostHeader"] is False


@pytest.mark.parametrize("seconds", ["0.5", "5", "30"])
def test_health_is_asked_for_longer_than_its_key_says(seconds: str) -> None:
    terms = Terms.of(config(timeouts={"health": seconds}))
    health = http(setup(terms=terms))["balancer"]["healthCheck"]
    assert float(seconds) < durations(health["timeout"]) < durations(health["interval"])


@pytest.mark.parametrize("idle", ["120", "90", "60", "0.7"])
@pytest.mark.parametrize("variant", ["spiffe", "files"])
def test_traefik_closes_first_and_waits_longest(variant: str, idle: str) -> None:
    made = config(timeouts={"idle": idle, "first_byte": "900"})
    timeouts = http(setup(variant=variant, terms=Terms.of(made)))["transport"]["forwardingTimeouts"]
    assert 0 < durations(timeouts["idleConnTimeout"]) < made.timeouts.idle
    assert durations(timeouts["responseHeaderTimeout"]) > 900 + made.timeouts.backend_connect
    assert durations(timeouts["dialTimeout"]) > 0


# Who is trusted, and what is presented.


@pytest.mark.parametrize("version", NATIVE)
def test_variant_spiffe_names_ids_and_nothing_beside_them(version: str) -> None:
    ids = (SpiffeId.parse(OWN), SpiffeId.parse(f"{OWN}-2"))
    transport = http(setup(version, "spiffe", server_ids=ids))["transport"]
    assert transport.pop("spiffe") == {"ids": [OWN, f"{OWN}-2"]}
    # What Traefik does not let stand beside it.
    assert set(transport) == {"maxIdleConnsPerHost", "forwardingTimeouts"}


@pytest.mark.parametrize("version", EVERY)
def test_variant_files_verifies_chain_and_id(version: str) -> None:
    transport = http(setup(version, "files", certificates="/c"))["transport"]
    pair = {"certFile": "/c/current/svid.pem", "keyFile": "/c/current/svid_key.pem"}
    assert transport["certificates"] == [pair]
    assert transport["rootCAs"] == ["/c/current/svid_bundle.pem"]
    # Without one of these two lines beside it, it would be what its name says.
    assert transport["insecureSkipVerify"] is True
    sans = [{"type": "URI", "value": OWN}]
    by_version = {"peerCertSANs": sans} if version in ("3.8", "3.9") else {"peerCertURI": OWN}
    assert {key: transport[key] for key in transport if key.startswith("peer")} == by_version
    assert "spiffe" not in transport
    assert "minVersion" not in transport


def test_variant_files_compares_with_several_ids_where_it_can() -> None:
    ids = (SpiffeId.parse(OWN), SpiffeId.parse(f"{OWN}-2"))
    transport = http(setup("3.8", "files", server_ids=ids))["transport"]
    assert [one["value"] for one in transport["peerCertSANs"]] == [OWN, f"{OWN}-2"]


@pytest.mark.parametrize(("version", "variant"), BOTH)
def test_traefik_that_ignores_the_trust_domain_is_told_of(version: str, variant: str) -> None:
    ignores = version < "3.6.8" or version == "3.6"
    told = "path alone and not the trust domain" in dynamic_part(setup(version, variant))
    assert told == (ignores and variant == "files")


def test_traps_are_told_where_somebody_would_step_into_them() -> None:
    text = dynamic_part(setup("3.7", "files"))
    for trap in ("`retry`", "`minVersion` without `maxVersion`", "touches this file"):
        assert trap in text
    assert "minVersion" not in dynamic_part(setup("3.6.8", "files"))
    assert "touches this file" not in dynamic_part(setup("3.7", "spiffe"))


# The static part.


@pytest.mark.parametrize(("version", "variant"), BOTH)
def test_static_part_has_what_ours_needs(version: str, variant: str) -> None:
    static = read_yaml(static_part(setup(version, variant, entry_point="on", listen="[::1]:1")))
    assert static["providers"] == {"file": {"directory": "/etc/traefik/dynamic", "watch": True}}
    entry = static["entryPoints"].pop("on")
    assert not static["entryPoints"]
    assert entry["address"] == "[::1]:1"
    timeouts = entry["transport"]["respondingTimeouts"]
    assert durations(timeouts["readTimeout"]) >= 60
    assert timeouts["writeTimeout"] == "0s"
    agent = {"workloadAPIAddr": "unix:///opt/spire/sockets/agent.sock"}
    assert static.get("spiffe") == (agent if variant == "spiffe" else None)


@pytest.mark.parametrize("version", EVERY)
def test_encoded_slash_is_allowed_where_the_patch_refuses_it_and_knows_the_key(
    version: str,
) -> None:
    entry = read_yaml(static_part(setup(version, "files")))["entryPoints"]["websecure"]
    allowed = {"encodedCharacters": {"allowEncodedSlash": True}}
    assert entry.get("http") == (allowed if version in ("2.11.33", "3.6.4") else None)


@pytest.mark.parametrize(
    ("socket", "written"),
    [
        ("unix:/a/b.sock", "unix:///a/b.sock"),
        ("unix:///a%20b/%25%23.sock", "unix:///a%20b/%25%23.sock"),
        ("tcp://127.0.0.1:8081", "tcp://127.0.0.1:8081"),
    ],
)
def test_agent_is_named_as_go_reads_it(socket: str, written: str) -> None:
    made = setup(agent_socket=WorkloadEndpoint.parse(socket))
    assert read_yaml(static_part(made))["spiffe"]["workloadAPIAddr"] == written


def test_directories_are_mounted_and_no_files() -> None:
    mounted = re.findall(r"^#     - (\S+):(\S+):ro$", static_part(setup()), re.MULTILINE)
    assert mounted == [(one, one) for one in ("/etc/traefik/dynamic", "/opt/spire/sockets")]
    mounted = re.findall(r"^#     - ([^:]+):", static_part(setup(variant="files")), re.MULTILINE)
    assert mounted == ["/etc/traefik/dynamic", "/etc/traefik/spiffe"]


# The helper's.


@pytest.mark.parametrize("version", EVERY)
def test_helper_keeps_the_files_and_touches_the_dynamic_part(version: str) -> None:
    made = setup(version, "files", certificates='/c "{{', dynamic_file="/d #/é.yml")
    helper = parse_config(helper_part(made), "helper.toml")
    assert not isinstance(helper, Config)
    assert helper.cert_files
    assert helper.cert_files.directory == '/c "{{'
    (hook,) = helper.after_rotation
    assert hook.touch == "/d #/é.yml"
    assert helper.workload_api.socket == made.agent_socket


def test_helpers_agent_may_have_any_path() -> None:
    socket = WorkloadEndpoint.parse("unix:/a%20b/%25%23.sock")
    document = tomllib.loads(helper_part(setup(variant="files", agent_socket=socket)))
    assert WorkloadEndpoint.parse(document["workload_api"]["socket"]) == socket


# Values from outside.


@pytest.mark.parametrize("odd", ["null", "on", "7"])
def test_names_that_would_be_something_else_stay_names(odd: str) -> None:
    whole = read_yaml(dynamic_part(setup(name=odd, entry_point=odd, cert_resolver=odd)))
    assert [list(whole["http"][key]) for key in KEYS] == [[odd]] * 3
    assert whole["http"]["routers"][odd]["entryPoints"] == [odd]


@pytest.mark.parametrize("odd", ['/a"b', "/{{.Env}}", "/a: b #c", "/a\\", "/é", "/'a'", "/\u2603"])
def test_paths_are_held_whatever_they_are(odd: str) -> None:
    made = setup(variant="files", certificates=odd, dynamic_file=f"{odd}/a.yml")
    assert http(made)["transport"]["rootCAs"] == [f"{odd}/current/svid_bundle.pem"]
    assert read_yaml(static_part(made))["providers"]["file"]["directory"] == odd


@pytest.mark.parametrize(
    ("value", "text"),
    [(90, "90s"), (0.525, "525ms"), (0.75, "750ms"), (86_400.0, "86400s"), (1e-9, "1ms")],
)
def test_duration_is_as_go_reads_it_and_never_none(value: float, text: str) -> None:
    assert seconds(value) == text


def test_lines_fit_a_screen() -> None:
    for part in (dynamic_part, static_part, helper_part):
        for variant in ("spiffe", "files"):
            for version in ("3.6.4", "3.7.9"):
                text = part(setup(version, variant, servers=(Server("a", 1), Server("b", 1))))
                assert max(map(len, text.splitlines())) <= 100
