"""Sleep, clock, limits and firewalls: recorded answers of both systems' programs."""

from __future__ import annotations

import os
import resource
import sys

import pytest

from sidecar.adapters.host.command import Output, run
from sidecar.adapters.host.firewalls import (
    firewalld_state,
    firewalls,
    iptables_state,
    mac_state,
    nft_state,
    ufw_state,
)
from sidecar.adapters.host.limits import (
    descriptors,
    first_free_port,
    linux_descriptors,
    mac_descriptors,
)
from sidecar.adapters.host.network_time import (
    linux_network_time,
    mac_network_time,
    network_time,
)
from sidecar.adapters.host.power import linux_power, mac_power, power
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Firewall, NetworkTime, Power
from tests.adapters.host.answers import Recorded

MINI = """\
AC Power:
 Sleep On Power Button 1
 autorestart          0
 powernap             1
 standby              0
 ttyskeepawake        1
 hibernatemode        0
 networkoversleep     0
 disksleep            10
 sleep                {sleep}
 hibernatefile        /var/vm/sleepimage
 displaysleep         10
 womp                 1
"""
BOOK = """\
Battery Power:
 Sleep On Power Button 1
 lowpowermode         0
 standby              1
 sleep                1
 displaysleep         2
AC Power:
 Sleep On Power Button 1
 standby              1
 sleep                0
 displaysleep         10
"""
OFF, ON = Output(0, "disabled\n"), Output(0, "masked\n")
SERVER, DESKTOP = Output(0, "multi-user.target\n"), Output(0, "graphical.target\n")


@pytest.mark.parametrize(
    ("text", "sleeps", "says"),
    [
        pytest.param(MINI.format(sleep=10), True, "10 min", id="a mini as it comes"),
        pytest.param(MINI.format(sleep=0), False, "autorestart is 0", id="awake, off after a cut"),
        pytest.param(BOOK, False, "AC Power", id="on mains, whatever the battery's are"),
        pytest.param(
            MINI.format(sleep="10 (sleep prevented by sharingd, powerd)"),
            True,
            "10",
            id="prevented",
        ),
    ],
)
def test_pmset_is_read(text: str, sleeps: bool, says: str) -> None:
    found = mac_power(text)
    assert isinstance(found, Power)
    assert found.sleeps is sleeps
    assert says in found.how


@pytest.mark.parametrize("text", ["", "No profile set\n", "AC Power:\n womp 1\n"])
def test_pmset_that_says_nothing_of_sleep_is_unknown(text: str) -> None:
    assert isinstance(mac_power(text), Unknown)


async def test_on_macos_pmset_is_asked() -> None:
    found = await power(Recorded({"pmset -g custom": BOOK}), "darwin")
    assert isinstance(found, Power)
    assert isinstance(await power(Recorded({}), "darwin"), Unknown)


@pytest.mark.parametrize(
    ("states", "masked", "target", "is_laptop", "sleeps"),
    [
        pytest.param("freeze mem disk\n", OFF, SERVER, False, False, id="a server"),
        pytest.param("freeze mem disk\n", OFF, DESKTOP, False, True, id="a desktop"),
        pytest.param("freeze mem disk\n", OFF, SERVER, True, True, id="a laptop"),
        pytest.param("freeze mem disk\n", ON, DESKTOP, True, False, id="masked"),
        pytest.param("", OFF, DESKTOP, True, False, id="a kernel without sleep"),
        pytest.param("mem\n", Unknown("x"), Unknown("x"), False, False, id="no systemd"),
    ],
)
def test_sleep_of_linux(
    states: str, masked: Output | Unknown, target: Output | Unknown, is_laptop: bool, sleeps: bool
) -> None:
    assert linux_power(states, masked, target, is_laptop=is_laptop).sleeps is sleeps


@pytest.mark.parametrize(
    ("text", "synchronised"),
    [
        pytest.param("Network Time: On\n", True, id="on"),
        pytest.param("Network Time: Off\n", False, id="off"),
        pytest.param("You need administrator access to run this tool... exiting!\n", None, id="no"),
    ],
)
def test_systemsetup_is_read(text: str, synchronised: bool | None) -> None:
    found = mac_network_time(Output(0, text))
    if synchronised is None:
        assert isinstance(found, Unknown)
    else:
        assert isinstance(found, NetworkTime)
        assert found.synchronised is synchronised


def test_adjtimex_is_read() -> None:
    assert [linux_network_time(state).synchronised for state in (0, 1, 5)] == [True, True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex(2)")
async def test_the_kernel_is_asked_and_nobody_else() -> None:
    recorded = Recorded({})
    assert isinstance(await network_time(recorded, "linux"), NetworkTime | Unknown)
    assert recorded.asked == []


# Limits.


def test_limits_of_linux() -> None:
    text = "Limit          Soft Limit  Hard Limit  Units\n"
    text += "Max open files            1024                 524288               files     \n"
    assert linux_descriptors(text) == 1024
    assert linux_descriptors("Max open files   unlimited  unlimited  files\n") == sys.maxsize
    assert isinstance(linux_descriptors(""), Unknown)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        pytest.param("\tmaxfiles    256            unlimited      \n", 10240, id="unlimited"),
        pytest.param("\tmaxfiles    65536          200000         \n", 200000, id="a number"),
    ],
)
def test_limits_of_macos(text: str, limit: int) -> None:
    assert mac_descriptors(Output(0, text)) == limit


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_own_limit() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert await descriptors(os.getpid(), run) == soft


def test_first_free_port() -> None:
    assert first_free_port("darwin") == 1024
    assert 0 <= first_free_port() <= 1024


# Firewalls.

UFW = """\
Status: active

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW       Anywhere
{rule}
22/tcp (v6)                ALLOW       Anywhere (v6)
"""
FIREWALLD = """\
public (active)
  target: {target}
  icmp-block-inversion: no
  interfaces: eth0
  sources:
  services: cockpit dhcpv6-client ssh
  ports: {ports}
  protocols:
  forward: yes
  rich rules:
{rich}
"""
NFT = """\
table inet filter {{
\tchain input {{
\t\ttype filter hook input priority filter; policy {policy};
\t\tiif "lo" accept
\t\tct state established,related accept
\t\t{rule}
\t}}
\tchain output {{
\t\ttype filter hook output priority filter; policy drop;
\t}}
}}
"""
IPTABLES = """\
-P INPUT {policy}
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
{rule}
"""


def blocks(found: Firewall | None) -> bool | str | None:
    return found.blocks if found else "none"


@pytest.mark.parametrize(
    ("rule", "blocked"),
    [
        pytest.param("", True, id="no rule"),
        pytest.param("6701/tcp    ALLOW    192.168.50.10", False, id="from one address"),
        pytest.param("6701        ALLOW    Anywhere", False, id="both protocols"),
        pytest.param("6700:6710/tcp   ALLOW   Anywhere", False, id="a range"),
        pytest.param("80,6701/tcp   LIMIT   Anywhere", False, id="a list"),
        pytest.param("Anywhere    ALLOW    192.168.50.10", False, id="everything from one"),
        pytest.param("6701/tcp    DENY     Anywhere", True, id="denied"),
        pytest.param("16701/tcp   ALLOW    Anywhere", True, id="another port"),
    ],
)
def test_ufw(rule: str, blocked: bool) -> None:
    found = ufw_state(Output(0, UFW.format(rule=rule)), (6701,))
    assert found is not None
    assert found.blocks is blocked
    assert bool(found.remedy) is blocked


def test_ufw_that_is_off() -> None:
    assert ufw_state(Output(0, "Status: inactive\n"), (6701,)) is None
    assert ufw_state(Unknown("there is no ufw"), (6701,)) is None


@pytest.mark.parametrize(
    ("values", "blocked"),
    [
        pytest.param({}, True, id="not open"),
        pytest.param({"ports": "6701/tcp"}, False, id="open"),
        pytest.param({"ports": "443/tcp 6700-6710/tcp"}, False, id="a range"),
        pytest.param({"ports": "6701/udp"}, True, id="another protocol"),
        pytest.param({"target": "ACCEPT"}, False, id="the trusted zone"),
        pytest.param(
            {
                "rich": '\trule family="ipv4" source address="192.168.50.10" '
                'port port="6701" protocol="tcp" accept'
            },
            False,
            id="a rich rule",
        ),
    ],
)
def test_firewalld(values: dict[str, str], blocked: bool) -> None:
    text = FIREWALLD.format(**({"target": "default", "ports": "", "rich": ""} | values))
    found = firewalld_state(Output(0, text), (6701,))
    assert found is not None
    assert found.blocks is blocked


@pytest.mark.parametrize(
    ("policy", "rule", "blocked"),
    [
        pytest.param("accept", "", "none", id="lets all in"),
        pytest.param("drop", "", None, id="drops, and nothing names the port"),
        pytest.param("drop", "tcp dport 6701 accept", False, id="a rule"),
        pytest.param("drop", "tcp dport { 22, 6701 } accept", False, id="a set"),
        pytest.param("drop", "tcp dport 6701 drop", None, id="a rule that drops"),
    ],
)
def test_nftables(policy: str, rule: str, blocked: bool | str | None) -> None:
    assert blocks(nft_state(NFT.format(policy=policy, rule=rule), (6701,))) == blocked


@pytest.mark.parametrize(
    ("policy", "rule", "blocked"),
    [
        pytest.param("ACCEPT", "", "none", id="lets all in"),
        pytest.param("DROP", "", None, id="drops"),
        pytest.param(
            "ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited", None, id="end"
        ),
        pytest.param("DROP", "-A INPUT -p tcp -m tcp --dport 6701 -j ACCEPT", False, id="a rule"),
        pytest.param(
            "DROP", "-A INPUT -p tcp -m multiport --dports 80,6701 -j ACCEPT", False, id="several"
        ),
    ],
)
def test_iptables(policy: str, rule: str, blocked: bool | str | None) -> None:
    text = IPTABLES.format(policy=policy, rule=rule)
    assert blocks(iptables_state(Output(0, text), (6701,))) == blocked


APPS = """\
ALF: total number of apps = 2

1 :  /Applications/Foo.app
 \t ( Allow incoming connections )

2 :  /opt/spiffe-sidecar/python/bin/python3.12
 \t ( {word} incoming connections )

"""
NEWER = """\
Total number of apps = 1
1 : /opt/spiffe-sidecar/python/bin/python3.12
             ({word} incoming connections)
"""
PYTHON = "/opt/spiffe-sidecar/python/bin/python3.12"
ENABLED = "Firewall is enabled. (State = 1)\n"


@pytest.mark.parametrize(
    "listed", [pytest.param(APPS, id="older"), pytest.param(NEWER, id="newer")]
)
def test_application_firewall(listed: str) -> None:
    off = "Block all DISABLED!\n"
    assert mac_state(ENABLED, off, listed.format(word="Allow"), PYTHON).blocks is False
    blocked = mac_state(ENABLED, off, listed.format(word="Block"), PYTHON)
    assert blocked.blocks is True
    assert f"--unblockapp {PYTHON}" in blocked.remedy
    assert mac_state(ENABLED, off, listed.format(word="Allow"), "/usr/bin/x").blocks is None


@pytest.mark.parametrize(
    ("state", "block_all"),
    [
        pytest.param(ENABLED, "Block all ENABLED!\n", id="older"),
        pytest.param(ENABLED, "Firewall has block all state set to enabled.\n", id="newer"),
        pytest.param(
            "Firewall is blocking all non-essential incoming connections. (State = 2)\n", "", id="2"
        ),
    ],
)
def test_application_firewall_that_blocks_all(state: str, block_all: str) -> None:
    assert mac_state(state, block_all, APPS.format(word="Allow"), PYTHON).blocks is True


async def test_application_firewall_that_is_off_is_asked_once() -> None:
    tool = "/usr/libexec/ApplicationFirewall/socketfilterfw"
    recorded = Recorded({f"{tool} --getglobalstate": "Firewall is disabled. (State = 0)\n"})
    assert await firewalls((6701,), PYTHON, recorded, "darwin") == ()
    assert recorded.asked == [f"{tool} --getglobalstate"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads rules")
async def test_what_wrote_the_rules_is_asked_before_the_rules() -> None:
    recorded = Recorded({"ufw status": UFW.format(rule=""), "nft list ruleset": ""})
    found = await firewalls((6701,), PYTHON, recorded, "linux")
    assert isinstance(found, tuple)
    assert [one.name for one in found] == ["ufw"]
    assert "nft list ruleset" not in recorded.asked
    assert await firewalls((6701,), PYTHON, Recorded({}), "linux") == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
async def test_an_ordinary_user_may_not_read_rules() -> None:
    assert isinstance(await firewalls((6701,), PYTHON, Recorded({}), "linux"), Unknown)
