"""Story: the main job in five acts, live, and then as a summary.

    1 identity    the daemon gets its SVID from the embedded agent
    2 stream      an allowed peer reads a token stream while the SVID rotates under it, and
                  after each rotation the files on disk are loaded and compared
    3 requests    each one decided on its own, on one connection
    4 refusals    a stranger, a forger and a peer without a certificate, each with its reason
    5 latency     what the sidecar adds to a token and to a request

Gives whether all of it held; every claim on the screen is a check that can fail.
"""

from __future__ import annotations

import signal
import ssl
import stat
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import quantiles

import httpx
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from rich.console import Console

from sidecar.core.svid import serial_text
from sidecar.demo.authority import Authority
from sidecar.demo.requests import requests
from sidecar.demo.screen import INDENT, Results, TokenPrinter, act, opening, summary
from sidecar.demo.stage import (
    DNS_NAME,
    OWN_ID,
    STRANGER_ID,
    SVID_SECONDS,
    TRAEFIK_ID,
    Stage,
    set_up,
)
from sidecar.demo.traefik import (
    ClientFiles,
    Token,
    chat,
    client,
    plain_client,
    server_id,
    tokens,
    write_client_files,
)

ROTATION_SECONDS = 2.0
REQUESTS = 300
_CLIENT_LIFE = timedelta(hours=12)


async def show(keep: bool) -> bool:
    """Play the demonstration; give whether all of it held."""
    console = Console(highlight=False)
    results = Results()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="spiffe-sidecar-") as name:
        opening(console)
        async with set_up(Path(name)) as stage:
            traefik = _files_for(stage, "traefik", stage.authority)
            await _identity(console, stage, results)
            direct, through = await _stream(console, stage, traefik, results)
            await requests(console, stage, traefik, results)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_rotate_quietly, stage)
                await _refusals(console, stage, traefik, results)
                await _latency(console, stage, traefik, results, (direct, through))
                summary(console, results, time.monotonic() - started)
                if keep:
                    await _keep(console, stage, traefik)
                nursery.cancel_scope.cancel()
    return results.all_held


async def _identity(console: Console, stage: Stage, results: Results) -> None:
    act(console, 1, "Identity from the agent")
    line = await stage.log.wait_for("identity obtained")
    console.print(f"{INDENT}{line['spiffe_id']}")
    console.print(f"{INDENT}serial {_short(line['serial'])}, expires {line['expires']}")
    console.print(f"{INDENT}serving mTLS on {stage.url}\n")
    held = line["spiffe_id"] == str(OWN_ID) and line["serial"] == stage.issued[0].serial
    results.add(held, "identity obtained", line["spiffe_id"])


async def _stream(
    console: Console, stage: Stage, traefik: ClientFiles, results: Results
) -> tuple[list[Token], list[Token]]:
    """Read one answer through the sidecar and, to compare, the same from the model server."""
    act(console, 2, f"An answer while the SVID rotates every {ROTATION_SECONDS:g} s")
    printer = TokenPrinter(console)
    direct: list[Token] = []
    through: list[Token] = []
    seen_id = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect_direct, stage, direct)
        nursery.start_soon(_rotate_on_and_on, stage, printer, results)
        async with (
            client(stage.url, traefik.bundle, traefik) as http,
            http.stream("POST", "/v1/chat/completions", json=chat()) as response,
        ):
            seen_id = server_id(response)
            async for token in tokens(response):
                printer.word(token.text)
                through.append(token)
        nursery.cancel_scope.cancel()
    printer.end_line()
    console.print()
    expected = stage.model_server.tokens
    whole = [token.text.strip() for token in through] == expected
    rotated = results.rotations >= 3
    results.add(seen_id == str(OWN_ID), "client verified the sidecar", seen_id)
    results.add(
        whole and rotated,
        "running answer survived rotation",
        f"{len(through)} of {len(expected)} tokens, in order, {results.rotations} rotations",
    )
    results.add(
        results.pairs == results.rotations > 0,
        "files on disk followed",
        f"{results.pairs} of {results.rotations} generations: pair matches, key 0600",
    )
    return direct, through


async def _collect_direct(stage: Stage, into: list[Token]) -> None:
    async with (
        plain_client(stage.backend_url) as http,
        http.stream("POST", "/v1/chat/completions", json=chat()) as response,
    ):
        async for token in tokens(response):
            into.append(token)


async def _rotate_on_and_on(stage: Stage, printer: TokenPrinter, results: Results) -> None:
    while True:
        await trio.sleep(ROTATION_SECONDS)
        svid = stage.rotate()
        await stage.log.wait_for("identity rotated", serial=svid.serial)
        published = await stage.log.wait_for("certificate files published", serial=svid.serial)
        problem = _pair_problem(stage.folder / "certs", svid.serial)
        results.rotations += 1
        results.pairs += problem is None
        printer.news(
            f"[green]~ rotated[/green] {_short(svid.serial)} lives {SVID_SECONDS} s; "
            f"{published['generation']} on disk, {problem or 'pair matches'}"
        )


def _pair_problem(directory: Path, serial: str) -> str | None:
    """Load the files as a program would; say what is wrong with them."""
    current = (directory / "current").resolve()
    leaf = x509.load_pem_x509_certificate((current / "svid.pem").read_bytes())
    key = load_pem_private_key((current / "svid_key.pem").read_bytes(), None)
    if serial_text(leaf) != serial:
        return f"serial {_short(serial_text(leaf))} on disk"
    if key.public_key() != leaf.public_key():
        return "key and certificate do not match"
    mode = stat.S_IMODE((current / "svid_key.pem").stat().st_mode)
    return None if mode == 0o600 else f"key has mode {mode:04o}"


async def _refusals(console: Console, stage: Stage, traefik: ClientFiles, results: Results) -> None:
    act(console, 4, "Who is turned away")
    forger = Authority("demo.local")  # the right name, and an authority that nobody trusts
    cases = (
        ("a stranger of our trust domain", _files_for(stage, "stranger", stage.authority)),
        ("traefik's ID, forged by a foreign CA", _files_for(stage, "forged", forger)),
        ("no certificate at all", None),
    )
    before = stage.model_server.requests
    for who, files in cases:
        after = len(stage.log.lines)
        seen = await _try_chat(stage, traefik, files)
        event = "request" if files and "stranger" in who else "peer refused"
        line = await stage.log.wait_for(event, after=after)
        console.print(f"{INDENT}[red]refused[/red]  {who}")
        console.print(f"{INDENT}  log: {line['reason']}", markup=False)
        console.print(f"{INDENT}  peer: {seen}", markup=False)
        results.add(seen is not None, f"refused: {who}", line["reason"])
    reached = stage.model_server.requests - before
    console.print(f"{INDENT}requests of theirs that the model server saw: {reached}\n")
    results.add(reached == 0, "model server saw nothing of them", f"{reached} requests")


async def _try_chat(stage: Stage, traefik: ClientFiles, own: ClientFiles | None) -> str | None:
    """Give the error that a refused peer sees, or None if it was served."""
    async with client(stage.url, traefik.bundle, own) as http:
        try:
            response = await http.post("/v1/chat/completions", json=chat())
        except httpx.TransportError as exc:
            return _alert(exc) or str(exc) or type(exc).__name__
    return None if response.is_success else f"{response.status_code} {response.text}"


def _alert(exc: BaseException) -> str | None:
    """Find the TLS alert behind an exception of httpx."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    reason = cause.reason if isinstance(cause, ssl.SSLError) else None
    return f"TLS alert: {reason.rpartition('ALERT_')[2].lower()}" if reason else None


async def _latency(
    console: Console,
    stage: Stage,
    traefik: ClientFiles,
    results: Results,
    answers: tuple[list[Token], list[Token]],
) -> None:
    act(console, 5, "What it costs")
    requests_direct: list[float] = []
    requests_through: list[float] = []
    async with (
        client(stage.url, traefik.bundle, traefik) as http,
        plain_client(stage.backend_url) as plain,
    ):
        for _ in range(REQUESTS):  # in turn, so that both meet the same moods of the machine
            requests_direct.append(await _seconds(plain))
            requests_through.append(await _seconds(http))
    direct, through = answers
    pairs = (
        ("token", [one.seconds for one in direct], [one.seconds for one in through]),
        ("request", requests_direct, requests_through),
    )
    for what, without, with_sidecar in pairs:
        text = _added(without, with_sidecar)
        console.print(f"{INDENT}a {what}: {text}")
        # A figure, not a promise: it is shown whatever it is.
        results.add(True, f"added latency, a {what}", text)
    console.print()


async def _seconds(http: httpx.AsyncClient) -> float:
    started = time.perf_counter()
    (await http.get("/api/version")).raise_for_status()
    return time.perf_counter() - started


def _added(without: list[float], with_sidecar: list[float]) -> str:
    """Give the differences of the medians and of the 99th percentiles in milliseconds."""
    low, high = quantiles(without, n=100), quantiles(with_sidecar, n=100)
    p50, p99 = ((high[at] - low[at]) * 1000 for at in (49, 98))
    return f"{p50:+.2f} ms at p50, {p99:+.2f} ms at p99 ({len(with_sidecar)} samples)"


async def _keep(console: Console, stage: Stage, traefik: ClientFiles) -> None:
    """Go on rotating until Ctrl-C, and say what can be tried meanwhile."""
    address = stage.url.removeprefix("https://")
    port = address.rpartition(":")[2]
    options = f"--cert {traefik.certificate} --key {traefik.private_key}"
    trust = f"--cacert {traefik.bundle} --connect-to ::{address}"
    url = f"https://{DNS_NAME}:{port}"
    commands = (
        (
            "an answer, streamed",
            f"curl -N {trust} {options} -d '{{}}' {url}/v1/chat/completions",
        ),
        ("without a certificate: refused", f"curl {trust} {url}/"),
        (
            "the SVID it presents now; a new one every 2 s",
            f"openssl s_client -connect {address} -cert {traefik.certificate} "
            f"-key {traefik.private_key} -CAfile {traefik.bundle} -verify_return_error </dev/null",
        ),
        ("the files", f"ls -l {stage.folder}/certs/ {stage.folder}/certs/current/"),
    )
    console.print(f"Everything keeps running below {stage.folder}. Try, in another terminal:\n")
    for what, command in commands:
        console.print(f"  # {what}\n  {command}\n", soft_wrap=True, markup=False)
    console.print("Ctrl-C ends it.")
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)


async def _rotate_quietly(stage: Stage) -> None:
    while True:
        await trio.sleep(ROTATION_SECONDS)
        stage.rotate()


def _files_for(stage: Stage, name: str, authority: Authority) -> ClientFiles:
    """Give a peer an SVID of its own; the forger's carries traefik's ID."""
    spiffe_id = STRANGER_ID if name == "stranger" else TRAEFIK_ID
    svid = authority.issue(spiffe_id, _CLIENT_LIFE)
    return write_client_files(stage.folder, name, svid, stage.authority.bundle)


def _short(serial: str) -> str:
    return f"{serial[:8]}.."
