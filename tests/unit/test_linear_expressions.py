"""No regular expression of the package takes quadratic time on any input.

The test finds all expressions, and the methods with which each is used, in the source. It builds
hostile inputs from the characters and words of each expression: a beginning, a long repetition, and
an end that does not match. A new expression is tested without a change here.
"""

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sse_middleware
from sse_middleware.http.routes import PathFilter
from tests.support.growth import excess_growth

pytestmark = pytest.mark.python_only

ROOT = Path(sse_middleware.__file__).parent
METHODS = ("search", "match", "fullmatch", "findall", "finditer", "sub", "subn", "split")
SMALL, FACTOR = 1000, 8
LIMIT = 3.0**3
"""Three doublings: linear is 8, quadratic is 64."""
ANY = " \t\r\n\0a0A=:;,.&\"'-_/\\\xff"
TRUSTED = {
    "config/fields.py": "the settings of the operator, once",
    "client/serve.py": "a file of this package",
    "http/routes.py": "compiles the globs of the operator, which are tested below",
}
"""Files that use expressions which are no constants of a module, and their input."""


class Use(NamedTuple):
    """A use of an expression in the source."""

    file: str
    name: str
    pattern: re.Pattern[Any]
    method: str

    def __str__(self) -> str:
        return f"{self.file} {self.name}.{self.method}"


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def constants_of(file: str) -> dict[str, re.Pattern[Any]]:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        module = importlib.import_module(f"sse_middleware.{name}")
    except ModuleNotFoundError:  # an extra is missing here; the other environments have it
        return {}
    return {name: value for name, value in vars(module).items() if isinstance(value, re.Pattern)}


def uses() -> list[Use]:
    found = set()
    for file, tree in sources():
        if "import re\n" not in (ROOT / file).read_text() and file != "protocol/parser.py":
            continue
        patterns = constants_of(file)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in patterns
                and node.attr in METHODS
            ):
                found.add(Use(file, node.value.id, patterns[node.value.id], node.attr))
    return sorted(found, key=str)


def calls_of_re(tree: ast.Module) -> list[int]:
    """Return the lines within functions that call `re.compile`, `re.search` and so on."""
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [
        node.lineno
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "re"
        and node.attr in ("compile", *METHODS)
    ]


def hostile_inputs(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield a beginning, a part to be repeated, and an end."""
    words = [word for word in re.findall(r"[A-Za-z_]{2,}", source) if len(word) < 20]
    characters = [c for c in dict.fromkeys(ANY + source) if not c.isalnum() or c in ANY]
    phrases = [word + mark for word in words for mark in "=: -"]
    pairs = ["".join(pair) for pair in product(";&,=\r\n:. -", repeat=2)]
    snippets = sorted({source[at : at + size] for at in range(len(source)) for size in (2, 3)})
    parts = [*characters, *words, *phrases, *pairs, *snippets]
    beginnings = ["", *words, *phrases, *(phrase + '"' for phrase in phrases), ";", "/", "["]
    for beginning, part in product(beginnings, parts):
        yield beginning, part, "\0"


def work(pattern: re.Pattern[Any], method: str, text: str) -> Callable[[], object]:
    data: Any = text.encode("latin-1") if isinstance(pattern.pattern, bytes) else text
    call = getattr(pattern, method)
    if method == "finditer":
        return lambda: list(call(data))
    if "sub" in method:
        return partial(call, "" if data is text else b"", data)
    return partial(call, data)


def quadratic_input(pattern: re.Pattern[Any], method: str) -> str:
    """Return a part whose repetition takes quadratic time, `""` if there is none."""
    source = pattern.pattern
    source = source.decode("latin-1") if isinstance(source, bytes) else source
    for beginning, part, end in hostile_inputs(source):
        short, long = (
            work(pattern, method, beginning + part * (size // len(part)) + end)
            for size in (SMALL, SMALL * FACTOR)
        )
        if excess_growth(short, long, LIMIT):
            return f"{beginning!a} + {part!a} * n + {end!a}"
    return ""


def test_every_expression_is_a_constant_whose_uses_are_tested() -> None:
    elsewhere = {file for file, tree in sources() if calls_of_re(tree)}
    assert elsewhere <= TRUSTED.keys()
    tested = {(use.file, use.name) for use in uses()}
    for file, _ in sources():
        if "import re\n" in (ROOT / file).read_text():
            unused = {name for name in constants_of(file) if (file, name) not in tested}
            assert unused <= {"EOL"}, f"{file} uses them in an unknown way"  # used in the parser


@pytest.mark.parametrize("use", uses(), ids=str)
def test_no_expression_takes_quadratic_time(use: Use) -> None:
    assert not quadratic_input(use.pattern, use.method)


@pytest.mark.parametrize("glob", ["/a/*/b/*/c", "*.x*.y*", "/[a-z]*[0-9]*-?", "*"])
@pytest.mark.parametrize("part", ["a", "/", "/a/b", ".x", ".y", "a0", "-", "\n"])
def test_no_path_takes_quadratic_time_to_compare_with_a_glob(glob: str, part: str) -> None:
    paths = PathFilter((glob,), ())
    sizes = (SMALL, SMALL * FACTOR)
    short, long = (partial(paths.leaves_out, f"/{part * size}!") for size in sizes)
    assert not excess_growth(short, long, LIMIT)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (re.compile(rb"\s*([^=;\s]+)=([^;]*)"), "findall"),
        (re.compile(r"\s+$"), "search"),
        (re.compile(r"for=[^;]*x"), "findall"),
        (re.compile(r"^(.*?://)?.*@"), "sub"),
        (re.compile(r"(a*)(a*)b"), "fullmatch"),
    ],
)
def test_quadratic_expressions_are_detected(pattern: re.Pattern[Any], method: str) -> None:
    assert quadratic_input(pattern, method)
