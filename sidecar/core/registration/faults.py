"""What went wrong with `spire-server`, from what it wrote: who has to act, and how.

Gets the command, its exit status and its standard error; gives the error to raise. Texts of
SPIRE, gRPC, Docker and Podman are matched loosely, because they change; what is not known is shown
as it came. Standard output is never looked at: a join token may stand there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sidecar.core.errors import RegistrationError
from sidecar.core.registration.entries import without_token

FIRST_VERSION = "1.6"
_NEEDS = f"SPIRE {FIRST_VERSION} or newer is needed (`spire-server --version`)"
_SOCKET = (
    "is it running, and is this its socket? --socket-path names another one; the default is "
    "/tmp/spire-server/private/api.sock, and socket_path in the server's configuration says"
)
_IMAGE = "in SPIRE's image it is /opt/spire/bin/spire-server, and there is no shell"

# Pattern, what it means, what to do. The first that is found counts, so containers come before
# SPIRE: "no such file or directory" is said by both.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"no such container|no container with name or id",
        "there is no such container",
        "`docker ps` (or `podman ps`) lists the names",
    ),
    (
        r"(?:container|service) \S+ is not running|container state improper",
        "the container of the SPIRE server is not running",
        "start it, and look at its log: `docker logs NAME`",
    ),
    (
        r"permission denied while trying to connect to the docker",
        "this account may not use Docker",
        "run this with sudo, or as a member of the group docker",
    ),
    (
        r"(?:cannot|failed to) connect to (?:the docker (?:daemon|api)|podman)",
        "Docker is not running, or not here",
        "start it, or run this on the host of the SPIRE server",
    ),
    (r"not a tty|stdin is not a terminal", "there is no terminal for -t", "leave out -t and -it"),
    (
        r"oci runtime|executable file not found|executable file `[^`]*` not found|exec failed",
        "the container does not have that program",
        _IMAGE,
    ),
    (
        r"connect: no such file or directory",
        "the SPIRE server is not running: there is no socket",
        _SOCKET,
    ),
    (
        r"connect: connection refused",
        "the SPIRE server is not running: nobody answers at its socket",
        _SOCKET,
    ),
    (
        r"connect: permission denied",
        "this account may not use the socket of the SPIRE server",
        "run this with sudo, or as a member of the socket's group; who reaches it may do anything "
        "in the trust domain, so do not open it to others",
    ),
    (
        r"code = permissiondenied",
        "the SPIRE server does not let this account administer it",
        "use the socket of the server itself (socket_path in its configuration)",
    ),
    (
        r"code = unimplemented",
        "that is not the socket of a SPIRE server, or of a very old one",
        f"the agent has a socket of its own, which is another one; {_NEEDS}",
    ),
    (
        r"is not a member of trust domain",
        "the SPIFFE ID is of another trust domain than the server's",
        "compare --trust-domain with the server's configuration",
    ),
    (
        r"ttl is required|overflow converting",
        "the server does not take this time to live",
        "--token-ttl and --x509-svid-ttl are seconds",
    ),
    (
        r"deadlineexceeded",
        "the SPIRE server did not answer in time",
        "look at its log; its datastore may be slow or away",
    ),
)
_FLAG = re.compile(r"flag provided but not defined: (-\S+)")


def failure(command: Sequence[str], status: int, stderr: str) -> RegistrationError:
    """Give the error for a command that ended with another status than 0."""
    what = " ".join(command[:2])
    said = _said(stderr)
    quoted = f": {said}" if said else f" (exit status {status}, without a word)"
    if flag := _FLAG.search(stderr):
        return RegistrationError(f"{what}: this spire-server does not know {flag[1]}", _NEEDS)
    for pattern, meaning, hint in _KNOWN:
        if re.search(pattern, stderr, re.IGNORECASE):
            return RegistrationError(f"{what}: {meaning}{quoted}", hint)
    if status == 127 and "Usage" in stderr:
        return RegistrationError(f"{what}: this program has no such command", _NEEDS)
    return RegistrationError(f"{what}: failed{quoted}", "the server's log may say more")


def not_started(program: str, reason: str, *, missing: bool) -> RegistrationError:
    """Give the error for a program that could not be started."""
    found = f"no program {program!r} on this host" if missing else f"{program!r}: {reason}"
    return RegistrationError(
        found,
        "--spire-server says how to run it, as in "
        '--spire-server "docker exec NAME /opt/spire/bin/spire-server"',
    )


def timed_out(command: Sequence[str], seconds: float, *, changes: bool) -> RegistrationError:
    """Give the error for a command that was ended because it took too long."""
    unknown = "; whether it was done is not known: run this again, it looks first"
    return RegistrationError(
        f"{' '.join(command[:2])}: no answer within {seconds:g} s{unknown if changes else ''}",
        "the server may be stuck: look at its log; --timeout gives it longer",
    )


def too_long(command: Sequence[str], limit: int) -> RegistrationError:
    """Give the error for a command that printed more than anybody wants to read."""
    return RegistrationError(
        f"{' '.join(command[:2])}: an answer of over {limit // 2**20} MiB",
        "is --spire-server the program itself?",
    )


def _said(stderr: str) -> str:
    """Give the line that tells most, in one line without what a terminal would act on."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    line = errors[-1] if errors else lines[0] if lines else ""
    shown = "".join(char if char.isprintable() else "?" for char in line)
    return without_token(shown.removeprefix("Error: "))[:400]
