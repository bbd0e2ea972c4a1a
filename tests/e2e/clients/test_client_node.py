"""The browser client under node: the parser, the machine, the client, and its types."""

import shutil
import subprocess
from pathlib import Path

from tests.support import needs

TESTS = Path(__file__).parents[2] / "browser_client"


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=TESTS, capture_output=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_the_client_passes_its_tests_under_node() -> None:
    node = shutil.which("node") or needs.missing("node is not installed")
    run(node, "--test", *map(str, sorted(TESTS.glob("*.test.mjs"))))


def test_a_type_checker_understands_the_public_types() -> None:
    compiler = str(needs.NODE_CLIENTS / "node_modules" / "typescript" / "bin" / "tsc")
    strict = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext"]
    libraries = ["--lib", "es2022,dom,dom.iterable,dom.asynciterable"]
    run(needs.node(), compiler, *strict, *libraries, "types.ts")
