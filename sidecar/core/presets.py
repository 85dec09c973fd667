"""Endpoint sets of known model servers: what their clients need, and nothing that manages one.

In a rule they are written "preset:NAME". They are for inference, names of models and versions. None
has an endpoint that changes, loads or downloads a model, reaches another host or an account, tells
what other peers do, or profiles and steers the server; what is new in a product is refused until
it is added here. Whatever a preset leaves out can be written beside it, so a preset errs by
leaving out. GET /health is our own answer and in none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sidecar.core.endpoint import Endpoint

PREFIX = "preset:"

# Headers by which a request steers its server, or the requests of others there. None is passed on
# unless `pass_headers` in the rule says so. Names are in lower case; a star at the end stands for
# all that begin so. TGI 3.3 and Ollama 0.31 read none of the kind. X-Request-Id is not here: it
# comes from us or from a trusted proxy. (vLLM's P2pNccl connector takes addresses from it.)
STEERING_HEADERS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        # tools/server/server-stream.cpp of llama-cpp-python 0.3.36, README-dev.md
        "llama-server": {
            "x-conversation-id": "the answer outlives its client and ends another's of that ID",
        },
        # vllm/entrypoints/generate/base/serving.py and .../chat_completion/api_router.py of 0.32.0;
        # model-hosting-container-standards, which it takes SageMaker's sessions and adapters from
        "vllm": {
            "x-data-parallel-rank": "picks the engine, whatever its load",
            "x-session-id": "joins the session of whoever else sends it",
            "x-vllm-priority": "goes before the requests of others",
            "endpoint-load-metrics-format": "tells the load that all peers make",
            "x-amzn-sagemaker-*": "joins sessions and picks adapters",
        },
        # sglang/srt/entrypoints/request_headers.py and openai/serving_base.py of 0.5.23
        "sglang": {
            "x-data-parallel-rank": "picks the engine, whatever its load",
            "x-smg-routing-key": "is routed and counted with whoever else sends it",
            "x-override-*": "sets request ID, priority, engine, and a host to connect to",
        },
    }
)
_STEERING = {name for names in STEERING_HEADERS.values() for name in names}
_STEERING_NAMES = frozenset(name for name in _STEERING if not name.endswith("*"))
_STEERING_BEGINNINGS = tuple(name[:-1] for name in _STEERING if name.endswith("*"))


def steers(name: str) -> bool:
    """Tell whether a header steers a model server; `name` in lower case, with `-` alone."""
    return name in _STEERING_NAMES or name.startswith(_STEERING_BEGINNINGS)


def all_steer(beginning: str) -> bool:
    """Tell whether every header that begins so steers a model server."""
    return beginning.startswith(_STEERING_BEGINNINGS)


# Left out: answers that were stored (GET /v1/responses/ID, and its cancelling), because whoever
# knows the ID would get the answer of another peer; files, batches and fine-tuning, which are
# state of the server; images, which no server below has.
_OPENAI = (
    "GET /v1/models",
    "GET /v1/models/{model...}",  # names have slashes: org/model
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
    "POST /v1/audio/transcriptions",
    "POST /v1/audio/translations",
)
# Batches are left out: they outlive their connection.
_ANTHROPIC = (
    "GET /v1/models",
    "GET /v1/models/{model...}",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",  # clients measure a conversation before they send it
)
# What chat clients of both kinds use, and Ollama's metadata without its own inference: one way
# to ask for each thing. Not in it: /api/ps (which models others use right now), /api/status,
# /api/me and /api/experimental (the host's account at ollama.com), /debug.
_OLLAMA = (
    "GET /v1/models",
    "GET /v1/models/{model...}",
    "GET /api/version",
    "GET /api/tags",
    "POST /v1/chat/completions",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /api/show",
)
# For clients of Ollama's own API, its command line among them, which first asks for /.
_OLLAMA_NATIVE = (
    "GET /",
    "GET /api/version",
    "GET /api/tags",
    "POST /api/show",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/embed",
    "POST /api/embeddings",
)
# Inference of every task that vLLM serves, by the paths that clients know. Left out: /metrics and
# /load (the load that all peers make), /invocations (one path for all of them, with sessions and
# adapters), render and derender and /inference (tokens between the parts of a deployment),
# chat/completions/batch (many requests that count as one), /server_info and /tokenizer_info (the
# configuration), /docs, and all that pauses, scales, profiles or reloads it.
_VLLM = (
    "GET /v1/models",
    "GET /version",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1/embeddings",
    "POST /v2/embed",
    "POST /v1/audio/transcriptions",
    "POST /v1/audio/translations",
    "POST /pooling",
    "POST /classify",
    "POST /score",
    "POST /v1/score",
    "POST /rerank",
    "POST /v1/rerank",
    "POST /v2/rerank",
    "POST /tokenize",
    "POST /detokenize",
)


def _endpoints(texts: tuple[str, ...]) -> tuple[Endpoint, ...]:
    return tuple(map(Endpoint.parse, texts))


PRESETS: Mapping[str, tuple[Endpoint, ...]] = MappingProxyType(
    {
        "ollama": _endpoints(_OLLAMA),
        "openai": _endpoints(_OPENAI),
        "anthropic": _endpoints(_ANTHROPIC),
        "vllm": _endpoints(_VLLM),
        "ollama-native": _endpoints(_OLLAMA_NATIVE),
    }
)

# What a preset is used for. A preset is a permission and no promise: a server has those endpoints
# that fit its model, and only one that has none of these is the wrong server for the preset.
MAIN_ENDPOINTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "ollama": frozenset({"POST /v1/chat/completions", "POST /v1/responses"}),
        "openai": frozenset(text for text in _OPENAI if text.startswith("POST ")),
        "anthropic": frozenset({"POST /v1/messages"}),
        "vllm": frozenset(
            text for text in _VLLM if text.startswith("POST ") and "tokenize" not in text
        ),
        "ollama-native": frozenset({"POST /api/chat", "POST /api/generate", "POST /api/embed"}),
    }
)

# Which of the servers that we know serve a preset, and which of them answer at a health path.
# Both are for warnings only: a server that is not named here may serve any of them.
SERVED_BY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "ollama": frozenset({"ollama"}),
        "openai": frozenset({"ollama", "vllm", "llama-server"}),
        "anthropic": frozenset({"ollama", "vllm", "llama-server"}),
        "vllm": frozenset({"vllm"}),
        "ollama-native": frozenset({"ollama"}),
    }
)
HEALTH_PATHS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "/api/version": frozenset({"ollama"}),
        "/health": frozenset({"vllm", "llama-server"}),
        "/v1/health": frozenset({"llama-server"}),
        "/version": frozenset({"vllm"}),
        "/ping": frozenset({"vllm"}),
    }
)
