"""The pages of the admin listener: what the daemon says of itself at this moment.

Part of the supervisor's layer: it looks at all that the stories share, and changes nothing. The
backend is asked when readiness is; what only reports takes an answer of a few seconds ago.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from sidecar import __version__
from sidecar.adapters.admin import Page, Pages
from sidecar.adapters.backend_health import FRESH_SECONDS
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.metrics import CONTENT_TYPE, metrics_page
from sidecar.adapters.tls import CurrentIdentity
from sidecar.core.checked import Checked
from sidecar.core.readiness import report, verdict
from sidecar.core.snapshot import Moment, Process, snapshot
from sidecar.core.status import Status, to_json
from sidecar.hooks import Hooks
from sidecar.server import Server

_REPORT_SECONDS = 5.0
_PLAIN = "text/plain; charset=utf-8"


class AdminPages:
    """Makes the pages of one daemon."""

    def __init__(
        self, checked: Checked, current: CurrentIdentity, hooks: Hooks, server: Server | None
    ) -> None:
        self._current, self._hooks, self._server = current, hooks, server
        files = checked.config.identity_files
        source = "identity files" if files else "agent"
        self._process: Callable[[], Process] = lambda: Process(
            server.in_force.config if server else checked.config,
            checked.directory,
            __version__,
            os.getpid(),
            source,
        )

    def pages(self) -> Pages:
        """Give the pages by their paths."""
        return {
            "/livez": self._alive,
            "/readyz": self._ready,
            "/status": self._status,
            "/metrics": self._metrics,
        }

    def health_pages(self) -> Pages:
        """Return the pages for whoever asks: whether, and nothing of why."""
        return {"/livez": self._alive_for_all, "/readyz": self._ready_for_all}

    async def _alive_for_all(self) -> Page:
        return Page(b"ok\n", _PLAIN)

    async def _ready_for_all(self) -> Page:
        if verdict(await self._now(FRESH_SECONDS)).ready:
            return Page(b"ok\n", _PLAIN)
        return Page(b"not ready\n", _PLAIN, 503)

    async def _alive(self) -> Page:
        return Page(b'{"alive":true}\n')

    async def _ready(self) -> Page:
        of = verdict(await self._now(FRESH_SECONDS))
        return Page(to_json(of) + b"\n", status=200 if of.ready else 503)

    async def _status(self) -> Page:
        return Page(to_json(report(await self._now(_REPORT_SECONDS))) + b"\n")

    async def _metrics(self) -> Page:
        status, ledger = await self._now(_REPORT_SECONDS), self._current.ledger
        body = await trio.to_thread.run_sync(metrics_page, status, ledger, abandon_on_cancel=True)
        return Page(body, CONTENT_TYPE)

    async def _now(self, max_age: float) -> Status:
        if self._server is not None and not self._current.ledger.draining:
            await self._server.health.reason_against(max_age)
        current = self._current
        moment = Moment(
            clocks=read_clocks(),
            standing=current.standing,
            svid=current.identity.svid if current.identity else None,
            bundles=current.identity.bundles if current.identity else {},
            policy=self._server.policy.policy if self._server else None,
            hook_results=self._hooks.results,
        )
        return snapshot(self._process(), current.ledger, moment)
