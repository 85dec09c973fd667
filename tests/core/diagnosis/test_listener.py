from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from sidecar.core.address import Address, ListenAddress
from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.host_facts import Firewall, ListeningSocket, Process, ServiceState
from sidecar.core.diagnosis.listener import Daemon, EndToEnd, ListenerFacts, holders, judge_listener
from sidecar.core.status import Reason
from tests.core.diagnosis.good import LISTENER, ROOT, report, troubles, verdict_of

FAIL, WARN, SKIPPED = Verdict.FAIL, Verdict.WARN, Verdict.SKIPPED
NGINX = Process(9, 0, "nginx")
AWAY = Daemon(None, "Connection refused", "127.0.0.1:6703")


def changed(**changes: Any) -> ListenerFacts:
    return replace(LISTENER, **changes)


def at(*addresses: str) -> ListenerFacts:
    return changed(addresses=tuple(map(Address.parse, addresses)), holders=())


def saying(**changes: object) -> ListenerFacts:
    return changed(daemon=replace(LISTENER.daemon, report=report(**changes)))


def end(hop: str, **changes: Any) -> ListenerFacts:
    return changed(end_to_end=EndToEnd(hop, "what happened", "what to do"), **changes)


def test_a_good_listener_is_content() -> None:
    assert troubles(judge_listener(LISTENER)) == {}
    assert verdict_of(judge_listener(LISTENER), "listener.port") is Verdict.OK


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(
            changed(daemon=AWAY, holders=()), "listener.daemon", FAIL, id="it does not run"
        ),
        pytest.param(
            changed(daemon=replace(AWAY, pid=77)),
            "listener.daemon",
            FAIL,
            id="it runs and its admin listener is elsewhere",
        ),
        pytest.param(
            saying(ready=False, reasons=(Reason("backend_down", "refused"),)),
            "listener.ready",
            FAIL,
            id="not ready",
        ),
        pytest.param(
            saying(warnings=(Reason("hook_failed", "nginx"),)), "listener.ready", WARN, id="warned"
        ),
        pytest.param(
            changed(installed_version="2.0.0"), "listener.version", WARN, id="an older one runs"
        ),
        pytest.param(at("192.168.99.1:6701"), "listener.address", FAIL, id="no address of ours"),
        pytest.param(at("100.64.1.2:6701"), "listener.address", FAIL, id="overlay is down"),
        pytest.param(
            changed(holders=(ListeningSocket(ip_address("0.0.0.0"), 6701, NGINX),)),
            "listener.port",
            FAIL,
            id="somebody else has the port",
        ),
        pytest.param(
            changed(
                holders=(ListeningSocket(ip_address("192.168.50.20"), 6701, NGINX),), daemon=AWAY
            ),
            "listener.port",
            FAIL,
            id="somebody else has it on one address",
        ),
        pytest.param(at("0.0.0.0:443"), "listener.privileges", FAIL, id="a privileged port"),
        pytest.param(at("127.0.0.1:6701", "[::1]:6701"), "listener.exposure", WARN, id="loopback"),
        pytest.param(
            changed(firewalls=(Firewall("ufw", True, "shut", "sudo ufw allow"),)),
            "listener.firewall",
            WARN,
            id="a firewall is in the way",
        ),
        pytest.param(
            changed(firewalls=(Firewall("nftables", None, "unclear"),)),
            "listener.firewall",
            WARN,
            id="a firewall that is not understood",
        ),
        *(
            pytest.param(end(hop), "listener.handshake", FAIL, id=f"handshake: {hop}")
            for hop in ("connect", "tls", "peer", "own_svid")
        ),
        *(
            pytest.param(end(hop), "listener.request", FAIL, id=f"request: {hop}")
            for hop in ("backend", "answer", "sidecar", "limits")
        ),
    ],
)
def test_each_fault_has_one_name(facts: ListenerFacts, name: str, verdict: Verdict) -> None:
    found = troubles(judge_listener(facts))
    found.pop("listener.daemon", None) if name == "listener.port" else None
    assert found == {name: verdict}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        pytest.param(end("policy"), "listener.request", id="we are no peer of ours"),
        pytest.param(end("identity"), "listener.handshake", id="nothing to ask with"),
        pytest.param(changed(end_to_end=Unknown("x")), "listener.request", id="not asked"),
        pytest.param(changed(daemon=AWAY), "listener.ready", id="nobody to ask"),
        pytest.param(changed(own_ips=Unknown("x")), "listener.address", id="addresses"),
        pytest.param(changed(holders=Unknown("x")), "listener.port", id="sockets"),
        pytest.param(
            changed(holders=(ListeningSocket(ip_address("0.0.0.0"), 6701),), daemon=AWAY),
            "listener.port",
            id="somebody has it, and only root sees who",
        ),
        pytest.param(changed(firewalls=Unknown("x")), "listener.firewall", id="firewall"),
        pytest.param(
            changed(addresses=(ListenAddress.parse("systemd"),)), "listener.port", id="inherited"
        ),
        pytest.param(changed(addresses=()), "listener.port", id="helper mode"),
    ],
)
def test_what_is_not_known_is_skipped(facts: ListenerFacts, name: str) -> None:
    assert verdict_of(judge_listener(facts), name) is SKIPPED


def test_stream_mode_closes_on_who_is_not_admitted() -> None:
    assert troubles(judge_listener(end("own_svid", http=False))) == {}


def test_the_port_is_ours_without_a_look_at_processes() -> None:
    facts = changed(holders=(ListeningSocket(ip_address("0.0.0.0"), 6701),))
    assert verdict_of(judge_listener(facts), "listener.port") is Verdict.OK


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(changed(account=ROOT, addresses=at("0.0.0.0:443").addresses), id="root"),
        pytest.param(replace(at("0.0.0.0:443"), wildcard_is_free=True), id="any address on macOS"),
        pytest.param(replace(at("0.0.0.0:443"), unprivileged_from=80), id="lowered on Linux"),
    ],
)
def test_low_ports_are_allowed_where_the_system_allows_them(facts: ListenerFacts) -> None:
    assert verdict_of(judge_listener(facts), "listener.privileges") is Verdict.OK


def test_macos_asks_for_privilege_on_one_address() -> None:
    facts = replace(at("192.168.50.20:443"), wildcard_is_free=True)
    assert verdict_of(judge_listener(facts), "listener.privileges") is FAIL


def test_without_admin_a_process_on_the_port_is_enough() -> None:
    facts = changed(daemon=Daemon(None, pid=77))
    assert troubles(judge_listener(facts)) == {}
    assert verdict_of(judge_listener(facts), "listener.daemon") is Verdict.OK


def test_a_helper_without_admin_is_known_by_its_service() -> None:
    helper = changed(addresses=(), daemon=Daemon(None))
    assert verdict_of(judge_listener(helper), "listener.daemon") is Verdict.OK
    silent = replace(helper, service=Unknown("no systemd"))
    assert verdict_of(judge_listener(silent), "listener.daemon") is SKIPPED


def test_a_service_that_ended_says_how() -> None:
    service = ServiceState("x.service", installed=True, running=False, ended="status 78")
    facts = changed(daemon=AWAY, service=service)
    (found,) = [one for one in judge_listener(facts) if one.name == "listener.daemon"]
    assert "status 78" in found.seen


def test_listener_on_a_unix_socket_alone_is_for_this_host_and_as_meant() -> None:
    facts = changed(addresses=(Address.parse("unix:/run/peers.sock"),))
    assert verdict_of(judge_listener(facts), "listener.exposure") is Verdict.OK


@pytest.mark.parametrize(
    ("address", "socket", "collides"),
    [
        pytest.param("0.0.0.0:80", "192.168.1.5", True, id="any, and one address"),
        pytest.param("192.168.1.5:80", "0.0.0.0", True, id="one address, and any"),
        pytest.param("192.168.1.5:80", "192.168.1.6", False, id="two addresses"),
        pytest.param("192.168.1.5:81", "0.0.0.0", False, id="another port"),
        pytest.param("[::]:80", "0.0.0.0", True, id="any of both families"),
        pytest.param("[::1]:80", "0.0.0.0", False, id="another family"),
        pytest.param("0.0.0.0:0", "0.0.0.0", False, id="a port that the system chooses"),
    ],
)
def test_holders_are_those_in_the_way(address: str, socket: str, collides: bool) -> None:
    found = holders(Address.parse(address), (ListeningSocket(ip_address(socket), 80),))
    assert bool(found) == collides
