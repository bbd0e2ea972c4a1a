"""The shape of the package: imports point downwards, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sse_middleware

PACKAGE = Path(sse_middleware.__file__).parent
NAME = PACKAGE.name

MAY_IMPORT = {
    "errors": set[str](),
    "_once": set[str](),
    "config": {"errors"},
    "protocol": {
        "errors",
        "config",
        "observability.stream_record",
        "observability.source_record",
    },
    "http": {
        "errors",
        "config",
        "protocol",
        "observability.stream_record",
        "observability.tracing",
    },
    "observability": {"errors", "_once"},
    "stores": {"errors", "_once", "observability.observer", "protocol.stream_terms"},
    "stream": {"errors", "_once", "config", "protocol", "http", "stores.base", "observability"},
    "resume": {"errors", "protocol", "http", "stream", "stores.base"},
    "limits": {"errors", "_once", "config", "protocol", "http", "stream", "stores"},
    "sources": {"errors", "observability", "protocol", "stream.current", "stores.circuit_breaker"},
    "channels": {"errors", "_once", "config", "protocol", "observability", "stores"},
    "client": {"http"},
    "admin": {"errors", "_once", "config", "protocol", "http", "observability", "stream"},
    "doctor": {"errors", "config", "protocol"},
}
"""The other packages that each package of ours may import; `middleware`, `own_pages`, `plugin`,
`__main__` and `testing` may import all, and no package imports those."""

THIRD_PARTY = {
    "protocol": {"starlette"},
    "http": {"starlette"},
    "observability": {"prometheus_client", "starlette", "opentelemetry", "genai_prices"},
    "stream": {"starlette"},
    "resume": {"starlette"},
    "limits": {"starlette", "limits", "redis"},
    "sources": {"starlette"},
    "channels": {"prometheus_client", "redis", "hiredis"},
    "stores": {"redis", "hiredis"},
    "client": {"starlette"},
    "admin": {"starlette"},
    "middleware": {"starlette", "prometheus_client", "opentelemetry"},
    "own_pages": {"starlette", "prometheus_client"},
    "plugin": {"starlette"},
    "testing": {"starlette"},
}
TOP = {"__init__", "__main__", "middleware", "own_pages", "plugin", "testing"}
FILES = sorted(PACKAGE.rglob("*.py"))
LOWER_FILES = [
    path for path in FILES if path.relative_to(PACKAGE).with_suffix("").parts[0] not in TOP
]


def module(path: Path) -> str:
    """Return the name of a file's module inside the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            origin = node.module or ""
            is_package = (PACKAGE.parent / origin.replace(".", "/")).is_dir()
            found.update(f"{origin}.{alias.name}" if is_package else origin for alias in node.names)
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", LOWER_FILES, ids=module)
def test_a_package_imports_only_the_packages_below_it(path: Path) -> None:
    package = module(path).partition(".")[0]
    ours = {name.removeprefix(f"{NAME}.") for name in imports(path) if is_in(name, NAME)}
    allowed = {package, *MAY_IMPORT[package]}
    assert {name for name in ours if not any(is_in(name, other) for other in allowed)} == set()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_package_imports_only_its_own_third_party_libraries(path: Path) -> None:
    package = module(path).partition(".")[0]
    others = {name.partition(".")[0] for name in imports(path)} - {NAME}
    assert others - sys.stdlib_module_names <= THIRD_PARTY.get(package, set())


def test_redis_is_imported_only_if_redis_is_used() -> None:
    places = {
        module(path)
        for path in FILES
        if {"redis", "hiredis"} & {name.partition(".")[0] for name in imports(path)}
    }
    allowed = ("stores.redis", "channels", "limits.redis_leases", "limits.open_rate")
    assert {name for name in places if not any(is_in(name, place) for place in allowed)} == set()


def test_opentelemetry_is_imported_in_one_file_only() -> None:
    places = {
        module(path)
        for path in FILES
        for node in ast.parse(path.read_text()).body  # without what is for type checkers only
        if isinstance(node, ast.ImportFrom) and is_in(node.module or "", "opentelemetry")
    }
    assert places == {"observability.spans"}


def test_the_package_imports_nothing_for_tests() -> None:
    names = [
        name
        for path in FILES
        if module(path).partition(".")[0] != "testing"
        for name in imports(path)
    ]
    assert not [name for name in names if is_in(name, f"{NAME}.testing")]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_begins_with_its_responsibility_and_stays_under_400_lines(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert source.count("\n") < 400


def test_the_package_exports_at_most_25_names() -> None:
    assert len(sse_middleware.__all__) <= 25
    assert all(hasattr(sse_middleware, name) for name in sse_middleware.__all__)


def test_importing_the_package_binds_nothing_to_a_loop_and_handles_no_signal() -> None:
    program = (
        "import signal, sys; before = signal.getsignal(signal.SIGTERM); import sse_middleware; "
        "assert signal.getsignal(signal.SIGTERM) is before; "
        "assert 'uvicorn' not in sys.modules and 'redis' not in sys.modules; "
        "assert 'opentelemetry' not in sys.modules; "
        "assert 'sse_middleware.testing' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
