"""An admin listener in a thread of its own, that says what a test wants it to say."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import trio

from sidecar.adapters.admin import Page, serve_admin
from sidecar.adapters.binding import bind_admin
from sidecar.core.address import Address


class AdminSite:
    """Serves `/status` until the context ends; `page` may be replaced at any time."""

    def __init__(self, address: Address, page: Page) -> None:
        self._wanted, self.page = address, page
        self.address = address
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20), "the site did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join(20)

    async def _run(self) -> None:
        with bind_admin(self._wanted) as sock, trio.CancelScope() as self._scope:
            if self._wanted.ip is not None:
                self.address = Address(self._wanted.ip, sock.getsockname()[1])
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await serve_admin([sock], {"/status": self._page})

    async def _page(self) -> Page:
        return self.page
