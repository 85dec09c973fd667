"""What a person may write for the target of a probe, and what it is told instead."""

from __future__ import annotations

import pytest

from sidecar.core.probe.target import ProbeTarget, ProbeTargetError, parse_header, where


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        pytest.param("https://a.b:6701/health", "a.b", 6701, "/health", id="a name"),
        pytest.param("https://192.168.50.26:6701/x", "192.168.50.26", 6701, "/x", id="IPv4"),
        pytest.param("https://[2001:db8::1]:6701/x", "2001:db8::1", 6701, "/x", id="IPv6"),
        pytest.param("https://[fe80::1%25en0]:1/x", "fe80::1%en0", 1, "/x", id="IPv6 with a zone"),
        pytest.param("https://host", "host", 443, "/", id="https has a port of its own"),
        pytest.param("https://host:6701", "host", 6701, "/", id="no path"),
        pytest.param("https://host:6701?q=1", "host", 6701, "/?q=1", id="a query and no path"),
        pytest.param("https://host:1/a?b=c&d", "host", 1, "/a?b=c&d", id="a query"),
        pytest.param("https://host:1/a#b", "host", 1, "/a", id="a fragment stays here"),
        pytest.param("HTTPS://HOST:1/A", "host", 1, "/A", id="schemes and names have no case"),
        pytest.param("https://h:1/v1/models/llama3%3A8b", "h", 1, "/v1/models/llama3%3A8b", id="%"),
        pytest.param("tls://host:6701", "host", 6701, "", id="handshake alone"),
        pytest.param("tls://[::1]:6701/", "::1", 6701, "", id="handshake alone, a slash"),
    ],
)
def test_target_is_read(text: str, host: str, port: int, path: str) -> None:
    target = ProbeTarget.parse(text)
    assert (target.host, target.port, target.path) == (host, port, path)
    assert target.is_handshake_only is text.startswith("tls")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("http://host:6701/", "plain text", id="plain HTTP, and why not"),
        pytest.param("host:6701", "https://", id="no scheme"),
        pytest.param("spiffe://host/path", "https://", id="another scheme"),
        pytest.param("https://", "https://host:port", id="no host"),
        pytest.param("https:///path", "https://host:port", id="no host but a path"),
        pytest.param("https://a b:1/", "printable ASCII", id="a space"),
        pytest.param("https://host:1/\x1b[31m", "printable ASCII", id="an escape"),
        pytest.param("https://h\u00f6st:1/", "punycode", id="a name that is not ASCII"),
        pytest.param("https://host:1/\r\nX: y", "printable ASCII", id="a second line"),
        pytest.param("https://ho$t:1/", "a name", id="a name that is none"),
        pytest.param("https://host:0/", "1 to 65535", id="port 0"),
        pytest.param("https://host:99999/", "0-65535", id="a port that is none"),
        pytest.param("https://host:abc/", "abc", id="a port of letters"),
        pytest.param("https://[::1/", "https://host:port", id="an open bracket"),
        pytest.param("https://[host]:1/", "https://host:port", id="brackets around a name"),
        pytest.param("https://[fe80::1%25e$]:1/", "https://host:port", id="a zone that is none"),
        pytest.param("tls://host", "tls://host:port", id="handshake without a port"),
        pytest.param("tls://host:1/health", "no path", id="handshake with a path"),
        pytest.param("tls://host:1/?a", "no path", id="handshake with a query"),
    ],
)
def test_what_is_no_target_is_told(text: str, says: str) -> None:
    with pytest.raises(ProbeTargetError) as caught:
        ProbeTarget.parse(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("text", ["https://me:s3cret@host:1/", "http://me:s3cret@host/?k=s3cret"])
def test_password_in_a_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ProbeTargetError) as caught:
        ProbeTarget.parse(text)
    assert "s3cret" not in f"{caught.value.message} {caught.value.hint}"


def test_query_is_sent_and_not_shown() -> None:
    target = ProbeTarget.parse("https://host:6701/a?key=s3cret")
    assert target.path == "/a?key=s3cret"
    assert str(target) == "https://host:6701/a?..."


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("https://host:6701/", "host:6701"),
        ("https://host:443/", "host"),
        ("https://[::1]:6701/", "[::1]:6701"),
        # RFC 6874 4: a zone is of no use to anybody else.
        ("https://[fe80::1%25en0]:6701/", "[fe80::1]:6701"),
    ],
)
def test_host_header(text: str, authority: str) -> None:
    assert ProbeTarget.parse(text).authority == authority


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("https://host/", True),
        ("https://10.0.0.1/", False),
        ("https://[::1]/", False),
        ("https://[fe80::1%25en0]/", False),
    ],
)
def test_only_names_have_to_be_looked_up(text: str, is_name: bool) -> None:
    assert ProbeTarget.parse(text).is_name is is_name


def test_target_is_shown_as_it_can_be_written() -> None:
    for text in ("https://host:6701/a", "https://[fe80::1%25en0]:1/x", "tls://[::1]:6701"):
        assert str(ProbeTarget.parse(text)) == text


def test_where_puts_brackets_around_ipv6() -> None:
    assert (where("::1", 1), where("h", 1)) == ("[::1]:1", "h:1")


def test_header_is_read() -> None:
    assert parse_header("X-Name:  a: b ") == ("X-Name", "a: b")
    assert parse_header("Empty:") == ("Empty", "")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Authorization Bearer s3cret", id="no colon"),
        pytest.param(": s3cret", id="no name"),
        pytest.param("X Y: s3cret", id="a space in the name"),
        pytest.param("X-Y: s3cret\r\nZ: s3cret", id="a second line"),
        pytest.param("X-Y: s3cret\x00", id="NUL"),
        pytest.param("X-Y: \u20ac s3cret", id="beyond Latin-1"),
        pytest.param("Content-Length: 5", id="framing"),
        pytest.param("transfer-encoding: chunked", id="framing, in lower case"),
        pytest.param("Connection: keep-alive", id="of the connection"),
        pytest.param("Expect: 100-continue", id="waits"),
    ],
)
def test_what_is_no_header_is_refused_and_no_value_shown(text: str) -> None:
    with pytest.raises(ProbeTargetError) as caught:
        parse_header(text)
    assert "s3cret" not in f"{caught.value.message} {caught.value.hint}"
