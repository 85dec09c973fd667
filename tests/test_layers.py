"""The layers of the package: imports only go down, and the core touches nothing outside.

Read from the source by `ast`, so imports inside of functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sidecar

ROOT = Path(sidecar.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# Each layer, and the layers it may import; a layer that may import itself says so.
MAY_IMPORT = {
    "core": {"core"},
    "disk": {"disk"},
    "adapters": {"disk", "core"},
    "stories": {"adapters", "disk", "core"},
    "supervisor": {"supervisor", "stories", "adapters", "core", "version"},
    "operations": {"operations", "stories", "adapters", "disk", "core"},
    "logs": {"logs", "core"},
    "demo": {"demo", "logs", "stories", "adapters", "core"},
    "cli": {"cli", "supervisor", "operations", "demo", "logs", "disk", "core", "version"},
    "main": {"cli"},
    "version": set[str](),
}
# Modules that are a layer, or part of one, by themselves; packages are layers by their name.
LAYER_OF = {
    "sidecar.rotator": "stories",
    "sidecar.file_keeper": "stories",
    "sidecar.jwt_keeper": "stories",
    "sidecar.hooks": "stories",
    "sidecar.connection": "stories",
    "sidecar.stream_mode": "stories",
    "sidecar.http_mode": "stories",
    "sidecar.reloader": "stories",
    "sidecar.lifekeeper": "stories",
    "sidecar.supervisor": "supervisor",
    "sidecar.server": "supervisor",
    "sidecar.confinement": "supervisor",
    "sidecar.admin_pages": "supervisor",
    "sidecar.disk": "disk",
    "sidecar.reading": "disk",
    "sidecar.logs": "logs",
    "sidecar.log_file": "logs",
    "sidecar.__main__": "main",
    "sidecar": "version",
}
# What the core imports from outside; all else moves bytes, keeps time or draws lots.
CORE_IMPORTS = {
    "__future__",
    "base64",
    "collections",
    "contextlib",
    "cryptography",
    "dataclasses",
    "datetime",
    "difflib",
    "enum",
    "fnmatch",
    "functools",
    "http",
    "httptools",
    "ipaddress",
    "msgspec",
    "re",
    "tomllib",
    "types",
    "typing",
    "urllib",
}
NEVER_IN_CORE = {
    "trio",
    "ssl",
    "socket",
    "os",
    "subprocess",
    "logging",
    "structlog",
    "time",
    "threading",
    "random",
}
CLOCKS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
FILES = {"open", "print", "input"}


def layer(module: str) -> str:
    """Give the layer of a module of ours."""
    if module in LAYER_OF:
        return LAYER_OF[module]
    parts = module.split(".")
    if len(parts) == 3 and ".".join(parts[:2]) in LAYER_OF:
        return LAYER_OF[".".join(parts[:2])]  # a module of a story
    if len(parts) > 1 and parts[1] in ("cli", "core", "adapters", "operations", "demo"):
        return parts[1]
    raise LookupError(f"{module} has no layer: give it one in {Path(__file__).name}")


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Give every module that is imported; of ours the module that a name comes from."""
    package = (
        module if MODULES.get(module, ROOT).name == "__init__.py" else module.rpartition(".")[0]
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for name in node.names:
                inner = f"{base}.{name.name}"
                yield inner if inner in MODULES else base


def faults(module: str, source: str) -> list[str]:
    """Give what is wrong with the imports and calls of one module."""
    tree = ast.parse(source)
    own = layer(module)
    found = []
    for name in imports(module, tree):
        if name == module or name.partition(".")[0] != "sidecar":
            continue
        if name.split(".")[:2] == module.split(".")[:2] and own == "stories":
            continue  # the modules of one story
        if own == "adapters" and name.split(".")[:3] == module.split(".")[:3]:
            continue  # the modules of one adapter
        if layer(name) not in MAY_IMPORT[own]:
            found.append(f"{own} imports {layer(name)}: {name}")
    if own == "core":
        outside = {name.partition(".")[0] for name in imports(module, tree)} - {"sidecar"}
        found += [f"core imports {name}" for name in sorted(outside - CORE_IMPORTS)]
        found += [f"core calls {name}" for name in _calls(tree)]
    return found


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
                # PolicyBuilder.time(now) sets the time of a verification; no clock gives it.
                if node.func.attr != "time" or not node.args:
                    yield f"{ast.unparse(node.func)}()"
            elif isinstance(node.func, ast.Name) and node.func.id in FILES:
                yield f"{node.func.id}()"


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_layer(module: str) -> None:
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_all_layers_have_modules() -> None:
    assert {layer(module) for module in MODULES} == set(MAY_IMPORT)


def test_no_two_layers_import_each_other() -> None:
    for upper, below in MAY_IMPORT.items():
        assert not [lower for lower in below - {upper} if upper in MAY_IMPORT[lower]]


def test_the_core_is_allowed_nothing_that_is_forbidden() -> None:
    assert not CORE_IMPORTS & NEVER_IN_CORE


@pytest.mark.parametrize(
    ("module", "source"),
    [
        *(
            pytest.param("sidecar.core.peer", f"import {name}", id=f"core imports {name}")
            for name in sorted(NEVER_IN_CORE)
        ),
        pytest.param("sidecar.core.peer", "from os.path import join", id="part of os"),
        pytest.param("sidecar.core.peer", "import pathlib", id="files"),
        pytest.param("sidecar.core.peer", "import OpenSSL.SSL", id="pyOpenSSL"),
        pytest.param("sidecar.core.peer", "def f():\n    import trio", id="inside of a function"),
        pytest.param(
            "sidecar.core.peer", "if TYPE_CHECKING:\n    import trio", id="for types only"
        ),
        pytest.param("sidecar.core.peer", "datetime.now(UTC)", id="wall clock"),
        pytest.param("sidecar.core.peer", "datetime.datetime.now()", id="wall clock, long name"),
        pytest.param("sidecar.core.peer", "date.today()", id="date"),
        pytest.param("sidecar.core.peer", "open('x')", id="opens a file"),
        pytest.param("sidecar.core.peer", "print('x')", id="prints"),
        pytest.param("sidecar.core.peer", "from sidecar.adapters import tls", id="core, upwards"),
        pytest.param("sidecar.core.peer", "from ..adapters import tls", id="upwards, relative"),
        pytest.param("sidecar.core.peer", "import sidecar.cli", id="core imports cli"),
        pytest.param("sidecar.core.peer", "from sidecar.logs import x", id="core imports logs"),
        pytest.param("sidecar.adapters.clock", "import sidecar.adapters.relay", id="each other"),
        pytest.param("sidecar.adapters.clock", "from sidecar.adapters import relay", id="by name"),
        pytest.param("sidecar.adapters.clock", "from . import relay", id="relative"),
        pytest.param("sidecar.adapters.clock", "from .relay import relay", id="relative, a name"),
        pytest.param("sidecar.adapters.clock", "from sidecar.rotator import x", id="a story"),
        pytest.param("sidecar.adapters.clock", "from sidecar import connection", id="other story"),
        pytest.param("sidecar.adapters.clock", "from sidecar import supervisor", id="supervisor"),
        pytest.param("sidecar.adapters.clock", "import sidecar.operations.check", id="operations"),
        pytest.param("sidecar.adapters.clock", "import sidecar.demo.agent", id="demo"),
        pytest.param("sidecar.adapters.clock", "from sidecar.cli import main", id="cli"),
        pytest.param("sidecar.rotator", "from sidecar.connection import serve", id="stories"),
        pytest.param("sidecar.connection", "from sidecar import rotator", id="stories, by name"),
        pytest.param("sidecar.file_keeper", "from sidecar import rotator", id="story of files"),
        pytest.param("sidecar.connection", "import sidecar.supervisor", id="story, upwards"),
        pytest.param("sidecar.rotator", "import sidecar.operations.check", id="story, operations"),
        pytest.param("sidecar.supervisor", "import sidecar.cli", id="supervisor, upwards"),
        pytest.param("sidecar.supervisor", "import sidecar.demo.agent", id="supervisor, sideways"),
        pytest.param("sidecar.operations.check", "import sidecar.supervisor", id="operations"),
        pytest.param("sidecar.logs", "import sidecar.adapters.tls", id="logs, upwards"),
    ],
)
def test_what_breaks_a_rule_is_found(module: str, source: str) -> None:
    assert faults(module, source)


def test_module_without_a_layer_is_told() -> None:
    with pytest.raises(LookupError, match=r"sidecar\.helpers"):
        faults("sidecar.helpers", "")
