"""The admin listener: pages for this host, whatever visitors do."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from sidecar.adapters.admin import Page, serve_admin
from sidecar.adapters.admin.server import MAX_HEAD_BYTES, MAX_VISITORS, _accept
from sidecar.adapters.binding import bind_admin
from sidecar.core.address import Address
from sidecar.core.errors import ListenError
from tests.adapters.deadlines import until, within

LOOPBACK = Address.parse("127.0.0.1:0")
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
BEGUN = 10  # bytes of it that a silent visitor sends


@dataclass
class Site:
    """What is served, and how often each page was asked for."""

    address: Address
    asked: list[str] = field(default_factory=list)
    release: trio.Event = field(default_factory=trio.Event)

    def pages(self) -> dict[str, Callable[[], Awaitable[Page]]]:
        return {
            "/livez": self._page("/livez", Page(b'{"alive":true}')),
            "/readyz": self._page("/readyz", Page(b'{"ready":false}', status=503)),
            "/metrics": self._page("/metrics", Page(b"up 1\n", "text/plain; version=0.0.4")),
            "/large": self._page("/large", Page(b"x" * 20_000_000)),
            "/broken": self._broken,
            "/slow": self._slow,
        }

    def _page(self, path: str, page: Page) -> Callable[[], Awaitable[Page]]:
        async def build() -> Page:
            self.asked.append(path)
            return page

        return build

    async def _broken(self) -> Page:
        raise LookupError("ours to mend")

    async def _slow(self) -> Page:
        self.asked.append("/slow")
        await self.release.wait()
        return Page(b"late")

    def connect(self) -> socket.socket:
        if self.address.ip is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.address.path)
            return sock
        return socket.create_connection(self.address.sockaddr)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(address: Address = LOOPBACK, seconds: float = 60) -> AsyncIterator[Site]:
    """Serve; the real deadline is too short for a busy host, so tests that wait for it say so."""
    with bind_admin(address) as sock:
        if address.ip is not None:
            host, port = sock.getsockname()[:2]
            address = Address(address.ip, port)
            assert str(address.ip) == host
        site = Site(address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_admin, [sock], site.pages(), seconds)
            yield site
            nursery.cancel_scope.cancel()


async def say(site: Site, request: bytes, *, end: bool = False) -> bytes:
    """Send bytes, and give all that comes back until the end."""
    with trio.socket.from_stdlib_socket(site.connect()) as sock:
        with suppress(ConnectionError):  # it may be over before all is sent
            left = memoryview(request)
            while left:
                left = left[await sock.send(left) :]
            if end:
                sock.shutdown(socket.SHUT_WR)
        return await rest(sock)


async def rest(sock: trio.socket.SocketType) -> bytes:
    data = b""
    while part := await sock.recv(65536):
        data += part
    return data


async def arrived(site: Site, closing: ExitStack) -> trio.socket.SocketType:
    """A visitor that has begun to ask and is silent from now on."""
    sock = trio.socket.from_stdlib_socket(closing.enter_context(site.connect()))
    await sock.send(GET[:BEGUN])
    return sock


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def get(path: str, host: str = "localhost", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ")[1])


# What visitors get.


@within(60)
async def test_pages_are_served_with_their_status_and_type() -> None:
    async with serving() as site, httpx.AsyncClient(trust_env=False) as client:
        for path, code, kind in (
            ("/livez", 200, "application/json"),
            ("/readyz", 503, "application/json"),
            ("/metrics", 200, "text/plain; version=0.0.4"),
            ("/livez?verbose", 200, "application/json"),
        ):
            answer = await client.get(f"http://{site.address}{path}")
            assert (answer.status_code, answer.headers["Content-Type"]) == (code, kind)
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.text == '{"alive":true}'


@within(60)
async def test_page_is_made_anew_for_each_visitor() -> None:
    async with serving() as site:
        assert status(await say(site, get("/livez"))) == 200
        assert status(await say(site, get("/livez"))) == 200
        assert site.asked == ["/livez", "/livez"]


@within(60)
async def test_head_is_the_answer_without_its_body() -> None:
    async with serving() as site:
        with_body = await say(site, get("/metrics"))
        assert await say(site, get("/metrics", method="HEAD")) == with_body.removesuffix(b"up 1\n")
        refused = await say(site, get("/nothing", method="HEAD"))
        assert (status(refused), refused[-4:]) == (404, b"\r\n\r\n")


@within(60)
@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        pytest.param(get("/"), 404, id="root"),
        pytest.param(get("/nothing"), 404, id="unknown"),
        pytest.param(get("/livez/"), 404, id="not quite"),
        pytest.param(get("/../livez"), 404, id="a way around"),
        pytest.param(get("/%6civez"), 404, id="escaped"),
        pytest.param(get("http://localhost/livez"), 404, id="absolute"),
        pytest.param(get("/livez", method="POST"), 405, id="POST"),
        pytest.param(get("/livez", method="OPTIONS"), 405, id="OPTIONS"),
        pytest.param(get("localhost:80", method="CONNECT"), 405, id="CONNECT"),
        pytest.param(GET[:-2] + b"Content-Length: 1\r\n\r\nx", 413, id="body"),
        pytest.param(GET[:-2] + b"Content-Length: 0\r\n\r\n", 200, id="empty body"),
        pytest.param(
            GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 413, id="chunked"
        ),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(GET[:-2] + b"Host: localhost\r\n\r\n", 400, id="two Hosts"),
        pytest.param(b"GET /livez HTTP/1.0\r\n\r\n", 421, id="HTTP/1.0 without a Host"),
        pytest.param(b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, id="HTTP/2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2 preface"),
        pytest.param(b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400, id="TLS"),
        pytest.param(b"no request at all\r\n\r\n", 400, id="nonsense"),
        pytest.param(GET[:-2] + b"Content-Length: x\r\n\r\n", 400, id="bad length"),
        pytest.param(GET[:-2] + b" folded\r\n\r\n", 421, id="folded line"),
        pytest.param(GET[:-2] + b"A\x00B: 1\r\n\r\n", 400, id="NUL"),
    ],
)
async def test_what_is_not_for_here_is_refused(request_bytes: bytes, code: int) -> None:
    async with serving() as site:
        answer = await say(site, request_bytes)
        assert status(answer) == code
        assert (b"\r\nAllow: GET, HEAD\r\n" in answer) == (code == 405)
        assert bool(site.asked) == (code == 200)
        assert status(await say(site, GET)) == 200


@within(60)
@pytest.mark.parametrize(
    ("host", "code"),
    [
        pytest.param("localhost", 200, id="localhost"),
        pytest.param("LocalHost:6703", 200, id="with a port"),
        pytest.param("127.0.0.1", 200, id="IPv4"),
        pytest.param("127.3.2.1:1", 200, id="all of 127/8"),
        pytest.param("[::1]", 200, id="IPv6"),
        pytest.param("[::1]:6703", 200, id="IPv6 with a port"),
        pytest.param("evil.example", 421, id="name of somebody else"),
        pytest.param("evil.example:6703", 421, id="with the right port"),
        pytest.param("localhost.evil.example", 421, id="begins like ours"),
        pytest.param("127.0.0.1.evil.example", 421, id="begins like an address"),
        pytest.param("evil.example:127.0.0.1", 421, id="ends like an address"),
        pytest.param("192.168.1.1", 421, id="another address"),
        pytest.param("0.0.0.0", 421, id="no address"),
        pytest.param("unix:/livez", 421, id="a path"),
        pytest.param("", 421, id="empty"),
    ],
)
async def test_host_must_be_this_host(host: str, code: int) -> None:
    async with serving() as site:
        assert status(await say(site, get("/livez", host))) == code
        assert bool(site.asked) == (code == 200)


@within(60)
async def test_on_a_unix_socket_any_host_will_do(folder: Path) -> None:
    async with serving(Address(None, 0, f"{folder}/admin.sock")) as site:
        assert status(await say(site, get("/livez", "whatever"))) == 200


@within(60)
async def test_ipv6_loopback_is_served() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as exc:
        pytest.skip(f"no IPv6 here: {exc}")
    async with serving(Address.parse("[::1]:0")) as site:
        assert status(await say(site, get("/livez", "[::1]"))) == 200


# Visitors that behave badly.


@within(60)
async def test_head_that_is_too_long_is_refused_without_reading_on() -> None:
    async with serving() as site:
        long = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 100_000
        assert status(await say(site, long)) == 431
        assert not site.asked


@within(60)
async def test_head_may_have_every_byte_that_it_is_allowed() -> None:
    async with serving() as site:
        begin, end = GET[:-2] + b"A: ", b"\r\n\r\n"
        fits = begin + b"x" * (MAX_HEAD_BYTES - len(begin + end)) + end
        assert len(fits) == MAX_HEAD_BYTES == 8192
        assert status(await say(site, fits)) == 200
        too_long = fits.replace(b"A: x", b"A: xx")
        assert status(await say(site, too_long)) == 431


@within(60)
async def test_request_in_single_bytes_is_read() -> None:
    async with serving() as site:
        with trio.socket.from_stdlib_socket(site.connect()) as sock:
            for byte in GET:
                await sock.send(bytes([byte]))
            assert status(await rest(sock)) == 200


@within(60)
@pytest.mark.parametrize(
    "sent", [pytest.param(b"", id="nothing"), pytest.param(GET[:30], id="a part")]
)
async def test_silent_visitor_is_sent_away(sent: bytes) -> None:
    async with serving(seconds=0.2) as site:
        assert status(await say(site, sent)) == 408
        assert not site.asked


@within(60)
async def test_visitor_that_does_not_read_is_sent_away() -> None:
    async with serving(seconds=0.2) as site:
        before = open_descriptors()
        with site.connect() as sock:
            sock.sendall(get("/large"))
            await until(lambda: site.asked == ["/large"], "the page was asked for")
            await until(lambda: open_descriptors() == before + 1, "our end was closed")


@within(60)
async def test_page_that_takes_too_long_is_given_up() -> None:
    async with serving(seconds=0.2) as site:
        assert status(await say(site, get("/slow"))) == 503
        assert site.asked == ["/slow"]


@within(60)
async def test_page_that_fails_costs_one_answer() -> None:
    async with serving() as site:
        with capture_logs() as logs:
            answer = await say(site, get("/broken"))
        assert status(answer) == 500
        assert b"mend" not in answer
        assert [(one["event"], one["path"]) for one in logs] == [("admin page failed", "/broken")]
        assert status(await say(site, GET)) == 200


@within(60)
async def test_one_visitor_too_many_takes_the_place_of_one_that_is_silent() -> None:
    async with serving() as site:
        with ExitStack() as closing:
            silent = [await arrived(site, closing) for _ in range(MAX_VISITORS)]
            ended: list[trio.socket.SocketType] = []

            async def wait_for_the_end(sock: trio.socket.SocketType) -> None:
                ended.extend([sock] if await sock.recv(1) == b"" else [])
                nursery.cancel_scope.cancel()

            assert status(await say(site, GET)) == 200
            async with trio.open_nursery() as nursery:
                for sock in silent:
                    nursery.start_soon(wait_for_the_end, sock)
            assert len(ended) == 1
            for sock in set(silent) - set(ended):
                await sock.send(GET[BEGUN:])
                assert status(await rest(sock)) == 200


@within(60)
async def test_honest_visitor_is_served_beside_hundreds_that_are_silent() -> None:
    async with serving() as site:
        with ExitStack() as closing:
            for _ in range(300):
                await arrived(site, closing)
            for _ in range(20):
                assert status(await say(site, GET)) == 200
            assert open_descriptors() < 300 + MAX_VISITORS + 100


@within(60)
async def test_visitors_that_leave_in_the_middle_leave_nothing_behind() -> None:
    async with serving() as site:
        before = open_descriptors()
        for request in (b"", GET[:20], GET, get("/large"), get("/slow")):
            for option in (None, struct.pack("ii", 1, 0)):
                with site.connect() as sock:
                    if option:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                    sock.sendall(request)
        site.release.set()
        assert status(await say(site, GET)) == 200
        await until(lambda: open_descriptors() == before, "all was closed")


@within(60)
async def test_visitor_that_ends_its_side_still_gets_its_page() -> None:
    async with serving() as site:
        assert status(await say(site, GET, end=True)) == 200
        assert await say(site, GET[:30], end=True) == b""


@within(60)
async def test_one_connection_is_one_request() -> None:
    async with serving() as site:
        answer = await say(site, GET + get("/metrics"))
        assert answer.count(b"HTTP/1.1") == 1
        assert b"\r\nConnection: close\r\n" in answer
        assert site.asked == ["/livez"]


@within(60)
async def test_answer_arrives_though_the_visitor_sends_on() -> None:
    async with serving() as site:
        for _ in range(20):
            assert status(await say(site, get("/x", method="POST") + b"x" * 100_000)) == 405


async def test_host_out_of_descriptors_is_told_and_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Listening:
        errors = (errno.EMFILE, errno.ECONNABORTED, errno.ENFILE)

        def __init__(self) -> None:
            self.left = list(self.errors)

        async def accept(self) -> None:
            await trio.lowlevel.checkpoint()
            if not self.left:
                await trio.sleep_forever()
            raise OSError(self.left[0], os.strerror(self.left.pop(0)))

    async def nobody(_sock: object) -> None:
        raise AssertionError

    listening = Listening()
    with capture_logs() as logs, trio.move_on_after(1000):
        async with trio.open_nursery() as nursery:
            await _accept(listening, nobody, nursery)  # type: ignore[arg-type]
    assert not listening.left
    assert [one["event"] for one in logs] == ["admin cannot accept"] * 2


# The socket.


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def unix(path: Path) -> Address:
    return Address(None, 0, str(path))


def test_unix_socket_is_for_our_account_alone(folder: Path, umask: Callable[[int], int]) -> None:
    umask(0)
    path = folder / "admin.sock"
    with bind_admin(unix(path)):
        assert mode_of(path) == 0o600
        assert umask(0) == 0  # as it was
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another account")
def test_other_account_cannot_ask(open_folder: Path) -> None:
    path = open_folder / "admin.sock"
    with bind_admin(unix(path)), socket.socket(socket.AF_UNIX) as visitor:
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                visitor.connect(str(path))
        finally:
            os.seteuid(0)
        visitor.connect(str(path))


def test_socket_that_was_left_behind_is_taken_over(folder: Path) -> None:
    path = folder / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    inode = path.stat().st_ino
    with bind_admin(unix(path)), socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(path))
    assert inode
    assert not path.exists()


def test_socket_of_another_process_is_left_alone(folder: Path) -> None:
    path = folder / "admin.sock"
    with bind_admin(unix(path)):
        with pytest.raises(ListenError, match="another process does"), bind_admin(unix(path)):
            pass
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))


def test_socket_that_another_process_put_there_meanwhile_stays(folder: Path) -> None:
    path = folder / "admin.sock"
    with bind_admin(unix(path)), ExitStack() as closing:
        path.rename(folder / "ours.sock")
        closing.enter_context(bind_admin(unix(path)))
        theirs = closing.pop_all()
    with theirs:
        assert path.is_socket()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_no_socket_is_not_touched(folder: Path, kind: str) -> None:
    path, target = folder / "admin.sock", folder / "target.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    with socket.socket(socket.AF_UNIX) as dead:
        if kind == "link":
            dead.bind(str(target))
    with pytest.raises(ListenError, match="no socket"), bind_admin(unix(path)):
        pass
    assert path.is_symlink() or path.is_dir() or path.read_text() == "precious"
    assert target.is_socket() == (kind == "link")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("missing/admin.sock", id="no such folder"),
        pytest.param("a" * 200, id="too long"),
    ],
)
def test_path_that_cannot_be_is_an_error_of_ours(folder: Path, name: str) -> None:
    before = os.umask(0o022)
    os.umask(before)
    with (
        pytest.raises(ListenError, match="cannot listen on unix:"),
        bind_admin(unix(folder / name)),
    ):
        pass
    assert os.umask(before) == before


def test_port_in_use_is_an_error_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address.parse(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ListenError, match="cannot listen on 127"), bind_admin(address):
            pass


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[2001:db8::1]:0"])
def test_there_is_no_way_from_another_host(address: str) -> None:
    with pytest.raises(ListenError, match="loopback"), bind_admin(Address.parse(address)):
        pass
