"""SPIFFE-ID 2: what is a SPIFFE ID, what is not, and that parsing repairs nothing."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.spiffe_id import SpiffeId, TrustDomain

DOMAIN_LETTERS = string.ascii_lowercase + string.digits + "._-"
SEGMENT_LETTERS = string.ascii_letters + string.digits + "._-"
LONGEST_DOMAIN = "d" * 255
PREFIX = "spiffe://example.org/"


@pytest.mark.parametrize(
    ("text", "domain", "path"),
    [
        pytest.param("spiffe://example.org/a", "example.org", "/a", id="one segment"),
        pytest.param("spiffe://example.org/a/b/c", "example.org", "/a/b/c", id="segments"),
        pytest.param("spiffe://example.org", "example.org", "", id="no path: the trust domain"),
        pytest.param("spiffe://e/A.b_c-9", "e", "/A.b_c-9", id="all kinds of letters"),
        pytest.param("spiffe://e/...", "e", "/...", id="three dots are a name"),
        pytest.param("spiffe://e/.a", "e", "/.a", id="a dot first"),
        pytest.param("spiffe://10.0.0.1/a", "10.0.0.1", "/a", id="IPv4 address as a name"),
        pytest.param("spiffe://a_b-c.d/x", "a_b-c.d", "/x", id="underscore and dash in the domain"),
        pytest.param(f"spiffe://{LONGEST_DOMAIN}/a", LONGEST_DOMAIN, "/a", id="domain of 255"),
    ],
)
def test_valid_id_is_taken_apart_and_printed_back(text: str, domain: str, path: str) -> None:
    spiffe_id = SpiffeId.parse(text)
    assert spiffe_id == SpiffeId(TrustDomain(domain), path)
    assert str(spiffe_id) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("example.org/a", id="no scheme"),
        pytest.param("/a", id="path only"),
        pytest.param("https://example.org/a", id="another scheme"),
        pytest.param("spiffe:/example.org/a", id="one slash"),
        pytest.param("spiffe:example.org/a", id="no slashes"),
        pytest.param("SPIFFE://example.org/a", id="upper case scheme"),
        pytest.param("spiffe://Example.org/a", id="upper case domain"),
        pytest.param("spiffe://", id="nothing after the scheme"),
        pytest.param("spiffe:///a", id="empty domain"),
        pytest.param("spiffe://example.org:8080/a", id="port"),
        pytest.param("spiffe://example.org:/a", id="empty port"),
        pytest.param("spiffe://user@example.org/a", id="userinfo"),
        pytest.param("spiffe://@example.org/a", id="empty userinfo"),
        pytest.param("spiffe://user:pw@example.org/a", id="userinfo with password"),
        pytest.param("spiffe://[::1]/a", id="IPv6 address"),
        pytest.param("spiffe://exämple.org/a", id="letter of another alphabet in the domain"),
        pytest.param("spiffe://example%2eorg/a", id="percent-encoding in the domain"),
        pytest.param("spiffe://example.org?a", id="query without a path"),
        pytest.param("spiffe://example.org#a", id="fragment without a path"),
        pytest.param("spiffe://*/a", id="star as a domain"),
        pytest.param("spiffe://spiffe://example.org/a", id="scheme twice"),
        pytest.param(PREFIX, id="slash and no path"),
        pytest.param(PREFIX + "a/", id="trailing slash"),
        pytest.param(PREFIX + "/a", id="empty first segment"),
        pytest.param(PREFIX + "a//b", id="empty segment"),
        pytest.param(PREFIX + ".", id="dot"),
        pytest.param(PREFIX + "..", id="dot dot"),
        pytest.param(PREFIX + "a/./b", id="dot inside"),
        pytest.param(PREFIX + "a/../b", id="dot dot inside"),
        pytest.param(PREFIX + "a%20b", id="percent-encoding"),
        pytest.param(PREFIX + "%61", id="percent-encoded letter"),
        pytest.param(PREFIX + "a?b=c", id="query"),
        pytest.param(PREFIX + "a?", id="empty query"),
        pytest.param(PREFIX + "a#b", id="fragment"),
        pytest.param(PREFIX + "a:b", id="colon"),
        pytest.param(PREFIX + "a;b", id="parameter"),
        pytest.param(PREFIX + "a@b", id="at sign"),
        pytest.param(PREFIX + "a\\b", id="backslash"),
        pytest.param(PREFIX + "*", id="star"),
        pytest.param(PREFIX + "a b", id="space"),
        pytest.param(PREFIX + "a\n", id="trailing newline"),
        pytest.param("spiffe://example.org\n", id="trailing newline after the domain"),
        pytest.param("spiffe://example.org\n/a", id="newline inside the domain"),
        pytest.param(PREFIX + "a\nb", id="newline inside a segment"),
        pytest.param(PREFIX + "a\x00", id="NUL"),
        pytest.param(PREFIX + "a\x7f", id="control character"),
        pytest.param(" " + PREFIX + "a", id="space in front"),
        pytest.param(PREFIX + "a\t", id="tab behind"),
        pytest.param(PREFIX + "é", id="letter of another alphabet"),
        pytest.param(PREFIX + "\u212a", id="a sign that folds to k"),
        pytest.param(PREFIX + "\u0663", id="digit of another alphabet"),
        pytest.param(PREFIX + "a\u200b", id="invisible character"),
        pytest.param(f"spiffe://{LONGEST_DOMAIN}d/a", id="domain of 256"),
        pytest.param(PREFIX + "a" * (2049 - len(PREFIX)), id="2049 bytes"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId.parse(text)


def test_id_of_exactly_2048_bytes_is_valid() -> None:
    text = PREFIX + "a" * (2048 - len(PREFIX))
    assert len(text) == 2048
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("example.org", id="name"),
        pytest.param("spiffe://example.org", id="ID without a path"),
    ],
)
def test_trust_domain_is_a_name_or_its_id(text: str) -> None:
    assert TrustDomain.parse(text) == TrustDomain("example.org")
    assert str(TrustDomain.parse(text)) == "example.org"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("spiffe://", id="scheme only"),
        pytest.param("spiffe://example.org/", id="slash"),
        pytest.param("spiffe://example.org/a", id="path"),
        pytest.param("example.org/a", id="name with a path"),
        pytest.param("https://example.org", id="another scheme"),
        pytest.param("spiffe://spiffe://example.org", id="scheme twice"),
        pytest.param("Example.org", id="upper case"),
        pytest.param("example.org\n", id="trailing newline"),
        pytest.param("example.org:80", id="port"),
        pytest.param("d" * 256, id="256 bytes"),
    ],
)
def test_anything_else_is_no_trust_domain(text: str) -> None:
    with pytest.raises(InvalidSpiffeIdError):
        TrustDomain.parse(text)


def test_path_is_case_sensitive() -> None:
    assert SpiffeId.parse(PREFIX + "a") != SpiffeId.parse(PREFIX + "A")


def test_id_never_equals_text() -> None:
    spiffe_id: object = SpiffeId.parse(PREFIX + "a")
    trust_domain: object = TrustDomain("example.org")
    assert spiffe_id != PREFIX + "a"
    assert trust_domain != "example.org"


def test_message_quotes_and_cuts_what_was_found() -> None:
    with pytest.raises(InvalidSpiffeIdError) as refused:
        SpiffeId.parse("spiffe://example.org/\n" + "x" * 1000)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500


@given(
    st.text(DOMAIN_LETTERS, min_size=1, max_size=40),
    st.lists(st.text(SEGMENT_LETTERS, min_size=1, max_size=20), max_size=5),
)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_ids_made_by_the_rules_parse_and_print_back(domain: str, segments: list[str]) -> None:
    text = "/".join([f"spiffe://{domain}", *(s for s in segments if s.strip("."))])
    assert str(SpiffeId.parse(text)) == text


@given(st.text(alphabet="spife:/A.%?#*\n -_9é", max_size=30).map("spiffe://".__add__))
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_whatever_parses_prints_back_to_itself(text: str) -> None:
    try:
        spiffe_id = SpiffeId.parse(text)
    except InvalidSpiffeIdError:
        return
    assert str(spiffe_id) == text
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id
    assert set(text.removeprefix("spiffe://")) <= set(SEGMENT_LETTERS + "/")
