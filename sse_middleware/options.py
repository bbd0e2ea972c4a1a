"""Settings: each stands once, in the one table, with its variable, bounds, meaning and reason.

Precedence: mark, constructor argument, `SSE_*`, bare seed name, default. A bad argument or `SSE_*`
value is an error; a bad value under a bare name, which may belong to someone else, is a warning and
is passed over.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from sse_middleware.errors import ConfigurationError

logger = logging.getLogger("sse_middleware")

OFF = "off"

CommentStyle = Literal["auto", "line", "block"]

_YEAR = 31_536_000.0  # the longest time: far past any stream, near enough to calculate with
_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one field of `Options` is read and checked.

    Attributes:
        env: the variable that sets it.
        bare: the older variable without the prefix, which works too.
        parse: reads the variable's text; raises `ValueError` where it is none of its values.
        check: tells whether a value of any type is allowed.
        allowed: what is, in words.
        meaning: what it does, and why the default is what it is.
        may_be_empty: whether an empty variable is a value, and not as good as unset.
    """

    env: str
    bare: str = ""
    parse: Callable[[str], object]
    check: Callable[[object], bool]
    allowed: str
    meaning: str
    may_be_empty: bool = False


def _is_number(value: object, lowest: float, highest: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return lowest <= value <= highest


def _setting(default: object, setting: Setting) -> Any:
    return field(default=default, metadata={"setting": setting})


def _seconds(env: str, default: float, meaning: str, *, lowest: float, bare: str) -> Any:
    return _setting(
        default,
        Setting(
            env=env,
            bare=bare,
            parse=lambda text: None if text.lower() == OFF else float(text),
            check=lambda value: value is None or _is_number(value, lowest, _YEAR),
            allowed=f"seconds from {lowest:g} to {_YEAR:.0f}, or off (None)",
            meaning=meaning,
        ),
    )


def _whole(
    env: str, default: int, meaning: str, *, lowest: int, highest: int, unit: str, bare: str = ""
) -> Any:
    return _setting(
        default,
        Setting(
            env=env,
            bare=bare,
            parse=int,
            check=lambda value: isinstance(value, int) and _is_number(value, lowest, highest),
            allowed=f"whole {unit} from {lowest} to {highest}",
            meaning=meaning,
        ),
    )


def _flag(env: str, meaning: str, *, default: bool) -> Any:
    def parse(text: str) -> bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]

    return _setting(
        default,
        Setting(
            env=env,
            parse=parse,
            check=lambda value: isinstance(value, bool),
            allowed="1, true, yes, on, 0, false, no or off",
            meaning=meaning,
        ),
    )


def _text(env: str, default: str, meaning: str, *, pattern: str, allowed: str) -> Any:
    return _setting(
        default,
        Setting(
            env=env,
            parse=str,
            check=lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None,
            allowed=allowed,
            meaning=meaning,
            may_be_empty=re.fullmatch(pattern, "") is not None,
        ),
    )


def _globs(env: str, meaning: str) -> Any:
    def check(value: object) -> bool:
        return isinstance(value, tuple) and all(
            isinstance(glob, str) and glob.startswith(("/", "*")) for glob in value
        )

    return _setting(
        (),
        Setting(
            env=env,
            parse=lambda text: tuple(glob.strip() for glob in text.split(",") if glob.strip()),
            check=check,
            allowed="path globs, each with a / or * first, separated by commas (a tuple)",
            meaning=meaning,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an operator can set. `from_environ` reads, checks and combines all sources."""

    enabled: bool = _flag(
        "SSE_ENABLED", "Whether we act at all; `0`: everything passes through.", default=True
    )
    stream_max_seconds: float | None = _seconds(
        "SSE_STREAM_MAX_SECONDS",
        60.0,
        "The longest life of a stream, from its response start; `off`: no cap. 60 s is the limit "
        "of many proxies. Where nobody has set it, unmarked streams of plain clients have none.",
        lowest=0.05,
        bare="STREAM_MAX_SECONDS",
    )
    heartbeat_interval: float | None = _seconds(
        "SSE_HEARTBEAT_INTERVAL",
        5.0,
        "The time between two heartbeats; `off`: none; 0 is refused, it would flood. 5 s is well "
        "below any proxy's idle limit.",
        lowest=0.05,
        bare="HEARTBEAT_INTERVAL",
    )
    silence_threshold: float | None = _seconds(
        "SSE_SILENCE_THRESHOLD",
        15.0,
        "The silence after which a client should reconnect, announced to it; `off`: never. 15 s "
        "is three heartbeats.",
        lowest=0.05,
        bare="SILENCE_THRESHOLD",
    )
    chunk_delay_ms: int = _whole(
        "SSE_CHUNK_DELAY_MS",
        0,
        "The least time between two content events, to pace a burst; nothing is dropped. 0: none.",
        lowest=0,
        highest=60_000,
        unit="milliseconds",
        bare="CHUNK_DELAY_MS",
    )
    batch: bool = _flag(
        "SSE_BATCH",
        "Whether events that come within a millisecond leave as one message; `0` for handlers that "
        "yield several at once and then block the event loop.",
        default=True,
    )
    retry_ms: int = _whole(
        "SSE_RETRY_MS",
        2000,
        "How long an `EventSource` waits before it reconnects; browsers alone wait 3 to 5 s.",
        lowest=0,
        highest=3_600_000,
        unit="milliseconds",
    )
    max_event_bytes: int = _whole(
        "SSE_MAX_EVENT_BYTES",
        1 << 20,
        "The longest event that is held until it is whole; a longer one passes in parts.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    include: tuple[str, ...] = _globs(
        "SSE_INCLUDE", "The paths to act on (`*` matches a `/` too); empty: all."
    )
    exclude: tuple[str, ...] = _globs("SSE_EXCLUDE", "The paths to leave alone.")
    only_marked: bool = _flag(
        "SSE_ONLY_MARKED", "Whether to act on marked endpoints only.", default=False
    )
    event_prefix: str = _text(
        "SSE_EVENT_PREFIX",
        "",
        "What stands before the names of our events, where an app has such names of its own.",
        pattern=r"[A-Za-z0-9._:-]{0,32}",
        allowed="at most 32 of A-Z, a-z, 0-9 and . _ : -",
    )
    comment_style: CommentStyle = _text(  # noqa: RUF009 - as the others
        "SSE_COMMENT_STYLE",
        "auto",
        "Whether a heartbeat comment has a blank line (`block`) or not (`line`); `auto` looks at "
        "the client.",
        pattern="auto|line|block",
        allowed="auto, line or block",
    )
    trace_in_data: bool = _flag(
        "SSE_TRACE_IN_DATA",
        "Whether to add `trace_id` to each event of the app whose data is a JSON object.",
        default=False,
    )
    metrics_path: str = _text(
        "SSE_METRICS_PATH",
        "/metrics",
        "Where the metrics are served, below the app's `root_path`; empty: nowhere. Where nobody "
        "has set it, an app that answers there itself keeps the path.",
        pattern=r"(/[^?#\s]+)?",
        allowed="a path with a / first, or nothing",
    )
    rollout_percent: int = _whole(
        "SSE_ROLLOUT_PERCENT",
        100,
        "The share of clients that we act for; the streams of the others are measured and not "
        "touched (family `off`).",
        lowest=0,
        highest=100,
        unit="percent",
    )

    explicit: frozenset[str] = frozenset()
    """The names of the fields that someone has set, by mark, argument or variable."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **arguments: object) -> "Options":
        """Combine `arguments` (by field name), the variables of `environ` and the defaults.

        Raises:
            ConfigurationError: an argument or a `SSE_*` variable is not allowed.
            TypeError: an argument has no such field.
        """
        values = checked(arguments)
        for name, setting in SETTINGS.items():
            if name not in values and (found := _from_variables(setting, environ)):
                values[name] = found[0]
        return cls(**values, explicit=frozenset(values))

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Options":
        """Return these options with those of a mark, which `checked` has seen, before them."""
        return dataclasses.replace(self, **overrides, explicit=self.explicit | overrides.keys())


class OptionArguments(TypedDict, total=False):
    """The fields of `Options` as keyword arguments, for type checkers and editors."""

    enabled: bool
    stream_max_seconds: float | None
    heartbeat_interval: float | None
    silence_threshold: float | None
    chunk_delay_ms: int
    batch: bool
    retry_ms: int
    max_event_bytes: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    only_marked: bool
    event_prefix: str
    comment_style: CommentStyle
    trace_in_data: bool
    metrics_path: str
    rollout_percent: int


SETTINGS: Mapping[str, Setting] = {
    item.name: item.metadata["setting"]
    for item in dataclasses.fields(Options)
    if "setting" in item.metadata
}
"""The one table: a field's name and how it is set."""


def checked(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return `arguments` where each is a field of `Options` and allowed.

    Raises:
        ConfigurationError: one is not allowed.
        TypeError: one has no such field.
    """
    unknown = arguments.keys() - SETTINGS.keys()
    if unknown:
        raise TypeError(
            f"no such option: {', '.join(sorted(unknown))}; there are: {', '.join(SETTINGS)}"
        )
    for name, value in arguments.items():
        if not SETTINGS[name].check(value):
            raise ConfigurationError(name, value, SETTINGS[name].allowed)
    return dict(arguments)


def _from_variables(setting: Setting, environ: Mapping[str, str]) -> tuple[object, ...]:
    """Return the one value that a variable sets, or nothing."""
    text = environ.get(setting.env)
    if text is not None and (text.strip() or setting.may_be_empty):
        return (_parsed(setting.env, text.strip(), setting),)
    text = environ.get(setting.bare, "").strip() if setting.bare else ""
    if text:
        try:
            return (_parsed(setting.bare, text, setting),)
        except ConfigurationError as exc:
            logger.warning("%s; passed over, set %s instead", exc, setting.env)
    return ()


def _parsed(variable: str, text: str, setting: Setting) -> object:
    try:
        value = setting.parse(text)
    except ValueError as exc:
        raise ConfigurationError(variable, text, setting.allowed) from exc
    if not setting.check(value):
        raise ConfigurationError(variable, text, setting.allowed)
    return value
