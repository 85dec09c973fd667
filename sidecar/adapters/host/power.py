"""Whether this host goes to sleep by itself. Linux: systemd's targets, /sys; macOS: pmset.

Asleep, nobody renews an SVID, and an agent that attested by a join token may not get back in.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sidecar.adapters.host.command import Output, Run
from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Power

# SMBIOS 7.4.1 (System Enclosure or Chassis Types): portable, laptop, notebook, sub-notebook,
# convertible, detachable.
_LAPTOPS = {"8", "9", "10", "14", "31", "32"}
_SETTING = re.compile(r"^ *([A-Za-z][A-Za-z ]*?) +(\d+)\b", re.MULTILINE)
_SECTION = re.compile(r"^(\S.*):\s*$", re.MULTILINE)


async def power(run: Run, platform: str = sys.platform) -> Power | Unknown:
    """Give whether it sleeps, and by what."""
    if platform == "linux":
        masked = await run("systemctl", "is-enabled", "sleep.target")
        target = await run("systemctl", "get-default")
        return linux_power(_sleep_states(), masked, target, is_laptop=_is_laptop())
    output = await run("pmset", "-g", "custom")
    return output if isinstance(output, Unknown) else mac_power(output.text)


def linux_power(
    states: str, masked: Output | Unknown, target: Output | Unknown, *, is_laptop: bool
) -> Power:
    """Judge by /sys/power/state, `is-enabled sleep.target`, `get-default` and the chassis.

    A server without a desktop is never put to sleep by anybody; a desktop's login screen does it,
    and so does a lid.
    """
    if not states.strip():
        return Power(sleeps=False, how="this kernel has no sleep")
    if isinstance(masked, Output) and masked.text.strip().startswith("masked"):
        return Power(sleeps=False, how="sleep.target is masked")
    if is_laptop:
        return Power(sleeps=True, how="a laptop: it sleeps when its lid closes")
    if isinstance(target, Output) and target.text.strip() == "graphical.target":
        how = "it starts a desktop, whose login screen puts it to sleep after a while"
        return Power(sleeps=True, how=how)
    return Power(sleeps=False, how="nothing puts it to sleep")


def mac_power(text: str) -> Power | Unknown:
    """Read pmset -g custom: a section for each source of power, with a setting a line."""
    sections = _sections(text)
    if not sections:
        return Unknown("pmset -g custom shows no settings")
    # On mains, where a host of a model server is; without such a section, on whatever there is.
    name = "AC Power" if "AC Power" in sections else next(iter(sections))
    settings = sections[name]
    minutes = settings.get("sleep")
    if minutes is None:
        return Unknown(f"pmset -g custom shows no sleep for {name}")
    more = "; autorestart is 0: off after a power cut" if settings.get("autorestart") == 0 else ""
    if minutes and not settings.get("disablesleep"):
        return Power(sleeps=True, how=f"{name}: sleep after {minutes} min{more}")
    return Power(sleeps=False, how=f"{name}: sleep is 0, which is never{more}")


def _sections(text: str) -> dict[str, dict[str, int]]:
    parts = _SECTION.split(text)
    return {
        name: {key: int(value) for key, value in _SETTING.findall(body)}
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
        if _SETTING.search(body)
    }


def _sleep_states() -> str:
    return _read(Path("/sys/power/state"))


def _is_laptop() -> bool:
    if _read(Path("/sys/class/dmi/id/chassis_type")).strip() in _LAPTOPS:
        return True
    try:
        names = [one.name for one in Path("/sys/class/power_supply").iterdir()]
    except OSError:
        return False
    return any(name.startswith("BAT") for name in names)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
