"""Settings: each stands once, as a field of `Options`, with its variable, bounds and reason.

Precedence: constructor argument, `SSE_*`, bare seed name, default. A bad `SSE_*` value or
argument is an error; a bad value under a bare name, which may belong to someone else, is a
warning and is passed over.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from sse_middleware.errors import ConfigurationError

logger = logging.getLogger("sse_middleware")

OFF = "off"


@dataclass(frozen=True)
class Setting:
    """How one field of `Options` is read and checked.

    Attributes:
        env: the variable that sets it.
        parse: reads the variable's text; raises `ValueError` where it is none of its values.
        check: tells whether a value of any type is allowed.
        allowed: what is, in words.
        bare: the older variable without the prefix, which works too.
    """

    env: str
    parse: Callable[[str], object]
    check: Callable[[object], bool]
    allowed: str
    bare: str = ""


def _number(value: object, lowest: float, highest: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return lowest <= value <= highest


def _seconds(env: str, default: float, *, lowest: float, bare: str = "") -> Any:
    highest = 31_536_000.0  # a year: far past any stream, near enough to multiply safely
    return field(
        default=default,
        metadata={
            "setting": Setting(
                env=env,
                parse=lambda text: None if text.lower() == OFF else float(text),
                check=lambda value: value is None or _number(value, lowest, highest),
                allowed=f"seconds from {lowest:g} to {highest:.0f}, or off (None)",
                bare=bare,
            )
        },
    )


def _whole(env: str, default: int, *, lowest: int, highest: int, unit: str) -> Any:
    return field(
        default=default,
        metadata={
            "setting": Setting(
                env=env,
                parse=int,
                check=lambda value: isinstance(value, int) and _number(value, lowest, highest),
                allowed=f"whole {unit} from {lowest} to {highest}",
            )
        },
    )


def _flag(env: str, *, default: bool) -> Any:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}

    def parse(text: str) -> bool:
        try:
            return words[text.lower()]
        except KeyError:
            raise ValueError(text) from None

    return field(
        default=default,
        metadata={
            "setting": Setting(
                env=env,
                parse=parse,
                check=lambda value: isinstance(value, bool),
                allowed="1, true, yes, on, 0, false, no or off",
            )
        },
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an operator can set. `from_environ` reads, checks and combines all sources."""

    enabled: bool = _flag("SSE_ENABLED", default=True)
    """Whether we act at all; off, everything is passed through."""

    stream_max_seconds: float | None = _seconds(
        "SSE_STREAM_MAX_SECONDS", 60.0, lowest=0.05, bare="STREAM_MAX_SECONDS"
    )
    """The cap: the longest life of a stream, from its response start. `None`: no cap.

    60 s is the idle limit of many proxies. Where nobody has set it, streams of the `plain`
    family have none, since an app without us has none.
    """

    heartbeat_interval: float | None = _seconds(
        "SSE_HEARTBEAT_INTERVAL", 5.0, lowest=0.05, bare="HEARTBEAT_INTERVAL"
    )
    """Time between two heartbeats. `None`: no heartbeats; 0 is refused, it would flood.

    5 s is well below the 15 s of the silence threshold and any proxy's idle limit.
    """

    silence_threshold: float | None = _seconds(
        "SSE_SILENCE_THRESHOLD", 15.0, lowest=0.05, bare="SILENCE_THRESHOLD"
    )
    """The silence after which a client should reconnect, announced to it. `None`: never.

    15 s is three heartbeats: one may be late and one lost.
    """

    retry_ms: int = _whole("SSE_RETRY_MS", 2000, lowest=0, highest=3_600_000, unit="milliseconds")
    """The reconnection time that `start` sets in an `EventSource`; browsers wait 3 to 5 s."""

    max_event_bytes: int = _whole(
        "SSE_MAX_EVENT_BYTES", 1 << 20, lowest=1024, highest=1 << 30, unit="bytes"
    )
    """The longest event that is held until it is whole; a longer one passes in parts."""

    explicit: frozenset[str] = frozenset()
    """The names of the fields that someone has set, by argument or variable."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **arguments: object) -> "Options":
        """Combine `arguments` (by field name), the variables of `environ` and the defaults.

        Raises:
            ConfigurationError: an argument or a `SSE_*` variable is not allowed.
            TypeError: an argument has no such field.
        """
        values: dict[str, Any] = {}
        for name, setting in SETTINGS.items():
            if name in arguments:
                values[name] = _checked(name, arguments.pop(name), setting)
            elif (text := environ.get(setting.env, "").strip()) != "":
                values[name] = _parsed(setting.env, text, setting)
            elif setting.bare and (text := environ.get(setting.bare, "").strip()) != "":
                try:
                    values[name] = _parsed(setting.bare, text, setting)
                except ConfigurationError as exc:
                    logger.warning("%s; passed over, set %s instead", exc, setting.env)
        if arguments:
            unknown = ", ".join(sorted(arguments))
            raise TypeError(f"no such option: {unknown}; there are: {', '.join(SETTINGS)}")
        return cls(**values, explicit=frozenset(values))


class OptionArguments(TypedDict, total=False):
    """The fields of `Options` as keyword arguments, for type checkers and editors."""

    enabled: bool
    stream_max_seconds: float | None
    heartbeat_interval: float | None
    silence_threshold: float | None
    retry_ms: int
    max_event_bytes: int


SETTINGS: Mapping[str, Setting] = {
    item.name: item.metadata["setting"]
    for item in dataclasses.fields(Options)
    if "setting" in item.metadata
}
"""The one table: a field's name and how it is set."""


def _checked(name: str, value: object, setting: Setting) -> object:
    if not setting.check(value):
        raise ConfigurationError(name, value, setting.allowed)
    return value


def _parsed(variable: str, text: str, setting: Setting) -> object:
    try:
        value = setting.parse(text)
    except ValueError as exc:
        raise ConfigurationError(variable, text, setting.allowed) from exc
    if not setting.check(value):
        raise ConfigurationError(variable, text, setting.allowed)
    return value
