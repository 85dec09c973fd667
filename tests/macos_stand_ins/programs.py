"""Python and its environments, and the SPIRE agent, as far as the installer calls them.

An environment is made without packages: `pip install` is checked and noted, and the sidecar in it
is the one of the tests' own environment. `check` is the real one where a test wants it; `status`
and `doctor` would need a Mac with services that run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sidecar.core.diagnosis.finding import fail, ok, skipped
from sidecar.operations.doctor.screen import as_json
from tests.macos_stand_ins.state import EndError, InsteadError, State, end, unknown

_PIP = [
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--no-input",
    "--no-cache-dir",
    "--root-user-action=ignore",
]
_REQUIREMENTS = ["--require-hashes", "--only-binary=:all:", "-r"]
_CHECKOUT = ["--no-index", "--no-deps", "--no-build-isolation"]


def python(state: State, arguments: list[str], launcher: Path) -> str:
    """Be a Python of Homebrew's, or one in an environment; what it runs itself is run for real."""
    match arguments:
        case ["-I", "-m", "venv", folder]:
            target = Path(folder, "bin/python")
            target.parent.mkdir(parents=True)
            shutil.copy(launcher, target)
        case ["-I", "-m", "pip", *words]:
            _install(words)
        case ["-I", "-m", "sidecar", "check", *words] if state.check_is_real:
            raise InsteadError([sys.executable, "-m", "sidecar", "check", *words])
        case ["-I", "-m", "sidecar", ("status" | "check"), "--config", _]:
            pass
        case ["-I", "-m", "sidecar", "doctor", "--config", _, "--only", name, "--json"]:
            return _examined(state, name)
        case ["-I", "-m", "sidecar", "doctor", "--config", _]:
            raise EndError(state.doctor, out="doctor says what it has found\n")
        case _:
            raise unknown("python", arguments)
    return ""


def _examined(state: State, name: str) -> str:
    """Judge as an agent that has no socket yet, one that is not admitted, and one that is."""
    found = ok(name, "")
    if state.questions_to_join > 0:
        state.questions_to_join -= 1
        found = skipped(name, "the agent gave no answer")
    elif not state.agent_is_admitted:
        found = fail(name, "no identity", "register-workload")
        raise EndError(1, out=as_json([found]).decode())
    return as_json([found]).decode()


def _install(words: list[str]) -> None:
    if words[: len(_PIP)] != _PIP:
        raise unknown("pip", words)
    words = words[len(_PIP) :]
    if words[:2] == ["--no-index", "--find-links"]:
        if not any(Path(words[2]).glob("*.whl")):
            end(1, "ERROR: Could not find a version that satisfies the requirement")
        words = words[3:]
    if words[:-1] not in (_REQUIREMENTS, _CHECKOUT) or not Path(words[-1]).exists():
        raise unknown("pip", words)


def spire_agent(state: State, arguments: list[str]) -> str:
    """Answer `healthcheck`; the stand-in for launchctl makes the socket."""
    match arguments:
        case ["healthcheck", "-socketPath", path]:
            data = Path(path).parents[1] / "data/agent-data.json"
            if not data.exists() or not state.agent_is_admitted:
                end(1, "Agent is unhealthy: unable to determine health")
            return "Agent is healthy.\n"
        case _:
            raise unknown("spire-agent", arguments)
