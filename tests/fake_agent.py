"""A SPIRE agent's Workload API in a child process: real gRPC on a real Unix socket.

`AgentProcess` is the handle in the test; `python -m tests.fake_agent SOCKET` is the child, told
one command per line on its standard input and acknowledging each with one line.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc

from sidecar.core.svid import TrustBundle, X509Svid
from sidecar.demo.agent import Answer, EmbeddedAgent, x509_svid_response


class AgentProcess:
    """The handle of one agent; `kill` and `start` again are the agent's restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answer = Answer()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> AgentProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_agent", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._tell(self._answer)
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

    def deny(self) -> None:
        self.fail(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")

    def silence(self) -> None:
        """Take calls and never answer them."""
        self._set(Answer())

    def calls(self) -> int:
        """How many streams were opened since the child was started."""
        return int(self._ask({"do": "calls"}))

    def stop(self) -> None:
        """End in an orderly way: streams ended, socket removed."""
        if self._process is not None and self._process.poll() is None:
            self._ask({"do": "stop"})
            self._end()

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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def _set(self, answer: Answer) -> None:
        self._answer = answer
        if self._process is not None and self._process.poll() is None:
            self._tell(answer)

    def _tell(self, answer: Answer) -> None:
        message = None if answer.message is None else base64.b64encode(answer.message).decode()
        status = answer.status.name if answer.status else None
        command = {"do": "answer", "message": message, "status": status, "details": answer.details}
        self._ask(command)

    def _ask(self, command: dict[str, str | None]) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the agent's process died: {self._process.wait(10)}")
        return answer.strip()


def _child(path: Path) -> None:
    agent = EmbeddedAgent(path)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "start":
            agent.start()
        elif command["do"] == "stop":
            agent.stop()
        elif command["do"] == "answer":
            message, status = command["message"], command["status"]
            agent.set_answer(
                Answer(
                    None if message is None else base64.b64decode(message),
                    grpc.StatusCode[status] if status else None,
                    command["details"],
                )
            )
        print(agent.calls, flush=True)


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
