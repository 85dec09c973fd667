"""What the page promises, section by section, for both kinds of hosts.

Each function runs the blocks of one section and then looks whether it is so.
"""

from __future__ import annotations

import os
import re
import shlex
from functools import partial
from typing import Any

from tests.printed_yaml import read_yaml
from tests.runbook import platform
from tests.runbook.machine import wait_until
from tests.runbook.platform import TRAEFIK
from tests.runbook.story import HOST_FOLDER, SIDECAR, Step, Story

ALIAS = "spiffe://ravenhelm.local/host/mac-studio"
MODEL_SERVER = "spiffe://ravenhelm.local/workload/model-server"

VENV = "/opt/spiffe-sidecar/venv"
NOTHING_TO_DO = "no change: everything is"


def prepared(story: Story) -> None:
    """Before section 1: the commands are there, and work."""
    done = story.follow("From nothing")
    assert "403" in done.out  # the demonstration refuses what it should
    assert story.platform.machine.run(".venv/bin/spiffe-sidecar --version").status == 0


def registered(story: Story) -> None:
    """Section 1: the entries, and the folder for the host."""
    first = story.follow("1.")
    assert len(_entries(story, MODEL_SERVER)) == 1
    (entry,) = _entries(story, MODEL_SERVER)
    assert _text(entry["parent_id"]) == ALIAS
    assert entry["selectors"] == [{"type": "unix", "value": "uid:451"}]
    # The dry run has made no token: each makes an entry for the alias.
    assert len(_entries(story, ALIAS)) == 1
    folder = story.platform.machine.checkout(HOST_FOLDER)
    assert {path.name for path in folder.iterdir()} == {
        "agent.conf",
        "trust-bundle.pem",
        "join-token",
    }
    assert (folder / "join-token").stat().st_mode & 0o777 == 0o600
    assert story.repeat(first, 0).out  # still a dry run
    assert len(_entries(story, ALIAS)) == 1
    story.follow("1.")
    (traefik,) = _entries(story, TRAEFIK)
    assert _text(traefik["parent_id"]) == platform.ALIAS
    story.copy_host_folder()


def installed(story: Story) -> None:
    """Section 2: everything is there and runs; a second run changes nothing."""
    step = story.follow("2.")
    planned, _, done = step.out.partition("dry run: ")
    changes = [line for line in planned.splitlines() if line.startswith("+ ")]
    assert changes
    # What the dry run said is still to be done, so it has done nothing.
    assert set(changes) <= set(done.splitlines()), step.out
    assert not story.host.checkout(f"{HOST_FOLDER}/join-token").exists()
    assert story.host.at("/opt/spire/conf/join-token").read_text() == "spent\n"
    again = story.repeat(step, 1)
    assert "\n+ " not in again.out
    assert again.out.splitlines()[-1].startswith(NOTHING_TO_DO), again.out


def routed(story: Story) -> None:
    """Section 3: a configuration that Traefik takes."""
    step = story.follow("3.")
    printed = read_yaml(story.platform.machine.checkout("model-server.yml").read_text())
    (service,) = printed["http"]["services"].values()
    assert service["loadBalancer"]["servers"] == [{"url": f"https://{SIDECAR}"}]
    assert "spiffe" in read_yaml(step.out)
    story.platform.move_dynamic_configuration()
    story.platform.start_traefik(step.out)


def verified(story: Story) -> Step:
    """Section 4: each look at it says that it is well; the client's answer comes as it is made.

    Gives what the client did.
    """
    story.wait_until_ready()
    host = story.follow("4.")
    assert not re.search(r"^  FAIL ", host.out, re.MULTILINE)
    assert re.search(r"^ready +yes *$", host.out, re.MULTILINE), host.out
    assert "ALLOWED" in host.out, host.out
    probed = story.follow("4.")
    assert MODEL_SERVER in probed.out, probed.out
    client = story.follow("4.")
    assert client.out.count("\ndata: ") > 100, client.out
    assert "\ndata: [DONE]\n" in client.out
    answered = client.out.partition("data: [DONE]")[2]
    assert re.search(r"^HTTP/\S+ 403 ", answered, re.MULTILINE), answered
    assert "POST /v1/chat/completions" in story.model_server_saw()
    assert "POST /api/pull" not in story.model_server_saw()
    return client


def rotated(story: Story, client: Step) -> None:
    """Section 5: a new SVID, the agent asked, the files read again; a running answer goes on."""
    running = story.ask(shlex.join(client.block.commands()[0]))
    before = _serial(story)
    story.follow("5.")
    (entry,) = _entries(story, MODEL_SERVER)
    assert entry["x509_svid_ttl"] == 3000
    if os.environ.get("SPIRE_BIN"):  # the stand-in issues a new one when the old one is half over
        wait_until(lambda: _serial(story) != before, "a new SVID", story.log)
    story.follow("5.")
    for event in ("asked to fetch now", "asked_by=SIGHUP"):
        wait_until(partial(_is_logged, story, event), event, story.log)
    assert "\ndata: [DONE]\n" in running.end().out


def regained(story: Story) -> None:
    """Section 6: an agent that cannot be attested again gets a new token, and all is as before."""
    before = _serial(story)
    (agent,) = _agents(story)
    entries = _entries(story, MODEL_SERVER)
    story.platform.spire_server("agent", "evict", "-spiffeID", agent)
    wait_until(lambda: not _doctor_is_content(story), "no identity", story.log)
    story.follow("6.")
    story.copy_host_folder()
    story.follow("6.")
    story.wait_until_ready()
    assert _serial(story) != before
    assert _agents(story) != [agent]
    assert _entries(story, MODEL_SERVER) == entries


def upgraded(story: Story) -> None:
    """Section 7: the link changes, there and back."""
    old = story.host.at(VENV).readlink()
    init = story.host.checkout("sidecar/__init__.py")
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0.0"', init.read_text()))
    forth = story.follow("7.").out
    assert f"instead of {old}" in forth
    assert "venv-99.0.0-" in str(story.host.at(VENV).readlink())
    back = story.follow("7.").out
    assert story.host.at(VENV).readlink() == old
    assert all("+ restart " in part for part in (forth, back)), forth + back
    story.wait_until_ready()


def removed(story: Story, before: set[str]) -> None:
    """Section 8: gone, but for what it says; the entries, too."""
    story.platform.remove_dynamic_configuration()
    step = story.follow("8.")
    said = re.findall(r"^  (?:file|folder) (/[^\s,]+)", step.out, re.MULTILINE)
    assert not any(path.startswith(VENV) for path in said)
    untold = [path for path in story.tree() - before if not _is_told(path, said)]
    assert not untold, f"{untold} after\n{step.out}"
    assert "the model server was not touched" in step.out
    story.follow("8.")
    assert not _entries(story, MODEL_SERVER)
    assert not _entries(story, ALIAS)
    assert not _agents(story)
    assert _entries(story, TRAEFIK)


def purged(story: Story, before: set[str], script: str) -> None:
    """`--purge`, of which section 8 speaks: nothing is left at all."""
    done = story.host.run(f"sudo {script} --uninstall --purge")
    assert done.status == 0, done.all
    assert story.tree() - before == set()


def _is_logged(story: Story, event: str) -> bool:
    return event in story.log()


def _is_told(path: str, said: list[str]) -> bool:
    """Tell whether it is named, or in a folder that is, or a folder of something that is."""
    return any(f"{path}/".startswith(f"{one}/") or one.startswith(f"{path}/") for one in said)


def _entries(story: Story, spiffe_id: str) -> list[dict[str, Any]]:
    found: Any = story.platform.spire_server("entry", "show", "-spiffeID", spiffe_id)
    return list(found["entries"])


def _agents(story: Story) -> list[str]:
    """The agents of the host."""
    found: Any = story.platform.spire_server("agent", "list")
    of_platform = {_text(one["parent_id"]) for one in _entries(story, platform.ALIAS)}
    return [
        one for one in (_text(agent["id"]) for agent in found["agents"]) if one not in of_platform
    ]


def _text(spiffe_id: dict[str, str]) -> str:
    return f"spiffe://{spiffe_id['trust_domain']}{spiffe_id['path']}"


def _serial(story: Story) -> str:
    found = re.search(r"serial ([0-9A-F]+)", story.status())
    assert found
    return found[1]


def _doctor_is_content(story: Story) -> bool:
    return story.sidecar("doctor --only agent").status == 0
