"""Asks the model server whether it answers: one GET of its health path.

Gets an address and a path, gives None or the reason why not. Whoever asks while a question is
under way, or just after, gets the same answer: a balancer's checks must not add up to load.
"""

from __future__ import annotations

import os

import httpx
import trio

from sidecar.core.address import Address

_SECONDS = 5.0
_FRESH_SECONDS = 0.5


class BackendHealth:
    """The health of one backend."""

    def __init__(self, address: Address, host: str, path: str) -> None:
        self._url = f"http://{'localhost' if address.ip is None else address}{path}"
        self._host = host
        self._address = address
        self._lock = trio.Lock()
        self._asked_at = -_FRESH_SECONDS
        self._reason: str | None = None

    async def reason_against(self) -> str | None:
        """Give why the backend cannot be used, or None when it answers."""
        async with self._lock:
            if trio.current_time() - self._asked_at >= _FRESH_SECONDS:
                self._reason = f"the backend does not answer within {_SECONDS:g} s"
                with trio.move_on_after(_SECONDS):  # httpx's own is for each step
                    self._reason = await self._ask()
                self._asked_at = trio.current_time()
            return self._reason

    async def _ask(self) -> str | None:
        try:
            # Its body, however long, is for nobody, and not read.
            async with (
                httpx.AsyncClient(
                    transport=self._transport(), timeout=_SECONDS, trust_env=False
                ) as client,
                client.stream("GET", self._url, headers={"Host": self._host}) as answer,
            ):
                status = answer.status_code
        except httpx.HTTPError as exc:
            return f"the backend does not answer: {_why(exc)}"
        return None if 200 <= status < 300 else f"the backend answers {status} to its health path"

    def _transport(self) -> httpx.AsyncHTTPTransport:
        # The URL is plain HTTP; with `verify` a store of public authorities is loaded for nothing,
        # and every stream waits for it.
        path = self._address.path if self._address.ip is None else None
        return httpx.AsyncHTTPTransport(uds=path, verify=False)


def _why(error: BaseException) -> str:
    """Give the system's word for what is below httpx's error, or the error's kind."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.errno:
            return os.strerror(below.errno)
        # trio tries every address of a name, and a group says what came of each.
        inner = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else None
        below = inner or below.__cause__ or below.__context__
    return type(error).__name__
