from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.diagnosis.backend import (
    NAMES,
    Asked,
    BackendFacts,
    Product,
    Streamed,
    judge_backend,
    missing_by_version,
)
from sidecar.core.diagnosis.finding import Unknown, Verdict
from sidecar.core.diagnosis.host_facts import Kind, PathStat
from sidecar.core.presets import PRESETS
from tests.core.diagnosis.good import BACKEND, place, troubles, verdict_of, way

FAIL, WARN, SKIPPED = Verdict.FAIL, Verdict.WARN, Verdict.SKIPPED
SOCKET = "/run/model/model.sock"


def changed(**changes: Any) -> BackendFacts:
    return replace(BACKEND, **changes)


def socket(mode: int, **changes: Any) -> BackendFacts:
    return changed(way=way(SOCKET, Kind.SOCKET, mode), address=f"unix:{SOCKET}", **changes)


def test_a_good_backend_is_content() -> None:
    assert troubles(judge_backend(BACKEND)) == {}
    assert [one.name for one in judge_backend(BACKEND)] == list(NAMES)


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        pytest.param(
            changed(refusal="Connection refused"), "backend.listening", FAIL, id="it does not run"
        ),
        pytest.param(
            socket(0o660, refusal="Permission denied"), "backend.socket_mode", FAIL, id="its mode"
        ),
        pytest.param(socket(0o666), "backend.socket_mode", WARN, id="for everybody"),
        pytest.param(
            changed(exposed=("0.0.0.0:11434",)), "backend.loopback_only", FAIL, id="reachable"
        ),
        pytest.param(changed(remote=True), "backend.loopback_only", WARN, id="another host"),
        pytest.param(changed(health=Asked(404)), "backend.health", FAIL, id="no such path"),
        pytest.param(changed(health=Asked(0, "ReadTimeout")), "backend.health", FAIL, id="silent"),
        pytest.param(changed(host="keep"), "backend.host", FAIL, id="it refuses the peer's Host"),
        pytest.param(
            changed(missing=("POST /v1/messages",), product=Product("ollama", "0.13.5")),
            "backend.endpoints",
            WARN,
            id="an endpoint that it does not have",
        ),
        pytest.param(
            changed(missing=("POST /v1/messages",), presets=("openai", "anthropic")),
            "backend.endpoints",
            WARN,
            id="nothing that a preset is for",
        ),
        pytest.param(
            changed(streamed=(Streamed(9, 2.0, "from the backend"), Streamed(1, 0.0, "through"))),
            "backend.streaming",
            WARN,
            id="the answer comes in one piece",
        ),
    ],
)
def test_each_fault_has_one_name(facts: BackendFacts, name: str, verdict: Verdict) -> None:
    assert troubles(judge_backend(facts)) == {name: verdict}


@pytest.mark.parametrize(
    ("product", "remedy"),
    [
        pytest.param(Product("ollama", "0.14.0"), "OLLAMA_HOST=127.0.0.1:11434", id="Ollama"),
        pytest.param(Product("vllm", "0.9"), "--host 127.0.0.1 --port 11434", id="vLLM"),
        pytest.param(Product(), "127.0.0.1:11434", id="unknown"),
    ],
)
def test_an_exposed_backend_is_told_how_to_hide(product: Product, remedy: str) -> None:
    facts = changed(exposed=("192.168.1.5:11434",), product=product)
    (found,) = [one for one in judge_backend(facts) if one.name == "backend.loopback_only"]
    assert remedy in found.remedy


def test_a_health_path_of_another_product_is_told_the_right_one() -> None:
    facts = changed(health=Asked(404), product=Product("vllm", "0.9"))
    (found,) = [one for one in judge_backend(facts) if one.name == "backend.health"]
    assert '"/health"' in found.remedy


@pytest.mark.parametrize("task", ["POST /v1/responses", "POST /v1/embeddings", "POST /rerank"])
def test_preset_is_a_permission_and_no_promise(task: str) -> None:
    """vLLM has the endpoints of its model's task, and none of the other tasks'."""
    missing = tuple(one.text for one in PRESETS["vllm"] if one.text != task)
    facts = changed(missing=missing, presets=("vllm",), product=Product("vllm", "0.32.0"))
    assert troubles(judge_backend(facts)) == {}
    for more in ("POST /v1/nonsense", task):
        assert "backend.endpoints" in troubles(
            judge_backend(replace(facts, missing=(*missing, more)))
        )


def test_remedy_for_a_socket_outlives_the_next_start() -> None:
    (found,) = [
        one
        for one in judge_backend(socket(0o755, refusal="Permission denied"))
        if one.name == "backend.socket_mode"
    ]
    assert "UMask=0007" in found.remedy
    assert "setgid" in found.remedy


def test_socket_file_that_was_left_behind_is_named() -> None:
    stale = socket(0o777, refusal="Connection refused")
    (found,) = [one for one in judge_backend(stale) if one.name == "backend.listening"]
    assert f"ExecStartPre=/bin/rm -f {SOCKET}" in found.remedy
    (found,) = [
        one
        for one in judge_backend(changed(refusal="Connection refused"))
        if one.name == "backend.listening"
    ]
    assert "rm" not in found.remedy.replace("for example", "")


def test_a_missing_endpoint_is_told_since_when_it_is() -> None:
    facts = changed(missing=("POST /v1/messages",), product=Product("ollama", "0.13.5"))
    (found,) = [one for one in judge_backend(facts) if one.name == "backend.endpoints"]
    assert "0.14.0" in found.remedy


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        pytest.param(BACKEND, "403 to pages of other origins; [cors]", id="it refuses them"),
        pytest.param(changed(page=Asked(200)), "it serves pages", id="it does not"),
        pytest.param(changed(cors=True), "[cors] answers", id="ours to judge"),
    ],
)
def test_pages_of_other_origins_are_explained(facts: BackendFacts, said: str) -> None:
    (found,) = [one for one in judge_backend(facts) if one.name == "backend.origin"]
    assert said in found.seen


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        pytest.param(changed(page=Unknown("x")), "backend.origin", id="late, also"),
        pytest.param(changed(exposed=Unknown("x")), "backend.loopback_only", id="addresses"),
        pytest.param(changed(health=Unknown("x")), "backend.health", id="late"),
        pytest.param(changed(foreign=Unknown("x")), "backend.host", id="late, too"),
        pytest.param(changed(missing=Unknown("x")), "backend.endpoints", id="routes"),
        pytest.param(BACKEND, "backend.streaming", id="no model was named"),
        pytest.param(changed(refusal="refused"), "backend.health", id="nobody answers"),
        pytest.param(changed(http=False), "backend.health", id="mode stream"),
        pytest.param(socket(0o660), "backend.loopback_only", id="a Unix socket"),
        pytest.param(
            changed(way=(place("/"), PathStat("/run", Kind.HIDDEN))),
            "backend.socket_mode",
            id="hidden",
        ),
    ],
)
def test_what_is_not_known_is_skipped(facts: BackendFacts, name: str) -> None:
    assert verdict_of(judge_backend(facts), name) is SKIPPED


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        pytest.param("0.14.0", (), id="has both"),
        pytest.param("0.13.3", ("POST /v1/messages",), id="has one"),
        pytest.param("0.13.2", ("POST /v1/responses", "POST /v1/messages"), id="has none"),
        pytest.param("0.14.0-rc1", (), id="a candidate"),
    ],
)
def test_versions_say_what_is_missing(version: str, missing: tuple[str, ...]) -> None:
    asked = ("GET /api/tags", "POST /v1/responses", "POST /v1/messages")
    assert missing_by_version(Product("ollama", version), asked) == missing


@pytest.mark.parametrize("product", [Product(), Product("vllm", "0.9.1"), Product("ollama", "dev")])
def test_what_a_version_does_not_say_is_unknown(product: Product) -> None:
    assert isinstance(missing_by_version(product, ("POST /v1/messages",)), Unknown)
