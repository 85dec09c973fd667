"""The group "backend": the model server, which must answer us and nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sidecar.core.diagnosis.finding import Finding, Unknown, all_skipped, fail, ok, skipped, warn
from sidecar.core.diagnosis.host_facts import Account, Kind, Way
from sidecar.core.diagnosis.permission import WRITE, absent, hidden, obstacle
from sidecar.core.presets import HEALTH_PATHS, MAIN_ENDPOINTS, PREFIX, PRESETS

NAMES = (
    "backend.listening",
    "backend.socket_mode",
    "backend.loopback_only",
    "backend.health",
    "backend.host",
    "backend.origin",
    "backend.product",
    "backend.endpoints",
    "backend.streaming",
)
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+")
# How each product is told to stay on loopback.
_BIND: Mapping[str, str] = MappingProxyType(
    {
        "ollama": "OLLAMA_HOST=127.0.0.1:{port} in the environment of Ollama, and restart it",
        "vllm": "vllm serve ... --host 127.0.0.1 --port {port}",
        "llama-server": "llama-server --host 127.0.0.1 --port {port}",
    }
)
# Since when a product has an endpoint that our presets name.
_SINCE: Mapping[tuple[str, str], tuple[int, ...]] = MappingProxyType(
    {
        ("ollama", "POST /v1/responses"): (0, 13, 3),
        ("ollama", "POST /v1/messages"): (0, 14, 0),
    }
)


@dataclass(frozen=True, slots=True)
class Asked:
    """How one request to the backend went: a status, or the reason why there is none."""

    status: int = 0
    reason: str = ""

    @property
    def is_good(self) -> bool:
        """Tell whether it was answered as somebody who asks wants it."""
        return 200 <= self.status < 300

    def __str__(self) -> str:
        return self.reason or f"answers {self.status}"


@dataclass(frozen=True, slots=True)
class Product:
    """Which model server it is, as far as it says; both empty if it does not."""

    name: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Streamed:
    """How a streamed answer arrived: directly from the backend, and through the listener."""

    pieces: int
    seconds: float  # from the first byte to the last
    where: str


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """What is known of the backend; `way` is empty for one that is reached by TCP.

    `refusal` says why no connection was taken. `exposed` are other addresses of this host on which
    it answers. `host` is [backend] host, and `sent` is what the backend was sent for it.
    `foreign` and `page` are its answers to that Host, and to a page of another origin.
    `missing` are endpoints of the rules that it does not have, `presets` the presets of the rules.
    """

    address: str
    port: int
    way: Way
    account: Account
    refusal: str
    remote: bool  # unsafe_remote_backend, and it is one
    exposed: tuple[str, ...] | Unknown
    http: bool
    host: str
    sent: str
    health_path: str
    health: Asked | Unknown
    foreign: Asked | Unknown
    page: Asked | Unknown
    cors: bool  # whether there is [cors], and so no Origin for the backend
    product: Product
    missing: tuple[str, ...] | Unknown
    streamed: tuple[Streamed, ...] | Unknown
    presets: tuple[str, ...] = ()


def judge_backend(facts: BackendFacts) -> Iterator[Finding]:
    """Give the findings of the group."""
    yield _listening(facts)
    yield _socket_mode(facts)
    yield _loopback_only(facts)
    if not facts.http:
        reason = "in mode stream the backend's protocol is not ours to speak"
        yield from all_skipped(NAMES[3:], reason)
        return
    if facts.refusal:
        yield from all_skipped(NAMES[3:], "nothing answers there")
        return
    yield _health(facts)
    yield _host(facts)
    yield _origin(facts)
    yield _product(facts)
    yield _endpoints(facts)
    yield _streaming(facts)


def _listening(facts: BackendFacts) -> Finding:
    name = "backend.listening"
    if facts.refusal:
        if facts.way and _blocked(facts) is not None:
            return skipped(name, "its socket cannot be reached")
        seen = f"{facts.address} takes no connection: {facts.refusal}"
        remedy = "start the model server, for example: sudo systemctl start ollama"
        if facts.way and facts.way[-1].kind is Kind.SOCKET:
            # Some, vLLM among them, do not start while the file of before is there.
            remedy += (
                f"\nif it was killed, its file may keep it: sudo rm {facts.way[-1].path}, and "
            )
            remedy += f"in its unit ExecStartPre=/bin/rm -f {facts.way[-1].path}"
        return fail(name, seen, f"{remedy}\nor correct [backend] address")
    return ok(name, f"{facts.address} takes connections")


def _socket_mode(facts: BackendFacts) -> Finding:
    name = "backend.socket_mode"
    if not facts.way:
        return skipped(name, "the backend is reached by TCP")
    unseen = hidden(facts.way)
    if unseen is not None:
        reason = f"this account may not look at {unseen.path}"
        return skipped(name, reason, "run doctor with sudo")
    if absent(facts.way) is not None or facts.way[-1].kind is not Kind.SOCKET:
        return skipped(name, "there is no socket")
    blocked = _blocked(facts)
    if blocked is not None:
        group = facts.account.group or facts.account.gid
        end = facts.way[-1].path
        remedy = (
            f"sudo chgrp {group} {end} && sudo chmod g+rw {end}\n"
            "which lasts until the model server makes it anew; for longer, in its unit UMask=0007, "
            "and a setgid folder of a group that the sidecar is in (README, A model server on a "
            "Unix socket)"
        )
        return fail(name, f"{facts.account} may not connect: {blocked}", remedy)
    if _everybody(facts.way):
        end = facts.way[-1].path
        seen = f"every account of this host may connect to {end}, around the policy"
        return warn(name, seen, f"sudo chmod o-rwx {end}")
    return ok(name, str(facts.way[-1]))


def _blocked(facts: BackendFacts) -> object | None:
    return obstacle(facts.account, facts.way, WRITE)


def _everybody(way: Way) -> bool:
    return all(place.mode & 0o001 for place in way[:-1]) and bool(way[-1].mode & WRITE)


def _loopback_only(facts: BackendFacts) -> Finding:
    name = "backend.loopback_only"
    if facts.way:
        return skipped(name, "a Unix socket has no address")
    if facts.remote:
        seen = (
            f"{facts.address} is another host's: what is sent there leaves this host in plain text"
        )
        remedy = "a sidecar on that host, and a loopback address here"
        return warn(name, seen, remedy)
    if isinstance(facts.exposed, Unknown):
        return skipped(name, facts.exposed)
    if facts.exposed:
        seen = (
            f"the model server answers on {', '.join(facts.exposed)}: without mTLS, without policy"
        )
        bind = _BIND.get(facts.product.name, "have it listen on 127.0.0.1:{port} alone")
        return fail(name, seen, bind.format(port=facts.port))
    return ok(name, f"nothing but loopback answers on port {facts.port}")


def _health(facts: BackendFacts) -> Finding:
    name, health = "backend.health", facts.health
    if isinstance(health, Unknown):
        return skipped(name, health)
    if health.is_good:
        return ok(name, f"GET {facts.health_path}: {health.status}")
    seen = f"GET {facts.health_path}: the backend {health}"
    fitting = [path for path, names in HEALTH_PATHS.items() if facts.product.name in names]
    remedy = "see the model server's log"
    if fitting and facts.health_path not in fitting:
        remedy = f'[backend] health_path = "{fitting[0]}", which {facts.product.name} has'
    elif health.status == 404:
        remedy = '[backend] health_path: "/api/version" is Ollama\'s, "/health" vLLM\'s'
    return fail(name, seen, remedy)


def _host(facts: BackendFacts) -> Finding:
    name, foreign = "backend.host", facts.foreign
    if isinstance(foreign, Unknown):
        return skipped(name, foreign)
    if foreign.status == 403 and facts.host:
        seen = f"the backend answers 403 to Host: {facts.sent}"
        return fail(name, seen, '[backend] host = "", which sends its own address instead')
    if foreign.status == 403:
        return ok(name, f"it answers 403 to Host: {facts.sent}, so it is sent its own address")
    return ok(name, f"it takes Host: {facts.sent}")


def _origin(facts: BackendFacts) -> Finding:
    name, page = "backend.origin", facts.page
    if facts.cors:
        return ok(name, "[cors] answers pages of other origins, and the backend sees no Origin")
    if isinstance(page, Unknown):
        return skipped(name, page)
    if page.status == 403:
        seen = "it answers 403 to pages of other origins; [cors] is for those that may ask"
        return ok(name, seen)
    return ok(name, "it serves pages of other origins, as far as its health path tells")


def _product(facts: BackendFacts) -> Finding:
    name, product = "backend.product", facts.product
    if not product.name:
        return ok(name, "none of those that are known by name here")
    path = facts.health_path.partition("?")[0]
    others = HEALTH_PATHS.get(path, frozenset())
    health = facts.health
    answers = isinstance(health, Asked) and health.is_good
    if others and product.name not in others and not answers:
        return skipped(name, f"{product}; see backend.health")
    return ok(name, str(product))


def _endpoints(facts: BackendFacts) -> Finding:
    name, missing = "backend.endpoints", facts.missing
    if isinstance(missing, Unknown):
        return skipped(name, missing)
    if not missing:
        return ok(name, "it has every endpoint that the rules name")
    who = facts.product or "the backend"
    of_presets = {one.text for preset in facts.presets for one in PRESETS[preset]}
    named = tuple(one for one in missing if one not in of_presets)
    wrong = [preset for preset in facts.presets if MAIN_ENDPOINTS[preset] <= set(missing)]
    if named:
        remedy = "name in endpoints only what it has, or leave it so: such a request gets a 404"
        return warn(
            name, f"{who} does not have {', '.join(named)}", _update(facts.product, named) or remedy
        )
    if wrong:
        main = sorted(MAIN_ENDPOINTS[wrong[0]])
        seen = f"{who} has nothing that {PREFIX}{wrong[0]} is for, such as {main[0]}"
        remedy = "is it the model server that the preset is for? `backend.product` names it"
        return warn(name, seen, _update(facts.product, tuple(main)) or remedy)
    return ok(name, f"it has what the rules are for, and not {', '.join(missing)}")


def _update(product: Product, missing: tuple[str, ...]) -> str:
    """Return since when a newer version has what is missing; empty if none is known to."""
    since = [
        f"{one} since {_text(_SINCE[product.name, one])}"
        for one in missing
        if (product.name, one) in _SINCE
    ]
    return f"update {product.name}: {', '.join(since)}" if since else ""


def missing_by_version(product: Product, endpoints: tuple[str, ...]) -> tuple[str, ...] | Unknown:
    """Give the endpoints that a version is too old for; where it is not known, say so."""
    version = _VERSION.match(product.version)
    if version is None or not any(name == product.name for name, _ in _SINCE):
        return Unknown("the backend does not tell an unknown path from a wrong method")
    numbers = tuple(map(int, version[0].split(".")))
    return tuple(one for one in endpoints if numbers < _SINCE.get((product.name, one), ()))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _streaming(facts: BackendFacts) -> Finding:
    name, streamed = "backend.streaming", facts.streamed
    if isinstance(streamed, Unknown):
        return skipped(name, streamed)
    whole = [one for one in streamed if one.pieces < 2 or one.seconds <= 0]
    if whole:
        seen = f"{whole[0].where}: the answer came in one piece"
        return warn(name, seen, "what stands between client and model server buffers; turn it off")
    seen = "; ".join(f"{one.where}: {one.pieces} pieces in {one.seconds:.1f} s" for one in streamed)
    return ok(name, seen)
