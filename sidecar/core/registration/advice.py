"""What a person should think about before an entry is trusted: selectors, lifetimes, addresses.

Each piece of advice is one sentence or two; nothing here refuses anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sidecar.core.registration.agent_conf import ServerAddress
from sidecar.core.registration.entries import Entry, Selector, is_token_agent, without_token

# What the agent's unix attestor tells of a process.
_UNIX = {
    "uid",
    "user",
    "gid",
    "group",
    "supplementary_gid",
    "supplementary_group",
    "path",
    "sha256",
}
_PEOPLE = {"501": "the first user of a Mac", "1000": "the first user of most Linux systems"}
_DAY = 86_400

AGENT_TTL_ADVICE = (
    "an agent that a join token has attested cannot be attested again: a host that sleeps or is "
    "offline until the agent's SVID has expired (agent_ttl in the server's configuration, 1h "
    "unless set) needs a new token, by --generate-token. For a Mac set agent_ttl longer; the "
    "server keeps up to a sixth of ca_ttl, which is 4h with the ca_ttl of 24h, and 24h needs "
    'ca_ttl = "144h". A host that may be off for longer is better attested by x509pop'
)


def selector_advice(role: str, selectors: Sequence[Selector]) -> Iterator[str]:
    """Advise on who else has these selectors."""
    for selector in selectors:
        kind, _, value = selector.value.partition(":")
        if selector.type != "unix":
            continue
        if kind not in _UNIX:
            known = ", ".join(sorted(_UNIX))
            yield f"{role}: {selector} matches nothing: after unix: the agent knows {known}"
        elif (kind, value) in (("uid", "0"), ("user", "root")):
            yield (
                f"{role}: {selector} is root: every process of root gets this identity; give "
                "it an account of its own"
            )
        elif kind == "uid" and value in _PEOPLE:
            yield (
                f"{role}: {selector} is {_PEOPLE[value]}: every program that this person runs gets "
                "this identity; give the service an account of its own"
            )
        elif kind == "path" and len(selectors) == 1:
            yield (
                f"{role}: {selector} is a program for every user, and of a Python program it is "
                "the interpreter: any script matches. Add unix:uid; and on macOS it needs an agent "
                "of SPIRE 1.10.2 or newer"
            )


def ttl_advice(entry: Entry, role: str) -> Iterator[str]:
    """Advise on the lifetime of SVIDs."""
    ttl = entry.x509_svid_ttl
    if 0 < ttl < 60:
        yield f"{role}: SVIDs of {ttl} s are renewed every {max(ttl // 2, 1)} s or so"
    elif ttl > _DAY:
        yield (
            f"{role}: the server does not make SVIDs that outlive its authority (ca_ttl, 24h "
            f"unless set), so not all of them live for {ttl} s"
        )


def token_advice(ttl: int) -> Iterator[str]:
    """Advise on the lifetime of a join token."""
    if ttl > _DAY:
        yield f"whoever finds the join token within {ttl} s becomes the host: make it shorter"


def address_advice(address: ServerAddress) -> Iterator[str]:
    """Advise on where the agent is to find the server."""
    if address.is_this_host:
        yield f"--server-address {address} is the other host itself, as seen from there"


def parent_advice(entry: Entry, role: str) -> Iterator[str]:
    """Advise on parents that do not last."""
    if is_token_agent(entry.parent_id):
        yield (
            f"{role}: {without_token(entry.parent_id)} is the agent of one join token: the next "
            "token makes another agent, and this entry dies with the old one; use an alias "
            "(`token generate -spiffeID`)"
        )
