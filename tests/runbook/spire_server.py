"""`python -m tests.runbook.spire_server STATE HOST PORT`: what agents want of a SPIRE server.

The other side of `tests.fake_spire_server`, on the same state: admits an agent by a join token,
once, and signs the SVIDs of the entries below it. One JSON line each way, in plain text: the agents
are `tests.runbook.spire_agent`, and the network has nobody else.
"""

from __future__ import annotations

import base64
import json
import socketserver
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.spiffe_id import SpiffeId
from sidecar.demo.agent import der
from sidecar.demo.authority import Authority
from tests.spire_stand_in import FakeSpireServer

TRUST_DOMAIN = "ravenhelm.local"
_AGENT_SECONDS = 3600
_SVID_SECONDS = 3600


class Refused(Exception):
    """What the real one would refuse, in its words."""


class Server:
    """Answers agents."""

    def __init__(self, path: Path) -> None:
        self._authority = Authority(TRUST_DOMAIN)
        self._lock = threading.Lock()
        certificate = base64.b64encode(der(self._authority.bundle.authorities)).decode()
        self._state = FakeSpireServer(path, TRUST_DOMAIN, certificate)
        path.chmod(0o666)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of an agent."""
        with self._lock:
            agent = asked.get("agent") or self._admit(asked["token"])
            entries = self._entries(agent)
            answer: dict[str, Any] = {"agent": agent, "entries": sorted(entries)}
            if not asked.get("agent"):
                own = self._authority.issue(
                    SpiffeId.parse(agent), timedelta(seconds=_AGENT_SECONDS)
                )
                answer["own"] = _base64(der(own.chain))
            if answer["entries"] != asked.get("has"):
                answer["svids"] = [self._svid(entry) for entry in entries.values()]
                answer["bundle"] = _base64(der(self._authority.bundle.authorities))
            return answer

    def _admit(self, token: str) -> str:
        if self._read()["tokens"].get(token, 0) < time.time():
            raise Refused("join token does not exist or has already been used")
        return self._state.attest(token, expires_at=int(time.time()) + _AGENT_SECONDS)

    def _entries(self, agent: str) -> dict[str, dict[str, Any]]:
        """The entries below an agent, or below an alias of it."""
        state = self._read()
        if agent not in [_text(one["id"]) for one in state["agents"]]:
            raise Refused("agent is not attested")
        all_of_them = state["entries"]
        parents = {agent}
        for entry in all_of_them:
            if entry["selectors"] == [{"type": "spiffe_id", "value": agent}]:
                parents.add(_text(entry["spiffe_id"]))
        return {
            f"{entry['id']} {entry['revision_number']}": entry
            for entry in all_of_them
            if _text(entry["parent_id"]) in parents and _text(entry["spiffe_id"]) not in parents
        }

    def _read(self) -> dict[str, Any]:
        while True:
            try:
                state: dict[str, Any] = json.loads(self._state.path.read_text())
                return state
            except ValueError:
                time.sleep(0.01)  # the program is writing it

    def _svid(self, entry: dict[str, Any]) -> dict[str, str]:
        spiffe_id = _text(entry["spiffe_id"])
        life = timedelta(seconds=entry["x509_svid_ttl"] or _SVID_SECONDS)
        svid = self._authority.issue(SpiffeId.parse(spiffe_id), life, entry["dns_names"])
        key = svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return {"spiffe_id": spiffe_id, "chain": _base64(der(svid.chain)), "key": _base64(key)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(spiffe_id: dict[str, str]) -> str:
    return f"spiffe://{spiffe_id['trust_domain']}{spiffe_id['path']}"


def main() -> None:
    path, host, port = sys.argv[1:]
    server = Server(Path(path))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            if not line:
                return  # somebody looked whether we are there
            try:
                answer = server.answer(json.loads(line))
            except Refused as exc:
                answer = {"refused": str(exc)}
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
