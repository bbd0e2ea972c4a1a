"""The browser client as an npm package: packed, installed into an empty folder, used, compiled."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sse_middleware
from tests.support import needs

MODULES = needs.NODE_CLIENTS / "node_modules"
USE = """\
import { SSEClient, type Complete } from "sse-middleware-client";
import { useSSEStream } from "sse-middleware-client/react";

const client = new SSEClient({
  url: "/answers",
  onComplete: ({ incomplete }: Complete) => void (incomplete satisfies boolean),
});
client.start();
export const { start, state } = useSSEStream({ onContent: (text) => void text.length });
// @ts-expect-error: the package has no other modules
export { ClientFiles } from "sse-middleware-client/serve.py";
"""
FETCH = """\
const headers = { "content-type": "text/event-stream" };
const ids = '"stream_id": "s", "trace_id": "t"';
const start = `event: start\\ndata: {${ids}, "resumed": false}\\n\\n`;
const end = `event: complete\\ndata: {${ids}, "reason": "finished"}\\n\\n`;
const fetch = async () => new Response(`${start}data: 1\\n\\n${end}`, { headers });
"""
NODE = """\
import { EventParser, SSEClient, VERSION } from "sse-middleware-client";
import { useSSEStream } from "sse-middleware-client/react";
import about from "sse-middleware-client/package.json" with { type: "json" };

const headers = { "content-type": "text/event-stream" };
const fetch = async () => new Response("data: 1\\n\\n", { headers });
const found = [];
for await (const { data } of new SSEClient({ url: "http://a.test/", fetch })) found.push(data);
const kinds = [EventParser, useSSEStream].map((value) => typeof value);
console.log(JSON.stringify([VERSION, about.version, kinds, found]));
"""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty project into which the command of the docs has installed the package."""
    needs.node()
    needs.program("npm")
    page = (needs.REPOSITORY / "docs" / "browser.md").read_text()
    (command,) = [line for line in page.splitlines() if line.startswith("npm install ")]
    directory = tmp_path_factory.mktemp("project")
    (directory / "package.json").write_text('{"name": "project", "private": true}')
    python = str(Path(sys.executable))
    assert "python -c" in command
    script = command.replace("python -c", f"'{python}' -c").replace(
        "npm install", "npm install --offline --no-audit --no-fund"
    )
    run("bash", "-euc", f"export PYTHONPATH='{needs.REPOSITORY}'\n{script}", cwd=directory)
    (directory / "node_modules" / "react").symlink_to(MODULES / "react")
    return directory


def test_the_package_has_the_files_of_the_client_only(project: Path) -> None:
    installed = project / "node_modules" / "sse-middleware-client"
    source = Path(sse_middleware.__file__).parent / "client"
    names = {path.name for path in installed.iterdir()}
    assert names == {"package.json", *json.loads((source / "package.json").read_text())["files"]}
    for name in names:
        assert (installed / name).read_bytes() == (source / name).read_bytes()
    assert not (project / "node_modules" / "sse-middleware-client").is_symlink()


def test_the_snippet_of_the_readme_follows_a_stream(project: Path) -> None:
    readme = (project / "node_modules" / "sse-middleware-client" / "README.md").read_text()
    (command,) = re.findall("^npm install .*$", readme, re.MULTILINE)
    assert command in (needs.REPOSITORY / "docs" / "browser.md").read_text()  # which `project` runs
    (snippet,) = re.findall("```js\n(.*?)```", readme, re.DOTALL)
    script = project / "readme.mjs"
    script.write_text(
        FETCH + snippet.replace('url: "/answers"', 'url: "http://a.test/answers", fetch')
    )
    assert run(needs.node(), str(script), cwd=project) == "1\n"


def test_node_imports_the_client_and_the_hook(project: Path) -> None:
    script = project / "use.mjs"
    script.write_text(NODE)
    output = run(needs.node(), "--no-warnings", str(script), cwd=project)
    version = sse_middleware.__version__
    assert json.loads(output) == [version, version, ["function", "function"], [1]]


@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_a_type_checker_finds_the_types_of_both_modules(project: Path, resolution: str) -> None:
    script = project / "use.mts"
    script.write_text(USE)
    compiler = str(MODULES / "typescript" / "bin" / "tsc")
    module = "nodenext" if resolution == "nodenext" else "esnext"
    run(
        needs.node(),
        compiler,
        *("--noEmit", "--strict", "--target", "es2022", "--module", module),
        *("--moduleResolution", resolution),
        *("--lib", "es2022,dom,dom.iterable,dom.asynciterable"),
        str(script),
        cwd=project,
    )


def test_a_bundler_takes_the_client_into_one_file(project: Path) -> None:
    (project / "page.js").write_text(
        'import { SSEClient } from "sse-middleware-client";\n'
        'globalThis.client = new SSEClient({ url: "/answers" });\n'
    )
    bundler = str(MODULES / "esbuild" / "bin" / "esbuild")
    run(bundler, "page.js", "--bundle", "--minify", "--outfile=bundle.js", cwd=project)
    bundle = (project / "bundle.js").read_text()
    assert "text/event-stream" in bundle
    assert "import" not in bundle.partition("text/event-stream")[0][:100]
