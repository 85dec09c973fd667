"""Presets against every route of the products: what they allow is listed, all else is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest

from sidecar.core.endpoint import METHODS, BadPathError, Endpoint, RequestPath
from sidecar.core.presets import HEALTH_PATHS, MAIN_ENDPOINTS, PRESETS, SERVED_BY
from tests.routes import ALL, ALLOWED, ROUTES, Route, is_allowed

EVERY_METHOD = (*METHODS, "TRACE", "CONNECT", "PROPFIND", "get", "Post", "*", "")
# The endpoint that a preset is for; who does not have it, does not serve the preset.
MAIN = {
    "ollama": "POST /api/show",
    "ollama-native": "POST /api/chat",
    "openai": "POST /v1/chat/completions",
    "anthropic": "POST /v1/messages",
    "vllm": "POST /tokenize",
}
presets = pytest.mark.parametrize("preset", ALLOWED)
products = pytest.mark.parametrize("product", ROUTES)


def allows(preset: str, method: str, raw: str) -> bool:
    try:
        path = RequestPath.parse(raw)
    except BadPathError:
        return False
    return any(endpoint.matches(method, path) for endpoint in PRESETS[preset])


def routes_of(endpoint: Endpoint, tables: Iterable[str]) -> list[Route]:
    routes = [route for table in tables for route in ROUTES[table]]
    return [one for one in routes if endpoint.matches(one.method, RequestPath.parse(one.example))]


def test_every_preset_has_its_list() -> None:
    assert set(PRESETS) == set(ALLOWED) == set(MAIN) == set(SERVED_BY)


@pytest.mark.parametrize(
    ("product", "at_least"),
    [
        pytest.param("ollama", 34, id="ollama"),
        pytest.param("vllm", 85, id="vllm"),
        pytest.param("llama-server", 30, id="llama-server"),
    ],
)
def test_table_is_whole_and_names_nothing_twice(product: str, at_least: int) -> None:
    names = [str(route) for route in ROUTES[product]]
    assert len(names) >= at_least
    assert len(set(names)) == len(names)


@products
def test_example_is_a_path_of_its_route(product: str) -> None:
    for route in ROUTES[product]:
        assert "{" not in route.example
        path = re.sub(r"\{\w+\}", "{any}", route.path)
        endpoint = Endpoint.parse(f"{route.method} {path}")
        assert endpoint.matches(route.method, RequestPath.parse(route.example)), route


@presets
def test_list_of_a_preset_names_routes_that_exist(preset: str) -> None:
    assert ALLOWED[preset] <= {str(route) for route in ALL}


@presets
@products
def test_preset_allows_the_listed_routes_and_no_other(preset: str, product: str) -> None:
    given = {str(one) for one in ROUTES[product] if allows(preset, one.method, one.example)}
    wanted = {str(one) for one in ROUTES[product] if is_allowed(preset, one.method, one.path)}
    assert given == wanted


@presets
@products
def test_preset_allows_no_other_method_on_any_route(preset: str, product: str) -> None:
    for route in ROUTES[product]:
        for method in EVERY_METHOD:
            given = allows(preset, method, route.example)
            assert given == is_allowed(preset, method, route.path), (method, route.path)


@presets
def test_every_endpoint_of_a_preset_is_a_route_of_its_products(preset: str) -> None:
    for endpoint in PRESETS[preset]:
        assert routes_of(endpoint, SERVED_BY[preset]), f"{endpoint} is served by nobody"


@presets
def test_product_serves_a_preset_if_it_has_what_the_preset_is_for(preset: str) -> None:
    main = Endpoint.parse(MAIN[preset])
    assert main in PRESETS[preset]
    having = {product for product in ROUTES if routes_of(main, [product])}
    # Of llama-server's paths vLLM's preset has some, but it is not for it.
    assert having - ({"llama-server"} if preset == "vllm" else set()) == SERVED_BY[preset]


@pytest.mark.parametrize("path", HEALTH_PATHS)
def test_health_path_is_one_of_those_products_that_it_tells_of(path: str) -> None:
    assert {name for name in ROUTES if f"GET {path}" in map(str, ROUTES[name])} == HEALTH_PATHS[
        path
    ]


def test_every_product_has_a_health_path() -> None:
    assert {name for names in HEALTH_PATHS.values() for name in names} == set(ROUTES)


@presets
def test_preset_names_no_endpoint_twice(preset: str) -> None:
    assert len(set(PRESETS[preset])) == len(PRESETS[preset])


def test_preset_ollama_is_the_one_that_is_documented() -> None:
    assert [endpoint.text for endpoint in PRESETS["ollama"]] == [
        "GET /v1/models",
        "GET /v1/models/{model...}",
        "GET /api/version",
        "GET /api/tags",
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "POST /v1/messages",
        "POST /api/show",
    ]


@presets
def test_no_preset_allows_more_than_get_head_and_post(preset: str) -> None:
    assert {endpoint.method for endpoint in PRESETS[preset]} <= {"GET", "POST"}


MANAGES = (
    "/api/blobs/",
    "/api/copy",
    "/api/create",
    "/api/delete",
    "/api/experimental/",
    "/api/me",
    "/api/ps",
    "/api/pull",
    "/api/push",
    "/api/signout",
    "/api/status",
    "/api/user/",
    "/adapters",
    "/collective_rpc",
    "/debug/",
    "/docs",
    "/invocations",
    "/load",
    "/metrics",
    "/openapi.json",
    "/props",
    "/reset_",
    "/scale_elastic_ep",
    "/server_info",
    "/sleep",
    "/slots",
    "/start_profile",
    "/update_weights",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/wake_up",
)


@pytest.mark.parametrize("prefix", MANAGES)
def test_what_manages_steers_or_tells_of_the_host_is_in_no_preset(prefix: str) -> None:
    found = [route for route in ALL if route.example.startswith(prefix)]
    assert found, "no product has it"
    for route in found:
        for preset in PRESETS:
            assert not any(allows(preset, method, route.example) for method in EVERY_METHOD)


@pytest.mark.parametrize(
    ("preset", "method", "path"),
    [
        pytest.param("ollama", "GET", "/v1/models/hf.co/org/model:Q4_K_M", id="name with slashes"),
        pytest.param("ollama", "GET", "/v1/models/hf.co%2Forg%2Fmodel:Q4", id="and encoded ones"),
        pytest.param("openai", "GET", "/v1/models/meta-llama/Llama-3.1-8B", id="name with a dot"),
        pytest.param("openai", "GET", "/v1/models/meta-llama%2FLlama-3%2E1", id="and encoded"),
        pytest.param("openai", "POST", "/v1/chat/%63ompletions", id="letter encoded"),
    ],
)
def test_other_spelling_of_an_allowed_path_is_allowed(preset: str, method: str, path: str) -> None:
    assert allows(preset, method, path)


def disguises(refused: str, allowed: str) -> Iterator[str]:
    """A path that is refused, dressed up as one that is allowed or as none that is known."""
    inner = refused.removeprefix("/")
    for up in ("..", "%2e%2e", "%2E.", "..;", "..;v=1", "%252e%252e", ".%252e", "..%00", ".%2e%3b"):
        yield f"{allowed}/{up}{refused}"
        yield f"{allowed}/{'/'.join([up] * (allowed.count('/')))}{refused}"
        yield f"/v1/models/{up}/{up}{refused}"
        yield f"/v1/models/{up}%2f{up}%2f{inner}"
        yield f"/v1/models/x{up}%5c{inner}"
    yield f"/{refused}"
    yield f"//{refused}"
    yield f"/.{refused}"
    yield f"/%2e{refused}"
    yield f"/%2f{inner}"
    yield f"{allowed}\\..\\..{refused}"
    yield f"{allowed}%00{refused}"
    yield f"{allowed}%0d%0a{refused}"
    yield f"{allowed}%3f{refused}"
    yield f"{allowed}%23{refused}"
    yield f"{allowed}#{refused}"
    yield f"{allowed}?{refused}"
    yield f"{allowed};{refused}"
    yield f"http://127.0.0.1{refused}"
    yield inner


@presets
def test_no_disguise_brings_a_refused_route_through(preset: str) -> None:
    ours = [one for one in ALL if is_allowed(preset, one.method, one.path)]
    covers = sorted({one.path for one in ours if "{" not in one.path and one.path != "/"})
    refused = [one for one in ALL if not is_allowed(preset, one.method, one.path)]
    for at, route in enumerate(refused):
        for path in disguises(route.example, covers[at % len(covers)]):
            for method in (route.method, "GET", "HEAD"):
                assert not allows(preset, method, path), f"{method} {path}"


@presets
def test_allowed_path_in_a_spelling_that_may_mean_another_is_refused(preset: str) -> None:
    for route in ALL:
        # A model's name is any text, so what follows it there still names a model.
        if not is_allowed(preset, route.method, route.path) or "{" in route.path:
            continue
        path = route.example
        spellings = [f"/{path}", f"/.{path}", f"/x/..{path}", f"/x/%2e%2e{path}", f"{path}%00"]
        if path != "/":
            head, _, tail = path.rpartition("/")
            spellings += [f"{path}/", f"{path};x", f"{path}.", f"{path}%20", path.upper()]
            spellings += [f"{head}//{tail}", f"{head}/./{tail}", f"{head}\\{tail}"]
            spellings += [f"{path}%3fx", f"{path}%2f", f"{path}%2e", f"{path}/%2e", path[1:]]
            spellings += [f"/%2f{path[1:]}", f"{head}%2f{tail}", path.replace("e", "%2565")]
        for spelling in set(spellings) - {path}:
            assert not allows(preset, route.method, spelling), spelling


@pytest.mark.parametrize(
    ("preset", "path"),
    [
        pytest.param("ollama", "/v1/models/", id="model without a name"),
        pytest.param("ollama", "/v1/models//", id="two slashes and no name"),
        pytest.param("openai", "/v1/models/a/", id="slash behind the name"),
        pytest.param("openai", "/v1/models/a//b", id="two slashes in the name"),
        pytest.param("anthropic", "/v1/models/a%2f", id="encoded slash behind the name"),
        pytest.param("anthropic", "/v1/models/%2fa", id="encoded slash before it"),
        pytest.param("ollama", "/v1/models/..", id="two dots as a name"),
        pytest.param("ollama", "/v1/models/.", id="a dot as a name"),
        pytest.param("ollama", "/v1/models/a%2f..%2fb", id="two dots inside of the name"),
        pytest.param("vllm", "/v1/models/x", id="vLLM has no route for one model"),
    ],
)
def test_name_of_a_model_that_may_mean_another_path_is_refused(preset: str, path: str) -> None:
    assert not allows(preset, "GET", path)


def test_main_endpoints_are_endpoints_of_their_preset() -> None:
    assert MAIN_ENDPOINTS.keys() == PRESETS.keys()
    for name, main in MAIN_ENDPOINTS.items():
        assert main
        assert main <= {one.text for one in PRESETS[name]}
