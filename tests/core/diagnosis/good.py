"""Facts of a host on which all is well; a test changes the one that it is about."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from sidecar.core.address import Address
from sidecar.core.diagnosis.agent import AgentConf, AgentFacts, Attestation, Token
from sidecar.core.diagnosis.backend import Asked, BackendFacts, Product
from sidecar.core.diagnosis.files import FilesFacts, Published
from sidecar.core.diagnosis.finding import Finding, Unknown, Verdict
from sidecar.core.diagnosis.host import HostFacts
from sidecar.core.diagnosis.host_facts import (
    Account,
    Disk,
    Kind,
    ListeningSocket,
    NetworkTime,
    PathStat,
    Power,
    Process,
    ServiceState,
    Way,
)
from sidecar.core.diagnosis.identity import IdentityFacts
from sidecar.core.diagnosis.issued import Answer, IssuedBundle, IssuedSvid, Said
from sidecar.core.diagnosis.listener import Daemon, EndToEnd, ListenerFacts
from sidecar.core.diagnosis.policy import InForce, PolicyFacts
from sidecar.core.identity_update import SvidChoice
from sidecar.core.policy_file import parse_policy
from sidecar.core.status import AgentStatus, Report, Status

NOW = datetime(2026, 7, 28, 12, 0, tzinfo=UTC)
OURS = "spiffe://example.org/workload/model-server"
SERVICE = Account(
    "spiffe-sidecar", 451, 451, frozenset({451}), "spiffe-sidecar", "/usr/sbin/nologin"
)
ROOT = Account("root", 0, 0, frozenset({0}), "root", "/bin/bash")


def place(path: str, kind: Kind = Kind.FOLDER, mode: int = 0o755, uid: int = 0) -> PathStat:
    return PathStat(path, kind, mode, uid, uid)


def way(path: str, kind: Kind = Kind.FILE, mode: int = 0o644, uid: int = 0) -> Way:
    """A way whose folders are root's, with this at its end."""
    names = path.strip("/").split("/")
    folders = ["/" + "/".join(names[:at]) for at in range(len(names))]
    return (*map(place, folders), place(path, kind, mode, uid))


def svid(**changes: object) -> IssuedSvid:
    values: dict[str, object] = {
        "spiffe_id": OURS,
        "serial": "0A",
        "not_before": NOW - timedelta(minutes=10),
        "not_after": NOW + timedelta(minutes=50),
    }
    return IssuedSvid(**(values | changes))  # type: ignore[arg-type]


def issued(*svids: IssuedSvid, bundles: Iterable[IssuedBundle] = ()) -> Answer:
    own = IssuedBundle("example.org", 1, 1, NOW + timedelta(days=1))
    return Answer(Said.ISSUED, "", svids or (svid(),), tuple(bundles) or (own,))


def report(**changes: object) -> Report:
    """What a daemon says that is ready; changes are of the report itself."""
    status = Status(
        at=NOW,
        version="1.0.0",
        mode="http",
        started_at=NOW - timedelta(hours=1),
        agent=AgentStatus(source="agent", state="ready", since=NOW),
        pid=77,
        listening=("0.0.0.0:6701",),
    )
    return Report(**({"ready": True, "status": status} | changes))  # type: ignore[arg-type]


SERVICE_STATE = ServiceState(
    "spiffe-sidecar.service",
    installed=True,
    enabled=True,
    running=True,
    pid=77,
    user="spiffe-sidecar",
    path="/etc/systemd/system/spiffe-sidecar.service",
)
AGENT = AgentFacts(
    endpoint="unix:/opt/spire/sockets/agent.sock",
    way=way("/opt/spire/sockets/agent.sock", Kind.SOCKET, 0o777),
    account=SERVICE,
    asked_as=SERVICE,
    refusal="",
    process=Process(12, 0, "spire-agent"),
    answer=issued(),
    conf=AgentConf(
        "/opt/spire/conf/agent.conf",
        trust_domain="example.org",
        socket_path="/opt/spire/sockets/agent.sock",
        bootstrap="trust_bundle_path",
        join_token=True,
    ),
    attestation=Attestation(NOW + timedelta(minutes=40), Token.SPENT),
    now=NOW,
    log="journalctl -u spire-agent.service",
    join="register-workload --generate-token",
    service=SERVICE_STATE,
    start="sudo systemctl enable --now spire-agent.service",
    register="register-workload --uid 451",
    trust_domain="example.org",
)
IDENTITY = IdentityFacts(
    now=NOW,
    choice=SvidChoice(),
    answer=issued(),
    from_files=False,
    federated=("example.org",),
    renew="sudo systemctl restart spire-agent.service",
    register="register-workload --uid 451",
    set_clock="sudo timedatectl set-ntp true",
)
FILES = FilesFacts(
    now=NOW,
    directory="/opt/spiffe-sidecar/certs",
    way=way("/opt/spiffe-sidecar/certs", Kind.FOLDER, 0o755, SERVICE.uid),
    account=SERVICE,
    published=Published("generation-3", "", "0A", NOW + timedelta(minutes=50)),
    secrets=((place("/opt/spiffe-sidecar/certs/key", Kind.FILE, 0o600, 451), 0o600),),
    leftovers=(),
    issued="0A",
    served="0A",
    hooks=(),
    hook_names=("nginx",),
    disk=Disk(2**30, 10_000),
    publish="sudo systemctl kill --signal=USR1 spiffe-sidecar.service",
)
_POLICY = """
[[allow]]
name = "traefik"
peers = ["spiffe://example.org/workload/traefik"]
endpoints = ["preset:ollama"]
"""
POLICY = PolicyFacts(
    config="/etc/spiffe-sidecar/sidecar.toml",
    problems=(),
    ways=(
        way("/etc/spiffe-sidecar/sidecar.toml"),
        way("/etc/spiffe-sidecar/policy.toml"),
    ),
    account=SERVICE,
    policy=parse_policy(_POLICY, "policy.toml", "http"),
    helper=False,
    warnings=(),
    trust_domains=frozenset({"example.org"}),
    in_force=InForce(),
    reload="sudo systemctl kill --signal=HUP spiffe-sidecar.service",
    restart="sudo systemctl restart spiffe-sidecar.service",
)
LISTENER = ListenerFacts(
    addresses=(Address.parse("0.0.0.0:6701"),),
    own_ips=frozenset({ip_address("127.0.0.1"), ip_address("192.168.50.20")}),
    holders=(ListeningSocket(ip_address("0.0.0.0"), 6701, Process(77, 451, "spiffe-sidecar")),),
    account=SERVICE,
    unprivileged_from=1024,
    wildcard_is_free=False,
    firewalls=(),
    daemon=Daemon(report(), "", "127.0.0.1:6703", 77),
    installed_version="1.0.0",
    service=SERVICE_STATE,
    end_to_end=EndToEnd(peer=OURS, status=200),
    http=True,
    start="sudo systemctl enable --now spiffe-sidecar.service",
    restart="sudo systemctl restart spiffe-sidecar.service",
)
BACKEND = BackendFacts(
    address="127.0.0.1:11434",
    port=11434,
    way=(),
    account=SERVICE,
    refusal="",
    remote=False,
    exposed=(),
    http=True,
    host="",
    sent="models.example",
    health_path="/api/version",
    health=Asked(200),
    foreign=Asked(403),
    page=Asked(403),
    cors=False,
    product=Product("ollama", "0.14.0"),
    missing=(),
    streamed=Unknown("it costs time", "doctor --model NAME"),
)
HOST = HostFacts(
    python=(3, 12, 1),
    openssl="OpenSSL 4.0.0",
    openssl_major=4,
    account=SERVICE,
    known_by="which the daemon runs as",
    program=(
        way("/opt/spiffe-sidecar/venv/bin/python", Kind.FILE, 0o755),
        way("/opt/spiffe-sidecar/venv/lib/sidecar", Kind.FOLDER),
    ),
    service=SERVICE_STATE,
    daemon_pid=77,
    daemon_uid=451,
    descriptors=20_000,
    connections=4096,
    sandbox=True,
    landlock=6,
    power=Power(sleeps=False, how="sleep.target is masked"),
    no_sleep="sudo systemctl mask sleep.target",
    join_token=True,
    network_time=NetworkTime(synchronised=True, how="set"),
    set_clock="sudo timedatectl set-ntp true",
    install="sudo scripts/setup-linux.sh --help",
    enable="sudo systemctl enable --now spiffe-sidecar.service",
)


def troubles(findings: Iterable[Finding]) -> dict[str, Verdict]:
    """Those that warn or fail, by their names; each of them has a remedy."""
    found = [one for one in findings if one.verdict in (Verdict.WARN, Verdict.FAIL)]
    assert all(one.remedy and one.seen for one in found)
    return {one.name: one.verdict for one in found}


def verdict_of(findings: Iterable[Finding], name: str) -> Verdict:
    (found,) = [one for one in findings if one.name == name]
    return found.verdict
