"""JWT-SVIDs: what is taken, what is refused, and that no reason shows a token.

The signature is not looked at, so the tokens here have an invented one.
"""

from __future__ import annotations

import json
import traceback
from base64 import urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import AgentProtocolError
from sidecar.core.identity_update import SvidChoice
from sidecar.core.jwt_svid import ALGORITHMS, MAX_TOKEN_BYTES, JwtSvid, RawJwtSvid, jwt_svid
from sidecar.core.spiffe_id import SpiffeId

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "spiffe://example.org/workload/model-server"
OTHER = "spiffe://example.org/workload/other"
SECONDS = int(NOW.timestamp())
HEADER = {"alg": "ES256", "kid": "one", "typ": "JWT"}
CLAIMS = {"aud": ["vault"], "sub": ID, "exp": SECONDS + 300, "iat": SECONDS - 10}
SIGNATURE = "c2lnbmF0dXJl"
GONE = object()


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def encoded(value: object) -> str:
    return b64(value if isinstance(value, bytes) else json.dumps(value).encode())


def token(
    header: Any = None, claims: Any = None, signature: Any = SIGNATURE, **changes: Any
) -> str:
    """A good token, but for what is given; `GONE` leaves a claim out."""
    merged = {**CLAIMS, **changes}
    payload = {name: value for name, value in merged.items() if value is not GONE}
    parts = (HEADER if header is None else header, payload if claims is None else claims)
    return ".".join([*map(encoded, parts), signature])


def parse(text: str, *audiences: str) -> JwtSvid:
    return JwtSvid.parse(text, audiences or ("vault",), NOW)


# What is taken.


def test_good_token_is_a_value_of_its_claims() -> None:
    svid = parse(token())
    assert svid.token == token()
    assert svid.spiffe_id == SpiffeId.parse(ID)
    assert svid.audiences == ("vault",)
    assert svid.expires == NOW + timedelta(seconds=300)
    assert svid.issued_at == NOW - timedelta(seconds=10)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_of_the_standard_is_taken(algorithm: str) -> None:
    assert parse(token({"alg": algorithm})).spiffe_id == SpiffeId.parse(ID)


def test_the_algorithms_are_those_of_the_standard() -> None:
    families = ("RS", "ES", "PS")
    assert {f"{one}{bits}" for one in families for bits in (256, 384, 512)} == ALGORITHMS


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(token({"alg": "ES256"}), id="alg alone"),
        pytest.param(token({"alg": "ES256", "typ": "JOSE"}), id="the other typ"),
        pytest.param(token(aud="vault"), id="aud is a string"),
        pytest.param(token(aud=["other", "vault"]), id="one audience more"),
        pytest.param(token(exp=SECONDS + 0.5), id="half a second is left"),
        pytest.param(token(exp=SECONDS + 1), id="a second is left"),
        pytest.param(token(iat=GONE), id="no iat"),
        pytest.param(token(iat=SECONDS + 60), id="issued by a clock that is ahead of ours"),
        pytest.param(token(jti="1", nbf=SECONDS, own={"claim": [1]}), id="more claims"),
        pytest.param(token(claims=json.dumps(CLAIMS, indent=2).encode()), id="JSON with spaces"),
    ],
)
def test_token_that_the_standard_allows_is_taken(text: str) -> None:
    assert parse(text).spiffe_id == SpiffeId.parse(ID)


def test_token_without_iat_has_none() -> None:
    assert parse(token(iat=GONE)).issued_at is None


def test_all_audiences_may_be_asked_for() -> None:
    assert parse(token(aud=["a", "b", "c"]), "c", "a").audiences == ("a", "b", "c")


def test_longest_token_is_taken() -> None:
    room = MAX_TOKEN_BYTES - len(token()) - 100
    text = token(own="x" * (room * 3 // 4))
    assert MAX_TOKEN_BYTES - 200 < len(text) <= MAX_TOKEN_BYTES
    assert parse(text).token == text


# What is refused.

DEEP = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
GOOD = token().split(".")
REFUSED = [
    # The form.
    pytest.param("", "three parts", id="nothing"),
    pytest.param("abc", "three parts", id="one part"),
    pytest.param(".".join(GOOD[:2]), "three parts", id="no signature"),
    pytest.param(".".join([*GOOD[:2], ""]), "three parts", id="empty signature"),
    pytest.param(".".join(["", *GOOD[1:]]), "three parts", id="empty header"),
    pytest.param(".".join([GOOD[0], "", GOOD[2]]), "three parts", id="empty payload"),
    pytest.param(".".join([*GOOD, "x"]), "three parts", id="four parts"),
    pytest.param(".".join([*GOOD, "x", "y"]), "three parts", id="an encrypted one"),
    pytest.param(token() + "\n", "three parts", id="a line end after it"),
    pytest.param("\n" + token(), "three parts", id="a line end before it"),
    pytest.param(token() + "\r\nX-Spiffe-Id: a", "three parts", id="a header line after it"),
    pytest.param(token() + "\0", "three parts", id="NUL"),
    pytest.param(token().replace(".", " . "), "three parts", id="spaces"),
    pytest.param("Bearer " + token(), "three parts", id="a scheme before it"),
    pytest.param(token().replace(".", "\u2024"), "three parts", id="dots that are none"),
    pytest.param(GOOD[0] + "\u00e9." + ".".join(GOOD[1:]), "three parts", id="not ASCII"),
    pytest.param(token(signature=SIGNATURE + "="), "three parts", id="padding"),
    pytest.param(token(signature="a+b/"), "three parts", id="the other base64"),
    pytest.param(json.dumps({"payload": GOOD[1]}), "three parts", id="the JSON form"),
    pytest.param(token(signature="A"), "signature is not base64url", id="a sixth of a byte"),
    pytest.param(token(signature="QUJDR"), "signature is not base64url", id="a byte cut off"),
    pytest.param(token(signature="QR"), "signature is not base64url", id="a second spelling"),
    pytest.param("QR." + ".".join(GOOD[1:]), "header is not base64url", id="header of bad bits"),
    pytest.param(f"{GOOD[0]}.QR.{GOOD[2]}", "payload is not base64url", id="payload likewise"),
    pytest.param(token(own="x" * MAX_TOKEN_BYTES), "expected at most", id="too long"),
    pytest.param("x" * (MAX_TOKEN_BYTES + 1), "expected at most", id="too long and no token"),
    # The JSON.
    *(
        pytest.param(token(**{part: data}), f"{name} is not a JSON object", id=f"{name}: {what}")
        for part, name in (("header", "header"), ("claims", "payload"))
        for what, data in {
            "a list": [HEADER],
            "a string": "ES256",
            "null": b"null",
            "a number": 1,
            "no JSON": b"alg=ES256",
            "cut off": b'{"alg": "ES256"',
            "more behind it": b'{"alg": "ES256"} {}',
            "single quotes": b"{'alg': 'ES256'}",
            "bytes that are no UTF-8": b'{"alg": "\xff"}',
            "a byte order mark": b"\xef\xbb\xbf{}",
            "infinite": b'{"exp": 1e999}',
            "not a number": b'{"exp": NaN}',
            "deep": DEEP,
        }.items()
    ),
    # The header.
    *(
        pytest.param(token({"alg": algorithm}), "alg is none", id=f"alg {algorithm!r}")
        for algorithm in (
            *("none", "None", "NONE", "nOnE", ""),
            *("HS256", "HS384", "HS512", "EdDSA", "ES256K", "RSA-OAEP", "dir"),
            *("es256", "ES256 ", " ES256", "ES256\n", "ES257", "RS1"),
        )
    ),
    pytest.param(token({"alg": None}), "alg is none", id="alg is null"),
    pytest.param(token({"alg": 256}), "alg is none", id="alg is a number"),
    pytest.param(token({"typ": "JWT"}), "alg is none", id="no alg"),
    pytest.param(token({"ALG": "ES256"}), "alg is none", id="ALG in capitals"),
    pytest.param(token({"alg": "ES256", "typ": "wit+jwt"}), "typ is neither", id="a WIT-SVID"),
    pytest.param(token({"alg": "ES256", "typ": "jwt"}), "typ is neither", id="typ in small"),
    pytest.param(token({"alg": "ES256", "typ": None}), "typ is neither", id="typ is null"),
    pytest.param(token({"alg": "ES256", "typ": ["JWT"]}), "typ is neither", id="typ is a list"),
    *(
        pytest.param(token({**HEADER, name: "x"}), "besides", id=f"header {name}")
        for name in ("jku", "jwk", "x5u", "x5c", "x5t", "crit", "b64", "zip", "cty", "enc", "own")
    ),
    # The claims.
    pytest.param(token(sub=GONE), "sub is not", id="no sub"),
    pytest.param(token(sub=None), "sub is not", id="sub is null"),
    pytest.param(token(sub=[ID]), "sub is not", id="sub is a list"),
    pytest.param(token(sub=""), "sub is not", id="sub is empty"),
    pytest.param(token(sub="model-server"), "sub is not", id="sub is a name"),
    pytest.param(token(sub="https://example.org/a"), "sub is not", id="sub is a URL"),
    pytest.param(token(sub=ID + "\n"), "sub is not", id="sub with a line end"),
    pytest.param(token(sub=ID + "/"), "sub is not", id="sub with a trailing slash"),
    pytest.param(token(sub=ID + "/../traefik"), "sub is not", id="sub with dots"),
    pytest.param(token(sub=ID.replace("example", "Example")), "sub is not", id="sub in capitals"),
    pytest.param(token(sub="spiffe://" + "a" * 2100), "sub is not", id="sub too long"),
    pytest.param(token(sub="spiffe://example.org"), "trust domain", id="sub without a path"),
    pytest.param(token(aud=GONE), "no aud", id="no aud"),
    pytest.param(token(aud=None), "no aud", id="aud is null"),
    pytest.param(token(aud=[]), "no aud", id="aud is empty"),
    pytest.param(token(aud={"vault": True}), "no aud", id="aud is an object"),
    pytest.param(token(aud=1), "no aud", id="aud is a number"),
    pytest.param(token(aud=["vault", 1]), "aud is not", id="aud holds a number"),
    pytest.param(token(aud=["vault", ["x"]]), "aud is not", id="aud holds a list"),
    pytest.param(token(aud=["vault", ""]), "aud is not", id="aud holds nothing"),
    pytest.param(token(aud="other"), "does not hold every", id="other audience"),
    pytest.param(token(aud=["Vault"]), "does not hold every", id="aud in capitals"),
    pytest.param(token(aud="vault,b"), "does not hold every", id="aud joined by a comma"),
    pytest.param(token(aud="xvaultx"), "does not hold every", id="aud around the right one"),
    pytest.param(token(exp=GONE), "no exp", id="no exp"),
    pytest.param(token(exp=None), "exp is not a number", id="exp is null"),
    pytest.param(token(exp=str(SECONDS + 300)), "exp is not a number", id="exp is text"),
    pytest.param(token(exp=True), "exp is not a number", id="exp is true"),
    pytest.param(token(exp=[SECONDS + 300]), "exp is not a number", id="exp is a list"),
    pytest.param(token(exp=10**15), "exp is no time", id="exp in microseconds"),
    pytest.param(token(exp=10**30), "exp is no time", id="exp past all calendars"),
    pytest.param(token(exp=1e300), "exp is no time", id="exp past all numbers"),
    pytest.param(token(exp=SECONDS), "expired", id="expires now"),
    pytest.param(token(exp=SECONDS - 1), "expired", id="expired a second ago"),
    pytest.param(token(exp=SECONDS - 0.001), "expired", id="expired a moment ago"),
    pytest.param(token(exp=0), "expired", id="exp is zero"),
    pytest.param(token(exp=-5), "expired", id="exp before 1970"),
    pytest.param(token(iat="now"), "iat is not a number", id="iat is text"),
    pytest.param(token(iat=None), "iat is not a number", id="iat is null"),
    pytest.param(token(iat=False), "iat is not a number", id="iat is false"),
    pytest.param(token(iat=-(10**30)), "iat is no time", id="iat before all calendars"),
    pytest.param(token(iat=SECONDS + 300), "iat is not before", id="iat is exp"),
    pytest.param(token(iat=SECONDS + 301), "iat is not before", id="iat after exp"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_is_no_jwt_svid_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(text)
    assert reason in str(caught.value)
    assert_hidden(caught.value, text)


def test_refused_ones_outnumber_the_accepted() -> None:
    assert len(REFUSED) > 60


def assert_hidden(exc: BaseException, text: str) -> None:
    """No part of a token is in the reason, nor in a traceback of it."""
    shown = "".join(traceback.format_exception(exc)) + repr(exc)
    for part in text.split("."):
        assert len(part) < 12 or part[:200] not in shown
    assert "x" * 20 not in shown
    assert "workload/" not in shown


def test_every_audience_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(ValueError, match="every audience"):
        parse(token(aud=["vault", "b"]), "vault", "b", "c")


def test_value_does_not_show_its_token() -> None:
    for shown in (repr(parse(token())), str(parse(token())), repr(RawJwtSvid(ID, token()))):
        assert SIGNATURE not in shown
        assert GOOD[1] not in shown


@settings(deadline=None, derandomize=True, database=None)
@given(st.text(max_size=400) | st.text("abAB01-_.=", max_size=60))
def test_no_text_makes_anything_but_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse(text).token == text


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from(["sub", "aud", "exp", "iat"]),
)
def test_no_claim_makes_anything_but_a_value_error(value: object, name: str) -> None:
    try:
        svid = parse(token(**{name: value}))
    except ValueError:
        return
    assert svid.expires > NOW
    assert svid.spiffe_id == SpiffeId.parse(ID)
    assert "vault" in svid.audiences


# When it is refreshed.


@pytest.mark.parametrize(
    ("issued", "left", "seconds"),
    [
        pytest.param(0, 300, 150, id="new"),
        pytest.param(-60, 240, 120, id="some time old"),
        pytest.param(-299, 1, 0.5, id="nearly over"),
        pytest.param(None, 300, 150, id="without iat"),
        pytest.param(600, 900, 150, id="our clock is ten minutes behind"),
    ],
)
def test_refresh_is_at_half_of_the_life_that_is_left(
    issued: int | None, left: int, seconds: float
) -> None:
    iat = GONE if issued is None else SECONDS + issued
    svid = parse(token(iat=iat, exp=SECONDS + left))
    assert svid.refresh_at(NOW) == NOW + timedelta(seconds=seconds)
    assert svid.refresh_in(NOW) == timedelta(seconds=seconds)


# Which one of several.


def raw(spiffe_id: str = ID, hint: str = "", text: str = "") -> RawJwtSvid:
    return RawJwtSvid(spiffe_id, text or token(sub=spiffe_id), hint)


def chosen(*offered: RawJwtSvid, spiffe_id: str = "", hint: str = "") -> JwtSvid:
    choice = SvidChoice(SpiffeId.parse(spiffe_id) if spiffe_id else None, hint)
    return jwt_svid(offered, choice, ("vault",), NOW)


@pytest.mark.parametrize(
    ("offered", "choice", "expected"),
    [
        pytest.param([raw(ID), raw(OTHER)], {}, ID, id="the first one by default"),
        pytest.param([raw(OTHER), raw(ID)], {}, OTHER, id="in the agent's order"),
        pytest.param([raw(OTHER), raw(ID)], {"spiffe_id": ID}, ID, id="by ID"),
        pytest.param([raw(ID, "a"), raw(OTHER, "b")], {"hint": "b"}, OTHER, id="by hint"),
        pytest.param(
            [raw(ID, "a"), raw(OTHER, "b"), raw(ID, "b")],
            {"spiffe_id": ID, "hint": "b"},
            ID,
            id="by both",
        ),
        pytest.param([raw(ID, "a"), raw(OTHER, "a")], {"hint": "a"}, ID, id="first of one hint"),
        pytest.param([raw(OTHER, text="junk"), raw(ID)], {"spiffe_id": ID}, ID, id="others' junk"),
        pytest.param([raw("junk", text="junk"), raw(ID)], {"spiffe_id": ID}, ID, id="others' ID"),
    ],
)
def test_choice_is_as_with_x509_svids(
    offered: list[RawJwtSvid], choice: dict[str, str], expected: str
) -> None:
    assert chosen(*offered, **choice).spiffe_id == SpiffeId.parse(expected)


LEAKY = token()
REFUSED_ANSWERS = [
    pytest.param([], {}, "has no JWT-SVID", id="none at all"),
    pytest.param([raw(OTHER)], {"spiffe_id": ID}, f"no JWT-SVID with ID {ID}", id="other ID"),
    pytest.param([raw(ID, "a")], {"hint": "b"}, "no JWT-SVID with hint 'b'", id="other hint"),
    pytest.param([raw(ID)], {"hint": "b"}, "no JWT-SVID with hint 'b'", id="no hint"),
    pytest.param([RawJwtSvid(ID, "")], {}, "three parts", id="no token"),
    pytest.param([RawJwtSvid("", LEAKY)], {}, "without a SPIFFE ID", id="no ID"),
    pytest.param([RawJwtSvid(ID, token(sub=OTHER))], {}, "another ID", id="sub is another"),
    pytest.param([RawJwtSvid(ID, token(exp=1))], {}, "expired", id="expired"),
    pytest.param([RawJwtSvid(ID, "junk"), raw(ID)], {}, "three parts", id="the first is bad"),
    pytest.param([RawJwtSvid(LEAKY, ID)], {}, "without a SPIFFE ID", id="fields mixed up"),
    pytest.param(
        [RawJwtSvid(LEAKY, ID)], {"spiffe_id": ID}, "none with a SPIFFE ID", id="mixed up, by ID"
    ),
    pytest.param(
        [RawJwtSvid(ID, ID, LEAKY)], {"hint": "x"}, "no JWT-SVID with hint", id="token as hint"
    ),
]


@pytest.mark.parametrize(("offered", "choice", "reason"), REFUSED_ANSWERS)
def test_answer_without_ours_is_refused(
    offered: list[RawJwtSvid], choice: dict[str, str], reason: str
) -> None:
    with pytest.raises(AgentProtocolError) as caught:
        chosen(*offered, **choice)
    assert reason in caught.value.message
    assert SIGNATURE not in caught.value.message
    assert LEAKY.split(".")[1] not in caught.value.message


def test_reason_of_a_refused_token_names_the_id() -> None:
    with pytest.raises(AgentProtocolError, match=f"^JWT-SVID of {ID}: "):
        chosen(RawJwtSvid(ID, token(exp=1)))
