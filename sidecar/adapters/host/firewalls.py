"""The host's firewalls, as far as their own programs tell whether a port is shut.

Linux: ufw, firewalld, else nftables or iptables, which only root may read. macOS: the application
firewall. Best effort: what is not understood is called so and never open.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sidecar.adapters.host.command import Output, Run
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Firewall

_SOCKETFILTERFW = "/usr/libexec/ApplicationFirewall/socketfilterfw"
_ACCEPTS = ("ALLOW", "LIMIT")
_INPUT_CHAIN = re.compile(r"hook input [^\n]*policy (drop|accept)")
_APP = re.compile(r"^\s*\d+ ?: +(.+?)\s*\n\s*\(\s*(Allow|Block) incoming", re.MULTILINE)


async def firewalls(
    ports: tuple[int, ...], program: str, run: Run, platform: str = sys.platform
) -> tuple[Firewall, ...] | Unknown:
    """Give the firewalls that are on, judged for these ports and for the program that listens."""
    if platform != "linux":
        return await _mac(program, run)
    if os.geteuid() != 0:
        return Unknown("only root may read the rules of firewalls", "run doctor with sudo")
    return tuple([one for one in (await _linux(ports, run)) if one is not None])


async def _linux(ports: tuple[int, ...], run: Run) -> list[Firewall | None]:
    ufw = ufw_state(await run("ufw", "status"), ports)
    state = await run("firewall-cmd", "--state")
    listed = await run("firewall-cmd", "--list-all") if _running(state) else Unknown("off")
    daemon = firewalld_state(listed, ports)
    if ufw is not None or daemon is not None:
        return [ufw, daemon]  # what they write into nftables they have told themselves
    nft = await run("nft", "list", "ruleset")
    if isinstance(nft, Output) and nft.status == 0:
        return [nft_state(nft.text, ports)]
    return [iptables_state(await run("iptables", "-S", "INPUT"), ports)]


def _running(state: Output | Unknown) -> bool:
    return isinstance(state, Output) and state.text.strip() == "running"


def ufw_state(output: Output | Unknown, ports: Iterable[int]) -> Firewall | None:
    """Read ufw status: `Status: active`, then a line for each rule: port, action, from."""
    if isinstance(output, Unknown) or "Status: active" not in output.text:
        return None
    rules = [line.split() for line in output.text.splitlines()]
    open_ports = {
        port
        for words in rules
        if any(word in words for word in _ACCEPTS)
        for port in _ports(words[0].partition("/")[0])
    }
    everything = any(words[:2] == ["Anywhere", "ALLOW"] for words in rules)
    shut = [port for port in ports if port not in open_ports and not everything]
    if not shut:
        return Firewall("ufw", False, "it lets the port through")
    remedy = f"sudo ufw allow from TRAEFIKS-ADDRESS to any port {shut[0]} proto tcp"
    return Firewall("ufw", True, f"on, and no rule allows port {shut[0]}", remedy)


def firewalld_state(output: Output | Unknown, ports: Iterable[int]) -> Firewall | None:
    """Read firewall-cmd --list-all: `target: ...`, `ports: 6701/tcp ...`, rich rules."""
    if isinstance(output, Unknown) or output.status:
        return None
    if re.search(r"^\s*target: ACCEPT", output.text, re.MULTILINE):
        return Firewall("firewalld", False, "its zone lets everything through")
    open_ports: set[int] = set()
    for line in re.findall(r"^\s*ports: (.*)$", output.text, re.MULTILINE):
        for one in line.split():
            number, _, protocol = one.partition("/")
            open_ports.update(_ports(number) if protocol == "tcp" else ())
    rich = re.findall(r'port="?([0-9-]+)"? protocol="?tcp"? accept', output.text)
    open_ports.update(port for one in rich for port in _ports(one))
    shut = [port for port in ports if port not in open_ports]
    if not shut:
        return Firewall("firewalld", False, "it lets the port through")
    remedy = f"sudo firewall-cmd --permanent --add-port={shut[0]}/tcp && sudo firewall-cmd --reload"
    return Firewall("firewalld", True, f"on, and port {shut[0]} is not open", remedy)


def nft_state(text: str, ports: Iterable[int]) -> Firewall | None:
    """Read nft list ruleset: an input chain that drops, and any rule that accepts the port."""
    if "drop" not in _INPUT_CHAIN.findall(text):
        return None
    return _raw(
        "nftables", text, ports, r"dport (?:{port}|\{{[^}}]*\b{port}\b[^}}]*\}})[^\n]*accept"
    )


def iptables_state(output: Output | Unknown, ports: Iterable[int]) -> Firewall | None:
    """Read iptables -S INPUT: its policy, or a rule at the end that refuses the rest."""
    if isinstance(output, Unknown) or output.status:
        return None
    lines = output.text.strip().splitlines()
    drops = "-P INPUT DROP" in lines or any(
        re.fullmatch(r"-A INPUT -j (DROP|REJECT)( --reject-with \S+)?", line) for line in lines
    )
    if not drops:
        return None
    return _raw("iptables", output.text, ports, r"--dports? [^\n]*\b{port}\b[^\n]*-j ACCEPT")


def _raw(name: str, text: str, ports: Iterable[int], pattern: str) -> Firewall:
    shut = [port for port in ports if not re.search(pattern.format(port=port), text)]
    if not shut:
        return Firewall(name, False, "a rule accepts the port")
    how = f"its input is dropped unless a rule accepts it, and none names port {shut[0]}"
    return Firewall(name, None, how)


def _ports(text: str) -> Iterator[int]:
    """Read `6701`, `6700:6710`, `6700-6710` or a list with commas."""
    for part in text.split(","):
        first, _, last = part.replace("-", ":").partition(":")
        if first.isdigit() and (not last or last.isdigit()):
            yield from range(int(first), int(last or first) + 1)


@dataclass(frozen=True, slots=True)
class _App:
    path: str
    allowed: bool


async def _mac(program: str, run: Run) -> tuple[Firewall, ...] | Unknown:
    state = await run(_SOCKETFILTERFW, "--getglobalstate")
    if isinstance(state, Unknown):
        return state
    if "State = 0" in state.text or "disabled" in state.text.lower():
        return ()
    block_all = await run(_SOCKETFILTERFW, "--getblockall")
    listed = await run(_SOCKETFILTERFW, "--listapps")
    if isinstance(block_all, Unknown):
        return block_all
    if isinstance(listed, Unknown):
        return listed
    return (mac_state(state.text, block_all.text, listed.text, program),)


def mac_state(state: str, block_all: str, listed: str, program: str) -> Firewall:
    """Read what socketfilterfw says, of several versions of macOS."""
    name = "application firewall"
    said = block_all.lower()
    if "State = 2" in state or "enabled" in said or "set to block all" in said:
        remedy = f"sudo {_SOCKETFILTERFW} --setblockall off"
        return Firewall(name, True, "it blocks all incoming connections", remedy)
    apps = [_App(path, word == "Allow") for path, word in _APP.findall(listed)]
    app = next((one for one in apps if program == one.path or _inside(program, one.path)), None)
    allow = f"sudo {_SOCKETFILTERFW} --add {program} && "
    allow += f"sudo {_SOCKETFILTERFW} --unblockapp {program}"
    if app is None:
        return Firewall(name, None, f"on, and {program} is not in its list", allow)
    if app.allowed:
        return Firewall(name, False, f"it lets {app.path} through")
    return Firewall(name, True, f"it blocks {app.path}", allow)


def _inside(program: str, app: str) -> bool:
    return program.startswith(app.rstrip("/") + "/")
