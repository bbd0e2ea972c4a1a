"""The command line: `python -m sse_middleware config`, `doctor` and `smoke`."""

import argparse
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence

from sse_middleware import __version__
from sse_middleware.config.fields import OFF
from sse_middleware.config.groups import GROUPS
from sse_middleware.config.options import PER_ENDPOINT, SETTINGS, Options
from sse_middleware.doctor.command import add_doctor
from sse_middleware.doctor.smoke_command import add_smoke
from sse_middleware.errors import ConfigurationError

_LISTING = """\
# Marked streams. A mark may have others: @streaming(heartbeat_interval=10).
{endpoint}

# The app.
{app}

{exceptions}"""
_NO_CAP = (
    "# SSE_STREAM_MAX_SECONDS applies to EventSource clients only, because it is not set: other "
    "clients\n# cannot be told of it. If it is set, it applies to all."
)
_ARGUMENTS = "# Arguments of SSEMiddleware have precedence over variables; they are not known here."
_INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a command that was interrupted, as shells write it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    chosen = command_parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `run` of its result runs the command."""
    parser = argparse.ArgumentParser(prog="python -m sse_middleware")
    parser.add_argument("--version", action="version", version=f"sse_middleware {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    config = commands.add_parser("config", help="show the settings and where they come from")
    config.add_argument("--markdown", action="store_true", help="as the tables of the docs")
    config.set_defaults(run=run_config)
    add_doctor(commands)
    add_smoke(commands)
    return parser


def run_config(arguments: argparse.Namespace) -> int:
    """Print the settings, and return the exit status."""
    if arguments.markdown:
        print(markdown())  # noqa: T201 - what a command is for
        return 0
    try:
        print(listing(os.environ))  # noqa: T201
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return 1
    return 0


def listing(environ: Mapping[str, str]) -> str:
    """Return a line for each setting: its variable, its value, and the source of the value.

    Those of marked streams come first. The last line says where arguments and marks differ.
    """
    options = Options.from_environ(environ)
    rows = {
        name: (
            setting.env,
            shown(setting.redact(getattr(options, name))),
            _source(name, options, environ),
        )
        for name, setting in SETTINGS.items()
    }
    widths = [max(len(row[column]) for row in rows.values()) for column in (0, 1)]

    def text(names: Collection[str]) -> str:
        return "\n".join(
            f"{env:<{widths[0]}}  {value:<{widths[1]}}  {source}"
            for name, (env, value, source) in rows.items()
            if name in names
        )

    return _LISTING.format(
        endpoint=text(PER_ENDPOINT),
        app=text(rows.keys() - PER_ENDPOINT),
        exceptions=_exceptions(options),
    )


def _exceptions(options: Options) -> str:
    """Return the sentences about clients to which some defaults do not apply."""
    cap = "" if "stream_max_seconds" in options.explicit else f"{_NO_CAP}\n"
    return f"{cap}{_ARGUMENTS}"


def markdown() -> str:
    """Return the tables of all settings, as docs/settings.md has them."""
    return "\n\n".join(f"### {title}\n\n{_table(names)}" for title, names in GROUPS.items())


def _table(names: Sequence[str]) -> str:
    rows = [
        "| variable | argument | per endpoint | default | allowed | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        setting, default = SETTINGS[name], shown(getattr(Options(), name))
        legacy = f", `{setting.legacy_env}`" if setting.legacy_env else ""
        cells = (
            f"`{setting.env}`{legacy}",
            f"`{name}`",
            "yes" if name in PER_ENDPOINT else "no",
            f"`{default}`" if default else "empty",
            setting.allowed,
            setting.meaning,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def shown(value: object) -> str:
    """Write a value as its variable takes it."""
    if value is None:
        return OFF
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _source(name: str, options: Options, environ: Mapping[str, str]) -> str:
    if name not in options.explicit:
        return "default"
    setting = SETTINGS[name]
    return setting.env if environ.get(setting.env) is not None else setting.legacy_env


if __name__ == "__main__":
    sys.exit(main())
