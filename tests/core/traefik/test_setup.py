"""What a person says about Traefik, and what the configuration adds to it."""

from __future__ import annotations

import pytest

from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.traefik.setup import (
    Server,
    Terms,
    absolute_path,
    domain,
    dynamic_path,
    listen_address,
    listener_port,
    plain_name,
    reference,
)
from tests.core.traefik.setups import OWN, config, setup

# Whatever would end a value, begin another one, or be code.
ODD = ["", " ", "a b", "a\n", "a`b", 'a"b', "a{{b", "a#b", "a\0", "é", "a,b", "a;b", "*", "$a"]


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("192.168.50.26", "192.168.50.26", 6701, "192.168.50.26:6701"),
        ("192.168.50.26:7000", "192.168.50.26", 7000, "192.168.50.26:7000"),
        ("mac-studio", "mac-studio", 6701, "mac-studio:6701"),
        ("GPU1.Lan:1", "gpu1.lan", 1, "gpu1.lan:1"),
        ("fd00::26", "fd00::26", 6701, "[fd00::26]:6701"),
        ("[fd00::26]", "fd00::26", 6701, "[fd00::26]:6701"),
        ("[FD00:0::26]:65535", "fd00::26", 65535, "[fd00::26]:65535"),
    ],
)
def test_server_is_read(text: str, host: str, port: int, shown: str) -> None:
    server = Server.parse(text, 6701)
    assert (server.host, server.port, str(server)) == (host, port, shown)


@pytest.mark.parametrize(
    "text",
    [
        *ODD,
        "https://a",
        "a/b",
        "a:b",
        "a:",
        ":6701",
        "a:0",
        "a:65536",
        "a:6701:1",
        "a@b",
        "-a",
        "a-",
        "a..b",
        "a.",
        ".a",
        "192.168.50",
        "192.168.50.256",
        "192.168.050.26",
        "1:2",
        "[a]:1",
        "[1.2.3.4]x",
        "[fd00::26",
        "fd00::26]",
        "fd00::g",
        "[fe80::1%eth0]:1",
        "fe80::1%eth0",
        "a" * 64,
        ".".join(["a" * 60] * 5),
    ],
    ids=ascii,
)
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Server.parse(text, 6701)


def test_port_has_to_be_said_when_nobody_knows_it() -> None:
    assert Server.parse("a:1", None).port == 1
    with pytest.raises(ValueError, match="expected HOST:PORT, found 'a'"):
        Server.parse("a", None)


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ('"0.0.0.0:6701"', 6701),
        ('["[::]:7000", "127.0.0.1:7001"]', 7000),
        ('["127.0.0.1:0", "[::1]:7001"]', 7001),
        ('"systemd"', None),
        ('"launchd:sidecar"', None),
        ('["systemd", "0.0.0.0:9"]', 9),
        ('"0.0.0.0:0"', None),
    ],
)
def test_port_is_the_listeners(address: str, port: int | None) -> None:
    assert listener_port(config(listener={"address": address})) == port


@pytest.mark.parametrize("text", ["models.ravenhelm.dev", "a", "xn--bcher-kva.example", "1a.dev"])
def test_domain_is_read(text: str) -> None:
    assert domain(text) == text
    assert domain(text.upper()) == text


@pytest.mark.parametrize(
    "text",
    [
        *ODD,
        "a.",
        ".a",
        "a..b",
        "-a",
        "a_b",
        "192.168.50.26",
        "fd00::1",
        "https://a",
        "a:443",
        "*.a",
        "bücher.example",
        "a`) || Host(`b",
        "a" * 64,
    ],
    ids=ascii,
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a domain"):
        domain(text)


@pytest.mark.parametrize("text", ["model-server", "a", "null", "A_1", "7"])
def test_name_is_read(text: str) -> None:
    assert plain_name(text) == reference(text) == text


@pytest.mark.parametrize("text", [*ODD, "-a", "_a", "a@", "a@b@c", "a.b", "a/b", "a" * 64])
def test_what_is_no_name_is_refused(text: str) -> None:
    for read in (plain_name, reference):
        with pytest.raises(ValueError, match="expected a name"):
            read(text)


def test_only_a_reference_may_name_a_provider() -> None:
    assert reference("secure-headers@docker") == "secure-headers@docker"
    with pytest.raises(ValueError, match="expected a name"):
        plain_name("model-server@file")


@pytest.mark.parametrize(
    ("text", "path"), [("/a", "/a"), ("/a/", "/a"), ("/", "/"), ("/é {{", "/é {{")]
)
def test_path_is_read(text: str, path: str) -> None:
    assert absolute_path(text) == path


@pytest.mark.parametrize(
    "text", ["", "a", "./a", "~/a", "/a\n", "/a\0", "/\u2028", "/\udcff"], ids=ascii
)
def test_what_is_no_path_is_refused(text: str) -> None:
    for read in (absolute_path, dynamic_path):
        with pytest.raises(ValueError, match="expected an absolute path"):
            read(text)


@pytest.mark.parametrize("text", ["/a", "/a.toml", "/a.yml.bak", "/yml", "/a.yml/b"])
def test_name_of_the_dynamic_file_is_one_that_traefik_reads(text: str) -> None:
    assert dynamic_path("/a.yml") == "/a.yml"
    assert dynamic_path("/a.yaml") == "/a.yaml"
    with pytest.raises(ValueError, match=r"ends in \.yml"):
        dynamic_path(text)


@pytest.mark.parametrize("text", [":443", "127.0.0.1:8443", "[::1]:8443"])
def test_listen_address_is_read(text: str) -> None:
    assert listen_address(text) == text


@pytest.mark.parametrize("text", [*ODD, "443", ":", ":0", ":65536", "a:443", "1.2.3.4", "::1"])
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected :PORT, IP:PORT"):
        listen_address(text)


# What the configuration says.


def test_defaults_let_traefik_close_first_and_wait_longest() -> None:
    made = config()
    terms = Terms.of(made)
    assert terms.idle == 90 < made.timeouts.idle
    ours = made.limits.queue_seconds + made.timeouts.backend_connect + made.timeouts.first_byte
    assert terms.first_byte > ours
    assert terms.upload == made.timeouts.between_bytes
    assert (terms.health_path, terms.pass_host) == ("/health", True)


@pytest.mark.parametrize("idle", [0.5, 1, 60, 90, 100, 119])
def test_traefik_closes_first_whatever_our_idle_time_is(idle: float) -> None:
    made = config(timeouts={"idle": str(idle)})
    assert Terms.of(made).idle < made.timeouts.idle


def test_upload_is_never_given_less_than_traefiks_own_time() -> None:
    short = {"timeouts": {"between_bytes": "5"}, "limits": {"max_body_bytes": "1000"}}
    assert Terms.of(config(**short)).upload == 60


def test_largest_body_has_time_over_a_slow_line() -> None:
    large = {"max_body_bytes": "1_000_000_000"}
    assert Terms.of(config(limits=large)).upload == 2000
    assert Terms.of(config(limits=large, backend={"mode": '"stream"'})).upload == 300


def test_host_that_nobody_rewrites_is_not_passed_on() -> None:
    assert not Terms.of(config(backend={"host": '"keep"'})).pass_host
    assert Terms.of(config(backend={"host": '"localhost"'})).pass_host


def test_in_mode_stream_the_model_server_is_asked_for_its_health() -> None:
    stream = {"mode": '"stream"', "health_path": '"/health?deep=1"'}
    terms = Terms.of(config(backend=stream))
    assert (terms.health_path, terms.pass_host) == ("/health?deep=1", False)


def test_old_traefik_does_not_ask_the_agent() -> None:
    with pytest.raises(ValueError, match=r"2\.11 does not ask the Workload API.*--variant files"):
        setup("2.11", "spiffe")
    assert setup("2.11", "files")


def test_several_ids_need_a_traefik_that_compares_with_several() -> None:
    ids = (SpiffeId.parse(OWN), SpiffeId.parse(f"{OWN}-2"))
    with pytest.raises(ValueError, match="one --spiffe-id, or --variant spiffe"):
        setup("3.7.9", "files", server_ids=ids)
    assert setup("3.8.0", "files", server_ids=ids)
    assert setup("3.0.0", "spiffe", server_ids=ids)
