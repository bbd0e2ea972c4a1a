"""Programs and packages that some machines do not have.

Without one, a test is skipped; in CI it fails.
"""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

REPOSITORY = Path(__file__).parents[2]
NODE_CLIENTS = REPOSITORY / "tests" / "e2e" / "clients"
"""The folder of `package.json` and of the clients that run under node."""


def node() -> str:
    """Return the path of node; the packages of `package.json` have to be installed too."""
    found = shutil.which("node")
    if found is None:
        missing("node is not installed")
    if not (NODE_CLIENTS / "node_modules").is_dir():
        missing("the node clients are not installed: npm install --prefix tests/e2e/clients")
    return found


def program(name: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed")
    return found


def chromium() -> str:
    """Return the path of Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing("Chromium is not installed")
    return found


def module(name: str) -> Any:
    """Import a module that some environments do not have."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        missing(f"{name} is not installed")


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI, which has everything installed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
