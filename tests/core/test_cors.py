"""CORS: a page reads our answers only if its origin is listed, and caches are told so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.cors import Cors, cors_problems, is_same_origin

CHAT, OTHER = "https://chat.example.org", "http://localhost:3000"
LISTED = Cors(allow_origins=(CHAT, OTHER))
ANYONE = Cors(allow_origins=("*",))
ALLOW_ORIGIN, CREDENTIALS = "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"

# The headers of an answer.


@pytest.mark.parametrize("origin", [CHAT, OTHER])
def test_listed_origin_is_told_by_name(origin: str) -> None:
    assert LISTED.headers(origin) == [("Vary", "Origin"), (ALLOW_ORIGIN, origin)]


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("null", id="sandboxed page"),
        pytest.param("*", id="star"),
        pytest.param("https://evil.example.org", id="another host"),
        pytest.param("http://chat.example.org", id="another scheme"),
        pytest.param("https://chat.example.org:8443", id="another port"),
        pytest.param("https://chat.example.org:443", id="default port"),
        pytest.param("http://localhost", id="no port"),
        pytest.param("https://CHAT.example.org", id="upper case"),
        pytest.param("https://chat.example.org/", id="slash"),
        pytest.param("https://chat.example.org.evil.org", id="as a prefix"),
        pytest.param("https://x.chat.example.org", id="below it"),
        pytest.param("https://xchat.example.org", id="as a suffix"),
        pytest.param("https://chatxexample.org", id="dot is a dot"),
        pytest.param(f"{CHAT}, {OTHER}", id="two at once"),
        pytest.param(f" {CHAT}", id="space in front"),
        pytest.param(f"{CHAT}\n", id="newline behind"),
    ],
)
def test_other_origins_are_told_nothing_but_that_it_depends(origin: str | None) -> None:
    cors = replace(LISTED, allow_credentials=True, expose_headers=("X-Request-Id",))
    assert cors.headers(origin) == [("Vary", "Origin")]
    assert cors.preflight(origin, "POST", None) is None


@pytest.mark.parametrize("origin", [None, "null", CHAT])
def test_star_is_the_same_for_everybody_so_caches_need_no_hint(origin: str | None) -> None:
    cors = replace(ANYONE, expose_headers=("X-Request-Id",))
    assert cors.headers(origin) == [
        (ALLOW_ORIGIN, "*"),
        ("Access-Control-Expose-Headers", "X-Request-Id"),
    ]


def test_credentials_and_headers_are_for_the_listed_origin() -> None:
    cors = replace(LISTED, allow_credentials=True, expose_headers=("X-Request-Id", "Retry-After"))
    assert cors.headers(CHAT) == [
        ("Vary", "Origin"),
        (ALLOW_ORIGIN, CHAT),
        (CREDENTIALS, "true"),
        ("Access-Control-Expose-Headers", "X-Request-Id, Retry-After"),
    ]


def test_star_never_goes_with_credentials_even_if_nobody_looked_for_problems() -> None:
    cors = replace(ANYONE, allow_credentials=True)
    preflight = cors.preflight(CHAT, "POST", None)
    assert preflight is not None
    for headers in (cors.headers(CHAT), preflight):
        assert (ALLOW_ORIGIN, "*") in headers
        assert CREDENTIALS not in dict(headers)


# The preflight.


def test_preflight_tells_what_is_allowed_and_for_how_long() -> None:
    assert LISTED.preflight(CHAT, "POST", "authorization,content-type") == [
        ("Vary", "Origin"),
        (ALLOW_ORIGIN, CHAT),
        ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
        (
            "Access-Control-Allow-Headers",
            "Authorization, Content-Type, Accept, User-Agent, X-Api-Key",
        ),
        ("Access-Control-Max-Age", "86400"),
    ]


def test_preflight_of_a_listed_origin_tells_credentials_and_exposes_nothing() -> None:
    cors = replace(LISTED, allow_credentials=True, expose_headers=("X-Request-Id",))
    headers = dict(cors.preflight(CHAT, "GET", None) or [])
    assert headers[CREDENTIALS] == "true"
    assert "Access-Control-Expose-Headers" not in headers


@pytest.mark.parametrize("seconds", [0, 600])
def test_age_is_told_also_when_it_is_nothing(seconds: int) -> None:
    headers = replace(LISTED, max_age_seconds=seconds).preflight(CHAT, "GET", None)
    assert ("Access-Control-Max-Age", str(seconds)) in (headers or [])


@pytest.mark.parametrize(
    ("cors", "method", "headers"),
    [
        pytest.param(LISTED, "GET", None, id="no header"),
        pytest.param(LISTED, "GET", "", id="empty header"),
        pytest.param(LISTED, "POST", "CONTENT-TYPE", id="names ignore case"),
        pytest.param(LISTED, "POST", "accept, \tcontent-type", id="spaces between names"),
        pytest.param(LISTED, "POST", "accept,,content-type,", id="empty elements"),
        pytest.param(ANYONE, "POST", "authorization", id="any origin, a listed header"),
        pytest.param(
            replace(ANYONE, allow_headers=("*",)), "GET", "x-stainless-os", id="any header"
        ),
        pytest.param(
            replace(ANYONE, allow_headers=("*", "Authorization")),
            "GET",
            "authorization,x-stainless-os",
            id="any header and the one that must be named",
        ),
        pytest.param(replace(ANYONE, allow_methods=("*",)), "DELETE", None, id="any method"),
        pytest.param(replace(LISTED, allow_methods=("GET",)), "HEAD", None, id="GET has HEAD"),
        pytest.param(replace(LISTED, allow_methods=("HEAD",)), "HEAD", None, id="HEAD alone"),
    ],
)
def test_preflight_is_allowed(cors: Cors, method: str, headers: str | None) -> None:
    assert cors.preflight(CHAT, method, headers) is not None


@pytest.mark.parametrize(
    ("cors", "method", "headers"),
    [
        pytest.param(LISTED, None, None, id="not a preflight"),
        pytest.param(LISTED, None, "content-type", id="headers alone"),
        pytest.param(replace(ANYONE, allow_methods=("*",)), None, None, id="none, with a star"),
        pytest.param(LISTED, "", None, id="empty method"),
        pytest.param(LISTED, "DELETE", None, id="method not listed"),
        pytest.param(LISTED, "post", None, id="methods keep case"),
        pytest.param(LISTED, "*", None, id="star as a method"),
        pytest.param(LISTED, "GET, POST", None, id="two methods"),
        pytest.param(LISTED, "POST", "x-other", id="header not listed"),
        pytest.param(LISTED, "POST", "content-type,x-other", id="one of two not listed"),
        pytest.param(LISTED, "POST", "x-stainless", id="less than a pattern"),
        pytest.param(LISTED, "POST", "my-x-stainless-os", id="more in front of a pattern"),
        pytest.param(LISTED, "POST", "x-stainless-o s", id="no name, by a pattern"),
        pytest.param(LISTED, "POST", "x-stainless-\xe4", id="no ASCII, by a pattern"),
        pytest.param(LISTED, "POST", "*", id="star as a header"),
        pytest.param(LISTED, "POST", "content-type accept", id="no comma"),
        pytest.param(replace(LISTED, allow_methods=()), "GET", None, id="no methods"),
        pytest.param(replace(LISTED, allow_methods=("POST",)), "HEAD", None, id="HEAD, no GET"),
        pytest.param(replace(LISTED, allow_methods=("HEAD",)), "GET", None, id="GET, only HEAD"),
        pytest.param(replace(LISTED, allow_headers=()), "GET", "accept", id="no headers"),
        pytest.param(
            replace(ANYONE, allow_headers=("*",)), "GET", "Authorization", id="star has one gap"
        ),
    ],
)
def test_preflight_is_not_allowed(cors: Cors, method: str | None, headers: str | None) -> None:
    assert cors.preflight(CHAT, method, headers) is None


STAINLESS = [
    "arch",
    "lang",
    "os",
    "package-version",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
]
OF_SDKS = ",".join(f"x-stainless-{name}" for name in STAINLESS)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(f"authorization,content-type,{OF_SDKS}", id="openai, JavaScript"),
        pytest.param(
            "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,content-type,"
            f"user-agent,x-api-key,{OF_SDKS},x-stainless-helper,x-stainless-helper-method",
            id="anthropic, JavaScript",
        ),
        pytest.param(
            "authorization,openai-beta,openai-organization,openai-project,x-stainless-async,"
            "x-stainless-raw-response,x-stainless-read-timeout",
            id="openai, Python in a browser",
        ),
        pytest.param("x-stainless-poll-helper,x-stainless-custom-poll-interval", id="polling"),
    ],
)
def test_preflights_of_the_sdks_are_granted_by_default(headers: str) -> None:
    found = dict(LISTED.preflight(CHAT, "POST", headers) or [])
    allowed = {name.lower() for name in found["Access-Control-Allow-Headers"].split(", ")}
    assert set(headers.split(",")) <= allowed
    assert "*" not in "".join(allowed), "browsers know no patterns"


def test_private_network_is_granted_to_whoever_is_granted_the_rest_and_asks() -> None:
    name = "Access-Control-Allow-Private-Network"
    assert (name, "true") in (LISTED.preflight(CHAT, "POST", None, private_network=True) or [])
    assert name not in dict(LISTED.preflight(CHAT, "POST", None) or [])
    assert LISTED.preflight("https://evil.example", "POST", None, private_network=True) is None


@pytest.mark.parametrize(
    ("origin", "method", "headers", "missing"),
    [
        pytest.param(CHAT, "POST", "accept", None, id="nothing"),
        pytest.param("https://evil.example", "POST", None, "allow_origins", id="origin"),
        pytest.param(None, "POST", None, "allow_origins", id="no origin"),
        pytest.param(CHAT, "DELETE", None, "DELETE is not one of allow_methods", id="method"),
        pytest.param(CHAT, "POST", "x-a,accept,x-b", "x-a, x-b is not in allow_headers", id="two"),
        pytest.param(CHAT, "POST", "x-\x1b[2J", r"x-\x1b[2j is not in allow_headers", id="escape"),
        pytest.param(CHAT, "POST", ",".join(f"x-{n}" for n in range(99)), "and 94 more", id="many"),
        pytest.param(CHAT, "POST", "x" * 9000, "x" * 64 + " is not in allow_headers", id="long"),
    ],
)
def test_what_is_missing_is_told_in_words(
    origin: str | None, method: str, headers: str | None, missing: str | None
) -> None:
    found = LISTED.missing(origin, method, headers)
    assert found is None if missing is None else found is not None and missing in found
    assert (LISTED.preflight(origin, method, headers) is None) is (missing is not None)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        pytest.param("https://a.example", "a.example", True, id="name"),
        pytest.param("https://A.example", "a.EXAMPLE", True, id="case"),
        pytest.param("http://a.example", "a.example", True, id="TLS ends before us"),
        pytest.param("https://a.example", "a.example:443", True, id="default port in Host"),
        pytest.param("https://a.example:8443", "a.example:8443", True, id="port"),
        pytest.param("http://[::1]:3000", "[::1]:3000", True, id="IPv6"),
        pytest.param("https://a.example:8443", "a.example", False, id="another port"),
        pytest.param("https://a.example", "a.example:8443", False, id="another port in Host"),
        pytest.param(
            "https://a.example", "a.example:80", False, id="default port of another scheme"
        ),
        pytest.param("https://b.example", "a.example", False, id="another name"),
        pytest.param("https://a.example.evil.example", "a.example", False, id="longer name"),
        pytest.param("https://evil-a.example", "a.example", False, id="name in front"),
        pytest.param("https://a.example/", "a.example", False, id="path"),
        pytest.param("https://x@a.example", "a.example", False, id="user"),
        pytest.param("ftp://a.example", "a.example", False, id="another scheme"),
        pytest.param("null", "null", False, id="null"),
        pytest.param("null", "a.example", False, id="null, a host"),
        pytest.param("", "", False, id="nothing"),
        pytest.param("https://a.example", "", False, id="no host"),
        pytest.param("https://a.example https://a.example", "a.example", False, id="two"),
    ],
)
def test_origin_is_the_hosts_own(origin: str, host: str, same: bool) -> None:
    assert is_same_origin(origin, host) is same


# What is wrong with a configuration.


@pytest.mark.parametrize(
    ("origin", "hint"),
    [
        pytest.param("https://ui.example/", 'did you mean "https://ui.example"?', id="slash"),
        pytest.param("https://ui.example/app?x", 'did you mean "https://ui.example"?', id="path"),
        pytest.param(
            "HTTPS://UI.example:443", 'did you mean "https://ui.example"?', id="all of it"
        ),
        pytest.param("https://me@ui.example", 'did you mean "https://ui.example"?', id="user"),
        pytest.param("ui.example:3000", 'did you mean "https://ui.example:3000"?', id="no scheme"),
        pytest.param("http://localhost:80", 'did you mean "http://localhost"?', id="default port"),
        pytest.param("null", "pages in a sandbox and files are null", id="null"),
        pytest.param("https://*.example", "there are no patterns", id="star"),
        pytest.param("https://ch\xe4t.example", "xn--", id="not in ASCII"),
        pytest.param("https://a b", None, id="nothing that can be guessed"),
    ],
)
def test_odd_origin_is_explained(origin: str, hint: str | None) -> None:
    (problem,) = cors_problems(Cors(allow_origins=(CHAT, origin)))
    assert problem.hint is None if hint is None else hint in (problem.hint or "")


@pytest.mark.parametrize(
    "cors",
    [
        pytest.param(LISTED, id="listed origins"),
        pytest.param(ANYONE, id="star"),
        pytest.param(replace(LISTED, allow_credentials=True), id="credentials for listed ones"),
        pytest.param(Cors(("http://127.0.0.1:8080", "http://[::1]:3000")), id="addresses"),
        pytest.param(Cors(("https://a_b.example.org:65535",)), id="highest port"),
        pytest.param(Cors(("http://chat.example.org",)), id="plain, no port"),
        pytest.param(Cors(("http://a:443", "https://a:80")), id="other scheme's default port"),
        pytest.param(Cors(("chrome-extension://abcdefgh", "tauri://localhost")), id="schemes"),
        pytest.param(
            Cors(("*",), allow_methods=("*",), allow_headers=("*",), expose_headers=("*",)),
            id="stars everywhere",
        ),
        pytest.param(replace(LISTED, max_age_seconds=0), id="no age"),
    ],
)
def test_configuration_is_fine(cors: Cors) -> None:
    assert cors_problems(cors) == []


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param("", id="empty"),
        pytest.param("null", id="null"),
        pytest.param("chat.example.org", id="no scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("://chat.example.org", id="empty scheme"),
        pytest.param("https:chat.example.org", id="no slashes"),
        pytest.param("https://chat.example.org/", id="trailing slash"),
        pytest.param("https://chat.example.org/app", id="path"),
        pytest.param("https://chat.example.org?x", id="query"),
        pytest.param("https://chat.example.org#x", id="fragment"),
        pytest.param("https://me@chat.example.org", id="user"),
        pytest.param("https://Chat.example.org", id="upper case host"),
        pytest.param("HTTPS://chat.example.org", id="upper case scheme"),
        pytest.param("https://*.example.org", id="star for a host"),
        pytest.param("*://chat.example.org", id="star for a scheme"),
        pytest.param("https://chat.example.org:*", id="star for a port"),
        pytest.param("**", id="two stars"),
        pytest.param("https://chat..example.org", id="empty label"),
        pytest.param("https://chät.example.org", id="not in ASCII"),
        pytest.param("https://chat.example.org:443", id="default port of https"),
        pytest.param("http://chat.example.org:80", id="default port of http"),
        pytest.param("https://chat.example.org:", id="empty port"),
        pytest.param("https://chat.example.org:0", id="port 0"),
        pytest.param("https://chat.example.org:08443", id="port with a zero in front"),
        pytest.param("https://chat.example.org:65536", id="port too high"),
        pytest.param(f"https://chat.example.org:{'9' * 5000}", id="port far too high"),
        pytest.param("http://::1", id="IPv6 without brackets"),
        pytest.param(f"{CHAT} {OTHER}", id="two in one"),
        pytest.param(f"{CHAT}\n", id="newline behind"),
        pytest.param(f"{CHAT}\r\nX-Evil: 1", id="another header"),
    ],
)
def test_origin_that_no_browser_sends_is_a_problem(origin: str) -> None:
    (problem,) = cors_problems(Cors(allow_origins=(CHAT, origin)))
    assert (problem.key, problem.found) == ("allow_origins", repr(origin))


@pytest.mark.parametrize(
    ("cors", "key"),
    [
        pytest.param(Cors(()), "allow_origins", id="no origin"),
        pytest.param(replace(LISTED, allow_methods=("get",)), "allow_methods", id="lower case"),
        pytest.param(replace(LISTED, allow_methods=("",)), "allow_methods", id="empty method"),
        pytest.param(
            replace(LISTED, allow_methods=("GET, POST",)), "allow_methods", id="two methods"
        ),
        pytest.param(replace(LISTED, allow_headers=("",)), "allow_headers", id="empty header"),
        pytest.param(replace(LISTED, allow_headers=("a b",)), "allow_headers", id="space"),
        pytest.param(
            replace(LISTED, allow_headers=("A\r\nB",)), "allow_headers", id="newline in a name"
        ),
        pytest.param(replace(LISTED, expose_headers=("A:",)), "expose_headers", id="colon"),
        pytest.param(replace(LISTED, max_age_seconds=-1), "max_age_seconds", id="age below 0"),
    ],
)
def test_value_that_browsers_cannot_use_is_a_problem(cors: Cors, key: str) -> None:
    assert [problem.key for problem in cors_problems(cors)] == [key]


@pytest.mark.parametrize(
    "key", ["allow_origins", "allow_methods", "allow_headers", "expose_headers"]
)
def test_star_with_credentials_is_a_problem(key: str) -> None:
    cors = replace(LISTED, allow_credentials=True, **{key: ("*",)})  # type: ignore[arg-type]
    (problem,) = cors_problems(cors)
    assert (problem.key, problem.found) == (key, '"*"')
    assert "allow_credentials" in problem.expected


def test_all_problems_are_told_at_once() -> None:
    cors = Cors(("*", "null"), ("get",), ("a b",), ("c d",), True, -1)
    keys = [problem.key for problem in cors_problems(cors)]
    assert keys == [
        "allow_origins",
        "allow_methods",
        "allow_headers",
        "expose_headers",
        "max_age_seconds",
        "allow_origins",
    ]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.text(max_size=20) | st.sampled_from([CHAT, OTHER, f"{CHAT}.evil.org", "*", "null"]),
    st.sampled_from(["GET", "POST", "PUT", "*", ""]) | st.text(max_size=5),
    st.text(max_size=20) | st.sampled_from(["accept", "x,accept", "*"]),
)
def test_nothing_of_a_request_but_a_listed_origin_comes_back(
    origin: str, method: str, headers: str
) -> None:
    told = LISTED.headers(origin) + (LISTED.preflight(origin, method, headers) or [])
    constant = set(LISTED.preflight(CHAT, "GET", None) or []) - {(ALLOW_ORIGIN, CHAT)}
    assert set(told) - constant <= {(ALLOW_ORIGIN, CHAT), (ALLOW_ORIGIN, OTHER)}
    if origin not in LISTED.allow_origins:
        assert told == [("Vary", "Origin")]
