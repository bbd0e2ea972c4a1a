"""The wheel and the sdist in `DIST`: installed into empty environments, with an empty home folder.

`tox -e release` builds them first. No package of ours is imported here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import needs
from tests.support.servers import running_process, until_logged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

INIT = (needs.REPOSITORY / "sse_middleware" / "__init__.py").read_text()
(VERSION,) = re.findall(r'^__version__ = "([^"]+)"', INIT, re.MULTILINE)
WHEEL, SDIST = f"sse_middleware-{VERSION}-py3-none-any.whl", f"sse_middleware-{VERSION}.tar.gz"
IN_SDIST = {
    *("LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "pyproject.toml", "tox.ini"),
    *("sse_middleware", "example_app", "benchmarks", "tests", "docs", "PKG-INFO"),
}


@pytest.fixture(scope="module")
def dist() -> Path:
    if "DIST" not in os.environ:
        pytest.skip("no distributions were built: tox -e release")
    return Path(os.environ["DIST"])


class Environment(NamedTuple):
    """An environment without packages, and an empty home folder."""

    python: str
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**inherited, "HOME": str(self.home), "PIP_NO_CACHE_DIR": "1"}

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [self.python, *command],
            env=self.variables,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def empty(directory: Path) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", str(directory / "venv")], check=True)
    home = directory / "home"
    home.mkdir()
    return Environment(str(directory / "venv" / "bin" / "python"), home)


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    with tarfile.open(dist / SDIST) as archive:
        archive.extractall(directory, filter="data")
    return directory / SDIST.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def with_all(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Install the sdist with all extras."""
    environment = empty(tmp_path_factory.mktemp("all"))
    environment.run("-m", "pip", "install", f"{unpacked}[all]")
    return environment


def test_there_is_one_wheel_and_one_sdist_of_this_version(dist: Path) -> None:
    found = {path.name for path in dist.iterdir() if path.suffix in (".whl", ".gz")}
    assert found == {WHEEL, SDIST}


def test_the_wheel_contains_the_package_and_its_license_only(dist: Path) -> None:
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        names = wheel.namelist()
    info = f"sse_middleware-{VERSION}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"sse_middleware", info}
    assert f"{info}/licenses/LICENSE" in names
    listed = subprocess.run(
        ["git", "ls-files", "sse_middleware"],
        cwd=needs.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {name for name in names if not name.startswith(info)} == set(listed)


def test_the_sdist_contains_what_the_tests_and_the_example_need(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} >= IN_SDIST
    assert not list(unpacked.rglob("node_modules"))
    assert not list(unpacked.rglob("__pycache__"))


def test_the_wheel_works_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    environment = empty(tmp_path)
    environment.run("-m", "pip", "install", str(dist / WHEEL))
    environment.run("-m", "pip", "check")
    shutil.rmtree(environment.home)
    environment.home.mkdir()
    found = environment.run("-c", "import sse_middleware; print(sse_middleware.__version__)")
    assert found.strip() == VERSION
    assert "SSE_STREAM_MAX_SECONDS" in environment.run("-m", "sse_middleware", "config")
    assert not list(environment.home.iterdir()), "it has written into the home folder"


def test_the_example_of_the_sdist_streams_an_answer(
    with_all: Environment, unpacked: Path, tmp_path: Path
) -> None:
    # In a folder without the package, which is the installed one then.
    shutil.copytree(unpacked / "example_app", tmp_path / "example_app")
    command = [with_all.python, "-m", "example_app", "--port", "0"]
    variables = {**with_all.variables, "PYTHONPATH": str(tmp_path)}
    with running_process(command, tmp_path / "example.log", variables) as (_, log):
        url = until_logged(log, r"http://[\d.:]+/")
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<html" in page.read()
        query = urllib.request.Request(
            f"{url}stream/search?query=generators",
            headers={"accept": "text/event-stream;events=named"},
        )
        with urllib.request.urlopen(query, timeout=60) as answer:
            lines = answer.read().decode().splitlines()
    assert lines[0] == "event: start"
    assert "event: content_chunk" in lines
    assert "event: complete" in lines


def test_the_bill_of_materials_has_each_package_of_the_extras(
    with_all: Environment, unpacked: Path, dist: Path
) -> None:
    needs.module("cyclonedx_py")
    output = dist / "sbom.cdx.json"
    command = [
        *(sys.executable, "-m", "cyclonedx_py", "environment", with_all.python),
        *("--pyproject", str(unpacked / "pyproject.toml"), "--output-file", str(output)),
        *("--output-format", "JSON"),
    ]
    subprocess.run(command, check=True)
    bill = json.loads(output.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    found = {component["name"].lower() for component in bill["components"]}
    expected = {"bm25s", "fastapi", "genai-prices", "hiredis", "httpx2", "limits", "redis"}
    expected |= {"opentelemetry-api", "prometheus-client", "sse-starlette", "starlette", "uvicorn"}
    assert expected <= {name.replace("_", "-") for name in found}
    assert not found & {"pytest", "twine", "build"}
