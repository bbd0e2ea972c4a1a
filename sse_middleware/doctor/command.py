"""The command `doctor`: its arguments, its output and its exit status."""

import argparse
import json
import math
import sys
from pathlib import Path

from sse_middleware.doctor.client import Target
from sse_middleware.doctor.diagnosis import Plan, diagnose
from sse_middleware.doctor.findings import Severity
from sse_middleware.doctor.report import as_json, text

FOUND = 1
"""The exit status if something is wrong."""
UNUSABLE = 2
"""The exit status for wrong arguments, as that of `argparse`."""


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `python -m sse_middleware`."""
    parser = commands.add_parser(
        "doctor",
        help="find out why a stream breaks",
        description="Open a stream as a browser does, leave it, resume it, and report what is "
        "wrong. The app runs twice. Exit status: 0 if no error is found, 1 if one is, 2 for wrong "
        "arguments.",
    )
    parser.add_argument(
        "urls",
        nargs="+",
        metavar="URL",
        help="the stream; then the same stream at other hops, from the outermost to the app itself",
    )
    add_request(parser)
    parser.add_argument(
        "--seconds",
        type=positive,
        default=30.0,
        help="how long a stream is read (30); longer than the idle timeout that is searched",
    )
    parser.add_argument("--origin", default="", help="the origin of a page, to check CORS for it")
    parser.add_argument("--no-resume", action="store_true", help="run the app once, do not resume")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run_doctor)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a request."""
    parser.add_argument("--method", help="the HTTP method (GET, or POST with --data)")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="may be repeated"
    )
    parser.add_argument("--data", help="the body, or @FILE; JSON unless --header says otherwise")
    parser.add_argument(
        "--insecure", action="store_true", help="accept any certificate of the server"
    )


def targets(arguments: argparse.Namespace, urls: list[str]) -> list[Target]:
    """Return the requests that the arguments describe.

    Raises:
        ValueError: an argument is wrong.
        OSError: the file of the body cannot be read.
    """
    headers = dict(_header(line) for line in arguments.header)
    body = None
    if arguments.data is not None:
        data: str = arguments.data
        body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        headers.setdefault("content-type", "application/json")
    method = (arguments.method or ("GET" if body is None else "POST")).upper()
    if not method.isalpha() or not method.isascii():
        raise ValueError(f"--method {arguments.method!r} is no HTTP method")
    verify = not arguments.insecure
    return [
        Target(url=url, method=method, headers=headers, body=body, verify=verify) for url in urls
    ]


def run_doctor(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    try:
        chosen = targets(arguments, arguments.urls)
    except (ValueError, OSError) as exc:
        print(f"doctor: {exc}", file=sys.stderr)  # noqa: T201 - what a command is for
        return UNUSABLE
    plan = Plan(seconds=arguments.seconds, resumes=not arguments.no_resume, origin=arguments.origin)
    diagnoses = [diagnose(target, plan, show_progress) for target in chosen]
    shown = json.dumps(as_json(diagnoses), indent=2) if arguments.json else text(diagnoses)
    print(shown)  # noqa: T201
    serious = [Severity.ERROR, *([Severity.WARNING] if arguments.strict else [])]
    is_found = any(one.has(severity) for one in diagnoses for severity in serious)
    return FOUND if is_found else 0


def show_progress(line: str) -> None:
    """Show what the command does now, apart from its output."""
    print(f"… {line}", file=sys.stderr, flush=True)  # noqa: T201


def positive(value: str) -> float:
    """Parse a number of seconds above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"it is {value!r}, allowed is a number of seconds above 0")
    return number


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise ValueError("a --header has no name or no colon: write 'NAME: VALUE'")
    return name.strip().lower(), value.strip()
