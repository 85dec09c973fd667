"""What an answer says of the hops behind the peer: the sidecar's no is told from the model's."""

from __future__ import annotations

import json

import pytest

from sidecar.core.probe.answer import Ends, answer_fault, told
from sidecar.core.probe.report import Answer, Fault, Hop, ProbeRequest
from sidecar.core.probe.target import ProbeTarget
from sidecar.core.refusal import Refusal, refusal_body
from sidecar.core.spiffe_id import SpiffeId

OWN = SpiffeId.parse("spiffe://e.org/workload/traefik")
PEER = SpiffeId.parse("spiffe://e.org/workload/model-server")
ENDS = Ends(OWN, PEER)


def fault(
    status: int,
    body: bytes,
    *,
    path: str = "/api/pull",
    is_echoed: bool = True,
    ends: Ends = ENDS,
) -> Fault | None:
    request = ProbeRequest(ProbeTarget.parse(f"https://host:6701{path}"), method="POST")
    answer = Answer(status, "Reason", "id-1", is_echoed, "application/json")
    return answer_fault(answer, body, request, ends)


def test_answer_below_400_has_no_fault_whatever_it_says() -> None:
    for status in (200, 204, 301, 399):
        assert fault(status, b'{"error":"the model server is busy"}') is None


# Each code in the dialects that have room for codes; Ollama's words come from the real daemon,
# in tests/scenarios.
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/"])
@pytest.mark.parametrize(
    ("status", "code", "hop"),
    [
        (403, "peer_not_admitted", Hop.POLICY),
        (403, "endpoint_not_allowed", Hop.POLICY),
        (403, "svid_expired", Hop.OWN_SVID),
        (403, "svid_not_trusted", Hop.OWN_SVID),
        (413, "body_too_large", Hop.LIMITS),
        (431, "head_too_large", Hop.LIMITS),
        (429, "rate_limited", Hop.LIMITS),
        (503, "busy", Hop.LIMITS),
        (503, "no_identity", Hop.SIDECAR),
        (400, "bad_request", Hop.SIDECAR),
        (502, "backend_unreachable", Hop.BACKEND),
        (504, "backend_silent", Hop.BACKEND),
    ],
)
def test_refusal_of_the_sidecar_is_known_by_its_code(
    path: str, status: int, code: str, hop: Hop
) -> None:
    body = refusal_body(Refusal(status, code, "the text"), path, False, "id-1")
    found = fault(status, body, path=path)
    assert found is not None
    assert (found.hop, found.code) == (hop, code)
    assert "the text" in found.message
    assert found.hint


def test_remedy_of_an_endpoint_names_id_method_and_path() -> None:
    body = refusal_body(Refusal(403, "endpoint_not_allowed", "no"), "/v1/x", False, "id-1")
    found = fault(403, body, path="/v1/x?key=s3cret")
    assert found is not None
    assert f"--peer {OWN} --method POST --path /v1/x`" in found.hint
    assert "s3cret" not in found.hint


def test_sidecar_that_asks_itself_is_told_so() -> None:
    body = refusal_body(Refusal(403, "peer_not_admitted", "no"), "/v1/x", False, "id-1")
    itself = fault(403, body, ends=Ends(PEER, PEER))
    other = fault(403, body)
    assert itself is not None
    assert other is not None
    assert "own ID" in itself.hint
    assert "own ID" not in other.hint


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(403, b"", id="nothing"),
        pytest.param(403, b"<html>no</html>", id="no JSON"),
        pytest.param(500, b'{"error":"llama runner process has terminated"}', id="Ollama's"),
        pytest.param(
            429, b'{"error":{"message":"slow","code":"rate_limit_exceeded"}}', id="a code"
        ),
        pytest.param(503, b'{"error":{"message":5,"code":["busy"]}}', id="odd types"),
        pytest.param(503, b'{"error":null}', id="null"),
        pytest.param(503, b"[1]", id="a list"),
        pytest.param(403, b'{"error":"I say: the model server is busy: no place"}', id="a quote"),
    ],
)
def test_all_else_is_the_model_servers(status: int, body: bytes) -> None:
    found = fault(status, body)
    assert found is not None
    assert (found.hop, found.code) == (Hop.BACKEND, "status")
    assert found.message.startswith(f"the model server said {status} Reason")


def test_text_of_the_model_server_is_shown() -> None:
    found = fault(404, b'{"error":"model \\"x\\" not found"}')
    assert found is not None
    assert 'model "x" not found' in found.message


def test_unhealthy_model_server_is_told_with_its_reason() -> None:
    said = json.dumps({"status": "unhealthy", "reason": "the backend refuses"}).encode()
    found = fault(503, said, path="/health")
    assert found is not None
    assert (found.hop, found.code) == (Hop.BACKEND, "unhealthy")
    assert "the backend refuses" in found.message


@pytest.mark.parametrize(
    ("status", "path", "says"),
    [
        pytest.param(404, "/health", "mode http only", id="health is not the model server's"),
        pytest.param(403, "/api/tags", "Host", id="Ollama does not know the Host"),
    ],
)
def test_what_mode_stream_is_about_is_told_where_nobody_gave_our_id_back(
    status: int, path: str, says: str
) -> None:
    in_stream = fault(status, b"", path=path, is_echoed=False)
    in_http = fault(status, b"", path=path)
    assert in_stream is not None
    assert in_http is not None
    assert says in in_stream.hint
    assert str(PEER) in in_stream.message
    assert says not in in_http.hint


def test_nothing_of_a_body_reaches_a_terminal_as_it_is() -> None:
    for body in (
        b'{"error":"\\u001b[2J\\u009b\\u202e"}',
        b"\x1b[2J\x9b",
        b'{"status":"unhealthy","reason":"\\u001b"}',
    ):
        found = fault(503, body)
        assert found is not None
        assert found.message.isprintable()


def test_code_of_another_server_is_not_taken_for_ours() -> None:
    assert told(b'{"error":{"code":"invented","message":"m"}}') == ("", "m")
    # The text of a refusal must be the whole text.
    assert told(b'{"error":"x\\nthe model server gave no further byte of it"}')[0] == ""
