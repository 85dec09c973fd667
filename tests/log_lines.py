"""The lines that a story logs, for its tests; and that none of them holds a secret."""

from __future__ import annotations

import base64
import json
from types import ModuleType
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.svid import X509Svid
from sidecar.demo.agent import der

Line = dict[str, Any]


def captured(monkeypatch: pytest.MonkeyPatch, story: ModuleType) -> list[Line]:
    """What a story logs from now on, `event` and `log_level` among the fields."""
    capture = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    monkeypatch.setattr(story, "log", logger)
    return capture.entries  # type: ignore[return-value]


def left_out(lines: list[Line], event: str) -> int:
    """How many lines of one event the log says that it leaves out."""
    of = [one["of"].split(", ") for one in lines if one["event"] == "lines left out"]
    counts = [text.rpartition(": ") for texts in of for text in texts]
    return sum(int(count) for name, _, count in counts if name == event)


def assert_no_secret(shown: object, *svids: X509Svid) -> None:
    """No line holds a key or a PEM body, in any spelling that a log would show."""
    text = json.dumps(shown, default=repr) + repr(shown)
    for word in ("PRIVATE KEY", "BEGIN CERTIFICATE", "-----"):
        assert word not in text
    for svid in svids:
        assert isinstance(svid.private_key, ec.EllipticCurvePrivateKey)
        key = svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        number = svid.private_key.private_numbers().private_value
        secrets = [
            base64.b64encode(key).decode()[20:60],
            key.hex()[40:80],
            repr(key[30:60])[2:-1],
            str(number),
            f"{number:x}",
            base64.b64encode(der(svid.chain)).decode()[:60],
        ]
        for secret in secrets:
            assert secret not in text
