"""The clients of a Python program: aiohttp, httpx and requests; the first argument names one.

See __init__.py for the other arguments and for what is written.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import asyncio
import base64
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path

BODY = bytes(100_000)
PIECES, PIECE, PAUSE = 30, bytes(50_000), 0.06


def write(step: str, status: int, version: str, body: bytes) -> None:
    print(step, status, version, base64.b64encode(body).decode(), flush=True)


def tokens(line: bytes | str) -> None:
    text = line.decode() if isinstance(line, bytes) else line
    if text.startswith("data: "):
        write("token", 0, "-", text.removeprefix("data: ").strip().encode())


def slow() -> Iterator[bytes]:
    for _ in range(PIECES):
        time.sleep(PAUSE)
        yield PIECE


def with_requests(url: str, folder: Path) -> None:
    import requests

    print("version requests", version("requests"))
    with requests.Session() as session:
        session.trust_env = False
        session.cert = (f"{folder}/cert.pem", f"{folder}/key.pem")
        session.verify = f"{folder}/ca.pem"

        def say(step: str, response: requests.Response) -> None:
            spoken = {11: "HTTP/1.1"}.get(response.raw.version, "?")
            write(step, response.status_code, spoken, response.content)

        say("get", session.get(f"{url}/get?x=1"))
        say("post", session.post(f"{url}/post", data=BODY))
        for line in session.post(f"{url}/stream", data="{}", stream=True).iter_lines(chunk_size=1):
            tokens(line)
        say("expect", session.post(f"{url}/expect", data=BODY, headers={"Expect": "100-continue"}))
        say("upload", session.post(f"{url}/upload", data=slow()))


def with_httpx(url: str, folder: Path) -> None:
    import httpx

    print("version httpx", httpx.__version__)
    with httpx.Client(verify=context(folder), trust_env=False, timeout=60) as client:

        def say(step: str, response: httpx.Response) -> None:
            write(step, response.status_code, response.http_version, response.content)

        say("get", client.get(f"{url}/get?x=1"))
        say("post", client.post(f"{url}/post", content=BODY))
        with client.stream("POST", f"{url}/stream", content="{}") as stream:
            for line in stream.iter_lines():
                tokens(line)
        headers = {"Expect": "100-continue"}
        say("expect", client.post(f"{url}/expect", content=BODY, headers=headers))
        say("upload", client.post(f"{url}/upload", content=slow()))


def with_aiohttp(url: str, folder: Path) -> None:
    asyncio.run(_with_aiohttp(url, folder))


async def _with_aiohttp(url: str, folder: Path) -> None:
    import aiohttp

    print("version aiohttp", aiohttp.__version__)

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            await asyncio.sleep(PAUSE)
            yield PIECE

    async def say(step: str, response: aiohttp.ClientResponse) -> None:
        assert response.version is not None
        spoken = f"HTTP/{response.version.major}.{response.version.minor}"
        write(step, response.status, spoken, await response.read())

    connector = aiohttp.TCPConnector(ssl=context(folder))
    async with aiohttp.ClientSession(url, connector=connector) as session:
        await say("get", await session.get("/get?x=1"))
        await say("post", await session.post("/post", data=BODY))
        async with session.post("/stream", data=b"{}") as stream:
            async for line in stream.content:
                tokens(line)
        await say("expect", await session.post("/expect", data=BODY, expect100=True))
        await say("upload", await session.post("/upload", data=slowly()))


def context(folder: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=f"{folder}/ca.pem")
    made.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    return made


LIBRARIES: dict[str, Callable[[str, Path], None]] = {
    "aiohttp": with_aiohttp,
    "httpx": with_httpx,
    "requests": with_requests,
}

if __name__ == "__main__":
    LIBRARIES[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
