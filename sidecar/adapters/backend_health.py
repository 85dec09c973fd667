"""Whether the model server can be used: one question at a time, asked when it matters.

It matters to whoever asks us, and where a request found the opposite of what was known. The
question has a task of its own: an asker that leaves does not take the answer from the others, and
however many ask, they make one connection in half a second. A server that is busy answers its
health path late and goes on sending tokens, so bytes of it are an answer too.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import httpx
import trio

from sidecar.core.address import Address

Ask = Callable[[], Awaitable[str | None]]  # gives the reason against, None: it is well
FRESH_SECONDS = 0.5
# How long the health path is given before it counts that bytes come. Shorter than a second, after
# which probes of Kubernetes give up.
_PATIENCE_SECONDS = 0.5


class BackendHealth:
    """The health of the backend; `run` is the one task that asks.

    `heard` gives when a byte of it last came, on trio's clock; `tell` hears what was found.
    """

    def __init__(
        self,
        ask: Ask,
        seconds: float,
        heard: Callable[[], float],
        tell: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._ask, self._seconds = ask, seconds
        self._heard, self._tell = heard, tell
        self._wanted, self._found = trio.Event(), trio.Event()
        self._asked_at = float("-inf")
        self._reason: str | None = None

    def apply(self, ask: Ask, seconds: float) -> None:
        """Ask another way, and anew as soon as it is wanted."""
        self._ask, self._seconds = ask, seconds
        self._asked_at = float("-inf")

    async def reason_against(self, max_age: float = FRESH_SECONDS) -> str | None:
        """Return why the backend cannot be used or None, as found `max_age` seconds ago or now."""
        if trio.current_time() - self._asked_at >= max_age:
            self._wanted.set()
            await self._found.wait()
        return self._reason

    def used(self, *, well: bool) -> None:
        """Hear how a request fared: what speaks against what is known is a reason to ask."""
        if well != (self._reason is None):
            self._wanted.set()

    async def run(self) -> None:
        """Ask when it is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            await trio.sleep_until(max(trio.current_time(), self._asked_at + FRESH_SECONDS))
            ask = self._ask
            reason = await self._verdict(ask)
            if ask is not self._ask:
                continue  # it was asked of another one than that of now
            self._reason, self._asked_at = reason, trio.current_time()
            self._tell(reason)
            self._wanted = trio.Event()
            self._found.set()
            self._found = trio.Event()

    async def _verdict(self, ask: Ask) -> str | None:
        found: list[str | None] = []
        async with trio.open_nursery() as nursery:

            async def put_the_question() -> None:
                try:
                    found.append(await ask())
                except Exception as exc:  # a library's; it must not end the task that asks
                    found.append(f"the backend cannot be asked: {type(exc).__name__}")
                nursery.cancel_scope.cancel()

            nursery.cancel_scope.deadline = trio.current_time() + self._seconds
            nursery.start_soon(put_the_question)
            nursery.start_soon(self._cancel_when_it_moves, nursery.cancel_scope)
        if found:
            return found[0]
        late = f"the backend does not answer within {self._seconds:g} s"
        return None if self._moves else late

    async def _cancel_when_it_moves(self, question: trio.CancelScope) -> None:
        while not question.cancel_called:
            await trio.sleep(_PATIENCE_SECONDS)
            if self._moves:
                question.cancel()

    @property
    def _moves(self) -> bool:
        return trio.current_time() - self._heard() < self._seconds


class HealthPath:
    """One GET of the backend's health path, without a deadline."""

    def __init__(self, address: Address, host: str, path: str) -> None:
        self._url = f"http://{'localhost' if address.ip is None else address}{path}"
        self._host = host
        self._address = address

    async def __call__(self) -> str | None:
        """Return the reason against the backend, or None."""
        try:
            # Its body, however long, is not needed and not read.
            async with (
                httpx.AsyncClient(
                    transport=self._transport(),
                    timeout=None,  # noqa: S113
                    trust_env=False,
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
