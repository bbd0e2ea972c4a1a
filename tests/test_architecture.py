"""The shape of the package: arrows point downwards, files stay small."""

import ast
import sys
from pathlib import Path

import pytest

import sse_middleware

PACKAGE = Path(sse_middleware.__file__).parent
LAYERS = {
    0: {"errors", "events", "wire", "cursors", "options", "parser", "record"},
    1: {"state", "families", "headers", "routes", "controls", "current"},
    2: {"observers"},
    4: {"farewell", "outbox", "process", "responder", "scribe", "ticker", "writer"},
    5: {"middleware", "metrics", "logs", "plugin", "__main__"},
}
"""As docs/architecture.md tells them; 3 is where stores will stand."""

LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
OUTSIDE = {
    0: set[str](),
    1: {"starlette"},
    2: set[str](),
    4: {"starlette"},
    5: {"starlette", "prometheus_client"},
}
"""What each layer may import beside the standard library."""

FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = node.module == "sse_middleware"
            names = [f"sse_middleware.{alias.name}" for alias in node.names]
            found.update(names if inside else [node.module or ""])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_its_own_layer_and_below(path: Path) -> None:
    layer = LAYER_OF[path.stem]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "sse_middleware":
            assert LAYER_OF[rest] <= layer
        else:
            assert top in sys.stdlib_module_names or top in OUTSIDE[layer]


def test_every_file_of_the_table_exists() -> None:
    assert {path.stem for path in FILES} == set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_states_its_law_at_its_top_and_stays_under_400_lines(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert source.count("\n") < 400


def test_the_front_door_has_at_most_25_names() -> None:
    assert len(sse_middleware.__all__) <= 25
    assert all(hasattr(sse_middleware, name) for name in sse_middleware.__all__)


def test_importing_the_package_binds_nothing_to_a_loop_and_handles_no_signal() -> None:
    program = (
        "import signal, sys; before = signal.getsignal(signal.SIGTERM); import sse_middleware; "
        "assert signal.getsignal(signal.SIGTERM) is before; "
        "assert 'uvicorn' not in sys.modules and 'redis' not in sys.modules"
    )
    import subprocess  # noqa: PLC0415

    subprocess.run([sys.executable, "-c", program], check=True)
