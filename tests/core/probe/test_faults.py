"""What kept a probe from an answer: each fault names its hop, says what was met, and what to do."""

from __future__ import annotations

import pytest

from sidecar.core.probe import faults
from sidecar.core.probe.faults import ConnectEnd
from sidecar.core.probe.report import Fault, Hop
from sidecar.core.probe.target import ProbeTarget
from sidecar.core.spiffe_id import SpiffeId

TARGET = ProbeTarget.parse("https://gpu-1:6701/health")
OWN = SpiffeId.parse("spiffe://e.org/workload/traefik")
EVIL = "\x1b[2J\u202e"


@pytest.mark.parametrize(
    ("fault", "hop", "code"),
    [
        pytest.param(faults.not_resolved("h", EVIL), Hop.NAME, "not_resolved", id="a name"),
        pytest.param(
            faults.plain_http(TARGET, b"HTTP/1.1 200 \x1b\x9b\r\n", on_loopback=False),
            Hop.TLS,
            "plain_http",
            id="HTTP",
        ),
        pytest.param(faults.not_tls(TARGET, b"SSH-2.0\x1b"), Hop.TLS, "not_tls", id="no TLS"),
        pytest.param(faults.handshake_silent(TARGET, 3), Hop.TLS, "silent", id="silence"),
        pytest.param(faults.handshake_closed(TARGET, EVIL), Hop.TLS, "closed", id="closed"),
        pytest.param(faults.handshake_alert(TARGET, EVIL), Hop.TLS, "alert", id="an alert"),
        pytest.param(faults.handshake_failed(TARGET, EVIL), Hop.TLS, "protocol", id="other TLS"),
        pytest.param(faults.own_svid_refused(OWN, EVIL), Hop.OWN_SVID, "alert", id="our SVID"),
        pytest.param(
            faults.closed_after_handshake(EVIL, OWN, asked=True), Hop.OWN_SVID, "closed", id="end"
        ),
        pytest.param(faults.not_http(TARGET, EVIL), Hop.ANSWER, "not_http", id="no HTTP"),
        pytest.param(faults.broke_off(EVIL, 5), Hop.ANSWER, "broke_off", id="broke off"),
        pytest.param(faults.silent(5, None), Hop.ANSWER, "silent", id="no first byte"),
        pytest.param(faults.silent(5, 3), Hop.ANSWER, "silent", id="no next byte"),
        pytest.param(faults.request_stuck(5, 1, 2), Hop.ANSWER, "request_stuck", id="stuck"),
    ],
)
def test_fault_names_its_hop_and_a_remedy_and_nothing_a_terminal_acts_on(
    fault: Fault, hop: Hop, code: str
) -> None:
    assert (fault.hop, fault.code) == (hop, code)
    assert fault.message.isprintable()
    assert fault.hint
    assert fault.hint.isprintable()


@pytest.mark.parametrize("end", list(ConnectEnd))
def test_each_way_not_to_connect_has_its_code_and_its_remedy(end: ConnectEnd) -> None:
    fault = faults.not_connected(TARGET, end, ["10.0.0.1:6701: one", "[::1]:6701: two"])
    assert (fault.hop, fault.code) == (Hop.CONNECT, end.value)
    assert "10.0.0.1:6701: one; [::1]:6701: two" in fault.message
    hints = {faults.not_connected(TARGET, one, []).hint for one in ConnectEnd}
    assert len(hints) >= len(ConnectEnd) - 1  # a reset and what nobody knows have the same
    assert fault.hint


def test_missing_port_is_pointed_out() -> None:
    without = ProbeTarget.parse("https://gpu-1/health")
    for end in (ConnectEnd.REFUSED, ConnectEnd.TIMEOUT):
        assert "6701" in faults.not_connected(without, end, []).hint
    other = ProbeTarget.parse("https://gpu-1:7000/health")
    assert "6701" not in faults.not_connected(other, ConnectEnd.REFUSED, []).hint


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nOllama is running", "Ollama is running", id="Ollama"),
        pytest.param(
            b"HTTP/1.1 404 No\r\nServer: uvicorn\r\n\r\n", "uvicorn", id="a Server header"
        ),
        pytest.param(b"HTTP/1.0 200 Fine\r\n\r\n", "HTTP/1.0 200 Fine", id="a status line"),
    ],
)
def test_plain_server_is_told_loudly_with_what_it_is(said: bytes, shown: str) -> None:
    for on_loopback in (True, False):
        fault = faults.plain_http(TARGET, said, on_loopback=on_loopback)
        assert fault.message.startswith("PLAIN TEXT")
        assert shown in fault.message


def test_only_what_others_reach_is_exposed() -> None:
    exposed = faults.plain_http(TARGET, b"", on_loopback=False)
    at_home = faults.plain_http(TARGET, b"", on_loopback=True)
    assert "whoever asks" in exposed.message
    assert "take it off the network" in exposed.hint
    assert "whoever asks" not in at_home.message
    assert "where it belongs" in at_home.hint


def test_answer_in_http_is_known() -> None:
    assert faults.speaks_http(b"HTTP/1.1 400 Bad Request\r\n")
    assert not faults.speaks_http(b"SSH-2.0-x\r\n")
    assert not faults.speaks_http(b"")


def test_tls_server_that_answers_plain_http_with_a_400_is_no_plain_server() -> None:
    # Go, nginx and Apache do so on their TLS ports.
    assert not faults.serves_http(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request")
    assert faults.serves_http(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param("unknown ca", "trust bundle", id="unknown authority"),
        pytest.param("certificate expired", "clocks", id="expired"),
        pytest.param("internal error", "trust bundle", id="a sidecar's"),
        pytest.param("bad certificate", "log", id="no reason given"),
    ],
)
def test_alert_about_our_svid_has_the_remedy_for_it(words: str, says: str) -> None:
    fault = faults.own_svid_refused(OWN, words)
    assert f"refused our SVID {OWN}" in fault.message
    assert words in fault.message
    assert says in fault.hint


def test_alert_about_something_else_is_not_taken_for_a_refusal_of_our_svid() -> None:
    assert "refused our SVID" not in faults.own_svid_refused(OWN, "decode error").message


def test_peer_that_wants_no_certificate_is_no_sidecar() -> None:
    assert "no sidecar" in faults.closed_after_handshake("x", OWN, asked=False).hint
    assert "no sidecar" not in faults.closed_after_handshake("x", OWN, asked=True).hint


@pytest.mark.parametrize(
    ("at", "hop"),
    [
        ("identity", Hop.IDENTITY),
        ("name", Hop.NAME),
        ("connect", Hop.CONNECT),
        ("handshake", Hop.TLS),
        ("first byte", Hop.ANSWER),
    ],
)
def test_time_that_is_over_is_the_fault_of_the_hop_that_took_it(at: str, hop: Hop) -> None:
    fault = faults.too_slow(2, at)
    assert (fault.hop, fault.code) == (hop, "too_slow")
    assert at in fault.message
