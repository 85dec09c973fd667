"""A stand-in for the program `spire-agent`: `run`, `healthcheck` and `--version`.

Takes agent.conf, trust bundle and join token as the real one does, and asks the server that they
name (`tests.runbook.spire_server`). What it issues goes to every caller: it attests nobody.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

from spiffe._proto import workload_pb2

from sidecar.demo.agent import NO_IDENTITY, Answer, EmbeddedAgent

_SYNC_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--version"]:
            print("1.16.0")
        case ["healthcheck", "-socketPath", path]:
            return _healthcheck(path)
        case ["run", "-config", path, *logged] if logged[:1] in ([], ["-logFile"]):
            return _run(Path(path).read_text(), *logged[1:])
        case _:
            print(f"the stand-in for spire-agent does not know: {arguments}", file=sys.stderr)
            return 64
    return 0


def _healthcheck(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        if sock.connect_ex(path):
            print("Agent is unhealthy: unable to determine health", file=sys.stderr)
            return 1
    print("Agent is healthy.")
    return 0


def _run(conf: str, log: str = "") -> int:
    if log:
        sys.stderr = Path(log).open("a", buffering=1)  # noqa: SIM115 - as long as we live
    values = dict(re.findall(r'^\s*(\w+) = "?([^"\n]*)"?$', conf, re.MULTILINE))
    data = Path(values["data_dir"], "agent-data.json")
    token = Path(values["join_token_file"]).read_text().strip()
    assert "BEGIN CERTIFICATE" in Path(values["trust_bundle_path"]).read_text()
    server = (values["server_address"], int(values["server_port"]))
    agent = EmbeddedAgent(Path(values["socket_path"]))
    known = json.loads(data.read_text())["agent"] if data.exists() else ""
    asked: dict[str, Any] = {"agent": known, "token": token, "has": None}
    while True:
        answer = _ask(server, asked)
        if answer is None:
            print('level=error msg="the server is away"', file=sys.stderr)
        elif "refused" in answer:
            # It cannot be attested again: what it was is of no use any more.
            data.unlink(missing_ok=True)
            if asked["has"] is not None:
                agent.stop()
            print(f'level=error msg="Agent crashed" error="{answer["refused"]}"', file=sys.stderr)
            return 1
        elif "svids" in answer:
            if "own" in answer:
                kept = {"agent": answer["agent"], "svid": [answer["own"]], "reattestable": False}
                data.write_text(json.dumps(kept))
            agent.set_answer(_response(answer))
            if asked["has"] is None:
                agent.start()
                Path(values["socket_path"]).chmod(0o777)
            asked = {"agent": answer["agent"], "has": answer["entries"]}
        time.sleep(_SYNC_SECONDS)


def _ask(server: tuple[str, int], asked: dict[str, Any]) -> dict[str, Any] | None:
    try:
        with socket.create_connection(server, 5) as sock, sock.makefile("rw") as stream:
            stream.write(json.dumps(asked) + "\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
            return answer
    except (OSError, ValueError):
        return None


def _response(answer: dict[str, Any]) -> Answer:
    if not answer["svids"]:
        return NO_IDENTITY
    response = workload_pb2.X509SVIDResponse()
    for svid in answer["svids"]:
        response.svids.add(
            spiffe_id=svid["spiffe_id"],
            x509_svid=base64.b64decode(svid["chain"]),
            x509_svid_key=base64.b64decode(svid["key"]),
            bundle=base64.b64decode(answer["bundle"]),
        )
    return Answer(response.SerializeToString())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
