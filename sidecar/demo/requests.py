"""Act 3: each request is decided on its own, on one and the same connection.

asked for    an allowed endpoint; one that no rule names; one with a forged identity header
changed      the policy, while the connection stays open
asked again  what was allowed before
"""

from __future__ import annotations

import httpx
from rich.console import Console

from sidecar.demo.screen import INDENT, Results, act
from sidecar.demo.stage import STRANGER_ID, TRAEFIK_ID, Stage
from sidecar.demo.traefik import ClientFiles, chat, client

_VERSION = "/api/version"
_PULL = "/api/pull"


async def requests(console: Console, stage: Stage, traefik: ClientFiles, results: Results) -> None:
    """Play the act on one connection of traefik's."""
    act(console, 3, "Each request on its own, on one connection")
    before, first = stage.model_server.requests, len(stage.log.lines)
    async with client(stage.url, traefik.bundle, traefik) as http:
        allowed = await _ask(console, http, "GET", _VERSION)
        results.add(allowed.status_code == 200, f"allowed: GET {_VERSION}", "200")
        refused = await _ask(console, http, "POST", _PULL, {"model": "llama3"})
        _add_refusal(results, f"refused: POST {_PULL}", refused)
        await _forge(console, http, results)
        await _take_rule_away(console, stage, http, results)
    lines = [line for line in stage.log.lines[first:] if line.get("path") in (_VERSION, _PULL)]
    ports = {line["address"] for line in lines}
    results.add(len(ports) == 1, "all of it on one connection", ", ".join(sorted(ports)))
    reached = stage.model_server.requests - before
    results.add(reached == 2, "model server saw the allowed ones alone", f"{reached} requests")
    console.print()


async def _forge(console: Console, http: httpx.AsyncClient, results: Results) -> None:
    forged = {"X-Spiffe-Id": str(STRANGER_ID), "X_Spiffe_Id": str(STRANGER_ID)}
    response = await http.get(_VERSION, headers=forged)
    told = response.json()["told"]
    console.print(f"{INDENT}[green]{response.status_code}[/green]  X-Spiffe-Id: {STRANGER_ID}")
    console.print(f"{INDENT}     the model server was told {', '.join(told)}", markup=False)
    results.add(told == [str(TRAEFIK_ID)], "forged identity header replaced", ", ".join(told))


async def _take_rule_away(
    console: Console, stage: Stage, http: httpx.AsyncClient, results: Results
) -> None:
    after = len(stage.log.lines)
    stage.write_policy(endpoints=("POST /v1/chat/completions",))
    await stage.log.wait_for("policy loaded", after=after)
    console.print(f"  [yellow]~ policy.toml changed:[/yellow] GET {_VERSION} is gone from it")
    refused = await _ask(console, http, "GET", _VERSION)
    _add_refusal(results, "refused after its rule was taken away", refused)
    after = len(stage.log.lines)
    stage.write_policy()
    await stage.log.wait_for("policy loaded", after=after)


async def _ask(
    console: Console, http: httpx.AsyncClient, method: str, path: str, body: object = None
) -> httpx.Response:
    response = await http.request(method, path, json=body or (chat() if method == "POST" else None))
    style = "green" if response.status_code == 200 else "red"
    console.print(f"{INDENT}[{style}]{response.status_code}[/{style}]  {method} {path}")
    if response.status_code != 200:
        console.print(f"{INDENT}     {response.text}", markup=False)
    return response


def _add_refusal(results: Results, claim: str, response: httpx.Response) -> None:
    results.add(response.status_code == 403, claim, response.json().get("error", response.text))
