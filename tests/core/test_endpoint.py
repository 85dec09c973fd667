"""Endpoints: which paths can be read, which endpoints can be written, and which match which."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.endpoint import (
    ANY_ENDPOINT,
    MAX_LENGTH,
    METHODS,
    BadPathError,
    Endpoint,
    RequestPath,
)

bounded = settings(max_examples=600, deadline=None, derandomize=True, database=None)


def matches(endpoint: str, method: str, raw: str) -> bool:
    return Endpoint.parse(endpoint).matches(method, RequestPath.parse(raw))


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        pytest.param("/", ("",), id="root"),
        pytest.param("/a", ("a",), id="one segment"),
        pytest.param("/a/b", ("a", "b"), id="two segments"),
        pytest.param("/a/", ("a", ""), id="slash at the end"),
        pytest.param("/a.b/.c/d./...", ("a.b", ".c", "d.", "..."), id="dots among others"),
        pytest.param("/~a-b_c:8b@x", ("~a-b_c:8b@x",), id="signs of a model's name"),
        pytest.param("/a;x=1", ("a;x=1",), id="parameters stay in the segment"),
        pytest.param("/%61%62", ("ab",), id="letters encoded"),
        pytest.param("/a%2Fb/c", ("a/b", "c"), id="encoded slash parts no segments"),
        pytest.param("/a%2fb", ("a/b",), id="encoded slash, small hexadecimal"),
        pytest.param("/a%2Eb%2e", ("a.b.",), id="encoded dots among others"),
        pytest.param("/a%20b", ("a b",), id="space encoded"),
        pytest.param("/%E2%82%AC", ("\u20ac",), id="UTF-8"),
        pytest.param("/a%3Fb%23c", ("a?b#c",), id="encoded marks of query and fragment"),
        pytest.param("/100%25", ("100%",), id="percent sign encoded"),
        pytest.param("/%25zz", ("%zz",), id="percent sign that begins no second escape"),
        pytest.param("/{a}", ("{a}",), id="braces are text in a request"),
        pytest.param("/*", ("*",), id="star is text in a request"),
    ],
)
def test_path_is_decoded_once(raw: str, segments: tuple[str, ...]) -> None:
    path = RequestPath.parse(raw)
    assert (path.raw, path.segments) == (raw, segments)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("", id="empty"),
        pytest.param("a", id="no slash"),
        pytest.param("*", id="asterisk form"),
        pytest.param("models:80", id="authority form"),
        pytest.param("http://models/a", id="absolute form"),
        pytest.param(" /a", id="space in front"),
        pytest.param("/a ", id="space behind"),
        pytest.param("/a b", id="space"),
        pytest.param("/a\tb", id="tab"),
        pytest.param("/a\n", id="line feed behind"),
        pytest.param("/a\r\n", id="line end behind"),
        pytest.param("/a\x00", id="NUL"),
        pytest.param("/a\x7f", id="DEL"),
        pytest.param("/\u00e9", id="not ASCII"),
        pytest.param("/\uff0e\uff0e/a", id="full-width dots"),
        pytest.param("/a?b", id="query"),
        pytest.param("/a#b", id="fragment"),
        pytest.param("//", id="two slashes alone"),
        pytest.param("//a", id="two slashes first"),
        pytest.param("/a//b", id="two slashes"),
        pytest.param("/a//", id="two slashes last"),
        pytest.param("/.", id="dot"),
        pytest.param("/./a", id="dot first"),
        pytest.param("/a/./b", id="dot inside"),
        pytest.param("/a/.", id="dot last"),
        pytest.param("/a/./", id="dot and slash last"),
        pytest.param("/..", id="two dots"),
        pytest.param("/../a", id="two dots first"),
        pytest.param("/a/../b", id="two dots inside"),
        pytest.param("/a/..", id="two dots last"),
        pytest.param("/a/../", id="two dots and slash last"),
        pytest.param("/a/..;/b", id="two dots and a semicolon"),
        pytest.param("/a/..;x=1/b", id="two dots with a parameter"),
        pytest.param("/a/.;/b", id="a dot with a parameter"),
        pytest.param("/%2e", id="encoded dot"),
        pytest.param("/a/%2e%2e/b", id="encoded dots"),
        pytest.param("/a/%2E%2E/b", id="encoded dots, large hexadecimal"),
        pytest.param("/a/.%2e/b", id="one of two dots encoded"),
        pytest.param("/a/%2e./b", id="the other of two dots encoded"),
        pytest.param("/a/..%3bx/b", id="dots with an encoded semicolon"),
        pytest.param("/a/%2e%2e%3b/b", id="all of it encoded"),
        pytest.param("/a/../%62", id="dots beside another segment's escape"),
        pytest.param("/a%2f..%2fb", id="dots between encoded slashes"),
        pytest.param("/a%2f..", id="dots behind an encoded slash"),
        pytest.param("/..%2fb", id="dots before an encoded slash"),
        pytest.param("/a%2f.%2fb", id="a dot between encoded slashes"),
        pytest.param("/a%2f%2fb", id="two encoded slashes"),
        pytest.param("/a/%2fb", id="a slash and an encoded one"),
        pytest.param("/a%2f/b", id="an encoded slash and one"),
        pytest.param("/a%2f", id="encoded slash last"),
        pytest.param("/%2f", id="encoded slash alone"),
        pytest.param("/a\\b", id="backslash"),
        pytest.param("/a%5cb", id="encoded backslash"),
        pytest.param("/a/..\\b", id="dots and a backslash"),
        pytest.param("/a/..%5cb", id="dots and an encoded backslash"),
        pytest.param("/a%", id="percent sign last"),
        pytest.param("/a%2", id="half an escape last"),
        pytest.param("/a%2/b", id="half an escape"),
        pytest.param("/a%2g", id="escape of no hexadecimal digit"),
        pytest.param("/a%u002f", id="escape of another grammar"),
        pytest.param("/a%%32e", id="escape within an escape"),
        pytest.param("/%252e%252e/a", id="dots encoded twice"),
        pytest.param("/a%252fb", id="slash encoded twice"),
        pytest.param("/a%2561", id="letter encoded twice"),
        pytest.param("/%25252e", id="encoded three times"),
        pytest.param("/%25%32%65", id="encoded twice, digits too"),
        pytest.param("/a%00", id="encoded NUL"),
        pytest.param("/a%0d%0ab", id="encoded line end"),
        pytest.param("/a%7f", id="encoded DEL"),
        pytest.param("/a%c2%85", id="encoded control character outside of ASCII"),
        pytest.param("/a%e2%80%ae", id="encoded change of direction"),
        pytest.param("/a%ff", id="not UTF-8"),
        pytest.param("/%c0%ae%c0%ae/a", id="overlong dots"),
        pytest.param("/a%c0%afb", id="overlong slash"),
        pytest.param("/a%ed%a0%80", id="surrogate"),
        pytest.param("/a%e2%82", id="UTF-8 broken off"),
        pytest.param("/a%e2/%82%ac", id="UTF-8 over two segments"),
    ],
)
def test_path_that_could_mean_another_one_is_refused(raw: str) -> None:
    with pytest.raises(BadPathError):
        RequestPath.parse(raw)


def test_path_that_is_longer_than_any_endpoint_needs_is_refused() -> None:
    assert RequestPath.parse("/" + "x" * (MAX_LENGTH - 1)).segments == ("x" * (MAX_LENGTH - 1),)
    for text in ("x", "/", "%61"):
        with pytest.raises(BadPathError, match="at most 2048 characters"):
            RequestPath.parse("/" + text * MAX_LENGTH)


def test_refusal_of_a_path_shows_the_beginning_of_it_and_no_control_character() -> None:
    with pytest.raises(BadPathError) as refused:
        RequestPath.parse("/\x1b[2J" + "a" * 5000)
    assert "\\x1b" in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("GET /", id="root"),
        pytest.param("GET /a/b", id="literals"),
        pytest.param("POST /a/", id="slash at the end"),
        pytest.param("DELETE /a/{b}", id="capture"),
        pytest.param("PUT /a/{b}/c", id="capture inside"),
        pytest.param("PATCH /a/{b_1}/{c...}", id="two captures, one for the rest"),
        pytest.param("OPTIONS /{all...}", id="everything of a method"),
        pytest.param("HEAD /a.b/~c-d_e/f:g@h/i;j=k", id="signs"),
        pytest.param("*", id="star"),
    ],
)
def test_endpoint_is_read_and_keeps_its_text(text: str) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint.text == str(endpoint) == text
    assert endpoint == Endpoint.parse(text)
    assert endpoint.takes_rest == text.endswith("...}")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(" ", id="space"),
        pytest.param("**", id="two stars"),
        pytest.param("* ", id="star and space"),
        pytest.param("* /a", id="star as a method"),
        pytest.param("/a", id="no method"),
        pytest.param("GET", id="no path"),
        pytest.param("GET ", id="empty path"),
        pytest.param("GET a", id="path without a slash"),
        pytest.param("GET  /a", id="two spaces"),
        pytest.param(" GET /a", id="space in front"),
        pytest.param("GET /a ", id="space behind"),
        pytest.param("GET\t/a", id="tab"),
        pytest.param("GET /a\n", id="line feed behind"),
        pytest.param("GET /a /b", id="two paths"),
        pytest.param("GET,POST /a", id="two methods"),
        pytest.param("get /a", id="method in small letters"),
        pytest.param("Get /a", id="method in mixed letters"),
        pytest.param("CONNECT /a", id="CONNECT"),
        pytest.param("TRACE /a", id="TRACE"),
        pytest.param("PROPFIND /a", id="method that is not known"),
        pytest.param("GET *", id="star as a path"),
        pytest.param("GET /*", id="star as a segment"),
        pytest.param("GET /a*", id="star in a segment"),
        pytest.param("GET /a/**", id="two stars as the rest"),
        pytest.param("GET http://models/a", id="absolute form"),
        pytest.param("GET /a?b", id="query"),
        pytest.param("GET /a#b", id="fragment"),
        pytest.param("GET //a", id="two slashes first"),
        pytest.param("GET /a//b", id="two slashes"),
        pytest.param("GET /a//", id="two slashes last"),
        pytest.param("GET /.", id="dot"),
        pytest.param("GET /a/../b", id="two dots"),
        pytest.param("GET /a/./b", id="dot inside"),
        pytest.param("GET /a%2Fb", id="escape"),
        pytest.param("GET /%61", id="escape of a letter"),
        pytest.param("GET /a\\b", id="backslash"),
        pytest.param("GET /\u00e9", id="not ASCII"),
        pytest.param("GET /a\x00", id="NUL"),
        pytest.param("GET /{}", id="capture without a name"),
        pytest.param("GET /{...}", id="rest without a name"),
        pytest.param("GET /{A}", id="capital as a name"),
        pytest.param("GET /{1a}", id="digit first"),
        pytest.param("GET /{a-b}", id="dash in a name"),
        pytest.param("GET /{a", id="open brace"),
        pytest.param("GET /a}", id="closing brace"),
        pytest.param("GET /{{a}}", id="two braces"),
        pytest.param("GET /x{a}", id="capture behind text"),
        pytest.param("GET /{a}x", id="capture before text"),
        pytest.param("GET /{a}{b}", id="two captures in a segment"),
        pytest.param("GET /{a..}", id="two dots in a capture"),
        pytest.param("GET /{a....}", id="four dots in a capture"),
        pytest.param("GET /{a...}/b", id="rest that is not last"),
        pytest.param("GET /{a...}/", id="slash behind the rest"),
        pytest.param("GET /{a...}/{b...}", id="two rests"),
        pytest.param("preset:ollama", id="preset is none"),
    ],
)
def test_endpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("endpoint", "method", "raw"),
    [
        pytest.param("GET /", "GET", "/", id="root"),
        pytest.param("GET /a/b", "GET", "/a/b", id="literals"),
        pytest.param("GET /a/b", "GET", "/%61/b", id="letter encoded"),
        pytest.param("GET /a/b", "HEAD", "/a/b", id="HEAD where GET is"),
        pytest.param("HEAD /a", "HEAD", "/a", id="HEAD alone"),
        pytest.param("OPTIONS /a", "OPTIONS", "/a", id="OPTIONS"),
        pytest.param("POST /a/", "POST", "/a/", id="slash at the end of both"),
        pytest.param("GET /a/{b}", "GET", "/a/x", id="capture"),
        pytest.param("GET /a/{b}", "HEAD", "/a/x", id="capture and HEAD"),
        pytest.param("GET /a/{b}", "GET", "/a/x%2Fy", id="capture takes an encoded slash"),
        pytest.param("GET /a/{b}", "GET", "/a/x%2Ey", id="capture takes an encoded dot"),
        pytest.param("GET /a/{b}/c", "GET", "/a/x%2Fy/c", id="capture inside takes one, too"),
        pytest.param("GET /a/{b}/", "GET", "/a/x/", id="capture and a slash at the end"),
        pytest.param("GET /{a}/{b}", "GET", "/x/y", id="two captures"),
        pytest.param("GET /a/{b...}", "GET", "/a/x", id="rest of one"),
        pytest.param("GET /a/{b...}", "GET", "/a/x/y/z", id="rest of three"),
        pytest.param("GET /a/{b...}", "GET", "/a/x%2Fy/z", id="rest takes an encoded slash"),
        pytest.param("GET /{all...}", "GET", "/a", id="rest of everything"),
        pytest.param("*", "GET", "/", id="star and the root"),
        pytest.param("*", "DELETE", "/a/b/", id="star and any path"),
        pytest.param("*", "OPTIONS", "/%61", id="star and a letter encoded"),
    ],
)
def test_endpoint_names_the_request(endpoint: str, method: str, raw: str) -> None:
    assert matches(endpoint, method, raw)


@pytest.mark.parametrize(
    ("endpoint", "method", "raw"),
    [
        pytest.param("GET /a", "POST", "/a", id="other method"),
        pytest.param("GET /a", "OPTIONS", "/a", id="OPTIONS where GET is"),
        pytest.param("GET /a", "get", "/a", id="method in small letters"),
        pytest.param("GET /a", "", "/a", id="no method"),
        pytest.param("GET /a", "GETX", "/a", id="longer method"),
        pytest.param("HEAD /a", "GET", "/a", id="GET where HEAD is"),
        pytest.param("POST /a", "HEAD", "/a", id="HEAD where POST is"),
        pytest.param("GET /", "GET", "/a", id="root and a segment"),
        pytest.param("GET /a", "GET", "/", id="segment and the root"),
        pytest.param("GET /a", "GET", "/A", id="other case"),
        pytest.param("GET /a", "GET", "/ab", id="longer segment"),
        pytest.param("GET /ab", "GET", "/a", id="shorter segment"),
        pytest.param("GET /a.c", "GET", "/abc", id="dot is a dot"),
        pytest.param("GET /a", "GET", "/a/", id="slash at the end of the path"),
        pytest.param("GET /a/", "GET", "/a", id="slash at the end of the endpoint"),
        pytest.param("GET /a", "GET", "/a/b", id="deeper"),
        pytest.param("GET /a/b", "GET", "/a", id="less deep"),
        pytest.param("GET /a/b", "GET", "/b/a", id="other order"),
        pytest.param("GET /a", "GET", "/a;x", id="parameter"),
        pytest.param("GET /a", "GET", "/a%20", id="space at the end"),
        pytest.param("GET /a", "GET", "/a%3fb", id="encoded query"),
        pytest.param("GET /a", "GET", "/a%23b", id="encoded fragment"),
        pytest.param("GET /a/b", "GET", "/a%2Fb", id="encoded slash is no slash"),
        pytest.param("GET /a.b", "GET", "/a%2Eb", id="encoded dot is no dot"),
        pytest.param("GET /a.b/{c}", "GET", "/a%2eb/x", id="nor beside a capture"),
        pytest.param("GET /{a}/b.c", "GET", "/x/b%2Ec", id="nor behind one"),
        pytest.param("GET /{a}/b/c", "GET", "/x/b%2Fc", id="encoded slash behind one"),
        pytest.param("GET /a.b/{c...}", "GET", "/a%2eb/x/y", id="nor before the rest"),
        pytest.param("GET /a/{b}", "GET", "/a", id="capture of nothing"),
        pytest.param("GET /a/{b}", "GET", "/a/", id="capture of an empty segment"),
        pytest.param("GET /a/{b}", "GET", "/a/x/y", id="capture of two segments"),
        pytest.param("GET /a/{b}", "GET", "/a/x/", id="capture and a slash at the end"),
        pytest.param("GET /a/{b}", "GET", "/c/x", id="capture below another literal"),
        pytest.param("GET /a/{b}/c", "GET", "/a/x/d", id="literal behind a capture"),
        pytest.param("GET /a/{b}/c", "GET", "/a/c", id="capture of no segment"),
        pytest.param("GET /{a}", "GET", "/", id="capture and the root"),
        pytest.param("GET /a/{b...}", "GET", "/a", id="rest of nothing"),
        pytest.param("GET /a/{b...}", "GET", "/a/", id="rest of an empty segment"),
        pytest.param("GET /a/{b...}", "GET", "/a/x/", id="rest and a slash at the end"),
        pytest.param("GET /a/{b...}", "GET", "/a/x/y/", id="longer rest and one"),
        pytest.param("GET /a/{b...}", "GET", "/ab/x", id="rest behind a longer literal"),
        pytest.param("GET /a/{b...}", "GET", "/x/a/b", id="rest from the beginning"),
        pytest.param("GET /a/{b...}", "POST", "/a/x", id="rest and another method"),
        pytest.param("GET /{all...}", "GET", "/", id="everything and the root"),
        pytest.param("*", "GET", "/a%2Fb", id="star and an encoded slash"),
        pytest.param("*", "GET", "/a%2Eb", id="star and an encoded dot"),
        pytest.param("*", "TRACE", "/a", id="star and TRACE"),
        pytest.param("*", "CONNECT", "/a", id="star and CONNECT"),
        pytest.param("*", "PROPFIND", "/a", id="star and a method that is not known"),
        pytest.param("*", "get", "/a", id="star and small letters"),
        pytest.param("*", "*", "/a", id="star as a method of a request"),
    ],
)
def test_endpoint_does_not_name_the_request(endpoint: str, method: str, raw: str) -> None:
    assert not matches(endpoint, method, raw)


# Properties. Both alphabets are small, so that endpoints and paths often meet.

PIECES = ["a", "b", "a", "b", "/", "/", ".", "..", "/..", "//", ";", "\\", "%", "?", "{a}", "a.b"]
ESCAPES = [
    "%2e",
    "%2E",
    "%2f",
    "%2F",
    "%5c",
    "%61",
    "%25",
    "%252e",
    "%252f",
    "%3b",
    "%00",
    "%c0%ae",
]
wild_paths = st.lists(st.sampled_from(PIECES + ESCAPES), max_size=8).map("".join)
tame_paths = st.lists(
    st.sampled_from(["a", "b", "a.b", "%61", "a%2eb", "a%2fb", "{c}", "a;b"]),
    min_size=1,
    max_size=4,
).map(lambda one: "/" + "/".join(one))
paths = st.one_of(
    st.builds(lambda path, slash: path + slash, tame_paths, st.sampled_from(["", "", "/"])),
    wild_paths,
    wild_paths.map(lambda path: "/" + path),
    wild_paths.map(lambda path: "/a/" + path),
)
endpoints = st.one_of(
    st.just("*"),
    st.builds(
        lambda method, path, end: f"{method} /{'/'.join([*path, *end])}",
        st.sampled_from(["GET", "GET", "HEAD", "POST"]),
        st.lists(st.sampled_from(["a", "b", "a.b", "a;b", "{c}"]), max_size=3),
        st.sampled_from([[""], ["a"], ["{c}"], ["{c...}"]]),
    ),
).filter(lambda text: "//" not in text)
methods = st.sampled_from(["GET", "HEAD", "POST", "DELETE", "TRACE", "get"])


def parsed(raw: str) -> RequestPath | None:
    try:
        return RequestPath.parse(raw)
    except BadPathError:
        return None


def naive_segments(raw: str) -> list[tuple[str, bool]] | None:
    """Read a path character by character: each segment, and whether it hides a slash or dot."""
    if not raw.startswith("/") or any(not "!" <= char <= "~" or char in "?#\\" for char in raw):
        return None
    found = []
    for part in raw[1:].split("/"):
        data, at, hides = bytearray(), 0, False
        while at < len(part):
            if part[at] == "%":
                digits = part[at + 1 : at + 3]
                if len(digits) < 2 or not set(digits) <= set("0123456789abcdefABCDEF"):
                    return None
                data.append(int(digits, 16))
                hides |= chr(data[-1]) in "/."
                at += 3
            else:
                data += part[at].encode()
                at += 1
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        if unquote(text) != text or not text.isprintable() or "\\" in text:
            return None
        if {inner.partition(";")[0] for inner in text.split("/")} & {".", ".."}:
            return None
        if "/" in text and "" in text.split("/"):
            return None
        found.append((text, hides))
    return None if "" in [text for text, _ in found[:-1]] else found


def naive_match(endpoint: str, method: str, raw: str) -> bool:
    """Decide as the documentation of the policy file describes it, one segment at a time."""
    given = naive_segments(raw)
    if given is None:
        return False
    if endpoint == "*":
        return method in ("GET", "HEAD", "POST", "DELETE") and not any(one[1] for one in given)
    wanted_method, _, path = endpoint.partition(" ")
    if method != wanted_method and (method, wanted_method) != ("HEAD", "GET"):
        return False
    wanted = path[1:].split("/")
    if wanted[-1].endswith("...}"):
        last = [text for text, _ in given[len(wanted) - 1 :]]
        if not last or "" in last:
            return False
        given, wanted = given[: len(wanted) - 1], wanted[:-1]
    if len(given) != len(wanted):
        return False
    return all(
        text != "" if one.startswith("{") else (text == one and not hides)
        for one, (text, hides) in zip(wanted, given, strict=True)
    )


@given(st.one_of(paths, st.text(max_size=20), st.text("/.%2eEfF5cC;a\\", max_size=16)))
@bounded
def test_path_is_read_or_refused_and_never_a_traceback(raw: str) -> None:
    wanted = naive_segments(raw)
    path = parsed(raw)
    assert (path is None) == (wanted is None)
    if path is not None and wanted is not None:
        assert path.raw == raw
        assert list(path.segments) == [text for text, _ in wanted]


@given(st.one_of(st.text(max_size=20), st.text("GETPOST /{}ab._.*%", max_size=16), endpoints))
@bounded
def test_endpoint_is_read_or_refused_and_never_a_traceback(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert endpoint.text == text
    assert endpoint.method in (*METHODS, ANY_ENDPOINT)


@given(endpoints, methods, paths)
@bounded
def test_endpoint_agrees_with_a_naive_implementation(text: str, method: str, raw: str) -> None:
    path = parsed(raw)
    endpoint = Endpoint.parse(text)
    given_answer = path is not None and endpoint.matches(method, path)
    assert given_answer == naive_match(text, method, raw)
    if path is not None:
        assert given_answer == (method in endpoint.methods() and endpoint.matches_path(path))


def could_climb(path: str) -> bool:
    """Tell whether some reading of a path leaves it, or has nothing between two slashes."""
    parts = path.replace("\\", "/").split("/")
    bare = [part.partition(";")[0] for part in parts]
    return "." in bare or ".." in bare or "" in parts[1:-1]


@given(endpoints, methods, paths, st.integers(0, 3))
@bounded
def test_nothing_that_decodes_to_dots_or_empty_segments_ever_matches(
    text: str, method: str, raw: str, times: int
) -> None:
    path = parsed(raw)
    decoded = raw
    for _ in range(times):
        decoded = unquote(decoded)
    if could_climb(decoded):
        assert path is None
    elif path is not None and Endpoint.parse(text).matches(method, path):
        assert not could_climb(unquote(unquote(raw)))


@given(tame_paths, methods)
@bounded
def test_literal_endpoint_never_matches_an_encoded_slash_or_dot(raw: str, method: str) -> None:
    path = parsed(raw)
    assert path is not None
    if "{" not in raw:
        literal = Endpoint.parse(f"GET {unquote(raw)}")
        hides = "%2e" in raw or "%2f" in raw
        assert literal.matches(method, path) == (method in ("GET", "HEAD") and not hides)


@given(endpoints, paths)
@bounded
def test_head_is_allowed_where_get_is(text: str, raw: str) -> None:
    path = parsed(raw)
    endpoint = Endpoint.parse(text)
    if path is not None and endpoint.matches("GET", path):
        assert endpoint.matches("HEAD", path)
    if path is not None and endpoint.method == "HEAD":
        assert not endpoint.matches("GET", path)


@given(endpoints, methods, paths)
@bounded
def test_path_that_an_endpoint_takes_is_one_that_star_takes_too_unless_it_hides_something(
    text: str, method: str, raw: str
) -> None:
    path = parsed(raw)
    if path is not None and Endpoint.parse(text).matches(method, path):
        hides = "%2e" in raw.lower() or "%2f" in raw.lower()
        assert Endpoint.parse("*").matches(method, path) == (not hides)
