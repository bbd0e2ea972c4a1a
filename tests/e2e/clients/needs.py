"""What pip cannot bring, or not every machine has: skipped where missing, but not in CI."""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).parent


def node() -> str:
    """Return the path of node, for which the packages of `package.json` are there too."""
    found = shutil.which("node")
    if found is None:
        missing("there is no node on this machine")
    if not (HERE / "node_modules").is_dir():
        missing("the node clients are not installed: npm install --prefix tests/e2e/clients")
    return found


def program(name: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name)
    if found is None:
        missing(f"there is no {name} on this machine")
    return found


def chromium() -> str:
    """Return the path of Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing("there is no Chromium on this machine")
    return found


def module(name: str) -> Any:
    """Import a client that not every environment has."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        missing(f"{name} is not installed")


def missing(what: str) -> NoReturn:
    """Skip the test; in CI, where everything is to be there, fail it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
