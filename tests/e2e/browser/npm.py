"""Packages of npm as a browser takes them: modules, at addresses of our own server.

React comes in CommonJS only, so it is wrapped: each file as a function, and a `require` that knows
them by name.
"""

from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from tests.e2e.clients import needs

PACKAGES = needs.HERE / "node_modules"

_HOOKS = (
    "createElement",
    "useCallback",
    "useEffect",
    "useMemo",
    "useRef",
    "useState",
    "Fragment",
    "StrictMode",
)


class _React(NamedTuple):
    """Where the files of a version lie, by the names under which they require each other."""

    files: dict[str, str]
    client: str


_REACTS = {
    "18": _React(
        {
            "react": "react-18/cjs/react.development.js",
            "scheduler": "react-dom-18/node_modules/scheduler/cjs/scheduler.development.js",
            "react-dom": "react-dom-18/cjs/react-dom.development.js",
        },
        "react-dom",
    ),
    "19": _React(
        {
            "react": "react/cjs/react.development.js",
            "scheduler": "scheduler/cjs/scheduler.development.js",
            "react-dom": "react-dom/cjs/react-dom.development.js",
            "react-dom/client": "react-dom/cjs/react-dom-client.development.js",
        },
        "react-dom/client",
    ),
}

_REQUIRE = """
const made = {};
const process = { env: { NODE_ENV: "development" } };
function require(name) {
  if (!made[name]) {
    const module = (made[name] = { exports: {} });
    files[name](module, module.exports, require);
  }
  return made[name].exports;
}
"""


def react_module(version: str) -> str:
    """Return React of a major version as one module, with `createRoot` among its names."""
    react = _REACTS[version]
    files = "".join(
        f"{name!r}: (module, exports, require) => {{ {(PACKAGES / path).read_text()}\n}},\n"
        for name, path in react.files.items()
    )
    return (
        f"const files = {{ {files} }};{_REQUIRE}"
        f'const React = require("react");\nexport default React;\n'
        f"export const {{ {', '.join(_HOOKS)} }} = React;\n"
        f"export const {{ createRoot }} = require({react.client!r});\n"
    )


async def react(request: Request) -> Response:
    """Serve React of a version."""
    text = react_module(request.path_params["version"])
    return Response(text, media_type="text/javascript; charset=utf-8")


async def file(request: Request) -> Response:
    """Serve a file of a package."""
    path = (PACKAGES / request.path_params["path"]).resolve()
    assert Path(PACKAGES).resolve() in path.parents
    return FileResponse(path, media_type="text/javascript; charset=utf-8")


def react_page(version: str, script: str) -> str:
    """Return a page with a module `script` that imports React and the hook by their names."""
    return f"""<!doctype html>
<link rel="icon" href="data:,">
<title>react {version}</title>
<script type="importmap">
{{ "imports": {{ "react": "/npm-react/{version}.js", "react-dom/client": "/npm-react/{version}.js" }} }}
</script>
<div id="root"></div>
<script type="module">
{script}
</script>
"""
