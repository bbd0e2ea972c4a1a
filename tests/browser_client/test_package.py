"""The description of the npm package: its version, and that it names each file of the client."""

import json
from pathlib import Path

import sse_middleware

FOLDER = Path(sse_middleware.__file__).parent / "client"
PACKAGE = json.loads((FOLDER / "package.json").read_text())


def test_the_npm_package_has_the_version_of_the_python_package() -> None:
    assert PACKAGE["version"] == sse_middleware.__version__


def test_the_npm_package_contains_all_modules_and_their_types() -> None:
    modules = {path.name for path in FOLDER.iterdir() if path.name.endswith((".js", ".d.ts"))}
    assert set(PACKAGE["files"]) == {*modules, "README.md"}
    exported = [PACKAGE["exports"]["."], PACKAGE["exports"]["./react"]]
    paths = {path.removeprefix("./") for entry in exported for path in entry.values()}
    assert paths == modules
    assert PACKAGE["main"] == exported[0]["default"]
    assert PACKAGE["types"] == exported[0]["types"]
