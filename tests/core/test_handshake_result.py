"""How a handshake ended: what OpenSSL's texts mean."""

from __future__ import annotations

import pytest

from sidecar.core.handshake_result import HandshakeResult, openssl_result


@pytest.mark.parametrize(
    ("reasons", "result"),
    [
        pytest.param([], "left", id="no reason: the connection broke"),
        pytest.param(["http request"], "plain_http", id="GET"),
        pytest.param(["https proxy request"], "plain_http", id="CONNECT"),
        pytest.param(["peer did not return a certificate"], "no_certificate", id="none"),
        pytest.param(["tlsv1 alert unknown ca"], "refused_by_peer", id="an old alert"),
        pytest.param(["tls alert bad certificate"], "refused_by_peer", id="an alert"),
        pytest.param(["ssl/tls alert certificate expired"], "refused_by_peer", id="longer"),
        pytest.param(["wrong version number"], "protocol", id="no TLS"),
        pytest.param(["unsupported protocol"], "protocol", id="too old"),
        pytest.param(["no shared cipher"], "protocol", id="no cipher"),
        pytest.param(["something", "http request"], "plain_http", id="the known one counts"),
        pytest.param(["what no version of OpenSSL says yet"], "protocol", id="unknown"),
    ],
)
def test_reasons_of_openssl_are_one_of_few_words(reasons: list[str], result: str) -> None:
    assert openssl_result(reasons) == HandshakeResult(result)
