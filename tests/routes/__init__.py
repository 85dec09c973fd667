"""Every route of the model servers that we know, and which of them each preset is to allow.

The tables (`*.json`) say what the products serve, read from their sources at the version named
there; whether a route can be reached by default, behind a flag or in a special build makes no
difference here. `ALLOWED` is written by hand and knows nothing of the code under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Route:
    """One route of a product; `example` is one concrete path of it."""

    product: str
    method: str
    path: str
    example: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def _routes(file: Path) -> list[Route]:
    table = json.loads(file.read_text(encoding="utf-8"))
    return [Route(table["product"], **route) for route in table["routes"]]


ROUTES = {file.stem: _routes(file) for file in sorted(FOLDER.glob("*.json"))}
ALL = [route for routes in ROUTES.values() for route in routes]

# preset -> the routes of all tables together that it allows; HEAD comes with GET.
ALLOWED: dict[str, frozenset[str]] = {
    "ollama": frozenset(
        {
            "GET /v1/models",
            "GET /v1/models/{model}",
            "GET /api/version",
            "GET /api/tags",
            "POST /v1/chat/completions",
            "POST /v1/responses",
            "POST /v1/messages",
            "POST /api/show",
        }
    ),
    "ollama-native": frozenset(
        {
            "GET /",
            "GET /api/version",
            "GET /api/tags",
            "POST /api/show",
            "POST /api/chat",
            "POST /api/generate",
            "POST /api/embed",
            "POST /api/embeddings",
        }
    ),
    "openai": frozenset(
        {
            "GET /v1/models",
            "GET /v1/models/{model}",
            "POST /v1/chat/completions",
            "POST /v1/completions",
            "POST /v1/embeddings",
            "POST /v1/responses",
            "POST /v1/audio/transcriptions",
            "POST /v1/audio/translations",
        }
    ),
    "anthropic": frozenset(
        {
            "GET /v1/models",
            "GET /v1/models/{model}",
            "POST /v1/messages",
            "POST /v1/messages/count_tokens",
        }
    ),
    "vllm": frozenset(
        {
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
        }
    ),
}


def is_allowed(preset: str, method: str, path: str) -> bool:
    """Tell whether a preset is to allow a method on a route's path."""
    names = {f"{method} {path}", f"GET {path}"} if method == "HEAD" else {f"{method} {path}"}
    return bool(names & ALLOWED[preset])
