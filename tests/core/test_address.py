"""Addresses: parsed by the letter, never resolved, never repaired; loopback by the address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.address import Address, WorkloadEndpoint, address_text

TOO_LONG_A_NUMBER = "9" * 5000


@pytest.mark.parametrize(
    ("text", "address", "family", "sockaddr"),
    [
        pytest.param(
            "127.0.0.1:11434",
            Address(ip_address("127.0.0.1"), 11434),
            "AF_INET",
            ("127.0.0.1", 11434),
            id="IPv4",
        ),
        pytest.param(
            "0.0.0.0:0", Address(ip_address("0.0.0.0"), 0), "AF_INET", ("0.0.0.0", 0), id="any"
        ),
        pytest.param(
            "[::1]:65535",
            Address(ip_address("::1"), 65535),
            "AF_INET6",
            ("::1", 65535),
            id="IPv6, highest port",
        ),
        pytest.param("unix:/a/b", Address(None, 0, "/a/b"), "AF_UNIX", "/a/b", id="Unix socket"),
        pytest.param("unix:/a b", Address(None, 0, "/a b"), "AF_UNIX", "/a b", id="with a space"),
    ],
)
def test_address_is_read_and_printed_back(
    text: str, address: Address, family: str, sockaddr: object
) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.family == family
    assert address.sockaddr == sockaddr


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("11434", id="port only"),
        pytest.param(":11434", id="no address"),
        pytest.param("*:11434", id="star"),
        pytest.param("127.0.0.1", id="no port"),
        pytest.param("127.0.0.1:", id="empty port"),
        pytest.param("127.0.0.1:65536", id="port over 65535"),
        pytest.param("127.0.0.1:-1", id="negative port"),
        pytest.param("127.0.0.1:+1", id="signed port"),
        pytest.param("127.0.0.1: 1", id="space in the port"),
        pytest.param("127.0.0.1:1_0", id="underscore in the port"),
        pytest.param("127.0.0.1:0x1", id="hexadecimal port"),
        pytest.param("127.0.0.1:http", id="name of a port"),
        pytest.param("127.0.0.1:1.0", id="port with a fraction"),
        pytest.param("127.0.0.1:٣", id="digit of another alphabet"),
        pytest.param("127.0.0.1:²", id="superscript digit"),
        pytest.param("127.0.0.1:1\n", id="trailing newline"),
        pytest.param(" 127.0.0.1:1", id="space in front"),
        pytest.param("localhost:11434", id="name"),
        pytest.param("model.example.org:1", id="domain name"),
        pytest.param("127.1:1", id="short IPv4"),
        pytest.param("2130706433:1", id="IPv4 as one number"),
        pytest.param("0x7f000001:1", id="IPv4 as a hexadecimal number"),
        pytest.param("0177.0.0.1:1", id="octal IPv4"),
        pytest.param("127.0.0.256:1", id="byte over 255"),
        pytest.param("127.0.0.1/8:1", id="network"),
        pytest.param("[127.0.0.1]:1", id="IPv4 in brackets"),
        pytest.param("::1:11434", id="IPv6 without brackets"),
        pytest.param("[::1]", id="IPv6 without a port"),
        pytest.param("[::1:11434", id="one bracket"),
        pytest.param("[[::1]]:1", id="two brackets"),
        pytest.param("[]:1", id="empty brackets"),
        pytest.param("[localhost]:1", id="name in brackets"),
        pytest.param("http://127.0.0.1:1", id="URL"),
        pytest.param("tcp://127.0.0.1:1", id="the form of the Workload API"),
        pytest.param("127.0.0.1:1/path", id="path"),
        pytest.param("unix:", id="Unix socket without a path"),
        pytest.param("unix:a", id="relative path"),
        pytest.param("unix:./a", id="path from here"),
        pytest.param("unix:~/a", id="path from home"),
        pytest.param("unix:@a", id="abstract socket"),
        pytest.param("unix:\x00a", id="abstract socket by NUL"),
        pytest.param("unix:/a\x00b", id="path that the system cuts at the NUL"),
        pytest.param("unix://host/a", id="Unix socket of a host"),
        pytest.param("UNIX:/a", id="upper case"),
        pytest.param("/a", id="path alone"),
        pytest.param(f"127.0.0.1:{TOO_LONG_A_NUMBER}", id="port of 5000 digits"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("127.0.0.1", id="no port"),
        pytest.param("127.0.0.1:65536", id="port over 65535"),
        pytest.param(f"127.0.0.1:{TOO_LONG_A_NUMBER}", id="port of 5000 digits"),
        pytest.param("localhost:80", id="name"),
        pytest.param("unix:a", id="relative path"),
        pytest.param("::1:80", id="IPv6 without brackets"),
    ],
)
def test_message_says_what_was_expected(text: str) -> None:
    # A problem reads "found <text>, expected <message without its first word>".
    with pytest.raises(ValueError, match=r"^expected "):
        Address.parse(text)


def test_name_is_answered_with_an_address_to_write() -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        Address.parse("localhost:11434")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("127.0.0.1:1", id="IPv4"),
        pytest.param("127.255.255.254:1", id="end of the IPv4 block"),
        pytest.param("[::1]:1", id="IPv6"),
        pytest.param("[::ffff:127.0.0.1]:1", id="IPv4 in IPv6"),
        pytest.param("unix:/a", id="Unix socket"),
    ],
)
def test_loopback_is_loopback(text: str) -> None:
    assert Address.parse(text).is_loopback


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0.0.0.0:1", id="any IPv4"),
        pytest.param("[::]:1", id="any IPv6"),
        pytest.param("10.0.0.1:1", id="private"),
        pytest.param("192.168.1.1:1", id="the LAN"),
        pytest.param("169.254.1.1:1", id="link-local"),
        pytest.param("100.64.0.1:1", id="carrier"),
        pytest.param("8.8.8.8:1", id="the internet"),
        pytest.param("126.255.255.255:1", id="below the block"),
        pytest.param("128.0.0.1:1", id="above the block"),
        pytest.param("224.0.0.1:1", id="multicast"),
        pytest.param("255.255.255.255:1", id="broadcast"),
        pytest.param("[::2]:1", id="next to IPv6 loopback"),
        pytest.param("[fe80::1]:1", id="IPv6 link-local"),
        pytest.param("[fe80::1%lo]:1", id="link-local on lo"),
        pytest.param("[fd00::1]:1", id="IPv6 private"),
        pytest.param("[::ffff:10.0.0.1]:1", id="private IPv4 in IPv6"),
        pytest.param("[::ffff:0.0.0.0]:1", id="any IPv4 in IPv6"),
        pytest.param("[::127.0.0.1]:1", id="IPv4-compatible form, which is routed"),
        pytest.param("[64:ff9b::7f00:1]:1", id="loopback behind NAT64"),
        pytest.param("[2002:7f00:1::]:1", id="loopback in 6to4"),
    ],
)
def test_everything_else_is_not_loopback(text: str) -> None:
    assert not Address.parse(text).is_loopback


@given(
    st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map("[{}]".format)),
    st.integers(0, 65535),
)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_every_ip_and_port_is_read_and_printed_back(host: str, port: int) -> None:
    assert Address.parse(str(Address.parse(f"{host}:{port}"))) == Address.parse(f"{host}:{port}")
    assert Address.parse(f"{host}:{port}").port == port


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        pytest.param("unix:/a/b.sock", "unix:/a/b.sock", "unix:/a/b.sock", id="unix, one slash"),
        pytest.param("unix:///a/b.sock", "unix:/a/b.sock", "unix:/a/b.sock", id="three slashes"),
        pytest.param("unix:/a%20b", "unix:/a b", "unix:/a b", id="percent-encoding, as in a URI"),
        pytest.param("tcp://127.0.0.1:80", "127.0.0.1:80", "tcp://127.0.0.1:80", id="tcp, IPv4"),
        pytest.param("tcp://[::1]:80", "[::1]:80", "tcp://[::1]:80", id="tcp, IPv6"),
        pytest.param("tcp://10.0.0.1:80", "10.0.0.1:80", "tcp://10.0.0.1:80", id="remote agent"),
    ],
)
def test_endpoint_is_read(text: str, address: str, shown: str) -> None:
    endpoint = WorkloadEndpoint.parse(text)
    assert endpoint.address == Address.parse(address)
    assert str(endpoint) == shown


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("/a.sock", id="path without a scheme"),
        pytest.param("a.sock", id="relative path without a scheme"),
        pytest.param("http://127.0.0.1:80", id="another scheme"),
        pytest.param("127.0.0.1:80", id="address without a scheme"),
        pytest.param("unix:", id="no path"),
        pytest.param("unix://", id="no path, empty authority"),
        pytest.param("unix:a.sock", id="relative path"),
        pytest.param("unix://a.sock", id="path as the authority"),
        pytest.param("unix://host/a.sock", id="authority"),
        pytest.param("unix:/a?b", id="query"),
        pytest.param("unix:/a?", id="empty query"),
        pytest.param("unix:/a#b", id="fragment"),
        pytest.param("unix:/a#", id="empty fragment"),
        pytest.param("unix:/a\nb", id="newline, which urlsplit drops"),
        pytest.param("unix:/a\tb", id="tab, which urlsplit drops"),
        pytest.param(" unix:/a", id="space in front, which urlsplit drops"),
        pytest.param("unix:/a\x00b", id="NUL"),
        pytest.param("unix:/a%00b", id="percent-encoded NUL"),
        pytest.param("unix:/a%ffb", id="percent-encoding that is no UTF-8"),
        pytest.param("tcp://127.0.0.1", id="no port"),
        pytest.param("tcp://127.0.0.1:", id="empty port"),
        pytest.param("tcp://127.0.0.1:0", id="port 0 is nobody's"),
        pytest.param("tcp://127.0.0.1:65536", id="port over 65535"),
        pytest.param("tcp://127.0.0.1:80\n", id="trailing newline"),
        pytest.param("tcp://localhost:80", id="name"),
        pytest.param("tcp://:80", id="no host"),
        pytest.param("tcp:127.0.0.1:80", id="no slashes"),
        pytest.param("tcp://127.0.0.1:80/", id="slash behind"),
        pytest.param("tcp://127.0.0.1:80/foo", id="path"),
        pytest.param("tcp://127.0.0.1:80?a", id="query of tcp"),
        pytest.param("tcp://user@127.0.0.1:80", id="userinfo"),
        pytest.param("tcp://@127.0.0.1:80", id="empty userinfo"),
        pytest.param("tcp://::1:80", id="IPv6 without brackets"),
        pytest.param("tcp://[::1:80", id="one bracket"),
        pytest.param("tcp:/a.sock", id="path for tcp"),
    ],
)
def test_any_other_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        WorkloadEndpoint.parse(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
        (("::", 80, 0, 0), "[::]:80"),
        ("/run/peers.sock", "unix:/run/peers.sock"),
        ("", "unix:"),
        (b"\0abstract", "unix:\0abstract"),
    ],
    ids=[
        "IPv4",
        "IPv6",
        "IPv4 by a socket for both",
        "scope",
        "any",
        "Unix",
        "no name",
        "abstract",
    ],
)
def test_socket_names_are_shown_as_addresses(name: str, text: str) -> None:
    assert address_text(name) == text
