"""`explain` as a person calls it: words, a pasted curl command, a line of the log; exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.operations.explain import QuestionError, read_question
from sidecar.operations.pasted_request import read_curl, read_log_line

PEER = "spiffe://e.org/workload/traefik"
CONFIG = """
[listener]
address = "127.0.0.1:0"
[backend]
address = "127.0.0.1:11434"
[policy]
file = "policy.toml"
"""
POLICY = f"""
[[allow]]
name = "traefik"
peers = "{PEER}"
endpoints = ["preset:ollama"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    path = tmp_path / "sidecar.toml"
    path.write_text(CONFIG)
    return path


def explain(config: Path, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["explain", "--config", str(config), *arguments], input=stdin)


def first_line(done: Result) -> str:
    return done.stdout.splitlines()[0]


# Exit codes and the verdict in the first line.


def test_real_command_writes_plain_text_and_tells_the_verdict_by_its_exit_code(
    config: Path,
) -> None:
    command = [sys.executable, "-m", "sidecar", "explain", "--config", str(config), "--peer", PEER]
    asked = ["--method", "POST", "--path", "/api/pull"]
    done = subprocess.run([*command, *asked], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.decode().splitlines()[:3] == [
        "REFUSED: POST /api/pull: no rule for this peer names this endpoint",
        f"  peer      {PEER}",
        "near misses:",
    ]
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        pytest.param(
            ["--method", "POST", "--path", "/v1/chat/completions"],
            "ALLOWED by rule 'traefik': POST /v1/chat/completions",
            id="request",
        ),
        pytest.param(
            ["--method", "head", "--path", "/v1/models?limit=2"],
            "ALLOWED by rule 'traefik': HEAD /v1/models",
            id="method in lower case, path with a query",
        ),
        pytest.param(
            ["--method", "GET", "--path", "/health"],
            "ALLOWED by rule 'traefik': GET /health",
            id="our health",
        ),
        pytest.param([], f"ALLOWED by rule 'traefik': {PEER} is admitted", id="peer alone"),
        pytest.param(
            ["--curl", "curl https://models.example/v1/messages -d '{}'"],
            "ALLOWED by rule 'traefik': POST /v1/messages",
            id="curl",
        ),
    ],
)
def test_allowed_is_exit_0(config: Path, arguments: list[str], verdict: str) -> None:
    done = explain(config, "--peer", PEER, *arguments)
    assert (done.exit_code, first_line(done)) == (0, verdict)


@pytest.mark.parametrize(
    ("peer", "arguments", "verdict"),
    [
        pytest.param(
            PEER,
            ["--method", "GET", "--path", "/api/chat"],
            "REFUSED: GET /api/chat: no rule for this peer names this endpoint",
            id="endpoint",
        ),
        pytest.param(
            f"{PEER}2",
            ["--method", "GET", "--path", "/v1/models"],
            "REFUSED: GET /v1/models: no allow rule names this peer",
            id="peer with a request",
        ),
        pytest.param(
            f"{PEER}2", [], f"REFUSED: {PEER}2: no allow rule names this peer", id="peer alone"
        ),
        pytest.param(
            f"{PEER}2",
            ["--method", "GET", "--path", "/health"],
            "REFUSED: GET /health: no allow rule names this peer",
            id="health of a stranger",
        ),
        pytest.param(
            PEER,
            ["--curl", "curl -X post https://models.example/v1/messages"],
            "REFUSED: post /v1/messages: a method is written in upper case; no rule is asked",
            id="curl with a method in lower case",
        ),
    ],
)
def test_refused_is_exit_1(config: Path, peer: str, arguments: list[str], verdict: str) -> None:
    done = explain(config, "--peer", peer, *arguments)
    assert (done.exit_code, first_line(done)) == (1, verdict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "expected --peer with a SPIFFE ID", id="nobody"),
        pytest.param(["--peer", PEER, "--method", "GET"], "together", id="method alone"),
        pytest.param(["--peer", PEER, "--path", "/"], "together", id="path alone"),
        pytest.param(
            ["--peer", PEER, "--method", "GET", "--path", "v1/models"],
            "expected a path that begins with /, found 'v1/models'",
            id="path without a slash",
        ),
        pytest.param(["--peer", f"{PEER}/"], f"did you mean {PEER}?", id="slash at the end"),
        pytest.param(["--peer", PEER[9:]], f"did you mean {PEER}?", id="no scheme"),
        pytest.param(
            ["--peer", PEER.replace("e.org", "E.org")], f"did you mean {PEER}?", id="upper case"
        ),
        pytest.param(["--peer", "spiffe://e.org//a"], "empty path segment", id="no ID"),
        pytest.param(["--peer", ""], "not a SPIFFE ID", id="empty ID"),
        pytest.param(
            ["--peer", PEER, "--curl", "curl http://h/", "--path", "/"],
            "expected one of",
            id="both",
        ),
        pytest.param(["--peer", PEER, "--curl", ""], "expected a curl command", id="no command"),
        pytest.param(["--peer", PEER, "--curl", "wget http://h/"], "expected a curl", id="wget"),
        pytest.param(["--log", "INFO started"], "expected a line of the log", id="other line"),
        pytest.param(["--peer", PEER, "x"], "unexpected extra argument", id="an argument too many"),
    ],
)
def test_what_is_no_question_is_exit_2(config: Path, arguments: list[str], message: str) -> None:
    done = explain(config, *arguments)
    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")
    assert message in done.output


@pytest.mark.parametrize("file", ["sidecar.toml", "policy.toml"])
def test_problem_of_a_file_is_exit_78(config: Path, file: str) -> None:
    (config.parent / file).write_text("x = 1\n")
    done = explain(config, "--peer", PEER)
    assert done.exit_code == 78
    assert done.output.startswith(f"error: {file}: ")


@pytest.mark.parametrize("arguments", [[], ["--method", "GET", "--path", "/v1/models"]])
def test_helper_has_nothing_to_explain(config: Path, arguments: list[str]) -> None:
    config.write_text('[cert_files]\ndirectory = "certs"\n')
    done = explain(config, "--peer", PEER, *arguments)
    assert done.exit_code == 2
    assert f"{config} has no [listener], so there is nothing to decide" in done.output


def test_in_mode_stream_the_request_is_not_looked_at(config: Path) -> None:
    config.write_text(CONFIG.replace("[backend]", '[backend]\nmode = "stream"'))
    (config.parent / "policy.toml").write_text(POLICY.replace("endpoints", "# endpoints"))
    done = explain(config, "--peer", PEER, "--method", "DELETE", "--path", "/api/delete")
    assert (done.exit_code, first_line(done)) == (
        0,
        f"ALLOWED by rule 'traefik': {PEER} is admitted",
    )
    assert "  DELETE /api/delete is not looked at" in done.stdout.splitlines()
    assert explain(config, "--peer", f"{PEER}2").exit_code == 1


# Pasted text.


def test_command_with_quotes_of_its_own_is_read_from_standard_input(config: Path) -> None:
    command = (
        "curl 'https://models.example/v1/chat/completions' \\\r\n"
        "  -H 'content-type: application/json' \\\n"
        """  --data-raw $'{"content": "what\\'s up?"}' --compressed\n"""
    )
    done = explain(config, "--peer", PEER, "--curl", "-", stdin=command)
    assert (done.exit_code, first_line(done)) == (
        0,
        "ALLOWED by rule 'traefik': POST /v1/chat/completions",
    )


LINE = (
    "2026-11-21T14:00:00Z warning request address=10.0.0.7:4711 peer={peer} serial=0A "
    "decision=refused method=POST path=/api/pull status=403 seconds=0.01 request_id=a1 "
    "reason='no rule for peer=spiffe://x.org/a method=GET path=/x'"
)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(LINE.format(peer=PEER), id="console"),
        pytest.param(
            f"Nov 21 14:00:00 mac spiffe-sidecar[7]: {LINE.format(peer=PEER)}\n", id="journal"
        ),
        pytest.param(
            json.dumps({"event": "request", "peer": PEER, "method": "POST", "path": "/api/pull"}),
            id="JSON",
        ),
        pytest.param(
            f'Nov 21 mac spiffe-sidecar[7]: {{"method":"POST","peer":"{PEER}","path":"/api/pull"}}',
            id="JSON in a journal",
        ),
    ],
)
def test_line_of_the_log_is_peer_and_request(config: Path, line: str) -> None:
    done = explain(config, "--log", "-", stdin=line)
    assert done.exit_code == 1
    assert done.stdout.startswith("REFUSED: POST /api/pull: no rule for this peer")
    assert f"  peer      {PEER}" in done.stdout.splitlines()


def test_peer_that_is_written_out_wins_over_the_lines() -> None:
    asked = read_question("spiffe://e.org/other", log=LINE.format(peer=PEER))
    assert str(asked.peer) == "spiffe://e.org/other"
    assert str(asked.request) == "POST /api/pull"


def test_line_of_a_connection_asks_for_the_peer_alone() -> None:
    asked = read_question(
        None, log=f"x warning peer refused address=1.2.3.4:5 peer={PEER} serial=1"
    )
    assert (str(asked.peer), asked.request) == (PEER, None)


@pytest.mark.parametrize("left_out", ["method", "path"])
def test_line_with_half_a_request_asks_for_the_peer_alone(left_out: str) -> None:
    fields = {"peer": PEER, "method": "GET", "path": "/v1/models"}
    del fields[left_out]
    assert read_log_line(json.dumps(fields)).request is None


def test_path_of_a_line_that_names_an_endpoint_is_read_whole() -> None:
    line = f"x info    request peer={PEER} method=GET path=/v1/models/{{model...}} status=200"
    assert str(read_log_line(line).request) == "GET /v1/models/{model...}"


def test_value_that_was_quoted_is_read_as_it_was() -> None:
    line = f"""x warning request peer={PEER} method=GET path='/a\\x1b b="c' status=400"""
    request = read_log_line(line).request
    assert request is not None
    assert request.path == '/a\x1b b="c'


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="broken JSON"),
        pytest.param("[1]", id="JSON of something else"),
        pytest.param('{"peer": 3, "method": "GET", "path": "/"}', id="peer is a number"),
        pytest.param("x info ready listening=127.0.0.1:6701", id="line about no peer"),
        pytest.param(
            "x warning request decision=refused status=400 method=GET path=/", id="no peer"
        ),
        pytest.param("x info nopeer=spiffe://e.org/a", id="another key that ends so"),
    ],
)
def test_line_that_tells_of_no_peer_is_refused(line: str) -> None:
    with pytest.raises(QuestionError, match="expected a line of the log"):
        read_question(None, log=line)


URL = "http://127.0.0.1:1"
# What curl sends; U stands for the server's URL.
SENT = [
    pytest.param("curl U", "GET /", id="no path"),
    pytest.param("curl U?a=/b", "GET /", id="query without a path"),
    pytest.param("curl 'U/v1/models?a=/b#c'", "GET /v1/models", id="query and fragment"),
    pytest.param("curl -d x U/a", "POST /a", id="-d"),
    pytest.param("curl -dx U/a", "POST /a", id="-d with its value"),
    pytest.param("curl U/a --data @/dev/null", "POST /a", id="--data behind the URL"),
    pytest.param("curl --data-raw 'a b' U/a", "POST /a", id="--data-raw"),
    pytest.param("curl --data-binary x U/a", "POST /a", id="--data-binary"),
    pytest.param("curl --data-urlencode a=b U/a", "POST /a", id="--data-urlencode"),
    pytest.param("""curl --json '{"a": "U/b"}' U/a""", "POST /a", id="--json"),
    pytest.param("curl -F a=b U/a", "POST /a", id="-F"),
    pytest.param("curl -I U/a", "HEAD /a", id="-I"),
    pytest.param("curl --head U/a", "HEAD /a", id="--head"),
    pytest.param("curl -G -d a=b U/a", "GET /a", id="-G with data"),
    pytest.param("curl -G -I U/a", "HEAD /a", id="-G and -I"),
    pytest.param("curl -T /dev/null U/a", "PUT /a", id="-T"),
    pytest.param("curl -XDELETE U/a", "DELETE /a", id="-X with its value"),
    pytest.param("curl -sSX DELETE U/a", "DELETE /a", id="-X behind others"),
    pytest.param("curl -sIXGET U/a", "GET /a", id="-X over -I"),
    pytest.param("curl --request PATCH -d x U/a", "PATCH /a", id="--request over data"),
    pytest.param("curl -X POST -X DELETE U/a", "DELETE /a", id="the last -X"),
    pytest.param("curl -X post U/a", "post /a", id="method in lower case"),
    pytest.param("curl --url U/a -o /dev/null -m 9", "GET /a", id="--url"),
    pytest.param(
        "curl -sS -H'A: b' -H 'C: U/d' -w '%{http_code}' -u a:b -k U/a",
        "GET /a",
        id="other options",
    ),
    pytest.param("curl -A x --max-time 9 --retry 0 --fail U/a", "GET /a", id="long options"),
    pytest.param("curl U/a/../b/./c", "GET /b/c", id="dots"),
    pytest.param("curl U/a/..", "GET /", id="dots at the end"),
    pytest.param("curl U/a/.", "GET /a/", id="dot at the end"),
    pytest.param("curl U/../../a", "GET /a", id="dots above the root"),
    pytest.param("curl U/a/.../b", "GET /a/.../b", id="three dots"),
    pytest.param("curl --path-as-is U/a/../b", "GET /a/../b", id="dots that are kept"),
    pytest.param("curl U/a/%2e%2e/b", "GET /a/%2e%2e/b", id="escaped dots"),
    pytest.param("curl U//a//b", "GET //a//b", id="doubled slashes"),
    pytest.param("curl U/a/", "GET /a/", id="slash at the end"),
    pytest.param("curl -g 'U/a[1]{2}'", "GET /a[1]{2}", id="brackets without globbing"),
    pytest.param("curl U/a%2Fb", "GET /a%2Fb", id="escaped slash"),
    pytest.param("curl U/é", "GET /%c3%a9", id="beyond ASCII"),
    pytest.param("curl --request-target '/b?c' U/a", "GET /b", id="--request-target"),
    pytest.param("curl -s U/a | cat", "GET /a", id="pipe"),
    pytest.param("curl -s U/a > /dev/null 2>&1", "GET /a", id="redirection"),
    pytest.param("curl -s U/a && true", "GET /a", id="next command"),
    pytest.param("curl U/a # U/b", "GET /a", id="comment"),
    pytest.param("curl \\\n  -d x \\\n  U/a", "POST /a", id="several lines"),
    pytest.param("curl -d $'it\\'s\\n' U/a", "POST /a", id="quotes of a browser"),
    pytest.param("A=b env -u C curl U/a", "GET /a", id="in front of curl"),
]


@pytest.mark.parametrize(("command", "request_line"), SENT)
def test_curl_command_is_read_as_curl_reads_it(command: str, request_line: str) -> None:
    assert str(read_curl(command.replace("U", URL))) == request_line


@pytest.fixture(scope="module")
def recorder() -> Iterator[tuple[str, list[str]]]:
    """A server's URL, and the request lines that it has got."""
    lines: list[str] = []

    class Recording(StreamRequestHandler):
        def handle(self) -> None:
            method, target, _ = self.rfile.readline().decode("latin-1").split(" ")
            lines.append(f"{method} {target.partition('?')[0]}")
            self.wfile.write(b"HTTP/1.0 204 No Content\r\n\r\n")

    server = TCPServer(("127.0.0.1", 0), Recording)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", lines
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this host")
@pytest.mark.parametrize(("command", "request_line"), SENT)
def test_curl_itself_sends_what_the_table_says(
    command: str, request_line: str, recorder: tuple[str, list[str]]
) -> None:
    url, lines = recorder
    lines.clear()
    shell = shutil.which("bash") or "sh"
    command = command.replace("U", url)
    subprocess.run([shell, "-c", command], capture_output=True, timeout=30, check=False)
    assert lines == [request_line]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param("curl", "found 0", id="no URL"),
        pytest.param("curl -s -H U/a", "found 0", id="URL as the value of an option"),
        pytest.param("curl U/a U/b", "found 2", id="two URLs"),
        pytest.param("curl U/a --url U/b", "found 2", id="two URLs, one by an option"),
        pytest.param("curl U/a --next U/b", "--next", id="two requests"),
        pytest.param("curl 'U/a b'", "without spaces", id="space in the URL"),
        pytest.param("curl 'U/a[1-3]'", "expected one path", id="several URLs in one"),
        pytest.param("curl U/{a,b}", "expected one path", id="alternatives"),
        pytest.param("curl -d", "a value behind -d", id="no value"),
        pytest.param("curl U/a --request", "a value behind --request", id="no value, long"),
        pytest.param("curl --request=PUT U/a", "behind a space", id="value behind an equals sign"),
        pytest.param("curl ftp://h/a", "http or https", id="other scheme"),
        pytest.param("curl file:///etc/passwd", "http or https", id="file"),
        pytest.param("curl http:///a", "with a host", id="no host"),
        pytest.param("curl $BASE", "with a host", id="URL in a variable"),
        pytest.param("curl 'U/a", "no closing quotation", id="open quote"),
        pytest.param("echo U/a", "expected a curl command", id="no curl"),
        pytest.param("curlie U/a", "expected a curl command", id="another program"),
    ],
)
def test_what_is_no_single_request_of_curl_is_refused(command: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_curl(command.replace("U/", f"{URL}/"))
