"""A SPIRE agent's Workload API in a child process: real gRPC on a real Unix socket.

`AgentProcess` is the handle in the test; `python -m tests.fake_agent` is the child, told one
command per line on its standard input and acknowledging each with one line. A child whose agent was
stopped serves the next one: most of its time it takes to start.
"""

from __future__ import annotations

import atexit
import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from spiffe._proto import workload_pb2

from sidecar.core.svid import TrustBundle, X509Svid
from sidecar.demo.agent import (
    NO_IDENTITY,
    SILENCE,
    Answer,
    EmbeddedAgent,
    JwtAnswer,
    JwtEntry,
    jwt_bundles_response,
    x509_svid_response,
)
from sidecar.demo.jwt_issuer import JwtIssuer

_IDLE: list[subprocess.Popen[str]] = []


def _new_process() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fake_agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait(10)


@atexit.register
def _end_idle() -> None:
    while _IDLE:
        _end(_IDLE.pop())


class AgentProcess:
    """The handle of one agent; `kill` and `start` again are the agent's restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answer = Answer()
        self._bundles = NO_IDENTITY
        self._jwt = JwtAnswer()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> AgentProcess:
        self._process = _IDLE.pop() if _IDLE else _new_process()
        self._ask({"do": "agent", "path": str(self.path)})
        self._ask({"do": "answer", **_shown(self._answer)})
        self._ask({"do": "bundles", **_shown(self._bundles)})
        self._ask({"do": "jwt", **_shown_jwt(self._jwt)})
        self._ask({"do": "start"})
        return self

    def send(
        self,
        svids: Sequence[X509Svid] | X509Svid,
        bundles: Sequence[TrustBundle] | TrustBundle,
        federated: Sequence[TrustBundle] = (),
    ) -> None:
        """Answer with these SVIDs, each with its bundle."""
        svids = [svids] if isinstance(svids, X509Svid) else svids
        bundles = [bundles] * len(svids) if isinstance(bundles, TrustBundle) else bundles
        self.send_bytes(x509_svid_response(svids, bundles, federated))

    def send_bytes(self, message: bytes) -> None:
        """Answer with this message, whatever it is."""
        self._set(Answer(message=message))

    def fail(self, status: grpc.StatusCode, details: str = "as the test says") -> None:
        """End every stream with this status; `StatusCode.OK` ends it cleanly."""
        self._set(Answer(status=status, details=details))

    def send_and_end(self, svid: X509Svid, bundle: TrustBundle) -> None:
        """Answer with this SVID and end the stream right behind it."""
        message = x509_svid_response([svid], [bundle])
        self._set(Answer(message, grpc.StatusCode.OK))

    def deny(self) -> None:
        self.fail(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")

    def silence(self) -> None:
        """Take calls and never answer them."""
        self._set(Answer())

    def calls(self) -> int:
        """How many streams were opened since the start, or since `forget_calls`."""
        return int(self._ask({"do": "calls"}))

    # JWT-SVIDs: until one of these is called the agent denies them.

    def issue_jwt_svids(
        self,
        issuer: JwtIssuer,
        *spiffe_ids: str,
        hints: Sequence[str] = (),
        life: timedelta = timedelta(minutes=5),
    ) -> None:
        """Issue JWT-SVIDs for these IDs, signed for each request anew."""
        padded = [*hints, *[""] * (len(spiffe_ids) - len(hints))]
        entries = tuple(map(JwtEntry, spiffe_ids, padded))
        self._set_jwt(JwtAnswer(issuer, entries, life))

    def answer_jwt_svids(self, answer: Answer) -> None:
        """Answer every request for JWT-SVIDs with this, whatever it is."""
        self._set_jwt(JwtAnswer(fixed=answer))

    def deny_jwt_svids(self) -> None:
        self.answer_jwt_svids(NO_IDENTITY)

    def silence_jwt_svids(self) -> None:
        self.answer_jwt_svids(SILENCE)

    def send_jwt_bundles(self, bundles: Mapping[str, bytes]) -> None:
        """Send these JWK Sets, by the IDs of their trust domains."""
        self.answer_jwt_bundles(Answer(jwt_bundles_response(bundles)))

    def answer_jwt_bundles(self, answer: Answer) -> None:
        """Answer every stream of JWT bundles with this, whatever it is."""
        self._bundles = answer
        if self.runs():
            self._ask({"do": "bundles", **_shown(answer)})

    def jwt_requests(self) -> list[tuple[list[str], str]]:
        """Audiences and SPIFFE ID of every request since the start, or since `forget_calls`."""
        asked = map(workload_pb2.JWTSVIDRequest.FromString, self._jwt_requests())
        return [(list(one.audience), one.spiffe_id) for one in asked]

    def bundle_calls(self) -> int:
        """How many streams of JWT bundles were opened since then, likewise."""
        return int(self._ask({"do": "bundle calls"}))

    def forget_calls(self) -> None:
        """Count calls and requests from here."""
        self._ask({"do": "forget"})

    def _jwt_requests(self) -> list[bytes]:
        texts: list[str] = json.loads(self._ask({"do": "jwt requests"}))
        return [base64.b64decode(text) for text in texts]

    def _set_jwt(self, answer: JwtAnswer) -> None:
        self._jwt = answer
        if self.runs():
            self._ask({"do": "jwt", **_shown_jwt(answer)})

    def runs(self) -> bool:
        """Tell whether the child is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End in an orderly way: streams ended, socket removed."""
        if self.runs():
            self._ask({"do": "stop"})
            assert self._process is not None
            _IDLE.append(self._process)
            self._process = None

    def kill(self) -> None:
        """Die by SIGKILL; the socket's file stays."""
        assert self._process is not None
        self._process.kill()
        self._end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _end(self) -> None:
        assert self._process is not None
        _end(self._process)

    def _set(self, answer: Answer) -> None:
        self._answer = answer
        if self.runs():
            self._ask({"do": "answer", **_shown(answer)})

    def _ask(self, command: Mapping[str, object]) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the agent's process died: {self._process.wait(10)}")
        return answer.strip()


def _shown(answer: Answer) -> dict[str, str | None]:
    message = None if answer.message is None else base64.b64encode(answer.message).decode()
    status = answer.status.name if answer.status else None
    return {"message": message, "status": status, "details": answer.details}


def _read(shown: Mapping[str, str | None]) -> Answer:
    message, status = shown["message"], shown["status"]
    return Answer(
        None if message is None else base64.b64decode(message),
        grpc.StatusCode[status] if status else None,
        shown["details"] or "",
    )


def _shown_jwt(answer: JwtAnswer) -> dict[str, object]:
    return {
        "issuer": str(answer.issuer.number) if answer.issuer else None,
        "entries": [[entry.spiffe_id, entry.hint] for entry in answer.entries],
        "life": answer.life.total_seconds(),
        "fixed": _shown(answer.fixed),
    }


def _read_jwt(shown: Mapping[str, Any]) -> JwtAnswer:
    return JwtAnswer(
        JwtIssuer(int(shown["issuer"])) if shown["issuer"] else None,
        tuple(JwtEntry(*entry) for entry in shown["entries"]),
        timedelta(seconds=shown["life"]),
        _read(shown["fixed"]),
    )


def _child() -> None:
    agent: EmbeddedAgent | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "agent":
            agent = EmbeddedAgent(Path(command["path"]))
            print(flush=True)
        elif agent is not None:
            print(_do(agent, command), flush=True)


def _do(agent: EmbeddedAgent, command: Mapping[str, Any]) -> object:
    match command["do"]:
        case "start":
            agent.start()
        case "stop":
            agent.stop()
        case "answer":
            agent.set_answer(_read(command))
        case "bundles":
            agent.set_bundles(_read(command))
        case "jwt":
            agent.set_jwt_svids(_read_jwt(command))
        case "forget":
            agent.forget_calls()
        case "bundle calls":
            return agent.bundle_calls
        case "jwt requests":
            return json.dumps([base64.b64encode(one).decode() for one in agent.jwt_requests])
    return agent.calls


if __name__ == "__main__":
    _child()
