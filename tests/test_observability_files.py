"""Alerts, scrape configuration and dashboard: what they ask for is what /metrics tells.

The names and labels are held against pages that are rendered here. Alerts are tried out with
promtool, where it is installed: each fires when it should, and none when all is well.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.adapters.metrics import metrics_page
from sidecar.core.after_rotation import HookResult
from sidecar.core.ledger import Ledger
from sidecar.core.rule_counts import Finished
from tests.statuses import FILES, HOOK, JWT_SVID, NOW, serving

CONF = Path(__file__).parent.parent / "conf"
ALERTS = (CONF / "prometheus-alerts.yml").read_text(encoding="utf-8")
SCRAPE = (CONF / "prometheus-scrape.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((CONF / "grafana-dashboard.json").read_text(encoding="utf-8"))
PREFIX = "spiffe_sidecar_"
# What Prometheus adds to every series of a scrape.
TARGET = {"job", "instance"}
# The library tells these on Linux only, and `up` is Prometheus' own.
NOT_OURS = {
    "up",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
}


def _page() -> str:
    """A page with every metric there is."""
    ledger = Ledger(NOW, ["traefik"])
    ledger.request_finished(None, Finished("traefik", 200, 0.3, 0.02, served=True))
    ledger.hook_done(HookResult("nginx", "", NOW, 1, 0.1, ""))
    status = serving(files=FILES, jwt_svids=(JWT_SVID,), hooks=(HOOK,))
    return metrics_page(status, ledger).decode()


def _labels() -> dict[str, dict[str, set[str]]]:
    """Of every series on the page, its labels, and the values of each."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(_page()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found[sample.name][label].add(value)
            found[sample.name].setdefault("", set())
    return found


LABELS = _labels()
# Values that depend on the configuration or on what backends answer.
FREE_LABELS = {"rule", "code", "hook", "file", "version", "mode", *TARGET}


# What is in the files. YAML is read by its lines: an expression has one of its own.


def _alerts() -> list[tuple[str, str]]:
    """Name and block of each alert."""
    blocks = re.split(r"^ {6}- alert: ", ALERTS, flags=re.MULTILINE)[1:]
    return [(block.partition("\n")[0], block) for block in blocks]


def _expression(block: str) -> str:
    found = re.findall(r"^ {8}expr: (.+)$", block, re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


ALERT_BLOCKS = dict(_alerts())
EXPRESSIONS = {name: _expression(block) for name, block in ALERT_BLOCKS.items()}


def _panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def _dashboard_expressions() -> dict[str, str]:
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in _panels()
        for target in panel.get("targets", ())
    }
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            found[annotation["name"]] = annotation["expr"]
    return found


OF_DASHBOARD = _dashboard_expressions()
ALL = {**EXPRESSIONS, **OF_DASHBOARD}


def _metrics(expression: str) -> list[tuple[str, str]]:
    """Each metric of an expression with its selector."""
    return re.findall(r"\b(spiffe_sidecar_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", expression)


def _faults(expression: str) -> list[str]:
    """What an expression asks for that no page has."""
    faults, known = [], set(TARGET)
    metrics = _metrics(expression)
    for name, selector in metrics:
        if name in NOT_OURS:
            continue
        if name not in LABELS:
            faults.append(name)
            continue
        known |= set(LABELS[name])
        for label, how, text in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
            if label not in LABELS[name].keys() | TARGET:
                faults.append(f"{name}{{{label}}}")
            elif label not in FREE_LABELS:
                words = text.split("|") if "~" in how else [text]
                faults += [f"{label}={one}" for one in words if one not in LABELS[name][label]]
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        faults += [one for one in re.split(r",\s*", labels) if one not in known]
    return faults if metrics else ["no metric"]


@pytest.mark.parametrize("name", ALL)
def test_expression_asks_for_what_there_is(name: str) -> None:
    assert _faults(ALL[name]) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        pytest.param(f"{PREFIX}svid_expiry", f"{PREFIX}svid_expiry", id="name"),
        pytest.param(f"{PREFIX}requests", f"{PREFIX}requests", id="counter without its suffix"),
        pytest.param(f'{PREFIX}state{{name="x"}}', f"{PREFIX}state{{name}}", id="label"),
        pytest.param(f'{PREFIX}state{{state="lost"}}', "state=lost", id="value"),
        pytest.param(f'{PREFIX}unready{{reason=~"denied|x"}}', "reason=x", id="one of the values"),
        pytest.param(f"sum by (peer) ({PREFIX}ready)", "peer", id="label that is summed by"),
        pytest.param("vector(1)", "no metric", id="nothing at all"),
    ],
)
def test_what_there_is_not_would_be_found(expression: str, fault: str) -> None:
    assert _faults(expression) == [fault]


@pytest.mark.parametrize("name", ALERT_BLOCKS)
def test_alert_says_what_and_what_to_do(name: str) -> None:
    block = ALERT_BLOCKS[name]
    assert name.startswith("SpiffeSidecar")
    assert re.search(r"^ {8}labels: \{severity: (page|ticket)\}$", block, re.MULTILINE)
    (summary,) = re.findall(r'^ {10}summary: "(.+)"$', block, re.MULTILINE)
    (description,) = re.findall(r"^ {10}description: >-\n((?: {12}.+\n)+)", block, re.MULTILINE)
    assert "{{ $labels.instance }}" in summary
    assert len(description.split()) > 15
    for label in re.findall(r"\$labels\.(\w+)", block):
        metrics = [metric for metric, _ in _metrics(EXPRESSIONS[name])]
        assert label in TARGET or any(label in LABELS[metric] for metric in metrics)


def test_names_of_alerts_are_unique() -> None:
    assert len(ALERT_BLOCKS) == ALERTS.count("- alert:")
    for metric in re.findall(rf"\b{PREFIX}\w+", ALERTS):
        assert metric in LABELS


def test_scrape_goes_where_the_daemon_listens() -> None:
    assert 'targets: ["127.0.0.1:6703"]' in SCRAPE
    assert 'address = "127.0.0.1:6703"' in (CONF / "sidecar.toml").read_text(encoding="utf-8")
    assert "job_name: spiffe-sidecar" in SCRAPE
    assert 'job="spiffe-sidecar"' in EXPRESSIONS["SpiffeSidecarDown"]
    assert (CONF / "prometheus-alerts.yml").name in SCRAPE


# The dashboard.


def test_dashboard_can_be_imported_anywhere() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert DASHBOARD["id"] is None  # an imported one gets its own
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in _panels():
        if panel["type"] != "row":
            assert panel["datasource"] == source
            assert panel["description"]
            assert all(target["datasource"] == source for target in panel["targets"])
    for name, expression in OF_DASHBOARD.items():
        used = set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval"}
        assert used <= set(variables), name


def test_panels_have_a_place_and_a_number_of_their_own() -> None:
    panels = list(_panels())
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_legends_name_labels_that_there_are() -> None:
    for panel in _panels():
        for target in panel.get("targets", ()):
            labels = set(TARGET)
            for metric, _ in _metrics(target["expr"]):
                labels |= set(LABELS.get(metric, ()))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


# `state` and `unready` say the same, and why.
SAID_BY_OTHERS = {f"{PREFIX}serving"}


@pytest.mark.parametrize(
    "metric", sorted({name for name in LABELS if name.startswith(PREFIX)} - SAID_BY_OTHERS)
)
def test_dashboard_shows_every_metric(metric: str) -> None:
    family = re.sub(r"_(sum|count|created)$", "_bucket", metric)
    shown = {name for expression in OF_DASHBOARD.values() for name, _ in _metrics(expression)}
    assert family in shown


# What Prometheus itself says.

Promtool = Callable[..., None]


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    """Run promtool on files in a folder of their own."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool (package prometheus) on this host")
    program = found

    def run(*command: str, **files: str) -> None:
        for name in ("prometheus-alerts.yml", "prometheus-scrape.yml"):
            shutil.copy(CONF / name, tmp_path)
        for name, text in files.items():
            (tmp_path / f"{name}.yml").write_text(text)
        done = subprocess.run(
            [program, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_promtool_accepts_the_rules(promtool: Promtool) -> None:
    promtool("check", "rules", "prometheus-alerts.yml")


def test_promtool_accepts_the_scrape_configuration(promtool: Promtool) -> None:
    promtool("check", "config", "prometheus-scrape.yml")


def test_promtool_accepts_the_expressions_of_the_dashboard(promtool: Promtool) -> None:
    rules = [
        {"record": f"dashboard:panel:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(OF_DASHBOARD.values())
    ]
    # JSON is YAML, too.
    promtool("check", "rules", "d.yml", d=json.dumps({"groups": [{"name": "d", "rules": rules}]}))


# Series as promtool's tests write them, a value a minute: all is well, and what differs when an
# alert is to fire. `time()` begins at 0 there, and what is asked is asked at 3600.
WELL = {
    'up{job="spiffe-sidecar"}': "1x60",
    "start_time_seconds": "0x60",
    "ready": "1x60",
    'unready{reason="draining"}': "0x60",
    'unready{reason="files_failed"}': "0x60",
    'warning{reason="files_failed"}': "0x60",
    "agent_connected": "1x60",
    'state{state="denied"}': "0x60",
    "svid_updates_discarded_total": "0x60",
    "svid_not_before_timestamp_seconds": "0x60",
    "svid_not_after_timestamp_seconds": "7200x60",
    'jwt_svid_expiry_timestamp_seconds{file="a.jwt"}': "7200x60",
    'hook_runs_total{hook="a",result="ok"}': "0+4x60",
    'hook_runs_total{hook="a",result="gave_up"}': "0x60",
    "policy_last_reload_successful": "1x60",
    "backend_up": "1x60",
    'handshakes_total{result="accepted"}': "0+4000x60",
    'handshakes_total{result="left"}': "0+4000x60",
    'handshakes_total{result="not_proven"}': "0+4x60",
    'requests_total{rule="a",code="200"}': "0+4000x60",
    'requests_total{rule="a",code="none"}': "0+4000x60",
    'requests_total{rule="a",code="503"}': "0+4x60",
    "connections": "100x60",
    "connections_maximum": "4096x60",
}
FIRES = {
    "SpiffeSidecarDown": {'up{job="spiffe-sidecar"}': "0x60"},
    "SpiffeSidecarRestartLoop": {"start_time_seconds": "0+40x60"},
    "SpiffeSidecarNotReady": {"ready": "0x60"},
    "SpiffeSidecarSvidNotRenewed": {"svid_not_after_timestamp_seconds": "4500x60"},
    "SpiffeSidecarSvidExpiresSoon": {"svid_not_after_timestamp_seconds": "3700x60"},
    "SpiffeSidecarAgentLost": {"agent_connected": "0x60"},
    "SpiffeSidecarDenied": {'state{state="denied"}': "1x60"},
    "SpiffeSidecarUpdateDiscarded": {"svid_updates_discarded_total": "0x56 1x4"},
    "SpiffeSidecarFilesNotPublished": {'warning{reason="files_failed"}': "1x60"},
    "SpiffeSidecarHookGaveUp": {'hook_runs_total{hook="a",result="gave_up"}': "0x54 1x6"},
    "SpiffeSidecarJwtSvidExpires": {'jwt_svid_expiry_timestamp_seconds{file="a.jwt"}': "3590x60"},
    "SpiffeSidecarBadPolicy": {"policy_last_reload_successful": "0x60"},
    "SpiffeSidecarBackendDown": {"backend_up": "0x60"},
    "SpiffeSidecarHandshakesRefused": {'handshakes_total{result="not_proven"}': "0+120x60"},
    "SpiffeSidecarServerErrors": {'requests_total{rule="a",code="503"}': "0+600x60"},
    "SpiffeSidecarConnectionsNearMaximum": {"connections": "4000x60"},
}
# An SVID that expires soon was not renewed, either.
ALSO_FIRES = {"SpiffeSidecarSvidExpiresSoon": {"SpiffeSidecarSvidNotRenewed"}}


def _series(changes: dict[str, str]) -> list[dict[str, str]]:
    """Input series of one test."""
    series = []
    for name, values in (WELL | changes).items():
        metric, _, labels = name.rstrip("}").partition("{")
        labels = ",".join(filter(None, [labels, 'instance="mac"']))
        labels += "" if "job=" in labels else ',job="spiffe-sidecar"'
        full = metric if metric == "up" else PREFIX + metric
        series.append({"series": f"{full}{{{labels}}}", "values": values})
    return series


def _test(changes: dict[str, str], firing: set[str]) -> dict[str, Any]:
    """One test for promtool: these alerts fire after an hour, and no other one does."""
    return {
        "interval": "1m",
        "input_series": _series(changes),
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "1h",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)
                ],
            }
        ],
    }


def test_every_alert_is_tried() -> None:
    assert FIRES.keys() == ALERT_BLOCKS.keys()


def test_each_alert_fires_alone_and_none_when_all_is_well(promtool: Promtool) -> None:
    draining = {"ready": "0x60", 'unready{reason="draining"}': "1x60"}
    tests = [_test({}, set()), _test(draining, set())]
    for alert, changes in FIRES.items():
        tests.append(_test(changes, {alert} | ALSO_FIRES.get(alert, set())))
    text = {
        "rule_files": ["prometheus-alerts.yml"],
        "evaluation_interval": "1m",
        "tests": tests,
    }
    promtool("test", "rules", "t.yml", t=json.dumps(text))
