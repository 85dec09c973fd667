"""The stand-in for `spire-server` answers as the real program does.

The same commands are run against both; what differs by nature (IDs, times, keys, the path of the
socket) is replaced by what it is. Set SPIRE_BIN to a folder with `spire-server` to run them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.ca import Authority
from tests.spire import Spire
from tests.spire_stand_in import FakeSpireServer

TD = "spiffe://example.org"
ALIAS = f"{TD}/host/mac"
ENTRY = ("-parentID", ALIAS, "-spiffeID", f"{TD}/workload/m")
UID = ("-selector", "unix:uid:451")
JSON = ("-output", "json")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Program:
    """One of the two: a prefix and a socket."""

    def __init__(self, prefix: Sequence[str], socket: Path) -> None:
        self._prefix, self._socket = prefix, socket

    def run(self, *words: str, socket: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._prefix, *words, "-socketPath", str(socket or self._socket)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def entry_id(self, path: str) -> str:
        """The ID of an entry that `path` is the SPIFFE ID of."""
        shown = self.run("entry", "show", "-spiffeID", f"{TD}{path}", *JSON).stdout
        return str(json.loads(shown)["entries"][0]["id"])


@pytest.fixture(scope="module")
def real() -> Iterator[Program]:
    binaries = os.environ.get("SPIRE_BIN")
    if not binaries:
        pytest.skip("SPIRE_BIN is not set to a folder with spire-server and spire-agent")
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        spire = Spire(Path(binaries).resolve(), Path(name))
        try:
            spire.start()
            # The agent of that helper is not part of the comparison.
            spire.stop_agent()
            program = Path(binaries).resolve() / "spire-server"
            yield Program([str(program)], Path(name) / "server.sock")
        finally:
            spire.stop()


@pytest.fixture(scope="module")
def fake(authority: Authority) -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        der = base64.b64encode(authority.certificate.public_bytes(Encoding.DER)).decode()
        server = FakeSpireServer(Path(name) / "server.sock", "example.org", der)
        yield Program(shlex.split(server.prefix), server.path)


def _plain(value: Any, key: str = "") -> Any:
    """Replace what differs by nature."""
    if isinstance(value, dict):
        return {name: _plain(one, name) for name, one in value.items() if name != "jwt_authorities"}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if key in ("asn1", "sequence_number"):
        return "..."
    if key in ("created_at", "expires_at") and value != "0":
        return "a time"
    return _UUID.sub("UUID", value) if isinstance(value, str) else value


def _told(done: subprocess.CompletedProcess[str]) -> tuple[int, Any, str]:
    out: Any = done.stdout
    if out.startswith("{"):
        out = _plain(json.loads(out))
    elif "CERTIFICATE" in out:
        out = re.sub(r"[A-Za-z0-9+/=]{20,}\n", "", out)
    else:
        out = _UUID.sub("UUID", out).strip()
    # Go prints the flags below the first line; those are for people.
    first = done.stderr.splitlines()[:1]
    return done.returncode, out, re.sub(r"dial unix \S+:", "dial unix SOCKET:", "".join(first))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("healthcheck",), id="healthcheck"),
        pytest.param(("bundle", "show", *JSON), id="bundle"),
        pytest.param(("bundle", "show"), id="bundle, PEM"),
        pytest.param(("bundle", "show", "-output", "xml"), id="unknown format"),
        pytest.param(("agent", "evict", *JSON), id="evict nobody"),
        pytest.param(("agent", "evict", "-spiffeID", f"{TD}/spire/agent/x"), id="evict unknown"),
        pytest.param(("token", "generate", "-ttl", "0"), id="no ttl"),
        pytest.param(("token", "generate", "-ttl", "-5"), id="negative ttl"),
        pytest.param(("token", "generate", "-ttl", "x"), id="ttl no number"),
        pytest.param(("token", "generate", "-spiffeID", "spiffe://other.org/h"), id="token, TD"),
        pytest.param(
            ("token", "generate", "-spiffeID", f"{TD}/spire/agent/x"), id="token, reserved path"
        ),
        pytest.param(("token", "generate", "-spiffeID", f"{TD}/h@st"), id="token, no SPIFFE ID"),
        pytest.param(("entry", "show", "-spiffeID", f"{TD}/none", *JSON), id="show nothing"),
        pytest.param(("entry", "show", "-spiffeID", "x", *JSON), id="show no SPIFFE ID"),
        pytest.param(("entry", "show", "-nothing"), id="unknown flag"),
        pytest.param(("entry", "delete", *JSON), id="delete nothing"),
        pytest.param(("entry", "delete", "-entryID", "nope", *JSON), id="delete unknown"),
        pytest.param(("entry", "update", *ENTRY, *UID, *JSON), id="update nothing"),
        pytest.param(
            ("entry", "update", "-entryID", "nope", *ENTRY, *UID, *JSON), id="update unknown"
        ),
        pytest.param(("entry", "create", *ENTRY, *JSON), id="no selector"),
        pytest.param(("entry", "create", *ENTRY[:2], *UID, *JSON), id="no SPIFFE ID"),
        pytest.param(("entry", "create", *ENTRY[2:], *UID, *JSON), id="no parent"),
        pytest.param(("entry", "create", *ENTRY, "-selector", "unix", *JSON), id="bad selector"),
        pytest.param(("entry", "create", *ENTRY, "-selector", "unix:", *JSON), id="no value"),
        pytest.param(
            ("entry", "create", *ENTRY, *UID, "-x509SVIDTTL", "99999999999", *JSON), id="big ttl"
        ),
        pytest.param(
            ("entry", "create", *ENTRY[:2], "-spiffeID", "spiffe://other.org/w", *UID, *JSON),
            id="ID of another trust domain",
        ),
        pytest.param(
            ("entry", "create", *ENTRY[2:], "-parentID", "spiffe://other.org/h", *UID, *JSON),
            id="parent of another trust domain",
        ),
        pytest.param(
            ("entry", "create", *ENTRY[:2], "-spiffeID", f"{TD}/spire/x", *UID, *JSON),
            id="reserved path",
        ),
        pytest.param(
            ("entry", "create", *ENTRY[:2], "-spiffeID", TD, *UID, *JSON), id="ID without a path"
        ),
        pytest.param(
            ("entry", "create", *ENTRY[:2], "-spiffeID", "nope", *UID, *JSON), id="ID that is none"
        ),
    ],
)
def test_refusals_and_short_answers(real: Program, fake: Program, words: tuple[str, ...]) -> None:
    assert _told(fake.run(*words)) == _told(real.run(*words))


@pytest.mark.parametrize("command", ["bundle show", "entry show", "agent list", "token generate"])
def test_socket_that_is_not_there_or_dead(
    real: Program, fake: Program, command: str, tmp_path: Path
) -> None:
    (tmp_path / "dead").touch()
    for name in ("none", "dead"):
        words = command.split()
        theirs = real.run(*words, socket=tmp_path / name)
        assert _told(fake.run(*words, socket=tmp_path / name)) == _told(theirs)


def test_life_of_an_entry(real: Program, fake: Program) -> None:
    """Both do the same from the first entry to the last; every answer on the way is the same."""
    path = "/workload/life"
    words = ("-parentID", f"{TD}/host/life", "-spiffeID", f"{TD}{path}")
    more = ("-selector", "unix:gid:4", "-dns", "a.org", "-dns", "b.org", "-hint", "h", "-admin")
    ttl = ("-x509SVIDTTL", "60", "-jwtSVIDTTL", "70", "-entryExpiry", "1999999999", "-storeSVID")
    show = ("entry", "show", "-spiffeID", f"{TD}{path}", *JSON)

    def both(*command: str) -> None:
        one, other = (
            program.run(
                *(program.entry_id(path) if word == "ENTRY" else word for word in command), *JSON
            )
            for program in (fake, real)
        )
        assert _told(one) == _told(other)

    both("entry", "create", *words, *UID, *more, *ttl[:4], "-entryExpiry", "1999999999")
    both("entry", "create", *words, "-selector", "unix:gid:4", *UID)  # the same selectors again
    both(*show)
    both("entry", "show", "-parentID", f"{TD}/host/life")
    both("entry", "update", "-entryID", "ENTRY", *words, *UID)
    both(*show)
    both("entry", "update", "-entryID", "ENTRY", *words, *UID, "-jwtSVIDIncludeJTI")
    both("entry", "update", "-entryID", "ENTRY", *words, *UID, "-spiffeID", f"{TD}/spire/x")
    both("entry", "delete", "-entryID", "ENTRY")
    both(*show)


def test_life_of_a_token(real: Program, fake: Program) -> None:
    alias = f"{TD}/host/token"
    for program in (real, fake):
        made = json.loads(
            program.run("token", "generate", "-spiffeID", alias, "-ttl", "60", *JSON).stdout
        )
        shown = json.loads(program.run("entry", "show", "-spiffeID", alias, *JSON).stdout)
        (entry,) = shown["entries"]
        agent = f"/spire/agent/join_token/{made['value']}"
        # So it is: the list of entries shows tokens that nobody has used yet.
        assert entry["parent_id"] == {"path": agent, "trust_domain": "example.org"}
        assert entry["selectors"] == [{"type": "spiffe_id", "value": f"{TD}{agent}"}]
        assert program.run("token", "generate").stdout.startswith("Token: ")
    words = ("entry", "show", "-spiffeID", alias, *JSON)
    assert _told(fake.run(*words)) == _told(real.run(*words))
