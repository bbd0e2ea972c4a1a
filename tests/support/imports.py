"""The packages that a test module needs in order to be imported."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def missing_packages(path: Path) -> list[str]:
    """Return the packages that the module at `path` imports and that are not installed."""
    return sorted(name for name in packages_of(path) if importlib.util.find_spec(name) is None)


@cache
def packages_of(path: Path) -> frozenset[str]:
    """Return the third-party packages that the module at `path` imports, directly or through
    modules of this repository.

    Only the statements at the top level count: an import in a function, in `try` or under
    `TYPE_CHECKING` is optional.
    """
    found, pending = set[str](), [path]
    seen = {path}
    while pending:
        for name in _imports_of(pending.pop()):
            files = _files_of(name)
            if not files:
                found.add(name.partition(".")[0])
            pending += [file for file in files if file not in seen]
            seen.update(files)
    return frozenset(found - sys.stdlib_module_names - {path.stem for path in _ROOT.iterdir()})


@cache  # a hundred test modules import the same modules
def _imports_of(path: Path) -> tuple[str, ...]:
    return tuple(_imports_in(ast.parse(path.read_text(encoding="utf-8")).body))


def _imports_in(statements: list[ast.stmt]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module is not None, "imports are absolute"
            yield statement.module
            for alias in statement.names:  # each may be a module, too
                if _files_of(f"{statement.module}.{alias.name}"):
                    yield f"{statement.module}.{alias.name}"


@cache
def _files_of(name: str) -> tuple[Path, ...]:
    """Return the files of this repository that importing `name` runs."""
    folder, files = _ROOT, tuple[Path, ...]()
    for part in name.split("."):
        if (folder / f"{part}.py").is_file():
            return (*files, folder / f"{part}.py")
        folder /= part
        if not (folder / "__init__.py").is_file():
            return ()
        files += (folder / "__init__.py",)
    return files
