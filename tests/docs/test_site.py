"""The pages as a whole: links for GitHub and the site, the navigation, the API reference."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import DOCS, PAGES
from tests.support.needs import REPOSITORY

CONFIGURATION = (REPOSITORY / "mkdocs.yml").read_text()
REFERENCE = (DOCS / "reference.md").read_text()
PUBLIC = {
    "sse_middleware": None,
    "sse_middleware.channels": None,
    "sse_middleware.plugin": ("install",),
    "sse_middleware.sources": None,
    "sse_middleware.sources.prices": None,
    "sse_middleware.stores": None,
    "sse_middleware.stores.memory": ("MemoryStore",),
    "sse_middleware.stores.redis": None,
    "sse_middleware.testing": None,
}
"""The public import paths, with the public names of those that have no `__all__`."""
NEEDS = {"sse_middleware.sources.prices": "genai_prices", "sse_middleware.stores.redis": "redis"}


def test_each_link_of_the_documents_has_a_target() -> None:
    wrong = [
        f"{path.name} links to {target}"
        for path in PAGES
        for target in _links(path)
        if not _has_target(path, target)
    ]
    assert wrong == []


def test_the_links_of_the_site_stay_in_the_site() -> None:
    for path in sorted(DOCS.glob("*.md")):
        assert [link for link in _links(path) if link.startswith(("..", "/"))] == []


def _links(path: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if "://" not in target:
            yield target


def _has_target(path: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(target)


def _anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_each_page_is_in_the_navigation_once() -> None:
    entries = re.findall(r"^ +- (\S+\.md)$", CONFIGURATION, re.MULTILINE)
    assert sorted(entries) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert "font: false" in CONFIGURATION
    assert not re.search(r"^(repo_url|extra_javascript):", CONFIGURATION, re.MULTILINE)
    assert "extra_css: [stylesheets/site.css]\n" in CONFIGURATION


@pytest.mark.parametrize("path", PUBLIC)
def test_the_reference_has_each_public_name(path: str) -> None:
    if path in NEEDS:
        pytest.importorskip(NEEDS[path], reason=f"{path} needs {NEEDS[path]}")
    module = importlib.import_module(path)
    documented = [
        _resolve(directive) for directive in re.findall(r"^::: (\S+)", REFERENCE, re.MULTILINE)
    ]
    names = PUBLIC[path] or module.__all__
    objects = {name: getattr(module, name) for name in names}
    missing = {
        name
        for name, value in objects.items()
        if not any(getattr(value, "__func__", value) is other for other in documented)
    }
    assert missing == set()
    assert f"`{path}`" in REFERENCE or f"::: {path}." in REFERENCE


def _resolve(path: str) -> Any:
    """Return the object at a path, `None` if a package that it needs is missing.

    A function that has the name of its module is reached by the path of the module: for a tool that
    only reads the source, the name in the package is the module.
    """
    place, _, name = path.rpartition(".")
    modules = [".".join(place.split(".")[:length]) for length in range(1, place.count(".") + 2)]
    found: Any = None
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name == module:  # a class
                found = getattr(found, module.rpartition(".")[2])
                break
            return None
    assert path not in sys.modules, f"the site would show the module {path}"
    return getattr(found, name)
