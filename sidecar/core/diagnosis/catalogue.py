"""The names of all checks, what each asks, and which failures follow from another one's.

A fault is named by the check that found its cause. What fails because of it is told as skipped,
with the cause, so that a person who reads from the top acts on one thing at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sidecar.core.diagnosis.finding import Finding, Verdict, skipped

CHECKS: Mapping[str, str] = MappingProxyType(
    {
        "agent.socket": "the agent's socket is there, and is a socket",
        "agent.access": "the service user may pass its folders and connect to it",
        "agent.guarded": "nobody else can put another socket in its place",
        "agent.listening": "somebody takes connections on it",
        "agent.process": "which process that is, and whose",
        "agent.workload_api": "what answers is a SPIFFE Workload API",
        "agent.registration": "the agent issues an identity to the service user",
        "agent.configuration": "agent.conf fits: trust domain, socket, trust bundle",
        "agent.attestation": "the agent's own SVID, from its join token, has not expired",
        "agent.service": "the agent starts with the host and runs",
        "identity.files": "the files of [identity_files] can be read and belong together",
        "identity.spiffe_id": "the SPIFFE ID that is configured is among those issued",
        "identity.clock": "the SVID is valid already: the clock agrees with the issuer's",
        "identity.lifetime": "the SVID has not expired",
        "identity.rotation": "the SVID is renewed in time",
        "identity.bundle": "the trust bundle has authorities that are valid for a while",
        "identity.chain": "the SVID proves against its own trust bundle",
        "identity.federation": "each trust domain that the policy names has a bundle",
        "files.directory": "the directory of certificate files is there",
        "files.writable": "the service user can write there",
        "files.guarded": "nobody else can",
        "files.published": "a generation is published whole, and key and certificate are a pair",
        "files.keys": "nobody else can read a private key or a token",
        "files.current": "what is published is the SVID of now, and has not expired",
        "files.leftovers": "nothing is left behind by a crash",
        "files.hooks": "what [[after_rotation]] names exists",
        "files.space": "the disk has room for the next generation",
        "policy.configuration": "configuration and policy can be used",
        "policy.readable": "the service user can read both",
        "policy.guarded": "nobody else can change them, the service user included",
        "policy.admits": "the policy admits a peer of a trust domain that we know",
        "policy.lint": "the policy says nothing that was most likely not meant",
        "policy.in_force": "the running daemon uses these two files as they are",
        "listener.daemon": "the daemon runs",
        "listener.ready": "the daemon says that it is ready",
        "listener.version": "the daemon is of the version that is installed",
        "listener.address": "the addresses to listen on belong to this host",
        "listener.port": "the port is ours or free",
        "listener.privileges": "the service user may use the port",
        "listener.exposure": "other hosts can reach the address",
        "listener.firewall": "the host's firewall lets peers in",
        "listener.handshake": "a TLS handshake with our own SVID succeeds, and the server is us",
        "listener.request": "GET /health through the listener, as a peer",
        "backend.listening": "the model server takes connections",
        "backend.socket_mode": "the service user may connect to its Unix socket, and others not",
        "backend.loopback_only": "the model server is not reachable on another address",
        "backend.health": "it answers on [backend] health_path",
        "backend.host": "it accepts the Host that it will be sent",
        "backend.origin": "what a page of another origin is told, and by whom",
        "backend.product": "which model server it is; the health path is one of its own",
        "backend.endpoints": "it has the endpoints that the rules allow",
        "backend.streaming": "a streamed answer arrives piece by piece",
        "host.python": "Python and OpenSSL are new enough",
        "host.service_user": "the sidecar runs as an account of its own: not root, no login",
        "host.installation": "the service user can run the installed program, and not change it",
        "host.service": "the service is installed",
        "host.enabled": "it starts with the host",
        "host.active": "it runs, and is the daemon that answers",
        "host.descriptors": "file descriptors are enough for [connections] maximum",
        "host.sandbox": "the kernel has the means for [sandbox]",
        "host.sleep": "the host does not go to sleep",
        "host.clock": "the clock is set from the network",
    }
)
GROUPS = tuple(dict.fromkeys(name.partition(".")[0] for name in CHECKS))

# A check -> those whose failure explains its own. Of what is not written here each failure is
# told. What a group of checks needs to begin with is the business of its own module.
_JOINED = ("agent.attestation", "agent.service")
_AGENT = (*_JOINED, "agent.socket", "agent.access", "agent.listening", "agent.workload_api")
_ISSUED = (*_AGENT, "agent.registration", "identity.files")
_VALID = (
    *_ISSUED,
    "identity.spiffe_id",
    "identity.clock",
    "identity.lifetime",
    "identity.bundle",
    "identity.chain",
)
_BACKEND = ("backend.listening", "backend.socket_mode", "backend.health")
_STARTS = (
    "policy.configuration",
    "policy.readable",
    "listener.address",
    "listener.port",
    "listener.privileges",
    "host.installation",
)
_RUNS = ("listener.daemon", "host.active")
_WRITES = ("files.writable", "files.guarded")
CAUSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "agent.service": ("agent.attestation",),
        "agent.socket": _JOINED,
        "agent.listening": _JOINED,
        "agent.workload_api": (*_JOINED, "agent.socket", "agent.access", "agent.listening"),
        "agent.registration": _AGENT,
        "identity.lifetime": ("identity.clock",),
        "identity.rotation": ("identity.clock", "identity.lifetime"),
        "identity.chain": ("identity.bundle",),
        "policy.admits": ("identity.federation",),
        "files.published": (*_VALID, *_RUNS, "files.directory", *_WRITES),
        "files.current": (*_VALID, *_RUNS, *_WRITES, "files.space"),
        "files.leftovers": _WRITES,
        "listener.daemon": _STARTS,
        "host.active": ("listener.daemon", *_STARTS),
        "listener.ready": (*_VALID, *_BACKEND, *_WRITES, "files.hooks"),
        "listener.handshake": (*_VALID, "listener.ready"),
        "listener.request": (*_VALID, *_BACKEND, "listener.handshake", "listener.ready"),
        "backend.health": ("backend.host",),
        "policy.in_force": ("policy.configuration", "policy.readable"),
    }
)


def only_causes(findings: Iterable[Finding]) -> list[Finding]:
    """Give the findings in the catalogue's order, with what follows from others as skipped."""
    by_name = {finding.name: finding for finding in findings}
    failed = {name for name, one in by_name.items() if one.verdict is Verdict.FAIL}
    return [_told(by_name[name], failed) for name in CHECKS if name in by_name]


def _told(finding: Finding, failed: set[str]) -> Finding:
    if finding.verdict not in (Verdict.FAIL, Verdict.WARN):
        return finding
    cause = next((one for one in CAUSES.get(finding.name, ()) if one in failed), None)
    if cause is None:
        return finding
    return skipped(finding.name, f"follows from {cause}: {finding.seen}")
