"""The shape of the package: arrows point downwards, files stay small."""

import ast
import sys
from pathlib import Path

import pytest

import sse_middleware

PACKAGE = Path(sse_middleware.__file__).parent
LAYERS = {
    0: {
        "arguments",
        "cursors",
        "errors",
        "events",
        "options",
        "parser",
        "posts",
        "record",
        "settings",
        "wire",
    },
    1: {
        "addresses",
        "claims",
        "controls",
        "current",
        "families",
        "headers",
        "intake",
        "routes",
        "state",
        "timing",
    },
    2: {"observers", "stores.base", "stores.channel_base"},
    3: {
        "limits",
        "loops",
        "stores.leases",
        "stores.open_rate",
        "stores.patience",
        "stores.channel_dispatch",
        "stores.channel_hub",
        "stores.channel_line",
        "stores.channel_memory",
        "stores.channel_redis",
        "stores.channel_sender",
        "stores.entries",
        "stores.frames",
        "stores.memory",
        "stores.redis",
        "stores.redis_client",
        "stores.redis_lease",
        "stores.redis_link",
        "stores.redis_station",
        "stores.redis_writer",
    },
    4: {
        "access",
        "admission",
        "closing",
        "drain",
        "entry",
        "channel_reader",
        "farewell",
        "freeing",
        "lingering",
        "opening",
        "outbox",
        "owner",
        "process",
        "reader",
        "recorded",
        "refused",
        "refusing",
        "responder",
        "resume",
        "scribe",
        "setup",
        "ticker",
        "timed",
        "writer",
    },
    5: {"browser", "channels", "endpoint", "logs", "metrics", "middleware", "plugin", "__main__"},
}
"""As docs/architecture.md tells them; `testing` stands outside: it may import all of them."""

LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
OUTSIDE = {
    0: set[str](),
    1: {"starlette"},
    2: set[str](),
    3: {"hiredis", "limits", "redis"},
    4: {"starlette"},
    5: {"starlette", "prometheus_client"},
}
"""What each layer may import beside the standard library."""

FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"
)


def module(path: Path) -> str:
    """Return the name of a file's module inside the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def is_package(name: str) -> bool:
    return (PACKAGE.parent / name.replace(".", "/")).is_dir()


def is_for_tests(name: str) -> bool:
    return name.partition(".")[0] == "testing"


LAYERED = [path for path in FILES if path.stem != "__init__" and not is_for_tests(module(path))]
FOR_TESTS = [path for path in FILES if is_for_tests(module(path))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            origin = node.module or ""
            names = [f"{origin}.{alias.name}" for alias in node.names]
            found.update(names if is_package(origin) else [origin])
    return found


@pytest.mark.parametrize("path", LAYERED, ids=module)
def test_a_file_imports_only_from_its_own_layer_and_below(path: Path) -> None:
    layer = LAYER_OF[module(path)]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "sse_middleware":
            assert LAYER_OF[rest] <= layer
        else:
            assert top in sys.stdlib_module_names or top in OUTSIDE[layer]


@pytest.mark.parametrize("path", FOR_TESTS, ids=module)
def test_what_is_for_tests_imports_of_the_package_what_it_likes_and_of_others_starlette(
    path: Path,
) -> None:
    outside = {name.partition(".")[0] for name in imports(path)} - {"sse_middleware"}
    assert outside <= sys.stdlib_module_names | {"starlette"}


def test_the_front_door_imports_nothing_that_is_for_tests() -> None:
    names = imports(PACKAGE / "__init__.py")
    assert not any(is_for_tests(name.removeprefix("sse_middleware.")) for name in names)


def test_every_file_of_the_table_exists() -> None:
    assert {module(path) for path in LAYERED} == set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=module)
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
        "assert 'uvicorn' not in sys.modules and 'redis' not in sys.modules; "
        "assert 'sse_middleware.testing' not in sys.modules"
    )
    import subprocess  # noqa: PLC0415

    subprocess.run([sys.executable, "-c", program], check=True)
