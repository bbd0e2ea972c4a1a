"""React for a browser: its package has CommonJS only, and a page needs a module.

Each of its files becomes a function, and `require` finds them by name.
"""

from typing import NamedTuple

from tests.support import needs

PACKAGES = needs.NODE_CLIENTS / "node_modules"

_HOOKS = (
    "Activity",
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
    """The files of a version, by the names with which they require each other."""

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
