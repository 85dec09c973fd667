"""A server for `fake_spire_server.py`, as a test makes it, looks at it and breaks it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from tests import fake_spire_server


class FakeSpireServer:
    """The state as a test sees it; `prefix` runs the program on it."""

    def __init__(self, path: Path, trust_domain: str, authority: str) -> None:
        """`authority` is a certificate, DER in base64."""
        self.path = path
        self.prefix = shlex.join([sys.executable, "-IS", fake_spire_server.__file__])
        self.calls_path = Path(f"{path}.calls")
        self._write(
            {
                "trust_domain": trust_domain,
                "authorities": [{"asn1": authority, "tainted": False}],
                "entries": [],
                "tokens": {},
                "agents": [],
                "version": fake_spire_server.NEWEST,
                "faults": {},
            }
        )

    def entries(self) -> list[dict[str, Any]]:
        """All entries, as `entry show` has them."""
        found: list[dict[str, Any]] = self._read()["entries"]
        return found

    def tokens(self) -> dict[str, int]:
        """The join tokens that no agent has used, and when they expire."""
        found: dict[str, int] = self._read()["tokens"]
        return found

    def calls(self) -> list[list[str]]:
        """The arguments of every run so far."""
        if not self.calls_path.exists():
            return []
        return [json.loads(line) for line in self.calls_path.read_text().splitlines()]

    def changing_calls(self) -> list[list[str]]:
        """Those of them that change something."""
        return [call for call in self.calls() if call[1] not in ("show", "list")]

    def fault(self, command: str, kind: str) -> None:
        """From now on `command` has a fault: "hang", "garbage", or a text for standard error."""
        self._change(faults={command: kind})

    def heal(self) -> None:
        self._change(faults={})

    def version(self, *version: int) -> None:
        self._change(version=version)

    def taint(self, authority: str) -> None:
        """Add an authority that the operator has called tainted."""
        authorities = self._read()["authorities"]
        self._change(authorities=[*authorities, {"asn1": authority, "tainted": True}])

    def attest(self, token: str, *, expires_at: int, banned: bool = False) -> str:
        """An agent comes with the token; gives its SPIFFE ID."""
        state = self._read()
        del state["tokens"][token]
        agent = {
            "agent_version": "1.16.0",
            "attestation_type": "join_token",
            "banned": banned,
            "can_reattest": False,
            "id": {
                "path": f"/spire/agent/join_token/{token}",
                "trust_domain": state["trust_domain"],
            },
            "selectors": [],
            "x509svid_expires_at": str(expires_at),
            "x509svid_serial_number": "1",
        }
        state["agents"].append(agent)
        self._write(state)
        return f"spiffe://{state['trust_domain']}/spire/agent/join_token/{token}"

    def _change(self, **fields: Any) -> None:
        self._write({**self._read(), **fields})

    def _read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.path.read_text())
        return state

    def _write(self, state: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(state))
