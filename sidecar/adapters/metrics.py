"""What Prometheus scrapes: ledger and status in its text format, through its own library.

Gets the status of the moment and the ledger, gives the page. Nothing is counted here, each scrape
reads what there is. Labels have bounded values: words from lists, names from the policy and the
configuration, and never a peer's ID, address or path.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.histogram import BOUNDS, Histogram
from sidecar.core.identity_state import IdentityState
from sidecar.core.ledger import BACKEND_WORDS, DENIALS, OTHER_DENIALS, Ledger
from sidecar.core.lifetime import END_WORDS
from sidecar.core.readiness import ReasonName, verdict
from sidecar.core.status import IdentityStatus, LoadStatus, PolicyStatus, Status

# The library's newest format has a version that not every Prometheus knows. This one all do, and
# for names like ours the two are the same.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "spiffe_sidecar_"
_HOOK_RESULTS = ("ok", "failed", "gave_up")


def metrics_page(status: Status, ledger: Ledger, proc: str = "/proc") -> bytes:
    """Give the page, in `CONTENT_TYPE`; `proc` is where Linux tells of processes.

    With hundreds of rules this takes a tenth of a second: for a thread, not for trio's.
    """
    registry = CollectorRegistry()
    registry.register(_Sidecar(status, ledger))
    registry.register(_Process(proc))
    return generate_latest(registry)


class _Process(Collector):
    """CPU, memory and descriptors of this process, where the library can tell: on Linux."""

    def __init__(self, proc: str) -> None:
        self._inner = ProcessCollector(proc=proc, registry=None)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        try:
            return self._inner.collect()
        except (ValueError, LookupError):
            # It knows /proc as it mostly is, and stumbles over a limit that is "unlimited". That
            # is no reason to lose the rest of the page.
            return ()


class _Sidecar(Collector):
    """What is about us."""

    def __init__(self, status: Status, ledger: Ledger) -> None:
        self._status, self._ledger = status, ledger

    def describe(self) -> Iterable[Metric]:
        """Give nothing: otherwise the registry collects everything once more, for the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        status, ledger = self._status, self._ledger
        yield from _of_process(status)
        yield from _of_agent(status)
        if status.identity is not None:
            yield from _of_identity(status.identity)
        yield from _of_readiness(status)
        yield from _of_files(status, ledger)
        if status.policy is not None:
            yield from _of_policy(status.policy, ledger)
        if status.backend is not None and status.backend.checked_at is not None:
            text = "Whether the backend answered when it was asked last."
            yield _gauge("backend_up", text, not status.backend.reason)
        if status.load is not None:
            yield from _of_peers(status.load, ledger)
            yield from _of_requests(status.load, ledger)


def _of_process(status: Status) -> Iterator[Metric]:
    text = "Version and mode of this process; always 1."
    build = GaugeMetricFamily(_PREFIX + "build_info", text, labels=("version", "mode"))
    build.add_metric((status.version, status.mode), 1)
    yield build
    yield _time("start_time_seconds", "When the daemon started, in Unix time.", status.started_at)


def _of_agent(status: Status) -> Iterator[Metric]:
    agent = status.agent
    text = "Whether the agent's stream, or what gives us an identity instead, is up."
    yield _gauge("agent_connected", text, agent.connected)
    yield _gauge("serving", "Whether there is an identity to serve with.", agent.serving)
    text = "1 for the state that we are in, 0 for the others."
    yield _words("state", text, "state", IdentityState, {agent.state})
    text = "X.509-SVIDs that were put in use, the first one included."
    yield _counter("svid_rotations", text, agent.rotations)
    text = "Updates that were not used, because something in them was wrong."
    yield _counter("svid_updates_discarded", text, agent.updates_discarded)


def _of_identity(identity: IdentityStatus) -> Iterator[Metric]:
    text = "When our X.509-SVID begins to be valid, in Unix time."
    yield _time("svid_not_before_timestamp_seconds", text, identity.not_before)
    text = "When our X.509-SVID expires, in Unix time."
    yield _time("svid_not_after_timestamp_seconds", text, identity.not_after)
    text = "Trust domains whose bundles we hold, our own included."
    yield _gauge("trust_domains", text, len(identity.trust_domains))


def _of_readiness(status: Status) -> Iterator[Metric]:
    of = verdict(status)
    yield _gauge("ready", "Whether /readyz says that we are ready.", of.ready)
    text = "1 for each reason why we are not ready."
    yield _words("unready", text, "reason", ReasonName, {one.name for one in of.reasons})
    text = "1 for each thing that a person should see to."
    yield _words("warning", text, "reason", ReasonName, {one.name for one in of.warnings})


def _of_files(status: Status, ledger: Ledger) -> Iterator[Metric]:
    if status.files is not None:
        results = {"ok": ledger.files.good, "failed": ledger.files.bad}
        text = "Attempts to publish certificate files."
        yield _counters("cert_files_publications", text, "result", results)
    if status.jwt_svids:
        text = "When the JWT-SVID in a file expires, in Unix time."
        times = {one.file: one.expires.timestamp() for one in status.jwt_svids if one.expires}
        yield _gauges("jwt_svid_expiry_timestamp_seconds", text, "file", times)
    if status.hooks:
        labels = ("hook", "result")
        runs = CounterMetricFamily(_PREFIX + "hook_runs", "Attempts of hooks.", labels=labels)
        for hook in status.hooks:
            for result in _HOOK_RESULTS:
                runs.add_metric((hook.name, result), ledger.hook_runs[hook.name, result])
        yield runs


def _of_policy(policy: PolicyStatus, ledger: Ledger) -> Iterator[Metric]:
    text = "Rules of the policy in force."
    yield _gauges("policy_rules", text, "kind", {"allow": policy.allow, "deny": policy.deny})
    results = {"ok": ledger.policy.good, "refused": ledger.policy.bad}
    yield _counters("policy_reloads", "Policies that were read again.", "result", results)
    text = "Whether the policy in force is the one that was read last."
    yield _gauge("policy_last_reload_successful", text, not policy.problems)


def _of_peers(load: LoadStatus, ledger: Ledger) -> Iterator[Metric]:
    yield _gauge("connections", "Connections of admitted peers now.", load.connections)
    text = "Connections of admitted peers that there may be."
    yield _gauge("connections_maximum", text, load.connections_maximum)
    text = "TLS handshakes that ended, by how they did."
    handshakes = {result.value: ledger.handshakes[result] for result in HandshakeResult}
    yield _counters("handshakes", text, "result", handshakes)
    text = "Seconds of TLS handshakes that went well."
    yield _histogram("handshake_duration_seconds", text, ledger.handshake_seconds)
    text = "Attempts to accept a connection that the system refused."
    yield _counter("accept_failures", text, ledger.accept_failures)
    text = "Seconds of admitted connections, from admission to end."
    yield _histogram("connection_duration_seconds", text, ledger.connection_seconds)
    text = "Admitted connections that ended, by why; closed: not because of us."
    ends = {word: ledger.connection_ends[word] for word in END_WORDS}
    yield _counters("connection_ends", text, "reason", ends)
    text = "Connections and requests that failed because of the backend, by how."
    failures = {word: ledger.backend_failures[word] for word in BACKEND_WORDS}
    yield _counters("backend_failures", text, "reason", failures)
    text = "Requests and connections that we refused ourselves, by why."
    denials = {code: ledger.denials[code] for code in sorted(DENIALS | {OTHER_DENIALS})}
    yield _counters("denials", text, "reason", denials)


def _of_requests(load: LoadStatus, ledger: Ledger) -> Iterator[Metric]:
    yield _gauge("requests_in_flight", "Requests that run now.", load.running)
    yield _gauge("requests_queued", "Requests that wait for their turn now.", load.queued)
    text = 'Requests, by rule (empty: none), status (or "none": no answer) and what came of them.'
    labels = ("rule", "code", "outcome")
    requests = CounterMetricFamily(_PREFIX + "requests", text, labels=labels)
    text = "From a request's head to the first byte of the backend's answer."
    first_byte = HistogramMetricFamily(
        _PREFIX + "request_first_byte_seconds", text, labels=("rule",)
    )
    text = "From a request's head to the end of the backend's answer."
    duration = HistogramMetricFamily(_PREFIX + "request_duration_seconds", text, labels=("rule",))
    for rule, counts in ledger.rules.items():
        for (code, outcome), count in tuple(counts.codes.items()):
            requests.add_metric((rule, code, outcome), count)
        _add(first_byte, rule, counts.first_byte)
        _add(duration, rule, counts.duration)
    yield from (requests, first_byte, duration)
    text = "Bytes of requests and answers, counted when they end."
    moved = {"received": ledger.received, "sent": ledger.sent}
    yield _counters("bytes", text, "direction", moved)


def _add(family: HistogramMetricFamily, rule: str, histogram: Histogram) -> None:
    """Add a histogram; one that is empty has nothing to say."""
    if histogram.count:
        bounds = [*map(str, BOUNDS), "+Inf"]
        buckets = list(zip(bounds, histogram.cumulative(), strict=True))
        family.add_metric((rule,), buckets, histogram.total_seconds)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text)
    bounds = [*map(str, BOUNDS), "+Inf"]
    buckets = list(zip(bounds, histogram.cumulative(), strict=True))
    family.add_metric((), buckets, histogram.total_seconds)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, float(value))


def _time(name: str, text: str, at: datetime) -> Metric:
    return _gauge(name, text, at.timestamp())


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=(label,))
    for word, value in values.items():
        family.add_metric((word,), value)
    return family


def _words(
    name: str, text: str, label: str, all_words: Iterable[str], true: Collection[str]
) -> Metric:
    """Give 1 for the words that hold and 0 for the others, so that none ever goes missing."""
    return _gauges(name, text, label, {str(word): float(word in true) for word in all_words})


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value)


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=(label,))
    for word, value in values.items():
        family.add_metric((word,), value)
    return family
