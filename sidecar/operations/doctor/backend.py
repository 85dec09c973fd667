"""Gathers the facts of the group "backend": connects to it, and asks what costs it nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import httpx
import trio

from sidecar.adapters.host.paths import way_to
from sidecar.core.config import BackendTable
from sidecar.core.diagnosis.backend import (
    Asked,
    BackendFacts,
    Product,
    Streamed,
    missing_by_version,
)
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.endpoint import ANY_ENDPOINT, Endpoint
from sidecar.core.policy import Policy
from sidecar.operations.doctor.agent import knock
from sidecar.operations.doctor.asking import Answer, ask, client_of, streamed_answer
from sidecar.operations.doctor.exposure import exposed
from sidecar.operations.doctor.hearing import Hearing
from sidecar.operations.doctor.subject import Subject
from sidecar.operations.doctor.together import Pending
from sidecar.operations.doctor.witness import Testimony

_ALL_SECONDS = 6.0
_FOREIGN_HOST = "models.example"
# No model server has a route for it: what it answers tells whether the path is known.
_NO_METHOD = "PATCH"
_MOST_ENDPOINTS = 64


@dataclass(slots=True)
class _Seen:
    """What was asked so far; the rest stays unknown when time is up."""

    health: Asked | Unknown
    foreign: Asked | Unknown
    page: Asked | Unknown
    product: Product
    missing: tuple[str, ...] | Unknown


async def backend_facts(subject: Subject, heard: Pending[Hearing]) -> BackendFacts | None:
    """Give what is known of the backend; None in helper mode."""
    serving = subject.files.serving
    if serving is None:
        return None
    table, address = serving.backend, serving.backend.address
    look = partial(way_to, address.path)
    way = () if address.ip else await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    refusal = await knock(address)
    late = Unknown(f"the backend took longer than {_ALL_SECONDS:g} s")
    seen = _Seen(late, late, late, Product(), late)
    if not refusal and table.mode == "http":
        with trio.move_on_after(_ALL_SECONDS):
            await _look(subject, table, seen)
    return BackendFacts(
        address=str(address),
        port=address.port,
        way=way,
        account=subject.account,
        refusal=refusal,
        remote=not address.is_loopback,
        exposed=await exposed(subject, serving),
        http=table.mode == "http",
        host=str(table.host or ""),
        sent=_sent_host(table),
        health_path=str(table.health_path),
        health=seen.health,
        foreign=seen.foreign,
        page=seen.page,
        cors=serving.cors is not None,
        product=seen.product,
        missing=seen.missing,
        streamed=await _streamed(subject, table, heard, refusal),
        presets=_presets(subject.files.policy),
    )


def _sent_host(table: BackendTable) -> str:
    return _FOREIGN_HOST if table.host in (None, "keep") else str(table.host)


async def _look(subject: Subject, table: BackendTable, seen: _Seen) -> None:
    async with client_of(table.address) as client:
        seen.health = (await ask(client, "GET", table.health_path)).asked
        if seen.health.reason:
            seen.foreign = seen.page = seen.missing = Unknown("it does not answer")
            return
        host = {"Host": _sent_host(table)}
        seen.foreign = (await ask(client, "GET", table.health_path, host)).asked
        page = {"Origin": f"https://{_FOREIGN_HOST}"}
        seen.page = (await ask(client, "GET", table.health_path, page)).asked
        seen.product = await _product(client)
        seen.missing = await _missing(client, subject.files.policy, seen.product)


async def _product(client: httpx.AsyncClient) -> Product:
    """Find out by what each product says of itself, and by nothing that it could be made to say."""
    ollama = await ask(client, "GET", "/api/version")
    if ollama.server.startswith("llama.cpp"):
        return Product("llama-server")
    if (version := _version(ollama)) is not None:
        return Product("ollama", version)
    vllm = await ask(client, "GET", "/version")
    if (version := _version(vllm)) is not None:
        return Product("vllm", version)
    return Product()


def _version(answer: Answer) -> str | None:
    try:
        found = json.loads(answer.body) if answer.asked.is_good else None
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return None
    version = found.get("version") if isinstance(found, dict) else None
    return version if isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version) else None


async def _missing(
    client: httpx.AsyncClient, policy: Policy | None, product: Product
) -> tuple[str, ...] | Unknown:
    """Ask each path of the rules with a method that no route has: 405 is a path that is known.

    Where nothing answers 405 the server does not tell the two apart, and its version has to do.
    """
    if policy is None:
        return Unknown("the policy cannot be used")
    endpoints = tuple(dict.fromkeys(_endpoints(policy)))[:_MOST_ENDPOINTS]
    if not endpoints:
        return Unknown("no rule names an endpoint")
    paths = {endpoint.text: _example(endpoint) for endpoint in endpoints}
    statuses = {
        path: (await ask(client, _NO_METHOD, path)).asked.status
        for path in dict.fromkeys(paths.values())
    }
    if HTTPStatus.METHOD_NOT_ALLOWED not in statuses.values():
        return missing_by_version(product, tuple(paths))
    return tuple(text for text, path in paths.items() if statuses[path] == HTTPStatus.NOT_FOUND)


def _presets(policy: Policy | None) -> tuple[str, ...]:
    rules = policy.allow if policy else ()
    return tuple(dict.fromkeys(preset for rule in rules for preset in rule.presets))


def _example(endpoint: Endpoint) -> str:
    """Give a path that an endpoint names."""
    return "/" + "/".join("x" if one.startswith("{") else one for one in endpoint.segments)


def _endpoints(policy: Policy) -> Iterator[Endpoint]:
    for rule in policy.allow:
        for endpoint in rule.endpoints:
            if endpoint.method not in (ANY_ENDPOINT, _NO_METHOD):
                yield endpoint


async def _streamed(
    subject: Subject, table: BackendTable, heard: Pending[Hearing], refusal: str
) -> tuple[Streamed, ...] | Unknown:
    """Have a model answer in a stream, if one was named: from the backend, and through us."""
    model = subject.request.model
    if not model:
        reason = "it takes an answer of a model, which costs its time"
        return Unknown(reason, "doctor --model NAME asks for a short one")
    if refusal or table.mode != "http":
        return Unknown("nothing answers there")
    direct = await streamed_answer(table.address, model)
    if isinstance(direct, Unknown):
        return direct
    testimony = (await heard.wait()).testimony
    through = testimony.streamed if isinstance(testimony, Testimony) else None
    return (direct, through) if through else (direct,)
