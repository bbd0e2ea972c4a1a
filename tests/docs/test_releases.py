"""The promises of docs/releases.md that can be compared with the package."""

import configparser
import importlib
import re

import pytest

import sse_middleware
from tests.docs.snippets import DOCS, snippets
from tests.support.needs import REPOSITORY

PAGE = (DOCS / "releases.md").read_text()


def test_the_changelog_has_a_section_of_the_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+) \([^)]+\)$", changelog, re.MULTILINE)
    assert versions[0] == sse_middleware.__version__
    assert changelog.count("\n## ") == len(versions)


def test_each_public_module_has_a_list_of_its_names() -> None:
    (listed,) = re.findall(r"the names in `__all__` of (.*?), and their", PAGE, re.DOTALL)
    modules = re.findall(r"`([\w.]+)`", listed)
    assert "sse_middleware" in modules
    for module in modules:
        name = f"sse_middleware{module}" if module.startswith(".") else module
        if name.endswith(("redis", "channels")):
            pytest.importorskip("redis", reason="the minimal environment has no redis")
        assert importlib.import_module(name).__all__, name


def test_the_schema_of_the_keys_is_that_of_the_page() -> None:
    pytest.importorskip("redis", reason="the minimal environment has no redis")
    keys = importlib.import_module("sse_middleware.stores.redis.keys")
    assert f"schema, now {keys.SCHEMA}." in " ".join(PAGE.split())


def test_the_command_of_a_release_exists() -> None:
    tox = configparser.ConfigParser()
    tox.read(REPOSITORY / "tox.ini")
    (command,) = [text.split() for text in snippets("sh", "releases.md")]
    assert command[:2] == ["tox", "-e"]
    assert f"testenv:{command[2]}" in tox
