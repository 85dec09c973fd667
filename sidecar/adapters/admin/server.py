"""HTTP/1.1 for visitors of the admin listener: one short request, one page, and good-bye.

On TCP the Host must name this host: a web page can make a browser here ask us under a name of
its own (DNS rebinding), and would then read the answer. Health is for probes of other hosts too,
which name whatever they like, and there is nothing to read.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import h11
import structlog
import trio

from sidecar.core.address import Address

log = structlog.get_logger()

MAX_VISITORS = 16
MAX_PROBES = 64
MAX_HEAD_BYTES = 8192
SECONDS = 5.0  # for a request, for the making of a page, and for the sending of it
_FAREWELL_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_METHODS = (b"GET", b"HEAD")
_PORT = re.compile(r":[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class Page:
    """What a visitor gets."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200


Pages = Mapping[str, Callable[[], Awaitable[Page]]]


class Visitors:
    """Those who are here; with one too many, whoever came first has to leave.

    An honest visitor is done in milliseconds, so what is old is slow or silent, and does not keep
    the others out.
    """

    def __init__(self, maximum: int = MAX_VISITORS) -> None:
        self._maximum = maximum
        self._here: dict[trio.CancelScope, None] = {}

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Hold a place, until it is taken away."""
        while len(self._here) >= self._maximum:
            oldest = next(iter(self._here))
            del self._here[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._here[scope] = None
            try:
                yield
            finally:
                self._here.pop(scope, None)


async def serve_admin(
    sockets: Sequence[socket.socket], pages: Pages, seconds: float = SECONDS
) -> None:
    """Serve pages by their paths, for ever, on sockets that listen."""
    await _serve_all(sockets, Visitors(), partial(_Visit, pages=pages, seconds=seconds))


async def serve_health(
    sockets: Sequence[socket.socket], pages: Pages, seconds: float = SECONDS
) -> None:
    """Serve pages by their paths to whoever asks, from wherever and by whatever name."""
    visit = partial(_Visit, pages=pages, seconds=seconds, any_host=True)
    await _serve_all(sockets, Visitors(MAX_PROBES), visit)


async def _serve_all(
    sockets: Sequence[socket.socket],
    visitors: Visitors,
    visit: Callable[[trio.socket.SocketType], _Visit],
) -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(_serve, visitors=visitors, visit=visit)
        for sock in sockets:
            nursery.start_soon(_accept, trio.socket.from_stdlib_socket(sock), serve, nursery)


async def _accept(
    listening: trio.socket.SocketType,
    serve: Callable[[trio.socket.SocketType], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    while True:
        try:
            sock, _ = await listening.accept()
        except OSError as exc:
            if exc.errno != errno.ECONNABORTED:  # a visitor that left before it was accepted
                log.error("admin cannot accept", reason=exc.strerror)
                await trio.sleep(_RETRY_SECONDS)
            continue
        nursery.start_soon(serve, sock)


async def _serve(
    sock: trio.socket.SocketType,
    visitors: Visitors,
    visit: Callable[[trio.socket.SocketType], _Visit],
) -> None:
    """Serve one visitor, whatever it does."""
    with sock, visitors.visit():
        try:
            await visit(sock).run()
        except OSError:
            return  # it is gone


class _Visit:
    """One connection."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        pages: Pages,
        seconds: float,
        any_host: bool = False,
    ) -> None:
        self._sock, self._pages, self._seconds = sock, pages, seconds
        self._any_host = any_host or sock.family == socket.AF_UNIX
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._without_body = False

    async def run(self) -> None:
        """Answer one request."""
        page = await self._answer()
        if page is not None:
            with trio.move_on_after(self._seconds):
                await self._send(page)
            await self._farewell()

    async def _answer(self) -> Page | None:
        """Give the page for the request; None when none comes."""
        try:
            with trio.fail_after(self._seconds):
                request = await self._request()
        except trio.TooSlowError:
            return _plain(408, f"no complete request within {self._seconds:g} s")
        except h11.RemoteProtocolError as exc:
            return _plain(exc.error_status_hint, "this is no request that can be served")
        if request is None:
            return None
        self._without_body = request.method == b"HEAD"
        return self._refusal(request) or await self._page(request)

    async def _request(self) -> h11.Request | None:
        """Read a head and no more; None when the visitor leaves before."""
        left = MAX_HEAD_BYTES
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                return event
            if not left:
                raise h11.RemoteProtocolError("long head", error_status_hint=431)
            data = await self._sock.recv(left)
            if not data:
                return None
            left -= len(data)
            self._http.receive_data(data)

    def _refusal(self, request: h11.Request) -> Page | None:
        """Refuse what is not for here, or give None."""
        if request.http_version not in (b"1.0", b"1.1"):
            return _plain(505, "only HTTP/1.1")
        headers = dict(request.headers)  # h11 lets none of these be there twice
        if not self._any_host and not _is_local(headers.get(b"host", b"")):
            return _plain(421, "the Host is not this host: ask for localhost or 127.0.0.1")
        if request.method not in _METHODS:
            return _plain(405, "only GET and HEAD")
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            return _plain(413, "no body is taken here")
        return None

    async def _page(self, request: h11.Request) -> Page:
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        build = self._pages.get(path)
        if build is None:
            return _plain(404, "there is " + ", ".join(self._pages))
        try:
            with trio.fail_after(self._seconds):
                return await build()
        except trio.TooSlowError:
            return _plain(503, f"no answer within {self._seconds:g} s")
        except Exception:
            # Ours to mend; what the page is about goes on.
            log.exception("admin page failed", path=path)
            return _plain(500, "this page failed; the log says more")

    async def _send(self, page: Page) -> None:
        headers = [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ]
        if page.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        head = self._http.send(h11.Response(status_code=page.status, headers=headers))
        left = memoryview((head or b"") + (b"" if self._without_body else page.body))
        while left:
            left = left[await self._sock.send(left) :]

    async def _farewell(self) -> None:
        """Let the visitor read to the end: closing on unread bytes would reset the connection."""
        self._sock.shutdown(socket.SHUT_WR)
        with trio.move_on_after(_FAREWELL_SECONDS):
            while await self._sock.recv(65536):
                pass


def _plain(status: int, text: str) -> Page:
    return Page(f"{text}\n".encode(), "text/plain; charset=utf-8", status)


def _is_local(host: bytes) -> bool:
    """Tell whether a Host names this host: localhost or a loopback address, and maybe a port."""
    name = _PORT.sub("", host.decode("ascii", "replace")).lower()
    if name == "localhost":
        return True
    try:
        address = Address.parse(f"{name}:0")
    except ValueError:
        return False
    return address.ip is not None and address.is_loopback
