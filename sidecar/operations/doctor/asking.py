"""One question to the backend over HTTP, and whether a model's answer is streamed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx
import trio

from sidecar.core.address import Address
from sidecar.core.diagnosis.backend import Asked, Streamed
from sidecar.core.diagnosis.finding import Unknown

CHAT = "/v1/chat/completions"
STREAM_SECONDS = 60.0
_SECONDS = 2.0
_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """How one question went, and what it says of the server."""

    asked: Asked
    server: str = ""
    body: bytes = b""


def client_of(address: Address) -> httpx.AsyncClient:
    """Give a client of the backend alone: no proxy, no redirects, short deadlines."""
    path = address.path if address.ip is None else None
    # Plain HTTP: with `verify` a store of public authorities is loaded for nothing.
    transport = httpx.AsyncHTTPTransport(uds=path, verify=False)
    base = f"http://{'localhost' if address.ip is None else address}"
    return httpx.AsyncClient(transport=transport, base_url=base, timeout=_SECONDS, trust_env=False)


async def ask(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str] | None = None
) -> Answer:
    """Ask once; a body is read only if it is known to be short."""
    try:
        async with client.stream(method, path, headers=headers) as answer:
            length = answer.headers.get("content-length", "")
            is_short = length.isdigit() and int(length) <= _MAX_BYTES
            data = await answer.aread() if is_short else b""
            return Answer(Asked(answer.status_code), answer.headers.get("server", ""), data)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return Answer(Asked(0, f"does not answer: {type(exc).__name__}"))


def chat(model: str) -> str:
    """Give the one request that makes a model work: a streamed answer of a few words."""
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Count from 1 to 20."}],
            "stream": True,
            "max_tokens": 64,
        }
    )


async def streamed_answer(address: Address, model: str) -> Streamed | Unknown:
    """Have a model answer in a stream, and see how it comes."""
    times: list[float] = []
    headers = {"Content-Type": "application/json"}
    try:
        with trio.fail_after(STREAM_SECONDS):
            async with (
                client_of(address) as client,
                client.stream(
                    "POST", CHAT, content=chat(model), headers=headers, timeout=STREAM_SECONDS
                ) as answer,
            ):
                async for _ in answer.aiter_raw():
                    times.append(trio.current_time())
                status = answer.status_code
    except (httpx.HTTPError, trio.TooSlowError) as exc:
        return Unknown(f"POST {CHAT}: {type(exc).__name__}", "is that model there?")
    if status != 200:
        return Unknown(f"POST {CHAT}: {status}", "is that model there? GET /v1/models lists all")
    return Streamed(len(times), times[-1] - times[0] if times else 0.0, "from the backend")
