"""Endpoint sets of known model servers: what a client of each needs, and nothing that manages it.

A preset never holds an endpoint that changes, downloads or removes models, tells of the host, or
profiles the server. What is new in a product is refused until it is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from sidecar.core.endpoint import Endpoint

PREFIX = "preset:"

_OPENAI = (
    "GET /v1/models",
    "GET /v1/models/{model...}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
)
_ANTHROPIC = (
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "GET /v1/models",
    "GET /v1/models/{model...}",
)


def _endpoints(*texts: str) -> tuple[Endpoint, ...]:
    return tuple(map(Endpoint.parse, texts))


PRESETS: dict[str, tuple[Endpoint, ...]] = {
    "ollama": _endpoints(
        "GET /v1/models",
        "GET /v1/models/{model...}",
        "GET /api/version",
        "GET /api/tags",
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "POST /v1/messages",
        "POST /api/show",
    ),
    "ollama-native": _endpoints(
        "GET /api/version",
        "GET /api/tags",
        "POST /api/show",
        "POST /api/chat",
        "POST /api/generate",
        "POST /api/embed",
        "POST /api/embeddings",
    ),
    "openai": _endpoints(*_OPENAI),
    "anthropic": _endpoints(*_ANTHROPIC),
    "vllm": _endpoints(
        *_OPENAI,
        "POST /v1/messages",
        "GET /version",
        "GET /ping",
        "POST /tokenize",
        "POST /detokenize",
    ),
}


@dataclass(frozen=True, slots=True)
class EndpointSet:
    """What one entry of a rule's `endpoints` stands for: an endpoint, or those of a preset."""

    text: str
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def parse(cls, text: str) -> EndpointSet:
        """Read `METHOD /path`, `*` or `preset:NAME`, or raise `ValueError`."""
        if not text.startswith(PREFIX):
            return cls(text, (Endpoint.parse(text),))
        name = text.removeprefix(PREFIX)
        if name not in PRESETS:
            known = ", ".join(PREFIX + one for one in PRESETS)
            near = get_close_matches(name, PRESETS, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            raise ValueError(f"expected one of {known}{hint}")
        return cls(text, PRESETS[name])
