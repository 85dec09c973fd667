"""Listening sockets and addresses: the real ones here, and what a Mac's programs print."""

from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address

import pytest

from sidecar.adapters.host.addresses import (
    fib_addresses,
    ifconfig_addresses,
    inet6_addresses,
    own_addresses,
)
from sidecar.adapters.host.command import Output, run
from sidecar.adapters.host.listening import listening_sockets, lsof_sockets, proc_sockets
from sidecar.core.diagnosis.finding import Unknown
from tests.adapters.host.answers import Recorded

LSOF = """\
p512
cspire-agent
u450
f9
tIPv4
n127.0.0.1:8081
p733
cpython3.12
u451
f12
tIPv4
n*:6701
f13
tIPv6
n[::1]:6703
f14
tIPv6
n*:6704
"""
IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether aa:bb:cc:dd:ee:ff
\tinet6 fe80::1c2a:3bff:fe4d:5e6f%en0 prefixlen 64 secured scopeid 0x4
\tinet 192.168.50.20 netmask 0xffffff00 broadcast 192.168.50.255
\tmedia: autoselect
\tstatus: active
utun4: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280
\tinet 100.101.102.103 --> 100.101.102.103 netmask 0xffffffff
"""


def test_lsof_is_read() -> None:
    found = [(one.where, one.process and one.process.name) for one in lsof_sockets(Output(0, LSOF))]
    assert found == [
        ("127.0.0.1:8081", "spire-agent"),
        ("0.0.0.0:6701", "python3.12"),
        ("[::1]:6703", "python3.12"),
        ("[::]:6704", "python3.12"),
    ]
    (first, *_) = lsof_sockets(Output(0, LSOF))
    assert first.process is not None
    assert (first.process.pid, first.process.uid) == (512, 450)


async def test_on_macos_lsof_is_asked() -> None:
    recorded = Recorded({"lsof -nP -iTCP -sTCP:LISTEN": Output(1, "")})
    assert await listening_sockets(recorded, "darwin") == ()
    assert isinstance(await listening_sockets(Recorded({}), "darwin"), Unknown)


def test_ifconfig_is_read() -> None:
    assert set(map(str, ifconfig_addresses(IFCONFIG))) == {
        "127.0.0.1",
        "::1",
        "fe80::1",
        "fe80::1c2a:3bff:fe4d:5e6f",
        "192.168.50.20",
        "100.101.102.103",
    }


async def test_on_macos_ifconfig_is_asked() -> None:
    found = await own_addresses(Recorded({"ifconfig -a": IFCONFIG}), "darwin")
    assert isinstance(found, frozenset)
    assert ip_address("192.168.50.20") in found
    assert isinstance(await own_addresses(Recorded({}), "darwin"), Unknown)


@pytest.mark.skipif(sys.byteorder != "little", reason="recorded on such a processor")
def test_proc_net_is_read() -> None:
    table = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1A2D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 637 1
   1: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 638 1
   2: 0100007F:2CAA 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 639 1
"""
    found = [(one.where, inode) for one, inode in proc_sockets(table)]
    assert found == [("0.0.0.0:6701", "637"), ("127.0.0.1:11434", "638")]
    table = "head\n   0: 00000000000000000000000001000000:1A2D 0:0 0A 0:0 00:0 0 0 0 640 1\n"
    ((socket6, _),) = proc_sockets(table)
    assert socket6.where == "[::1]:6701"


def test_addresses_of_proc_are_read() -> None:
    trie = """\
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 192.168.50.0/24 2 0 2
        |-- 192.168.50.20
           /32 host LOCAL
        |-- 192.168.50.255
           /32 link BROADCAST
        |-- 127.0.0.0
           /8 host LOCAL
"""
    assert list(map(str, fib_addresses(trie))) == ["192.168.50.20"]
    table = "fe80000000000000b0227afffe5d1c02 02 40 20 80 eth0\n"
    table += "00000000000000000000000000000001 01 80 10 80 lo\n"
    assert list(map(str, inet6_addresses(table))) == ["fe80::b022:7aff:fe5d:1c02", "::1"]


async def test_our_own_socket_is_found_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        found = await listening_sockets(run)
        if isinstance(found, Unknown):
            pytest.skip(found.reason)
        (own,) = [one for one in found if one.port == port]
    assert own.ip == ip_address("127.0.0.1")
    assert own.process is not None
    assert own.process.pid == os.getpid()


async def test_loopback_is_an_address_of_ours() -> None:
    found = await own_addresses(run)
    if isinstance(found, Unknown):
        pytest.skip(found.reason)
    assert ip_address("127.0.0.1") in found
